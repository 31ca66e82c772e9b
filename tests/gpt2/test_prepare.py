"""Laws of preparing data and of loading it."""
from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from data import ROOT
from data import test_data as data_file

from gpt2.bpe import train_bpe
from gpt2.errors import GPT2Error, MissingError, UsageError
from gpt2.prepare import FILES, Data, load_data, main, prepare
from gpt2.tokenizer import load_tokenizer

TEXT = "It was the best of times, it was the worst of times; naïve 🤗.\r\n" * 20


def files_of(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir()}


@pytest.fixture
def data(tmp_path: Path) -> Data:
    prepare([TEXT], tmp_path / "out", "train:270")
    return load_data(tmp_path / "out")


def test_the_splits_put_together_are_the_text(data: Data) -> None:
    """Decoded, train and val are the first 90 % and the last 10 % of the characters, line ends as they were."""
    border = int(len(TEXT) * 0.9)
    assert data.tokenizer.decode(data.train) == TEXT[:border]
    assert data.tokenizer.decode(data.val) == TEXT[border:]


def test_meta_counts_what_is_there(data: Data) -> None:
    """meta.json counts tokens, characters and UTF-8 bytes of each split, and names the vocabulary."""
    border = int(len(TEXT) * 0.9)
    parts = {"train": (data.train, TEXT[:border]), "val": (data.val, TEXT[border:])}
    for split, (ids, part) in parts.items():
        assert data.meta[split] == {"tokens": len(ids), "characters": len(part), "bytes": len(part.encode())}
    assert data.meta["vocab_size"] == 270
    assert data.meta["tokenizer"] == {"name": "bpe-270", "sha256": data.tokenizer.sha256}


def test_a_trained_vocabulary_never_sees_the_validation_text(tmp_path: Path) -> None:
    """train:N learns from the training part alone."""
    prepare(["ab" * 90, "xy" * 10], tmp_path / "out", "train:260")
    assert load_data(tmp_path / "out").tokenizer.sha256 == train_bpe("ab" * 90, 260).sha256
    with pytest.raises(UsageError, match="vocabulary of"):
        prepare(["a" * 9, "bcdefghijk"], tmp_path / "other", "train:262", val_fraction=0.5)
    assert not (tmp_path / "other").exists()


def test_arrays_are_mapped_and_small(data: Data) -> None:
    """Ids are memory-mapped, read-only, and uint16 where they fit."""
    for ids in (data.train, data.val):
        assert isinstance(ids, np.memmap) and ids.dtype == np.uint16 and not ids.flags.writeable


def test_large_vocabularies_take_uint32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Above 65,536 ids the arrays are uint32: no id wraps round."""
    folder = tmp_path / "wide"
    tokenizer = train_bpe(TEXT, 270)
    vocab = json.loads(tokenizer.files()["vocab.json"])
    vocab = {token: i if i < 256 else i + 70_000 for token, i in vocab.items()}
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
    (folder / "merges.txt").write_bytes(tokenizer.files()["merges.txt"])
    prepare([TEXT], tmp_path / "out", str(folder))
    data = load_data(tmp_path / "out")
    assert data.train.dtype == np.uint32 and data.train.max() > 70_000
    assert data.tokenizer.decode(data.train) == TEXT[:len(data.tokenizer.decode(data.train))]


def test_tiny_shakespeare_with_gpt2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """With GPT-2's vocabulary the splits have 301,966 and 36,059 tokens; one summary line says so."""
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(data_file("tiktoken_cache")))
    main([str(data_file("tinyshakespeare.txt")), "--out", str(tmp_path / "out")])
    data = load_data(tmp_path / "out")
    assert (len(data.train), len(data.val)) == (301_966, 36_059)
    out = capsys.readouterr().out
    assert out.count("\n") == 1 and "301,966" in out and "36,059" in out and "1,003,854" in out and "gpt2" in out


def test_json_is_meta_json(tmp_path: Path, capsys) -> None:
    """--json prints the contents of meta.json as the last line."""
    (tmp_path / "a.txt").write_bytes(TEXT.encode())
    main([str(tmp_path / "a.txt"), str(tmp_path / "a.txt"), "--out", str(tmp_path / "out"), "--tokenizer", "train:257", "--json"])
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert printed == json.loads((tmp_path / "out" / "meta.json").read_bytes())
    assert printed["train"]["bytes"] + printed["val"]["bytes"] == 2 * len(TEXT.encode())


# ── the directory ──

def test_preparing_again_replaces_and_is_reproducible(tmp_path: Path) -> None:
    """The same text gives the same bytes; another text replaces them all, also over the leftovers of a killed run."""
    out = tmp_path / "out"
    prepare([TEXT], out, "train:270")
    first = files_of(out)
    prepare([TEXT[::-1]], out, "train:257")
    assert files_of(out) != first and load_data(out).meta["vocab_size"] == 257
    (out / "train.npy.tmp").write_bytes(b"leftover")
    prepare([TEXT], out, "train:270")
    assert files_of(out) == first


@pytest.mark.parametrize("at", range(10))
@pytest.mark.parametrize("again", [False, True])
def test_a_killed_run_can_be_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int, again: bool) -> None:
    """Killed at any write or rename, of a first run or a second, the directory never loads as a mixture, and a new
    run is not refused."""
    out = tmp_path / "out"
    if again:
        prepare([TEXT], out, "train:257")
    steps = iter(range(100))

    def killing(real):
        def step(*args, **kwargs):
            if next(steps) == at:
                raise KeyboardInterrupt
            return real(*args, **kwargs)
        return step

    def dead(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", killing(os.fsync))
        patch.setattr(Path, "replace", killing(Path.replace))
        patch.setattr("contextlib.suppress", dead)                  # a killed process does not tidy up
        with pytest.raises(KeyboardInterrupt):
            prepare([TEXT], out, "train:270")
    if (out / "meta.json").exists():
        assert load_data(out).tokenizer.n_vocab == load_data(out).meta["vocab_size"] == 257
    prepare([TEXT], out, "train:270")
    assert files_of(out).keys() == set(FILES)
    assert load_data(out).tokenizer.n_vocab == 270


@pytest.mark.parametrize("held", [["notes.txt"], ["meta.json", "model.safetensors"], ["vocab.json", "merges.txt"]])
def test_a_directory_with_other_files_is_left_alone(tmp_path: Path, held: list[str]) -> None:
    """A directory that is not an earlier result is refused and keeps its contents; a lone tokenizer is no result."""
    for name in held:
        (tmp_path / name).write_bytes(b"mine")
    with pytest.raises(UsageError, match="not prepared data"):
        prepare([TEXT], tmp_path, "train:257")
    assert files_of(tmp_path) == dict.fromkeys(held, b"mine")


@pytest.mark.parametrize("arguments, error, reason", [
    (["nowhere.txt"], MissingError, r"nowhere\.txt cannot be read"),
    (["empty.txt"], MissingError, r"empty\.txt is empty"),
    (["latin.txt"], MissingError, r"latin\.txt is not UTF-8 \(byte 0xef at offset 2\)"),
    (["one.txt"], MissingError, "1 characters are too few"),
    (["good.txt", "--val-fraction", "0"], UsageError, "--val-fraction"),
    (["good.txt", "--val-fraction", "1"], UsageError, "--val-fraction"),
    (["good.txt", "--val-fraction", "nan"], UsageError, "--val-fraction"),
    (["good.txt", "--tokenizer", "train:many"], UsageError, "train:many"),
    (["good.txt", "--tokenizer", "train:256"], UsageError, "256 is too small"),
    (["good.txt", "--tokenizer", "train:9999"], UsageError, "only, not 9999"),
    (["good.txt", "--tokenizer", "bert"], MissingError, "bert"),
])
def test_bad_input_is_one_line_and_leaves_nothing(tmp_path: Path, monkeypatch, arguments, error, reason: str) -> None:
    """What cannot be prepared is named in one line, and the output directory is not begun."""
    monkeypatch.chdir(tmp_path)
    for name, content in {"empty": b"", "latin": b"na\xefve", "one": b"a", "good": TEXT.encode()}.items():
        (tmp_path / f"{name}.txt").write_bytes(content)
    with pytest.raises(error, match=reason) as caught:
        main([*arguments, "--out", "out"] if "--tokenizer" in arguments else
             [*arguments, "--out", "out", "--tokenizer", "train:257"])
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_an_output_that_cannot_be_written(tmp_path: Path) -> None:
    """--out at or below a file is a UsageError that names it."""
    (tmp_path / "file").write_bytes(b"")
    for out in (tmp_path / "file", tmp_path / "file" / "deeper"):
        with pytest.raises(UsageError, match="file"):
            prepare([TEXT], out, "train:257")


def test_the_command_ends_without_a_traceback(tmp_path: Path) -> None:
    """As a process: bad input is one line on stderr and exit code 3, a bad flag exit code 2."""
    for arguments, code in ((["nowhere.txt", "--out", "out"], 3), (["nowhere.txt"], 2)):
        done = subprocess.run([sys.executable, "-m", "gpt2.prepare", *arguments], capture_output=True, text=True,
                              cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)})
        assert done.returncode == code
        assert done.stdout == "" and done.stderr.count("\n") == 1 and "gpt2.prepare: " in done.stderr


# ── loading ──

def npy(array: np.ndarray):
    return lambda path: np.save(path, array)


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
    ("meta.json", edited(vocab_size=200), r"holds id \d+, meta\.json says 200 ids"),
    ("meta.json", edited(val={"tokens": 1}), r"val\.npy holds uint16\[\d+\], meta\.json says 1 tokens"),
    ("train.npy", Path.unlink, r"train\.npy is missing"),
    ("val.npy", lambda p: p.write_bytes(p.read_bytes()[:-1]), r"val\.npy is damaged or cut short"),
    ("val.npy", lambda p: p.write_bytes(p.read_bytes()[:50]), r"val\.npy is damaged or cut short"),
    ("val.npy", lambda p: p.write_bytes(b""), r"val\.npy is damaged or cut short"),
    ("train.npy", lambda p: np.savez(p.open("wb"), a=np.zeros(3)), r"train\.npy is an archive"),
    ("train.npy", npy(np.array(["x", None], object)), "damaged"),
    ("train.npy", npy(np.zeros(5, np.uint16)), r"uint16\[5\]"),
    ("train.npy", npy(np.zeros(5, np.float32)), r"float32\[5\]"),
])
def test_damaged_data_are_refused(data: Data, name: str, change, reason: str) -> None:
    """What is missing, cut short, foreign or disagrees with meta.json is a MissingError of one line."""
    change(data.directory / name)
    with pytest.raises(MissingError, match=reason) as caught:
        load_data(data.directory)
    assert "\n" not in str(caught.value)


def test_empty_splits_are_refused(data: Data) -> None:
    """A split of no tokens is refused even where meta.json agrees."""
    np.save(data.directory / "val.npy", np.zeros(0, np.uint16))
    edited(val={"tokens": 0})(data.directory / "meta.json")
    with pytest.raises(MissingError, match="prepare again"):
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
