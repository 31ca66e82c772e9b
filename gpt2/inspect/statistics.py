"""Statistics of samples, in float64: moments, quantiles, and distances between two samples."""
from __future__ import annotations

import math
from typing import Any

import numpy as np

QUANTILES = (0.01, 0.25, 0.5, 0.75, 0.99)
STANDS_OUT = 3.0                        # an outlier is above so many times the median column
_PIECE = 1 << 20                        # how many numbers are converted to float64 at a time


def summary(array: np.ndarray, quantiles: bool = False) -> dict[str, Any]:
    """How many numbers there are, how many are NaN or infinite, and statistics of the finite ones.

    The statistics are mean, std (population), min, max, norm and excess kurtosis m₄/m₂² − 3, which
    is 0 for a normal distribution, above 0 for heavier tails, and NaN if all numbers are equal.
    quantiles=True adds "quantiles", those of QUANTILES. All are NaN if no number is finite.
    """
    flat = array.reshape(-1)
    finite = np.isfinite(flat)
    out: dict[str, Any] = {"count": flat.size, "nan": int(np.isnan(flat).sum())}
    out["inf"] = flat.size - int(finite.sum()) - out["nan"]
    flat = flat if finite.all() else flat[finite]
    if not flat.size:
        out |= dict.fromkeys(("mean", "std", "min", "max", "norm", "kurtosis"), math.nan)
        return out | ({"quantiles": [math.nan] * len(QUANTILES)} if quantiles else {})
    mean = float(np.mean(flat, dtype=np.float64))
    second = fourth = squares = 0.0
    for start in range(0, flat.size, _PIECE):
        piece = flat[start:start + _PIECE].astype(np.float64)
        squares += float(piece @ piece)
        piece -= mean
        piece *= piece
        second += float(piece.sum())
        fourth += float(piece @ piece)
    low, high = float(flat.min()), float(flat.max())
    spread = second / flat.size if low != high else 0.0
    out |= {"mean": mean, "std": math.sqrt(spread), "min": low, "max": high,
            "norm": math.sqrt(squares),
            "kurtosis": fourth / flat.size / spread ** 2 - 3.0 if spread ** 2 else math.nan}
    if quantiles:
        out["quantiles"] = np.quantile(flat, QUANTILES).tolist()
    return out


def outlier_columns(table: np.ndarray) -> list[tuple[int, float]]:
    """Outlier columns of a table [n, d], each with its ratio; the largest ratio comes first.

    The ratio is that of the column's root mean square to the median of all columns; it is above
    STANDS_OUT. Columns with a number that is not finite are ignored.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        size = np.sqrt(np.einsum("ij,ij->j", table, table, dtype=np.float64) / max(1, len(table)))
        finite = size[np.isfinite(size)]
        ratio = size / np.median(finite) if finite.size else size
    found = np.flatnonzero(np.isfinite(size) & (ratio > STANDS_OUT))
    return [(int(i), float(ratio[i])) for i in found[np.argsort(-ratio[found], kind="stable")]]


def ks(a: np.ndarray, b: np.ndarray) -> float:
    """The Kolmogorov-Smirnov distance of two samples, 0 … 1; NaN if one of them is empty.

    It is the largest difference between their distribution functions.
    """
    if not a.size or not b.size:
        return math.nan
    both = np.concatenate([np.sort(a, axis=None), np.sort(b, axis=None)])
    order = np.argsort(both, kind="stable")             # fast, as both parts are sorted already
    below = np.cumsum(order < a.size)                   # how many of a are not larger
    values = both[order]
    steps = np.append(values[1:] != values[:-1], True)  # equal numbers count together
    gaps = below / a.size - (np.arange(1, both.size + 1) - below) / b.size
    return float(np.abs(gaps)[steps].max())


def spearman(x: Any, y: Any) -> float:
    """Spearman's rank correlation: 1 if y always grows with x, −1 if it always falls.

    Equal numbers share their ranks. NaN if a number is NaN, or if all numbers of x or y are equal.
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if np.isnan(x).any() or np.isnan(y).any():
        return math.nan
    a, b = _ranks(x), _ranks(y)
    a, b = a - a.mean(), b - b.mean()
    size = math.sqrt(float(a @ a) * float(b @ b))
    return float(a @ b) / size if size else math.nan


def _ranks(x: np.ndarray) -> np.ndarray:
    _, group, counts = np.unique(x, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2.0)[group]


def entropy(p: np.ndarray) -> np.ndarray:
    """−Σ p log p in nats over the last axis; 0 log 0 is 0."""
    p = np.asarray(p, np.float64)
    return -(p * np.log(np.where(p > 0.0, p, 1.0))).sum(-1)
