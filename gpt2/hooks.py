"""Named points of the forward pass: what passes there may be read, replaced, or traced with its gradient.

    with model.hooks({"blocks.3.attn.pattern": lambda x, name: x * 0.0}):      # None, or nothing returned: x goes on as it is
        logits = model(ids)
    found = model.trace(ids)                            # every point's array by name, in the order of the pass

The points are TransformerLens's idea (Nanda, Bloom 2022); weights are as they are stored, nothing is folded or centred, and no token is
put in front. A hook that only reads changes no bit of what comes after.
"""
from __future__ import annotations

import contextlib
import difflib
from collections.abc import Callable, Collection, Iterator, Mapping
from fnmatch import fnmatchcase
from functools import partial
from typing import TYPE_CHECKING, Any

import minigrad as mg

from .config import GPT2Config
from .errors import UsageError
from .weights.pretrained import Part

Hook = Callable[[mg.Tensor, str], Any]
EQUATIONS = {                                           # by the end of a point's name: what gives the value there
    "embed": "embedding.1", "pos_embed": "embedding.1", "resid_pre": "block.1", "ln_1.mean": "layer_norm.1", "ln_1.rstd": "layer_norm.1",
    "ln_1.out": "layer_norm.1", "attn.q": "attention.8", "attn.k": "attention.8", "attn.v": "attention.8", "attn.scores": "attention.2",
    "attn.pattern": "attention.2", "attn.z": "attention.3", "attn.out": "linear.1", "resid_mid": "block.2", "ln_2.mean": "layer_norm.1",
    "ln_2.rstd": "layer_norm.1", "ln_2.out": "layer_norm.1", "mlp.pre": "linear.1", "mlp.act": "gelu.2", "mlp.out": "linear.1",
    "resid_post": "block.3", "ln_f.mean": "layer_norm.1", "ln_f.rstd": "layer_norm.1", "ln_f.out": "layer_norm.1", "logits": "linear.2",
}
ENDS = ("ln_f.mean", "ln_f.rstd", "ln_f.out", "logits")
BLOCK = tuple(EQUATIONS)[2:-len(ENDS)]
STATISTICS = (".mean", ".rstd")                         # of LayerNorms: their part of the gradient is in that of what LayerNorm reads
# read beside the pass, and what their slopes follow from
BESIDE = {"attn.scores": ("attn.v", "attn.pattern", "attn.z"), "attn.pattern": ("attn.v", "attn.z"), "mlp.pre": ("mlp.act",)}


class Tapped(Part):
    """A module with points. taps: what is called at them, by their names in this module."""

    taps: Mapping[str, Callable[[mg.Tensor], mg.Tensor]] = {}

    def at(self, name: str, x: mg.Tensor) -> mg.Tensor:
        """What goes on from the point `name`, where x arrives: x itself, unless a hook gives something else."""
        tap = self.taps.get(name)
        return x if tap is None else tap(x)


class Hooked(Tapped):
    """A model of blocks `h` with hooks at its points."""

    if TYPE_CHECKING:
        h: list[Any]
        ln_f: Any
        config: GPT2Config
        F: Any
        recompute: bool

        def integers(self, ids: Any, what: str = "ids") -> Any: ...

        def refuse_dropout(self, what: str) -> None: ...

    def points(self) -> dict[str, tuple[Tapped, str]]:
        """Every point in the order of the pass, "blocks.0.attn.pattern" and the like: its module, and its name there.

        embed and pos_embed [.., T, d]; of each block the residual stream before it, between its halves and after it (resid_…), what the
        LayerNorms make of it and what attention and MLP add to it (…out), all [B, T, d]; q, k, v and z [B, h, T, d/h], k and v without
        what a cache holds; scores [B, h, T, S], before the mask, and pattern [B, h, T, S], the softmax's weights before dropout; pre and
        act [B, T, n]; ln_f.out [B, T, d]; logits [B, T, V]; of each LayerNorm mean and rstd, 1/√(σ² + ε), [B, T, 1].
        """
        out: dict[str, tuple[Tapped, str]] = {name: (self, name) for name in ("embed", "pos_embed")}
        for i, block in enumerate(self.h):
            for name in BLOCK:
                part, _, inner = name.partition(".")
                out[f"blocks.{i}.{name}"] = (block, name) if inner in ("", "out") else (getattr(block, part), inner)
        return out | {name: (self.ln_f, name[-4:]) if name.endswith(STATISTICS) else (self, name) for name in ENDS}

    def equations(self) -> dict[str, str]:
        """The label of the equation that each point's value comes from, in the order of the pass."""
        own = EQUATIONS | {"mlp.act": {"gelu_new": "gelu.2", "gelu": "gelu.1", "relu": "relu.1"}[self.config.activation_function]}
        return {name: own[name.split(".", 2)[-1] if name.startswith("blocks.") else name] for name in self.points()}

    def chosen(self, pattern: str, known: Collection[str]) -> list[str]:
        """Of the points `known` that of this name, or those that a pattern such as "blocks.*.mlp.act" matches.

        UsageError, with near names, where none is.
        """
        found = [pattern] if pattern in known else [name for name in known if fnmatchcase(name, pattern)]
        if not found:
            near = difflib.get_close_matches(pattern, known, 3)
            hint = f"; near to it: {', '.join(near)}" if near else f"; there are embed, blocks.0.{BLOCK[0]} … logits"
            raise UsageError(f"there is no point {pattern!r}{hint}")
        return found

    @property
    def hooked(self) -> bool:
        """Whether there are hooks anywhere."""
        return any(isinstance(module, Tapped) and module.taps for _, module in self.named_modules())

    @contextlib.contextmanager
    def hooks(self, hooks: Mapping[str, Hook], gradients: Mapping[str, Hook] | None = None) -> Iterator[None]:
        """Inside the block call hooks[name](x, name) whenever x arrives at a point; a Tensor or an array that it returns goes on instead.

        Names may be patterns; of several hooks at a point each gets what the one before it gave, those of an outer block first. However the
        block is left, they are gone. gradients[name](g, name) is called with the loss's gradient there, when backward comes by, also after
        the block; what it returns goes back instead. UsageError for a name that is none, for gradients at points that are read beside the
        pass (attn.scores, attn.pattern, mlp.pre, mean and rstd), and out of the pass for what has not x's shape and dtype.
        A model that is decoding step by step on a GPU goes the long way while there are hooks.
        """
        points, before = self.points(), dict[int, tuple[Tapped, Any]]()
        wanted = [(name, hook) for pattern, hook in hooks.items() for name in self.chosen(pattern, points)]
        for pattern, hook in (gradients or {}).items():
            for name in self.chosen(pattern, points):
                if aside := [other for kind, other in BESIDE.items() if name.endswith(kind)]:
                    raise UsageError(f"no gradient comes by at {name}, which is read beside the pass; take {aside[0][-1]}, or trace()")
                if name.endswith(STATISTICS):
                    raise UsageError(f"no gradient comes by at {name}, which is read beside the pass; take {name[:-4]}out")
                wanted.append((name, partial(_on_the_way_back, hook)))
        try:
            for name, hook in wanted:
                module, inner = points[name]
                before.setdefault(id(module), (module, module.taps))
                module.taps = {**module.taps, inner: partial(_called, module.taps.get(inner), hook, name)}
            yield
        finally:
            for module, taps in before.values():
                if taps:
                    module.taps = taps
                else:
                    del module.taps                     # the class's own

    def trace(self, ids: Any, targets: Any = None, *, only: str = "*", gradients: bool = False) -> dict[str, Any]:
        """The arrays at all points, or at those that `only` matches, in the order of the pass.

        ids [B, T]. With targets [B, T] there is "loss" too, their mean cross-entropy, and with gradients=True "NAME.grad", the loss's
        gradient at each point but mean and rstd. Arrays are the model's own, on its device: copy what is to be written to. UsageError
        for gradients without targets, and of a model that recomputes its blocks: their inside is forgotten; and where dropout would draw.
        """
        if gradients and (targets is None or self.recompute):
            raise UsageError("trace: gradients need targets" if targets is None else "trace: gradients need a model without recompute")
        self.refuse_dropout("trace")
        names, seen = self.chosen(only, self.points()), dict[str, mg.Tensor]()
        aside = {name: kind for name in names for kind in BESIDE if name.endswith(kind)}
        more = [name.replace(kind, other) for name, kind in aside.items() for other in BESIDE[kind]] if gradients else []
        with (mg.enable_grad() if gradients else mg.no_grad()), self.hooks(dict.fromkeys([*names, *more], partial(_keep, seen))):
            logits = self(ids)
            loss = None if targets is None else self.F.cross_entropy(logits, self.integers(targets, "targets"))
        out = {name: seen[name].array for name in names}
        if loss is not None:
            out["loss"] = loss.array
        if gradients:
            assert loss is not None
            on = [name for name in seen if not name.endswith((*BESIDE, *STATISTICS))]
            slopes = dict(zip(on, mg.gradients(loss, [seen[name] for name in on])))
            for name, kind in aside.items():
                given = [name.replace(kind, other) for other in BESIDE[kind]]
                if kind != "mlp.pre":                   # z = P V, so ∂L/∂P = ∂L/∂z Vᵀ, and ∂L/∂S by softmax's rule   (attention.5)
                    slopes[name] = mg.matmul(slopes[given[-1]], seen[given[0]].detach().mT)
                    if kind == "attn.scores":
                        p, g = seen[given[1]].detach(), slopes[name]
                        slopes[name] = p * (g - (p * g).sum(axis=-1, keepdims=True))
                else:
                    mlp: Any = self.points()[name][0]
                    pre = seen[name].detach().requires_grad_()
                    act = mlp.act(mlp.F, pre, mlp.c_fc.bias.detach().type_as(pre) * 0.0)
                    slopes[name], = mg.gradients(act, [pre], slopes[given[0]])
            out.update({f"{name}.grad": slopes[name].array for name in names if name in slopes})
        return out


def _keep(seen: dict[str, mg.Tensor], x: mg.Tensor, name: str) -> None:
    seen[name] = x


def _on_the_way_back(hook: Hook, x: mg.Tensor, name: str) -> mg.Tensor | None:
    """x with a hook of its gradient; where nothing is recorded, there is none."""
    if x.node is None:
        return None
    x = mg.Tensor(x.array, x.node)                      # who has x already goes on without the hook
    x.register_hook(lambda g: hook(g, name))
    return x


def _called(before: Callable[[mg.Tensor], mg.Tensor] | None, hook: Hook, name: str, x: mg.Tensor) -> mg.Tensor:
    """What comes of x at a point, by the hooks before this one and this one."""
    x = x if before is None else before(x)
    made = hook(x, name)
    if made is None:
        return x
    if not isinstance(made, mg.Tensor):
        made = mg.Tensor(mg.backend.of(x.array).adopt(made))
    if made.shape != x.shape or made.dtype != x.dtype:
        raise UsageError(f"the hook at {name} gave {made.dtype}{list(made.shape)}; {x.dtype}{list(x.shape)} is what goes on there")
    return made
