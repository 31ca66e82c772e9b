"""The kit itself: every law is seen to break, reports name law, example and units, and the commands say what they found."""
from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st

import minigrad as mg
from minigrad.engine.fast import FastOp as Op
from minigrad.engine.op import Op as Definition
from minigrad.engine.saved import Plan
from minigrad.ops.elementwise import exp, mul
from minigrad.testing import LAWS, LawsBroken, __main__, arrays, broadcastable, check, mutate
from minigrad.testing.domains import DOMAINS
from minigrad.testing.laws.check import examine
from minigrad.testing.laws.run import Run
from minigrad.testing.laws.strategies import Example, examples, shapes
from minigrad.testing.laws.subject import Subject, subject_of
from minigrad.testing.laws.tolerance import WIDE, bound, complex_step, difference


def _op(kernel: Any, kind: type[Op] = Op, definition: Any = None, joint: Any = None, elementwise: bool = True, **rules: Any) -> Op:
    kernel.__name__ = "odd"
    return kind(kernel, rules, elementwise=elementwise, definition=definition, joint=joint)


# ── each law is seen to break ──
def _joint(g: Any, a: Any, b: Any, wants: Any) -> Any:
    return (g * b if wants[1] else g * (b + 1.0)), g * a


def _writes(xp: Any, x: Any) -> Any:
    x *= 2.0
    return x * 1.0


class _Doubles(Op):
    def __call__(self, *args: Any, **settings: Any) -> Any:
        out = super().__call__(*args, **settings)
        return out if isinstance(out, mg.Tensor) else out * 2.0


class _Swallows(Op):
    def __call__(self, *args: Any, **settings: Any) -> Any:
        return super().__call__(*[a for a in args if not isinstance(a, str)][:1] or [np.ones(2)])


class _Hoards(Definition):
    def _record(self, args: Any, nodes: Any, *rest: Any) -> Any:
        node = super()._record(args, nodes, *rest)
        node.plan, node.saved = Plan(mul, (True, True)), (args[0].array, args[0].array)
        return node


_random = itertools.count(1)
_crooked = _op(lambda xp, x: x * 1.0, x=lambda g: g * g)
_halting = _op(lambda xp, x: xp.exp(x), x=lambda g, x: g * mg.stop_gradient(exp(x)))
SQUARE = {"x": lambda g, x: g * (2.0 * x)}
BREAKERS: dict[str, Callable[[], Subject]] = {
    "value": lambda: replace(subject_of(mg.tanh), oracle=np.sinh),
    "adjoint": lambda: subject_of(_op(lambda xp, x: x * x, x=lambda g, x: g * x)),
    "rounded": lambda: Subject("foreign", None, value=lambda x: x * x * x.dtype.type(1.0 + 1e-5 * (x.dtype == np.float32)),
                               pull=lambda u, x: 2.0 * u * x),
    "linear": lambda: subject_of(_op(lambda xp, x: x * 1.0, x=lambda g: g * g)),
    "second_adjoint": lambda: subject_of(_op(lambda xp, x: x * x, x=lambda g, x: g * mg.stop_gradient(2.0 * x))),
    "second_linear": lambda: subject_of(_op(lambda xp, x: x * x, x=lambda g, x: g * _crooked(2.0 * x))),
    "third_adjoint": lambda: subject_of(_op(lambda xp, x: xp.exp(x), x=lambda g, x: g * _halting(x))),
    "kind": lambda: Subject("foreign", None, value=np.tanh, pull=lambda u, x: u.astype("float64") * (1.0 - np.tanh(x) ** 2)),
    "wanted": lambda: subject_of(_op(lambda xp, a, b: a * b, joint=_joint, elementwise=False)),
    "pure": lambda: subject_of(_op(_writes, x=lambda g: g * 2.0)),
    "alias": lambda: subject_of(_op(lambda xp, x: x, x=lambda g: g)),
    "residuals": lambda: subject_of(_op(lambda xp, x: x * 1.0, _Hoards, x=lambda g: g)),
    "parts": lambda: subject_of(_op(lambda xp, x: x * x, definition=lambda x: x * x * 1.001, **SQUARE)),
    "repeat": lambda: subject_of(_op(lambda xp, x: x * x + float(next(_random)) * 1e-3, **SQUARE)),
    "bare": lambda: subject_of(_op(lambda xp, x: x * x, _Doubles, **SQUARE)),
    "torch": lambda: replace(subject_of(mg.tanh), torch=lambda t, x: t.tanh(x) * 1.001),
    "refusal": lambda: subject_of(_op(lambda xp, x: x * x, _Swallows, **SQUARE)),
}


def test_there_is_a_breaker_for_every_law():
    """Each law below is seen to break."""
    assert BREAKERS.keys() == LAWS.keys()


@pytest.mark.parametrize("law", BREAKERS)
def test_the_law_breaks(law: str):
    """A subject with one mistake breaks the law that is about it, in float32 as well, and a right one does not."""
    subject = BREAKERS[law]()
    pair = len(getattr(subject.op, "args", "x")) > 1
    given = examples(st.just([(2, 3)] * (2 if pair else 1)))
    found = {examine(law, subject, given, dtype, examples=20).status for dtype in ("float64", "float32")}
    assert "broken" in found
    right = Subject("tanh", None, value=np.tanh, pull=lambda u, x: u * (1 - np.tanh(x) ** 2)) if law in ("kind", "rounded") else \
        replace(subject_of("softmax"), oracle=None) if law == "parts" else \
        replace(subject_of("mul"), oracle=lambda a, b: a * b, torch=lambda t, a, b: a * b)
    verdict = examine(law, right, examples(st.just([(2, 3)] * (2 if right.name == "mul" else 1))), "float64", examples=20)
    assert verdict.status == "held", verdict


# ── what check says ──
def test_a_wrong_rule_is_reported_with_its_smallest_example():
    """The report names the law, the smallest example and the error in units of the bound; the laws that hold are there too."""
    wrong = _op(lambda xp, x: x / (1.0 + xp.exp(-x)), x=lambda g, x: g * mg.sigmoid(x) * (1.0 + x * mg.sigmoid(x)))
    with pytest.raises(LawsBroken) as caught:
        check(wrong, arrays(), examples=20)
    report = caught.value.report
    assert not report.ok and {v.law for v in report.broken} == {"adjoint"} and {v.dtype for v in report.broken} == {"float64", "float32"}
    worst = report.broken[0]
    assert worst.units > 1e6 and worst.example is not None and worst.example.arrays[0].size == 1
    text = str(caught.value)
    for word in ("adjoint", "units of the bound", "⟨u, Jv⟩", "second_adjoint  float64  held", "not applicable ("):
        assert word in text, f"{word!r} is missing in {text}"


def test_a_foreign_implementation_is_checked():
    """Plain arrays in and out: a right softmax passes, one whose VJP sums over all rows instead of each does not."""
    def softmax(x: Any, axis: int = -1) -> Any:
        e = np.exp(x - x.max(axis, keepdims=True))
        return e / e.sum(axis, keepdims=True)

    def right(g: Any, x: Any, axis: int = -1) -> Any:
        p = softmax(x, axis)
        return p * (g - (g * p).sum(axis, keepdims=True))

    def wrong(g: Any, x: Any, axis: int = -1) -> Any:
        p = softmax(x, axis)
        return p * (g - (g * p).sum())

    report = check(softmax, arrays((2, 3)), vjp=right, definition=mg.softmax, axis=st.sampled_from([0, -1]), examples=20)
    assert [v.status for v in report.verdicts if v.law == "parts"] == ["held"] * 2
    assert report.ok and "plain arrays have no second derivative" in str(report)
    with pytest.raises(LawsBroken, match="adjoint") as caught:
        check(softmax, arrays((2, 3)), vjp=wrong, definition=mg.softmax, examples=20)
    assert {v.law for v in caught.value.report.broken} == {"adjoint", "parts"}


def test_functions_of_tensors_are_checked():
    """A function composed of ops, with several arguments and outputs, and settings that are drawn."""
    assert check(lambda x, w: mg.split(mg.tanh(x @ w), sections=2, axis=-1), arrays((2, 3)), arrays((3, 4)), examples=5).ok
    assert check(mg.maximum, broadcastable(2, ["spread", "halves"]), laws=["adjoint", "repeat"], examples=5).ok
    assert check(mg.softmax, arrays(shapes(least=1, side=1)), axis=-1, examples=5, dtypes=["float32"]).ok
    with pytest.raises(LawsBroken, match="adjoint"):
        check(lambda x: mg.stop_gradient(x) * x, arrays((2,)), laws=["adjoint"], examples=5)


def test_an_error_inside_is_a_broken_law():
    """A function that fails is reported as such, with the example."""
    with pytest.raises(LawsBroken, match="ShapeError: add"):
        check(lambda x: x + np.ones(3), arrays((2,)), laws=["repeat"], examples=3)


def test_a_function_that_fails_now_and_then_breaks_a_law():
    """Every tenth call fails, the same example the next time does not: a verdict with the example, and no error of Hypothesis."""
    calls = itertools.count(1)

    def moody(x: Any) -> Any:
        if next(calls) % 10 == 0:
            raise MemoryError("no memory this time")
        return np.tanh(x)

    with pytest.raises(LawsBroken, match="no memory this time") as caught:
        check(moody, arrays((2,)), vjp=lambda g, x: g * (1 - np.tanh(x) ** 2), examples=30)
    assert caught.value.report.broken[0].example is not None


@pytest.mark.parametrize("f, words", [
    (lambda: check(mg.tanh), "one strategy for each"), (lambda: check(mg.tanh, arrays(), laws=["no"]), "no law 'no'")])
def test_wrong_calls_are_refused(f: Any, words: str):
    """A ValueError of one line."""
    with pytest.raises(ValueError, match=words) as caught:
        f()
    assert "\n" not in str(caught.value)


# ── where bounds and truths come from ──
def test_the_bound_grows_with_length_scale_and_order():
    """(n + 40 k) n u S in units of the dtype; of 16 bits that of float32, and 4 k roundings of what is stored."""
    assert bound("float64") == 41 * 2.0**-53 and bound("float32", 9, 2.0, 2) == 89 * 9 * 2.0 * 2.0**-24
    assert bound("float16", scale=0.1) == 41 * 2.0**-24 + 4 * (2.0**-11 + 2.0**-25)
    assert bound("bfloat16", 3, 2.0, 2) == bound("float32", 3, 2.0, 2) + 8 * (2.0**-8 * 2.0 + 2.0**-134)


@pytest.mark.parametrize("f, slope", [(np.exp, np.exp), (np.sin, np.cos), (lambda x: x**7, lambda x: 7 * x**6)])
def test_differences_know_their_error(f: Any, slope: Any):
    """The difference of order 6 is as near as it says, in three dtypes, and the complex step is exact to a few units."""
    for dtype in (np.float32, np.float64, WIDE):
        x = WIDE(0.7)
        found, error = difference(lambda h, dtype=dtype, x=x: f(np.asarray([x + h], dtype)), dtype)
        assert abs(found[0] - slope(x)) <= error[0] < 1e5 * float(np.finfo(dtype).eps) ** 0.8
    assert abs(complex_step(lambda h: f(WIDE(0.7) + h)) - slope(WIDE(0.7))) < 8 * np.finfo(WIDE).eps


def test_examples_keep_away_from_what_they_avoid():
    """No value lies within 0.05 of a point to avoid; spread values are at least 0.6 apart."""
    for seed in range(50):
        x = mg.testing.values(np.random.default_rng(seed), (30,), "any", (0.0, 0.5))
        assert (np.abs(x) >= 0.0499).all() and (np.abs(x - 0.5) >= 0.0499).all()
        assert np.diff(np.sort(mg.testing.values(np.random.default_rng(seed), (30,), "spread"))).min() >= 0.6 - 1e-12


@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 0), (2, 1), (2, 3, 4)])
def test_values_have_the_shape_that_is_asked_for(shape):
    """Of every kind and magnitude, with no axis and without numbers, too."""
    for kind in ("any", "positive", "nonzero", "counts", "ties", "spread", "halves"):
        for magnitude in ("", "large", "small", "far", "farther", "apart", "outlier"):
            x = mg.testing.values(np.random.default_rng(0), shape, kind, (0.0,), magnitude)
            assert x.shape == shape and x.dtype == np.float64 and np.isfinite(x).all(), (kind, magnitude)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_cotangent_is_no_argument(dtype: str):
    """Numbers that are drawn from one seed for two purposes differ, so a rule that takes x for g falls at once."""
    mistaken = subject_of(_op(lambda xp, x: x + 1.0, x=lambda g, x: x * 1.0))
    assert examine("adjoint", mistaken, examples(st.just([(2, 3)])), dtype, examples=3).status == "broken"
    example = Example((np.random.default_rng(0).standard_normal((4, 511)),), seed=0)
    u = Run(subject_of(mg.tanh), example, dtype).cotangent(np.zeros((4, 511), dtype))
    assert abs(np.corrcoef(u.reshape(-1), example.arrays[0].reshape(-1))[0, 1]) < 0.2


# ── commands ──
def test_the_table_is_printed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """One row per op, a mark for each dtype and device under each law, a count at the end; exit 1 when a law is broken."""
    monkeypatch.setattr("sys.argv", ["", "--op", "tanh", "--op", "mul", "--examples", "2"])
    assert __main__.main() == 0
    out = capsys.readouterr().out
    assert "numpy float64, numpy float32, fake float64, fake float32" in out
    rows = {line.split()[0]: line for line in out.splitlines() if line.startswith(("tanh", "mul"))}
    assert rows.keys() == {"tanh", "mul"} and "✗" not in out.split("\n\n", 1)[1].splitlines()[1] and "✓✓✓✓" in rows["tanh"]
    tanh = next(d for d in DOMAINS if d.label == "tanh")
    monkeypatch.setattr(tanh.subject.op, "kernel", lambda xp, x: xp.tanh(x) * 1.01)
    assert __main__.main() == 1
    assert "tanh on numpy: value" in capsys.readouterr().out


@pytest.mark.parametrize("main", [__main__.main, mutate.main])
@pytest.mark.parametrize("argv", [["--op", "no_such"], ["--examples", "0"], ["--every", "0"], ["--device", "nowhere"], ["--minutes", "0"]])
def test_wrong_flags_are_usage_errors(main: Any, argv: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Exit code 2 and a line on stderr."""
    monkeypatch.setattr("sys.argv", ["", *argv])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2 and "Traceback" not in capsys.readouterr().err


def test_pytorch_may_be_named_as_the_truth():
    """torch= puts the law of that name to f; one that is not f breaks it."""
    pytest.importorskip("torch", reason="PyTorch is not installed; pip install torch==2.13.0")
    report = check(mg.tanh, arrays(), torch=lambda t, x: t.tanh(x), laws=["torch"], examples=5)
    assert {v.status for v in report.verdicts} == {"held"}
    with pytest.raises(LawsBroken, match="torch"):
        check(mg.tanh, arrays(), torch=lambda t, x: t.tanh(x) * 1.001, laws=["torch"], examples=5)


def test_the_pages_know_the_laws():
    """The table of docs/testing.md has a row for each law; docs/facts.py has what it says, and how many there are."""
    root = Path(__file__).parents[4]
    table = (root / "docs/testing.md").read_text("utf-8").partition("| law |")[2].partition("\n\n")[0]
    named = [name for row in table.splitlines() if row.startswith("| `") for name in re.findall(r"`(\w+)`", row.split("|")[1])]
    assert sorted(named) == sorted(LAWS)
