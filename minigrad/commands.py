"""A package's commands as a list, and one of them run: what `python -m minigrad` does."""
from __future__ import annotations

import difflib
import runpy
import sys
from collections.abc import Mapping, Sequence

from . import __version__


def run(package: str, commands: Mapping[str, str], argv: Sequence[str]) -> int:
    """Run the module `package.COMMAND` as `python -m` does, with the rest of argv; or list all.

    commands: names, and a line about each. Returns the exit code: 2 for an unknown command.
    """
    prog = f"python -m {package}"
    name, *rest = argv or ["--help"]
    if name in ("-h", "--help"):
        print(f"usage: {prog} COMMAND ...    {prog} COMMAND --help tells its flags\n")
        width = max(map(len, commands))
        print("\n".join(f"  {one:<{width}}  {what}" for one, what in commands.items()))
        return 0
    if name == "--version":
        print(f"{package} {__version__}")
        return 0
    if name not in commands:
        near = difflib.get_close_matches(name, commands, 1)
        hint = f"did you mean {near[0]}?" if near else f"commands: {', '.join(commands)}"
        print(f"{prog}: there is no command {name!r}; {hint}", file=sys.stderr)
        return 2
    sys.argv = [f"{prog}.{name}", *rest]
    runpy.run_module(f"{package}.{name}", run_name="__main__", alter_sys=True)
    return 0
