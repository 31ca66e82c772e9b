"""What a wrong tensor looks like beside the right one: each picture is seen where it is so, and is not said where it is nearly so."""
from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from gpt2.golden.truth import Entry
from gpt2.verify.pictures import pictures

rng = np.random.default_rng(0)
X = rng.normal(size=(2, 3, 5, 7))                       # [B, h, T, k], as attn.q is
Y, OTHER = rng.normal(size=(2, 2, 6, 8))                # [B, T, d]
GAIN, SHIFT = rng.normal(size=8), rng.normal(size=8)
W = rng.normal(size=(40, 8))                            # a table of 40 tokens
TOKENS = [[3, 5, 5], [7, 30, 3]]


def looks(a: np.ndarray, b: Any, name: str = "blocks.1.attn.out", known: Any = None) -> list[str]:
    """What is said of b, which should be a; stored in float32."""
    b = np.asarray(b, np.float32).astype(np.float64)
    size = float(np.abs(a).max(initial=0.0))
    entry = Entry(name, "", list(a.shape), "float64", float(np.linalg.norm(a)), 1e-7 * size, 1e-7 * size)
    golden: Any = SimpleNamespace(entries={name: entry}, array=lambda _: a, manifest={"ids": TOKENS, "config": {
        "n_embd": 8, "n_head": 2, "vocab_size": 40}})
    return pictures(golden, name, lambda _: ("float32", b), a, known)


def left_out(a: np.ndarray, kept: np.ndarray) -> np.ndarray:
    return a * kept * (kept.size / kept.sum())


SEEN = {
    "a head that is another's": (X, X[:, [0, 0, 1]], "its heads 0 … 2 are ours at 0, 0, 1"),
    "a place later": (Y, np.concatenate([GAIN + 0.0 * Y[:, :1], Y[:, :-1]], axis=1), "it is shifted by one position, later"),
    "a column further": (Y, np.concatenate([Y[..., 1:], OTHER[..., :1]], axis=-1), "its column i is ours at i + 1"),
    "rows of the batch": (Y, Y[[0, 0]], "its rows 0, 1 are ours at 0, 0"),
    "columns that are moved": (Y, Y[..., [1, 2, 3, 4, 5, 6, 7, 0]], "its columns 0 … 7 are ours at 1, 2, 3, 4, 5, 6, 7, 0"),
    "a factor": (Y, 3.5 * Y, "it is 3.5 times what it should be"),
    "nothing": (Y, 0.0 * Y, "it is all zero"),
    "another order": (Y, Y.reshape(6, 16).T.reshape(Y.shape), "it has the right numbers, in another order"),
    "one place": (Y, Y + 1e-2 * (np.arange(6) == 4)[:, None], "only position 4 of 6 is wrong"),
    "tokens without a loss": (Y, left_out(Y, (np.arange(12).reshape(2, 6, 1) % 5) > 0), "it is 0 for 3 of 12 tokens, and 1.333 times what"),
    "dropout": (Y, left_out(Y, rng.random(Y.shape) > 0.25), "dropout is on"),
    "zeros": (Y, Y * (np.arange(8) != np.arange(6)[:, None]), "where it is wrong, it is 0"),
}
WITH = {
    "a bias that is not there": (Y, Y - SHIFT, "it lacks b"),
    "a bias in some places": (Y, Y + SHIFT * (np.arange(6) > 1)[:, None], "where it is wrong, it has in addition b"),
    "half a bias too much": (Y, Y + 0.5 * SHIFT, "it has in addition 0.5 times b"),
    "a gain": (Y, Y * GAIN, "it is multiplied with w"),
    "one for the other": (Y, Y + GAIN - SHIFT, "it has w in place of b"),
    "another": (Y, OTHER, "it is other"),
}


@pytest.mark.parametrize("what", SEEN)
def test_what_is_seen_in_a_tensor(what: str) -> None:
    a, b, says = SEEN[what]
    assert looks(a, b)[0].startswith(says), looks(a, b)


@pytest.mark.parametrize("what", WITH)
def test_what_is_seen_with_what_is_known(what: str) -> None:
    a, b, says = WITH[what]
    known = {"b": SHIFT, "w": GAIN, "other": OTHER}
    assert looks(a, b, known=known)[0].startswith(says), looks(a, b, known=known)


@pytest.mark.parametrize("what", [*SEEN, *WITH])
def test_what_is_nearly_so_is_not_said(what: str) -> None:
    """With a hundredth of noise on it, the sentence is not true any more."""
    a, b, says = (SEEN | WITH)[what]
    noisy = b + 1e-2 * rng.normal(size=np.shape(b))
    assert not any(look.startswith(says) for look in looks(a, noisy, known={"b": SHIFT, "w": GAIN, "other": OTHER}))


def test_a_number_is_no_multiple_of_another() -> None:
    assert looks(np.array(2.0), np.array(2.2), "loss") == ["it is off by 10 % in the root mean square, with no known pattern"]
    assert "2.2 times" in looks(np.array(2.0), np.array(6.4), "loss")[0] or "220 %" in looks(np.array(2.0), np.array(6.4), "loss")[0]


def test_the_rows_of_the_batchs_tokens() -> None:
    """They are the embedding's part of a tied table; others are said by their numbers."""
    there = np.isin(np.arange(40), TOKENS)[:, None]
    assert looks(W, W + there * 0.1, "wte.weight.grad")[0].startswith("only the rows of tokens that are in the batch are wrong")
    assert looks(W, W + (np.arange(40) == 9)[:, None] * 0.1, "wte.weight.grad") == ["only position 9 of 40 is wrong"]
    zeros = W * (np.arange(40) < 6)[:, None]            # rows that are 0 in both tell nothing
    assert not looks(zeros, 1.1 * zeros + 0.01 * (zeros != 0.0), "wpe.weight.grad")[0].startswith("only")
