"""check(f, *strategies): test the laws on a function, an op or another library's kernel.

The report says which law is broken, and on which example.
"""
from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import hypothesis
import numpy as np

from ... import backend
from .. import fake_cupy
from .laws import LAWS
from .run import Run
from .strategies import Example, Strategy, examples_of
from .subject import Broken, NotApplicable, NotSettled, Subject, subject_of

# After 10 examples Hypothesis mostly varies earlier ones, so there are fewer different sizes.
# Therefore each batch is a new search.
BATCH = 10


@dataclass
class Verdict:
    """The verdict on one law: held, broken or not applicable.

    examples: the number of examples on which the law held. units: the worst error, in units of the
    law's bound. example: the example on which a broken law fails.
    """

    law: str
    dtype: str
    status: str = "not applicable"
    examples: int = 0
    units: float = 0.0
    message: str = ""
    example: Example | None = None
    device: str = "numpy"

    def __str__(self) -> str:
        where = "" if self.device == "numpy" else f" on {self.device}:"
        head = f"{self.law:<15} {self.dtype:<8} {self.status:<15}{where}"
        if self.status == "held":
            return f"{head} {self.examples} examples, at most {self.units:.2g} of the bound"
        if self.status == "broken":
            units = f", {self.units:.3g} units of the bound" if np.isfinite(self.units) else ""
            return f"{head} {self.message}{units}\n{'':16}on {self.example!r}"
        return f"{head} {self.message}"


@dataclass
class Report:
    """All verdicts on one subject; str() of it is a table.

    ok: no law is broken, and at least one held.
    """

    name: str
    verdicts: list[Verdict] = field(default_factory=list)

    @property
    def broken(self) -> list[Verdict]:
        return [v for v in self.verdicts if v.status == "broken"]

    @property
    def ok(self) -> bool:
        return not self.broken and any(v.status == "held" for v in self.verdicts)

    def __str__(self) -> str:
        silent: dict[str, list[str]] = {}
        for v in self.verdicts:
            if v.status == "not applicable" and v.law not in silent.setdefault(v.message, []):
                silent[v.message].append(v.law)
        lines: list[str] = []
        causes = {v.message: [w for w in self.broken if w.message == v.message]
                  for v in self.broken}
        for v in self.verdicts:
            same = causes.get(v.message, [v]) if v.status == "broken" else [v]
            if v.status != "not applicable" and v is same[0]:       # one message for one cause
                lines.append(f"  {v}")
                named, others = ", ".join(dict.fromkeys(w.law for w in same)), len(same) - 1
                if others:
                    lines.append(f"{'':16}and {others} more verdicts have this message: {named}")
        many = f"{len(self.broken)} of {len(self.verdicts)}"
        said = "all laws hold" if self.ok else f"{many} verdicts are broken"
        return "\n".join([f"{self.name}: {said}", *lines,
                          *(f"  not applicable ({reason}): {', '.join(laws)}"
                            for reason, laws in silent.items())])


class LawsBroken(AssertionError):
    """The error that `check` raises; `report` has all verdicts."""

    def __init__(self, report: Report) -> None:
        super().__init__(f"\n{report}")
        self.report = report


def apply(law: str, subject: Subject, example: Example, dtype: str,
          device: str = "numpy") -> float:
    """Test a law on one example; return the share of its bound that the error uses.

    Broken if the law does not hold; NotApplicable if it does not apply.
    """
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)     # as for the mean of an empty array
        try:
            return LAWS[law](Run(subject, example, dtype, device))
        except (NotApplicable, Broken):
            raise
        except (TypeError, ValueError, RuntimeError, AssertionError, BufferError):
            if subject.function is not None or not example.layouts:
                raise
            # another library's function may refuse arrays that are not contiguous
            return LAWS[law](Run(subject, replace(example, layouts=()), dtype, device))


def examine(law: str, subject: Subject, given: Strategy, dtype: str, device: str = "numpy", *,
            examples: int = 100, shrink: bool = True, seed: int = 0) -> Verdict:
    """The verdict on a law after many examples; the same seed draws the same examples.

    shrink: if the law is broken, search for the smallest example that breaks it.
    """
    return examine_all([law], subject, given, dtype, device, examples=examples, shrink=shrink,
                       seed=seed)[0]


def examine_all(laws: Sequence[str], subject: Subject, given: Strategy, dtype: str,
                device: str = "numpy", *, examples: int = 100, shrink: bool = True,
                seed: int = 0) -> list[Verdict]:
    """The verdicts on several laws, on the same examples, which are drawn once.

    shrink: for each broken law a second search finds the smallest example that breaks it.
    """
    found = [_Tally(law, subject, dtype, device) for law in laws]
    for first in range(0, examples, BATCH):
        holding = [tally for tally in found if tally.broken is None]
        if not _batch(holding, given, min(BATCH, examples - first), shrink, f"{seed}/{first}"):
            break
    return [tally.verdict() for tally in found]


class _Died(Exception):
    """The device has died on an example."""


def _batch(holding: Sequence[_Tally], given: Strategy, examples: int, shrink: bool,
           seed: str) -> bool:
    """Test the laws that have held so far on a few more examples; return whether more can be.

    shrink: for each broken law a second search finds the smallest example that breaks it. A device
    that has died breaks every law on every example: only the one on which it died is kept.
    """
    died: list[str] = []

    def attempt(example: Example) -> None:
        for tally in holding:
            if (not died and tally.broken is None and tally.put(example)
                    and not backend.alive(tally.device)):
                died.append(tally.law)
        if died:
            raise _Died

    try:
        _run(attempt, given, examples, False, seed)
    except _Died:
        return False
    for tally in holding:
        if shrink and tally.broken is not None:
            # Flaky: the law is not broken each time; the last example that broke it is kept
            with contextlib.suppress(Broken, hypothesis.errors.Flaky):
                _run(tally.insist, given, examples, True, seed)
    return True


def _run(attempt: Callable[[Example], None], given: Strategy, examples: int, shrink: bool,
         seed: str) -> None:
    """Run attempt on many examples; Hypothesis raises the error of the smallest failing one."""
    phases = [hypothesis.Phase.generate, *([hypothesis.Phase.shrink] if shrink else [])]
    settings = hypothesis.settings(
        max_examples=examples, deadline=None, database=None, report_multiple_bugs=False,
        phases=phases, suppress_health_check=list(hypothesis.HealthCheck),
        verbosity=hypothesis.Verbosity.quiet)
    hypothesis.seed(seed)(settings(hypothesis.given(example=given)(attempt)))()


class _Tally:
    """Counts the results of one law, example by example."""

    def __init__(self, law: str, subject: Subject, dtype: str, device: str) -> None:
        self.law, self.subject, self.dtype, self.device = law, subject, dtype, device
        self.held, self.units, self.reason = 0, 0.0, ""
        self.unsettled = 0
        self.unclear: Example | None = None
        self.broken: Verdict | None = None

    def put(self, example: Example) -> bool:
        """Test the law on one example; return whether it is broken."""
        try:
            share = apply(self.law, self.subject, example, self.dtype, self.device)
            self.units = max(self.units, share)
            self.held += 1
            return False
        except NotSettled as reason:
            self.unsettled, self.reason, self.unclear = self.unsettled + 1, str(reason), example
            return False
        except NotApplicable as reason:
            self.reason = self.reason or str(reason)
            return False
        except Broken as error:
            message, units = str(error), error.units
        except Exception as error:
            message, units = f"{type(error).__name__}: {error}", float("inf")
            if "__array_ufunc__=None" in message and self.device.startswith("fake"):
                message = ("it calls a function of NumPy on an array of another library; "
                           "a kernel must call the functions of xp, its first parameter")
        self.broken = Verdict(self.law, self.dtype, "broken", units=units, message=message,
                              example=example, device=self.device)
        return True

    def insist(self, example: Example) -> None:
        """Test the law on one example; raise Broken if it is broken."""
        if self.put(example):
            raise Broken(self.law)

    def verdict(self) -> Verdict:
        if self.broken is not None:
            return self.broken
        if self.unsettled > max(3, self.held):
            many = f"{self.unsettled} of {self.unsettled + self.held}"
            return Verdict(self.law, self.dtype, "broken", units=float("inf"),
                           message=f"{self.reason}, on {many} examples", example=self.unclear,
                           device=self.device)
        status = "held" if self.held else "not applicable"
        return Verdict(self.law, self.dtype, status, self.held, self.units, self.reason,
                       device=self.device)


def check(f: Any, *strategies: Strategy, vjp: Callable[..., Any] | None = None,
          oracle: Callable[..., Any] | None = None, definition: Callable[..., Any] | None = None,
          torch: Callable[..., Any] | None = None, laws: Sequence[str] | None = None,
          dtypes: Sequence[str] = ("float64", "float32"), device: str | None = None,
          examples: int = 100, seed: int = 0, **settings: Any) -> Report:
    """Test the laws on f; raise LawsBroken, with a report, if one is broken.

    f: an op, a function of Tensors that returns a Tensor or a tuple of them, or, with `vjp`, a
    function of plain arrays.
    strategies: one for each array argument (`arrays(...)`), or one for all of them
    (`broadcastable(2)`).
    settings: the other arguments, by name: values, or strategies of values.
    vjp(cotangent, *arrays, **settings): another library's gradient of f, one array for each
    argument (a tuple, or the array itself).
    oracle: an independent definition on NumPy arrays; it must accept complex numbers, because its
    derivative is computed by complex step.
    definition: a function of Tensors that f must equal, such as `mg.softmax` for your softmax.
    device: the device for the tests; by default NumPy, and for an op also the fake GPU, on which it
    is tested with a fifth of the examples.
    seed: another seed draws other examples.
    torch: PyTorch's function, called as torch(torch_module, *tensors, **settings).
    """
    subject = subject_of(f)
    if vjp is not None:
        subject = Subject(subject.name, None, value=f, pull=vjp)
    subject = replace(subject, oracle=oracle, definition=definition or subject.definition,
                      torch=torch or subject.torch)
    if unknown := [name for name in laws or () if name not in LAWS]:
        raise ValueError(f"check: there is no law {unknown[0]!r}; the laws are {', '.join(LAWS)}")
    if not strategies:
        raise ValueError("check: pass one strategy for each array argument, "
                         "as in check(mg.tanh, arrays())")
    given, report = examples_of(strategies, settings), Report(subject.name)
    devices = {device or "numpy": examples}
    if device is None and subject.op is not None:
        fake_cupy.install()
        devices["fake"] = max(1, examples // 5)
    for where, many in devices.items():
        for dtype in dtypes:
            report.verdicts += examine_all([*(laws or LAWS)], subject, given, dtype, where,
                                           examples=many, seed=seed)
    if not report.ok:
        raise LawsBroken(report)
    return report
