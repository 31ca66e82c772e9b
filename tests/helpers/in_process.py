"""A command of gpt2 that is run in this process."""
from __future__ import annotations

from collections.abc import Callable

import pytest

from gpt2.cli.command import run_command


def end_of(main: Callable[[], int | None], capsys: pytest.CaptureFixture[str],
           prog: str = "gpt2.test") -> tuple[object, str, str]:
    """The exit code of a command whose main() is `main`, and its stdout and stderr."""
    with pytest.raises(SystemExit) as end:
        run_command(main, prog)
    printed = capsys.readouterr()
    return end.value.code, printed.out, printed.err
