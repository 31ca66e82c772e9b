"""check(f, *strategies): put a function, an op or somebody else's kernel to the laws.

The report says what broke, and on which example.
"""
from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import hypothesis
import numpy as np

from .. import fake_cupy
from .laws import LAWS
from .run import Run
from .strategies import Example, Strategy, examples_of
from .subject import Broken, NotApplicable, NotSettled, Subject, subject_of

# beyond 10 examples Hypothesis mostly varies those it has; their sizes would be less mixed
BATCH = 10


@dataclass
class Verdict:
    """What one law said: held, broken or not applicable.

    It has the worst error, in units of its bound, and the example on which it was found.
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
    """All verdicts on one subject, which print as a table.

    It is `ok` when nothing broke and something held.
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
                    lines.append(f"{'':16}and {others} verdicts more say the same: {named}")
        many = f"{len(self.broken)} of {len(self.verdicts)}"
        said = "all laws hold" if self.ok else f"{many} verdicts are broken"
        return "\n".join([f"{self.name}: {said}", *lines,
                          *(f"  not asked of it ({reason}): {', '.join(laws)}"
                            for reason, laws in silent.items())])


class LawsBroken(AssertionError):
    """What `check` raises; `report` has it all."""

    def __init__(self, report: Report) -> None:
        super().__init__(f"\n{report}")
        self.report = report


def apply(law: str, subject: Subject, example: Example, dtype: str,
          device: str = "numpy") -> float:
    """One law on one example: the share of its bound that was used.

    Broken or NotApplicable otherwise.
    """
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)     # means of nothing: NumPy warns of them
        try:
            return LAWS[law](Run(subject, example, dtype, device))
        except (NotApplicable, Broken):
            raise
        except (TypeError, ValueError, RuntimeError, AssertionError, BufferError):
            if subject.function is not None or not example.layouts:
                raise
            # it may refuse arrays that are not contiguous: an error is no wrong number
            return LAWS[law](Run(subject, replace(example, layouts=()), dtype, device))


def examine(law: str, subject: Subject, given: Strategy, dtype: str, device: str = "numpy", *,
            examples: int = 100, shrink: bool = True, seed: int = 0) -> Verdict:
    """A law over many examples, the same each time for a seed.

    A broken one is shrunk to the smallest example that still breaks it.
    """
    return examine_all([law], subject, given, dtype, device, examples=examples, shrink=shrink,
                       seed=seed)[0]


def examine_all(laws: Sequence[str], subject: Subject, given: Strategy, dtype: str,
                device: str = "numpy", *, examples: int = 100, shrink: bool = True,
                seed: int = 0) -> list[Verdict]:
    """Several laws over the same examples, which are drawn once.

    What breaks is looked for again on its own, to be shrunk.
    """
    found = [_Tally(law, subject, dtype, device) for law in laws]
    for first in range(0, examples, BATCH):
        holding = [tally for tally in found if tally.broken is None]
        _batch(holding, given, min(BATCH, examples - first), shrink, f"{seed}/{first}")
    return [tally.verdict() for tally in found]


def _batch(holding: Sequence[_Tally], given: Strategy, examples: int, shrink: bool,
           seed: str) -> None:
    """Put the laws that hold so far to a few examples.

    What breaks is looked for again, to be shrunk.
    """
    def attempt(example: Example) -> None:
        for tally in holding:
            if tally.broken is None:
                tally.put(example)

    _run(attempt, given, examples, False, seed)
    for tally in holding:
        if shrink and tally.broken is not None:
            # flaky: it does not break each time
            with contextlib.suppress(Broken, hypothesis.errors.Flaky):
                _run(tally.insist, given, examples, True, seed)


def _run(attempt: Callable[[Example], None], given: Strategy, examples: int, shrink: bool,
         seed: str) -> None:
    """attempt on each of many examples; Hypothesis raises what the smallest of them raises."""
    phases = [hypothesis.Phase.generate, *([hypothesis.Phase.shrink] if shrink else [])]
    settings = hypothesis.settings(
        max_examples=examples, deadline=None, database=None, report_multiple_bugs=False,
        phases=phases, suppress_health_check=list(hypothesis.HealthCheck),
        verbosity=hypothesis.Verbosity.quiet)
    hypothesis.seed(seed)(settings(hypothesis.given(example=given)(attempt)))()


class _Tally:
    """What a law said of one example after the other."""

    def __init__(self, law: str, subject: Subject, dtype: str, device: str) -> None:
        self.law, self.subject, self.dtype, self.device = law, subject, dtype, device
        self.held, self.units, self.reason = 0, 0.0, ""
        self.unsettled = 0
        self.unclear: Example | None = None
        self.broken: Verdict | None = None

    def put(self, example: Example) -> bool:
        """Put the law to one example; whether it breaks."""
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
            if "__array_ufunc__=None" in message and self.device.startswith("double"):
                message = ("it calls functions of NumPy on arrays of another library; "
                           "a kernel calls those of xp, its first parameter")
        self.broken = Verdict(self.law, self.dtype, "broken", units=units, message=message,
                              example=example, device=self.device)
        return True

    def insist(self, example: Example) -> None:
        """The same; Broken where it breaks."""
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
    """Put f to the laws; LawsBroken, with a report, if one breaks.

    f: an op, a function of Tensors that returns a Tensor or a tuple of them, or, with `vjp`, a
    function of plain arrays.
    strategies: one for each array argument (`arrays(...)`), or one that gives a tuple of them
    (`broadcastable(2)`).
    settings: the other arguments, by name: values, or strategies of values.
    vjp(cotangent, *arrays, **settings): somebody else's gradient of f, one array per argument (a
    tuple, or the array itself).
    oracle: an independent definition on NumPy arrays; it must take complex numbers, for the complex
    step.
    definition: a function of Tensors that f must equal, such as `mg.softmax` for your softmax.
    device: where the laws are asked; without it on NumPy, and of an op also on the double of CuPy,
    with a fifth of the examples.
    seed: another number chooses other examples.
    torch: PyTorch's, as f(torch, *tensors, **settings).
    """
    subject = subject_of(f)
    if vjp is not None:
        subject = Subject(subject.name, None, value=f, pull=vjp)
    subject = replace(subject, oracle=oracle, definition=definition or subject.definition,
                      torch=torch or subject.torch)
    if unknown := [name for name in laws or () if name not in LAWS]:
        raise ValueError(f"check: there is no law {unknown[0]!r}; the laws are {', '.join(LAWS)}")
    if not strategies:
        raise ValueError("check: give one strategy for each array argument, "
                         "as in check(mg.tanh, arrays())")
    given, report = examples_of(strategies, settings), Report(subject.name)
    devices = {device or "numpy": examples}
    if device is None and subject.op is not None:
        fake_cupy.install()
        devices["double"] = max(1, examples // 5)
    for where, many in devices.items():
        for dtype in dtypes:
            report.verdicts += examine_all([*(laws or LAWS)], subject, given, dtype, where,
                                           examples=many, seed=seed)
    if not report.ok:
        raise LawsBroken(report)
    return report
