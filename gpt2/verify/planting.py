"""How a mistake is planted in our own model, and what the model then computes.

A mistake is a formula for the tensor at a point. It is planted as a whole; in the value alone (the
port's forward pass is wrong, but it differentiates the right function); or in the derivative alone:
y = stop(x) + s − stop(s) has the value of x and the derivative of the formula s. One ordinary
backward pass then computes all gradients that a port with this mistake has. All is float64 and
unfused.
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
from .formula_parts import mean, of_norm, stop

BOTH, VALUE, DERIVATIVE = "both", "value", "derivative"  # what a mistake changes at its point
# points that are not in the path of the pass, unless a hook returns another Tensor
ALIASES = ("attn.scores", "attn.pattern", "mlp.pre")
NORMS = {"ln_1": "resid_pre", "ln_2": "resid_mid"}      # a block's LayerNorms and their inputs
# a block's matrices, their inputs and outputs
LINEAR = {"attn.c_proj": ("attn.z", "attn.out"), "mlp.c_fc": ("ln_2.out", "mlp.pre"),
          "mlp.c_proj": ("mlp.act", "mlp.out")}
OUTPUTS = {"attn.c_attn": ("attn.q", "attn.k", "attn.v"),
           **{part: (point,) for part, (_, point) in LINEAR.items()}}


@dataclass(frozen=True)
class Here:
    """What a formula reads: the model, the block's number, earlier points, and the ids [B, T]."""

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
    """A run of the model with planted mistakes.

    taps: each returns hooks. losses: each computes a new loss from the loss, the logits and the
    targets. after: each changes the gradients of all parameters, by name, after the backward pass.

    forced: arrays that replace the computed ones, by name: of points, of NAME.grad of points, and,
    in AdamW's steps, of parameters. whole: the rule of a softmax with forced weights also reads the
    weights above the diagonal.
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
    """A mistake.

    at: the end of the name of the first point that it changes, or "loss"; for a mistake in the
    backward pass, the point or parameter whose gradient is the first to be wrong. says: what the
    mistake is, and what is right. plant: plants it in a run, in some blocks, in BOTH, VALUE or
    DERIVATIVE.
    """

    at: str
    says: str
    plant: Plant


# ── what is planted ──
def mixed(x: Tensor, y: Tensor, what: str) -> Tensor:
    """x, with the value of y, with its derivative, or with both."""
    if what == BOTH:
        return y
    return x + stop(y - x) if what == VALUE else stop(x) + (y - stop(y))


def at_point(point: str, made: Formula) -> Plant:
    """Plant made(here, x) in place of x, at a point of some blocks or of the model."""
    def plant(run: Run, layers: list[int], what: str) -> Run:
        def tap(model: GPT2, seen: dict[str, Tensor], ids: np.ndarray) -> dict[str, Any]:
            def hook(x: Tensor, name: str, layer: int) -> Tensor:
                return mixed(x, made(Here(model, layer, seen, ids), x), what)

            where = [(f"blocks.{i}.{point}", i) for i in layers] if point in BLOCK else [(point, 0)]
            return {name: partial(hook, layer=i) for name, i in where}

        return run._replace(taps=(*run.taps, tap))

    return plant


def beforehand(points: Callable[[int, int], list[str]],
               made: Callable[[Callable[[Here, int], Tensor]], Plant]) -> Plant:
    """Plant made(value), where value(here, k) is the tensor at points(block, number of blocks)[k].

    The point may be later in the same pass: a separate pass computes it first.
    """
    def plant(run: Run, layers: list[int], what: str) -> Run:
        def tap(model: GPT2, seen: dict[str, Tensor], ids: np.ndarray) -> dict[str, Any]:
            names = {i: points(i, model.config.n_layer) for i in layers}
            wanted = list(dict.fromkeys(name for some in names.values() for name in some))
            found = computed(run._replace(model=model), wanted)
            one_more = made(lambda here, k: Tensor(found[names[here.layer][k]]))(run, layers, what)
            own = one_more.taps[len(run.taps):]
            return {point: hook for one in own for point, hook in one(model, seen, ids).items()}

        return run._replace(taps=(*run.taps, tap))

    return plant


def every(*plants: Plant) -> Plant:
    """Plant several mistakes at once."""
    def plant(run: Run, layers: list[int], what: str) -> Run:
        for one in plants:
            run = one(run, layers, what)
        return run

    return plant


def linear(part: str, made: Callable[[Here, Tensor, Tensor, Tensor], Tensor]) -> Plant:
    """Plant made(here, x, weight, bias) in place of x W + b, for a matrix of the blocks.

    The result for attn.c_attn is split into heads.
    """
    if part in LINEAR:
        source, point = LINEAR[part]

        def formula(here: Here, x: Tensor) -> Tensor:
            own, given = module(here.block, part), here[source]
            given = mg.join_heads(given) if source == "attn.z" else given      # [B, T, in]
            return made(here, given, own.weight, own.bias)

        return at_point(point, formula)

    def third(here: Here, x: Tensor, i: int) -> Tensor:
        own = module(here.block, part)
        qkv = made(here, here["ln_1.out"], own.weight, own.bias)        # [B, T, 3d]
        return mg.split_heads(qkv, heads=here.model.config.n_head, parts=3)[i]

    return every(*(at_point(f"attn.{name}", partial(third, i=i)) for i, name in enumerate("qkv")))


def module(block: Any, path: str) -> Any:
    """The submodule of a block at a path, such as "attn.c_proj"."""
    for name in path.split("."):
        block = getattr(block, name)
    return block


def norms(made: Callable[..., Tensor], kinds: Iterable[str] = ("ln_1", "ln_2", "ln_f"),
          point: str = "out") -> Plant:
    """Plant made(x, weight, bias, eps) in place of LayerNorms; ln_f belongs to the last block.

    point: "out", "mean" or "rstd"; for the last two, made also gets the right value, as `shown`.
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
    """Plant ln_f of the tensor at point(number of blocks), with its mean and rstd."""
    def made(here: Here, x: Tensor, kind: str) -> Tensor:
        config = here.model.config
        given = here.seen[point(config.n_layer)]
        return of_norm(kind, given, here.model.ln_f, config.layer_norm_epsilon)

    kinds = ("mean", "rstd", "out")
    return every(*(at_point(f"ln_f.{kind}", partial(made, kind=kind)) for kind in kinds))


def statistics(mean: Callable[[Tensor], Any], rstd: Callable[[Tensor, float], Any],
               shift: bool = True, gain: bool = True, raw: bool = False) -> Plant:
    """Plant LayerNorms with another mean, or another 1/σ of the centred numbers.

    In the value alone, both are saved for backward. The points mean and rstd change too, if they
    have one number for each position. raw: rstd gets x instead of the centred numbers.
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
        hat = stop(centred * r)
        return stop(value) + zeroed(hat * weight + bias + stop(weight) * projected(x, hat, r))

    def told(x: Tensor, weight: Tensor, bias: Tensor, eps: float, shown: Tensor,
             point: str) -> Tensor:
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
    """0, with the derivative of s."""
    return s - stop(s)


def projected(x: Tensor, normal: Tensor, rstd: Any, one: bool = True, hat: bool = True) -> Tensor:
    """rstd (x − mean(x) − x̂ mean(x ⊙ x̂))   (layer_norm.5).

    With x̂ and rstd constant, its derivative is LayerNorm's. one, hat: whether the first and the
    second mean are subtracted.
    """
    out = x
    if one:
        out = out - mean(x)
    if hat:
        out = out - normal * mean(x * normal)
    return out * rstd


def patterns(made: Callable[[Here, Tensor, np.ndarray], Tensor]) -> Plant:
    """Plant attention weights made(here, scores, mask); mask is True for a key that may be seen.

    In the value alone, the wrong weights are saved for backward.
    """
    def plant(run: Run, layers: list[int], what: str) -> Run:
        def weights(here: Here, x: Tensor) -> Tensor:
            s = here["attn.scores"]
            seen = np.tri(s.shape[-1], dtype=bool)
            p = made(here, s, seen)
            if what != VALUE:
                return p
            return stop(p) + zeroed(mg.where(seen, weighted(stop(p), s), 0.0))

        return at_point("attn.pattern", weights)(run, layers, BOTH if what == VALUE else what)

    return plant


def weighted(p: Tensor, s: Tensor) -> Tensor:
    """p ⊙ (s − ⟨p, s⟩); with p constant, its derivative is softmax's   (softmax.2)."""
    return p * (s - (p * s).sum(axis=-1, keepdims=True))


def scores(made: Callable[[Here], Tensor]) -> Plant:
    """Plant made(here) in place of the scores."""
    return at_point("attn.scores", lambda here, x: made(here))


def products(q: Tensor, k: Tensor) -> Tensor:
    """q kᵀ of each head."""
    return mg.matmul(q, k.mT)                                          # [B, h, T, T]


def in_ids(edit: Callable[[np.ndarray], np.ndarray],
           targets: Callable[[np.ndarray], np.ndarray] | None = None) -> Plant:
    """Plant other ids, and perhaps other targets."""
    def plant(run: Run, layers: list[int], what: str) -> Run:
        wanted = run.targets if targets is None or run.targets is None else targets(run.targets)
        return run._replace(ids=np.ascontiguousarray(edit(run.ids)), targets=wanted)

    return plant


def in_blocks(order: Callable[[int], list[int]]) -> Plant:
    """Plant the parameters of block order(n)[i] in block i."""
    def plant(run: Run, layers: list[int], what: str) -> Run:
        own, at = parameters(run.model), order(run.model.config.n_layer)
        for i, other in enumerate(at):
            for name, a in parameters(run.model.h[other]).items():
                own[f"h.{i}.{name}"] = a
        return run._replace(model=with_parameters(run.model, own))

    return plant


def in_parameters(edit: Callable[[str, np.ndarray], np.ndarray]) -> Plant:
    """Plant edit(name, array) in place of each parameter."""
    def plant(run: Run, layers: list[int], what: str) -> Run:
        own = {name: edit(name, a) for name, a in parameters(run.model).items()}
        return run._replace(model=with_parameters(run.model, own))

    return plant


def in_loss(made: Callable[[Tensor, Tensor, np.ndarray], Tensor]) -> Plant:
    """Plant made(loss, logits, targets) in place of the loss."""
    def plant(run: Run, layers: list[int], what: str) -> Run:
        def changed(loss: Tensor, logits: Tensor, targets: np.ndarray) -> Tensor:
            return mixed(loss, made(loss, logits, targets), what)

        return run._replace(losses=(*run.losses, changed))

    return plant


def shared(names: Callable[[str], str]) -> Plant:
    """Plant parameters that are one object: names(a parameter's name) is the object's name.

    The gradient of each is the sum of the gradients of all of them.
    """
    def pooled(grads: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        sums = dict[str, Any]()
        for name, g in grads.items():
            sums[names(name)] = sums.get(names(name), 0.0) + g
        return {name: sums[names(name)] for name in grads}

    def plant(run: Run, layers: list[int], what: str) -> Run:
        own = parameters(run.model)
        model = with_parameters(run.model, {name: own[names(name)] for name in own})
        return run._replace(model=model, after=(*run.after, pooled))

    return plant


# ── what a run computes ──
class _Enough(Exception):
    """Raised when the last point that is needed has been computed."""


def parameters(model: Any) -> dict[str, np.ndarray]:
    """The arrays of a module's parameters by name."""
    return {name: p.array for name, p in model.named_parameters()}


def with_parameters(model: GPT2, own: dict[str, np.ndarray]) -> GPT2:
    """The same model, unfused, with other parameters, in their dtype."""
    dtype = next(iter(own.values())).dtype.name
    return GPT2(model.config, dtype=dtype, explicit=True, parameters=own)


def with_value(x: Tensor, value: np.ndarray, name: str) -> Tensor:
    """This value in place of x, with the derivative of x."""
    y = stop(Tensor(value.astype(x.dtype, copy=False)))
    if name.endswith("attn.scores"):                    # no port has the masked scores
        y = mg.where(np.tri(x.shape[-1], dtype=bool), y, stop(x))
    return y + zeroed(x)


def as_saved(x: Tensor, name: str, run: Run, seen: Mapping[str, Tensor]) -> Tensor:
    """x, with the derivative by a rule that reads forced values: attention weights, mean, or rstd.

    Such values are saved for backward, so a port's rule reads its own.
    """
    model, forced = run.model, run.forced
    if name.endswith("attn.pattern") and name in forced:
        past = np.tri(x.shape[-1], dtype=bool) | run.whole
        s = seen[name.replace("pattern", "scores")]     # [B, h, T, T]
        return stop(x) + zeroed(mg.where(past, weighted(stop(x), s), 0.0))
    at, _, end = name.rpartition(".")
    if end != "out" or f"{at}.rstd" not in forced or f"{at}.mean" not in forced:
        return x
    block, _, kind = at.rpartition(".")
    last = f"blocks.{model.config.n_layer - 1}.resid_post"
    given = seen[f"{block}.{NORMS[kind]}" if block else last]
    own = getattr(model.h[int(block.split(".")[1])], kind) if block else model.ln_f
    rstd = stop(seen[f"{at}.rstd"])
    normal = stop(given - seen[f"{at}.mean"]) * rstd
    slope = stop(own.weight) * projected(given, normal, rstd)
    return stop(x) + zeroed(normal * own.weight + own.bias + slope)


def with_gradient(x: Tensor, gradient: np.ndarray) -> Tensor:
    """x, with this gradient in place of the one from the backward pass."""
    y = x * 1.0
    y.register_hook(lambda g: Tensor(gradient.astype(g.dtype, copy=False)))
    return y * 1.0


def computed(run: Run, names: Iterable[str]) -> dict[str, np.ndarray]:
    """The arrays of these names: points, "loss", and NAME.grad of points and parameters.

    They are the names of gpt2.golden without those of AdamW's steps.
    """
    wanted, points = list(names), list(run.model.points())
    slopes = [name.removesuffix(".grad") for name in wanted if name.endswith(".grad")]
    if slopes and run.after:
        slopes = list(dict.fromkeys([*slopes, *parameters(run.model)]))
    last = None
    if not slopes and "loss" not in wanted:
        last = max((points.index(name) for name in wanted), default=-1)
    # values: what is computed at each point; seen: what the next steps read
    values, seen = dict[str, Tensor](), dict[str, Tensor]()
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

    def asked(point: str) -> bool:                      # some points take additional time
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
    """√(d/h), by which scores are divided."""
    return math.sqrt(here.model.config.n_embd // here.model.config.n_head)
