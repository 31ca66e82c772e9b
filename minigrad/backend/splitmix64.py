"""The counter-based generator of random bits that `minigrad.random` uses.

Element i of a key's stream is mix(key + (i + 1)·γ), so any part of it can be computed alone.
"""
from __future__ import annotations

import math
import operator
from typing import Any

GAMMA = 0x9E3779B97F4A7C15
MIX1 = 0xBF58476D1CE4E5B9
MIX2 = 0x94D049BB133111EB
MASK = (1 << 64) - 1


def raw_bits(xp: Any, key: int, n: int, start: int = 0) -> Any:
    """Elements start … start + n − 1 of the key's stream, as an array of uint64 of backend xp."""
    u = xp.uint64
    z = xp.arange(start + 1, start + n + 1, dtype=u)
    z *= u(GAMMA)
    z += u(operator.index(key))                         # u(3.5) would be 3, and u(None) 0
    z ^= z >> u(30)
    z *= u(MIX1)
    z ^= z >> u(27)
    z *= u(MIX2)
    z ^= z >> u(31)
    return z


def keep_mask(xp: Any, key: int, shape: tuple[int, ...], p: float) -> Any:
    """Booleans of `shape`; each is false with probability p, rounded to a multiple of 2⁻³²."""
    return xp.reshape(keep_mask_span(xp, key, 0, math.prod(shape), p), shape)


def keep_mask_span(xp: Any, key: int, start: int, stop: int, p: float) -> Any:
    """Elements start … stop − 1 of the flat mask.

    Each 64 bits of the key's stream are used for two elements, the low half first.
    """
    first = start // 2
    halves = raw_bits(xp, key, (stop + 1) // 2 - first, first).view(xp.uint32)
    return halves[start - 2 * first:stop - 2 * first] >= xp.uint32(least_kept(p))


def least_kept(p: float) -> int:
    """The smallest 32-bit number with which an element is not dropped (with probability 1 − p)."""
    return min(round(p * 2.0**32), 2**32 - 1)
