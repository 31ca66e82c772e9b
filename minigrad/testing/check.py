"""check(f, *strategies): put a function, an op or somebody else's kernel to the laws, and read what broke."""
from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import hypothesis
import numpy as np

from .laws import LAWS
from .strategies import Example, Strategy, examples_of
from .subject import Broken, NotApplicable, Run, Subject, subject_of


@dataclass
class Verdict:
    """What one law said: held, broken or not applicable; the worst error in units of its bound, and on which example."""

    law: str
    dtype: str
    status: str = "not applicable"
    examples: int = 0
    units: float = 0.0
    message: str = ""
    example: Example | None = None

    def __str__(self) -> str:
        head = f"{self.law:<15} {self.dtype:<8} {self.status:<15}"
        if self.status == "held":
            return f"{head} {self.examples} examples, at most {self.units:.2g} of the bound"
        if self.status == "broken":
            units = f", {self.units:.3g} units of the bound" if np.isfinite(self.units) else ""
            return f"{head} {self.message}{units}\n{'':16}on {self.example!r}"
        return f"{head} {self.message}"


@dataclass
class Report:
    """All verdicts on one subject. It prints as a table; `ok` when nothing broke and something held."""

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
        said = "all laws hold" if self.ok else f"{len(self.broken)} of {len(self.verdicts)} verdicts are broken"
        return "\n".join([f"{self.name}: {said}", *(f"  {v}" for v in self.verdicts if v.status != "not applicable"),
                          *(f"  not asked of it ({reason}): {', '.join(laws)}" for reason, laws in silent.items())])


class LawsBroken(AssertionError):
    """What `check` raises; `report` has it all."""

    def __init__(self, report: Report) -> None:
        super().__init__(f"\n{report}")
        self.report = report


def apply(law: str, subject: Subject, example: Example, dtype: str, device: str = "numpy") -> float:
    """One law on one example: the share of its bound that was used. Broken or NotApplicable otherwise."""
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)     # means of nothing, as NumPy warns of them
        return LAWS[law](Run(subject, example, dtype, device))


def examine(law: str, subject: Subject, given: Strategy, dtype: str, device: str = "numpy", *, examples: int = 100,
            shrink: bool = True) -> Verdict:
    """A law over many examples, the same each time. A broken one is shrunk to the smallest example that still breaks it."""
    verdict, worst = Verdict(law, dtype), Verdict(law, dtype, "broken")

    def attempt(example: Example) -> None:
        try:
            verdict.units = max(verdict.units, apply(law, subject, example, dtype, device))
        except NotApplicable as reason:
            verdict.message = str(reason)
            return
        except Broken as error:
            worst.message, worst.units, worst.example = str(error), error.units, example
            raise
        except Exception as error:
            worst.message, worst.units, worst.example = f"{type(error).__name__}: {error}", float("inf"), example
            raise Broken(worst.message) from error
        verdict.status, verdict.examples = "held", verdict.examples + 1

    phases = [hypothesis.Phase.generate, *([hypothesis.Phase.shrink] if shrink else [])]
    settings = hypothesis.settings(max_examples=examples, derandomize=True, deadline=None, database=None, report_multiple_bugs=False,
                                   phases=phases, suppress_health_check=list(hypothesis.HealthCheck), verbosity=hypothesis.Verbosity.quiet)
    try:
        settings(hypothesis.given(example=given)(attempt))()
    except Broken:
        return worst
    return verdict


def check(f: Any, *strategies: Strategy, vjp: Callable[..., Any] | None = None, oracle: Callable[..., Any] | None = None,
          definition: Callable[..., Any] | None = None, torch: Callable[..., Any] | None = None, laws: Sequence[str] | None = None,
          dtypes: Sequence[str] = ("float64", "float32"), device: str = "numpy", examples: int = 100, **settings: Any) -> Report:
    """Put f to the laws; LawsBroken, with a report, if one breaks.

    f: an op, a function of Tensors that returns a Tensor or a tuple of them, or, with `vjp`, a function of plain arrays.
    strategies: one for each array argument (`arrays(...)`), or one that gives a tuple of them (`broadcastable(2)`).
    settings: the other arguments, by name: values, or strategies of values.
    vjp(cotangent, *arrays, **settings): somebody else's gradient of f, one array per argument (a tuple, or the array itself).
    oracle: an independent definition on NumPy arrays; it must take complex numbers, for the complex step.
    definition: a function of Tensors that f must equal, such as `mg.softmax` for a softmax of yours.
    torch: PyTorch's, as f(torch, *tensors, **settings).
    """
    subject = subject_of(f)
    if vjp is not None:
        subject = Subject(subject.name, None, value=f, pull=vjp)
    subject = replace(subject, oracle=oracle, definition=definition or subject.definition, torch=torch or subject.torch)
    if unknown := [name for name in laws or () if name not in LAWS]:
        raise ValueError(f"check: there is no law {unknown[0]!r}; the laws are {', '.join(LAWS)}")
    if not strategies:
        raise ValueError("check: give one strategy for each array argument, as in check(mg.tanh, arrays())")
    given, report = examples_of(strategies, settings), Report(subject.name)
    for dtype in dtypes:
        for law in laws or LAWS:
            report.verdicts.append(examine(law, subject, given, dtype, device, examples=examples))
    if not report.ok:
        raise LawsBroken(report)
    return report
