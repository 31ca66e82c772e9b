"""GPT-2 (Radford et al. 2019).

Token and position embeddings, blocks of attention and MLP on a residual stream, and a tied head.

Shapes: B rows, T tokens, d width, h heads, n the MLP's width, V vocabulary, S keys (T of them, and
those of the cache before).
"""
from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import minigrad as mg
from minigrad import fused, nn
from minigrad.fused import by_parts
from minigrad.fused.attention import attention_scores, attention_weights, weights_of_scores
from minigrad.fused.layer_norm import reciprocal_deviation
from minigrad.nn import empty_parameter

from .config import GPT2Config
from .decoding.kv_cache import KVCache
from .hooks import Hooked, Tapped
from .weights.pretrained import Matrix, PretrainedModel


def gelu_new(F: Any, x: mg.Tensor, bias: mg.Tensor) -> mg.Tensor:      # [..., n], [n]
    return F.gelu(x, bias, approximate="tanh")                         # [..., n]


def gelu(F: Any, x: mg.Tensor, bias: mg.Tensor) -> mg.Tensor:          # [..., n], [n]
    return F.gelu(x, bias, approximate="none")                         # [..., n]


def relu(F: Any, x: mg.Tensor, bias: mg.Tensor) -> mg.Tensor:          # [..., n], [n]
    return mg.relu(x + bias)                                           # [..., n]


# functions with names, so that a model can be pickled
ACTIVATIONS = {"gelu_new": gelu_new, "gelu": gelu, "relu": relu}


class Embedding(Matrix):
    """Rows of a table   (embedding.1), and the products of them all with x   (linear.2)."""

    def __init__(self, rows: int, d: int, **where: Any) -> None:
        self.weight = empty_parameter(rows, d, **where)

    def forward(self, ids):                                            # [..., T]
        return mg.embedding(ids, self.weight)                          # [..., T, d]

    def scores(self, x):                                               # [B, T, d]
        if self.packs(x):
            return mg.packed_linear(x, self.panels, size=len(self.weight))     # [B, T, V]
        return mg.linear(x, self.weight.type_as(x))            # [B, T, d] @ [V, d]ᵀ -> [B, T, V]


class Conv1D(Matrix):
    """y = x W + b, with W stored [in, out] as OpenAI's checkpoints have it   (linear.1)."""

    def __init__(self, d_in: int, d_out: int, **where: Any) -> None:
        self.weight = empty_parameter(d_in, d_out, **where)
        self.bias = empty_parameter(d_out, **where)

    def forward(self, x):                                              # [B, T, in]
        if self.packs(x):
            return mg.packed_linear(x, self.panels, self.bias, size=len(self.bias))    # [B, T, out]
        weight, bias = self.weight.type_as(x), self.bias.type_as(x)    # [in, out], [out]
        return mg.addmm(bias, x, weight)       # [B, T, in] @ [in, out] + [out] -> [B, T, out]

    def product(self, x):                                              # [B, T, in]
        """x W alone: the bias is added where the activation is computed."""
        if self.packs(x):
            return mg.packed_linear(x, self.panels, size=len(self.bias))               # [B, T, out]
        return mg.matmul(x, self.weight.type_as(x))    # [B, T, in] @ [in, out] -> [B, T, out]


class LayerNorm(Tapped):
    """x̂ ⊙ weight + bias   (layer_norm.1)."""

    def __init__(self, F: Any, config: GPT2Config, **where: Any) -> None:
        self.F, self.eps = F, config.layer_norm_epsilon
        self.weight = empty_parameter(config.n_embd, **where)
        self.bias = empty_parameter(config.n_embd, **where)

    def forward(self, x):                                              # [B, T, d]
        weight, bias = self.weight.type_as(x), self.bias.type_as(x)    # [d], [d]
        return self.passed(x, self.F.layer_norm(x, weight, bias, eps=self.eps))    # [B, T, d]

    def passed(self, x, y):                                            # 2 × [B, T, d]
        """y, which is x normalised, unless a hook gives another mean or another 1/√(σ² + ε)."""
        if not self.taps:
            return y
        own = x.mean(axis=-1, keepdims=True)                           # [B, T, 1]
        mean = self.at("mean", own)                                    # [B, T, 1]
        own_rstd = reciprocal_deviation(x, mean, eps=self.eps)         # [B, T, 1]
        rstd = self.at("rstd", own_rstd)                               # [B, T, 1]
        if mean is own and rstd is own_rstd:
            return y
        return (x - mean) * rstd * self.weight.type_as(x) + self.bias.type_as(x)   # [B, T, d]

    def of_sum(self, x, y):                                            # 2 × [B, T, d]
        """x + y, and that sum normalised. Calls no hooks: `passed` does, once hooks had the sum."""
        weight, bias = self.weight.type_as(x), self.bias.type_as(x)    # [d], [d]
        return self.F.add_layer_norm(x, y, weight, bias, eps=self.eps)             # 2 × [B, T, d]


class Attention(Tapped):
    """softmax(Q Kᵀ/√(d/h) + M) V in each head, with Q, K and V from one product   (attention.1)."""

    def __init__(self, F: Any, config: GPT2Config, layer: int, **where: Any) -> None:
        self.F, self.config, self.layer = F, config, layer
        self.c_attn = Conv1D(config.n_embd, 3 * config.n_embd, **where)
        self.c_proj = Conv1D(config.n_embd, config.n_embd, **where)
        self.scale = 1.0
        if config.scale_attn_weights:
            self.scale = 1.0 / math.sqrt(config.n_embd // config.n_head)
        if config.scale_attn_by_inverse_layer_idx:
            self.scale /= layer + 1

    def forward(self, x, mask=None, cache=None):                       # [B, T, d], [B, 1, 1, S]
        q, k, v = mg.split_heads(self.c_attn(x), heads=self.config.n_head,
                                 parts=3)                  # [B, T, 3d] -> 3 × [B, h, T, d/h]
        q, k, v = self.at("q", q), self.at("k", k), self.at("v", v)    # 3 × [B, h, T, d/h]
        if cache is not None:
            k, v = cache.extend(self.layer, k, v)                      # 2 × [B, h, S, d/h]
        p = self.config.attn_pdrop if self.training else 0.0
        weights = None
        if self.taps:
            weights = self.replaced_weights(q, k, mask)                # [B, h, T, S] or None
        if weights is not None:
            y = mg.matmul(weights, v)          # [B, h, T, S] @ [B, h, S, d/h] -> [B, h, T, d/h]
        else:
            y = self.F.attention(q, k, v, mask, causal=True, scale=self.scale, p=p,
                                 key=mg.random.next_key() if p else 0)             # [B, h, T, d/h]
        return self.c_proj(mg.join_heads(self.at("z", y)))             # [B, h, T, d/h] -> [B, T, d]

    def replaced_weights(self, q, k, mask):                # 2 × [B, h, ·, d/h], [B, 1, 1, S]
        """The attention weights where a hook replaces them or the scores, else None."""
        scores = given = None
        if "scores" in self.taps:
            scores = attention_scores(q, k, scale=self.scale)          # [B, h, T, S]
            given = self.at("scores", scores)                          # [B, h, T, S]
        if given is scores and "pattern" not in self.taps:
            return None
        if given is scores:
            weights = attention_weights(q, k, mask, causal=True, scale=self.scale)   # [B, h, T, S]
        else:
            weights = weights_of_scores(given, mask, causal=True)      # [B, h, T, S]
        chosen = self.at("pattern", weights)                           # [B, h, T, S]
        return None if given is scores and chosen is weights else chosen


class MLP(Tapped):
    """act(x W₁ + b₁) W₂ + b₂ (mlp.1), with b₁ added where act is computed; back by (mlp.2)."""

    def __init__(self, F: Any, config: GPT2Config, **where: Any) -> None:
        n = config.n_inner or 4 * config.n_embd
        self.F, self.act = F, ACTIVATIONS[config.activation_function]
        self.c_fc = Conv1D(config.n_embd, n, **where)
        self.c_proj = Conv1D(n, config.n_embd, **where)

    def forward(self, x):                                              # [B, T, d]
        y, bias = self.c_fc.product(x), self.c_fc.bias.type_as(x)      # [B, T, d] -> [B, T, n], [n]
        if "pre" in self.taps and (chosen := self.at("pre", pre := y + bias)) is not pre:
            y, bias = chosen, bias * 0.0                               # [B, T, n], [n]
        return self.c_proj(self.at("act", self.act(self.F, y, bias)))  # [B, T, n] -> [B, T, d]


class Block(Tapped):
    """m = x + attention(LN(x)) (block.2), and m + MLP(LN(m)) (block.3): pre-norm (block.1).

    In the backward pass each addition passes its gradient on unchanged, and the gradient that comes
    through the branch is added to it   (block.4–7).
    """

    def __init__(self, F: Any, config: GPT2Config, layer: int, **where: Any) -> None:
        self.ln_1 = LayerNorm(F, config, **where)
        self.attn = Attention(F, config, layer, **where)
        self.ln_2 = LayerNorm(F, config, **where)
        self.mlp = MLP(F, config, **where)
        self.drop = nn.Dropout(config.resid_pdrop)

    def forward(self, x, mask=None, cache=None):                       # [B, T, d]
        x = self.at("resid_pre", x)                                    # [B, T, d]
        y = self.at("ln_1.out", self.ln_1(x))                          # [B, T, d]
        y = self.at("attn.out", self.attn(y, mask, cache))             # [B, T, d]
        x, y = self.ln_2.of_sum(x, self.drop(y))                       # 2 × [B, T, d]
        if (chosen := self.at("resid_mid", x)) is not x:
            x, y = chosen, self.ln_2(chosen)                           # 2 × [B, T, d]
        else:
            y = self.ln_2.passed(x, y)                                 # [B, T, d]
        y = self.at("mlp.out", self.mlp(self.at("ln_2.out", y)))       # [B, T, d]
        return self.at("resid_post", x + self.drop(y))                 # [B, T, d]


class GPT2(Hooked, PretrainedModel):
    """GPT-2 with transformers' parameter names.

    They are wte, wpe, h.0 … h.L−1, ln_f, and lm_head where the head is not tied.

    backend: "numpy", "cupy", "cupy:N" or "auto". dtype: of the parameters, "float32", "float64",
    "float16" or "bfloat16". compute_dtype: of the residual stream and all that is computed from it,
    the parameters' own unless given; with "float16" or "bfloat16", parameters of float32 are cast
    where they are used, and so are their gradients in the backward pass (mixed precision,
    Micikevicius et al. 2018). explicit=True runs the unfused definitions. Weights are drawn from
    `seed`, or taken from `parameters` (arrays by name; used, not copied, where dtype and backend
    allow). recompute=True saves only each block's input for the backward pass, which computes the
    block again. A model with weights from a seed starts in training mode, as modules do: its
    dropout draws until eval() is called. With `parameters`, and from `from_pretrained`, it starts
    in evaluation mode. copy.deepcopy and pickle give a model with parameters of its own, tied where
    this one's are, and without hooks.
    """

    def __init__(self, config: GPT2Config, *, backend: str = "numpy", dtype: str = "float32",
                 compute_dtype: str | None = None, seed: int = 0, explicit: bool = False,
                 recompute: bool = False, parameters: Mapping[str, Any] | None = None) -> None:
        self.config, self.F = config, by_parts if explicit else fused
        self.where = self.place(backend, dtype)
        self.recompute, self.compute_dtype = recompute, self.floats(compute_dtype or dtype)
        self.wte = Embedding(config.vocab_size, config.n_embd, **self.where)
        self.wpe = Embedding(config.n_positions, config.n_embd, **self.where)
        self.drop = nn.Dropout(config.embd_pdrop)
        self.h = [Block(self.F, config, layer, **self.where) for layer in range(config.n_layer)]
        self.ln_f = LayerNorm(self.F, config, **self.where)
        # tied: one parameter, whose gradient is the sum of that of both uses   (tying.1–2)
        self.lm_head = self.wte
        if not config.tie_word_embeddings:
            self.lm_head = Embedding(config.vocab_size, config.n_embd, **self.where)
        self.fill(seed, parameters)

    def matrices(self):
        yield self.lm_head, self.lm_head.weight.array.T                # [d, V]
        for block in self.h:
            attn, mlp = block.attn, block.mlp
            for module in (attn.c_attn, attn.c_proj, mlp.c_fc, mlp.c_proj):
                yield module, module.weight.array                      # [in, out]

    def states(self, ids, cache: KVCache | None = None, last: int = 0):           # [B, T]
        """What the head reads: the residual stream after ln_f, [B, T, d].

        last: at so many last positions alone, [B, last, d].
        """
        ids, positions, mask = self.inputs(ids, cache) # [B, T], [T] or [B, T], [B, 1, 1, S] or None
        x = (self.at("embed", self.wte(ids))
             + self.at("pos_embed", self.wpe(positions)))  # [B, T, d] + [T, d] -> [B, T, d]
        x = self.drop(x)                                               # [B, T, d]
        if x.dtype != self.compute_dtype:
            x = x.astype(self.compute_dtype)                           # [B, T, d]
        for block in self.h:
            run = mg.checkpoint(block) if self.recompute and cache is None else block
            x = run(x, mask, cache)                                    # [B, T, d]
        if cache is not None:
            cache.advance(ids.shape[1])
        return self.at("ln_f.out", self.ln_f(x[:, -last:] if last else x))         # [B, T, d]

    def forward(self, ids, *, cache: KVCache | None = None, last: int = 0):       # [B, T]
        """Logits [B, T, V] of the token after each position, or of the `last` ones alone."""
        x = self.states(ids, cache, last)                              # [B, T, d]
        return self.at("logits", self.lm_head.scores(x))               # [B, T, d] -> [B, T, V]

    def loss(self, ids, targets, *, ignore_index: int = -100):         # [B, T], [B, T]
        """Mean cross-entropy in nats of the tokens `targets` that follow `ids`, a scalar Tensor."""
        try:
            # the fused loss never has all logits at once, which a hook would read
            if "logits" in self.taps:
                logits = self(ids)                                     # [B, T, V]
                targets = self.integers(targets, "targets")            # [B, T]
                return self.F.cross_entropy(logits, targets, ignore_index=ignore_index)    # []
            x = self.states(ids)                                       # [B, T, d]
            weight = self.lm_head.weight.type_as(x)                    # [V, d]
            targets = self.integers(targets, "targets")                # [B, T]
            return self.F.linear_cross_entropy(x, weight, targets,
                                               ignore_index=ignore_index)          # [B, T, d] -> []
        except mg.MinigradError as error:
            self.locate(error)
            raise
