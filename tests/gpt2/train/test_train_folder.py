"""The folder of a run: what is not its own stays, one run at a time, and a last good checkpoint is not replaced by a bad one."""
from __future__ import annotations

import os
import threading

import pytest
from crash import kills, tree
from in_process import end_of

import gpt2.train.__main__ as training
from gpt2.io.outputs import MARK, written
from gpt2.train import checkpoints

FLAGS = ["--n-layer", "1", "--n-head", "2", "--n-embd", "8", "--block-size", "8", "--batch-size", "2", "--eval-iters", "1",
         "--eval-interval", "2", "--log-interval", "1", "--backend", "numpy"]


@pytest.fixture
def run(data, capsys):
    """run(out, *flags): exit code, stdout and stderr."""
    def call(out, *flags):
        return end_of(lambda: training.main(["--data", str(data), "--out-dir", str(out), *FLAGS, *map(str, flags)]), capsys, "gpt2.train")

    return call


@pytest.mark.parametrize("name", ["metrics.jsonl", "loss.png", "config.json", "checkpoint-7"])
def test_what_is_somebody_elses_stays(run, tmp_path, name):
    """A file of a name that training uses, in a folder where no run was."""
    out = tmp_path / "out"
    out.mkdir()
    if name == "checkpoint-7":
        (out / name).mkdir()
        (out / name / "model.bin").write_bytes(b"mine")
    else:
        (out / name).write_bytes(b"mine")
    before = tree(out)
    code, _, err = run(out, "--max-iters", 4)
    assert code == 2 and err.count("\n") == 1 and f"holds {name}" in err and tree(out) == before


def test_a_checkpoint_of_another_program_is_not_removed(run, tmp_path):
    """--keep counts, and removes, the checkpoints of this run alone."""
    out = tmp_path / "out"
    assert run(out, "--max-iters", 2, "--keep", 2)[0] == 0
    (out / "checkpoint-1").mkdir()
    (out / "checkpoint-1" / "model.bin").write_bytes(b"mine")
    assert run(out, "--max-iters", 6, "--keep", 1, "--init-from", "resume")[0] == 0
    assert (out / "checkpoint-1" / "model.bin").read_bytes() == b"mine" and (out / "checkpoint-6").is_dir()
    assert not (out / "checkpoint-2").exists() and "checkpoint-2" not in written(out)


def test_a_run_of_before_there_were_markers_goes_on(run, tmp_path):
    out = tmp_path / "out"
    assert run(out, "--max-iters", 2)[0] == 0
    (out / MARK).unlink()
    assert run(out, "--max-iters", 4, "--init-from", "resume", "--keep", 1)[0] == 0
    assert written(out).keys() >= {"config.json", "metrics.jsonl", "checkpoint-4"} and not (out / "checkpoint-0").exists()


def test_two_runs_in_one_folder(run, tmp_path, data, monkeypatch):
    """While one runs, a second start and a resume are told which process it is."""
    out, inside, done = tmp_path / "out", threading.Event(), threading.Event()
    real = training.run

    def waiting(*args):
        if threading.current_thread() is not threading.main_thread():
            inside.set()
            done.wait(30)
        return real(*args)

    monkeypatch.setattr(training, "run", waiting)
    monkeypatch.setattr(training, "Stop", lambda: training.contextlib.nullcontext(training.argparse.Namespace(
        told=None, agreed=lambda group: False)))
    argv = ["--data", str(data), "--out-dir", str(out), *FLAGS, "--max-iters", "2"]
    first = threading.Thread(target=lambda: training.main(argv))
    first.start()
    assert inside.wait(30)
    for flags in ((), ("--init-from", "resume")):
        code, _, err = run(out, "--max-iters", 4, *flags)
        if flags:                                       # the first has no checkpoint yet
            assert code == 2 and ("resume" in err or "in use" in err)
        else:
            assert code == 2 and f"is in use by gpt2.train, process {os.getpid()}" in err
    done.set()
    first.join()
    assert (out / "checkpoint-2").is_dir()


def test_a_start_that_waited_does_not_replace_the_run(run, tmp_path, data, monkeypatch):
    """A run that ended between this one's check of the folder and its start is not overwritten."""
    out, real = tmp_path / "out", training.prepared
    assert run(tmp_path / "other", "--max-iters", 2)[0] == 0

    def slow(*args):
        ready = real(*args)
        (tmp_path / "other").rename(out)
        return ready

    monkeypatch.setattr(training, "prepared", slow)
    before = tree(tmp_path / "other")
    code, _, err = run(out, "--max-iters", 4)
    assert code == 2 and "holds config.json already; choose another directory, or continue the run" in err and tree(out) == before


def test_weights_that_are_not_finite_are_not_saved(run, tmp_path):
    """--keep 1 keeps the last good checkpoint, which the error names."""
    out = tmp_path / "out"
    flags = ["--save-every", 1, "--keep", 1, "--learning-rate", "1e300", "--warmup-iters", 0, "--log-interval", 9]
    code, _, err = run(out, "--max-iters", 4, *flags)
    last = err.splitlines()[-1]
    assert code == 2 and "holds NaN or infinity after step" in last and "lower --learning-rate" in last
    kept, = checkpoints.snapshots(out)
    assert f"{kept.name} is the last checkpoint without it" in last
    _, parameters, _, record = checkpoints.load(kept)
    assert all(abs(a).max() < 1e38 for a in parameters.values()) and record["step"] == int(kept.name.partition("-")[2])


def test_the_best_model_does_not_fit_its_dtype(run, tmp_path, monkeypatch):
    """The flag that helps is named, and the run goes on with it."""
    real = training.save_best

    def grown(args, trainer, record, data):
        trainer.model.ln_f.weight.array[0] = 70_000.0
        return real(args, trainer, record, data)

    monkeypatch.setattr(training, "save_best", grown)
    code, _, err = run(tmp_path / "out", "--max-iters", 4)
    assert code == 2 and "'ln_f.weight' has values too large for float16" in err.splitlines()[-1]
    assert err.splitlines()[-1].endswith("continue with --init-from resume --save-dtype float32")


@pytest.mark.parametrize("step", [17, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_before_a_file_operation_of_a_start(data, tmp_path, capsys, step):
    """A start that is killed before its first checkpoint stands can be started again; after that it can be resumed."""
    out, done = tmp_path / "out", 0
    argv = ["--data", str(data), "--out-dir", str(out), *FLAGS, "--max-iters", "1"]

    def away():
        for path in sorted(out.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        if out.exists():
            out.rmdir()

    for _ in kills(lambda: training.main(argv), first=step // 2, step=step):
        done += 1
        if "checkpoint-1" not in checkpoints.own(out):  # else all of it is done
            again = [*argv, *(["--init-from", "resume"] if checkpoints.own(out) else [])]
            code, _, err = end_of(lambda again=again: training.main(again), capsys, "gpt2.train")
            assert code == 0, err
        assert checkpoints.own(out)[-1] == "checkpoint-1"
        checkpoints.load(out / "checkpoint-1")
        away()
    assert done * step > 90
