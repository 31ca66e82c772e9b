"""NumPy's numbers are taken wherever Python's are; bools and floats never pass for integers."""
from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from tiny_gpt2 import tiny_config, tiny_model

from gpt2.config import GPT2Config
from gpt2.decoding.sampling import SamplingOptions
from gpt2.errors import UsageError
from gpt2.evaluate.likelihood import total_nll
from gpt2.model import GPT2

INTS = [np.int64, np.int32, np.uint8, np.intp, lambda n: np.array(n)]
FLOATS = [np.float64, np.float32, np.float16]
SAMPLING = {"temperature": 0.5, "top_k": 3, "top_p": 0.75, "min_p": 0.125, "repetition_penalty": 1.5, "greedy": False}


@pytest.mark.parametrize("kind", INTS)
def test_integers_of_numpy_are_integers(kind):
    """top_k, max_new_tokens, seed, eos, lookup, logprobs and every size of a configuration."""
    model = tiny_model()
    assert model.generate([[1, 2]], kind(9), top_k=kind(3), seed=kind(2), eos_token_id=kind(7)) == \
        model.generate([[1, 2]], 9, top_k=3, seed=2, eos_token_id=7)
    assert model.generate([[1, 2]], 9, greedy=True, lookup=kind(2)) == model.generate([[1, 2]], 9, greedy=True)
    sizes = {"vocab_size": 60, "n_positions": 16, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_inner": 40, "bos_token_id": 3,
             "eos_token_id": 4}
    config = GPT2Config(**{name: kind(size) for name, size in sizes.items()})
    assert config == GPT2Config(**sizes) and json.loads(json.dumps(config.to_dict())) == GPT2Config(**sizes).to_dict()
    assert all(type(getattr(config, name)) is int for name in sizes)
    drawn = zip(GPT2(config, seed=kind(3)).parameters(), GPT2(config, seed=3).parameters())
    assert all(np.array_equal(a.array, b.array) for a, b in drawn)
    assert total_nll(model, np.arange(90), window=kind(8), stride=kind(4)) == total_nll(model, np.arange(90), window=8, stride=4)


@pytest.mark.parametrize("kind", FLOATS)
def test_floats_of_numpy_are_floats(kind):
    """Every setting of sampling and every real number of a configuration; they become Python's."""
    given = {name: kind(x) if isinstance(x, float) else np.bool_(x) if isinstance(x, bool) else x for name, x in SAMPLING.items()}
    assert SamplingOptions(**given) == SamplingOptions(**SAMPLING)
    assert [type(x) for x in dataclasses.asdict(SamplingOptions(**given)).values()] == [type(x) for x in SAMPLING.values()]
    model = tiny_model()
    assert model.generate([[1]], 9, **given) == model.generate([[1]], 9, **SAMPLING)
    reals = {"resid_pdrop": 0.25, "embd_pdrop": 0.5, "attn_pdrop": 0.0, "layer_norm_epsilon": 0.0009765625, "initializer_range": 0.5}
    config = tiny_config(**{name: kind(x) for name, x in reals.items()})
    assert config == tiny_config(**reals) and json.dumps(config.to_dict())


@pytest.mark.parametrize("wrong", [True, np.True_, 2.0, np.float64(2.0), "2", [2], np.array([2])])
def test_what_is_no_integer_is_refused(wrong):
    """A bool or a float where an integer is wanted, NumPy's as well as Python's, is one line that names it."""
    model = tiny_model()
    for call, name in ((lambda: model.generate([[1]], 3, top_k=wrong), "--top-k must be a whole number"),
                       (lambda: model.generate([[1]], wrong, greedy=True), "max_new_tokens must be a whole number"),
                       (lambda: model.generate([[1]], 3, seed=wrong), "the seed must be a whole number"),
                       (lambda: model.generate([[1]], 3, greedy=True, lookup=wrong), "lookup must be a whole number"),
                       (lambda: GPT2(model.config, seed=wrong), "the seed must be a whole number"),
                       (lambda: total_nll(model, np.arange(9), window=wrong), "the window and the stride must be whole numbers"),
                       (lambda: tiny_config(n_layer=wrong), "n_layer must be a positive integer")):
        with pytest.raises(UsageError, match=name):
            call()


@pytest.mark.parametrize("wrong", [True, np.True_, "0.5", None, 1j, [0.5]])
def test_what_is_no_number_is_refused(wrong):
    """A bool, a text or a list where a real number is wanted."""
    for name in ("temperature", "top_p", "min_p", "repetition_penalty"):
        if wrong is None and name in ("top_p", "min_p"):
            continue                                    # which turns the filter off
        with pytest.raises(UsageError, match=f"--{name.replace('_', '-')} must be"):
            SamplingOptions(**{name: wrong})
    with pytest.raises(UsageError, match="--greedy must be True or False"):
        SamplingOptions(greedy="no")
    with pytest.raises(UsageError, match="initializer_range must be"):
        tiny_config(initializer_range=wrong)
