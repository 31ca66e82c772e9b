"""benchmarks.run: its peers' answers, its processes, how it judges, and how it ends."""
from __future__ import annotations

import copy
import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from data import ROOT

from benchmarks import agreement, peers, processes, report, rows, run
from benchmarks.peers import PEERS, US, Peer
from benchmarks.report import Result
from benchmarks.rows import Row
from gpt2 import GPT2

SHORT = {
    "train": rows.train(2, 16, size="tiny"),
    "forward": rows.forward(2, 16, size="tiny"),
    "decode": replace(rows.decode(2, 6, size="tiny"), tokens=5),
    "chain": rows.CHAIN,
    "op layer_norm": Row("layer_norm", "op layer_norm", ("torch",), batch=16, tokens=24),
    "op gelu": Row("gelu", "op gelu", ("torch",), batch=16, tokens=24),
    "op attention": Row("attention", "op attention", ("torch",), batch=2, tokens=16),
    "op cross_entropy": Row("cross_entropy", "op cross_entropy", ("torch",), batch=16, tokens=24),
    "op adamw": Row("adamw", "op adamw", ("torch",), batch=1, tokens=400),
}
SLOW = {("torch-compile", "train"), ("torch-compile", "forward"), ("ctranslate2", "decode"), ("ctranslate2-int8", "decode"),
        ("jax", "train")}                               # they compile, or convert
PAIRS = [pytest.param(name, kind, id=f"{name}, {kind}", marks=[pytest.mark.slow] if (name, kind) in SLOW else [])
         for name, peer in PEERS.items() for kind in SHORT if name != US and not peer.option and peers.does(name, kind)]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """The directory of the tiny model that rows of size "tiny" work on."""
    path = tmp_path_factory.mktemp("checkpoint")
    GPT2(rows.config_of("tiny"), seed=0).save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module")
def task(checkpoint):
    """What builds a peer's workload for a row."""
    return lambda name, row: {"builder": PEERS[name].builder, "row": row.to_dict(), "checkpoint": checkpoint}


@pytest.fixture(scope="module")
def ours(task):
    """minigrad's answer for each kind of row."""
    found: dict = {}

    def answer(kind):
        if kind not in found:
            found[kind] = peers.build(task(US, SHORT[kind])).answer()
        return copy.deepcopy(found[kind])

    return answer


def judged(found, wanted, kind, tells=None):
    row = SHORT[kind]
    return agreement.complaints(found, wanted, row, rows.config_of(row.size), tells)


# ── the same work ──
@pytest.mark.parametrize("name, kind", PAIRS)
def test_a_peer_computes_what_we_compute(name, kind, task, ours):
    """Losses, gradients, logits, ids and their log-probabilities of every installed peer are ours within float32's rounding."""
    if (why := peers.missing(name, {})) is not None:
        pytest.skip(why)
    if PEERS[name].prepare:
        peers.build({**task(name, SHORT[kind]), "builder": PEERS[name].prepare}).answer()
    work = peers.build(task(name, SHORT[kind]))
    found = json.loads(json.dumps(work.answer()))
    assert judged(found, ours(kind), kind, PEERS[name].tells) == []
    work.run()
    assert work.about


def test_our_own_answers_are_whole(ours):
    """What others are held to has every key that is judged, survives JSON, and is not zero."""
    assert ours("train").keys() == {"loss", "gradients", "next_loss", "size"}
    assert ours("train")["gradients"].keys() == dict(GPT2(rows.config_of("tiny")).named_parameters()).keys()
    assert ours("train")["next_loss"] < ours("train")["loss"]
    assert all(norm > 0 for norm, _ in ours("train")["gradients"].values())
    assert ours("decode").keys() == {"ids", "scores", "margins"} and np.shape(ours("decode")["ids"]) == (2, 6)
    for kind in SHORT:
        assert json.loads(json.dumps(ours(kind), allow_nan=False)) == ours(kind) and judged(ours(kind), ours(kind), kind) == []


def off(by):
    """A number that is off by so much of itself."""
    return lambda x: x * (1 + by)


def other(x):
    return x + 1


@pytest.mark.parametrize("kind, path, change, says", [
    ("train", ("loss",), off(1e-3), "the loss is"),
    ("train", ("loss",), off(math.nan), "the loss is"),
    ("train", ("next_loss",), off(1e-3), "the loss after a step is"),
    ("train", ("gradients", "h.1.attn.c_attn.bias", 0), off(1e-3), "the norm of h.1.attn.c_attn.bias"),
    ("train", ("gradients", "wpe.weight", 1), lambda x: -x, "the projection of wpe.weight"),
    ("train", ("gradients", "ln_f.bias"), None, "only on one side: ln_f.bias"),
    ("train", ("next_loss",), None, "no next_loss"),
    ("forward", ("values", "logits", 1), lambda x: x + 1.0, "the projection of logits"),
    ("decode", ("ids", 1, 3), other, "new id 3 of row 1"),
    ("decode", ("scores", 0), off(1e-3), "the score of row 0"),
    ("decode", ("ids", 1), None, "1 rows, and 2"),
    ("decode", ("ids", 0, 5), None, "row 0 has 5 new ids"),
    ("chain", ("gradient", 7), off(1e-2), "gradient[7] is"),
    ("op gelu", ("values", "dx", 0), off(1e-3), "the norm of dx"),
])
def test_a_wrong_answer_is_noticed(kind, path, change, says, ours):
    """Each part of an answer is looked at: a change of it beyond rounding, a NaN, or its absence is named."""
    found = ours(kind)
    *way, last = path
    inside = found
    for key in way:
        inside = inside[key]
    if change is None:
        del inside[last]
    else:
        inside[last] = change(inside[last])
    lines = judged(found, ours(kind), kind)
    assert lines and says in lines[0] and "\n" not in lines[0]


def test_the_wrong_gelu_is_noticed(task, ours, checkpoint, tmp_path):
    """A model that differs in the form of its GELU alone, by less than 5e-4 in a value, is not timed as the same work."""
    config = replace(rows.config_of("tiny"), activation_function="gelu")
    GPT2(config, parameters=GPT2.from_pretrained(checkpoint).state_dict()).save_pretrained(tmp_path)
    for kind in ("train", "forward"):
        answer = peers.build({**task(US, SHORT[kind]), "checkpoint": str(tmp_path)}).answer()
        assert judged(answer, ours(kind), kind)


def test_ids_may_part_at_a_tie(ours):
    """Where our two best logits are closer than rounding, another id is no error, nor what follows it; before it is."""
    wanted = ours("decode")
    wanted["margins"][0][2][0] = 0.0
    found = copy.deepcopy(wanted)
    found["ids"][0][2:] = [other(i) for i in found["ids"][0][2:]]
    found["scores"][0] = 0.0
    assert judged(found, wanted, "decode") == []
    found["ids"][0][1] += 1
    assert "new id 1 of row 0" in judged(found, wanted, "decode")[0]


def test_a_sketch_tells_arrays_apart():
    """The norm, and a projection that a permutation, a transpose or a sign changes; the same for a piece at a time."""
    x = np.random.default_rng(0).standard_normal((40, 50)).astype(np.float32)
    norm, along = agreement.sketch("x", x)
    assert norm == pytest.approx(np.linalg.norm(x.astype(np.float64)), rel=1e-14)
    for changed in (x.T, -x, x[::-1], np.roll(x, 1)):
        assert abs(agreement.sketch("x", changed)[1] - along) > 1e-3 * norm
    assert agreement.sketch("y", x)[1] != along and agreement.sketch("x", x) == [norm, along]


# ── processes ──
FAKES = """
import os, sys
from benchmarks.peers import Work
def noisy(task):
    print("a library talks")
    os.write(1, b"a C library too\\n")
    return Work(lambda: None, lambda: {"gradient": [1.0]}, "fake")
def clocked(task):
    return Work(lambda: 0.125, dict, "fake", peak=lambda: 77, clocked=True)
def wrong(task):
    return Work(lambda: None, lambda: {"gradient": [0.0] * 10}, "fake")
def raises(task):
    raise ValueError("no\\nsuch thing")
def dies(task):
    def run():
        sys.stderr.write("first\\nthe last words\\n"); sys.stderr.flush(); os._exit(7)
    from benchmarks.engines import minigrad_chain
    return Work(run, minigrad_chain(task).answer, "fake")
def dies_late(task):
    from benchmarks.engines import minigrad_chain
    left = [0]
    def run():
        left[0] += 1
        if left[0] > 2:
            os.kill(os.getpid(), 9)
        return 0.5
    return Work(run, minigrad_chain(task).answer, "fake", clocked=True)
def waits(task):
    import time
    from benchmarks.engines import minigrad_chain
    return Work(lambda: time.sleep(60), minigrad_chain(task).answer, "fake")
"""


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """Adds a peer that is a function of FAKES, for the chain."""
    (tmp_path / "bench_fakes.py").write_text(FAKES)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def add(name, **fields):
        entry = Peer(**{"builder": f"bench_fakes:{name}", "needs": (), "kinds": ("chain",), **fields})
        monkeypatch.setitem(PEERS, name, entry)
        return {"builder": entry.builder, "row": rows.CHAIN.to_dict()}

    return add


def gone(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_a_child_talks_in_replies_alone(fake):
    """What a library prints is no reply; BLAS is not steered in a child; it is gone when closed."""
    child = processes.Child(fake("noisy"))
    try:
        assert child.answer == {"gradient": [1.0]} and child.about == "fake"
        child.warm()
        seconds, peak = child.go()
        assert 0 < seconds < 1 and peak > 1e6
    finally:
        child.close()
    assert gone(child.process.pid)
    child = processes.Child(fake("clocked"))
    child.warm()
    assert child.go() == (0.125, 77)
    child.close()


def test_a_child_ends_with_its_stdin(fake):
    """Nobody needs to kill it when the runner is gone."""
    child = processes.Child(fake("noisy"))
    child.process.stdin.close()
    assert child.process.wait(timeout=20) == 0
    child.close()


def test_the_environment_is_a_users(monkeypatch):
    """Nothing steers BLAS or its threads, except where threads are asked for; the package is found from anywhere."""
    for name in (*processes.UNSET, *processes.THREADS):
        monkeypatch.setenv(name, "1")
    env = processes.environment()
    assert not {*processes.UNSET, *processes.THREADS} & set(env) and env["PYTHONPATH"].split(os.pathsep)[0] == str(ROOT)
    env = processes.environment(2)
    assert not set(processes.UNSET) & set(env) and {env[name] for name in processes.THREADS} == {"2"}


@pytest.mark.parametrize("name, says", [("raises", "ValueError: no such thing"), ("dies", "ended with exit code 7: the last words")])
def test_a_failing_child_is_one_line(fake, name, says):
    """What a child cannot do is one line with its reason."""
    with pytest.raises(processes.Dead) as caught:
        child = processes.Child(fake(name))
        try:
            child.warm()
        finally:
            child.close()
    assert str(caught.value) == says


@pytest.fixture
def measure(tmp_path, capsys, monkeypatch):
    """Runs one row with a Bench of two rounds; the result, and stderr's lines."""
    monkeypatch.setattr(run, "SETTLE", 0.0)

    def go(row, rounds=2, names=None):
        result = Result(row)
        run.Bench(str(tmp_path / "weights"), rounds, names, {}).run(row, result)
        return result, capsys.readouterr().err.splitlines()

    return go


def test_a_wrong_answer_is_refused(fake, measure):
    """It is named, not timed, and the others go on."""
    fake("wrong")
    result, lines = measure(replace(rows.CHAIN, peers=("wrong",)))
    assert set(result.measured) == {US} and len(result.measured[US].seconds) == 2
    assert result.wrong["wrong"][0].startswith("gradient[0] is 0.0, and ")
    assert [line for line in lines if "its answer is not ours" in line]
    assert "NOT TIMED" in report.remarks(report.document([result], {})["rows"][0])[-1]


def test_a_dying_child_is_left_out(fake, measure):
    """In the middle of the rounds: one line; what was measured of it stays, and the others go on."""
    fake("dies_late")
    result, lines = measure(replace(rows.CHAIN, peers=("dies_late",)), rounds=3)
    assert result.left_out == {"dies_late": "killed; was there memory enough?"}
    assert len([line for line in lines if "left out" in line]) == 1
    assert len(result.measured[US].seconds) == 3 and len(result.measured["dies_late"].seconds) == 1


def test_a_missing_peer_is_one_line(fake, measure):
    """It names what is missing and the command that gets it; all rows together say it once."""
    fake("absent", needs=("json", "no_such_module_here"))
    result, lines = measure(replace(rows.CHAIN, peers=("absent",)))
    assert lines[0] == ("absent is left out: no_such_module_here is not installed; "
                        "install it with: pip install json no_such_module_here")
    assert set(result.measured) == {US}
    assert "--llmc DIR" in peers.missing("llm.c", {}) and peers.missing("llm.c", {"llmc": "x"}) is None


def test_only_the_wanted_peers_run(fake, measure):
    """--peers leaves minigrad and those named."""
    fake("wrong")
    result, _ = measure(replace(rows.CHAIN, peers=("wrong",)), names=[])
    assert set(result.measured) == {US} and not result.wrong


def test_who_fits_beside_whom():
    """Every group holds minigrad and fits; everyone is in one group, or left out because no group could hold them."""
    need = {US: 2.0, "a": 3.0, "b": 3.0, "c": 5.0, "d": 1.0, "e": 9.0}
    groups, left = processes.fit([US], ["a", "b", "c", "d", "e"], need, 8.0)
    assert left == ["e"] and sorted(name for g in groups for name in g[1:]) == ["a", "b", "c", "d"]
    assert all(g[0] == US and sum(need[name] for name in g) <= 8.0 for g in groups)
    assert processes.fit([US], [], need, 8.0) == ([[US]], []) and processes.fit([US], ["a"], need, 1.0) == ([], [US, "a"])
    assert processes.fit([US], ["e"], need, 8.0) == ([[US]], ["e"])


# ── the command ──
# two BLAS threads that wait for each other by spinning take seconds for nothing on a busy machine
ON_ONE_CORE = """
import os, runpy, sys
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
runpy.run_module("benchmarks.run", run_name="__main__")
"""


def command(*args, **options):
    return subprocess.run([sys.executable, "-c", ON_ONE_CORE, *args], cwd=ROOT, capture_output=True, text=True, **options)


def test_the_command_lists_and_refuses(capsys, monkeypatch):
    """--list measures nothing; a row, a peer or a directory that is not there is a usage error in one line."""
    assert run.main(["--list", "--suite", *rows.SUITES]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(rows.rows_of(list(rows.SUITES)))
    for args, says in ((["--row", "nothing"], "no row of cpu and ops begins with 'nothing'"), (["--peers", "x"], "there is no peer 'x'"),
                       (["--rounds", "0"], "0 is less than 1")):
        with pytest.raises(SystemExit) as caught:
            run.main(args)
        err = capsys.readouterr().err
        assert caught.value.code == 2 and says in err and len(err.splitlines()) == 1
    done = command("--json", "/no/such/place/x.json", "--row", "gradient")
    assert done.returncode == 2 and "this directory does not exist" in done.stderr and len(done.stderr.splitlines()) == 1


def test_without_a_gpu_it_says_so():
    """One line, exit code 4."""
    done = subprocess.run([sys.executable, "-m", "benchmarks.gpu"], capture_output=True, text=True, cwd=ROOT,
                          env={**os.environ, "CUDA_VISIBLE_DEVICES": ""})
    assert done.returncode == 4 and len(done.stderr.splitlines()) == 1 and "cupy" in done.stderr and not done.stdout


def test_the_command_measures(tmp_path):
    """A tiny training step and a start, without peers: the table on stdout, exit 0, the files; nothing temporary is left."""
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    done = command("--size", "tiny", "--peers", "none", "--rounds", "1", "--row", "train step B4 T64", "process", "--json", str(tmp_path),
                   env={**os.environ, "TMPDIR": str(temporary)})
    assert done.returncode == 0, done.stderr
    assert "── train step B4 T64" in done.stdout and "of floor" in done.stdout and "sgemm" in done.stdout
    found = json.loads(next(tmp_path.glob("*.json")).read_text())
    assert [entry["row"]["kind"] for entry in found["rows"]] == ["train", "start"] and not found["interrupted"]
    assert all(entry["peers"][0]["peer"] == US for entry in found["rows"]) and len(found["rows"][0]["floor"]) == 1
    assert not list(temporary.iterdir())


def test_a_wrong_answer_is_exit_code_1(fake, monkeypatch, capsys):
    """The run goes on to its end, and then says so."""
    fake("wrong")
    monkeypatch.setattr(run, "wanted_rows", lambda *_: [replace(rows.CHAIN, peers=("wrong",))])
    assert run.main(["--rounds", "1"]) == 1
    assert "NOT TIMED" in capsys.readouterr().out


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_prints_what_there_is(sent, tmp_path):
    """Exit 130, the table of the row it was in, the files, and no process left."""
    script = (f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
              "from benchmarks import peers, rows, run\nfrom dataclasses import replace\nfrom gpt2.cli.command import run_command\n"
              "peers.PEERS['waits'] = peers.Peer('bench_fakes:waits', (), ('chain',))\n"
              "run.wanted_rows = lambda *_: [replace(rows.CHAIN, peers=('waits',))]\n"
              "run_command(run.main, 'benchmarks.run')\n")
    (tmp_path / "bench_fakes.py").write_text(FAKES)
    path = tmp_path / "x.json"
    process = subprocess.Popen([sys.executable, "-c", script, "--json", str(path)], cwd=tmp_path, text=True, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(tmp_path)},
                               preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))
    for line in process.stderr:
        if "waits: building" in line:
            break
    time.sleep(0.5)
    mine = [int(p) for p in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    process.send_signal(sent)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "interrupted; what there is" in err and "── gradient of a 9-op chain" in out
    assert "Traceback" not in err and mine and all(gone(pid) for pid in mine)
    assert json.loads(path.read_text())["interrupted"] is True
