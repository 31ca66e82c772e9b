"""Laws of training a byte-level BPE."""
from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise

import pytest
import regex
from data import test_data as data_file
from hypothesis import given
from hypothesis import strategies as st

from gpt2.data.tokenizer import BYTES_IN_ORDER, GPT2_SPLIT
from gpt2.data.train_bpe import train_bpe
from gpt2.errors import UsageError

# few letters, so that pairs repeat, overlap and tie
texts = st.lists(st.text(st.sampled_from("aab c'é"), max_size=30), min_size=1, max_size=4)


def merges_of(tokenizer) -> list[str]:
    return tokenizer.files()["merges.txt"].decode().splitlines()[1:]


def largest(texts: list[str]) -> int:
    """The largest vocabulary that the texts give, read off the error for a larger one."""
    with pytest.raises(UsageError) as caught:
        train_bpe(texts, 10_000)
    return int(regex.search(r"vocabulary of (\d+) only", str(caught.value))[1])


def recounting(texts: list[str], n_merges: int) -> list[bytes]:
    """BPE by its definition: count all pairs anew for every merge."""
    order = {token: i for i, token in enumerate(BYTES_IN_ORDER)}
    words = [[bytes([byte]) for byte in word.encode()] for text in texts for word in regex.findall(GPT2_SPLIT, text)]
    merged = []
    for _ in range(n_merges):
        counts = Counter(pair for word in words for pair in pairwise(word))
        left, right = min(counts, key=lambda pair: (-counts[pair], order[pair[0]], order[pair[1]]))
        merged.append(left + right)
        order[left + right] = len(order)
        for word in words:
            i = 0
            while i < len(word) - 1:
                if (word[i], word[i + 1]) == (left, right):
                    word[i:i + 2] = [left + right]
                i += 1
    return merged


@given(texts)
def test_merges_are_those_of_the_definition(texts: list[str]) -> None:
    """Counts kept up from merge to merge give the merges that counting anew gives, to the last possible one."""
    size = largest(texts)
    ranks = train_bpe(texts, size).encoding._mergeable_ranks
    assert sorted(ranks, key=ranks.__getitem__) == BYTES_IN_ORDER + recounting(texts, size - 257)


def merges_of_tokenizers(texts: list[str], vocab_size: int) -> list[str]:
    tokenizers = pytest.importorskip("tokenizers")
    level = tokenizers.pre_tokenizers.ByteLevel
    theirs = tokenizers.Tokenizer(tokenizers.models.BPE())
    theirs.pre_tokenizer = level(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=vocab_size - 1, initial_alphabet=level.alphabet(),
                                             show_progress=False)
    theirs.train_from_iterator(texts, trainer)
    return [" ".join(pair) for pair in json.loads(theirs.to_str())["model"]["merges"]]


@given(texts)
def test_merges_are_those_of_tokenizers(texts: list[str]) -> None:
    """The `tokenizers` library learns the same merges in the same order, ties included."""
    size = largest(texts)
    assert merges_of(train_bpe(texts, size)) == merges_of_tokenizers(texts, size)


def test_tiny_shakespeare() -> None:
    """1024 ids from Tiny Shakespeare: the merges of `tokenizers`, and a text that decodes to itself."""
    text = data_file("tinyshakespeare.txt").read_text(encoding="utf-8")
    tokenizer = train_bpe(text, 1024)
    assert (tokenizer.n_vocab, tokenizer.eot, tokenizer.name) == (1024, 1023, "bpe-1024")
    assert merges_of(tokenizer) == merges_of_tokenizers([text], 1024)
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_257_is_plain_bytes() -> None:
    """The smallest vocabulary has one id per byte, in GPT-2's order, and <|endoftext|>."""
    tokenizer = train_bpe("no matter what", 257)
    assert (tokenizer.n_vocab, tokenizer.eot) == (257, 256)
    assert tokenizer.encode("!ÿ") == [0, 127, 123]             # '!' is GPT-2's id 0; ÿ is the bytes C3 BF
    assert len(tokenizer.encode("naïve 🤗")) == len("naïve 🤗".encode())


def test_no_token_spans_two_texts() -> None:
    """Several texts are learned from one by one: a pair across their border is not counted, within one it is."""
    assert merges_of(train_bpe(["xy", "zw", "xy"], 258)) == ["x y"]
    assert largest(["x", "y", "x", "y"]) == 257
    assert merges_of(train_bpe(iter(["xy"]), 258)) == merges_of(train_bpe("xy", 258)) == ["x y"]


@pytest.mark.parametrize("size, reason", [(256, "256 bytes and <|endoftext|> make 257"), (-1, "too small"),
                                          (260, "vocabulary of 259 only, not 260")])
def test_impossible_sizes_are_refused(size: int, reason: str) -> None:
    """A vocabulary without room for the bytes, or larger than the text gives, is a UsageError that says which is possible."""
    with pytest.raises(UsageError, match=regex.escape(reason)):
        train_bpe("abc", size)
