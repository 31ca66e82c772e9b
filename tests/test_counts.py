"""What a step of GPT-2 takes, in counts: ops, nodes, bytes kept, peak, page faults. A change of the engine that costs more shows here.

The numbers that are expected stand in one table. Where a change makes one better, change it here; where worse, ask why first.
"""
from __future__ import annotations

import json
import platform
import subprocess
import sys
from collections import Counter
from typing import Any

import numpy as np
import pytest

import minigrad as mg
from benchmarks import counts
from gpt2.config import GPT2Config, num_parameters
from minigrad import backend
from minigrad.backend.numpy.blas import one_thread
from minigrad.debug import explain
from minigrad.op import REGISTRY

# ── the table ──
# ops of a forward pass: in each block, and once
FORWARD_BLOCK = {
    "layer_norm": 2,                                    # ln_1, ln_2
    "addmm": 3, "matmul": 1,                            # c_attn, attn.c_proj, mlp.c_proj; c_fc, whose bias gelu adds
    "split_heads": 1, "join_heads": 1,                  # to q, k and v in heads; the result from heads
    "attention": 1,
    "gelu": 1,
    "add": 2,                                           # on the residual stream
}
FORWARD_ONCE = {
    "embedding": 2, "add": 1,                           # wte + wpe
    "layer_norm": 1,                                    # ln_f
    "linear_cross_entropy": 1,                          # the head and the loss
}

# a token decoded: as forward, but the last position of [B, T, d] is taken, and the head gives its logits
DECODE_ONCE = {"embedding": 2, "add": 1, "getitem": 1, "layer_norm": 1, "linear": 1}

# ops within the text of rules, in the walk back; where a kernel of the CPU takes the rule there are none
BACKWARD_BLOCK = {
    "matmul": 8,                                        # two for each product: the gradients of its input and its weight
    "transpose": 8,                                     # the other factor of each of those
    "reshape": 8,                                       # input and cotangent of each product as matrices
    "sum_to": 4,                                        # the bias of each addmm; matmul's input, which was not broadcast
    "split_heads": 1, "join_heads": 1,                  # each is the other's transpose
}
BACKWARD_ONCE = {
    "scatter_rows": 1,                                  # wpe; that of wte is added into the head's by a kernel
    "sum_to": 1,                                        # wpe was broadcast over rows
}

# runs of the CPU's own kernels: in each block, and once
KERNELS = {
    "forward": ({"layer_norm": 2, "addmm": 3, "attention": 1, "gelu": 1}, {"layer_norm": 1, "linear_cross_entropy": 1}),
    "backward": ({"layer_norm/joint": 2, "attention/joint": 1, "gelu/joint": 1, "sum_to": 3},
                 {"layer_norm/joint": 1, "linear_cross_entropy/x": 1, "linear_cross_entropy/weight": 1, "embedding_op/weight+": 1}),
    "update": ({}, {"adamw_update": 2}),                # for all that decays, and for all that does not
}

NODES_BLOCK = 3                                         # nodes besides those of ops: q, k and v, the parts of split_heads


def kept_block(B: int, T: int, d: int, n: int, h: int) -> dict[str, int]:
    """Bytes that a block keeps for the walk back, by the op that keeps them. Each memory once: at the oldest that does."""
    rows = 4 * B * T                                    # one float32 for each token
    return {
        "layer_norm": 2 * rows * (d + 1 + 1),           # the residual stream before it, mean and 1/σ of each row: twice
        "addmm": rows * (d + n), "matmul": rows * d,    # what goes into c_attn and mlp.c_proj; into c_fc
        "attention": rows * (3 * d + d + h),            # q, k, v (one array, seen in parts), its result, which is what goes into
                                                        # attn.c_proj (seen with heads side by side), log-sum-exp of each row
        "gelu": rows * n,                               # what goes into it; its result is what mlp.c_proj keeps
    }


def kept_once(B: int, T: int, d: int, V: int) -> dict[str, int]:
    """The same of what comes before the blocks and after them."""
    rows = 4 * B * T
    return {
        "embedding": 8 * B * T + 8 * T,                 # ids and positions, int64
        "layer_norm": rows * (d + 1 + 1),
        # x, and the gradients of x and of the head's weight, made in forward so that no logits are kept; targets, int64
        "linear_cross_entropy": 2 * rows * d + 4 * V * d + 8 * B * T,
    }


# at its peak a step walks back over the last GELU: to what is kept come its cotangent, its gradient and two temporaries of a block
PEAK = 4                                                # arrays [B, T, n] of the MLP over what is kept, which covers the small ones too
FAULTS = counts.LARGE // 4096                           # in a step, fewer page faults than one large array costs
PARAMETERS = 3                                          # arrays live between steps: the parameters, and AdamW's two for each

# ── how the table is used ──
SHAPES = [{"n_layer": 2, "n_embd": 128, "n_head": 4, "B": 2, "T": 64},
          {"n_layer": 3, "n_embd": 64, "n_head": 2, "n_inner": 96, "B": 3, "T": 40}]


def shape_id(shape: dict[str, int]) -> str:
    return f"L{shape['n_layer']} d{shape['n_embd']} B{shape['B']} T{shape['T']}"


def made(shape: dict[str, int], **options: Any) -> tuple[GPT2Config, counts.Work]:
    config = GPT2Config(**{**counts.TINY, **{name: value for name, value in shape.items() if name not in ("B", "T")}})
    return config, counts.Work(config, shape["B"], shape["T"], **options)


def total(block: dict[str, int], once: dict[str, int], layers: int) -> Counter[str]:
    return Counter({name: layers * n for name, n in block.items()}) + Counter(once)


@pytest.fixture(scope="module", params=SHAPES, ids=shape_id)
def called(request: Any) -> tuple[GPT2Config, dict[str, int], dict[str, Any]]:
    """What was run in a step and for a token, of a model of each shape."""
    config, work = made(request.param)
    with one_thread():                                  # threads of BLAS that wait for each other are slow on a busy machine
        return config, request.param, counts.count_calls(lambda: work)


@pytest.fixture(scope="module")
def arrays() -> dict[str, Any]:
    """Bytes of arrays in steps on so many rows that gradients are a small part of them, and what a forward pass keeps."""
    shape = SHAPES[0] | {"B": 4}
    _, work = made(shape)
    work.forward()
    with one_thread():
        return counts.count_arrays(lambda: made(shape)[1]) | {"kept": explain(work.loss).kept}


# ── ops ──
def test_forward_calls_these_ops(called: Any):
    """Ops of a forward pass: so many for each block, and so many once."""
    config, _, found = called
    assert Counter(found["train"]["calls"]["forward"]["ops"]) == total(FORWARD_BLOCK, FORWARD_ONCE, config.n_layer)


def test_backward_calls_these_ops(called: Any):
    """Ops that rules run in the walk back."""
    config, _, found = called
    assert Counter(found["train"]["calls"]["backward"]["ops"]) == total(BACKWARD_BLOCK, BACKWARD_ONCE, config.n_layer)


@pytest.mark.parametrize("phase", KERNELS)
def test_the_kernels_of_the_cpu_are_run(called: Any, phase: str):
    """A case that a kernel was made for, and declines by mistake, would be slow and right: so their runs are counted."""
    config, _, found = called
    assert Counter(found["train"]["calls"][phase]["kernels"]) == total(*KERNELS[phase], config.n_layer)


def test_the_optimiser_calls_no_op(called: Any):
    """A step of AdamW is one kernel for each parameter."""
    assert called[2]["train"]["calls"]["update"]["ops"] == {}


def test_a_token_calls_these_ops(called: Any):
    """Ops for one token more, through the KV cache: a block's are those of training."""
    config, _, found = called
    assert Counter(found["decode"]["calls"]["decode"]["ops"]) == total(FORWARD_BLOCK, DECODE_ONCE, config.n_layer)


def test_nodes_are_ops_and_parts(called: Any):
    """A node for each op that was run, and for each of q, k and v."""
    config, _, found = called
    assert found["train"]["graph"]["nodes"] == sum(found["train"]["calls"]["forward"]["ops"].values()) + NODES_BLOCK * config.n_layer


# ── memory ──
def test_what_is_kept_is_known(called: Any):
    """The bytes that each op keeps for the walk back are those of the formula, and the weights are not among them."""
    config, shape, found = called
    B, T, d, h = shape["B"], shape["T"], config.n_embd, config.n_head
    expected = total(kept_block(B, T, d, config.n_inner or 4 * d, h), kept_once(B, T, d, config.vocab_size), config.n_layer)
    graph = found["train"]["graph"]
    assert graph["kept_by_op"] == expected and graph["kept"] == expected.total()
    assert graph["leaves"] == 4 * num_parameters(config)


def test_recomputing_a_block_keeps_its_input():
    """With recompute, a block keeps its input alone, and what is kept grows by B·T·d numbers with each layer."""
    for shape in SHAPES:
        config, work = made(shape, recompute=True)
        work.forward()
        B, T, d = shape["B"], shape["T"], config.n_embd
        once = sum(kept_once(B, T, d, config.vocab_size).values())
        assert explain(work.loss).kept == once + config.n_layer * 4 * B * T * d


def test_a_step_leaves_nothing_behind(arrays: Any):
    """After the warm-up, exactly as many bytes of arrays are live after each step: parameters, and AdamW's two for each."""
    least = PARAMETERS * 4 * num_parameters(made(SHAPES[0])[0])
    assert len(set(arrays["train"]["live"])) == 1 and least <= arrays["train"]["live"][0] <= least + counts.LARGE


def test_a_token_takes_nothing_large(arrays: Any):
    """No array of a token decoded is left behind, and at no time are they as much as one large array."""
    assert len(set(arrays["decode"]["live"])) == 1 and max(arrays["decode"]["peak"]) < counts.LARGE


def test_the_peak_is_little_more_than_what_is_kept(arrays: Any):
    """Gradients take the place of what they were computed from: a step never needs much more than forward left."""
    wide = 4 * 4 * SHAPES[0]["T"] * 4 * SHAPES[0]["n_embd"]              # B = 4, n = 4d
    assert arrays["kept"] < max(arrays["train"]["peak"]) < arrays["kept"] + PEAK * wide


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="page faults are counted, and memory is kept, with glibc on Linux")
def test_a_step_takes_no_memory_anew(monkeypatch: Any):
    """After the warm-up, in a process that keeps its memory, a step costs fewer page faults than one large array would."""
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")     # as above
    found = counts.measured("faults", ["--size", "tiny"])
    for work in ("train", "decode"):
        assert sorted(found[work]["faults"])[counts.STEPS // 2] < FAULTS, found


# ── the counting itself ──
def test_runs_are_counted_by_name():
    """Ops by the name that people know, as functions, operators and within rules; the CPU's kernels where they took the case."""
    x = mg.tensor(np.ones((4, 4), np.float32), requires_grad=True)
    table, plain = backend.cpu.kernels, [op.kernel for op in REGISTRY.values()]
    with pytest.raises(ZeroDivisionError), counts.counting() as calls:
        y = mg.gelu(x @ x + x, approximate="tanh")
        mg.gelu(x, approximate="none")                  # which the kernel declines
        (y * 2.0).sum().backward()
        raise ZeroDivisionError
    assert {"matmul": 3, "add": 1, "gelu": 2, "mul": 1, "sum": 1}.items() <= calls.ops.items() and "matmul_op" not in calls.ops
    assert {name: n for name, n in calls.kernels.items() if name.startswith("gelu")} == {"gelu": 1, "gelu/joint": 1}
    assert backend.cpu.kernels is table and [op.kernel for op in REGISTRY.values()] == plain           # all is as before
    before = calls.ops.copy()
    mg.gelu(x + x, approximate="tanh")
    assert calls.ops == before                          # and outside, nothing is counted


def test_the_command_says_all_of_it(capsys: Any, monkeypatch: Any, called: Any, arrays: Any):
    """A table of calls by phase, what is kept by op, and memory; as JSON the same numbers; progress on stderr."""
    faults = {"train": {"faults": [7, 9], "peak_rss": 50_000_000}, "decode": {"faults": [1, 0]}}
    fresh = {"train": {"fresh": [4096]}, "decode": {"fresh": [0]}}
    took = {"calls": called[2], "arrays": {name: arrays[name] for name in ("train", "decode")}, "faults": faults, "fresh": fresh}
    monkeypatch.setattr(counts, "measured", lambda measure, flags: took[measure])
    assert counts.main(["--size", "tiny", "--batch", "3", "--json"]) == 0
    out, err = capsys.readouterr()
    lines, document = out.splitlines(), json.loads(out.splitlines()[-1])
    assert lines[0] == "tiny, B3 T64, float32: a training step, and a token decoded"
    assert lines[1].split() == ["forward", "backward", "update", "decode"]
    ops = called[2]["train"]["calls"]["forward"]["ops"]
    assert int(lines[2].split()[1]) == sum(ops.values()) and f"  addmm {ops['addmm']}".split() == next(
        line.split()[:2] for line in lines if line.startswith("  addmm"))
    assert called[2]["train"]["graph"]["table"] in out
    ends = [line.split()[-2:] for line in lines if line.startswith(("page faults", "most memory"))]
    assert ends == [["1", "0"], ["50.0", "MB"]] or sys.platform != "linux"
    merged = {name: {key: value for part in took.values() for key, value in part[name].items()} for name in ("train", "decode")}
    assert document == {"size": "tiny", "batch": 3, "block_size": 64, "recompute": False, **merged}
    assert all(line.startswith("benchmarks.counts: ") for line in err.splitlines())


@pytest.mark.parametrize(("flags", "says"), [
    (["--size", "nano"], "invalid choice: 'nano'"), (["--size", "tiny", "--block-size", "65"], "--block-size 65 does not fit"),
    (["--batch", "0"], "0 is less than 1"), (["--block-size", "1"], "1 is less than 2")])
def test_bad_flags_are_one_line(flags: list[str], says: str):
    """Exit 2, one line on stderr that says what is wrong, nothing on stdout."""
    done = subprocess.run([sys.executable, "-m", "benchmarks.counts", *flags], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1) and says in done.stderr
