"""Laws of preparing data: splits, pieces, processes, and the directory."""
from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from data import ROOT
from data import test_data as data_file
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_gpt2 import prepare_texts

from gpt2.data import corpus
from gpt2.data.shards import Data, load_data
from gpt2.data.train_bpe import train_bpe
from gpt2.errors import MissingError, UsageError
from gpt2.io.records import unsealed
from gpt2.prepare import main, prepare

FILES = {"vocab.json", "merges.txt", "train-00000-of-00001.safetensors", "val-00000-of-00001.safetensors", "meta.json"}
TEXT = "It was the best of times, it was the worst of times; naïve 🤗.\r\n" * 20


def files_of(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir()}


@pytest.fixture
def data(tmp_path: Path) -> Data:
    prepare_texts([TEXT], tmp_path / "out", "train:270")
    return load_data(tmp_path / "out")


def test_the_splits_put_together_are_the_text(data: Data) -> None:
    """Decoded, train and val are the first 90 % and the last 10 % of the characters, line ends as they were."""
    border = int(len(TEXT) * 0.9)
    assert data.tokenizer.decode(data.train) == TEXT[:border]
    assert data.tokenizer.decode(data.val) == TEXT[border:]


def test_meta_counts_what_is_there(data: Data) -> None:
    """meta.json counts tokens, characters, UTF-8 bytes and words of each split, and names the vocabulary."""
    border = int(len(TEXT) * 0.9)
    parts = {"train": (data.train, TEXT[:border]), "val": (data.val, TEXT[border:])}
    for split, (ids, part) in parts.items():
        assert data.meta[split] == {"tokens": len(ids), "shards": 1, "characters": len(part), "bytes": len(part.encode()),
                                    "words": len(part.split()), "documents": 0, "sha256": hashlib.sha256(ids[:].tobytes()).hexdigest()}
    assert data.meta["vocab_size"] == 270
    assert data.meta["tokenizer"] == {"name": "bpe-270", "sha256": data.tokenizer.sha256}


def test_a_trained_vocabulary_never_sees_the_validation_text(tmp_path: Path) -> None:
    """train:N learns from the training part alone."""
    prepare_texts(["ab" * 90, "xy" * 10], tmp_path / "out", "train:260")
    assert load_data(tmp_path / "out").tokenizer.sha256 == train_bpe("ab" * 90, 260).sha256
    with pytest.raises(UsageError, match="vocabulary of"):
        prepare_texts(["a" * 9, "bcdefghijk"], tmp_path / "other", "train:262", val_fraction=0.5)
    assert not (tmp_path / "other").exists()


def test_arrays_are_mapped_and_small(data: Data) -> None:
    """Ids are memory-mapped, read-only, and uint16 where they fit."""
    for ids in (data.train, data.val):
        assert isinstance(ids[:], np.memmap) and ids.dtype == np.uint16 and not ids[:].flags.writeable


def test_large_vocabularies_take_uint32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Above 65,536 ids the arrays are uint32: no id wraps round."""
    folder = tmp_path / "wide"
    tokenizer = train_bpe(TEXT, 270)
    vocab = json.loads(tokenizer.files()["vocab.json"])
    vocab = {token: i if i < 256 else i + 70_000 for token, i in vocab.items()}
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
    (folder / "merges.txt").write_bytes(tokenizer.files()["merges.txt"])
    prepare_texts([TEXT], tmp_path / "out", str(folder))
    data = load_data(tmp_path / "out")
    assert data.train.dtype == np.uint32 and data.train[:].max() > 70_000
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
    """--json prints the contents of meta.json but for its checksum, as the last line."""
    (tmp_path / "a.txt").write_bytes(TEXT.encode())
    main([str(tmp_path / "a.txt"), str(tmp_path / "a.txt"), "--out", str(tmp_path / "out"), "--tokenizer", "train:257", "--json"])
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert printed == unsealed(json.loads((tmp_path / "out" / "meta.json").read_bytes()))
    assert printed["train"]["bytes"] + printed["val"]["bytes"] == 2 * len(TEXT.encode())


# ── the directory ──

def test_preparing_again_replaces_and_is_reproducible(tmp_path: Path) -> None:
    """The same text gives the same bytes; another text replaces them all, also over the leftovers of a killed run."""
    out = tmp_path / "out"
    prepare_texts([TEXT], out, "train:270")
    first = files_of(out)
    prepare_texts([TEXT[::-1]], out, "train:257")
    assert files_of(out) != first and load_data(out).meta["vocab_size"] == 257
    (tmp_path / ".out.0123abcd.tmp").mkdir()            # what a killed run leaves
    (tmp_path / ".out.0123abcd.tmp" / "train-0.tmp").write_bytes(b"leftover")
    prepare_texts([TEXT], out, "train:270")
    assert files_of(out) == first and [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("held", [["notes.txt"], ["meta.json", "model.safetensors"], ["vocab.json", "merges.txt"]])
def test_a_directory_with_other_files_is_left_alone(tmp_path: Path, held: list[str]) -> None:
    """A directory that is not an earlier result is refused and keeps its contents; a lone tokenizer is no result."""
    for name in held:
        (tmp_path / name).write_bytes(b"mine")
    with pytest.raises(UsageError, match=f"holds {min(held)}, which gpt2.prepare did not write; move it away"):
        prepare_texts([TEXT], tmp_path, "train:257")
    assert files_of(tmp_path) == dict.fromkeys(held, b"mine")


GOOD = b'{"text": "All is well."}\n'
JSONL = {
    "docs.jsonl": GOOD * 9,
    "broken.jsonl": GOOD + b"\n{]\n",
    "textless.jsonl": GOOD + b'{"text": 1}\n',
    "list.jsonl": b"[]",
    "half.jsonl": rb'{"text": "\ud83e"}',
    "latin.jsonl": GOOD + b'"na\xefve"',
    "one.jsonl": GOOD,
    "blank.jsonl": GOOD + b"\n \n",
}


@pytest.mark.parametrize("arguments, error, reason", [
    (["nowhere.txt"], MissingError, r"nowhere\.txt cannot be read"),
    (["empty.txt"], MissingError, r"empty\.txt is empty"),
    (["good.txt", "docs.jsonl"], UsageError, "cannot be prepared together"),
    (["broken.jsonl"], MissingError, r"broken\.jsonl, line 3 is not JSON \(Expecting"),
    (["textless.jsonl"], MissingError, r'textless\.jsonl, line 2 has no "text" that is a string'),
    (["list.jsonl"], MissingError, r'list\.jsonl, line 1 has no "text"'),
    (["half.jsonl"], MissingError, r"half\.jsonl, line 1 is not valid Unicode \(lone surrogate U\+D83E\)"),
    (["latin.jsonl"], MissingError, r"latin\.jsonl is not UTF-8 \(byte 0xef at offset 28\)"),
    (["one.jsonl"], MissingError, "1 document is too few"),
    (["blank.jsonl"], MissingError, "there is no text for val"),
    (["docs.jsonl", "--tokenizer", "endless"], UsageError, r"endless has no <\|endoftext\|>"),
    (["good.txt", "--workers", "0"], SystemExit, "2"),
    (["."], UsageError, r"\. is not a file"),
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
    for name, content in {"empty.txt": b"", "latin.txt": b"na\xefve", "one.txt": b"a", "good.txt": TEXT.encode(), **JSONL}.items():
        (tmp_path / name).write_bytes(content)
    vocab = json.loads(train_bpe(TEXT, 258).files()["vocab.json"])
    (tmp_path / "endless").mkdir()
    (tmp_path / "endless" / "merges.txt").write_bytes(train_bpe(TEXT, 258).files()["merges.txt"])
    (tmp_path / "endless" / "vocab.json").write_text(json.dumps({token: i for token, i in vocab.items() if i < 257}), encoding="utf-8")
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
            prepare_texts([TEXT], out, "train:257")


def test_the_command_ends_without_a_traceback(tmp_path: Path) -> None:
    """As a process: bad input is one line on stderr and exit code 3, a bad flag exit code 2."""
    for arguments, code in ((["nowhere.txt", "--out", "out"], 3), (["nowhere.txt"], 2)):
        done = subprocess.run([sys.executable, "-m", "gpt2.prepare", *arguments], capture_output=True, text=True,
                              cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)})
        assert done.returncode == code
        assert done.stdout == "" and done.stderr.count("\n") == 1 and "gpt2.prepare: " in done.stderr

# ── pieces and processes ──

WORDS = st.sampled_from(["a", "It's", "'s", "'", "12", "naïve", "🤗", "世界", ".", " ", "  ", "\n", "\r\n", "\u3000", "\xa0", "\t",
                         "\u0085", "\x1c"])


@given(st.lists(WORDS, min_size=30, max_size=300).map("".join), st.integers(8, 40))
@settings(max_examples=60)
def test_pieces_have_the_tokens_of_the_whole(text: str, size: int) -> None:
    """Cut into pieces of any size, a text has the same tokens, counts and vocabulary as in one."""
    results = []
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        for name, bytes_a_piece in (("whole", 1 << 20), ("pieces", size)):
            patch.setattr(corpus, "PIECE", bytes_a_piece)
            prepare_texts([text], Path(folder, name), "train:258", val_fraction=0.3)
            results.append(files_of(Path(folder, name)))
    assert results[0] == results[1]


def test_pieces_are_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file is cut where white space follows what is none; pieces are about as long as asked for, and together they are the file."""
    monkeypatch.setattr(corpus, "PIECE", 100)
    (tmp_path / "a.txt").write_bytes(TEXT.encode())
    some = corpus.pieces([tmp_path / "a.txt"] * 2)
    assert len(some) == 2 * -(-len(TEXT.encode()) // 112) > 20 or max(p.stop - p.start for p in some) < 112
    assert b"".join(piece.read() for piece in some) == 2 * TEXT.encode()
    for piece in some:
        content = piece.read().decode()
        assert not content[-1].isspace() or content.endswith(TEXT[-20:])
        assert content[0].isspace() or piece.start == 0


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_any_number_of_processes_gives_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Two processes write what one writes, and so do shards of any size, but for their number."""
    monkeypatch.setattr(corpus, "PIECE", 500)
    lines = [json.dumps({"text": f"{i} {TEXT[:60]}", "id": i}) for i in range(60)]
    (tmp_path / name).write_text("\n".join(lines), encoding="utf-8")
    one = prepare([tmp_path / name], tmp_path / "one", "train:280")
    two = prepare([tmp_path / name], tmp_path / "two", "train:280", workers=2)
    assert one == two and files_of(tmp_path / "one") == files_of(tmp_path / "two")
    monkeypatch.setattr("gpt2.data.shards.SHARD", 700)
    many = prepare([tmp_path / name], tmp_path / "many", "train:280")
    assert many["train"].pop("shards") > 2 and one["train"].pop("shards") == 1 and many["train"] == one["train"]
    whole, shards = load_data(tmp_path / "one").train, load_data(tmp_path / "many").train
    assert np.array_equal(whole[:], shards[:]) and all(len(ids) <= 700 for ids in shards.shards)


def test_documents_end_in_end_of_text(tmp_path: Path) -> None:
    """Each document is followed by <|endoftext|>; whole documents are held back, those that begin in the last tenth; blanks are none."""
    documents = [f"Number {i} of them, <|endoftext|> naïve 🤗.\n" for i in range(20)]
    lines = [json.dumps({"id": i, "text": text}, ensure_ascii=i % 2 == 0) for i, text in enumerate(documents)]
    (tmp_path / "a.jsonl").write_text("\n\n".join(lines[:7]) + '\n{"text": ""}\n', encoding="utf-8")
    (tmp_path / "b.jsonl").write_text("\r\n".join(lines[7:]), encoding="utf-8")
    meta = prepare([tmp_path / "a.jsonl", tmp_path / "b.jsonl"], tmp_path / "out", "train:280")
    data = load_data(tmp_path / "out")
    end = data.tokenizer.eot
    found = [data.tokenizer.decode(ids[:-1]) for split in (data.train, data.val)
             for ids in np.split(split[:], np.flatnonzero(split[:] == end) + 1)[:-1]]
    assert found == documents and data.train[-1] == data.val[-1] == end
    border = int(sum(map(len, documents)) * 0.9)
    held_back = [text for i, text in enumerate(documents) if sum(map(len, documents[:i])) >= border]
    assert (meta["train"]["documents"], meta["val"]["documents"]) == (20 - len(held_back), len(held_back))
    for split, texts in (("train", documents[:-len(held_back)]), ("val", held_back)):
        assert [meta[split][key] for key in ("characters", "bytes", "words")] == [
            sum(map(len, texts)), sum(len(text.encode()) for text in texts), sum(len(text.split()) for text in texts)]


@pytest.mark.slow
def test_memory_does_not_grow_with_the_text(tmp_path: Path) -> None:
    """17 MB of text are prepared in less memory than that, the program's own aside."""
    with open(tmp_path / "a.txt", "w", encoding="utf-8") as file:
        for _ in range(130):
            file.write(TEXT * 100)
    code = ("import resource, sys; from gpt2.data import corpus; from gpt2.prepare import prepare; corpus.PIECE = 1 << 16; before = "
            "resource.getrusage(resource.RUSAGE_SELF).ru_maxrss; prepare(sys.argv[1:2], sys.argv[2], 'train:270'); "
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)")
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.txt"), str(tmp_path / "out")], capture_output=True, text=True,
                          check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert int(done.stdout) * 1024 < 14e6 < os.path.getsize(tmp_path / "a.txt")


@pytest.mark.parametrize("whom, number, code, said", [
    ("all", signal.SIGINT, 130, "gpt2.prepare: interrupted"),
    ("child", signal.SIGKILL, 1, "try fewer --workers"),
    ("parent", signal.SIGKILL, -signal.SIGKILL, ""),
])
def test_processes_end_together(tmp_path: Path, whom: str, number: int, code: int, said: str) -> None:
    """Ctrl-C ends all processes with one line and leaves nothing; a killed child is one line too; none outlives its parent."""
    (tmp_path / "a.txt").write_bytes(TEXT.replace("\r\n", "\n").encode() * 20_000)       # line ends of \r\n would be warned of
    running = subprocess.Popen([sys.executable, "-m", "gpt2.prepare", *"a.txt --out out --tokenizer train:257 --workers 2".split()],
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path, start_new_session=True,
                               env={**os.environ, "PYTHONPATH": str(ROOT)})
    children = Path(f"/proc/{running.pid}/task/{running.pid}/children")
    while len(children.read_text().split()) < 3:        # with Python's tracker of resources
        time.sleep(0.01)
    time.sleep(0.3)                                     # some are still beginning
    if whom == "all":
        os.killpg(running.pid, number)
    elif whom == "parent":
        os.kill(running.pid, number)
    while whom == "child" and running.poll() is None:   # a child may have ended before it is hit
        with contextlib.suppress(ProcessLookupError, IndexError, OSError):
            os.kill(int(children.read_text().split()[-1]), number)
        time.sleep(0.3)
    out, err = running.communicate(timeout=60)          # which waits for the children too: they hold the pipe
    assert (out, running.returncode) == ("", code) and said in err
    assert whom == "parent" or (err.count("\n") == 1 and not (tmp_path / "out").exists())


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="signals are POSIX's")
def test_ctrl_c_twice(tmp_path: Path) -> None:
    """While other processes read, the second one does not leave the first half done: it ends soon, in one line, with 130."""
    (tmp_path / "a.txt").write_text(TEXT * 20_000)
    argv = [sys.executable, "-m", "gpt2.prepare", "a.txt", "--out", "out", "--tokenizer", "train:300", "--workers", "2"]
    running = subprocess.Popen(argv, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE, text=True)
    children = Path(f"/proc/{running.pid}/task/{running.pid}/children")
    for _ in range(600):                                # until both processes are there
        if not children.exists() or len(children.read_text().split()) > 2:
            break
        time.sleep(0.05)
    for _ in range(2):
        running.send_signal(signal.SIGINT)
        time.sleep(0.1)
    _, said = running.communicate(timeout=30)
    assert running.returncode == 130 and said.splitlines()[-1] == "gpt2.prepare: interrupted" and "Traceback" not in said
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
