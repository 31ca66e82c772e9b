"""The directional derivative of a run's function by differences, for a run without an oracle."""
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

    It returns three arrays: the derivative, a bound of the error of each of its numbers, and
    whether that bound is too large for a test. If the function supports only the dtype of the run
    and has a definition, the definition is differentiated instead.
    """
    subject, base = run.subject, [x.astype(WIDE) for x in run.arrays]
    rng = numbers_of(run.example, "directions")
    widest = run.widest(subject)
    if widest is None and subject.definition is not None:
        subject = Subject(subject.name, subject.definition)
        widest = run.widest(subject)

    def spread(at: Any, by: float) -> Any:
        """How much each number changes when the arguments are multiplied by 1 ± `by`, over `by`."""
        here, total = at(base).astype(WIDE), 0.0
        for i in range(len(base)):              # one argument at a time: two changes might cancel
            changes, shape = [], base[i].shape
            for signs in (alternating(shape), *(rng.choice([-1.0, 1.0], shape) for _ in range(2))):
                far = [x * (1.0 + by * signs) if k == i else x for k, x in enumerate(base)]
                changes.append(np.abs(at(far).astype(WIDE) - here) / by)
            total = total + np.max(changes, axis=0)
        return total

    def along(dtype: Any) -> tuple[Any, Any, Any]:
        if half(np.dtype(dtype)):
            raise NotApplicable("16 bits are too few for a difference quotient: "
                                "pass an oracle or a definition")
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
        # A function may accept this dtype and still compute in a narrower one. Then a change of a
        # few roundings has another effect, in proportion, than a larger change.
        at, rng = partial(run.evaluate, dtype=dtype, subject=subject), np.random.default_rng(1)
        fine = spread(at, 512.0 * eps(dtype))
        for by in (2.0**-16, 2.0**-20):         # 2⁻¹⁶ may be too large for f to be linear there
            rng = np.random.default_rng(1)      # the same directions
            plain = spread(at, by)
            unlike = ~(np.abs(fine - plain) <= 0.1 * (plain + np.abs(at(base))))
            if 4 * np.count_nonzero(unlike) <= plain.size:
                return along(dtype)
    return along(run.dtype)
