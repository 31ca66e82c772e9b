"""How a mistake is planted in our own model, and what the model then computes.

A mistake is a formula for what passes at a point. It is planted as a whole, in the value alone (a port that is wrong on the way forward
and differentiates the right function), or in the derivative alone: y = stop(x) + s − stop(s) has the value of x and the derivative of
the formula s. One ordinary backward pass then gives every gradient that a port with this mistake has. All is float64 and spelled out.
"""
from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

import minigrad as mg
from minigrad import Tensor

from ..golden.truth import permitted
from ..hooks import BLOCK, STATISTICS
from ..model import GPT2

BOTH, VALUE, DERIVATIVE = "both", "value", "derivative"  # what of a point a mistake changes
ALIASES = ("attn.scores", "attn.pattern", "mlp.pre")    # read beside the pass, unless a hook gives another Tensor
NORMS = {"ln_1": "resid_pre", "ln_2": "resid_mid"}      # what each LayerNorm of a block reads
LINEAR = {"attn.c_proj": ("attn.z", "attn.out"), "mlp.c_fc": ("ln_2.out", "mlp.pre"), "mlp.c_proj": ("mlp.act", "mlp.out")}
OUTPUTS = {"attn.c_attn": ("attn.q", "attn.k", "attn.v"), **{part: (point,) for part, (_, point) in LINEAR.items()}}


@dataclass(frozen=True)
class Here:
    """Where a formula stands: the model, the block's number, what has passed at points so far, and the ids [B, T]."""

    model: GPT2
    layer: int
    seen: dict[str, Tensor]
    ids: np.ndarray

    def __getitem__(self, point: str) -> Tensor:
        return self.seen[f"blocks.{self.layer}.{point}" if point in BLOCK else point]

    @property
    def block(self) -> Any:
        return self.model.h[self.layer]

    @property
    def scale(self) -> float:
        return self.block.attn.scale


Formula = Callable[[Here, Tensor], Tensor]
Tap = Callable[[GPT2, dict[str, Tensor], np.ndarray], dict[str, Any]]


class Run(NamedTuple):
    """A run of the model with mistakes planted. taps: each gives hooks. losses: each makes a loss of the loss, the logits and targets.

    after: each changes the gradients of all parameters, by name, once the backward pass is done. forced: arrays by name that take the
    place of what is computed, once it is computed: of points, of NAME.grad of points, and, in AdamW's steps, of parameters. whole: the rule
    of a softmax with forced weights reads those above the diagonal, too.
    """

    model: GPT2
    ids: np.ndarray                                     # [B, T]
    targets: np.ndarray | None                          # [B, T]
    taps: tuple[Tap, ...] = ()
    losses: tuple[Callable[[Tensor, Tensor, np.ndarray], Tensor], ...] = ()
    after: tuple[Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]], ...] = ()
    forced: Mapping[str, np.ndarray] = MappingProxyType({})
    whole: bool = False


Plant = Callable[[Run, list[int], str], Run]


class Bug(NamedTuple):
    """A mistake. at: the end of the name of the first point, or "loss", that it changes; of a mistake in the backward pass, the point, or
    the parameter, whose gradient is the first to be wrong. says: what it is, and what to do. plant: of a run, blocks, and what it changes.
    """

    at: str
    says: str
    plant: Plant


# ── what is planted ──
def stop(x: Any) -> Any:
    """The value of x, through which no gradient goes."""
    return x.detach() if isinstance(x, Tensor) else x


def mixed(x: Tensor, y: Tensor, what: str) -> Tensor:
    """What goes on at a point where x is right: the value of y, its derivative, or both."""
    if what == BOTH:
        return y
    return x + stop(y - x) if what == VALUE else stop(x) + (y - stop(y))


def at_point(point: str, made: Formula) -> Plant:
    """made(here, x) in place of x at a point of some blocks, or of the model."""
    def plant(run: Run, layers: list[int], what: str) -> Run:
        def tap(model: GPT2, seen: dict[str, Tensor], ids: np.ndarray) -> dict[str, Any]:
            def hook(x: Tensor, name: str, layer: int) -> Tensor:
                return mixed(x, made(Here(model, layer, seen, ids), x), what)

            where = [(f"blocks.{i}.{point}", i) for i in layers] if point in BLOCK else [(point, 0)]
            return {name: partial(hook, layer=i) for name, i in where}

        return run._replace(taps=(*run.taps, tap))

    return plant


def beforehand(points: Callable[[int, int], list[str]], made: Callable[[Callable[[Here, int], Tensor]], Plant]) -> Plant:
    """made(value) planted: value(here, k) is what passes at points(block, number of blocks)[k], also at a later point of the same pass."""
    def plant(run: Run, layers: list[int], what: str) -> Run:
        def tap(model: GPT2, seen: dict[str, Tensor], ids: np.ndarray) -> dict[str, Any]:
            names = {i: points(i, model.config.n_layer) for i in layers}
            found = computed(run._replace(model=model), list(dict.fromkeys(name for some in names.values() for name in some)))
            own = made(lambda here, k: Tensor(found[names[here.layer][k]]))(run, layers, what).taps[len(run.taps):]
            return {point: hook for one in own for point, hook in one(model, seen, ids).items()}

        return run._replace(taps=(*run.taps, tap))

    return plant


def every(*plants: Plant) -> Plant:
    """Several of them at once."""
    def plant(run: Run, layers: list[int], what: str) -> Run:
        for one in plants:
            run = one(run, layers, what)
        return run

    return plant


def linear(part: str, made: Callable[[Here, Tensor, Tensor, Tensor], Tensor]) -> Plant:
    """made(here, x, weight, bias) in place of x W + b, of a matrix of the blocks; attn.c_attn is cut into heads after it."""
    if part in LINEAR:
        source, point = LINEAR[part]

        def formula(here: Here, x: Tensor) -> Tensor:
            own, given = module(here.block, part), here[source]
            return made(here, mg.join_heads(given) if source == "attn.z" else given, own.weight, own.bias)

        return at_point(point, formula)

    def third(here: Here, x: Tensor, i: int) -> Tensor:
        own = module(here.block, part)
        return mg.split_heads(made(here, here["ln_1.out"], own.weight, own.bias), heads=here.model.config.n_head, parts=3)[i]

    return every(*(at_point(f"attn.{name}", partial(third, i=i)) for i, name in enumerate("qkv")))


def module(block: Any, path: str) -> Any:
    for name in path.split("."):
        block = getattr(block, name)
    return block


def norms(made: Callable[..., Tensor], kinds: Iterable[str] = ("ln_1", "ln_2", "ln_f"), point: str = "out") -> Plant:
    """made(x, weight, bias, eps) in place of the LayerNorms of these kinds; ln_f is with the last block.

    point: where it stands, "mean" and "rstd" are others; there it is given what passes, `shown`, too.
    """
    def plant(run: Run, layers: list[int], what: str) -> Run:
        def of(here: Here, x: Tensor, kind: str) -> Tensor:
            own = here.model.ln_f if kind == "ln_f" else getattr(here.block, kind)
            last = f"blocks.{here.model.config.n_layer - 1}.resid_post"
            given = here.seen[last] if kind == "ln_f" else here[NORMS[kind]]
            more = {} if point == "out" else {"shown": x}
            return made(given, own.weight, own.bias, here.model.config.layer_norm_epsilon, **more)

        for kind in kinds:
            if kind != "ln_f" or run.model.config.n_layer - 1 in layers:
                run = at_point(f"{kind}.{point}", partial(of, kind=kind))(run, layers, what)
        return run

    return plant


def last_norm_of(point: Callable[[int], str]) -> Plant:
    """ln_f of what passes at point(the number of blocks), and its mean and rstd."""
    def made(here: Here, x: Tensor, kind: str) -> Tensor:
        config = here.model.config
        return of_norm(kind, here.seen[point(config.n_layer)], here.model.ln_f, config.layer_norm_epsilon)

    return every(*(at_point(f"ln_f.{kind}", partial(made, kind=kind)) for kind in ("mean", "rstd", "out")))


def statistics(mean: Callable[[Tensor], Any], rstd: Callable[[Tensor, float], Any], shift: bool = True, gain: bool = True,
               raw: bool = False) -> Plant:
    """LayerNorms with another mean, or another 1/σ of the centred numbers. In the value alone: both are kept for the backward pass.

    They are at the points of mean and rstd too, where they are one number for each place. raw: rstd is given x as it is, not centred.
    """
    def whole(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        centred = x - mean(x)
        normal = centred * rstd(x if raw else centred, eps)
        normal = normal * weight if gain else normal
        return normal + bias if shift else normal

    def kept(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        value = whole(x, weight, bias, eps)
        centred = stop(x - mean(x))
        r = stop(rstd(x if raw else centred, eps))
        return stop(value) + zeroed(stop(centred * r) * weight + bias + stop(weight) * projected(x, stop(centred * r), r))

    def told(x: Tensor, weight: Tensor, bias: Tensor, eps: float, shown: Tensor, point: str) -> Tensor:
        y = mean(x) if point == "mean" else rstd(x if raw else x - mean(x), eps)
        y = shown * 0.0 + stop(y)
        return y if y.shape == shown.shape else shown

    def plant(run: Run, layers: list[int], what: str) -> Run:
        if what != DERIVATIVE:
            for point in ("mean", "rstd"):
                run = norms(partial(told, point=point), point=point)(run, layers, BOTH)
        return norms(kept if what == VALUE else whole)(run, layers, BOTH if what == VALUE else what)

    return plant


def zeroed(s: Tensor) -> Tensor:
    """0 with the derivative of s."""
    return s - stop(s)


def projected(x: Tensor, normal: Tensor, rstd: Any, one: bool = True, hat: bool = True) -> Tensor:
    """rstd (x − mean(x) − x̂ mean(x ⊙ x̂)) with x̂ and rstd held: its derivative is LayerNorm's   (layer_norm.5). one, hat: with that mean."""
    out = x
    if one:
        out = out - mean(x)
    if hat:
        out = out - normal * mean(x * normal)
    return out * rstd


def patterns(made: Callable[[Here, Tensor, np.ndarray], Tensor]) -> Plant:
    """Attention weights as made(here, scores, what may be seen) has them. In the value alone: they are kept for the backward pass."""
    def plant(run: Run, layers: list[int], what: str) -> Run:
        def weights(here: Here, x: Tensor) -> Tensor:
            s = here["attn.scores"]
            seen = np.tri(s.shape[-1], dtype=bool)
            p = made(here, s, seen)
            return stop(p) + zeroed(mg.where(seen, weighted(stop(p), s), 0.0)) if what == VALUE else p

        return at_point("attn.pattern", weights)(run, layers, BOTH if what == VALUE else what)

    return plant


def weighted(p: Tensor, s: Tensor) -> Tensor:
    """p ⊙ (s − ⟨p, s⟩): with p held, its derivative is softmax's   (softmax.2)."""
    return p * (s - (p * s).sum(axis=-1, keepdims=True))


def scores(made: Callable[[Here], Tensor]) -> Plant:
    """Scores as made(here) has them."""
    return at_point("attn.scores", lambda here, x: made(here))


def products(q: Tensor, k: Tensor) -> Tensor:
    return mg.matmul(q, k.mT)                                          # [B, h, T, T]


def in_ids(edit: Callable[[np.ndarray], np.ndarray], targets: Callable[[np.ndarray], np.ndarray] | None = None) -> Plant:
    """Other ids, and perhaps other targets, than those that are given."""
    def plant(run: Run, layers: list[int], what: str) -> Run:
        wanted = run.targets if targets is None or run.targets is None else targets(run.targets)
        return run._replace(ids=np.ascontiguousarray(edit(run.ids)), targets=wanted)

    return plant


def in_blocks(order: Callable[[int], list[int]]) -> Plant:
    """Block i has the parameters of block order(n)[i]."""
    def plant(run: Run, layers: list[int], what: str) -> Run:
        own, at = parameters(run.model), order(run.model.config.n_layer)
        for i, other in enumerate(at):
            for name, a in parameters(run.model.h[other]).items():
                own[f"h.{i}.{name}"] = a
        return run._replace(model=with_parameters(run.model, own))

    return plant


def in_parameters(edit: Callable[[str, np.ndarray], np.ndarray]) -> Plant:
    """Other parameters: edit(name, array)."""
    def plant(run: Run, layers: list[int], what: str) -> Run:
        return run._replace(model=with_parameters(run.model, {name: edit(name, a) for name, a in parameters(run.model).items()}))

    return plant


def in_loss(made: Callable[[Tensor, Tensor, np.ndarray], Tensor]) -> Plant:
    """made(loss, logits, targets) in place of the loss."""
    def plant(run: Run, layers: list[int], what: str) -> Run:
        return run._replace(losses=(*run.losses, lambda loss, logits, targets: mixed(loss, made(loss, logits, targets), what)))

    return plant


def shared(names: Callable[[str], str]) -> Plant:
    """Parameters that are one object: names(a parameter's name) is that of the object. Each has the gradient of all of them."""
    def pooled(grads: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        sums = dict[str, Any]()
        for name, g in grads.items():
            sums[names(name)] = sums.get(names(name), 0.0) + g
        return {name: sums[names(name)] for name in grads}

    def plant(run: Run, layers: list[int], what: str) -> Run:
        own = parameters(run.model)
        return run._replace(model=with_parameters(run.model, {name: own[names(name)] for name in own}), after=(*run.after, pooled))

    return plant


# ── what formulas are made of ──
def mean(x: Tensor, axis: int | tuple[int, ...] = -1) -> Tensor:
    return x.mean(axis=axis, keepdims=True)


def root_mean_square(x: Tensor, eps: float, axis: int | tuple[int, ...] = -1) -> Tensor:
    return mg.sqrt((x * x).mean(axis=axis, keepdims=True) + eps)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    centred = x - mean(x)
    return centred / root_mean_square(centred, eps) * weight + bias


def of_norm(kind: str, x: Tensor, own: Any, eps: float) -> Tensor:
    """The "mean", the "rstd" or the "out" of a LayerNorm of x [B, T, d]; own: what has its weight and its bias."""
    if kind == "out":
        return layer_norm(x, own.weight, own.bias, eps)
    return mean(x) if kind == "mean" else 1.0 / root_mean_square(x - mean(x), eps)


def softmax(x: Tensor, axis: int = -1) -> Tensor:
    e = mg.exp(x - stop(x.max(axis=axis, keepdims=True)))
    return e / e.sum(axis=axis, keepdims=True)


def masked(x: Tensor, seen: np.ndarray) -> Tensor:
    return mg.where(seen, x, -1e30)


def only(x: Any, kept: np.ndarray) -> Any:
    """x, whose gradient is that of the kept places alone: kept is 1 there and 0 elsewhere, and broadcasts."""
    kept = kept.astype(x.dtype)
    return stop(x) * (1.0 - kept) + x * kept


def place_mask(shape: tuple[int, ...], axis: int, index: int) -> np.ndarray:
    """1 at one index of an axis, 0 at the others, as it broadcasts to [B, T, n]."""
    out = np.zeros([n if i == axis else 1 for i, n in enumerate(shape)])
    out[(slice(None),) * axis + (index,)] = 1.0
    return out


def transposed(w: Tensor) -> Tensor:
    """[in, out] as whoever takes the same memory for nn.Linear's [out, in] multiplies with it."""
    return w.reshape(w.shape[::-1]).mT


# ── what a run computes ──
class _Enough(Exception):
    """The last point that is asked for has passed."""


def parameters(model: Any) -> dict[str, np.ndarray]:
    return {name: p.array for name, p in model.named_parameters()}


def with_parameters(model: GPT2, own: dict[str, np.ndarray]) -> GPT2:
    """The same model with other parameters, in their dtype, spelled out."""
    return GPT2(model.config, dtype=next(iter(own.values())).dtype.name, explicit=True, parameters=own)


def with_value(x: Tensor, value: np.ndarray, name: str) -> Tensor:
    """This value in place of x, with x's derivative."""
    y = stop(Tensor(value.astype(x.dtype, copy=False)))
    if name.endswith("attn.scores"):                    # no port has those that the mask hides
        y = mg.where(np.tri(x.shape[-1], dtype=bool), y, stop(x))
    return y + zeroed(x)


def as_saved(x: Tensor, name: str, run: Run, seen: Mapping[str, Tensor]) -> Tensor:
    """x with the derivative that a rule gives which reads values saved for backward, where these are forced: weights, or mean and rstd."""
    model, forced = run.model, run.forced
    if name.endswith("attn.pattern") and name in forced:
        past = np.tri(x.shape[-1], dtype=bool) | run.whole
        return stop(x) + zeroed(mg.where(past, weighted(stop(x), seen[name.replace("pattern", "scores")]), 0.0))
    at, _, end = name.rpartition(".")
    if end != "out" or f"{at}.rstd" not in forced or f"{at}.mean" not in forced:
        return x
    block, _, kind = at.rpartition(".")
    given = seen[f"{block}.{NORMS[kind]}" if block else f"blocks.{model.config.n_layer - 1}.resid_post"]
    own = getattr(model.h[int(block.split(".")[1])], kind) if block else model.ln_f
    rstd = stop(seen[f"{at}.rstd"])
    normal = stop(given - seen[f"{at}.mean"]) * rstd
    return stop(x) + zeroed(normal * own.weight + own.bias + stop(own.weight) * projected(given, normal, rstd))


def with_gradient(x: Tensor, gradient: np.ndarray) -> Tensor:
    """x, which hands this gradient back, whatever it is given."""
    y = x * 1.0
    y.register_hook(lambda g: Tensor(gradient.astype(g.dtype, copy=False)))
    return y * 1.0


def computed(run: Run, names: Iterable[str]) -> dict[str, np.ndarray]:
    """The arrays of these names, those of gpt2.golden but for its steps: of points, "loss", and NAME.grad of points and parameters."""
    wanted, points = list(names), list(run.model.points())
    slopes = [name.removesuffix(".grad") for name in wanted if name.endswith(".grad")]
    if slopes and run.after:
        slopes = list(dict.fromkeys([*slopes, *parameters(run.model)]))
    last = None if slopes or "loss" in wanted else max((points.index(name) for name in wanted), default=-1)
    values, seen = dict[str, Tensor](), dict[str, Tensor]()            # what is computed at each point, and what goes on from it
    hooks = [tap(run.model, seen, run.ids) for tap in run.taps]
    changed = {*run.forced, *(point for one in hooks for point in one)}
    at_weights = any(point.endswith(("attn.scores", "attn.pattern")) for point in changed)

    def keep(x: Tensor, name: str) -> Tensor | None:
        values[name] = seen[name] = x * 1.0 if slopes and name.endswith(ALIASES) else x
        if last is not None and name == points[last]:
            raise _Enough
        if name in run.forced:
            seen[name] = with_value(values[name], run.forced[name], name)
        if run.forced and not any(name in one for one in hooks):
            seen[name] = as_saved(seen[name], name, run, seen)
        if slopes and f"{name}.grad" in run.forced:
            seen[name] = with_gradient(seen[name], run.forced[f"{name}.grad"])
        return seen[name]

    def asked(point: str) -> bool:                      # what takes time beside the pass is left out where nobody looks at it
        if point.endswith("attn.scores"):
            return at_weights or point in wanted or point in slopes
        return not point.endswith(STATISTICS) or point in wanted or point in run.forced

    with contextlib.ExitStack() as stack:
        stack.enter_context(mg.enable_grad() if slopes else mg.no_grad())
        for one in hooks:
            stack.enter_context(run.model.hooks(one))
        stack.enter_context(run.model.hooks(dict.fromkeys(filter(asked, points), keep)))
        with contextlib.suppress(_Enough):
            logits = run.model(run.ids)
            if last is None:
                assert run.targets is not None
                loss = run.model.F.cross_entropy(logits, run.targets)
                for made in run.losses:
                    loss = made(loss, logits, run.targets)
                values["loss"] = loss
    own = dict(run.model.named_parameters())
    at = {name: seen[name] if name in seen else own[name] for name in slopes}
    live = {name: x for name, x in at.items() if x.node is not None}
    grads = dict(zip(live, mg.gradients(values["loss"], list(live.values())))) if live else {}
    out = {name: x.array for name, x in values.items()}
    for name, x in at.items():
        g = grads[name].array if name in grads else np.zeros(x.shape)
        out[f"{name}.grad"] = g
    for change in run.after if slopes else ():
        whole = change({name: out[f"{name}.grad"] for name in parameters(run.model)})
        out |= {f"{name}.grad": g for name, g in whole.items()}
    return {name: permitted(name, out[name]) for name in wanted}


def scale_of(here: Here) -> float:
    """√(d/h)."""
    return math.sqrt(here.model.config.n_embd // here.model.config.n_head)
