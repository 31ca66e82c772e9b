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
from minigrad import nn

from .config import GPT2Config
from .decoding.kv_cache import KVCache
from .functions import Tapped
from .hooks import Hooked


def gelu_new(F: Any, x: mg.Tensor, bias: mg.Tensor) -> mg.Tensor:      # [..., n], [n]
    return F.gelu(x, bias, approximate="tanh")                         # [..., n]


def gelu(F: Any, x: mg.Tensor, bias: mg.Tensor) -> mg.Tensor:          # [..., n], [n]
    return F.gelu(x, bias, approximate="none")                         # [..., n]


def relu(F: Any, x: mg.Tensor, bias: mg.Tensor) -> mg.Tensor:          # [..., n], [n]
    return F.relu(x, bias)                                             # [..., n]


# functions with names, so that a model can be pickled
ACTIVATIONS = {"gelu_new": gelu_new, "gelu": gelu, "relu": relu}


class Conv1D(nn.Module):
    """y = x W + b, with W stored [in, out] as OpenAI's checkpoints have it   (linear.1)."""

    def __init__(self, d_in: int, d_out: int, **where: Any) -> None:
        self.weight = nn.empty_parameter(d_in, d_out, **where)
        self.bias = nn.empty_parameter(d_out, **where)

    def forward(self, x):                                              # [B, T, in]
        return self.F.addmm(self.bias, x, self.weight)     # [B, T, in] @ [in, out] -> [B, T, out]


class Attention(nn.Module):
    """softmax(Q Kᵀ/√(d/h) + M) V in each head, with Q, K and V from one product   (attention.1)."""

    def __init__(self, config: GPT2Config, layer: int, **where: Any) -> None:
        self.config, self.layer = config, layer
        self.c_attn = Conv1D(config.n_embd, 3 * config.n_embd, **where)
        self.c_proj = Conv1D(config.n_embd, config.n_embd, **where)
        self.scale = 1.0
        if config.scale_attn_weights:
            self.scale = 1.0 / math.sqrt(config.n_embd // config.n_head)
        if config.scale_attn_by_inverse_layer_idx:
            self.scale /= layer + 1

    def forward(self, x, mask=None, cache=None):                       # [B, T, d], [B, 1, 1, S]
        q, k, v = self.F.split_heads(self.c_attn(x), heads=self.config.n_head,
                                     parts=3)              # [B, T, 3d] -> 3 × [B, h, T, d/h]
        if cache is not None:
            k, v = cache.extend(self.layer, k, v)                      # 2 × [B, h, S, d/h]
        p = self.config.attn_pdrop if self.training else 0.0
        y = self.F.attention(q, k, v, mask, causal=True, scale=self.scale, p=p,
                             key=mg.random.next_key() if p else 0)     # [B, h, T, d/h]
        return self.c_proj(self.F.join_heads(y))                       # [B, h, T, d/h] -> [B, T, d]


class MLP(nn.Module):
    """act(x W₁ + b₁) W₂ + b₂ (mlp.1), with b₁ added where act is computed; back by (mlp.2)."""

    def __init__(self, config: GPT2Config, **where: Any) -> None:
        n = config.n_inner or 4 * config.n_embd
        self.act = ACTIVATIONS[config.activation_function]
        self.c_fc = Conv1D(config.n_embd, n, **where)
        self.c_proj = Conv1D(n, config.n_embd, **where)

    def forward(self, x):                                              # [B, T, d]
        y = self.F.matmul(x, self.c_fc.weight)             # [B, T, d] @ [d, n] -> [B, T, n]
        return self.c_proj(self.act(self.F, y, self.c_fc.bias))        # [B, T, n] -> [B, T, d]


class Block(Tapped):
    """m = x + attention(LN(x)) (block.2), and m + MLP(LN(m)) (block.3): pre-norm (block.1).

    In the backward pass each addition passes its gradient on unchanged, and the gradient that comes
    through the branch is added to it   (block.4–7).
    """

    def __init__(self, config: GPT2Config, layer: int, **where: Any) -> None:
        self.ln_1 = nn.LayerNorm(config.n_embd, config.layer_norm_epsilon, **where)
        self.attn = Attention(config, layer, **where)
        self.ln_2 = nn.LayerNorm(config.n_embd, config.layer_norm_epsilon, **where)
        self.mlp = MLP(config, **where)
        self.drop = nn.Dropout(config.resid_pdrop)

    def forward(self, x, mask=None, cache=None):                       # [B, T, d]
        y = self.attn(self.ln_1(x), mask, cache)                       # [B, T, d]
        x, y = self.ln_2.of_sum(x, self.drop(y))                       # 2 × [B, T, d]
        return x + self.drop(self.mlp(y))                              # [B, T, d]


class GPT2(Hooked):
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
        self.config, self.explicit, self.recompute = config, explicit, recompute
        self.where = where = self.place(backend, dtype)
        self.compute_dtype = self.floats(compute_dtype or dtype)
        self.wte = nn.Embedding(config.vocab_size, config.n_embd, init=False, **where)
        self.wpe = nn.Embedding(config.n_positions, config.n_embd, init=False, **where)
        self.drop = nn.Dropout(config.embd_pdrop)
        self.h = [Block(config, layer, **where) for layer in range(config.n_layer)]
        self.ln_f = nn.LayerNorm(config.n_embd, config.layer_norm_epsilon, **where)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False, init=False, **where)
        if config.tie_word_embeddings:
            # one parameter, whose gradient is the sum of that of both uses   (tying.1–2)
            self.lm_head.weight = self.wte.weight
        self.fill(seed, parameters)
        self.set_functions()

    def matrices(self):
        yield self.lm_head.weight, self.lm_head.weight.array.T         # [d, V]
        for block in self.h:
            attn, mlp = block.attn, block.mlp
            for module in (attn.c_attn, attn.c_proj, mlp.c_fc, mlp.c_proj):
                yield module.weight, module.weight.array               # [in, out]

    def states(self, ids, cache: KVCache | None = None, last: int = 0):           # [B, T]
        """What the head reads: the residual stream after ln_f, [B, T, d].

        last: at so many last positions alone, [B, last, d].
        """
        ids, positions, mask = self.inputs(ids, cache) # [B, T], [T] or [B, T], [B, 1, 1, S] or None
        x = self.drop(self.wte(ids) + self.wpe(positions)) # [B, T, d] + [T, d] -> [B, T, d]
        if x.dtype != self.compute_dtype:
            x = x.astype(self.compute_dtype)                           # [B, T, d]
        for block in self.h:
            run = mg.checkpoint(block) if self.recompute and cache is None else block
            x = run(x, mask, cache)                                    # [B, T, d]
        if cache is not None:
            cache.advance(ids.shape[1])
        return self.ln_f(x[:, -last:] if last else x)                  # [B, T, d]

    def forward(self, ids, *, cache: KVCache | None = None, last: int = 0):       # [B, T]
        """Logits [B, T, V] of the token after each position, or of the `last` ones alone."""
        x = self.states(ids, cache, last)                              # [B, T, d]
        return self.F.linear(x, self.lm_head.weight)       # [B, T, d] @ [V, d]ᵀ -> [B, T, V]

    def loss(self, ids, targets, *, ignore_index: int = -100):         # [B, T], [B, T]
        """Mean cross-entropy in nats of the tokens `targets` that follow `ids`, a scalar Tensor."""
        try:
            x = self.states(ids)                                       # [B, T, d]
            targets = self.integers(targets, "targets")                # [B, T]
            return self.F.linear_cross_entropy(x, self.lm_head.weight, targets,
                                               ignore_index=ignore_index)          # [B, T, d] -> []
        except mg.MinigradError as error:
            self.locate(error)
            raise
