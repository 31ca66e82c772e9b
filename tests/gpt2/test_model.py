"""The model by itself: both forms of it, its weights, its cache, and what it refuses."""
from __future__ import annotations

import math

import numpy as np
import pytest
from tiny_gpt2 import tiny_config, tiny_model

import minigrad as mg
from gpt2.cache import KVCache
from gpt2.config import num_parameters, parameter_shapes
from gpt2.errors import UsageError
from gpt2.evaluation import total_nll, windows
from gpt2.model import GPT2

EPS = np.finfo(np.float64).eps
CLOSE = 1e4 * EPS                                       # a few hundred sums of some tens of terms of order one, in float64


def ids_of(rows, tokens, vocab=300, seed=0):
    return np.random.default_rng(seed).integers(0, vocab, (rows, tokens))


def wide(**fields):
    """A tiny model in float64 without dropout."""
    return GPT2(tiny_config(initializer_range=0.3, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, **fields.pop("config", {})),
                dtype="float64", seed=3, **fields)


@pytest.mark.parametrize("config", [{}, {"activation_function": "gelu"}, {"activation_function": "relu"}, {"tie_word_embeddings": False},
                                    {"scale_attn_weights": False}, {"scale_attn_by_inverse_layer_idx": True}, {"n_inner": 20}])
def test_explicit_and_fused_agree(config):
    """On the definitions by parts the model gives the same logits, loss and gradients."""
    ids = ids_of(2, 9)
    fused, explicit = wide(config=config), wide(config=config, explicit=True)
    a, b = fused.loss(ids[:, :-1], ids[:, 1:]), explicit.loss(ids[:, :-1], ids[:, 1:])
    a.backward()
    b.backward()
    assert abs(a.item() - b.item()) < CLOSE
    assert np.abs(fused(ids).numpy() - explicit(ids).numpy()).max() < 100 * CLOSE
    for (name, p), q in zip(fused.named_parameters(), explicit.parameters()):
        assert np.abs(p.grad.numpy() - q.grad.numpy()).max() <= CLOSE * (1.0 + np.abs(p.grad.numpy()).max()), name


def test_names_and_shapes_are_those_of_the_configuration():
    """named_parameters yields parameter_shapes, in order, and each number counts once."""
    for config in (tiny_config(), tiny_config(tie_word_embeddings=False, n_inner=20)):
        model = GPT2(config)
        assert {name: p.shape for name, p in model.named_parameters()} == parameter_shapes(config)
        assert list(dict(model.named_parameters())) == list(parameter_shapes(config))
        assert model.num_parameters() == num_parameters(config)


def test_a_tied_weight_gets_the_sum_of_both_uses():
    """∂L/∂wte of the tied model is the embedding's gradient plus the head's of an untied one with equal weights."""
    tied = wide()
    untied = wide(config={"tie_word_embeddings": False})
    for name, p in untied.named_parameters():
        p.assign(dict(tied.named_parameters())["wte.weight" if name == "lm_head.weight" else name].array.copy())
    ids = ids_of(2, 9)
    for model in (tied, untied):
        model.loss(ids[:, :-1], ids[:, 1:]).backward()
    both = untied.wte.weight.grad.numpy() + untied.lm_head.weight.grad.numpy()
    assert np.abs(tied.wte.weight.grad.numpy() - both).max() <= CLOSE * np.abs(both).max()
    assert np.abs(untied.wte.weight.grad.numpy()).max() > 1e-3 * np.abs(both).max()


def test_first_weights():
    """N(0, 0.02²), divided by √(2L) where a block writes to the residual stream; LayerNorm 1 and 0; the seed decides."""
    config = tiny_config(n_embd=128, n_layer=8)
    model, again, other = GPT2(config, seed=1), GPT2(config, seed=1), GPT2(config, seed=2)
    for (name, p), q, r in zip(model.named_parameters(), again.parameters(), other.parameters()):
        value = p.numpy()
        assert np.array_equal(value, q.numpy())
        if p.ndim == 2:
            std = 0.02 / math.sqrt(16) if name.endswith("c_proj.weight") else 0.02
            assert abs(value.std() / std - 1) < 5 / math.sqrt(2 * value.size), name       # five deviations of a sample's deviation
            assert abs(value.mean()) < 5 * std / math.sqrt(value.size), name
            assert not np.array_equal(value, r.numpy())
        else:
            assert (value == (1.0 if "ln" in name and name.endswith("weight") else 0.0)).all(), name


def test_no_token_sees_a_later_one():
    """Logits up to place t do not change, to the bit, when tokens after t do."""
    model, ids = tiny_model(), ids_of(2, 12)
    before = model(ids).numpy()
    for t in (0, 5, 10):
        changed = ids.copy()
        changed[:, t + 1:] = (changed[:, t + 1:] + 1) % 300
        after = model(changed).numpy()
        assert np.array_equal(before[:, :t + 1], after[:, :t + 1]) and not np.array_equal(before, after)


@pytest.mark.parametrize("pieces", [[12], [1] * 12, [5, 1, 6], [11, 1]])
def test_the_cache_may_be_filled_in_any_pieces(pieces):
    """Whole, in chunks or token by token: the logits are those of one pass without a cache."""
    model, ids = wide(), ids_of(3, 12)
    cache, out, at = KVCache(model.config, 3, 12, dtype="float64"), [], 0
    for n in pieces:
        out.append(model(ids[:, at:at + n], cache=cache).numpy())
        at += n
    whole = model(ids).numpy()
    assert np.abs(np.concatenate(out, axis=1) - whole).max() <= CLOSE * np.abs(whole).max()
    assert cache.length == 12


def test_a_padded_row_is_its_single_run():
    """A row padded at the left, in a batch, gives the logits that it gives alone; then one token more does too."""
    model, lengths = wide(), [3, 8, 5]
    rows = [ids_of(1, n + 1, seed=n)[0] for n in lengths]
    width = max(lengths)
    cache = KVCache(model.config, 3, width + 1, dtype="float64", pad=[width - n for n in lengths])
    first = model([[0] * (width - n) + list(row[:n]) for n, row in zip(lengths, rows)], cache=cache).numpy()
    then = model([[row[-1]] for row in rows], cache=cache).numpy()
    for i, (n, row) in enumerate(zip(lengths, rows)):
        alone = model(row[None]).numpy()[0]
        assert np.abs(first[i, width - n:] - alone[:n]).max() <= CLOSE * np.abs(alone).max()
        assert np.abs(then[i, 0] - alone[n]).max() <= CLOSE * np.abs(alone).max()
        assert np.isfinite(first[i]).all()              # places of padding too: their queries see no key


def test_training_mode_drops_and_evaluation_does_not():
    """A new model is in evaluation mode; train() draws from the default stream, so the same seed gives the same loss."""
    model, ids = tiny_model(), ids_of(2, 9)
    assert np.array_equal(model(ids).numpy(), model(ids).numpy())
    model.train()
    losses = []
    for seed in (0, 0, 1):
        mg.random.manual_seed(seed)
        losses.append(model.loss(ids[:, :-1], ids[:, 1:]).item())
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize("ids, says", [
    ([[0, 300]], "id 300 is outside the vocabulary 0 … 299"), ([[0, -1]], "id -1 is outside"), ([[0.5]], "must be integers"),
    ([[1, 2], [3]], "rectangle"), ([[]], "at least one token"), ([1, 2], r"\[batch, tokens\]"),
    ([[1] * 65], "65 tokens do not fit the context of 64"),
])
def test_ids_that_are_refused(ids, says):
    """One line that says what is wrong with the ids."""
    with pytest.raises(UsageError, match=says) as error:
        tiny_model()(ids)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("n, window, stride", [(2, 8, 4), (9, 8, 4), (10, 8, 8), (100, 8, 4), (101, 8, 3), (64, 8, 1), (5, 8, 8)])
def test_windows_count_every_token_but_the_first_once(n, window, stride):
    """The counted parts of the windows are tokens 1 … n − 1, in order; no window reads more than its size and its target."""
    counted = []
    for start, stop, first in windows(n, window, stride):
        assert start < first < stop <= n and stop - start <= window + 1
        counted += range(first, stop)
    assert counted == list(range(1, n))


def test_total_nll_is_the_sum_over_windows():
    """What evaluation sums is −log p of each token given what is before it in its window."""
    model = wide(config={"n_positions": 8})
    ids = ids_of(1, 30)[0]
    expected = 0.0
    for start, stop, first in windows(30, 8, 4):
        log_p = mg.log_softmax(model(ids[None, start:stop - 1])).numpy()[0]
        expected -= sum(log_p[t - start - 1, ids[t]] for t in range(first, stop))
    total, count = total_nll(model, ids)
    assert count == 29 and abs(total - expected) < 1e3 * CLOSE
