"""One step of decoding over arrays: the forward pass for the next token of a few rows.

It computes what `GPT2.forward` computes with a KV cache, and tests compare the two. All results are
written to memory that is allocated once. What differs from step to step is stored in arrays, so a
GPU can capture the kernel launches of a step as one graph, and each token costs one launch.
"""
from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

import minigrad as mg
from minigrad import nn

from . import gpu_ops
from .gpu_sampling import Chooser
from .kv_cache import KVCache
from .sampling import SamplingOptions

AHEAD = 32                              # the most tokens that one copy brings back to the host

# choose(logits [B, V], ids [B], step [1]) writes the chosen ids to `ids`; `step` is the number of
# the step, which says which random numbers to use
Choose = Callable[[Any, Any, Any], None]


def chooser(model: Any, options: SamplingOptions, vocab: int, uniforms: np.ndarray,
            seen: Sequence[Sequence[int]]) -> Choose:
    """A function that chooses tokens on the model's device.

    vocab: only ids below this number are chosen. uniforms [n, B]: random numbers in [0, 1), of
    which step i uses row i. seen: the ids of each row so far.
    """
    if options.is_greedy and options.repetition_penalty == 1.0:
        return lambda logits, ids, step: gpu_ops.greedy(logits, ids, vocab=vocab)
    there = mg.backend.get(model.where["device"])
    return Chooser(there, options, len(seen), vocab, uniforms, seen,
                   dtype=gpu_ops.stream_dtype(model.where["dtype"]))


class Stepper:
    """Decodes the rows of a KV cache step by step, and stores their new tokens in the cache.

    choose: chooses the tokens on the device (`tokens`); without it, `read` returns logits.
    """

    @staticmethod
    def fits(model: Any, rows: int) -> bool:
        """Whether the backend has kernels for a step of this model with so many rows."""
        here = mg.backend.get(model.where["device"]).backend
        return (all(name in here.kernels for name in gpu_ops.KERNELS)
                and rows <= gpu_ops.ROWS
                and not model.training
                and getattr(model, "F", None) is nn.functional
                and not model.hooked
                and model.compute_dtype == model.where["dtype"]
                and model.config.n_embd // model.config.n_head <= gpu_ops.HEAD)

    def __init__(self, model: Any, cache: KVCache, choose: Choose | None = None) -> None:
        model.lay_out()
        self.model, self.cache, self.choose, self.read_so_far = model, cache, choose, 0
        self.there = mg.backend.get(model.where["device"])
        config, rows = model.config, cache.keys.shape[1]
        d, heads = config.n_embd, config.n_head
        stream = gpu_ops.stream_dtype(model.where["dtype"])

        def room(*shape: int, dtype: str = stream) -> Any:
            return self.there.zeros(shape, dtype=dtype)

        # row 0: the tokens to read next; rows 1 … AHEAD: the tokens read before
        self.ids = room(1 + AHEAD, rows, dtype="int64")
        # the number of used slots of the cache, and the number of steps so far
        self.state = self.there.array([cache.length, 0], dtype="int64")
        self.pad = self.there.array(cache.padded, dtype="int64")                    # [B]
        self.x, self.q, self.y = room(rows, d), room(rows, d), room(rows, d)        # 3 × [B, d]
        self.inner = room(rows, config.n_inner or 4 * d)                            # [B, n]
        self.logits = room(rows, config.vocab_size)                                 # [B, V]
        self.parts = room(rows, heads, gpu_ops.PARTS, d // heads + 2)       # [B, h, PARTS, d/h + 2]
        self.arrived = room(rows, heads, dtype="int64")                             # [B, h]
        self.layers = [self._layer(block) for block in model.h]
        self.ln_f, self.head = norm_of(model.ln_f), model.lm_head.weight.array
        self.wte, self.wpe = model.wte.weight.array, model.wpe.weight.array
        # The captured step must not refer to the stepper, which refers to it: such a cycle, and
        # with it the KV cache, would stay in memory until Python's garbage collector finds it.
        this = weakref.ref(self)
        self.next = self.there.backend.captured(lambda: _step_of(this))

    def _layer(self, block: Any) -> Any:
        at, mlp = block.attn, block.mlp
        matrices = [(m.weight.array.T, m.bias.array)                        # [out, in], [out]
                    for m in (at.c_attn, at.c_proj, mlp.c_fc, mlp.c_proj)]
        cache = self.cache.keys[at.layer], self.cache.values[at.layer]      # 2 × [B, h, S, d/h]
        return (norm_of(block.ln_1), norm_of(block.ln_2), cache, at.scale, *matrices)

    def step(self) -> None:
        """Read a token of each row, and choose the next one: 5·L + 3 launches for L layers."""
        eps, act = self.model.config.layer_norm_epsilon, self.model.config.activation_function
        x, q, y, inner, state = self.x, self.q, self.y, self.inner, self.state
        head, logits = self.head, self.logits
        gpu_ops.embed(self.ids, state, self.pad, self.wte, self.wpe, x)      # [B] -> [B, d]
        for ln_1, ln_2, (keys, values), scale, qkv, proj, fc, mlp_proj in self.layers:
            (w_qkv, b_qkv), (w_y, b_y), (w_1, b_1), (w_2, b_2) = qkv, proj, fc, mlp_proj
            gpu_ops.qkv(x, ln_1, w_qkv, b_qkv, q, keys, values, state,
                       eps=eps)                                             # [B, d] -> 3 × [B, d]
            gpu_ops.attention(q, keys, values, state, self.pad, y, self.parts,
                             self.arrived, scale=scale, soon=(w_y, w_1))    # [B, d] -> [B, d]
            gpu_ops.linear(y, w_y, b_y, x, add=True)                 # [B, d] + [B, d] -> [B, d]
            gpu_ops.linear(x, w_1, b_1, inner, norm=ln_2, eps=eps, act=act)  # [B, d] -> [B, n]
            gpu_ops.linear(inner, w_2, b_2, x, add=True)             # [B, n] + [B, d] -> [B, d]
        gpu_ops.linear(x, head, None, logits, norm=self.ln_f, eps=eps)       # [B, d] -> [B, V]
        if self.choose is not None:
            self.choose(logits, self.ids[0, :], state[1:2])                 # [B, V] -> [B]

    def _start(self, token: Sequence[int]) -> None:
        """Run the step for `token` [B]; `there.array` makes its device the current one."""
        self.ids[0, :] = self.there.array(token, dtype="int64")
        self.next()

    def read(self, token: Sequence[int]) -> np.ndarray:
        """Logits [B, V] on the host, for the token after `token` [B]: one upload and one wait."""
        self._start(token)
        self.cache.advance(1)
        self.read_so_far += 1
        return self.there.backend.host(self.logits)

    def tokens(self, token: Sequence[int], n: int) -> Iterator[list[list[int]]]:
        """The n tokens [B] that `choose` chooses after `token`, in batches of 1, 2, 4 … AHEAD.

        The host waits once for each batch. While the caller uses one batch, the device computes
        the next one. An id is −1 where logits are NaN or infinite.
        """
        started = size = 1                              # steps started, and the size of a batch
        self._start(token)
        while started:
            # the newest token is in row 0; `embed` copied those before it to the rows 1 … AHEAD
            ids = self.there.backend.host(self.ids).tolist()
            batch = [*(ids[1 + (self.read_so_far + i) % AHEAD] for i in range(1, started)), ids[0]]
            self.cache.advance(started)
            self.read_so_far += started
            n, size = n - started, min(2 * size, AHEAD)
            started = min(n, size)
            for _ in range(started):
                self.next()
            yield batch
            self.there.use()                            # the caller may have switched the device


def _step_of(this: weakref.ref[Stepper]) -> None:
    """Run a step of the stepper, which still exists: `next` is called through it."""
    stepper = this()
    assert stepper is not None
    stepper.step()


def norm_of(layer_norm: Any) -> tuple[Any, Any]:
    """Weight and bias of a LayerNorm, as arrays."""
    return layer_norm.weight.array, layer_norm.bias.array
