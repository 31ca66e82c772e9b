"""Folders that commands write to: what is not theirs stays, one at a time works, and a kill at any moment leaves the old or the new."""
from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from crash import full_disks, kills, tree
from data import ROOT
from tiny_gpt2 import tiny_model, tiny_tokenizer

from gpt2 import prepare
from gpt2.cli.command import run_command
from gpt2.errors import UsageError
from gpt2.golden import __main__ as golden
from gpt2.io.outputs import LOCK, MARK, claim, open_folder, unclaim, whole_folder, written

BY = "gpt2.test"


def put(folder: Path, **files: str) -> None:
    with whole_folder(folder, BY) as made:
        for name, text in files.items():
            (made / name).write_text(text)


def texts(folder: Path) -> dict[str, str]:
    return {name: data.decode() for name, data in tree(folder).items() if name != MARK}


# ── whole folders ──
def test_a_whole_folder_is_replaced(tmp_path: Path):
    put(tmp_path / "out", a="1", b="2")
    put(tmp_path / "out", b="3")
    assert texts(tmp_path / "out") == {"b": "3"} and written(tmp_path / "out") == {"b": BY}
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("mine", ["thesis.tex", "src/thesis.tex", "b", ".hidden", "link"])
def test_what_is_somebody_elses_stays(tmp_path: Path, mine: str):
    """A file that the command did not write, wherever it lies in the folder, and though a marker of the command is there."""
    out = tmp_path / "out"
    put(out, a="1")
    (out / mine).parent.mkdir(exist_ok=True)
    if mine == "link":
        (out / mine).symlink_to(tmp_path / "nowhere")
    else:
        (out / mine).write_text("mine")
    before = tree(out)
    with pytest.raises(UsageError, match=rf"out holds {mine}, which gpt2\.test did not write; move it away, or"):
        put(out, b="2")
    assert tree(out) == before and os.path.lexists(out / mine)


@pytest.mark.parametrize("marker", ["{}", "[]", '{"files": []}', '{"files": {"a": "gpt2.other"}}', "\0", "[" * 100_000])
def test_a_marker_that_says_something_else(tmp_path: Path, marker: str):
    """Damaged, or another command's: then nothing is replaced."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "a").write_text("mine")
    (out / MARK).write_text(marker)
    with pytest.raises(UsageError, match=r"out holds a, which gpt2\.test did not write"):
        put(out, a="1")
    assert (out / "a").read_text() == "mine"


def test_a_file_that_comes_while_the_command_works(tmp_path: Path):
    out = tmp_path / "out"
    put(out, a="1")
    with pytest.raises(UsageError, match=r"out holds thesis\.tex"):
        with whole_folder(out, BY) as made:
            (made / "a").write_text("2")
            (out / "thesis.tex").write_text("mine")
    assert texts(out) == {"a": "1", "thesis.tex": "mine"}


def test_a_file_in_the_place_of_the_folder(tmp_path: Path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(UsageError, match="out is a file, not a folder"):
        put(tmp_path / "out", a="1")


@pytest.mark.parametrize("exchanges", [True, False])
def test_killed_at_any_moment(tmp_path: Path, exchanges: bool, monkeypatch: pytest.MonkeyPatch):
    """The old folder or the new one is there, whole; the next run works, and leaves nothing else."""
    if not exchanges:
        monkeypatch.setattr("gpt2.io.atomic.exchange", lambda a, b: False)
    out, done = tmp_path / "out", 0
    put(out, a="0")
    for _ in kills(lambda: put(out, a="1", b="1")):
        done += 1
        found = texts(out)
        # where two names cannot be exchanged the old folder has a moment of another name, which the next run takes back
        assert found in ({"a": "0"}, {"a": "1", "b": "1"}) or (not exchanges and not found and list(tmp_path.glob(".out.*.old")))
        put(out, a="0")
        assert texts(out) == {"a": "0"} and os.listdir(tmp_path) == ["out"]
    assert done > 5 and texts(out) == {"a": "1", "b": "1"}


def test_a_folder_that_was_killed_between_two_names_comes_back(tmp_path: Path):
    """The next run finds it under its name, if it is refused before it writes."""
    put(tmp_path / "out", a="1")
    (tmp_path / "out" / "thesis.tex").write_text("mine")
    (tmp_path / "out").rename(tmp_path / ".out.0123abcd.old")
    with pytest.raises(UsageError, match=r"thesis\.tex"):
        put(tmp_path / "out", a="2")
    assert texts(tmp_path / "out") == {"a": "1", "thesis.tex": "mine"} and os.listdir(tmp_path) == ["out"]


# ── folders that more than one file is put into ──
def test_names_are_claimed(tmp_path: Path):
    """What is claimed may be replaced by its command alone; what is there already cannot be claimed, unless it is adopted."""
    (tmp_path / "mine").write_text("x")
    with open_folder(tmp_path, BY, ["a", "b"]):
        (tmp_path / "a").write_text("1")
    assert written(tmp_path) == {"a": BY, "b": BY} and sorted(os.listdir(tmp_path)) == [MARK, "a", "mine"]
    with pytest.raises(UsageError, match=r"holds a, which gpt2\.other did not write"), open_folder(tmp_path, "gpt2.other", ["a"]):
        pass
    with pytest.raises(UsageError, match="holds mine"), open_folder(tmp_path, BY, ["mine"]):
        pass
    with open_folder(tmp_path, BY, ["mine"], adopt=True):
        claim(tmp_path, BY, ["c"])
    unclaim(tmp_path, ["a"])
    assert written(tmp_path) == {"b": BY, "mine": BY, "c": BY}


def test_a_folder_that_was_made_for_nothing_goes(tmp_path: Path):
    with pytest.raises(KeyError), open_folder(tmp_path / "a" / "b", BY):
        raise KeyError
    with pytest.raises(KeyError), whole_folder(tmp_path / "a" / "b", BY):
        raise KeyError
    assert os.listdir(tmp_path) == []


# ── one at a time ──
@pytest.mark.parametrize("kind", [open_folder, whole_folder])
def test_two_processes(tmp_path: Path, kind: Callable[..., Any]):
    """The second is told who works there, and can work when the first has ended, or was killed."""
    code = (f"import sys, time; from pathlib import Path; from gpt2.io.outputs import {kind.__name__} as kind\n"
            "with kind(Path(sys.argv[1]), 'gpt2.test'): print('in', flush=True); time.sleep(60)")
    out = tmp_path / "out"
    other = subprocess.Popen([sys.executable, "-c", code, str(out)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None and other.stdout.readline() == "in\n"
    with pytest.raises(UsageError, match=rf"out is in use by gpt2\.test, process {other.pid} on .*; wait until it ends, or choose"):
        with kind(out, BY):
            pass
    other.kill()
    other.wait()
    with kind(out, BY):
        pass
    assert not list(tmp_path.rglob(f"*{LOCK}"))


def test_a_hundred_starts(tmp_path: Path):
    """Of threads that start at once one is inside at any time, and each other one is refused or comes later."""
    inside, most, came, refused = [0], [0], [0], [0]
    meet = threading.Barrier(10)

    def start() -> None:
        for _ in range(10):
            meet.wait()
            try:
                with whole_folder(tmp_path / "out", BY) as made:
                    inside[0] += 1
                    most[0] = max(most[0], inside[0])
                    (made / "a").write_text("1")
                    inside[0] -= 1
                    came[0] += 1
            except UsageError as error:
                assert "in use by" in str(error)
                refused[0] += 1

    threads = [threading.Thread(target=start) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] and came[0] + refused[0] == 100 and came[0] >= 10 and os.listdir(tmp_path) == ["out"]


# ── the commands ──
@pytest.fixture
def commands(tmp_path: Path) -> dict[str, Callable[[int], None]]:
    """Commands that replace their folder `out`, by name; the number makes another result."""
    tiny_model().save_pretrained(tmp_path / "model", tokenizer=tiny_tokenizer())
    (tmp_path / "text.txt").write_text("It was the best of times, it was the worst of times. " * 20)
    model, text, out = (str(tmp_path / name) for name in ("model", "text.txt", "out"))
    return {
        "golden": lambda i: run_command(lambda: golden.main(["--model", model, "--ids", f"1,2,{3 + i}", "--out", out]), "gpt2.golden"),
        "prepare": lambda i: run_command(lambda: prepare.main([text, "--tokenizer", f"train:{257 + i}", "--workers", "1", "--out", out]),
                                         "gpt2.prepare"),
    }


def quietly(command: Callable[[int], None], i: int, capsys: pytest.CaptureFixture[str]) -> int:
    with pytest.raises(SystemExit) as end:
        command(i)
    capsys.readouterr()
    return int(end.value.code or 0)


@pytest.mark.parametrize("name", ["golden", "prepare"])
def test_a_command_killed_at_any_moment(name: str, commands: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Before each of its file operations: the old result or the new one stands, whole, and the next run cleans up."""
    command, done = commands[name], 0
    others = {path.name for path in tmp_path.iterdir()}
    results = []
    for i in (1, 0):
        assert quietly(command, i, capsys) == 0
        results.append(tree(tmp_path / "out"))
    for _ in kills(lambda: command(1)):
        done += 1
        assert tree(tmp_path / "out") in results
    assert tree(tmp_path / "out") == results[0] and done > 10
    assert {path.name for path in tmp_path.iterdir()} == {*others, "out"}


@pytest.mark.parametrize("name", ["golden", "prepare"])
def test_a_command_on_a_full_disk(name: str, commands: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """From each of its file operations on nothing can be written: exit code 2, and the old result stands."""
    command, codes = commands[name], set()
    assert quietly(command, 0, capsys) == 0
    before = tree(tmp_path / "out")
    for _, code in full_disks(lambda: command(1)):
        codes.add(code)
        assert tree(tmp_path / "out") == before
    assert codes == {2}


def test_the_folder_of_a_web_site(commands: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """A manifest.json that golden did not write makes no folder golden's."""
    (tmp_path / "out" / "src").mkdir(parents=True)
    (tmp_path / "out" / "manifest.json").write_text("{}")
    (tmp_path / "out" / "src" / "thesis.tex").write_text("x")
    before = tree(tmp_path / "out")
    for command in commands.values():
        assert quietly(command, 0, capsys) == 2 and tree(tmp_path / "out") == before


def test_the_marker_names_every_file(commands: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for name, command in commands.items():
        assert quietly(command, 0, capsys) == 0
        marked = json.loads((tmp_path / "out" / MARK).read_text())["files"]
        assert marked == dict.fromkeys(tree(tmp_path / "out").keys() - {MARK}, f"gpt2.{name}")
        (tmp_path / "out").rename(tmp_path / name)
