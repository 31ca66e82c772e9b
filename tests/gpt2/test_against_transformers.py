"""Small GPT-2s of every kind against transformers' GPT2LMHeadModel.

Through directories written on either side, with a cache, in batches of padded rows, and through ten steps of AdamW.
"""
from __future__ import annotations

import tempfile
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from agreement import OPERATIONS, gradients, in_pieces, lengths, logits, loss, norm, theirs, worst
from hypothesis import example, given
from hypothesis import strategies as st

import minigrad as mg
from gpt2.config import ACTIVATION_NAMES, GPT2Config
from gpt2.model import GPT2
from minigrad.optim import AdamW, decay_groups

pytestmark = pytest.mark.rounding

# the bounds that the project promises against transformers
LOGITS = {"float64": 1e-10, "float32": 1e-4}            # absolute
GRADIENTS = {"float64": 1e-10, "float32": 1e-5}         # ‖difference‖ / ‖gradient‖ of each tensor

SIZES = {"bos_token_id": None, "eos_token_id": None, "vocab_size": 13, "n_positions": 8, "n_embd": 12, "n_layer": 2, "n_head": 2}
ODD = [
    {"n_head": 1},
    {"n_inner": 7},
    {"activation_function": "relu"},
    {"activation_function": "gelu"},
    {"layer_norm_epsilon": 1e-6},
    {"tie_word_embeddings": False},
    {"vocab_size": 3},
    {"n_positions": 11},
    {"scale_attn_weights": False},
    {"scale_attn_by_inverse_layer_idx": True},
    {"scale_attn_weights": False, "scale_attn_by_inverse_layer_idx": True},
]
EVERYTHING_ODD = {
    "n_head": 1, "n_inner": 7, "activation_function": "relu", "layer_norm_epsilon": 1e-6, "tie_word_embeddings": False,
    "vocab_size": 3, "n_positions": 11, "scale_attn_weights": False, "scale_attn_by_inverse_layer_idx": True, "n_layer": 3,
}


@st.composite
def configs(draw):
    """Fields of a config.json. LayerNorm over fewer than 4 numbers has hardly a direction left, and rounding is all there is."""
    heads, size = draw(st.sampled_from([(1, 4), (1, 5), (1, 16), (2, 2), (2, 8), (3, 4), (4, 1), (4, 6), (5, 3)]))
    return {
        **SIZES, "vocab_size": draw(st.integers(2, 40)), "n_positions": draw(st.integers(1, 16)), "n_embd": heads * size, "n_head": heads,
        "n_layer": draw(st.integers(1, 3)), "n_inner": draw(st.none() | st.integers(1, 40)),
        "activation_function": draw(st.sampled_from(sorted(ACTIVATION_NAMES.keys() - {"gelu_fast"}))),
        "layer_norm_epsilon": draw(st.sampled_from([1e-6, 1e-5, 1e-3])),
        **{switch: draw(st.booleans()) for switch in ("tie_word_embeddings", "scale_attn_weights", "scale_attn_by_inverse_layer_idx")},
    }


def every_odd_one(*more):
    """Run the test on each odd configuration by itself, and on all of it at once; `more` are its other arguments."""

    def decorate(test):
        for fields in [*ODD, EVERYTHING_ODD]:
            test = example({**SIZES, **fields}, 0, *more)(test)
        return test

    return decorate


def inputs(config, seed):
    """ids and targets [2, T], T as long as the context; one target does not count."""
    rng = np.random.default_rng(seed)
    ids, targets = rng.integers(0, config["vocab_size"], (2, 2, config["n_positions"]))
    targets[0, 0] = -100
    return ids, targets


def random_of_theirs(config, seed):
    """transformers' model with matrices N(0, 0.1²) and vectors N(0, 0.3²), LayerNorm weights about 1, so that each parameter matters.

    With matrices much wider the gradients of small models are ill-conditioned: in float32, both sides would miss the truth by 1e-5.
    """
    torch.manual_seed(seed)
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**config)).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.normal_(std=0.3 if p.ndim == 1 else 0.1).add_(1.0 if "ln_" in name and name.endswith("weight") else 0.0)
    return model


def ours_like(model, dtype):
    """Our model with the weights of theirs, copied."""
    config = GPT2Config.from_dict(model.config.to_dict())
    weights = {name.removeprefix("transformer."): p.detach().numpy().astype(dtype) for name, p in model.named_parameters()}
    return GPT2(config, dtype=dtype, parameters=weights)


def compare(ours, wanted, ids, targets, dtype):
    apart = np.abs(logits(ours, ids) - logits(wanted, ids)).max()
    assert apart <= LOGITS[dtype]
    # log Σ exp and the logit of the target move by no more than the logits do; the rest is the loss's own sums
    found, value = loss(ours, ids, targets).item(), loss(wanted, ids, targets).item()
    rounding = (ours.config.vocab_size + ids.size + OPERATIONS) * np.finfo(dtype).eps * max(1.0, value)
    assert abs(found - value) <= 2.0 * apart + rounding
    grads = gradients(wanted, ids, targets)
    assert ours.num_parameters() == sum(p.numel() for p in wanted.parameters())
    # a tensor whose gradient is 0 but for rounding has no relative error: its noise is measured by the whole gradient
    noise = np.finfo(dtype).eps * norm(np.array([norm(g) for g in grads.values()]))
    apart, name = worst(gradients(ours, ids, targets), grads, noise)
    assert apart <= GRADIENTS[dtype], name


@given(configs(), st.integers(0, 2**32 - 1), st.booleans())
@every_odd_one(False)
def test_a_directory_of_theirs_loads_here_and_agrees(config, seed, sharded):
    """What transformers' save_pretrained wrote, in one file or in shards, gives its logits and its gradients here."""
    model, (ids, targets) = random_of_theirs(config, seed), inputs(config, seed)
    with tempfile.TemporaryDirectory() as directory:
        model.save_pretrained(directory, **({"max_shard_size": 200} if sharded else {}))
        assert len(list(Path(directory).glob("*.safetensors"))) > 1 or not sharded
        for dtype in ("float32", "float64"):
            ours = GPT2.from_pretrained(directory, dtype=dtype)
            compare(ours, model.to(getattr(torch, dtype)), ids, targets, dtype)


@given(configs(), st.integers(0, 2**32 - 1), st.booleans())
@every_odd_one(False)
def test_a_directory_of_ours_loads_there_and_agrees(config, seed, explicit):
    """What our save_pretrained wrote loads in transformers with no tensor missing or left over, and gives our logits and gradients."""
    ids, targets = inputs(config, seed)
    for dtype in ("float32", "float64"):
        ours = GPT2(GPT2Config(**config, initializer_range=0.1), seed=seed, dtype=dtype, explicit=explicit).eval()
        for i, p in enumerate(ours.parameters()):
            if p.ndim == 1:
                p.assign(p.array + mg.random.normal(mg.random.fold_in(seed, i), p.shape, std=0.3, dtype=dtype).array)
        with tempfile.TemporaryDirectory() as directory:
            ours.save_pretrained(directory)
            wanted = theirs(directory, dtype)
            assert {k: v for k, v in asdict(ours.config).items() if getattr(wanted.config, k) != v} == {}
            compare(ours, wanted, ids, targets, dtype)


PIECES = st.lists(st.integers(1, 5), min_size=1, max_size=4)


@given(configs(), st.integers(0, 2**32 - 1), PIECES)
@every_odd_one([1])
@every_odd_one([3, 1, 2])
def test_a_cache_gives_the_logits_of_their_one_pass(config, seed, pieces):
    """Read into the KV cache in pieces of any lengths, a batch gives the logits of transformers' one pass without a cache."""
    model, (ids, _) = random_of_theirs(config, seed), inputs(config, seed)
    for dtype in ("float32", "float64"):
        ours, wanted = ours_like(model, dtype), logits(model.to(getattr(torch, dtype)), ids)
        found = in_pieces(ours, ids, pieces)
        assert found.shape == wanted.shape and np.abs(found - wanted).max() <= LOGITS[dtype]


@given(configs(), st.integers(0, 2**32 - 1), st.lists(st.integers(1, 16), min_size=1, max_size=4), PIECES)
@every_odd_one([1, 5, 8], [4])
def test_a_batch_of_padded_rows_gives_their_single_rows(config, seed, tokens, pieces):
    """Rows of any lengths, padded at the left to one batch and read in pieces, give what transformers gives each row alone."""
    model, tokens = random_of_theirs(config, seed), [min(n, config["n_positions"]) for n in tokens]
    pad = [max(tokens) - n for n in tokens]
    ids = np.random.default_rng(seed).integers(0, config["vocab_size"], (len(tokens), max(tokens)))        # in the padding too
    for dtype in ("float32", "float64"):
        ours, wanted = ours_like(model, dtype), model.to(getattr(torch, dtype))
        found = in_pieces(ours, ids, pieces, pad)
        for row, got, skip in zip(ids, found, pad):
            assert np.abs(got[skip:] - logits(wanted, row[None, skip:])[0]).max() <= LOGITS[dtype]


STEPS = 10


@given(configs(), st.integers(0, 2**32 - 1), st.sampled_from([1e-8, 1e-3]), st.sampled_from([0.0, 0.1]))
@every_odd_one(1e-3, 0.1)
def test_ten_adamw_steps_are_theirs(config, seed, eps, decay):
    """After ten steps on one batch every weight is torch.optim.AdamW's, and so was the loss before each step.

    A step is lr·m/(√v + ε), and where √v is far below ε a gradient that is off by δ makes it off by lr·δ/ε: ten steps, by ten
    times that. δ is at most N·eps of the largest gradient, N the sums on its way (Higham 2002, §3.1). The loss is off by what
    the weights are, times its slope.
    """
    lr, (ids, targets) = 1e-3, inputs(config, seed)
    wanted = random_of_theirs(config, seed).to(torch.float64)
    ours = ours_like(wanted, "float64")
    how = {"lr": lr, "betas": (0.9, 0.95), "eps": eps}
    vectors, matrices = [[p for p in wanted.parameters() if (p.ndim >= 2) is big] for big in (False, True)]
    both = [(ours, AdamW(decay_groups(ours.parameters(), decay), **how)),
            (wanted, torch.optim.AdamW([{"params": matrices, "weight_decay": decay}, {"params": vectors, "weight_decay": 0.0}], **how))]
    before = {name: p.numpy().copy() for name, p in ours.named_parameters()}
    largest = bound = 0.0
    for _ in range(STEPS):
        values = []
        for model, optimizer in both:
            optimizer.zero_grad()
            value = loss(model, ids, targets)
            value.backward()
            optimizer.step()
            values.append(value.item())
        slope = sum(float(np.abs(p.grad.numpy()).sum()) for p in ours.parameters())
        assert abs(values[0] - values[1]) <= LOGITS["float64"] + slope * bound
        largest = max(largest, *(float(np.abs(p.grad.numpy()).max()) for p in ours.parameters()))
        bound = STEPS * lr * lengths(ours.config, *ids.shape)["gradient"] * np.finfo(np.float64).eps * largest / eps
    for (name, p), q in zip(ours.named_parameters(), wanted.parameters()):
        assert np.abs(p.numpy() - q.detach().numpy()).max() <= bound, name
    moved = max(np.abs(p.numpy() - before[name]).max() for name, p in ours.named_parameters())
    assert moved > 100 * bound                          # or the bound would let anything pass
