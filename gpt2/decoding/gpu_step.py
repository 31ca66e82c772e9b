"""One step of decoding as one function over arrays: what the model computes for the next token of a few rows, into memory allocated once.

The same mathematics as `GPT2.forward` with a KV cache, and tests hold it to that. Nothing in it depends on which step it is but numbers
that lie in arrays, so on a GPU its launches are captured as one graph, and a token costs one call.
"""
from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

import minigrad as mg
from minigrad import decode, fused

from .gpu_sampling import Chooser
from .kv_cache import KVCache
from .sampling import SamplingOptions

AHEAD = 32                                              # tokens that are read back at a time at most

# choose(logits [B, V], ids [B], step [1]): writes ids, where step is the number of the draw, on the device
Choose = Callable[[Any, Any, Any], None]


def chooser(model: Any, options: SamplingOptions, vocab: int, uniforms: np.ndarray, seen: Sequence[Sequence[int]]) -> Choose:
    """How tokens are chosen where the model is.

    vocab: ids from here on do not exist. uniforms [n, B]: row i is for draw i. seen: for each row the ids so far.
    """
    if options.is_greedy and options.repetition_penalty == 1.0:
        return lambda logits, ids, step: decode.greedy(logits, ids, vocab=vocab)
    there = mg.backend.get(model.where["device"])
    return Chooser(there, options, len(seen), vocab, uniforms, seen, dtype=decode.stream_dtype(model.where["dtype"]))


class Stepper:
    """The step of a model for the rows of a cache, which it goes on to fill, and its state where the model is.

    choose: chooses tokens there; without it, `read` gives the logits to whoever does.
    """

    @staticmethod
    def fits(model: Any, rows: int) -> bool:
        """Whether this model's backend has kernels for so many rows, and the model is one that they are for."""
        here = mg.backend.get(model.where["device"]).backend
        return (all(name in here.kernels for name in decode.KERNELS) and rows <= decode.ROWS and not model.training
                and getattr(model, "F", None) is fused and not model.hooked and model.compute_dtype == model.where["dtype"]
                and model.config.n_embd // model.config.n_head <= decode.HEAD)

    def __init__(self, model: Any, cache: KVCache, choose: Choose | None = None) -> None:
        model.lay_out()
        self.model, self.cache, self.choose, self.read_so_far = model, cache, choose, 0
        self.there = mg.backend.get(model.where["device"])
        config, rows = model.config, cache.keys.shape[1]
        d, heads, stream = config.n_embd, config.n_head, decode.stream_dtype(model.where["dtype"])

        def room(*shape: int, dtype: str = stream) -> Any:
            return self.there.zeros(shape, dtype=dtype)

        self.ids = room(1 + AHEAD, rows, dtype="int64")         # the tokens to be read, and the AHEAD that were before
        self.state = self.there.array([cache.length, 0], dtype="int64")         # places taken of the cache, and tokens read
        self.pad = self.there.array(cache.padded, dtype="int64")
        self.x, self.q, self.y = room(rows, d), room(rows, d), room(rows, d)                     # 3 × [B, d]
        self.inner = room(rows, config.n_inner or 4 * d)                                         # [B, n]
        self.logits = room(rows, config.vocab_size)                                              # [B, V]
        self.parts, self.arrived = room(rows, heads, decode.PARTS, d // heads + 2), room(rows, heads, dtype="int64")
        self.layers = [self._layer(block) for block in model.h]
        self.ln_f, self.head = norm_of(model.ln_f), model.lm_head.weight.array
        self.wte, self.wpe = model.wte.weight.array, model.wpe.weight.array
        self.next = self.there.backend.captured(self.step)

    def _layer(self, block: Any) -> Any:
        at, mlp = block.attn, block.mlp
        matrices = [(m.weight.array.T, m.bias.array) for m in (at.c_attn, at.c_proj, mlp.c_fc, mlp.c_proj)]          # [out, in], [out]
        cache = self.cache.keys[at.layer], self.cache.values[at.layer]                           # 2 × [B, h, S, d/h]
        return (norm_of(block.ln_1), norm_of(block.ln_2), cache, at.scale, *matrices)

    def step(self) -> None:
        """Read the tokens, and choose the next ones: five launches a layer, and three."""
        eps, act = self.model.config.layer_norm_epsilon, self.model.config.activation_function
        x, q, y, inner, state = self.x, self.q, self.y, self.inner, self.state
        decode.embed(self.ids, state, self.pad, self.wte, self.wpe, x)                           # [B] -> [B, d]
        for ln_1, ln_2, (keys, values), scale, (w_qkv, b_qkv), (w_y, b_y), (w_1, b_1), (w_2, b_2) in self.layers:
            decode.qkv(x, ln_1, w_qkv, b_qkv, q, keys, values, state, eps=eps)                   # [B, d] -> 3 × [B, d]
            decode.attention(q, keys, values, state, self.pad, y, self.parts, self.arrived, scale=scale,
                             soon=(w_y, w_1))                                                    # [B, d] -> [B, d]
            decode.linear(y, w_y, b_y, x, add=True)                                              # [B, d] + [B, d] -> [B, d]
            decode.linear(x, w_1, b_1, inner, norm=ln_2, eps=eps, act=act)                       # [B, d] -> [B, n]
            decode.linear(inner, w_2, b_2, x, add=True)                                          # [B, n] + [B, d] -> [B, d]
        decode.linear(x, self.head, None, self.logits, norm=self.ln_f, eps=eps)                  # [B, d] -> [B, V]
        if self.choose is not None:
            self.choose(self.logits, self.ids[0, :], self.state[1:2])                            # [B, V] -> [B]

    def _start(self, token: Sequence[int]) -> None:
        self.ids[0, :] = self.there.array(token, dtype="int64")         # and the device is the current one
        self.next()

    def read(self, token: Sequence[int]) -> np.ndarray:
        """Logits [B, V], on the host, of what comes after `token` [B]: one upload and one wait."""
        self._start(token)
        self.cache.advance(1)
        self.read_so_far += 1
        return self.there.backend.host(self.logits)

    def tokens(self, token: Sequence[int], n: int) -> Iterator[list[list[int]]]:
        """The n tokens [B] that follow `token` as `choose` has them, in batches of 1, 2, 4 … AHEAD: one wait for each.

        While those of one batch are being used, the next is computed. −1 stands where logits are NaN or infinite.
        """
        asked = size = 1
        self._start(token)
        while asked:
            said = self.there.backend.host(self.ids).tolist()  # the last of them, and the ones before it where `embed` kept them
            batch = [*(said[1 + (self.read_so_far + i) % AHEAD] for i in range(1, asked)), said[0]]
            self.cache.advance(asked)
            self.read_so_far, n, size = self.read_so_far + asked, n - asked, min(2 * size, AHEAD)
            asked = min(n, size)
            for _ in range(asked):
                self.next()
            yield batch
            self.there.use()                            # whoever took it may have computed elsewhere


def norm_of(layer_norm: Any) -> tuple[Any, Any]:
    return layer_norm.weight.array, layer_norm.bias.array
