"""What the tests of the CUDA kernels share: the dtypes, an op on DEVICE beside its definition on NumPy, and how far they may differ."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from device import DEVICE, HERE, counting
from hypothesis import strategies as st

import minigrad as mg
from benchmarks.agreement import first_off
from minigrad.testing.laws.tolerance import bound

mg.backend.dtype("bfloat16")                            # NumPy knows it from here on
FLOAT = ("-DSTORE=float", "-DREAL=float")
stored = st.sampled_from(["float32", "float64", "float16", "bfloat16"])   # 16 bits in memory, float32 to compute with
UNIT = {"float16": 2.0**-11, "bfloat16": 2.0**-8}       # the relative error of rounding once
UNORDERED = "nothing puts the two in order|which nobody has written|before cp.async.wait_all"     # what the machine says of a missing wait
LEAST = {"float16": 2.0**-25}                           # and the absolute one of numbers that are too small for it


def placed(a: np.ndarray, shift: int) -> Any:
    """a on DEVICE, from `shift` numbers after a place where 16 bytes may begin."""
    return HERE.array(np.concatenate([np.zeros(shift, a.dtype), a.reshape(-1)]))[shift:].reshape(a.shape)


def both(f: Callable[..., Any], truth: Callable[..., Any], dtype: str, *arrays: np.ndarray) -> tuple[list[Any], list[Any], Any]:
    """Value and gradients of a weighted sum of f on DEVICE in `dtype`, those of `truth` on NumPy in float64, and what was counted.

    Bit i of the first array's length says whether array i begins at an odd place.
    """
    def run(g: Callable[..., Any], device: str, kind: str) -> list[np.ndarray]:
        odd = len(arrays[0]) if device == DEVICE else 0
        xs = [mg.tensor(a.astype(kind), device=device, requires_grad=True) for a in arrays]
        for i, x in enumerate(xs if odd else []):
            x.assign(mg.Tensor(placed(arrays[i].astype(kind), odd >> i & 1)))          # a plain array would be copied
        y = g(*xs)
        seed = np.cos(np.arange(y.numel(), dtype=np.float64)).reshape(y.shape).astype(dtype)
        y.backward(mg.tensor(seed, dtype=str(y.dtype), device=device))
        return [y.numpy(), *(x.grad.numpy() for x in xs if x.grad is not None)]

    arrays = tuple(a.astype(dtype).astype(np.float64) for a in arrays)
    with counting() as counts:
        found = run(f, DEVICE, dtype)
    return found, run(truth, "numpy", "float64"), counts


def agree(found: Any, wanted: Any, room: Any, what: str = "result") -> None:
    """No number is further off than `room`; an error says where the first one is."""
    if off := first_off(found, wanted, room):
        raise AssertionError(f"{what} {off}")


def close(found: list[Any], wanted: list[Any], dtype: str, length: int, scale: float) -> None:
    """Within the laws' bound; numbers of 16 bits are within float32's, and then rounded once."""
    computed = "float32" if dtype in UNIT else dtype
    for i, (a, b) in enumerate(zip(found, wanted, strict=True)):
        assert a.dtype == (computed if a.ndim == 0 else dtype)         # a loss is not stored in 16 bits
        once = UNIT.get(str(a.dtype), 0.0) * np.abs(b) + LEAST.get(str(a.dtype), 0.0)
        agree(a, b, bound(computed, length, scale) + once, f"gradient {i - 1}" if i else "value")


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)
