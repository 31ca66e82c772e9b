"""Other meanings of the functions that the model's modules call.

The model's text has `self.F.linear(x, weight)` and so on. F is `minigrad.nn.functional`, or
`minigrad.nn.unfused` for a model with explicit=True, or an object over one of them that replaces
some of the functions: `Casting`, `Packed` or `HookedFunctions`. So the text has no casts, no
layouts of weights and no hooks.
"""
from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

import minigrad as mg
from minigrad import nn
from minigrad.fused.attention import attention_scores, attention_weights, weights_of_scores
from minigrad.fused.layer_norm import reciprocal_deviation
from minigrad.fused.packed_linear import FEW
from minigrad.locks import lock, this_thread

changing = lock()                       # held while the functions of a model's modules are changed

# a hook at a point, and the thread whose passes it belongs to
Tap = tuple[object, Callable[[mg.Tensor], mg.Tensor]]


class Over:
    """The functions of F, of which a subclass replaces some.

    A copy or a pickle of it is F: what is put over F belongs to one model.
    """

    def __init__(self, F: Any) -> None:
        self.F = F

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "F":
            raise AttributeError(name)
        return getattr(self.F, name)

    def __reduce__(self) -> Any:
        if isinstance(self.F, ModuleType):
            return importlib.import_module, (self.F.__name__,)
        return self.F.__reduce__()


class Casting(Over):
    """F with the parameters cast to the dtype of what they are used with   (cast.1–2).

    This is mixed precision: parameters of float32, and a residual stream of 16 bits.
    """

    def __getattr__(self, name: str) -> Callable[..., Any]:
        f = super().__getattr__(name)

        def cast(*args: Any, **settings: Any) -> Any:
            for x in args:
                if isinstance(x, mg.Tensor) and not isinstance(x, mg.Parameter):
                    args = tuple(a.type_as(x) if isinstance(a, mg.Parameter) else a for a in args)
                    break
            return f(*args, **settings)

        return cast

    def __reduce__(self) -> Any:
        return casting, (self.F.__name__,)


@functools.cache
def casting(name: str) -> Casting:
    """The functions of a module, `minigrad.nn.functional` or `minigrad.nn.unfused`, with casts."""
    return Casting(importlib.import_module(name))


class Packed(Over):
    """F with the products of a few rows taken from panels, which are copies of the matrices.

    panels: by the id of the parameter.
    """

    def __init__(self, F: Any, panels: Mapping[int, mg.Tensor]) -> None:
        super().__init__(F)
        self.panels = panels

    def of(self, x: mg.Tensor, weight: mg.Tensor) -> mg.Tensor | None:
        """The panels of the weight, if x [..., k] has few enough rows for them."""
        return self.panels.get(id(weight)) if x.numel() <= FEW * x.shape[-1] else None

    def matmul(self, x, weight):                                       # [..., k], [k, m]
        if (panels := self.of(x, weight)) is None:
            return self.F.matmul(x, weight)
        return mg.packed_linear(x, panels, size=weight.shape[1])       # [..., m]

    def addmm(self, bias, x, weight):                                  # [m], [..., k], [k, m]
        if (panels := self.of(x, weight)) is None:
            return self.F.addmm(bias, x, weight)
        return mg.packed_linear(x, panels, bias, size=weight.shape[1]) # [..., m]

    def linear(self, x, weight):                                       # [..., k], [m, k]
        if (panels := self.of(x, weight)) is None:
            return self.F.linear(x, weight)
        return mg.packed_linear(x, panels, size=weight.shape[0])       # [..., m]


class HookedFunctions(Over):
    """The functions of a module with points: hooks get what they take and what they return.

    taps: what to call at a point, in this order, by the point's name in the module.
    """

    def __init__(self, F: Any, taps: Mapping[str, Sequence[Tap]]) -> None:
        super().__init__(F)
        self.taps = taps

    def has(self, *names: str) -> bool:
        """Whether this thread has a hook at one of the points."""
        me = this_thread()
        return any(thread is me for name in names for thread, _ in self.taps.get(name, ()))

    def at(self, name: str, x: mg.Tensor) -> mg.Tensor:
        """The value with which the pass continues after the point: x, or a hook's result."""
        me = this_thread()
        for thread, hook in self.taps.get(name, ()):
            if thread is me:
                x = hook(x)
        return x

    def embedding(self, ids, weight):                                  # [..., T], [·, d]
        return self.at("out", self.F.embedding(ids, weight))           # [..., T, d]

    def addmm(self, bias, x, weight):                                  # [m], [B, T, k], [k, m]
        return self.at("out", self.F.addmm(bias, x, weight))           # [B, T, m]

    def linear(self, x, weight):                                       # [B, T, d], [V, d]
        return self.at("logits", self.F.linear(x, weight))             # [B, T, V]

    def linear_cross_entropy(self, x, weight, targets, *, ignore_index):       # [B, T, d], [V, d]
        # the fused loss never has all logits at once, which a hook would read
        if not self.has("logits"):
            return self.F.linear_cross_entropy(x, weight, targets, ignore_index=ignore_index)
        logits = self.linear(x, weight)                                # [B, T, V]
        return self.F.cross_entropy(logits, targets, ignore_index=ignore_index)    # []

    def layer_norm(self, x, weight, bias, *, eps):                     # [B, T, d], [d], [d]
        y = self.F.layer_norm(x, weight, bias, eps=eps)                # [B, T, d]
        return self.normalized(x, y, weight, bias, eps)                # [B, T, d]

    def add_layer_norm(self, x, y, weight, bias, *, eps):              # 2 × [B, T, d], [d], [d]
        s, y = self.F.add_layer_norm(x, y, weight, bias, eps=eps)      # 2 × [B, T, d]
        if (chosen := self.at("sum", s)) is not s:
            return chosen, self.layer_norm(chosen, weight, bias, eps=eps)          # 2 × [B, T, d]
        return s, self.normalized(s, y, weight, bias, eps)             # 2 × [B, T, d]

    def normalized(self, x, y, weight, bias, eps):                     # 2 × [B, T, d], [d], [d]
        """y, which is x normalised, unless a hook gives another mean or another 1/√(σ² + ε)."""
        if self.has("mean", "rstd"):
            own = x.mean(axis=-1, keepdims=True)                       # [B, T, 1]
            mean = self.at("mean", own)                                # [B, T, 1]
            own_rstd = reciprocal_deviation(x, mean, eps=eps)          # [B, T, 1]
            rstd = self.at("rstd", own_rstd)                           # [B, T, 1]
            if mean is not own or rstd is not own_rstd:
                y = (x - mean) * rstd * weight.type_as(x) + bias.type_as(x)        # [B, T, d]
        return self.at("out", y)                                       # [B, T, d]

    def split_heads(self, x, *, heads, parts):                         # [B, T, 3d]
        q, k, v = self.F.split_heads(x, heads=heads, parts=parts)      # 3 × [B, h, T, d/h]
        return self.at("q", q), self.at("k", k), self.at("v", v)       # 3 × [B, h, T, d/h]

    def attention(self, q, k, v, mask=None, *, causal, scale, p, key):     # 3 × [B, h, ·, d/h]
        weights = self.replaced_weights(q, k, mask, causal, scale)     # [B, h, T, S] or None
        if weights is not None:
            return self.at("z", mg.matmul(weights, v))                 # [B, h, T, d/h]
        return self.at("z", self.F.attention(q, k, v, mask, causal=causal, scale=scale, p=p,
                                             key=key))                 # [B, h, T, d/h]

    def replaced_weights(self, q, k, mask, causal, scale):             # 2 × [B, h, ·, d/h]
        """The attention weights where a hook replaces them or the scores, else None."""
        scores = given = None
        if self.has("scores"):
            scores = attention_scores(q, k, scale=scale)               # [B, h, T, S]
            given = self.at("scores", scores)                          # [B, h, T, S]
        if given is scores and not self.has("pattern"):
            return None
        if given is scores:
            weights = attention_weights(q, k, mask, causal=causal, scale=scale)    # [B, h, T, S]
        else:
            weights = weights_of_scores(given, mask, causal=causal)    # [B, h, T, S]
        chosen = self.at("pattern", weights)                           # [B, h, T, S]
        return None if given is scores and chosen is weights else chosen

    def gelu(self, x, bias, *, approximate):                           # [B, T, n], [n]
        x, bias = self.before(x, bias)                                 # [B, T, n], [n]
        return self.at("act", self.F.gelu(x, bias, approximate=approximate))       # [B, T, n]

    def relu(self, x, bias):                                           # [B, T, n], [n]
        x, bias = self.before(x, bias)                                 # [B, T, n], [n]
        return self.at("act", self.F.relu(x, bias))                    # [B, T, n]

    def before(self, x, bias):                                         # [B, T, n], [n]
        """x and the bias, or what a hook has in place of their sum, and zeros."""
        if self.has("pre"):
            bias = bias.type_as(x)                                     # [n]
            pre = x + bias                                             # [B, T, n]
            if (chosen := self.at("pre", pre)) is not pre:
                return chosen, bias * 0.0                              # [B, T, n], [n]
        return x, bias                                                 # [B, T, n], [n]


class Tapped(nn.Module):
    """A module with a point before its forward pass, "in", and one after it, "out"."""

    def __call__(self, x: mg.Tensor, *args: Any) -> mg.Tensor:         # [B, T, d]
        F = self.F
        if not isinstance(F, HookedFunctions):
            return super().__call__(x, *args)                          # [B, T, d]
        return F.at("out", super().__call__(F.at("in", x), *args))     # [B, T, d]
