"""The commands of this repository as their parsers know them: which there are, and what their flags take."""
from __future__ import annotations

import argparse
import functools
import importlib
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from .pages import ROOT

PACKAGES = ("minigrad", "gpt2", "benchmarks", "docs")
NO_FLAGS = {"benchmarks.child", "benchmarks.gpu_tests"}    # started by other commands alone, with what they have to do on stdin
_LOCK = threading.Lock()


class _Seen(BaseException):
    """Carries a parser out of main()."""


def modules(*packages: str) -> Iterator[str]:
    """Every module that `python -m` runs, such as gpt2.inspect.__main__."""
    for package in packages or PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            if re.search(r'^if __name__ == "__main__":', path.read_text("utf-8"), re.M):
                name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
                if name not in NO_FLAGS and not name.startswith("docs.examples"):
                    yield name


@functools.cache
def parser(module: str) -> argparse.ArgumentParser:
    """The parser that a module's main() makes. It is caught when it is asked to parse, and nothing else is run."""
    def stop(self: argparse.ArgumentParser, *args: Any, **kwargs: Any) -> None:
        raise _Seen(self)

    with _LOCK, mock.patch.object(argparse.ArgumentParser, "parse_args", stop):
        try:
            importlib.import_module(module).main()
        except _Seen as seen:
            return seen.args[0]
    raise TypeError(f"{module}.main() parses no flags")


def parsers(module: str) -> Iterator[argparse.ArgumentParser]:
    """The parser of a module, and those of its subcommands."""
    waiting = [parser(module)]
    while waiting:
        one = waiting.pop()
        yield one
        waiting += subcommands(one).values()


def subcommands(of: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The subcommands of a parser by their names."""
    return {name: one for action in of._actions if isinstance(action, argparse._SubParsersAction)
            for name, one in action.choices.items()}


@functools.cache
def flags(command: str) -> dict[str, argparse.Action] | None:
    """The flags of a command as it is typed, "gpt2.train" or "gpt2.inspect trace"; None where there is no such command.

    Those of tests.NAME are read in its text, since importing it would import all that it tests.
    """
    name, _, sub = command.partition(" ")
    path = ROOT.joinpath(*name.split("."))
    inside = path.is_dir()
    file = path / "__main__.py" if inside else path.with_suffix(".py")
    if not file.is_file() or 'if __name__ == "__main__":' not in Path(file).read_text("utf-8"):
        return None
    if name.startswith("tests."):
        told = re.findall(r'add_argument\("(--[\w-]+)"', file.read_text("utf-8"))
        return {flag: argparse.Action([flag], flag) for flag in ["--help", *told]}
    found = parser(f"{name}.__main__" if inside else name)
    if sub:
        if sub not in subcommands(found):
            return None
        found = subcommands(found)[sub]
    return {flag: action for action in found._actions for flag in action.option_strings}


def default(command: str, flag: str) -> Any:
    """What a flag is where nobody says it."""
    return (flags(command) or {})[flag].default
