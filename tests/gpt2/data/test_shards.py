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
from gpt2.io.records import sealed, unsealed

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
        path.write_text(json.dumps({**unsealed(meta), **changes}), encoding="utf-8")
    return change


def counted(split: str, **changes: object):
    """With other numbers of a split in meta.json, whose own checksum is right."""
    def change(path: Path) -> None:
        meta = unsealed(json.loads(path.read_bytes()))
        path.write_bytes(sealed({**meta, split: {**meta[split], **changes}}))
    return change


@pytest.mark.parametrize("name, change, reason", [
    ("meta.json", Path.unlink, "no prepared data"),
    ("meta.json", lambda p: p.write_bytes(b"{"), r"meta\.json is not JSON .*; prepare the data again"),
    ("meta.json", lambda p: p.write_bytes(b"[]"), "must be an object"),
    ("meta.json", edited(train={}), r"train\.tokens is missing"),
    ("meta.json", counted("val", characters=-1), r"val\.characters must be an integer from 0 to"),
    ("meta.json", edited(train={"tokens": 9, "shards": 1, "characters": 1e400}), r"train\.characters must be an integer of 64 bits"),
    ("meta.json", counted("train", sha256=0), r"train\.sha256 must be a text, not 0"),
    ("meta.json", edited(val={"tokens": -1e400}), r"val\.tokens must be an integer"),
    ("meta.json", counted("val", tokens=True), r"val\.tokens must be an integer"),
    ("meta.json", counted("val", shards=10**39), r"val\.shards must be an integer"),
    ("meta.json", lambda p: p.write_bytes(p.read_bytes().replace(b'"documents": 0', b'"documents": 1')),
     "does not have the checksum that its field crc32 names"),
    ("meta.json", counted("train", characters=7), "train has 7 characters, and its shards say "),
    ("meta.json", counted("val", sha256="0" * 64), r"the ids of val in .* do not have the sha256 that meta\.json names"),
    ("meta.json", edited(vocab_size=200), r"holds id \d+, but the vocab_size in meta\.json is 200"),
    ("meta.json", counted("val", tokens=1), r"holds \d+ tokens of val, and meta\.json says 1"),
    ("meta.json", edited(tokenizer={"name": "x", "sha256": "0" * 64}), r"train-.* was made with another tokenizer than meta\.json names"),
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


def test_one_bit_of_the_ids_is_noticed(data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever it is; of a split with more ids than CHECKED only the two ends are looked at."""
    path, at = data.directory / TRAIN, 4096 + 2 * (len(data.train) // 2)
    content = path.read_bytes()
    path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1:])
    with pytest.raises(MissingError, match=r"the ids of train in .* do not have the sha256 that meta\.json names: a shard is damaged"):
        load_data(data.directory)
    monkeypatch.setattr("gpt2.data.shards.CHECKED", len(data.train) - 1)
    assert len(load_data(data.directory).train) == len(data.train)


def test_data_of_older_versions_load(data: Data) -> None:
    """Without a checksum of meta.json, and without one of the ids."""
    meta = {**data.meta, **{split: {k: v for k, v in data.meta[split].items() if k != "sha256"} for split in ("train", "val")}}
    (data.directory / "meta.json").write_text(json.dumps(meta))
    assert load_data(data.directory).meta == meta


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
