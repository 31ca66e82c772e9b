"""python -m gpt2.train under mpiexec: two processes train what one does, and whatever happens to one ends both with a checkpoint left."""
from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
from long import slow_unless
from mpi import mpiexec
from safetensors.numpy import load_file
from tiny_gpt2 import TEXT, prepare_texts, tiny_model

import minigrad as mg
from gpt2.train.__main__ import parser
from gpt2.train.checkpoints import snapshots
from gpt2.train.trainer import Trainer
from minigrad.distributed import ProcessGroup

SMALL = ["--n-layer", "1", "--n-head", "2", "--n-embd", "16", "--block-size", "16", "--batch-size", "4", "--warmup-iters", "3",
         "--learning-rate", "0.01", "--backend", "numpy"]
# the command, with something done to it before
BROKEN = ("import sys, gpt2.train.__main__ as t, gpt2.train.trainer as tr\nfrom gpt2.cli.command import run_command\n{}\n"
          "run_command(t.main, 'gpt2.train')")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data")
    prepare_texts([TEXT * 8], path, "train:290")
    return path


@pytest.fixture(scope="module")
def start(data):
    """Start training in n processes (0: without mpiexec)."""
    def start(n, out, *flags, body=None):
        before, kind = (mpiexec(n), ["--distributed", "mpi"]) if n else ([], [])
        program = ["-m", "gpt2.train"] if body is None else ["-c", BROKEN.format(body)]
        command = [*before, sys.executable, *program, *SMALL, "--data", str(data), "--out-dir", str(out), *kind, *map(str, flags)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"})
    return start


@pytest.fixture(scope="module")
def run(start):
    """And wait for its end: exit code, stdout, stderr."""
    def run(*given, **options):
        process = start(*given, **options)
        return ended(process)
    return run


def ended(process):
    """Exit code, stdout and stderr; a process that does not end fails the test, and leaves nobody behind."""
    try:
        out, err = process.communicate(timeout=120)
    finally:
        if process.poll() is None:
            process.terminate()                         # mpiexec ends its own
            process.communicate(timeout=30)
    return process.returncode, out, err


def own(err):
    """What the command itself says after its settings, without mpiexec's words about processes that were ended."""
    return [line for line in err.splitlines() if line.startswith("gpt2.train: ")]


def weights(out, step):
    return load_file(out / f"checkpoint-{step}" / "model.safetensors")


@pytest.fixture(scope="module")
def alone(run, tmp_path_factory):
    """Ten steps of one process in float64, of two batches each, with a checkpoint after the fifth."""
    out = tmp_path_factory.mktemp("alone") / "out"
    flags = ["--max-iters", 10, "--save-every", 5, "--keep", 9, "--gradient-accumulation-steps", 2, "--dtype", "float64",
             "--grad-clip", 0.1, "--log-interval", 1]
    assert run(0, out, *flags)[0] == 0
    return out, flags


def test_two_processes_train_what_one_does(run, alone, tmp_path):
    """Weights and losses are those of one process to float64's rounding, with clipping; one batch of the two each, or two of four that
    it adds up itself. The first process alone writes and prints; what it wrote goes on, in one process or two."""
    out, flags = alone
    code, printed, err = run(2, tmp_path / "two", *flags)
    assert code == 0 and printed.count("best: ") == 1 and err.count("on 2 processes") == 1 and not own(err)
    for step in (5, 10):
        for name, w in weights(tmp_path / "two", step).items():
            np.testing.assert_allclose(w, weights(out, step)[name], rtol=0, atol=1e-12)
    ours, theirs = (list(map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())) for folder in (tmp_path / "two", out))
    for name in ("train_loss", "grad_norm", "val_loss"):
        found, wanted = ([line[name] for line in lines if name in line] for lines in (ours, theirs))
        assert len(wanted) == (1 if name == "val_loss" else 10)
        np.testing.assert_allclose(found, wanted, rtol=1e-12)
    quarters = [*flags, "--gradient-accumulation-steps", 4, "--batch-size", 2]
    assert run(2, tmp_path / "quarters", *quarters)[0] == 0
    for name, w in weights(tmp_path / "quarters", 10).items():
        np.testing.assert_allclose(w, weights(out, 10)[name], rtol=0, atol=1e-12)


@pytest.mark.slow
def test_taken_up_again(run, tmp_path):
    """With dropout, whose masks each process draws by itself, a run of two that was stopped goes on to the same bits."""
    flags = ["--max-iters", 8, "--save-every", 4, "--keep", 9, "--dropout", 0.2]
    assert run(2, tmp_path / "whole", *flags)[0] == 0
    assert run(2, tmp_path / "part", *flags, body="""
import signal, os
step = tr.Trainer.step
def stopping(self):
    if self.done == 3 and self.group.rank == 1:
        os.kill(os.getpid(), signal.SIGTERM)
    return step(self)
tr.Trainer.step = stopping""")[0] == 128 + signal.SIGTERM
    assert [p.name for p in snapshots(tmp_path / "part")] == ["checkpoint-0", "checkpoint-4"]
    assert run(2, tmp_path / "part", "--init-from", "resume")[0] == 0
    for name, w in weights(tmp_path / "whole", 8).items():
        np.testing.assert_array_equal(w, weights(tmp_path / "part", 8)[name])
    assert run(0, tmp_path / "part", "--init-from", "resume", "--max-iters", 9)[0] == 0


def test_dropout_differs_between_processes():
    """Each process draws masks from a stream of its own; process 0 from the one of a process alone. A stream that is taken up again
    stays the process's own, at the place that the first one's had."""
    args = parser().parse_args([*SMALL, "--seed", "3"])
    keys = []
    for rank in range(3):
        group = ProcessGroup()
        group.rank, group.world_size = rank, 3
        trainer = Trainer(tiny_model(), np.arange(100) % 300, args, group if rank else None)
        key, count = mg.random.get_state()
        assert count == 0
        trainer.restore(4, {"random": [9, 5], "scaler": {"factor": 1.0, "good": 0},
                            "adamw_steps": dict.fromkeys(trainer.trained, 0)}, {})
        assert mg.random.get_state() == (key if rank else 9, 5)
        keys.append(key)
    assert len({*keys, mg.random.fold_in(mg.random.key(3), 1)}) == 4 and keys[0] == mg.random.key(3)


def test_one_that_is_killed(start, run, tmp_path):
    """kill -9 of one process ends both, mpiexec says so, and the last checkpoint can be taken up."""
    process = start(2, tmp_path / "out", "--max-iters", 100000, "--save-every", 5, "--eval-interval", 50000, body="""
step = tr.Trainer.step
def told(self):
    if self.done == 12 and self.group.rank == 1:
        import os
        os.kill(os.getpid(), 9)
    return step(self)
tr.Trainer.step = told""")
    code, *printed = ended(process)
    err = "".join(printed)
    assert code != 0 and re.search(r"(?i)killed|terminat|signal", err)
    assert snapshots(tmp_path / "out")[-1].name == "checkpoint-10"
    assert run(2, tmp_path / "out", "--init-from", "resume", "--max-iters", 12)[0] == 0


@pytest.mark.parametrize("body, code, line", [
    ("""
step = tr.Trainer.step
def failing(self):
    if self.done == 6 and self.group.rank == 1:
        raise OSError(5, "Input/output error", "train-00000")
    return step(self)
tr.Trainer.step = failing""", 1, "gpt2.train: rank 1: [Errno 5] Input/output error: 'train-00000'"),
    ("""
step = tr.Trainer.step
def other(self):
    if self.done == 6 and self.group.rank == 1:
        p = next(self.model.parameters())
        p.assign(p.array + 1e-6)
    return step(self)
tr.Trainer.step = other""", 1, "gpt2.train: the weights of the processes differ after step 10: are their machines and files the same?"),
    ("""
from gpt2.train import checkpoints as snapshot
save = snapshot.save
def full(out, model, moments, record, *rest):
    if record["step"] == 10:
        raise snapshot.SaveError("no space left")
    return save(out, model, moments, record, *rest)
snapshot.save = full""", 1, "gpt2.train: no space left"),
], ids=["rank 1", "other weights", "a full disk"])
def test_what_happens_to_one_ends_both(run, tmp_path, body, code, line):
    """One line says what it was and in which process, and the last checkpoint is there."""
    ended, out, err = run(2, tmp_path / "out", "--max-iters", 100000, "--save-every", 5, "--eval-interval", 50000, body=body)
    assert (ended, out, own(err)) == (code, "", [line])
    assert snapshots(tmp_path / "out")[-1].name == "checkpoint-5"


def test_what_both_find_wrong_is_said_once(run, tmp_path):
    """A NaN that all see, rows that cannot be shared out, and settings that are wrong: one line, and nothing is left."""
    code, out, err = run(2, tmp_path / "out", "--learning-rate", "1e30", "--grad-clip", 0, "--max-iters", 50, "--log-interval", 1)
    assert (code, out) == (2, "")
    (line,) = (line for line in own(err) if "warning" not in line)
    assert line.startswith("gpt2.train: the loss became")
    code, out, err = run(3, tmp_path / "no")
    assert (code, out, err) == (2, "", "gpt2.train: 4 rows a step (--batch-size 4 × --gradient-accumulation-steps 1) cannot be divided "
                                       "evenly among 3 processes\n")
    code, out, err = run(2, tmp_path / "no", "--distributed", "nccl")
    assert (code, out, err) == (1, "", "gpt2.train: NCCL works on GPUs, and numpy has none; choose mpi\n")
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize("flags, body, line", slow_unless(lambda case: "validation" in case[2], [
    (["--learning-rate", "1e30", "--grad-clip", 0, "--log-interval", 1], "", "the loss became"),
    ([], "t.validate = lambda *_: {'nats_per_char': float('nan')}", "the validation loss became nan at step 2"),
    ([], """
step = tr.Trainer.step
def other(self):
    if self.group.rank:
        p = next(self.model.parameters())
        p.assign(p.array + 1e-6)
    return step(self)
tr.Trainer.step = other""", "the weights of the processes differ after step 2"),
]), ids=["loss", "validation loss", "weights"])
def test_it_is_said_once_however_late_the_first_process_is(run, tmp_path, flags, body, line):
    """Process 0 has a picture to draw before it says what all have met; meanwhile no other says it, or ends it."""
    late = f"""{body}
import time
from gpt2.train.progress import Report
from minigrad.distributed import GRACE
def slow(self, close=Report.close):
    if self.tells:
        time.sleep(GRACE + 1.5)
    close(self)
Report.close = slow"""
    code, out, err = run(2, tmp_path / "out", "--max-iters", 50, "--eval-interval", 2, *flags, body=late)
    assert out == "" and code in (1, 2)
    (said,) = (one for one in own(err) if "warning" not in one)
    assert said.startswith(f"gpt2.train: {line}")


def test_what_two_need(run, tmp_path):
    """--dry-run is for one of the processes: its rows, and a second copy of the gradients, in which they are summed."""
    numbers = []
    for n in (0, 2):
        code, out, err = run(n, tmp_path / "out", "--dry-run")
        assert (code, err) == (0, "")
        numbers.append({line.split()[0]: float(line.split()[1]) for line in out.splitlines()})
    assert numbers[1]["gradients"] == pytest.approx(2 * numbers[0]["gradients"], rel=0.01) and numbers[1]["logits"] < numbers[0]["logits"]
