"""The KV cache: keys and values of the tokens read so far, in memory allocated once."""
from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import minigrad as mg

from ..config import GPT2Config
from ..errors import UsageError


class KVCache:
    """Room for `size` tokens of `batch` rows, in every layer: 2·L·d numbers a token and row. Both depend on what came before a token
    and on nothing after it   (cache.1), so that they are computed once.

    pad: how many places at the left of each row hold no token; such places are masked, and positions count from the
    first token on, so that a padded row computes what it would compute alone.
    """

    def __init__(self, config: GPT2Config, batch: int, size: int, *, device: str = "numpy", dtype: Any = "float32",
                 pad: Sequence[int] | None = None) -> None:
        there = mg.backend.get(device)
        self.device = str(there)
        shape = (config.n_layer, batch, config.n_head, size, config.n_embd // config.n_head)
        self.keys = there.zeros(shape, dtype=dtype)
        self.values = there.zeros(shape, dtype=dtype)
        self.size, self.length = size, 0
        self.padded = list(pad or [0] * batch)         # on the host: asking the device would be a wait
        self.pad = there.array(list(pad), dtype="int64")[:, None] if pad and any(pad) else None

    @property
    def xp(self) -> Any:
        """The backend: by its name, so that a cache can be copied and pickled."""
        return mg.backend.get(self.device).backend

    @property
    def nbytes(self) -> int:
        """Bytes of memory taken: 2·L·d·size·batch numbers   (cache.3)."""
        return 2 * self.keys.nbytes

    def layout(self, rows: int, tokens: int) -> tuple[Any, Any]:
        """Positions [T] or [B, T] of the next tokens, and the mask [B, 1, 1, S] of places that hold a token (None: all).

        At place j of a row with c places of padding they are max(j − c, 0) and j ≥ c   (cache.4–5).
        """
        end = self.length + tokens
        if rows != self.keys.shape[1]:
            raise UsageError(f"the KV cache is for {self.keys.shape[1]} rows; these are {rows}")
        if end > self.size:
            raise UsageError(f"the KV cache has room for {self.size} tokens; {self.length} + {tokens} do not fit")
        places = self.xp.arange(end)
        if self.pad is None:
            return places[self.length:], None
        return self.xp.maximum(places[None, self.length:] - self.pad, 0), (places[None] >= self.pad)[:, None, None]

    def extend(self, layer: int, k: mg.Tensor, v: mg.Tensor) -> tuple[mg.Tensor, mg.Tensor]:
        """Store k and v [B, h, T, d/h] of the next tokens, and return all that is stored, [B, h, S, d/h] each   (cache.2)."""
        if k.requires_grad:                             # gradients would stop here, and nobody would notice
            raise mg.errors.GraphError("a pass through a KV cache has no gradient; run it inside minigrad.no_grad()")
        end = self.length + k.shape[2]
        self.keys[layer, :, :, self.length:end] = k.array
        self.values[layer, :, :, self.length:end] = v.array
        return mg.Tensor(self.keys[layer, :, :, :end]), mg.Tensor(self.values[layer, :, :, :end])

    def advance(self, tokens: int) -> None:
        """All layers have stored their part of the next tokens."""
        self.length += tokens

    def rewind(self, length: int) -> None:
        """Forget all but the first `length` tokens; the next ones are stored in their place."""
        self.length = min(self.length, length)

    def rows(self, first: int, last: int) -> KVCache:
        """Rows first … last − 1 as a cache by themselves, on the same memory; its length is its own."""
        part = copy.copy(self)
        part.keys, part.values = self.keys[:, first:last], self.values[:, first:last]
        part.padded = self.padded[first:last]
        part.pad = self.pad[first:last] if self.pad is not None and any(part.padded) else None
        return part

    def repeat(self) -> None:
        """All rows have read what the first has."""
        for stored in (self.keys, self.values):
            stored[:, 1:, :, :self.length] = stored[:, :1, :, :self.length]
