"""The table of domains, and the common parts of its lines."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st

from ...op import REGISTRY
from ..laws.laws import DERIVATIVES
from ..laws.strategies import Settings, Strategy, examples
from ..laws.strategies import small_shapes as shapes
from ..laws.subject import Subject


@dataclass(frozen=True)
class Domain:
    """A line of the table: a subject, and the strategy that draws its examples.

    smooth: the number of derivatives that the subject has at these examples; 0 on kinks.
    """

    label: str
    subject: Subject
    examples: Strategy
    smooth: int

    def asks(self, law: str) -> bool:
        """Whether the law can be tested here: it takes at most `smooth` derivatives."""
        return DERIVATIVES.get(law, 0) <= self.smooth


DOMAINS: list[Domain] = []


def lines_of(name: str) -> list[Domain]:
    """The lines of the table about one op or function."""
    return [d for d in DOMAINS if d.subject.name == name]


def domain(name: str, given: Strategy | Sequence[Any], oracle: Callable[..., Any] | None,
           torch: Callable[..., Any] | str | None = None, *, label: str = "",
           call: Callable[..., Any] | None = None, smooth: int = 3, torch_orders: int = 2) -> None:
    """Add a line to the table.

    given: a strategy of Examples, or the arguments of `examples`. call: the function to test, if it
    is not the op itself: a composed function, or the op with other ops or with its arguments in
    another order. torch: f(torch, *tensors, **settings), or the name of a function of torch. label:
    tells several lines about one op apart. smooth, torch_orders: see Domain and Subject.
    """
    op = REGISTRY.get(name)                     # None for a composed function
    if isinstance(torch, str):
        path = torch

        def torch(library: Any, *args: Any, **settings: Any) -> Any:
            return getattr(library, path)(*args, **settings)

    definition = op.definition if op and call is None else None
    subject = Subject(name, call or op, oracle, torch, torch_orders, definition, op)
    made = given if isinstance(given, st.SearchStrategy) else examples(*given)
    DOMAINS.append(Domain(f"{name}{'-' if label else ''}{label}", subject, made, smooth))


ANY = shapes().map(lambda s: [s])
LINES = shapes(least=1).map(lambda s: [s])              # at least one axis
FULL = shapes(side=1).map(lambda s: [s])                # no axis of size 0
AXES = shapes(least=1, side=1).map(lambda s: [s])       # neither


def constant(torch: Any, x: Any) -> Any:
    """A NumPy array as a torch tensor."""
    return torch.from_numpy(np.array(x, order="C"))


def axis_of(draw: Any, ndim: int) -> int:
    return draw(st.integers(-ndim, ndim - 1))


def one_of(**choices: Any) -> Settings:
    return lambda draw, sizes, rng: {k: draw(st.sampled_from(v)) for k, v in choices.items()}


def one_axis(draw: Any, sizes: Any, rng: Any) -> Any:
    return {"axis": axis_of(draw, len(sizes[0]))}
