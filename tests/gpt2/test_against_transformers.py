"""Small GPT-2s of every kind against transformers' GPT2LMHeadModel, through directories written on either side."""
from __future__ import annotations

import tempfile
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
import transformers
from agreement import gradients, logits, norm, theirs, worst
from hypothesis import example, given
from hypothesis import strategies as st

import minigrad as mg
from gpt2.config import ACTIVATION_NAMES, GPT2Config
from gpt2.model import GPT2

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


def every_odd_one(test):
    """Run the test on each odd configuration by itself, and on all of it at once."""
    for fields in [*ODD, EVERYTHING_ODD]:
        test = example({**SIZES, **fields}, 0, False)(test)
    return test


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


def compare(ours, wanted, ids, targets, dtype):
    assert np.abs(logits(ours, ids) - logits(wanted, ids)).max() <= LOGITS[dtype]
    grads = gradients(wanted, ids, targets)
    assert ours.num_parameters() == sum(p.numel() for p in wanted.parameters())
    # a tensor whose gradient is 0 but for rounding has no relative error: its noise is measured by the whole gradient
    noise = np.finfo(dtype).eps * norm(np.array([norm(g) for g in grads.values()]))
    apart, name = worst(gradients(ours, ids, targets), grads, noise)
    assert apart <= GRADIENTS[dtype], name


@given(configs(), st.integers(0, 2**32 - 1), st.booleans())
@every_odd_one
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
@every_odd_one
def test_a_directory_of_ours_loads_there_and_agrees(config, seed, explicit):
    """What our save_pretrained wrote loads in transformers with no tensor missing or left over, and gives our logits and gradients."""
    ids, targets = inputs(config, seed)
    for dtype in ("float32", "float64"):
        ours = GPT2(GPT2Config(**config, initializer_range=0.1), seed=seed, dtype=dtype, explicit=explicit)
        for i, p in enumerate(ours.parameters()):
            if p.ndim == 1:
                p.assign(p.array + mg.random.normal(mg.random.fold_in(seed, i), p.shape, std=0.3, dtype=dtype).array)
        with tempfile.TemporaryDirectory() as directory:
            ours.save_pretrained(directory)
            wanted = theirs(directory, dtype)
            assert {k: v for k, v in asdict(ours.config).items() if getattr(wanted.config, k) != v} == {}
            compare(ours, wanted, ids, targets, dtype)
