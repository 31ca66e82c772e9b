"""The engine that docs/engine.md has its readers type in gives what minigrad gives, on programs drawn at random."""
from __future__ import annotations

import re
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minigrad as mg

PAGE = Path(__file__).parents[3] / "docs" / "engine.md"
ROWS = 3                                                # all arrays are [3, 3], so that every op takes every value
# name: how many values it takes, on the page, in minigrad; the last two give numbers that are no whole ones
OPS: dict[str, tuple[int, str, Any]] = {
    "add": (2, "a + b", lambda a, b: a + b), "sub": (2, "a - b", lambda a, b: a - b), "mul": (2, "a * b", lambda a, b: a * b),
    "matmul": (2, "a @ b", lambda a, b: a @ b), "neg": (1, "-a", lambda a: -a), "transpose": (1, "transpose(a)", lambda a: a.mT),
    "number": (1, "2.0 * a + 1.0", lambda a: 2.0 * a + 1.0),
    "total": (1, "expand(total(a), a.array.shape)", lambda a: mg.broadcast_to(a.sum(), shape=a.shape)),
    "tanh": (1, "tanh(a)", mg.tanh), "exp": (1, "exp(tanh(a))", lambda a: mg.exp(mg.tanh(a))),
}
EXACT = [name for name in OPS if name not in ("tanh", "exp")]
Program = list[tuple[str, int, int]]


def blocks() -> str:
    """The page's code."""
    return "".join(re.findall(r"^```python\n(.*?)^```", PAGE.read_text("utf-8"), re.M | re.S))


def typed(more: str = "") -> Any:
    """A module of what a reader has after typing the page's blocks, and more."""
    module = types.ModuleType("engine")
    exec(blocks() + more, vars(module))
    return module


@pytest.fixture(scope="module")
def page() -> Any:
    return typed()


def programs(names: list[str], longest: int) -> st.SearchStrategy[Program]:
    """Ops, each with two numbers that choose among the values that there are."""
    return st.lists(st.tuples(st.sampled_from(names), st.integers(0, 99), st.integers(0, 99)), min_size=1, max_size=longest)


def ran(program: Program, inputs: list[Any], op: Any) -> Any:
    """The last value of a program."""
    values = list(inputs)
    for name, *at in program:
        values.append(op(name, *(values[i % len(values)] for i in at[:OPS[name][0]])))
    return values[-1]


def on_the_page(page: Any, name: str, *args: Any) -> Any:
    return eval(OPS[name][1], vars(page), dict(zip("ab", args)))


def both(page: Any, program: Program, arrays: list[np.ndarray], d: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Pairs of the page's and minigrad's: the loss, each gradient, and the gradients of their products with d."""
    ours = [mg.tensor(a, dtype="float64", requires_grad=True) for a in arrays]
    theirs = [page.Value(a) for a in arrays]
    loss = ran(program, ours, lambda name, *args: OPS[name][2](*args)).sum()
    total, gradients = page.total, page.gradients
    value = total(ran(program, theirs, lambda name, *args: on_the_page(page, name, *args)))
    first = mg.gradients(loss, ours, create_graph=True)
    first_page = gradients(value, theirs)
    pairs = [(value.array, loss.numpy()), *((a.array, b.detach().numpy()) for a, b in zip(first_page, first))]
    slopes = [(g * d).sum() for g in first]
    slopes_page = [total(g * page.Value(d)) for g in first_page]
    for slope, slope_page in zip(slopes, slopes_page):
        second = mg.gradients(slope, ours, retain_graph=True) if slope.requires_grad else [mg.tensor(np.zeros((ROWS, ROWS)))] * len(ours)
        pairs += [(a.array, b.numpy()) for a, b in zip(gradients(slope_page, theirs), second)]
    return pairs


@given(program=programs(EXACT, 6), seed=st.integers(0, 2**32 - 1))
def test_whole_numbers_are_equal(page: Any, program: Program, seed: int):
    """Sums and products of small whole numbers are exact in any order, so both engines have the same numbers to the bit."""
    rng = np.random.default_rng(seed)
    arrays, d = [rng.integers(-1, 2, (ROWS, ROWS)) * 1.0 for _ in range(3)], rng.integers(-1, 2, (ROWS, ROWS)) * 1.0
    for theirs, ours in both(page, program, arrays, d):
        if np.abs(ours).max() < 2.0**53:                # beyond it whole numbers are rounded
            np.testing.assert_array_equal(theirs, ours)


@given(program=programs(list(OPS), 5), seed=st.integers(0, 2**32 - 1))
def test_real_numbers_agree(page: Any, program: Program, seed: int):
    """With functions that round, both engines differ by rounding alone: by 10⁻⁹ of the largest number on the way."""
    rng = np.random.default_rng(seed)
    arrays, d = [rng.uniform(-1.0, 1.0, (ROWS, ROWS)) for _ in range(3)], rng.uniform(-1.0, 1.0, (ROWS, ROWS))
    pairs = both(page, program, arrays, d)
    largest = max(1.0, *(float(np.abs(ours).max()) for _, ours in pairs))
    for theirs, ours in pairs:
        np.testing.assert_allclose(theirs, ours, rtol=0, atol=1e-9 * largest)


def test_a_hundred_lines_are_enough(page: Any):
    """The page stays what a lecturer can type."""
    lines = blocks().splitlines()
    assert len(lines) <= 105 and max(map(len, lines)) <= 100
    assert {"Value", "gradients", "history", "quotient", "hvp"} <= vars(page).keys()


def test_a_broken_rule_is_seen(page: Any):
    """What the page says of its own check: with a wrong rule of tanh the difference quotient disagrees."""
    wrong = typed("\n\ndef tanh(x):\n    y = Value(np.tanh(x.array), (x,), lambda g: (g * y,))\n    return y\n")
    x, d = np.linspace(-1.0, 1.0, 9).reshape(3, 3), np.linspace(0.5, 1.5, 9).reshape(3, 3)
    for engine, agrees in ((page, True), (wrong, False)):
        def f(v: Any, engine: Any = engine) -> Any:
            return engine.total(engine.tanh(v))

        value = engine.Value(x)
        g, = engine.gradients(f(value), [value])
        assert bool(abs(engine.quotient(f, value, d) - (g.array * d).sum()) < 1e-7) is agrees
