"""python -m minigrad.testing.mutate: break every rule on purpose, and check that a law notices it.

A mutant is one rule broken in one way. Its source may have one change: a term, a factor or a
function is left out (also sum_to, which undoes broadcasting), a sign, an axis, a constant or a
comparison is changed, or another residual is used. Or its result is multiplied by 1.01 or negated,
or the engine does not undo its broadcasting. The results of kernels and of a backend's faster rules
are changed in the same way. If no law notices a mutant, the run fails, unless EQUIVALENT says why
the change is not a mistake.
"""
from __future__ import annotations

import argparse
import ast
import contextlib
import copy
import importlib.util
import inspect
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from .. import backend
from ..engine.saved import Plan
from ..op import REGISTRY, Op, Rule, Saved
from .domains import lines_of
from .laws.check import examine
from .laws.laws import LAWS
from .mutate_text import alternatives, compiled, replaced

# The laws that are most likely to notice a mutant come first, and the slowest come last.
FIRST = {"adjoint": 0, "torch": 1, "value": 2, "third_adjoint": 4}
ORDER = sorted(LAWS, key=lambda law: FIRST.get(law, 3))
INFINITE = ("the result differs only where the gradient is infinite, "
            "which tests/minigrad/test_corners.py tests")
EQUIVALENT: dict[str, str] = {
    "power: ∂a: 1.01 for 1.0": "at a = b = 0 every positive exponent gives 0",
    "power: ∂b: sign(b) for sign(b) * math.inf": "out is ∞ where b < 0, and ∞ · −1 = ∞ · −∞",
    "power: ∂b: sign(b) / math.inf for sign(b) * math.inf": INFINITE,
    "power: ∂b: a == 0.0 for (a == 0.0) * (b >= 0.0)": INFINITE,
    "norm: ∂x: 1.01 for 1.0": "the number replaces a norm of 0, and there x is 0 as well",
    "attention: all ∂: p >= 0.0 for p > 0.0": "dropout with p = 0 drops nothing",
    "relu: ∂x: x kept for out":
        "x > 0 where out > 0; the tests' table of residuals says that out is saved",
}


@dataclass(frozen=True)
class Mutant:
    """One way to break one op; inside the context install() the op is broken."""

    op: str
    what: str
    install: Callable[[], contextlib.AbstractContextManager[None]]

    def __str__(self) -> str:
        return f"{self.op}: {self.what}"


# ── source texts ──
def source_of(f: Callable[..., Any]) -> ast.Lambda | ast.FunctionDef:
    """The syntax tree of a function or lambda, which is found in its file."""
    code, tree = f.__code__, ast.parse(Path(f.__code__.co_filename).read_text("utf-8"))
    names = code.co_varnames[:code.co_argcount]
    found = [n for n in ast.walk(tree) if isinstance(n, ast.Lambda | ast.FunctionDef)
             and tuple(a.arg for a in n.args.args) == names and n.lineno == code.co_firstlineno
             and getattr(n, "name", "<lambda>") == f.__name__]
    same = [n for n in found if compiled(n, f).__code__.co_code == code.co_code] or found
    return same[0]


def texts(rule: Rule, op: Op) -> Iterator[tuple[str, Callable[..., Any]]]:
    """Every function whose source is the rule's with one change, and what was changed."""
    def pieces(tree: ast.Lambda | ast.FunctionDef) -> list[ast.AST]:
        parts = tree.body if isinstance(tree.body, list) else [tree.body]
        return [n for part in parts for n in ast.walk(part)]

    tree = source_of(rule.function)
    for node in pieces(tree):
        for what, new in alternatives(node):
            yield what, compiled(replaced(tree, node, new), rule.function)
    residuals = [n for n in rule.needs if n not in op.settings]
    for name in residuals:                              # another residual under the same name
        for other in [*op.args, "out"]:
            if not op.variadic and name in (*op.args, "out") and other not in residuals \
                    and op.source(other)[0] in ("arg", "out"):
                changed = copy.deepcopy(tree)
                for a in changed.args.args:
                    a.arg = other if a.arg == name else a.arg
                for n in ast.walk(changed):
                    if isinstance(n, ast.Name) and n.id == name:
                        n.id = other
                yield f"{other} kept for {name}", compiled(changed, rule.function)


# ── mutants ──
@contextlib.contextmanager
def _ruled(op: Op, arg: str | None, function: Callable[..., Any]) -> Iterator[None]:
    """Inside the block `function` is a rule of op, and the backend's faster rule is switched off.

    arg: the argument that the rule is for, or None for the joint rule.
    """
    new = Rule(function, f"{op.name}/{arg or 'joint'}")
    rules = _set(op, "rules", {**op.rules, arg: new}) if arg else _set(op, "joint", new)
    fresh = _set(op, "plan", cache(partial(Plan, op)))
    with rules, _set(op, "plans", {}), fresh, _set(backend.cpu, "kernels", _without(new.key)):
        yield


@contextlib.contextmanager
def _set(owner: Any, name: str, value: Any) -> Iterator[None]:
    old = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, old)


@contextlib.contextmanager
def _computed(op: Op, kernel: Callable[..., Any]) -> Iterator[None]:
    """Inside the block `kernel` is op's kernel, and the backend's faster kernel is switched off."""
    with _set(op, "kernel", kernel), _set(backend.cpu, "kernels", _without(op.name)):
        yield


def _without(key: str) -> dict[str, Callable[..., Any]]:
    """The NumPy backend's kernels except one."""
    return {k: f for k, f in backend.cpu.kernels.items() if k != key}


def _faster(key: str, f: Callable[..., Any]) -> contextlib.AbstractContextManager[None]:
    """Inside the block f replaces the NumPy backend's kernel of that name."""
    return _set(backend.cpu, "kernels", {**backend.cpu.kernels, key: f})


def _spoiled(f: Callable[..., Any], spoil: Callable[[Any], Any],
             which: int | None = None) -> Callable[..., Any]:
    """f with a spoiled result. which: the number of the result to spoil, if f returns several."""
    def made(*args: Any, **settings: Any) -> Any:
        out = f(*args, **settings)
        if type(out) is Saved:
            out.out = spoil(out.out)
            return out
        if isinstance(out, tuple) and which is not None:
            return tuple(spoil(o) if i == which and o is not None else o for i, o in enumerate(out))
        return tuple(map(spoil, out)) if isinstance(out, tuple) else spoil(out)

    # the parameters of the signature name the residuals
    made.__signature__ = inspect.signature(f)  # type: ignore[attr-defined]
    return made


SPOILS: dict[str, Callable[[Any], Any]] = {"times 1.01": lambda x: x * 1.01,
                                           "negated": lambda x: -x}


def mutants(op: Op) -> Iterator[Mutant]:
    """All mutants of op; no two have the same name."""
    seen = Counter[str]()
    for mutant in _mutants(op):
        seen[mutant.what] += 1
        times = seen[mutant.what]
        yield mutant if times == 1 else replace(mutant, what=f"{mutant.what} ({times})")


def _mutants(op: Op) -> Iterator[Mutant]:
    rules: list[tuple[str | None, Rule]] = [*op.rules.items()]
    rules += [(None, op.joint)] if op.joint else []
    for arg, rule in rules:
        where = f"∂{arg}" if arg else "all ∂"
        slots = [None] if arg else list(op.differentiable) if not op.variadic else [0]
        for slot in slots:
            name = where if slot is None else f"∂{op.args[slot]}{'[0]' if op.variadic else ''}"
            for what, spoil in SPOILS.items():
                f = _spoiled(rule.function, spoil, slot)
                yield Mutant(op.name, f"{name} {what}", partial(_ruled, op, arg, f))
        for what, f in texts(rule, op):
            yield Mutant(op.name, f"{where}: {what}", partial(_ruled, op, arg, f))
        fast = backend.cpu.kernels.get(rule.key)
        if fast is not None:
            for slot in slots:
                name = where if slot is None else f"∂{op.args[slot]}"
                f = _spoiled(fast, SPOILS["times 1.01"], slot)
                yield Mutant(op.name, f"the faster {name} times 1.01",
                             partial(_faster, rule.key, f))
    if op.elementwise and len(op.args) > 1:
        yield Mutant(op.name, "broadcasting is not undone", partial(_set, op, "elementwise", False))
    if op.differentiable:
        for what, spoil in SPOILS.items():
            spoiled = _spoiled(op.kernel, spoil)
            yield Mutant(op.name, f"the value {what}", partial(_computed, op, spoiled))
        if op.name in backend.cpu.kernels:
            f = _spoiled(backend.cpu.kernels[op.name], SPOILS["times 1.01"])
            yield Mutant(op.name, "the faster value times 1.01", partial(_faster, op.name, f))


def killer(mutant: Mutant, examples: int = 25) -> str | None:
    """The first law that notices the mutant, or None."""
    with mutant.install():
        for dtype in ("float64", "float32"):
            for law in ORDER:
                for line in lines_of(mutant.op):
                    if line.asks(law):
                        verdict = examine(law, line.subject, line.examples, dtype,
                                          examples=examples, shrink=False)
                        if verdict.status == "broken":
                            return law
    return None


def main() -> int:
    p = argparse.ArgumentParser(prog="python -m minigrad.testing.mutate",
                                description=__doc__.partition(":")[2].strip())
    p.add_argument("--op", action="append", choices=list(REGISTRY), metavar="NAME",
                   help="only this op (repeatable)")
    p.add_argument("--every", type=int, default=1, metavar="N", help="only every Nth mutant")
    args = p.parse_args()
    if args.every < 1:
        p.error(f"--every must be at least 1, not {args.every}")
    if importlib.util.find_spec("torch") is None:
        print("minigrad.testing.mutate needs PyTorch, because some mutants are noticed only by the "
              "law `torch`: pip install torch", file=sys.stderr)
        return 3
    survivors, wrong, total, kills = [], [], 0, Counter[str]()
    for name in args.op or REGISTRY:
        started, by = time.perf_counter(), Counter[str]()
        chosen = list(mutants(REGISTRY[name]))[::args.every]
        for mutant in chosen:
            law = killer(mutant)
            by[law or "no law"] += 1
            if law is None and str(mutant) not in EQUIVALENT:
                survivors.append(mutant)
            elif law is not None and str(mutant) in EQUIVALENT:
                wrong.append(mutant)
        total += len(chosen)
        kills += by
        if chosen:
            killers = ", ".join(f"{law} {n}" for law, n in by.most_common())
            print(f"{name:<14} {len(chosen):>4} mutants, killed by {killers}"
                  f"   ({time.perf_counter() - started:.1f} s)", flush=True)
    alive = kills["no law"]
    print(f"\n{total} mutants: {total - alive} killed, {alive - len(survivors)} equivalent, "
          f"{len(survivors)} survived")
    for mutant in survivors:
        print(f"survived: {mutant}")
    for mutant in wrong:
        print(f"EQUIVALENT lists it, but a law notices it: {mutant}")
    return 1 if survivors or wrong else 0


if __name__ == "__main__":
    sys.exit(main())
