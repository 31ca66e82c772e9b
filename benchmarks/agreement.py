"""Whether two answers agree: what a workload reports about its result, and how much two float32 results may differ.

The model of rounding: after K independent roundings of relative size u = 2⁻²⁴, a result is off by about u √K of its size
(Higham, Mary 2019). Two results may differ by 2 · 2 times this: two standard deviations for each of them. K is the total length of
the sums on the longest path through the network; the backward pass doubles this length again.
"""
from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping
from typing import Any

from .rows import Row

U = 2.0 ** -24
RATE = 1e-5                                             # the learning rate; it is small, so that the weights change little
DECAY = 0.1


def sketch(name: str, array: Any) -> list[float]:
    """The Euclidean norm of an array, and its inner product with signs that depend on the name, both summed in float64."""
    import numpy as np

    flat = np.ravel(np.asarray(array))
    signs = np.random.default_rng(zlib.crc32(name.encode()))
    square = along = 0.0
    for i in range(0, flat.size, 1 << 20):
        part = flat[i:i + (1 << 20)].astype(np.float64)
        square += float(part @ part)
        along += float(part @ (2.0 * signs.integers(0, 2, part.size, dtype=np.int8) - 1.0))
    return [math.sqrt(square), along]


def batch_of(row: Row, config: Any) -> tuple[Any, Any]:
    """ids and targets [B, T], the same for all programs; each row continues the row before it."""
    import numpy as np

    ids = np.random.default_rng(0).integers(0, config.vocab_size - 1, row.batch * row.tokens + 1)
    return ids[:-1].reshape(row.batch, row.tokens), ids[1:].reshape(row.batch, row.tokens)


def roundings(row: Row, config: Any) -> int:
    """K for the loss, for logits and for gradients: the number of terms in the sums on the longest path."""
    if not row.model:                                   # an op: the longest sum of all ops, forward and backward
        return 2 * (row.batch + row.tokens) if row.kind != "op adamw" else 16
    d, n, tokens = config.n_embd, config.n_inner or 4 * config.n_embd, row.tokens + row.new
    block = 2 * d + d // config.n_head + 2 * tokens + d + n + 4 * d     # two products with d, scores, softmax and P V, the MLP, two norms
    forward = config.n_layer * block + 3 * d + config.vocab_size
    return forward if row.kind != "train" else 3 * forward + 2 * row.batch * row.tokens


def bound(row: Row, config: Any) -> float:
    """The largest difference of two float32 answers, relative to their size."""
    if row.kind == "chain":
        # 18 operations with errors of 4 u, on numbers below 3, with slopes below 10 to the result
        return 18 * 4 * 10 * U
    return 4.0 * U * math.sqrt(roundings(row, config))


def complaints(found: Mapping[str, Any], wanted: Mapping[str, Any], row: Row, config: Any,
               tells: tuple[str, ...] | None = None, near: float | None = None) -> list[str]:
    """The differences between the answer `found` and `wanted`, which is minigrad's; nothing if they agree.

    near: how far apart, relative to their size, where it is not float32's `bound`.
    """
    keys = set(wanted) - {"margins", "size"} if tells is None else set(tells)
    if absent := keys - set(found):
        return [f"no {name}" for name in sorted(absent)]
    near = bound(row, config) if near is None else near
    out: list[str] = []
    for key in sorted(keys):
        out += _CHECKS[key](found[key], wanted, row, near)
    return out


def first_off(found: Any, wanted: Any, room: Any) -> str:
    """The first number of an array that is off by more than `room`: shape, dtype, index, both values, and room; nothing if none is."""
    import numpy as np

    a, b = np.asarray(found).astype(np.float64), np.asarray(wanted).astype(np.float64)
    if a.shape != b.shape:
        return f"{found.dtype}{list(a.shape)}, not {list(b.shape)}"
    with np.errstate(invalid="ignore"):
        off = ~(np.abs(a - b) <= room) & (a != b)       # NaN is off from everything
    if not off.any():
        return ""
    at = tuple(map(int, np.argwhere(off)[0]))
    return (f"{found.dtype}{list(a.shape)} at {list(at)}: {a[at]:.9g}, not {b[at]:.9g}, further apart than "
            f"{float(np.broadcast_to(room, a.shape)[at]):.3g}; {int(off.sum())} of {off.size} numbers are")


def _number(name: str, found: float, wanted: float, room: float) -> list[str]:
    # `not <=`, because a NaN must count as a difference
    return [] if abs(found - wanted) <= room else [f"{name} is {found!r}, and {wanted!r} with us: more than {room:.1e} apart"]


def _loss(found: float, wanted: Mapping[str, Any], row: Row, near: float) -> list[str]:
    return _number("the loss", found, wanted["loss"], near * abs(wanted["loss"]))


def _next_loss(found: float, wanted: Mapping[str, Any], row: Row, near: float) -> list[str]:
    """AdamW's first step moves every number by the rate, whichever way its gradient points; where the error δ of a gradient turns it round,
    the loss is off by 2·rate·|δ|, and over all N numbers by at most 2·rate·√N·‖δ‖."""
    size = math.sqrt(math.fsum(norm * norm for norm, _ in wanted["gradients"].values()))
    room = near * abs(wanted["next_loss"]) + 2.0 * RATE * math.sqrt(wanted["size"]) * near * size
    return _number("the loss after a step", found, wanted["next_loss"], room)


def _sketches(found: Mapping[str, Any], wanted: Mapping[str, Any], near: float) -> list[str]:
    if found.keys() != wanted.keys():
        return [f"only on one side: {', '.join(sorted(found.keys() ^ wanted.keys())[:3])}"]
    out = []
    for name, (norm, along) in wanted.items():
        out += _number(f"the norm of {name}", found[name][0], norm, near * norm)
        out += _number(f"the projection of {name}", found[name][1], along, near * norm)
    return out


def _ids(found: list[list[int]], wanted: Mapping[str, Any], row: Row, near: float) -> list[str]:
    """Greedy ids are compared up to the first place where our two best logits are closer than both errors: there either may win."""
    for i, (theirs, ours, margins) in enumerate(zip(found, wanted["ids"], wanted["margins"])):
        if len(theirs) != len(ours):
            return [f"row {i} has {len(theirs)} new ids, and {len(ours)} with us"]
        for n, (a, b, (margin, size)) in enumerate(zip(theirs, ours, margins)):
            if margin <= 2.0 * near * size:
                break
            if a != b:
                return [f"new id {n} of row {i} is {a}, and {b} with us, by a margin of {margin:.1e}"]
    return [] if len(found) == len(wanted["ids"]) else [f"{len(found)} rows, and {len(wanted['ids'])} with us"]


def _scores(found: list[float], wanted: Mapping[str, Any], row: Row, near: float) -> list[str]:
    """Sums of log-probabilities of the ids, where no tie has let the ids part: each is off by less than `near` of a logit's size."""
    out = []
    for i, (theirs, ours, margins) in enumerate(zip(found, wanted["scores"], wanted["margins"])):
        if all(margin > 2.0 * near * size for margin, size in margins):
            out += _number(f"the score of row {i}", theirs, ours, near * (abs(ours) + sum(size for _, size in margins)))
    return out


def _gradient(found: list[float], wanted: Mapping[str, Any], row: Row, near: float) -> list[str]:
    if len(found) != len(wanted["gradient"]):
        return [f"a gradient of {len(found)} numbers, and {len(wanted['gradient'])} with us"]
    size = max(map(abs, wanted["gradient"]))
    return [line for i, (a, b) in enumerate(zip(found, wanted["gradient"])) for line in _number(f"gradient[{i}]", a, b, near * size)]


_CHECKS: dict[str, Callable[[Any, Mapping[str, Any], Row, float], list[str]]] = {
    "loss": _loss, "next_loss": _next_loss, "ids": _ids, "scores": _scores, "gradient": _gradient,
    "gradients": lambda found, wanted, row, near: _sketches(found, wanted["gradients"], near),
    "values": lambda found, wanted, row, near: _sketches(found, wanted["values"], near),
}
