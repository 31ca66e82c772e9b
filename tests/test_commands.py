"""`python -m gpt2` and `python -m minigrad` list and run their commands, and modules that moved are found by their old names."""
from __future__ import annotations

import importlib
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

import gpt2.__main__
import minigrad
import minigrad.__main__
from docs import commands
from gpt2 import moved as of_gpt2
from minigrad import moved as of_minigrad

MOVED = {**of_minigrad.MOVED, **of_gpt2.MOVED}
ROOT = Path(__file__).parents[1]
PACKAGES = {"gpt2": gpt2.__main__, "minigrad": minigrad.__main__}


@pytest.mark.parametrize("package", PACKAGES)
def test_all_commands_are_listed(package: str, capsys: pytest.CaptureFixture[str]):
    """A command is what `python -m` runs; each has a line, and nothing else has."""
    found = {name.removeprefix(f"{package}.").removesuffix(".__main__") for name in commands.modules(package)}
    assert set(PACKAGES[package].COMMANDS) == found - {"__main__"}
    assert PACKAGES[package].main([]) == 0
    bare = capsys.readouterr().out
    assert [line.split()[0] for line in bare.splitlines()[2:-4]] == list(PACKAGES[package].COMMANDS)
    with pytest.raises(SystemExit, match="0"):
        PACKAGES[package].main(["--help"])
    assert capsys.readouterr().out == bare


@pytest.mark.parametrize("package", PACKAGES)
def test_version_and_unknown_commands(package: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit, match="0"):
        PACKAGES[package].main(["--version"])
    assert capsys.readouterr().out == f"{package} {minigrad.__version__}\n"
    first = next(iter(PACKAGES[package].COMMANDS))
    assert PACKAGES[package].main([first + "x"]) == 2
    assert capsys.readouterr().err == f"python -m {package}: there is no command '{first}x'; did you mean {first}?\n"
    assert PACKAGES[package].main(["whatever"]) == 2
    assert "commands: " + first in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        PACKAGES[package].main(["--json"])
    assert capsys.readouterr().err == f"python -m {package}: unrecognized arguments: --json; see --help\n"


@pytest.mark.parametrize("given", [["gpt2", "inspect", "params"], ["gpt2.inspect", "params"], ["minigrad", "info"], ["minigrad.info"]])
def test_a_command_is_the_same_either_way(given: list[str]):
    """`python -m gpt2 inspect` prints what `python -m gpt2.inspect` prints, and ends as it ends."""
    other = [f"{given[0]}.{given[1]}", *given[2:]] if "." not in given[0] else [*given[0].split("."), *given[1:]]
    one, two = (subprocess.run([sys.executable, "-m", *argv, *more], capture_output=True, text=True, check=False, cwd=ROOT)
                for argv, more in ((given, ["--json"]), (other, ["--json"])))
    assert one.returncode == two.returncode == 0 and len(one.stdout) > 100
    assert one.stdout == two.stdout or "memory" in one.stdout       # what is free changes from one run to the next
    bad, also = (subprocess.run([sys.executable, "-m", *argv, "--no-such-flag"], capture_output=True, text=True, check=False, cwd=ROOT)
                 for argv in (given, other))
    assert bad.returncode == also.returncode == 2 and bad.stderr == also.stderr != ""


@pytest.mark.parametrize("old", MOVED)
def test_an_old_name_is_the_module_under_its_new_one(old: str):
    """It warns, and both are one module, which keeps its own name and is what `from old import name` reads."""
    sys.modules.pop(old, None)
    with pytest.warns(DeprecationWarning, match=f"{old} is {MOVED[old]} now"):
        found = importlib.import_module(old)
    assert found is importlib.import_module(MOVED[old])
    assert found.__name__ == MOVED[old] == found.__spec__.name
    assert not ROOT.joinpath(*old.split(".")).with_suffix(".py").exists()


def test_a_name_that_never_was_is_not_found():
    with pytest.raises(ModuleNotFoundError, match=r"gpt2\.tokeniser"):
        importlib.import_module("gpt2.tokeniser")
