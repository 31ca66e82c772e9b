"""The memory of a training step, predicted before it starts, beside what it takes."""
from __future__ import annotations

import argparse
import tracemalloc

import numpy as np
import pytest

from gpt2.config import GPT2Config
from gpt2.model import GPT2
from gpt2.train.__main__ import parser
from gpt2.train.memory import check_fits, footprint
from gpt2.train.trainer import Trainer
from minigrad import backend
from tests.gpt2.train.test_train import SMALL, held, run  # noqa: F401  the fixture


def _case(**sizes):
    flags = [word for name, value in sizes.items() for word in ([f"--{name.replace('_', '-')}"] + ([] if value is True else [str(value)]))]
    args = parser().parse_args([*flags, "--backend", "numpy"])
    config = GPT2Config(vocab_size=3000, n_positions=args.block_size, n_embd=args.n_embd, n_layer=args.n_layer, n_head=args.n_head,
                        embd_pdrop=args.dropout, resid_pdrop=args.dropout, attn_pdrop=args.attn_dropout, bos_token_id=0, eos_token_id=0)
    return config, args


@pytest.mark.parametrize("sizes", [
    {"n_layer": 4, "batch_size": 8, "block_size": 128},
    {"n_layer": 4, "batch_size": 8, "block_size": 128, "recompute": True},
    {"n_layer": 2, "batch_size": 2, "block_size": 32},
    {"n_layer": 3, "batch_size": 2, "block_size": 128, "gradient_accumulation_steps": 2, "dropout": 0.1, "attn_dropout": 0.1},
    {"n_layer": 2, "batch_size": 2, "block_size": 64, "dtype": "float64"},
], ids=str)
def test_the_prediction_is_what_a_step_takes(sizes):
    """Between the peak of a step and a sixth more: nothing starts that does not fit, and little is refused that would."""
    config, args = _case(**sizes)
    needs = footprint(config, args)
    ids = np.random.default_rng(0).integers(0, 3000, 4000).astype(np.uint16)
    tracemalloc.start()
    try:
        trainer = Trainer(GPT2(config, recompute=args.recompute, dtype=args.dtype), ids, args)
        trainer.step()
        tracemalloc.reset_peak()
        trainer.step()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert 0.98 * peak <= needs["total"] <= 1.17 * peak


def test_float64_takes_twice_as_much():
    """Every number has 8 bytes instead of 4: weights, moments, gradients, activations, and logits where they fit into one block."""
    for sizes in ({"batch_size": 1}, {"batch_size": 1, "recompute": True}, {"batch_size": 1, "freeze": "wte.weight"}):
        needs, twice = (footprint(*_case(**sizes, dtype=dtype)) for dtype in ("float32", "float64"))
        assert twice == {name: 2 * size for name, size in needs.items()}, sizes


def test_what_helps_is_said():
    """Where weights and moments alone are too much, a smaller model; else recomputing, smaller batches, smaller blocks, in that order."""
    for sizes, free, advice in [
        ({}, 1000, "try a smaller model"),
        ({"batch_size": 64}, 200e6, "try --recompute, a smaller --batch-size with more --gradient-accumulation-steps"),
        ({"batch_size": 512, "recompute": True}, 200e6, "try a smaller --batch-size"),
        ({"batch_size": 1, "block_size": 30000}, 500e6, "try --recompute, a smaller --block-size"),
    ]:
        config, args = _case(**sizes)
        needs = footprint(config, args)
        with pytest.raises(ValueError, match="a step needs about .* are free; " + advice):
            check_fits(needs, int(free), args)
        check_fits(needs, needs["total"], args)


def test_a_dry_run_starts_nothing(run, tmp_path, monkeypatch):  # noqa: F811
    """The parts, their total and what is free on stdout, and no directory; a run that cannot fit ends with exit 2 before it starts."""
    code, out, _ = run(tmp_path / "out", "--dry-run")
    assert code == 0 and [line.split()[0] for line in out.splitlines()] == [
        "parameters", "optimizer", "gradients", "activations", "logits", "total", "free"]
    monkeypatch.setattr(backend.cpu, "free_memory", lambda: 10_000, raising=False)
    for flags in ((), ("--dry-run",)):
        code, out, err = run(tmp_path / "out", *flags)
        assert code == 2 and "10.0 kB are free; try a smaller model" in err and err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_what_is_frozen_costs_nothing():
    """Frozen parameters have neither gradient nor moments."""
    config, args = _case()
    whole = footprint(config, args)
    some = footprint(config, argparse.Namespace(**{**vars(args), "freeze": ["wte.weight", "h.*"]}))
    left = config.n_positions * config.n_embd + 2 * config.n_embd
    assert some["optimizer"] == 2 * some["gradients"] == 8 * left and some["parameters"] == whole["parameters"] > 4 * left


def test_free_memory_is_what_the_system_says():
    """More than nothing, and no more than the machine has."""
    free = backend.cpu.free_memory()
    with open("/proc/meminfo", encoding="utf-8") as file:
        total = 1024 * int(next(file).split()[1])
    assert 1e8 < free <= total
