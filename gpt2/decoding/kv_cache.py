"""The KV cache: keys and values of the tokens read so far, in memory allocated once."""
from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import minigrad as mg

from ..config import GPT2Config
from ..errors import UsageError


class KVCache:
    """Keys and values of up to `size` tokens of `batch` rows, in every layer.

    That is 2·L·d numbers for each token and row. The key and the value of a token depend on the
    tokens before it and on no later one   (cache.1), so they are computed once.

    A slot is the memory for one token of a row. pad: the number of slots at the left of each row
    that hold no token. These slots are masked, and positions are counted from the first token, so
    a padded row gives the same result as it would alone.
    """

    def __init__(self, config: GPT2Config, batch: int, size: int, *, device: str = "numpy",
                 dtype: Any = "float32", pad: Sequence[int] | None = None) -> None:
        there = mg.backend.get(device)
        self.device = str(there)
        shape = (config.n_layer, batch, config.n_head, size, config.n_embd // config.n_head)
        self.keys = there.zeros(shape, dtype=dtype)
        self.values = there.zeros(shape, dtype=dtype)
        self.size, self.length = size, 0
        # the same numbers twice: on the host, to read without a wait, and [B, 1] on the device
        self.padded = list(pad or [0] * batch)
        self.pad = there.array(list(pad), dtype="int64")[:, None] if pad and any(pad) else None

    @property
    def xp(self) -> Any:
        """The backend, found by its name, so that a cache can be copied and pickled."""
        return mg.backend.get(self.device).backend

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the cache takes: 2·L·d·size·batch numbers   (cache.3)."""
        return 2 * self.keys.nbytes

    def layout(self, rows: int, tokens: int) -> tuple[Any, Any]:
        """Positions [T] or [B, T] of the next tokens, and the mask [B, 1, 1, S] or None.

        The mask is True for slots that hold a token; it is None if all of them do. In slot j of a
        row with c slots of padding, the position is max(j − c, 0) and the mask is j ≥ c
        (cache.4–5).
        """
        end = self.length + tokens
        if rows != self.keys.shape[1]:
            raise UsageError(f"the KV cache is for {self.keys.shape[1]} rows; these are {rows}")
        if end > self.size:
            raise UsageError(f"the KV cache has room for {self.size} tokens; "
                             f"{self.length} + {tokens} do not fit")
        slots = self.xp.arange(end)
        if self.pad is None:
            return slots[self.length:], None
        positions = self.xp.maximum(slots[None, self.length:] - self.pad, 0)        # [B, T]
        return positions, (slots[None] >= self.pad)[:, None, None]                  # [B, 1, 1, S]

    def extend(self, layer: int, k: mg.Tensor, v: mg.Tensor) -> tuple[mg.Tensor, mg.Tensor]:
        """Store k and v [B, h, T, d/h] of the next tokens, and return all keys and values stored.

        The results are [B, h, S, d/h] each   (cache.2).
        """
        if k.requires_grad:                             # gradients would stop here without a notice
            raise mg.errors.GraphError("a pass through a KV cache has no gradient; "
                                       "run it inside minigrad.no_grad()")
        end = self.length + k.shape[2]
        self.keys[layer, :, :, self.length:end] = k.array
        self.values[layer, :, :, self.length:end] = v.array
        return mg.Tensor(self.keys[layer, :, :, :end]), mg.Tensor(self.values[layer, :, :, :end])

    def advance(self, tokens: int) -> None:
        """Count `tokens` more tokens as stored, after all layers have stored them."""
        self.length += tokens

    def rewind(self, length: int) -> None:
        """Forget all but the first `length` tokens; the next tokens overwrite the others."""
        self.length = min(self.length, length)

    def rows(self, first: int, last: int) -> KVCache:
        """Rows first … last − 1 as a cache that shares the memory and counts its own length."""
        part = copy.copy(self)
        part.keys, part.values = self.keys[:, first:last], self.values[:, first:last]
        part.padded = self.padded[first:last]
        part.pad = self.pad[first:last] if self.pad is not None and any(part.padded) else None
        return part

    def repeat(self) -> None:
        """Copy the first row's keys and values to all other rows."""
        for stored in (self.keys, self.values):
            stored[:, 1:, :, :self.length] = stored[:, :1, :, :self.length]
