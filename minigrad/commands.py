"""A package's commands as a list, and one of them run: what `python -m minigrad` does.

`Parser` is the one of all commands of gpt2.
"""
from __future__ import annotations

import argparse
import difflib
import runpy
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from . import __version__


class Parser(argparse.ArgumentParser):
    """An argparse parser without abbreviated flags; a usage error is one line and exit code 2."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("allow_abbrev", False)
        super().__init__(*args, **kwargs)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {' '.join(message.split())}; see --help\n")


def run(package: str, commands: Mapping[str, str], argv: Sequence[str]) -> int:
    """Run the module `package.COMMAND` as `python -m` does, with the rest of argv; or list all.

    commands: names, and a line about each. Returns the exit code: 2 for an unknown command.
    """
    prog, width = f"python -m {package}", max(map(len, commands))
    if argv and argv[0] in commands:
        sys.argv = [f"{prog}.{argv[0]}", *argv[1:]]
        runpy.run_module(f"{package}.{argv[0]}", run_name="__main__", alter_sys=True)
        return 0
    p = Parser(
        prog=prog, usage=f"{prog} COMMAND ...    {prog} COMMAND --help lists its flags",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="\n".join(f"  {one:<{width}}  {what}" for one, what in commands.items()))
    p.add_argument("--version", action="version", version=f"{package} {__version__}")
    p.add_argument("command", nargs="?", help=argparse.SUPPRESS)
    given = p.parse_args(argv[:1]).command
    if given is None:
        p.print_help()
        return 0
    near = difflib.get_close_matches(given, commands, 1)
    hint = f"did you mean {near[0]}?" if near else f"commands: {', '.join(commands)}"
    print(f"{prog}: there is no command {given!r}; {hint}", file=sys.stderr)
    return 2
