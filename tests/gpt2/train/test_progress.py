"""metrics.jsonl: what a kill or a full disk leaves of it is mended at resume, and never met at the end."""
from __future__ import annotations

import json
import os
import shutil

import pytest

from gpt2.errors import MissingError
from gpt2.train import progress
from tests.gpt2.train.test_checkpoints import fresh, told
from tests.gpt2.train.test_checkpoints_damage import RESUME


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """A run of 14 steps, made once, and the same run continued."""
    import gpt2.train.__main__ as training

    out = tmp_path_factory.mktemp("run") / "out"
    training.main(["--out-dir", str(out), *fresh(data)])
    shutil.copytree(out, out.parent / "more")
    training.main(["--out-dir", str(out.parent / "more"), *map(str, RESUME)])
    return out


@pytest.mark.parametrize("damage", [
    lambda lines: lines[:-1],                           # the end of the last line
    lambda lines: lines[:-30], lambda lines: lines[:len(lines) // 2], lambda lines: b"", lambda lines: lines + b'{"step": 14, "tr',
    lambda lines: lines + b"\0" * 5000, lambda lines: lines + b"\xff\xfe\n", lambda lines: lines + b"[" * 100_000 + b"\n",
    lambda lines: lines + b'{"step": 1e400}\n{"step": true}\n{"step": 14, "lr": NaN}\n3\n[]\n{}\n{"step": 14, "lr": "x"}\n',
    lambda lines: lines.replace(b'"step": 3', b'"step": "3"'),
])
def test_what_is_left_is_mended(run, whole, tmp_path, damage):
    """Its whole lines stay, those of later steps follow, and the picture is drawn."""
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    path = out / "metrics.jsonl"
    before = path.read_bytes().splitlines()
    path.write_bytes(damage(path.read_bytes()))
    (out / "loss.png").unlink()
    code, _, err = run(out, *RESUME)
    assert code == 0 and (out / "loss.png").exists(), err
    lines, wanted = told(out), told(whole.parent / "more")
    new = [line for line in wanted if line["step"] > 14]
    assert new and lines[-len(new):] == new and all(line in wanted for line in lines)
    assert len(before) - 3 <= len(lines) - len(new) <= len(before) or len(path.read_bytes()) < len(b"".join(before))
    assert path.read_bytes().endswith(b"}\n")


def test_the_last_line_without_its_end_is_whole(tmp_path):
    (tmp_path / "m").write_bytes(b'{"step": 1, "lr": 1}\n\n{"step": 2}')
    assert list(progress.lines_of(tmp_path / "m")) == [(b'{"step": 1, "lr": 1}\n', {"step": 1, "lr": 1.0}), (b'{"step": 2}\n', {"step": 2})]


@pytest.mark.parametrize("kind", ["fifo", "folder", "sparse"])
def test_what_is_no_metrics_is_one_line(run, whole, tmp_path, kind):
    """Before the first step."""
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    path = out / "metrics.jsonl"
    path.unlink()
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        with open(path, "wb") as file:
            file.truncate(5 << 30)
    code, text, err = run(out, *RESUME)
    assert (code, text) == (3, "") and "metrics.jsonl" in err.splitlines()[-1]
    assert not (out / "checkpoint-16").exists()


def test_a_line_has_what_a_run_writes(whole):
    """The schema of a line has every field that is written, so none is lost in the picture."""
    fields = {name for line in (whole / "metrics.jsonl").read_text().splitlines() for name in json.loads(line)}
    assert fields <= progress.Line.__annotations__.keys() and len(fields) > 6
    with pytest.raises(MissingError):
        list(progress.lines_of(whole / "none"))


def test_the_speed_of_the_machine_is_measured_at_least_once(monkeypatch):
    """On a machine that was busy all the time the loop had not begun, and its peak was 0, by which a share was divided."""
    monkeypatch.setattr(progress, "SECONDS", 0.0)
    monkeypatch.setattr(progress, "SIZE", 8)
    assert 0.0 < progress.peak_flops("numpy", "float32") < 1e18
