"""Every equation that a page displays is evaluated at random numbers, beside the very LaTeX that the page shows.

A check is a function of tests/equations: its name is the label, softmax_4 for (softmax.4), and softmax_aside_1 for the first equation of
docs/softmax.md that has none. Its docstring is the equation as the page has it, and its text evaluates all sides of it.
"""
from __future__ import annotations

import inspect
import re

import numpy as np
import pytest
from equations import by_numbers, draws, errors, heads, products, rows, steps, stream
from equations.by_numbers import at_most, differs, is_so, same, slope, zero
from planted import planted

from docs import pages

MODULES = (rows, products, heads, stream, draws, steps, errors)
CHECKS = {name: f for module in MODULES for name, f in vars(module).items()
          if inspect.isfunction(f) and list(inspect.signature(f).parameters) == ["normal"]}


def numbers():
    """A function that draws normal numbers of a shape, the same ones for each check."""
    rng = np.random.default_rng(0)
    return lambda *shape: rng.standard_normal(shape) if shape else float(rng.standard_normal())


def defects():
    """The equations of the pages that are not what their checks evaluate, with what to do."""
    shown = {re.sub(r"[.-]", "_", label): (page, label, latex) for page in pages.pages() for label, latex in pages.equations(page)}
    assert sorted(shown.keys() ^ CHECKS.keys()) == [], "an equation without a check, or a check without its equation"
    return [f"{pages.name_of(page)}: ({label}) changed: check it with the numbers of {name} in {inspect.getsourcefile(CHECKS[name])}, "
            "then copy it into the docstring there"
            for name, (page, label, latex) in shown.items()
            if pages.without_spacing(latex) != pages.without_spacing(CHECKS[name].__doc__)]


@pytest.mark.parametrize("name", sorted(CHECKS))
def test_an_equation_holds(name):
    """Its sides, evaluated at random numbers, are equal; and some are compared."""
    by_numbers.made.clear()
    CHECKS[name](numbers())
    assert by_numbers.made, "nothing is compared"


def test_the_pages_show_what_is_evaluated():
    """Each equation has a check, each check an equation, and both say the same."""
    assert defects() == []


# ── what is wrong is noticed ──
@pytest.mark.parametrize(("page", "old", "new"), [
    ("softmax", r"\bigl(g - \langle p, g\rangle", r"\bigl(g + \langle p, g\rangle"),
    ("layer-norm", r"-\frac{r^2}{d}\, \hat x_k", r"\frac{r^2}{d}\, \hat x_k"),
    ("attention", r"s\, \partial S^\top Q", r"s\, \partial S\, Q"),
    ("embedding", r"= p_j - \delta_{jt}", r"= p_j - \delta_{tj} p_j"),
    ("training", r"\sqrt{\hat v_t} + \varepsilon", r"\sqrt{\hat v_t + \varepsilon}"),
    ("gpt2", r"2dn + 9d + n) + 2d \tag", r"2dn + 8d + n) + 2d \tag"),
    ("causal-mask", r"= -p_{ts}\, p_{tr}", r"= p_{ts}\, p_{tr}"),
], ids=lambda value: value if value.isidentifier() else "")
def test_an_equation_that_changes_is_noticed(page, old, new):
    """A sign, a transpose, an index, a place or a number."""
    with planted(f"docs/{page}.md", old, new):
        assert [defect.partition(":")[0] for defect in defects()] == [f"docs/{page}.md"]


def test_an_equation_that_is_set_otherwise_says_the_same():
    with planted("docs/softmax.md", r"p \odot \bigl(g - \langle p, g\rangle\, \mathbf 1\bigr) .",
                 r"\quad p \odot (g -\langle p, g\rangle\; \mathbf 1),"):
        assert defects() == []


@pytest.mark.parametrize("wrong", [
    lambda: same([1.0, 2.0], [1.0, -2.0]), lambda: same(1.0, 1.0, 1.0 + 1e-5), lambda: same([0.0], [0.0]), lambda: same([1.0], 1.0),
    lambda: same(np.nan, np.nan), lambda: zero(1e-300, 1.0), lambda: zero(0.0, 0.0), lambda: differs(1.0, 1.0),
    lambda: is_so([True, False]), lambda: at_most([1.0, 2.0], [3.0, 1.9], share=0.1), lambda: at_most(0.1, 1.0, share=0.5),
], ids=["sign", "third side", "nothing to see", "shape", "NaN", "nearly 0", "0 beside 0", "no difference", "false", "above", "far below"])
def test_sides_that_differ_are_noticed(wrong):
    with pytest.raises(AssertionError):
        wrong()


def test_slopes_are_derivatives():
    """Of a function of several numbers, axes of the value first."""
    x = np.array([0.3, -0.5])
    assert np.abs(slope(lambda x: np.array([x[0] * x[1], np.exp(x[0]), x[1]]), x)
                  - [[x[1], x[0]], [np.exp(x[0]), 0.0], [0.0, 1.0]]).max() < 1e-9
