"""The derivative of a run's function along a direction by differences, where there is no oracle."""
from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from ...backend.base import half
from .reference import alternating
from .run import Run
from .strategies import numbers_of
from .subject import NotApplicable, Subject
from .tolerance import WIDE, difference, eps, magnitude


def quotient(run: Run, moves: Sequence[Any]) -> tuple[Any, Any, Any]:
    """The derivative along `moves`, in the widest float that the function computes in.

    With it come how far off each of its numbers may be, and whether that is too far to tell
    anything. Of a function that knows its own float alone, the derivative of its definition is
    taken, where it has one.
    """
    subject, base = run.subject, [x.astype(WIDE) for x in run.arrays]
    rng = numbers_of(run.example, "directions")
    widest = run.widest(subject)
    if widest is None and subject.definition is not None:
        subject = Subject(subject.name, subject.definition)
        widest = run.widest(subject)

    def spread(at: Any, by: float) -> Any:
        """What changes of the arguments by the share `by` do to each number, divided by it."""
        here, total = at(base).astype(WIDE), 0.0
        for i in range(len(base)):              # one after the other: together they might cancel
            changes, shape = [], base[i].shape
            for signs in (alternating(shape), *(rng.choice([-1.0, 1.0], shape) for _ in range(2))):
                far = [x * (1.0 + by * signs) if k == i else x for k, x in enumerate(base)]
                changes.append(np.abs(at(far).astype(WIDE) - here) / by)
            total = total + np.max(changes, axis=0)
        return total

    def along(dtype: Any) -> tuple[Any, Any, Any]:
        if half(np.dtype(dtype)):
            raise NotApplicable("16 bits are too few for a difference quotient: "
                                "name an oracle or a definition")
        at = partial(run.evaluate, dtype=dtype, subject=subject)
        found, error = difference(lambda h: at([x + h * v for x, v in zip(base, moves)]), dtype,
                                  spread(at, 64.0 * eps(dtype)), magnitude(*base))
        size = np.abs(found) + (np.sqrt(np.mean(found * found)) if found.size else 0.0)
        share = 0.1 if dtype == np.float32 else 1e-3
        return found, error, ~(error <= share * size + 1e3 * eps(dtype) ** 0.8)

    if widest is None or subject.function is not None:
        return along(widest or run.dtype)
    for dtype in (widest, np.dtype(np.float64)):
        if not eps(widest) <= eps(dtype) < eps(run.dtype):
            continue
        # is it wider by name alone? then a fine change does not do what a coarse one does
        at, rng = partial(run.evaluate, dtype=dtype, subject=subject), np.random.default_rng(1)
        fine = spread(at, 512.0 * eps(dtype))
        for by in (2.0**-16, 2.0**-20):         # the second for who is not linear over the first
            rng = np.random.default_rng(1)      # the same directions
            plain = spread(at, by)
            unlike = ~(np.abs(fine - plain) <= 0.1 * (plain + np.abs(at(base))))
            if 4 * np.count_nonzero(unlike) <= plain.size:
                return along(dtype)
    return along(run.dtype)
