"""What usually goes wrong in a forward pass of GPT-2: each bug is planted in our own model, to see whether it gives what a port has.

A bug is a line of BUGS: where it shows, what it is, and a function of the model and of the blocks it is in, which gives a model, changed
or not, and the hooks that plant it. All is NumPy in float64, and spelled out.
"""
from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np

import minigrad as mg

from .hooks import BLOCK, EQUATIONS
from .model import GPT2

Planted = tuple[GPT2, dict[str, Any]]


class Bug(NamedTuple):
    """at: the end of the name of the first point that it changes. says: what it is, and what to do."""

    at: str
    says: str
    plant: Callable[[GPT2, list[int]], Planted]


# ── how bugs are planted ──
def in_weights(part: str, edit: Callable[[GPT2, np.ndarray], np.ndarray]) -> Callable[[GPT2, list[int]], Planted]:
    """The parameter h.i.PART changed, in these blocks."""
    def plant(model: GPT2, layers: list[int]) -> Planted:
        own = {name: p.array for name, p in model.named_parameters()}
        for i in layers:
            own[f"h.{i}.{part}"] = np.ascontiguousarray(edit(model, own[f"h.{i}.{part}"]))
        return GPT2(model.config, dtype="float64", explicit=True, parameters=own), {}

    return plant


def at_point(point: str, made: Callable[[GPT2, dict[str, Any], np.ndarray], np.ndarray],
             *needs: str) -> Callable[[GPT2, list[int]], Planted]:
    """Another value at a point of these blocks, or of the model: made(model, what passed at `needs` before and "layer", the value)."""
    def plant(model: GPT2, layers: list[int]) -> Planted:
        hooks: dict[str, Any] = {}
        for i, prefix in [(i, f"blocks.{i}.") for i in layers] if point in BLOCK else [(0, "")]:
            seen: dict[str, Any] = {"layer": i}

            def keep(x: Any, name: str, seen: dict[str, Any] = seen, prefix: str = prefix) -> None:
                seen[name.removeprefix(prefix)] = x.array

            hooks |= {prefix + need: keep for need in needs}
            hooks[prefix + point] = lambda x, name, seen=seen: made(model, seen, x.array)
        return model, hooks

    return plant


def norms(made: Callable[..., np.ndarray]) -> Callable[[GPT2, list[int]], Planted]:
    """Every LayerNorm of these blocks, and the last one, as made(x, weight, bias, eps) has it."""
    def plant(model: GPT2, layers: list[int]) -> Planted:
        hooks: dict[str, Any] = {}
        seen: dict[str, np.ndarray] = {}

        def keep(x: Any, name: str) -> None:
            seen["x"] = x.array

        def of(module: Any) -> Callable[[Any, str], np.ndarray]:
            return lambda x, name: made(seen["x"], module.weight.array, module.bias.array, model.config.layer_norm_epsilon)

        for i in range(model.config.n_layer):
            hooks |= {f"blocks.{i}.{point}": keep for point in ("resid_pre", "resid_mid", "resid_post")}
        for i in layers:
            hooks[f"blocks.{i}.ln_1.out"], hooks[f"blocks.{i}.ln_2.out"] = of(model.h[i].ln_1), of(model.h[i].ln_2)
        return model, hooks | {"ln_f.out": of(model.ln_f)}

    return plant


def patterns(made: Callable[[GPT2, np.ndarray, np.ndarray], np.ndarray]) -> Callable[[GPT2, list[int]], Planted]:
    """Attention weights as made(model, q kᵀ, what may be seen) has them."""
    def weights(model: GPT2, seen: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
        scores = seen["attn.q"] @ np.swapaxes(seen["attn.k"], -1, -2)                      # [B, h, T, S]
        return made(model, scores, np.tri(scores.shape[-1], dtype=bool))

    return at_point("attn.pattern", weights, "attn.q", "attn.k")


# ── what they compute ──
def softmax(x: np.ndarray, axis: int = -1) -> np.ndarray:
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def normalised(x: np.ndarray, eps: float, ddof: int = 0, axis: int = -1) -> np.ndarray:
    return (x - x.mean(axis, keepdims=True)) / np.sqrt(x.var(axis, ddof=ddof, keepdims=True) + eps)


def scale_of(model: GPT2) -> float:
    return math.sqrt(model.config.n_embd // model.config.n_head)


def masked(scores: np.ndarray, seen: np.ndarray) -> np.ndarray:
    return np.where(seen, scores, -1e30)


def other_layout(model: GPT2, a: np.ndarray, order: str) -> np.ndarray:
    """The columns of c_attn as a port reads them that takes them for `order` and not for parts, heads, numbers."""
    sizes = {"p": 3, "h": model.config.n_head, "k": model.config.n_embd // model.config.n_head}
    columns = np.arange(a.shape[-1]).reshape([sizes[c] for c in order])
    return a[..., columns.transpose([order.index(c) for c in "phk"]).reshape(-1)]


def other_parts(model: GPT2, a: np.ndarray, order: str) -> np.ndarray:
    """The columns of c_attn as a port reads them that takes its thirds for `order`, such as "kqv"."""
    thirds = np.split(a, 3, axis=-1)
    return np.concatenate([thirds[order.index(part)] for part in "qkv"], axis=-1)


def in_columns(edit: Callable[[GPT2, np.ndarray], np.ndarray]) -> Callable[[GPT2, list[int]], Planted]:
    """c_attn's columns, weight and bias, changed."""
    def plant(model: GPT2, layers: list[int]) -> Planted:
        for part in ("attn.c_attn.weight", "attn.c_attn.bias"):
            model, _ = in_weights(part, edit)(model, layers)
        return model, {}

    return plant


def unmerged(model: GPT2, z: np.ndarray, layer: int) -> np.ndarray:
    """What c_proj makes of z [B, h, T, d/h] when it is reshaped to [B, T, d] as it lies."""
    B, h, T, k = z.shape
    own = model.h[layer].attn.c_proj
    return z.reshape(B, T, h * k) @ own.weight.array + own.bias.array


def positions(first: int) -> Callable[..., np.ndarray]:
    def made(model: GPT2, seen: Any, x: np.ndarray) -> np.ndarray:
        table = model.wpe.weight.array
        return table[np.minimum(np.arange(first, first + x.shape[-2]), len(table) - 1)]

    return made


def transposed(model: GPT2, w: np.ndarray) -> np.ndarray:
    """[in, out] as whoever takes the same memory for nn.Linear's [out, in] multiplies with it."""
    return w.reshape(w.shape[::-1]).T


def zero(model: GPT2, w: np.ndarray) -> np.ndarray:
    return np.zeros_like(w)


def ones(model: GPT2, w: np.ndarray) -> np.ndarray:
    return np.ones_like(w)


def layer_norm(at: str, point: str, weights: str) -> Callable[[GPT2, list[int]], Planted]:
    """At `at`, the LayerNorm that has these weights, of what passes at `point`."""
    def made(model: GPT2, seen: dict[str, Any], x: np.ndarray) -> np.ndarray:
        own = getattr(model.h[seen["layer"]], weights)
        return normalised(seen[point], model.config.layer_norm_epsilon) * own.weight.array + own.bias.array

    return at_point(at, made, point)


def gelu(approximate: str) -> Callable[[GPT2, list[int]], Planted]:
    return at_point("mlp.act", lambda m, seen, x: m.F.gelu(mg.Tensor(seen["mlp.pre"]), approximate=approximate).array, "mlp.pre")


def act(f: Callable[[np.ndarray], np.ndarray]) -> Callable[[GPT2, list[int]], Planted]:
    return at_point("mlp.act", lambda model, seen, x: f(seen["mlp.pre"]), "mlp.pre")


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-x))


def no_ln_f(model: GPT2, layers: list[int]) -> Planted:
    seen: dict[str, Any] = {}
    last = f"blocks.{model.config.n_layer - 1}.resid_post"
    return model, {last: lambda x, name: seen.__setitem__("x", x), "ln_f.out": lambda x, name: seen["x"]}


CONV1D = "GPT-2's checkpoints store [in, out] (Conv1D): multiply x W, or transpose when loading into nn.Linear"
BUGS = [
    # embeddings
    Bug("pos_embed", "position embeddings start at row 1; the first token has position 0", at_point("pos_embed", positions(1))),
    Bug("pos_embed", "the position embeddings are not added", at_point("pos_embed", lambda m, seen, x: x * 0.0)),
    Bug("embed", "the token embedding is multiplied by √d, as in Vaswani et al. 2017; GPT-2 does not do that",
        at_point("embed", lambda m, seen, x: x * math.sqrt(m.config.n_embd))),
    # LayerNorm
    Bug("ln_1.out", "ε is added to the deviation; it belongs inside the root: (x − μ)/√(σ² + ε)", norms(
        lambda x, w, b, eps: (x - x.mean(-1, keepdims=True)) / (x.std(-1, keepdims=True) + eps) * w + b)),
    Bug("ln_1.out", "ε is left out of LayerNorm", norms(lambda x, w, b, eps: normalised(x, 0.0) * w + b)),
    Bug("ln_1.out", "LayerNorm's ε is BERT's, 1e-12; GPT-2's is 1e-5", norms(lambda x, w, b, eps: normalised(x, 1e-12) * w + b)),
    Bug("ln_1.out", "LayerNorm's ε is 1e-6; GPT-2's is 1e-5", norms(lambda x, w, b, eps: normalised(x, 1e-6) * w + b)),
    Bug("ln_1.out", "LayerNorm divides by n − 1; its variance is the population's, over n (unbiased=False)",
        norms(lambda x, w, b, eps: normalised(x, eps, ddof=1) * w + b)),
    Bug("ln_1.out", "LayerNorm's weight is not applied", norms(lambda x, w, b, eps: normalised(x, eps) + b)),
    Bug("ln_1.out", "LayerNorm's bias is not added", norms(lambda x, w, b, eps: normalised(x, eps) * w)),
    Bug("ln_1.out", "the mean is not taken away: that is RMSNorm; GPT-2 has LayerNorm", norms(
        lambda x, w, b, eps: x / np.sqrt(np.square(x).mean(-1, keepdims=True) + eps) * w + b)),
    Bug("ln_1.out", "LayerNorm's mean and variance run over the places; they run over the d numbers of each place",
        norms(lambda x, w, b, eps: normalised(x, eps, axis=-2) * w + b)),
    Bug("ln_1.out", "ln_1 has ln_2's weight and bias", layer_norm("ln_1.out", "resid_pre", "ln_2")),
    # Q, K, V
    Bug("attn.q", f"c_attn's weight is read transposed; {CONV1D}", in_weights("attn.c_attn.weight", transposed)),
    Bug("attn.q", "c_attn's bias is not added", in_weights("attn.c_attn.bias", zero)),
    *(Bug("attn.q", f"the columns of c_attn are taken in another order: they are Q, K and V, each all heads ({said})",
          in_columns(partial(other_layout, order=order)))
      for order, said in (("hpk", "not each head's Q, K, V"), ("pkh", "not number by number through the heads"),
                          ("hkp", "not q, k, v number by number"), ("khp", "not q, k, v number by number, heads inside"))),
    *(Bug("attn.k" if order == "qvk" else "attn.q", f"{said} in c_attn's columns: they are Q, K, V",
          in_columns(partial(other_parts, order=order)))
      for order, said in (("kqv", "Q and K are swapped"), ("qvk", "K and V are swapped"), ("vkq", "Q and V are swapped"),
                          ("kvq", "K, V, Q are read"), ("vqk", "V, Q, K are read"))),
    # attention weights
    Bug("attn.pattern", "scores are not divided by √(d/h)", patterns(lambda m, s, seen: softmax(masked(s, seen)))),
    Bug("attn.pattern", "scores are divided by √d; they are divided by √(d/h), of one head",
        patterns(lambda m, s, seen: softmax(masked(s / math.sqrt(m.config.n_embd), seen)))),
    Bug("attn.pattern", "scores are divided by √h, of the number of heads; they are divided by √(d/h), of one head's width",
        patterns(lambda m, s, seen: softmax(masked(s / math.sqrt(m.config.n_head), seen)))),
    Bug("attn.pattern", "scores are divided by d/h; they are divided by its root",
        patterns(lambda m, s, seen: softmax(masked(s / scale_of(m) ** 2, seen)))),
    Bug("attn.pattern", "scores are multiplied by √(d/h); they are divided by it",
        patterns(lambda m, s, seen: softmax(masked(s * scale_of(m), seen)))),
    Bug("attn.pattern", "there is no causal mask: queries see later keys", patterns(lambda m, s, seen: softmax(s / scale_of(m)))),
    Bug("attn.pattern", "the mask is applied after softmax, so rows do not add up to 1; put −∞ into the scores before it",
        patterns(lambda m, s, seen: softmax(s / scale_of(m)) * seen)),
    Bug("attn.pattern", "masked scores are 0, which softmax gives a share; they must be −∞",
        patterns(lambda m, s, seen: softmax(s / scale_of(m) * seen))),
    Bug("attn.pattern", "the mask hides each query's own key; query t sees the keys 0 … t (tril with diagonal 0)",
        patterns(lambda m, s, seen: softmax(masked(s / scale_of(m), np.tri(s.shape[-1], k=-1, dtype=bool))))),
    Bug("attn.pattern", "the mask lets each query see one key too many; query t sees the keys 0 … t",
        patterns(lambda m, s, seen: softmax(masked(s / scale_of(m), np.tri(s.shape[-1], k=1, dtype=bool))))),
    Bug("attn.pattern", "queries see the keys from their own on; query t sees the keys 0 … t",
        patterns(lambda m, s, seen: softmax(masked(s / scale_of(m), seen.T)))),
    Bug("attn.pattern", "softmax runs over the queries; it runs over the keys, the last axis",
        patterns(lambda m, s, seen: softmax(masked(s / scale_of(m), seen), axis=-2))),
    # what attention adds
    Bug("attn.z", "the attention weights are multiplied transposed: z is P V, with P [queries, keys]",
        at_point("attn.z", lambda m, seen, x: np.swapaxes(seen["attn.pattern"], -1, -2) @ seen["attn.v"], "attn.pattern", "attn.v")),
    Bug("attn.out", "[B, h, T, d/h] is reshaped to [B, T, d] without the transpose to [B, T, h, d/h] before it",
        at_point("attn.out", lambda m, seen, x: unmerged(m, seen["attn.z"], seen["layer"]), "attn.z")),
    Bug("attn.out", f"attn.c_proj's weight is read transposed, which no shape shows; {CONV1D}",
        in_weights("attn.c_proj.weight", transposed)),
    Bug("attn.out", "attention's output goes on without c_proj", at_point(
        "attn.out", lambda m, seen, x: seen["attn.z"].transpose(0, 2, 1, 3).reshape(x.shape), "attn.z")),
    Bug("attn.out", "attn.c_proj's bias is not added", in_weights("attn.c_proj.bias", zero)),
    Bug("resid_mid", "attention's output replaces the residual stream; it is added to it",
        at_point("resid_mid", lambda m, seen, x: seen["attn.out"], "attn.out")),
    Bug("resid_mid", "attention's output is added to what ln_1 made; it is added to the stream before it (pre-norm)",
        at_point("resid_mid", lambda m, seen, x: seen["ln_1.out"] + seen["attn.out"], "ln_1.out", "attn.out")),
    # MLP
    Bug("ln_2.out", "ln_2 is applied to the block's input; it is applied after attention was added",
        layer_norm("ln_2.out", "resid_pre", "ln_2")),
    Bug("ln_2.out", "the MLP reads what ln_1 made; it has a LayerNorm of its own, ln_2, after attention was added",
        layer_norm("ln_2.out", "resid_pre", "ln_1")),
    Bug("ln_2.out", "ln_2 has ln_1's weight and bias", layer_norm("ln_2.out", "resid_mid", "ln_1")),
    Bug("mlp.pre", f"mlp.c_fc's weight is read transposed; {CONV1D}", in_weights("mlp.c_fc.weight", transposed)),
    Bug("mlp.pre", "mlp.c_fc's bias is not added", in_weights("mlp.c_fc.bias", zero)),
    Bug("mlp.act", "GELU is the exact one, by erf (PyTorch's default); GPT-2 has the one by tanh", gelu("none")),
    Bug("mlp.act", "GELU is the one by tanh; this model's activation is another", gelu("tanh")),
    Bug("mlp.act", "the activation is ReLU", act(lambda x: np.maximum(x, 0.0))),
    Bug("mlp.act", "GELU is approximated by x·sigmoid(1.702 x); GPT-2 has the one by tanh", act(lambda x: x * sigmoid(1.702 * x))),
    Bug("mlp.act", "the activation is SiLU, x·sigmoid(x)", act(lambda x: x * sigmoid(x))),
    Bug("mlp.act", "there is no activation between the two matrices of the MLP", act(lambda x: x)),
    Bug("mlp.act", "GELU's tanh lacks the term 0.044715 x³", act(lambda x: 0.5 * x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * x)))),
    Bug("mlp.act", "GELU's tanh lacks the factor √(2/π)", act(lambda x: 0.5 * x * (1.0 + np.tanh(x + 0.044715 * x ** 3)))),
    Bug("mlp.out", f"mlp.c_proj's weight is read transposed; {CONV1D}", in_weights("mlp.c_proj.weight", transposed)),
    Bug("mlp.out", "mlp.c_proj's bias is not added", in_weights("mlp.c_proj.bias", zero)),
    Bug("resid_post", "the MLP's output replaces the residual stream; it is added to it",
        at_point("resid_post", lambda m, seen, x: seen["mlp.out"], "mlp.out")),
    Bug("resid_post", "the MLP's output is added to what ln_2 made; it is added to the stream before it (pre-norm)",
        at_point("resid_post", lambda m, seen, x: seen["ln_2.out"] + seen["mlp.out"], "ln_2.out", "mlp.out")),
    Bug("resid_post", "the MLP's output is added to the block's input: attention's part is lost",
        at_point("resid_post", lambda m, seen, x: seen["resid_pre"] + seen["mlp.out"], "resid_pre", "mlp.out")),
    # the end
    Bug("ln_f.out", "the last LayerNorm, ln_f, is not applied before the head", no_ln_f),
]


def spans(model: GPT2, point: str) -> list[tuple[str, list[int]]]:
    """(what to say, the blocks) where a bug that shows at a point first may be: in all, from its own block on, or in it alone."""
    n = model.config.n_layer
    out = [("", list(range(n)))]
    if point.startswith("blocks.") and n > 1:
        layer = int(point.split(".")[1])
        out += [(f", from block {layer} on", list(range(layer, n)))] * (layer > 0) + [(f", in block {layer} alone", [layer])]
    return out


def possible(point: str, where: str) -> list[Bug]:
    """Bugs that may show at a point first; where: what is said of their blocks."""
    ends = list(EQUATIONS)
    first, end = point.startswith("blocks.0."), point.split(".", 2)[2] if point.startswith("blocks.") else point
    # in the first block nothing that comes later can have been first
    return [bug for bug in BUGS if (not first or ends.index(bug.at) <= ends.index(end)) and (not where or bug.at in BLOCK)]
