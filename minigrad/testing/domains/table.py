"""The table of domains, and what its lines are made of."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st

from ...op import REGISTRY
from ..laws import DERIVATIVES
from ..strategies import Settings, Strategy, examples
from ..strategies import small_shapes as shapes
from ..subject import Subject


@dataclass(frozen=True)
class Domain:
    """A line of the table: a subject, where its examples come from, and how often it can be differentiated there (0: on kinks)."""

    label: str
    subject: Subject
    examples: Strategy
    smooth: int

    def asks(self, law: str) -> bool:
        """Whether the law can be put to these examples: not one that differentiates more often than they allow."""
        return DERIVATIVES.get(law, 0) <= self.smooth


DOMAINS: list[Domain] = []


def lines_of(name: str) -> list[Domain]:
    """The lines of the table about one op or function."""
    return [d for d in DOMAINS if d.subject.name == name]


def domain(name: str, given: Strategy | Sequence[Any], oracle: Callable[..., Any] | None, torch: Callable[..., Any] | str | None = None, *,
           label: str = "", call: Callable[..., Any] | None = None, smooth: int = 3, torch_orders: int = 2) -> None:
    """Add a line. given: a strategy of Examples, or the arguments of `examples`. call: the op among other ops, or its arguments in
    another order. torch: f(torch, *tensors, **settings), or the name of torch's function."""
    op = REGISTRY.get(name)                             # a composed function is none, and comes as `call`
    if isinstance(torch, str):
        path = torch

        def torch(library: Any, *args: Any, **settings: Any) -> Any:
            return getattr(library, path)(*args, **settings)

    subject = Subject(name, call or op, oracle, torch, torch_orders, op.definition if op and call is None else None, op)
    made = given if isinstance(given, st.SearchStrategy) else examples(*given)
    DOMAINS.append(Domain(f"{name}{'-' if label else ''}{label}", subject, made, smooth))


ANY = shapes().map(lambda s: [s])
FULL = shapes(side=1).map(lambda s: [s])                # no axis of size 0
AXES = shapes(least=1, side=1).map(lambda s: [s])       # and at least one axis


def constant(torch: Any, x: Any) -> Any:
    """A NumPy array as a torch tensor."""
    return torch.from_numpy(np.array(x, order="C"))


def axis_of(draw: Any, ndim: int) -> int:
    return draw(st.integers(-ndim, ndim - 1))


def one_of(**choices: Any) -> Settings:
    return lambda draw, sizes, rng: {k: draw(st.sampled_from(v)) for k, v in choices.items()}
