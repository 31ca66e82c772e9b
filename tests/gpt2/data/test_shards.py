"""Laws of loading prepared data, and of the shards that are one."""
from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from tiny_gpt2 import TEXT, prepare_texts

from gpt2.data.shards import Data, Tokens, load_data
from gpt2.data.tokenizer import load_tokenizer
from gpt2.data.train_bpe import train_bpe
from gpt2.errors import GPT2Error, MissingError

TRAIN, VAL = "train-00000-of-00001.safetensors", "val-00000-of-00001.safetensors"


@pytest.fixture
def data(tmp_path: Path) -> Data:
    prepare_texts([TEXT * 4], tmp_path / "out", "train:270")
    return load_data(tmp_path / "out")


@given(st.lists(st.integers(0, 9), min_size=1, max_size=5).filter(any), st.data())
def test_shards_are_sliced_as_one(sizes: list[int], drawn: st.DataObject) -> None:
    """len, indices and slices of Tokens are those of the shards put together; a slice within a shard is a view."""
    whole = np.arange(sum(sizes), dtype=np.uint16)
    tokens = Tokens(np.split(whole, np.cumsum(sizes)[:-1]))
    where = slice(*(drawn.draw(st.none() | st.integers(-50, 50)) for _ in range(2)))
    assert len(tokens) == len(whole) and tokens[where].dtype == np.uint16
    np.testing.assert_array_equal(tokens[where], whole[where])
    np.testing.assert_array_equal(np.asarray(tokens), whole)
    assert [int(i) for i in tokens] == whole.tolist() and [tokens[i] for i in range(-len(whole), 0)] == whole.tolist()
    first = next(i for i, size in enumerate(sizes) if size)
    assert np.shares_memory(tokens[:sizes[first]], whole)
    with pytest.raises(IndexError):
        tokens[len(whole)]
    with pytest.raises(ValueError, match="step of 1"):
        tokens[::2]


def test_a_shard_is_a_safetensors_file_that_says_what_it_holds(data: Data) -> None:
    """The safetensors library reads the ids, and the header has the vocabulary's hash and the counts."""
    from safetensors import safe_open

    np.testing.assert_array_equal(load_file(data.directory / TRAIN)["ids"], data.train)
    with safe_open(data.directory / VAL, framework="numpy") as file:
        said = file.metadata()
    assert said["tokenizer"] == data.tokenizer.sha256 and said["split"] == "val"
    assert all(said[key] == str(data.meta["val"][key]) for key in ("tokens", "characters", "bytes", "words", "documents"))


def ids(array: np.ndarray, **said: str):
    def change(path: Path) -> None:
        tokenizer = json.loads((path.parent / "meta.json").read_bytes())["tokenizer"]["sha256"]
        save_file({"ids": array}, path, {"tokenizer": tokenizer, **said})
    return change


def edited(**changes: object):
    def change(path: Path) -> None:
        meta = json.loads(path.read_bytes())
        path.write_text(json.dumps({**meta, **changes}), encoding="utf-8")
    return change


@pytest.mark.parametrize("name, change, reason", [
    ("meta.json", Path.unlink, "no prepared data"),
    ("meta.json", lambda p: p.write_bytes(b"{"), "cannot be read"),
    ("meta.json", lambda p: p.write_bytes(b"[]"), "cannot be read"),
    ("meta.json", edited(train={}), "cannot be read"),
    ("meta.json", edited(val={"tokens": 9, "shards": 1, "characters": -1}), "a count is below 0"),
    ("meta.json", edited(vocab_size=200), r"holds id \d+, but the vocab_size in meta\.json is 200"),
    ("meta.json", edited(val={"tokens": 1, "shards": 1, **dict.fromkeys(("characters", "bytes", "words", "documents"), 1)}),
     r"holds \d+ tokens of val, and meta\.json says 1"),
    ("meta.json", edited(tokenizer={"sha256": "0"}), r"train-.* was made with another tokenizer than meta\.json names"),
    (TRAIN, Path.unlink, r"train-00000-of-00001\.safetensors is missing"),
    (VAL, lambda p: p.write_bytes(p.read_bytes()[:-1]), r"val-.* is not a complete safetensors file"),
    (VAL, lambda p: p.write_bytes(p.read_bytes()[:50]), r"val-.* is not a complete safetensors file"),
    (VAL, lambda p: p.write_bytes(b""), r"val-.* is not a complete safetensors file"),
    (TRAIN, ids(np.zeros(5, np.uint16)), r"holds 5 tokens of train, and meta\.json says \d+"),
    (TRAIN, ids(np.zeros(5, np.float32)), r"train-.* holds ids F32\[5\], not token ids"),
    (TRAIN, ids(np.zeros((5, 1), np.uint16)), r"train-.* holds ids U16\[5, 1\], not token ids"),
    (TRAIN, ids(np.zeros(5, np.uint16), tokenizer="of another"), "another tokenizer than meta"),
    (TRAIN, lambda p: save_file({"wte": np.zeros(5, np.uint16)}, p), r"train-.* holds wte U16\[5\], not token ids"),
])
def test_damaged_data_are_refused(data: Data, name: str, change, reason: str) -> None:
    """What is missing, cut short, foreign or disagrees with meta.json is a MissingError of one line."""
    change(data.directory / name)
    with pytest.raises(MissingError, match=reason) as caught:
        load_data(data.directory)
    assert "\n" not in str(caught.value)


def test_an_id_beyond_the_vocabulary_is_found_anywhere(data: Data) -> None:
    """One id too high in the middle of a split is one line before anything begins."""
    numbers = data.train[:].copy()
    numbers[len(numbers) // 2] = 270
    ids(numbers)(data.directory / TRAIN)
    with pytest.raises(MissingError, match=r"train-.* holds id 270, but the vocab_size in meta\.json is 270; prepare the data again"):
        load_data(data.directory)


def test_empty_splits_are_refused(data: Data) -> None:
    """A split of no tokens is refused even where meta.json agrees."""
    ids(np.zeros(0, np.uint16))(data.directory / VAL)
    edited(val={**data.meta["val"], "tokens": 0})(data.directory / "meta.json")
    with pytest.raises(MissingError, match="prepare the data again"):
        load_data(data.directory)


def test_another_vocabulary_is_noticed(data: Data) -> None:
    """The tokenizer is loaded when asked for, and must be the one whose hash meta.json holds."""
    again = load_data(data.directory)
    for name, content in train_bpe(TEXT, 269).files().items():
        (data.directory / name).write_bytes(content)
    with pytest.raises(MissingError, match="another vocabulary"):
        _ = again.tokenizer
    assert load_tokenizer(data.directory).n_vocab == 269
    assert issubclass(MissingError, GPT2Error)
