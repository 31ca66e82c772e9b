"""python tests/mutation/functions.py [-k REGEX] [--every N]: break optimizers, random numbers, dropout and decoding on purpose.

A mutant is one function with one change in its source: a number, a limit or a sign is changed; a term, a condition, a count or a
statement is left out; a setting is ignored; or a result is multiplied by 1.0001 or increased by 1e-5. The tests of its module are run
on it, but only those that call the function, the fastest first. If none of them fails, the run fails, unless EQUIVALENT says why the
change is not a mistake.

All modules and tests are imported once. Each mutant replaces its function in a fork of this process, which then ends.
"""
from __future__ import annotations

import argparse
import ast
import contextlib
import copy
import gc
import importlib
import inspect
import math
import multiprocessing
import os
import re
import resource
import signal
import sys
import time
import types
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from engine import QUIET, ROOT, Unshrunk, file_of
from equivalent import EQUIVALENT

from minigrad.testing.mutate_text import decisions, own_pieces, replaced, say, settings, spoiled, spots

sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "helpers")]

# The modules, or functions of modules, that are mutated, and the files of tests that must notice it.
_STEPS = ("gpt2/decoding/test_prompt_lookup", "gpt2/decoding/test_gpu_step")
JUDGES: dict[str, tuple[str, ...]] = {
    "minigrad.optim": ("minigrad/test_optim", "minigrad/test_optim_clipping", "minigrad/test_16_bits",
                       "gpt2/test_model_mixed", "minigrad/backend/cupy/test_cupy_devices"),
    "minigrad.random": ("minigrad/test_random", "minigrad/testing/fake_cupy/test_fake",
                        "minigrad/backend/cupy/test_cupy_devices"),
    "minigrad.backend.splitmix64": ("minigrad/test_random",),
    "minigrad.backend.base:Device": ("minigrad/backend/test_backend",
                                     "minigrad/backend/cupy/test_cupy_devices"),
    "minigrad.fused.dropout": ("minigrad/test_random", "minigrad/fused/test_fused"),
    "minigrad.fused:dropout": ("minigrad/test_random", "minigrad/fused/test_fused"),
    "minigrad.nn.layers:Dropout": ("minigrad/nn/test_layers", "minigrad/test_random"),
    "gpt2.decoding.gpu_ops": ("gpt2/decoding/test_gpu_ops", "gpt2/decoding/test_gpu_step"),
    "gpt2.decoding.sampling": ("gpt2/decoding/test_sampling", "gpt2/test_numbers"),
    "gpt2.decoding.prompt_lookup": ("gpt2/decoding/test_prompt_lookup",),
    "gpt2.decoding.kv_cache": ("gpt2/test_model", "gpt2/decoding/test_decode", *_STEPS),
    "gpt2.decoding.decode": ("gpt2/test_model", "gpt2/decoding/test_decode", *_STEPS),
    "gpt2.decoding.gpu_sampling": ("gpt2/decoding/test_gpu_sampling", "gpt2/decoding/test_gpu_step"),
    "gpt2.decoding.gpu_step": ("gpt2/decoding/test_gpu_step",),
}
Function = tuple[str, str]                              # the module, and the name in it


@dataclass(frozen=True)
class Mutant:
    """A function of a module; made() is the module's syntax tree with one change in this function."""

    function: Function
    what: str
    made: Callable[[], ast.Module]
    spot: tuple[int, str] | None = None                 # the number of the spoiled value, and how it is spoiled

    def __str__(self) -> str:
        return f"{'.'.join(self.function)}: {self.what}"


# ── source texts ──
def functions(target: str) -> dict[str, ast.FunctionDef]:
    """The functions of a target by their names in its module."""
    module, _, part = target.partition(":")

    def found(tree: Any, before: str) -> Iterator[tuple[str, ast.FunctionDef]]:
        for n in tree.body:
            if isinstance(n, ast.FunctionDef):
                yield before + n.name, n
            elif isinstance(n, ast.ClassDef):
                yield from found(n, f"{before}{n.name}.")

    return {name: f for name, f in found(tree_of(module), "") if not part or (name + ".").startswith(part + ".")}


@cache
def tree_of(module: str) -> ast.Module:
    path = file_of(module)
    return ast.parse((path if path.exists() else path.with_suffix("") / "__init__.py").read_text("utf-8"))


def mutants(target: str) -> Iterator[Mutant]:
    """All mutants of the functions of a target; no two have the same name."""
    module = target.partition(":")[0]
    for name, tree in functions(target).items():
        seen = Counter[str]()
        for what, old, new, spot in _changes(tree):
            seen[what] += 1
            what = what if seen[what] == 1 else f"{what} ({seen[what]})"
            yield Mutant((module, name), what, lambda old=old, new=new: replaced(tree_of(module), old, new), spot)  # type: ignore[misc]


def _changes(tree: ast.FunctionDef) -> Iterator[tuple[str, ast.AST, ast.AST, tuple[int, str] | None]]:
    yield from ((*change, None) for change in settings(tree))
    around = {id(child): n for n in ast.walk(tree) for child in ast.iter_child_nodes(n)}
    for old in own_pieces(tree):
        where = f" in {say(around[id(old)])}" if isinstance(old, ast.Constant) else ""
        yield from ((what + where, old, new, None) for what, new in decisions(old))
    for i, value in enumerate(spots(tree)):
        yield from ((what, value, new, (i, new.func.id)) for what, new in spoiled(value))  # type: ignore[attr-defined]


# ── how a mutant replaces its function ──
def function_of(function: Function) -> types.FunctionType:
    """The function itself, without its decorators."""
    found: Any = importlib.import_module(function[0])
    for part in function[1].split("."):
        found = inspect.getattr_static(found, part)
    for inner in ("fget", "__func__", "__wrapped__", "kernel", "__wrapped__"):
        found = getattr(found, inner, found) if not isinstance(found, types.FunctionType) or inner == "__wrapped__" else found
    assert isinstance(found, types.FunctionType), function
    return found


def install(function: Function, tree: ast.Module, **names: Any) -> None:
    """Replace the code of a function by its code in another version of its module.

    tree: the syntax tree of that version. names: further globals that it uses.
    """
    code: types.CodeType = compile(ast.fix_missing_locations(tree), "<mutant>", "exec")
    for part in function[1].split("."):
        code = next(c for c in code.co_consts if isinstance(c, types.CodeType) and c.co_name == part)
    f = function_of(function)
    f.__code__ = code
    f.__globals__.update(names)


def is_float(x: Any) -> bool:
    return isinstance(x, float) or getattr(getattr(x, "dtype", None), "kind", "") == "f"


SPOILS: dict[str, Callable[[Any], Any]] = {
    "_times": lambda x: x * 1.0001 if is_float(x) else x,
    "_plus": lambda x: x + 1e-5 if is_float(x) else x,
}


def spoils(how: str, x: Any) -> bool:
    """Whether spoiling changes x, which may be a number or an array. how: a key of SPOILS."""
    if isinstance(x, float | np.ndarray | np.generic) and is_float(x):
        return not np.array_equal(SPOILS[how](x), x, equal_nan=True)
    return is_float(x)


class _Probes(ast.NodeTransformer):
    """Wraps each value of a function in a call of `_seen`."""

    def __init__(self, name: str, values: list[ast.expr]) -> None:
        self.name, self.numbers = name, {id(v): i for i, v in enumerate(values)}

    def visit(self, node: ast.AST) -> Any:
        new = self.generic_visit(node)
        if id(node) in self.numbers:
            return ast.Call(ast.Name("_seen", ast.Load()), [ast.Constant(self.name), ast.Constant(self.numbers[id(node)]), new], [])
        return new


def install_probes(target: str, reached: Callable[[str], Any], seen: Callable[[str, int, Any], Any]) -> None:
    """Make each function of the target call reached(its name) first, and seen(its name, number, value) for each value it computes."""
    module = target.partition(":")[0]
    for name, tree in functions(target).items():
        copies: dict[int, Any] = {}
        whole = copy.deepcopy(tree_of(module), copies)
        mine = copies[id(tree)]
        noted = _Probes(name, [copies[id(v)] for v in spots(tree)])
        start = ast.get_docstring(mine) is not None
        mine.body[start:] = [ast.Expr(ast.Call(ast.Name("_reached", ast.Load()), [ast.Constant(name)], [])),
                             *map(noted.visit, mine.body[start:])]
        install((module, name), whole, _reached=reached, _seen=seen)


# ── running the tests ──
@dataclass
class Reach:
    """What the tests of a target reach.

    tests: for each function the tests that call it, with their seconds. spoiled, same: the values, by function and `spot`, that
    spoiling changed in some call, and those that it did not change in some call. imported: the modules imported by the tests.
    """

    tests: dict[str, dict[str, float]]
    spoiled: set[tuple[str, tuple[int, str]]]
    same: set[tuple[str, tuple[int, str]]]
    imported: list[str]


class Chosen(Unshrunk):
    """A plugin for pytest: it runs only the given tests, in the given order, and records the first that fails."""

    def __init__(self, tests: list[str]) -> None:
        self.order, self.failed = {test: i for i, test in enumerate(tests)}, ""

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        items[:] = sorted((i for i in items if i.nodeid in self.order), key=lambda i: self.order[i.nodeid])

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.failed = self.failed or (report.nodeid.rpartition("/")[2] if report.failed else "")


class Noting(Unshrunk):
    """A plugin for pytest: it records which functions each test calls, and how long the test takes."""

    def __init__(self) -> None:
        self.now, self.reach, self.failed = "", Reach(defaultdict(dict), set(), set(), []), ""

    def reached(self, name: str) -> None:
        self.reach.tests[name][self.now] = 0.0

    def seen(self, name: str, spot: int, value: Any) -> Any:
        for how in SPOILS:
            (self.reach.spoiled if spoils(how, value) else self.reach.same).add((name, (spot, how)))
        return value

    def pytest_runtest_protocol(self, item: Any) -> None:
        self.now = item.nodeid

    def pytest_runtest_logreport(self, report: Any) -> None:
        for tests in self.reach.tests.values():
            if report.nodeid in tests:
                tests[report.nodeid] += report.duration
        self.failed = self.failed or (str(report.longrepr) if report.failed else "")


def forked(f: Callable[..., Any], *args: Any, seconds: float) -> Any:
    """The result of f(*args) in a fork of this process, whose output is discarded.

    TimeoutError after `seconds` of CPU time; EOFError if the process ends without a result.
    """
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)

    def run() -> None:
        resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(seconds), math.ceil(seconds)))
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        theirs.send(f(*args))

    process = context.Process(target=run)
    process.start()
    theirs.close()
    try:
        if not ours.poll(3600.0):                       # it waits for something, which uses no CPU time
            raise TimeoutError
        return ours.recv()
    except EOFError:
        process.join()
        if process.exitcode in (-signal.SIGXCPU, -signal.SIGKILL):
            raise TimeoutError from None
        raise
    finally:
        process.kill()
        process.join()


def files_of(target: str) -> list[str]:
    return [str(ROOT / "tests" / f"{name}.py") for name in JUDGES[target]]


def _noted(target: str) -> Reach | str:
    import pytest

    plugin, before = Noting(), set(sys.modules)
    install_probes(target, plugin.reached, plugin.seen)
    pytest.main([*QUIET, *files_of(target)], plugins=[plugin])
    reach, new = plugin.reach, [name for name in sys.modules if name not in before]
    return plugin.failed or Reach({name: dict(tests) for name, tests in reach.tests.items()}, reach.spoiled, reach.same, new)


def reach_of(target: str) -> Reach:
    """What the tests of a target reach. RuntimeError if a test fails without a mutant."""
    import pytest

    sys.argv = sys.argv[:1]
    with open(os.devnull, "w") as null, contextlib.redirect_stdout(null):
        pytest.main(["--collect-only", *QUIET, *files_of(target)])     # imports them, once for all forks
    found = forked(_noted, target, seconds=600.0)
    if isinstance(found, str):
        raise RuntimeError(f"{target}: a test fails without a mutant: {found}")
    for name in found.imported:                         # so that the forks need not import them
        with contextlib.suppress(Exception):
            importlib.import_module(name)
    gc.collect()
    gc.freeze()                                         # forks share this memory
    return found


def _judged(mutant: Mutant, tests: list[str]) -> str:
    import pytest

    install(mutant.function, mutant.made(), **SPOILS)
    plugin = Chosen(tests)
    files = dict.fromkeys(str(ROOT / test.partition("::")[0]) for test in tests)
    code = pytest.main([*QUIET, "--tb=no", *files], plugins=[plugin])
    return plugin.failed or ("" if code in (0, 5) else f"pytest, which ended with {code}")


def killer(mutant: Mutant, reach: Reach) -> str | None:
    """The first test that notices the mutant, "a time limit" if it never ends, or None."""
    tests = reach.tests.get(mutant.function[1], {})
    if not tests:
        return None
    try:
        return forked(_judged, mutant, sorted(tests, key=lambda t: tests[t]), seconds=30.0 + 5.0 * sum(tests.values())) or None
    except TimeoutError:
        return "a time limit"
    except EOFError:
        return "the end of the process"


def changes_nothing(mutant: Mutant, reach: Reach) -> bool:
    """Whether the spoiled value never changed in the tests, as it is not a float, or rounds to the same float."""
    spot = (mutant.function[1], mutant.spot)
    return mutant.spot is not None and spot in reach.same and spot not in reach.spoiled


def main() -> int:
    p = argparse.ArgumentParser(prog="python tests/mutation/functions.py", description=__doc__.partition(":")[2].strip())
    p.add_argument("--target", action="append", choices=JUDGES, metavar="NAME", help="only this module, or part of one (repeatable)")
    p.add_argument("-k", default="", metavar="REGEX", help="only mutants whose name matches, such as 'optim.SGD'")
    p.add_argument("--every", type=int, default=1, metavar="N", help="only every Nth of these mutants")
    args = p.parse_args()
    if args.every < 1:
        p.error(f"--every must be at least 1, not {args.every}")
    counts, survivors, wrong = Counter[str](), [], []
    for target in args.target or JUDGES:
        chosen = [m for m in mutants(target) if re.search(args.k, str(m))][::args.every]
        if not chosen:
            continue
        reach = reach_of(target)
        for name in dict.fromkeys(m.function[1] for m in chosen):
            started, mine = time.perf_counter(), [m for m in chosen if m.function[1] == name and not changes_nothing(m, reach)]
            found = {str(m): killer(m, reach) for m in mine}
            alive = [m for m, test in found.items() if test is None]
            survivors += [m for m in alive if m not in EQUIVALENT]
            wrong += [f"{m} (killed by {test})" for m, test in found.items() if test is not None and m in EQUIVALENT]
            counts += Counter(killed=len(mine) - len(alive), equivalent=sum(m in EQUIVALENT for m in alive))
            print(f"{target.partition(':')[0]}.{name:<40} {len(mine):>4} mutants, {len(mine) - len(alive)} killed"
                  f"   ({time.perf_counter() - started:.1f} s)", flush=True)
            for m in alive:
                print(f"    {'equivalent' if m in EQUIVALENT else 'SURVIVED'}: {m}", flush=True)
    print(f"\n{counts.total() + len(survivors)} mutants: {counts['killed']} killed, {counts['equivalent']} equivalent, "
          f"{len(survivors)} survived")
    for title, lines in (("survived", survivors), ("EQUIVALENT lists it, but a test notices it", wrong)):
        for line in lines:
            print(f"{title}: {line}")
    return 1 if survivors or wrong else 0


if __name__ == "__main__":
    sys.exit(main())
