"""The whole GPT-2 of 124M parameters, random weights, against transformers: logits, loss, every gradient, the cache, ten AdamW steps,
and ten steps of gpt2.train.

With -s a report is printed: a line per tensor, with max |Δ| and that in units of its bound (see agreement.py).
"""
from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from agreement import Line, everything, in_pieces, lengths, logits, loss, report, table, theirs, worst

import minigrad as mg
from gpt2.config import GPT2Config
from gpt2.model import GPT2
from gpt2.train.__main__ import parser
from gpt2.train.trainer import Trainer
from gpt2.train.trainer import batch as drawn
from minigrad.optim import AdamW, decay_groups
from minigrad.random import fold_in

pytestmark = pytest.mark.slow                           # four minutes, and 8 GB for the steps in float64

CONFIG = replace(GPT2Config.from_name("gpt2"), embd_pdrop=0.0, resid_pdrop=0.0, attn_pdrop=0.0)
LOGITS = {"float32": 1e-4, "float64": 1e-10}            # absolute
GRADIENTS = {"float32": 1e-5, "float64": 1e-10}         # ‖difference‖ / ‖gradient‖ of each tensor


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """GPT-2's first weights from a seed, with biases and LayerNorm weights moved so that each of them matters, in a directory of ours."""
    model = GPT2(CONFIG, seed=1)
    for i, p in enumerate(model.parameters()):
        if p.ndim == 1:
            p.assign(p.array + mg.random.normal(mg.random.fold_in(2, i), p.shape, std=0.1).array)
    path = tmp_path_factory.mktemp("gpt2")
    model.save_pretrained(path)
    return path


class Both(NamedTuple):
    """The two models with the same weights in the same dtype."""

    ours: GPT2
    theirs: torch.nn.Module
    dtype: str


@pytest.fixture(scope="module", params=["float32", "float64"])
def both(request, directory):
    return Both(GPT2.from_pretrained(directory, dtype=request.param), theirs(directory, request.param), request.param)


def batch(rows, tokens, seed=0):
    """ids and the ids that follow them, [rows, tokens] each."""
    ids = np.random.default_rng(seed).integers(0, CONFIG.vocab_size, (rows, tokens + 1))
    return ids[:, :-1].copy(), ids[:, 1:].copy()


@pytest.fixture(scope="module")
def results(both):
    """Logits, loss and gradients of either model on two rows of 24 tokens, of which three targets do not count."""
    ids, targets = batch(2, 24, seed=1)
    targets[0, :3] = -100
    return everything(both.ours, ids, targets), everything(both.theirs, ids, targets)


def test_logits_agree(both, results):
    """Every logit is within 1e-4 of transformers' in float32 and within 1e-10 in float64."""
    ours, wanted = results
    assert np.abs(ours["logits"] - wanted["logits"]).max() <= LOGITS[both.dtype]


def test_gradients_agree(both, results):
    """The gradient of each of the 148 tensors is within 1e-5 of PyTorch's in relative norm in float32, and within 1e-10 in float64."""
    ours, wanted = ({k: v for k, v in side.items() if k not in ("logits", "loss")} for side in results)
    apart, name = worst(ours, wanted)
    assert len(ours) == 148
    assert apart <= GRADIENTS[both.dtype], name


def test_every_tensor_is_within_its_bound(both, results):
    """No element of logits, loss or any gradient is farther from PyTorch's than rounding explains."""
    lines = report(*results, CONFIG, 2, 24)
    print("\n" + table(lines, f"GPT-2 124M, B2 T24, {both.dtype}: ours beside PyTorch's"))
    assert len(lines) == 150
    assert {line.name: line.units for line in lines if not line.units <= 1.0} == {}


def test_the_cache_gives_their_one_pass(both):
    """Rows padded at the left and read into the KV cache in pieces give the logits that transformers gives each row alone."""
    ids, _ = batch(3, 24, seed=5)
    pad = [0, 23, 9]
    found = in_pieces(both.ours, ids, [5, 1, 1, 8], pad)
    for row, got, skip in zip(ids, found, pad):
        assert np.abs(got[skip:] - logits(both.theirs, row[None, skip:])[0]).max() <= LOGITS[both.dtype]


def test_greedy_tokens_agree(directory):
    """40 greedy tokens of two rows are transformers', with the KV cache and without it.

    With GPT-2's first weights a token's successor is itself. All matrices four times as large make the tokens depend on
    all that came before, and so an error anywhere would change them; the likeliest tokens stand well clear of the second.
    """
    ours, wanted = GPT2.from_pretrained(directory), theirs(directory)
    for p in ours.parameters():
        if p.ndim == 2:
            p.assign(p.array * np.float32(4.0))
    with torch.no_grad():
        for p in wanted.parameters():
            p.mul_(4.0 if p.ndim == 2 else 1.0)
    prompt, _ = batch(2, 8, seed=3)
    tokens = wanted.generate(torch.tensor(prompt), attention_mask=torch.ones(prompt.shape, dtype=torch.long), max_new_tokens=40,
                             do_sample=False, eos_token_id=None, pad_token_id=0).tolist()
    ids = np.array(tokens)[:, :-1]
    ordered = np.sort(logits(wanted, ids)[:, 7:], axis=-1)
    margin = (ordered[..., -1] - ordered[..., -2]).min()
    apart = np.abs(logits(ours, ids) - logits(wanted, ids)).max()
    assert margin > 10 * apart
    assert all(len(set(row[8:])) >= 20 for row in tokens) and tokens[0][8:] != tokens[1][8:]
    for use_cache in (True, False):
        assert ours.generate(prompt, 40, greedy=True, eos_token_id=None, use_cache=use_cache) == tokens


def test_ten_adamw_steps_agree(directory):
    """In float64 the losses before each of ten AdamW steps, and after the last, are those of torch.optim.AdamW to 1e-6.

    So is every weight to the bound of a step: lr·δ/ε for a gradient that is off by δ. Matrices and tables decay, vectors do not; the
    loss falls by more than a nat, so that the steps are no trifle.
    """
    how = {"lr": 1e-4, "betas": (0.9, 0.95), "eps": 1e-8}
    ids, targets = batch(1, 8, seed=3)

    def run(model, optimizer):
        losses, largest = [], {}
        for _ in range(10):
            optimizer.zero_grad()
            value = loss(model, ids, targets)
            value.backward()
            for name, p in model.named_parameters():
                largest[name] = max(largest.get(name, 0.0), float(abs(p.grad).max()))
            optimizer.step()
            losses.append(value.item())
        optimizer.zero_grad()
        return [*losses, loss(model, ids, targets).item()], largest

    ours = GPT2.from_pretrained(directory, dtype="float64")
    before = {name: p.numpy().copy() for name, p in ours.named_parameters() if p.ndim == 1}
    found, largest = run(ours, AdamW(decay_groups(ours.parameters(), 0.1), **how))
    model = theirs(directory, "float64")
    matrices, vectors = [p for p in model.parameters() if p.ndim >= 2], [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    wanted, _ = run(model, torch.optim.AdamW(groups, fused=True, **how))
    assert wanted[0] - wanted[-1] > 1.0
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-6)
    rounding = math.sqrt(lengths(CONFIG, *ids.shape)["gradient"]) * np.finfo(np.float64).eps
    lines = []
    for (name, p), q in zip(ours.named_parameters(), model.parameters()):
        bound = 10 * how["lr"] * (rounding * largest[name] / how["eps"] + 40 * np.finfo(np.float64).eps)
        apart = float(np.abs(p.numpy() - q.detach().numpy()).max())
        lines.append(Line(name, apart, float(np.abs(p.numpy()).max()), apart / bound))
    print("\n" + table(lines, "GPT-2 124M, weights after ten AdamW steps, float64: ours beside PyTorch's"))
    assert all(np.abs(p.numpy() - before[name]).max() > how["lr"] for name, p in ours.named_parameters() if name in before)
    assert {line.name: line.units for line in lines if not line.units <= 1.0} == {}


@pytest.mark.parametrize("dtype, apart", [("float32", 1e-5), ("float64", 1e-9)])
def test_ten_steps_of_training_agree(directory, dtype, apart):
    """The losses of ten steps of `gpt2.train` are those of PyTorch's own AdamW, clip_grad_norm_ and gradients summed over two parts of
    each batch, on the same rows and at the same learning rates; clipping changes every one of these steps.
    """
    args = parser().parse_args(["--batch-size", "1", "--gradient-accumulation-steps", "2", "--block-size", "8", "--max-iters", "10",
                                "--warmup-iters", "2", "--learning-rate", "1e-4", "--grad-clip", "0.5", "--dtype", dtype])
    text = np.random.default_rng(5).integers(0, CONFIG.vocab_size, 200)
    ours = Trainer(GPT2.from_pretrained(directory, dtype=dtype), text, args)
    found, norms, rates = zip(*((step.loss.item(), step.norm, step.lr) for step in (ours.step() for _ in range(10))))
    stream = ours.stream
    del ours
    model = theirs(directory, dtype).train()
    matrices, vectors = [p for p in model.parameters() if p.ndim >= 2], [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": args.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(args.beta1, args.beta2), eps=1e-8)
    wanted, lengths_there = [], []
    for step, rate in enumerate(rates):
        for group in optimizer.param_groups:
            group["lr"] = rate
        ids, targets = drawn(text, 2, 8, fold_in(stream, step))
        losses = [loss(model, ids[row:row + 1], targets[row:row + 1]) for row in range(2)]
        sum(losses).div(2).backward()
        lengths_there.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), args.grad_clip)))
        optimizer.step()
        optimizer.zero_grad()
        wanted.append(sum(value.item() for value in losses) / 2)
    differ = [float(np.abs(np.subtract(*pair)).max()) for pair in ((found, wanted), (norms, lengths_there))]
    print(f"\n{dtype}: ten losses apart by {differ[0]:.1e} at most, norms before clipping by {differ[1]:.1e}")
    assert min(norms) > args.grad_clip and len(set(rates)) == 10
    np.testing.assert_allclose(found, wanted, rtol=0, atol=apart)
    np.testing.assert_allclose(norms, lengths_there, rtol=10 * apart)


def test_the_first_loss_is_that_of_no_knowledge(directory):
    """With random weights the loss is near ln V: every token is about as likely as any other."""
    ids, targets = batch(1, 16, seed=4)
    value = GPT2.from_pretrained(directory).loss(ids, targets).item()
    assert abs(value - math.log(CONFIG.vocab_size)) < 1.0
