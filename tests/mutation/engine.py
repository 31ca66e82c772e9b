"""python tests/mutation/engine.py [-k REGEX]: undo each of the engine's decisions, and check that a test notices it.

A mutant is a module of minigrad with one change in its source. It is imported in a process of its own, in which the tests of the engine
run until one fails; if none fails, they run again with MINIGRAD_EXPLICIT=1, on the engine's definition. If still none fails, the run
fails.
"""
from __future__ import annotations

import argparse
import ast
import importlib.abc
import importlib.machinery
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from engine_mutants import MUTANTS

ROOT = Path(__file__).parents[2]
QUIET = ["-x", "-q", "--no-header", "-p", "no:cacheprovider", "-p", "no:unraisableexception"]
# the files of tests, from fast to slow
GROUPS = [["engine/test_copies"], ["engine/test_fast"],
          ["engine/test_op_kernels", "engine/test_engine", "test_16_bits", "test_16_bits_at_large", "test_every_16_bit_number"],
          ["engine/test_saved", "engine/test_engine_memory", "backend/cupy/test_cupy_devices", "test_transforms",
           "engine/test_graph_threads"],
          ["engine/test_graph", "engine/test_hooks", "test_distributed"]]


def mutated(path: Path, qualname: str, old: str, new: str) -> str:
    """The module's source, in which `old` is replaced by `new` inside `qualname`. ValueError unless `old` occurs exactly once there."""
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines(keepends=True)
    node: Any = ast.parse(text)
    start, stop = 0, len(lines)
    for part in filter(None, qualname.split(".")):
        node = next(n for n in node.body if getattr(n, "name", None) == part)
        start, stop = node.lineno - 1, node.end_lineno
    segment = "".join(lines[start:stop])
    if segment.count(old) != 1:
        raise ValueError(f"{path.name}: {qualname}: {old!r} occurs {segment.count(old)} times; it must occur once")
    return "".join(lines[:start]) + segment.replace(old, new) + "".join(lines[stop:])


def file_of(module: str) -> Path:
    return ROOT.joinpath(*module.split(".")).with_suffix(".py")


def files_of(names: list[str]) -> list[str]:
    return [str(ROOT / "tests" / "minigrad" / f"{name}.py") for name in names]


class Mutate(importlib.abc.MetaPathFinder):
    """An import hook that imports one module from another source text."""

    def __init__(self, module: str, text: str) -> None:
        self.module, self.text = module, text

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name != self.module:
            return None
        file, text = str(file_of(name)), self.text

        class Loader(importlib.machinery.SourceFileLoader):
            def get_code(self, fullname: str) -> Any:
                return compile(text, file, "exec")

        return importlib.util.spec_from_file_location(name, file, loader=Loader(name, file))


class Unshrunk:
    """A plugin for pytest: Hypothesis draws the same examples each time, and does not shrink a failing one."""

    def pytest_sessionstart(self, session: Any) -> None:
        from hypothesis import Phase, settings

        phases = [Phase.explicit, Phase.generate]
        settings.register_profile("mutation", settings.default, phases=phases, derandomize=True, database=None)
        settings.load_profile("mutation")


def run_one(number: int, files: list[str]) -> int:
    """Run pytest on `files` with mutant `number`, until the first failure; return its exit code."""
    import pytest

    _, module, qualname, old, new = MUTANTS[number]
    sys.path.insert(0, str(ROOT))
    sys.meta_path.insert(0, Mutate(module, mutated(file_of(module), qualname, old, new)))

    return int(pytest.main([*QUIET, "--tb=line", *files], plugins=[Unshrunk()]))


def killer(number: int, groups: list[list[str]] = GROUPS, timeout: float = 300.0) -> str | None:
    """The first test that notices the mutant, "a time limit" if it never ends, or None."""
    found = _killer(number, groups, timeout, {})
    if found is None:                                   # some code runs only with the engine's definition
        found = _killer(number, [g for g in groups if "engine/test_fast" not in g], timeout, {"MINIGRAD_EXPLICIT": "1"})
    return found


def _killer(number: int, groups: list[list[str]], timeout: float, variables: dict[str, str]) -> str | None:
    """`killer` with these environment variables."""
    for names in groups:
        try:
            command = [sys.executable, __file__, "--one", str(number), *files_of(names)]
            done = subprocess.run(command, capture_output=True, text=True,
                                  timeout=timeout, cwd=ROOT, check=False, env={**os.environ, **variables})
        except subprocess.TimeoutExpired:
            return "a time limit"
        if done.returncode == 1:
            failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
            return failed[0].split("::", 1)[-1].split(" - ")[0] if failed else "a test"
        if done.returncode:                             # the import or the collection of tests failed
            return f"pytest, which ended with {done.returncode}"
    return None


def main() -> int:
    if sys.argv[1:2] == ["--one"]:
        return run_one(int(sys.argv[2]), sys.argv[3:])
    p = argparse.ArgumentParser(prog="python tests/mutation/engine.py", description=__doc__)
    p.add_argument("-k", default="", metavar="REGEX", help="only mutants whose name matches")
    args = p.parse_args()
    chosen = [i for i, (name, *_) in enumerate(MUTANTS) if re.search(args.k, name)]
    survived = 0
    for i in chosen:
        test = killer(i)
        survived += test is None
        print(f"{MUTANTS[i][0]}: {'SURVIVED' if test is None else f'killed by {test}'}", flush=True)
    print(f"\n{len(chosen)} mutants: {len(chosen) - survived} killed, {survived} survived")
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main())
