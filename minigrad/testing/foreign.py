"""python -m minigrad.testing --exec PROGRAM --op NAME: tests the laws on another program.

docs/any-language.md explains the protocol. The exit code is 0 if all laws hold, 1 if one is broken
or nothing was tested, 2 for wrong flags, 3 if the program cannot be run.
"""
from __future__ import annotations

import argparse
import importlib
import inspect
import json
import os
import sys
from dataclasses import replace
from typing import Any

import hypothesis
import numpy as np

from .. import backend
from ..backend.base import half
from ..engine.graph import no_grad
from ..engine.tensor import Tensor
from ..errors import MinigradError
from .domains import Domain, lines_of
from .laws.check import Report, Verdict, examine
from .laws.laws import LAWS
from .laws.strategies import Example, Strategy, arrays, examples_of
from .laws.subject import NotApplicable, Subject, flat, host
from .program import CannotRun, Failure, Hung, Program, Unsayable, inputs_of, message, said

KINDS = ("any", "positive", "nonzero", "spread")
# Laws that are not tested: a program gets copies of the arrays, and is not compared with PyTorch.
NOT_ASKED = ("pure", "torch")
TRIES = 10                          # the program must answer one of this many examples
HELD, BROKEN, CANNOT_RUN = 0, 1, 3  # exit codes; argparse exits with 2 for wrong flags


def flags(p: argparse.ArgumentParser) -> None:
    """Add the flags for --exec and --describe."""
    g = p.add_argument_group("a program in any language (docs/any-language.md has the protocol)")
    g.add_argument("--exec", metavar="COMMAND",
                   help="test the laws of --op or --definition on a program, such as ./softmax")
    g.add_argument("--describe", action="store_true",
                   help="print the names of the inputs and settings, and an example of a message")
    g.add_argument("--definition", metavar="MODULE:FUNCTION",
                   help="a function of Tensors that the program must equal")
    g.add_argument("--array", action="append", metavar="SHAPE[:KIND]",
                   help="shape and kind of one argument of --definition, such as 4,8 or "
                        f"any:positive; the kinds are {', '.join(KINDS)}")
    g.add_argument("--set", action="append", metavar="NAME=JSON",
                   help="give a setting the same value in all examples, such as axis=-1")
    g.add_argument("--dtype", action="append",
                   choices=("float64", "float32", "float16", "bfloat16"),
                   help="dtype of the arrays (repeatable; default float64 and float32)")
    g.add_argument("--no-vjp", action="store_true",
                   help="the program has no gradient; only its value is tested")
    g.add_argument("--timeout", type=float, metavar="SECONDS",
                   help="time limit for each answer (default 10)")


def main(p: argparse.ArgumentParser, args: argparse.Namespace) -> int:
    """Run the command with --exec or --describe."""
    if len([*(args.op or ()), *([] if args.definition is None else [args.definition])]) != 1:
        p.error("--exec and --describe take one --op, "
                "or one --definition with an --array for each argument")
    if args.array and args.definition is None:
        p.error("--array goes with --definition; an --op has its own examples")
    if args.device:
        p.error("--device chooses where ops of minigrad are tested; "
                "a program decides for itself where it computes")
    if args.timeout is not None and not 0.0 < args.timeout < 1e6:
        p.error(f"--timeout {args.timeout:g}: write a number of seconds above 0")
    try:
        fixed = dict(map(_setting, args.set or ()))
        lines = [_defined(args, fixed)] if args.definition else _of_op(args.op[0], fixed)
        dtypes = args.dtype or ["float64", "float32"]
        for dtype in dtypes:
            backend.dtype(dtype)                        # bfloat16 needs a package
        samples = [drawn(line.examples, 30) for line in lines]
        for line, some in zip(lines, samples):
            _fits(line, some, dtypes)
        if args.describe:
            print("\n\n".join(described(line, some, dtypes[-1])
                              for line, some in zip(lines, samples)))
            return 0
    except (ValueError, Unsayable, MinigradError) as error:
        p.error(str(error))
    return judge(args, lines, samples, dtypes)


# ── what is tested ──
def _setting(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    try:
        found = json.loads(value)
    except ValueError:
        if not equals:
            raise ValueError(f"--set {text}: write NAME=JSON, such as axis=-1") from None
        raise ValueError(f"--set {text}: {value!r} is not JSON; "
                         f"put a text in quotes, as in '{name}=\"{value}\"'") from None
    return name, tuple(found) if isinstance(found, list) else found


def _of_op(name: str, fixed: dict[str, Any]) -> list[Domain]:
    """The op's lines in the table of domains on which it has derivatives.

    fixed: values that replace the settings of the examples.
    """
    lines = [line for line in lines_of(name) if line.smooth]
    if not lines:
        raise ValueError(f"--op {name}: it has no derivatives to judge")
    known = {setting for line in lines for e in drawn(line.examples, 5)
             for setting in e.settings} if fixed else set()
    for setting in fixed.keys() - known:
        raise ValueError(f"--set {setting}: the settings of {name} are "
                         f"{', '.join(sorted(known)) or 'none'}")

    def settle(e: Example) -> Example:
        return replace(e, settings={k: fixed.get(k, v) for k, v in e.settings.items()})

    return [replace(line, examples=line.examples.map(settle)) for line in lines]


def _defined(args: argparse.Namespace, fixed: dict[str, Any]) -> Domain:
    """A new line of the table, for the function of --definition and the arrays of --array."""
    module, colon, name = args.definition.partition(":")
    if not (module and colon and name):
        raise ValueError(f"--definition {args.definition}: "
                         "write MODULE:FUNCTION, such as minigrad:softmax")
    sys.path[:0] = [os.getcwd()]
    try:
        f = importlib.import_module(module)
        for part in name.split("."):
            f = getattr(f, part)
    except Exception as error:
        raise ValueError(f"--definition {args.definition}: "
                         f"{type(error).__name__}: {_line(error)}") from None
    if not callable(f):
        raise ValueError(f"--definition {args.definition}: it is not a function")
    given = [_array(text) for text in args.array or ()]
    if not given:
        raise ValueError(f"--definition {args.definition}: "
                         "give the shape of each argument with --array, such as --array 4,8")
    settings = getattr(f, "settings", {})               # an op's settings are not arrays
    try:
        parameters = [p.replace(kind=p.KEYWORD_ONLY) if p.name in settings else p
                      for p in inspect.signature(f).parameters.values()]
        inspect.Signature(parameters).bind(*given, **fixed)
    except TypeError as error:
        raise ValueError(f"--definition {args.definition}: {error} "
                         f"(--array gives {len(given)}, --set {len(fixed)})") from None

    def value(*xs: Any, **more: Any) -> Any:
        """f as an oracle; unlike other oracles it accepts only real numbers."""
        return host(flat(f(*map(Tensor, xs), **more)))

    oracle = value if args.no_vjp else None
    return Domain(name, Subject(name, f, oracle), examples_of(given, fixed), 3)


def _array(text: str) -> Strategy:
    shape, _, kind = text.partition(":")
    if kind and kind not in KINDS:
        raise ValueError(f"--array {text}: the kinds are {', '.join(KINDS)}")
    sizes = [s for s in shape.split(",") if s]
    if shape != "any" and not all(s.isdecimal() for s in sizes):
        raise ValueError(f"--array {text}: write a shape such as 4,8, or the word any")
    return arrays(None if shape == "any" else tuple(map(int, sizes)), kind or "any")


def drawn(given: Strategy, count: int) -> list[Example]:
    """The first `count` examples of a strategy; they are the same each time."""
    found: list[Example] = []
    settings = hypothesis.settings(
        max_examples=count, derandomize=True, deadline=None, database=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck))
    settings(hypothesis.given(example=given)(lambda example: found.append(example)))()
    return found


def _fits(line: Domain, examples: list[Example], dtypes: list[str]) -> None:
    """Raise ValueError if the definition fails, or if its results cannot be tested.

    Unsayable if the protocol cannot express one of the settings.
    """
    for example in examples:
        message("", example.settings, {})
    f, example = line.subject.function, examples[0]
    assert f is not None
    for dtype in dtypes:
        try:
            with no_grad():
                given = [Tensor(np.asarray(a, backend.dtype(dtype))) for a in example.arrays]
                y = flat(f(*given, **example.settings))
        except Exception as error:
            raise ValueError(f"{line.label}: the definition fails on {example!r}: "
                             f"{_line(error)}") from None
        if half(np.dtype(backend.dtype(dtype))) and y.dtype != dtype:
            raise ValueError(f"--dtype {dtype}: the value of {line.label} is then {y.dtype}; "
                             "a program is tested in 16 bits only if its value has the same dtype")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


def described(line: Domain, examples: list[Example], dtype: str) -> str:
    """The names of a line's inputs, constants and settings, and a message that a program gets."""
    f = line.subject.function
    assert f is not None
    example = max(examples,
                  key=lambda e: (min(a.size for a in e.arrays), sum(a.size for a in e.arrays)))
    names = inputs_of(f, len(example.arrays))
    some: dict[str, list[str]] = {}
    for e in examples:
        for name, v in e.settings.items():
            text = f"an array of {v.dtype.name}" if isinstance(v, np.ndarray) else said(name, v)
            if text not in some.setdefault(name, []):
                some[name].append(text)
    head = " ".join((inspect.getdoc(f) or "").partition("\n\n")[0].split())
    told = [f"{line.label}: {head}" if head else line.label, f"  inputs    {', '.join(names)}"]
    told += [f"  setting   {name}: {', '.join(seen[:4])}{', …' if len(seen) > 4 else ''}"
             for name, seen in some.items()]
    kind = np.dtype(backend.dtype(dtype))
    inputs = {name: np.asarray(a, kind) for name, a in zip(names, example.arrays)}
    with no_grad():
        y = flat(f(*map(Tensor, inputs.values()), **example.settings)).array
    for asks_for, call, more in [("the value", "value", {}),
                                 ("the gradients", "vjp", {"cotangent": y})]:
        question = message(call, example.settings, {**inputs, **more}, numbers=False).decode()
        answer = message("", {}, inputs if more else {"value": y}, numbers=False).decode()
        told += [f"\na question that asks for {asks_for}:", *_indented(question),
                 "the answer:", *_indented(answer)]
    return "\n".join(told)


def _indented(text: str) -> list[str]:
    return [f"    {line}" for line in text.splitlines()]


# ── the tests ──
def judge(args: argparse.Namespace, lines: list[Domain], samples: list[list[Example]],
          dtypes: list[str]) -> int:
    """Test every law on every line until the program fails; print a report.

    It returns the exit code.
    """
    held = broken = 0
    for line, some in zip(lines, samples):
        f = line.subject.function
        assert f is not None
        op = line.subject.op
        wants = not args.no_vjp and (op is None or bool(op.rules or op.joint))
        with Program(args.exec, f, args.timeout or 10.0) as program:
            if not (held or broken) and (why := _runs(program, some, dtypes)):
                print(f"minigrad.testing: --exec {args.exec}: {why}", file=sys.stderr)
                return CANNOT_RUN
            subject = program.subject(line.label, vjp=wants, oracle=line.subject.oracle)
            report, stopped = _report(program, subject, line, dtypes, args.examples or 100)
        print(report if report.verdicts else f"{line.label}: the program skipped every example")
        for reason, n in program.skipped.most_common():
            print(f"  the program skipped {n} questions: {reason}")
        held += sum(v.status == "held" for v in report.verdicts)
        broken += len(report.broken)
        if stopped:
            break
    if not held and not broken:
        print("minigrad.testing: no law was tested", file=sys.stderr)
    return BROKEN if broken or not held else HELD


def _runs(program: Program, examples: list[Example], dtypes: list[str]) -> str:
    """Why the program cannot be run; "" if it answers or skips one of the first examples.

    An answer with `error` counts as well: the program then follows the protocol.
    """
    said = ""
    for example in examples[:TRIES]:
        given = [np.asarray(a, np.dtype(backend.dtype(dtypes[0]))) for a in example.arrays]
        try:
            program.value(*given, **example.settings)
        except NotApplicable:
            pass
        except (CannotRun, Hung) as error:
            return str(error)
        except Failure as error:
            said = said or str(error)
        if program.spoke:
            program.skipped.clear()
            return ""
    return said


def _report(program: Program, subject: Subject, line: Domain, dtypes: list[str],
            examples: int) -> tuple[Report, bool]:
    """The verdicts on one line of the table, and whether the program has failed.

    After a failure no further law is tested, because each would have the same verdict.
    """
    report = Report(subject.name)
    for dtype in dtypes:
        for law in LAWS:
            if law in NOT_ASKED or not line.asks(law):
                continue
            try:
                verdict = examine(law, subject, line.examples, dtype, examples=examples)
            except Hung as error:
                verdict = Verdict(law, dtype, "broken", message=str(error), units=float("inf"),
                                  example=error.example)
                program.failures.add(verdict.message)
            if verdict.status != "not applicable":
                report.verdicts.append(verdict)
            if verdict.message in program.failures:
                return report, True
    return report, False
