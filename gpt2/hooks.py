"""Named points of the forward pass, where a hook reads or replaces the value.

    with model.hooks({"blocks.3.attn.pattern": lambda x, name: x * 0.0}):
        logits = model(ids)                             # a hook that returns None changes nothing
    found = model.trace(ids)                            # the arrays at all points, by name

The points are an idea of TransformerLens (Nanda, Bloom 2022). The weights are those of the
checkpoint: no LayerNorm is folded into them, no mean is subtracted from them, and no token is put
before the ids. A hook that only reads does not change a single bit of the result.
"""
from __future__ import annotations

import contextlib
import difflib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import partial
from typing import TYPE_CHECKING, Any

import minigrad as mg
from minigrad import nn
from minigrad.locks import this_thread

from .errors import UsageError
from .functions import HookedFunctions, Tap, changing
from .weights.pretrained import PretrainedModel

Hook = Callable[[mg.Tensor, str], Any]
# the equation that a point's value comes from, by the end of the point's name
EQUATIONS = {
    "embed": "embedding.1", "pos_embed": "embedding.1",
    "resid_pre": "block.1",
    "ln_1.mean": "layer_norm.1", "ln_1.rstd": "layer_norm.1", "ln_1.out": "layer_norm.1",
    "attn.q": "attention.8", "attn.k": "attention.8", "attn.v": "attention.8",
    "attn.scores": "attention.2", "attn.pattern": "attention.2", "attn.z": "attention.3",
    "attn.out": "linear.1",
    "resid_mid": "block.2",
    "ln_2.mean": "layer_norm.1", "ln_2.rstd": "layer_norm.1", "ln_2.out": "layer_norm.1",
    "mlp.pre": "linear.1", "mlp.act": "gelu.2", "mlp.out": "linear.1",
    "resid_post": "block.3",
    "ln_f.mean": "layer_norm.1", "ln_f.rstd": "layer_norm.1", "ln_f.out": "layer_norm.1",
    "logits": "linear.2",
}
GELUS = {"gelu_new": "gelu.2", "gelu": "gelu.1", "relu": "relu.1"}
ENDS = ("ln_f.mean", "ln_f.rstd", "ln_f.out", "logits")
BLOCK = tuple(EQUATIONS)[2:-len(ENDS)]
# of a LayerNorm: the gradient at its input contains their share
STATISTICS = (".mean", ".rstd")
# values that a fused op does not return: they are computed once more for a hook, beside the pass.
# Each comes with the points from which `trace` computes its gradient.
BESIDE = {"attn.scores": ("attn.v", "attn.pattern", "attn.z"), "attn.pattern": ("attn.v", "attn.z"),
          "mlp.pre": ("mlp.act",)}


# the module, and the name in it, of points that are not named after them
ELSEWHERE = {"embed": "wte.out", "pos_embed": "wpe.out", "resid_pre": "in", "resid_mid": "ln_2.sum",
             "resid_post": "out", "attn.out": "attn.c_proj.out", "mlp.out": "mlp.c_proj.out"}


class Hooked(PretrainedModel):
    """A model of blocks `h` with hooks at its points.

    open_blocks: of each `hooks` block that is open, in whatever thread, what it calls at a point,
    by the point's name; the oldest block first.
    """

    open_blocks: tuple[Mapping[str, Sequence[Tap]], ...] = ()

    if TYPE_CHECKING:
        h: list[Any]
        recompute: bool

    def __getstate__(self) -> dict[str, Any]:
        """The attributes of a copy, which has no hooks: they belong to the `with` block."""
        return super().__getstate__() | {"open_blocks": ()}

    def own_functions(self, F: Any) -> dict[int, Any]:
        taps: dict[int, dict[str, list[Tap]]] = {}
        points = self.points() if self.open_blocks else {}
        for block in self.open_blocks:
            for name, some in block.items():
                module, inner = points[name]
                taps.setdefault(id(module), {}).setdefault(inner, []).extend(some)
        return {key: HookedFunctions(F, own) for key, own in taps.items()}

    def points(self) -> dict[str, tuple[nn.Module, str]]:
        """Every point in the order of the pass: its module, and its name in that module.

        The names in a block begin with "blocks.0.", "blocks.1." and so on. The shapes are:
        embed, resid_pre, resid_mid, resid_post, attn.out, mlp.out, and each LayerNorm's out:
        [B, T, d]. pos_embed: [T, d], or [B, T, d] if rows are padded. Each LayerNorm's mean and
        rstd, which is 1/√(σ² + ε): [B, T, 1]. attn.q, attn.k, attn.v and attn.z: [B, h, T, d/h],
        where k and v are those of the new tokens, without the KV cache. attn.scores, before the
        mask, and attn.pattern, softmax's weights before dropout: [B, h, T, S]. mlp.pre and mlp.act:
        [B, T, n]. logits: [B, T, V].
        """
        out = {name: self._place(self, name) for name in ("embed", "pos_embed")}
        for i, block in enumerate(self.h):
            out |= {f"blocks.{i}.{name}": self._place(block, name) for name in BLOCK}
        return out | {name: self._place(self, name) for name in ENDS}

    @staticmethod
    def _place(module: Any, name: str) -> tuple[nn.Module, str]:
        """The module of a point, and its name in that module, from its name in the module above."""
        *path, inner = ELSEWHERE.get(name, name).split(".")
        for part in path:
            module = getattr(module, part)
        return module, inner

    def equations(self) -> dict[str, str]:
        """The label of the equation that defines each point's value, in the order of the pass."""
        labels = EQUATIONS | {"mlp.act": GELUS[self.config.activation_function]}
        return {name: labels[name.split(".", 2)[-1] if name.startswith("blocks.") else name]
                for name in self.points()}

    def chosen(self, pattern: str, known: Collection[str]) -> list[str]:
        """The names in `known` that a name or a pattern such as "blocks.*.mlp.act" matches.

        UsageError, with similar names, if there is none.
        """
        if pattern in known:
            return [pattern]
        found = [name for name in known if fnmatchcase(name, pattern)]
        if not found:
            near = difflib.get_close_matches(pattern, known, 3)
            hint = f"there are embed, blocks.0.{BLOCK[0]} … logits"
            if near:
                hint = f"similar names: {', '.join(near)}"
            raise UsageError(f"there is no point {pattern!r}; {hint}")
        return found

    @property
    def hooked(self) -> bool:
        """Whether the model has a hook at any point."""
        return bool(self.open_blocks)

    @contextlib.contextmanager
    def hooks(self, hooks: Mapping[str, Hook],
              gradients: Mapping[str, Hook] | None = None) -> Iterator[None]:
        """Inside the block call hooks[name](x, name) whenever the pass arrives at a point with x.

        The hooks belong to the thread that enters the block: passes of other threads do not meet
        them. Blocks may end in any order; each takes away its own hooks and no others.

        If the hook returns a Tensor or an array, the pass continues with it instead of x. A name
        may be a pattern. Several hooks at one point are called one after the other, those of an
        outer block first; each gets the result of the one before. All hooks of the block are
        removed when it ends, also by an error.

        gradients[name](g, name) is called in the backward pass with the gradient g of the loss at
        the point, even if that pass runs after the block; if it returns a gradient, the backward
        pass continues with it.

        Raises UsageError for a name without a point, for a gradient at a point beside the pass
        (attn.scores, attn.pattern, mlp.pre, mean, rstd), and in the pass for a result that has not
        the shape and dtype of x. On a GPU, hooks turn off the fast step of decoding (`gpu_step`).
        """
        points, me = self.points(), this_thread()
        wanted = [(name, hook) for pattern, hook in hooks.items()
                  for name in self.chosen(pattern, points)]
        for pattern, hook in (gradients or {}).items():
            for name in self.chosen(pattern, points):
                _check_gradient(name)
                wanted.append((name, partial(_in_backward, hook)))
        block: dict[str, list[Tap]] = {}
        for name, hook in wanted:
            block.setdefault(name, []).append((me, partial(_called, hook, name)))
        try:
            with changing:
                self.open_blocks = (*self.open_blocks, block)
                self.set_functions()
            yield
        finally:
            with changing:
                self.open_blocks = tuple(one for one in self.open_blocks if one is not block)
                self.set_functions()

    def trace(self, ids: Any, targets: Any = None, *, only: str = "*",
              gradients: bool = False) -> dict[str, Any]:
        """The arrays at all points, or at those that `only` matches, in the order of the pass.

        ids [B, T]. With targets [B, T], "loss" is their mean cross-entropy. With gradients=True,
        "NAME.grad" is the gradient of the loss at each point except mean and rstd. The arrays are
        the model's own, on its device: copy one before you write to it.

        Raises UsageError if gradients are wanted without targets or of a model with recompute=True
        (it does not save what happens inside a block), and where dropout would draw.
        """
        if gradients and targets is None:
            raise UsageError("trace: gradients need targets")
        if gradients and self.recompute:
            raise UsageError("trace: gradients need a model without recompute")
        self.refuse_dropout("trace")
        names, seen = self.chosen(only, self.points()), dict[str, mg.Tensor]()
        beside = {name: kind for name in names for kind in BESIDE if name.endswith(kind)}
        read = list(names)
        if gradients:
            read += [name.replace(kind, other)
                     for name, kind in beside.items() for other in BESIDE[kind]]
        hooks = self.hooks(dict.fromkeys(read, partial(_store, seen)))
        with (mg.enable_grad() if gradients else mg.no_grad()), hooks:
            logits = self(ids)
            loss = None
            if targets is not None:
                loss = self.F.cross_entropy(logits, self.integers(targets, "targets"))
        out = {name: seen[name].array for name in names}
        if loss is not None:
            out["loss"] = loss.array
        if gradients:
            assert loss is not None
            on = [name for name in seen if not name.endswith((*BESIDE, *STATISTICS))]
            slopes = dict(zip(on, mg.gradients(loss, [seen[name] for name in on])))
            for name, kind in beside.items():
                slopes[name] = self._slope_beside(name, kind, seen, slopes)
            out.update({f"{name}.grad": slopes[name].array for name in names if name in slopes})
        return out

    def _slope_beside(self, name: str, kind: str, seen: Mapping[str, mg.Tensor],
                      slopes: Mapping[str, mg.Tensor]) -> mg.Tensor:
        """The gradient at a point beside the pass, from the gradient at the next point of the pass.

        It has the shape of the value at the point.
        """
        others = [name.replace(kind, other) for other in BESIDE[kind]]
        g = slopes[others[-1]]                                         # at z or act
        if kind == "mlp.pre":
            mlp: Any = self.points()[name][0]
            pre = seen[name].detach().requires_grad_()                 # [B, T, n]
            no_bias = mlp.c_fc.bias.detach().type_as(pre) * 0.0        # [n]
            return mg.gradients(mlp.act(self.functions(), pre, no_bias), [pre], g)[0]
        # z = P V, so ∂L/∂P = ∂L/∂z Vᵀ; ∂L/∂S follows by softmax's rule   (attention.5)
        g = mg.matmul(g, seen[others[0]].detach().mT)
        if kind == "attn.scores":
            p = seen[others[1]].detach()                               # [B, h, T, S]
            g = p * (g - (p * g).sum(axis=-1, keepdims=True))
        return g


def _check_gradient(name: str) -> None:
    """UsageError for a point beside the pass, at which no gradient arrives."""
    if after := [points[-1] for kind, points in BESIDE.items() if name.endswith(kind)]:
        instead = f"{after[0]}, or trace()"
    elif name.endswith(STATISTICS):
        instead = f"{name[:-4]}out"
    else:
        return
    raise UsageError(f"no gradient arrives at {name}: its value is computed only for hooks, and "
                     f"the loss does not depend on that copy; take {instead}")


def _store(seen: dict[str, mg.Tensor], x: mg.Tensor, name: str) -> None:
    seen[name] = x


def _in_backward(hook: Hook, x: mg.Tensor, name: str) -> mg.Tensor | None:
    """x with a hook for its gradient; None where no graph is recorded."""
    if x.node is None:
        return None
    x = mg.Tensor(x.array, x.node)                      # earlier readers of x are without the hook
    x.register_hook(lambda g: hook(g, name))
    return x


def _called(hook: Hook, name: str, x: mg.Tensor) -> mg.Tensor:
    """What the pass continues with after the hook at a point."""
    made = hook(x, name)
    if made is None:
        return x
    if not isinstance(made, mg.Tensor):
        made = mg.Tensor(mg.backend.of(x.array).adopt(made))
    if made.shape != x.shape or made.dtype != x.dtype:
        raise UsageError(f"the hook at {name} returned {made.dtype}{list(made.shape)}; "
                         f"the pass needs {x.dtype}{list(x.shape)} there")
    return made
