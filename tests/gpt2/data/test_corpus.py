"""What text files hold besides text: byte-order marks, \\r\\n, JSON, and <|endoftext|> between documents."""
from __future__ import annotations

import json
import re
import subprocess
import sys
import warnings

import numpy as np
import pytest
import tiktoken
from data import test_data as data_file
from hypothesis import given
from hypothesis import strategies as st
from in_process import end_of
from tiny_gpt2 import TEXT, tiny_model, tiny_tokenizer

from gpt2 import prepare
from gpt2.data import corpus
from gpt2.data.shards import load_data
from gpt2.data.tokenizer import load_tokenizer
from gpt2.errors import MissingError
from gpt2.evaluate import __main__ as evaluate
from gpt2.experiments.lab import Lab

END = "<|endoftext|>"
BOM = b"\xef\xbb\xbf"


@pytest.fixture
def command(tmp_path, capsys):
    """command(module, *flags): exit code, stdout, stderr."""
    def run(module, *flags):
        return end_of(lambda: module.main([*map(str, flags)]), capsys, module.__name__)
    return run


@pytest.fixture
def model(tmp_path):
    tiny_model(seed=2).save_pretrained(tmp_path / "model", tokenizer=tiny_tokenizer())
    return tmp_path / "model"


def commands(path, model, out):
    """The commands that read a text, with what they need besides it."""
    yield prepare, path, "--out", out, "--tokenizer", model, "--workers", 1
    yield evaluate, "--data", path, "--task", "loss", "--model", model


# ── what is no text, or not only text ──
def test_a_byte_order_mark_is_left_out_and_said(command, model, tmp_path):
    """A text with a byte-order mark gives the ids of the text without it, in prepare, evaluate and experiments; stderr says so."""
    (tmp_path / "plain.txt").write_text(TEXT)
    (tmp_path / "marked.txt").write_bytes(BOM + TEXT.encode())
    said = {}
    for name in ("plain", "marked"):
        said[name] = [command(*flags) for flags in commands(tmp_path / f"{name}.txt", model, tmp_path / name)]
        assert [code for code, _, _ in said[name]] == [0, 0]
    assert np.array_equal(load_data(tmp_path / "plain").train[:], load_data(tmp_path / "marked").train[:])
    assert said["plain"][1][1].replace("plain.txt", "marked.txt") == said["marked"][1][1]
    line = f"warning: {tmp_path / 'marked.txt'} begins with a byte-order mark, which is left out\n"
    assert all(line in err for _, _, err in said["marked"]) and not any("mark" in err for _, _, err in said["plain"])
    with pytest.warns(UserWarning, match="byte-order mark"):
        marked = Lab(str(model), data=tmp_path / "marked.txt").text_ids
    assert marked.tolist() == tiny_tokenizer().encode(TEXT)


def test_a_byte_order_mark_of_jsonl(model, tmp_path):
    """JSONL may begin with one, and a file of nothing else is empty."""
    (tmp_path / "a.jsonl").write_bytes(BOM + b"".join(json.dumps({"text": TEXT}).encode() + b"\r\n" for _ in range(20)))
    with pytest.warns(UserWarning, match="byte-order mark") as said:
        prepare.prepare([tmp_path / "a.jsonl"], tmp_path / "out", str(model))
    assert len(said) == 1                               # between lines of JSON \r is no text
    assert load_data(tmp_path / "out").train[:5].tolist() == tiny_tokenizer().encode(TEXT)[:5]
    (tmp_path / "empty.txt").write_bytes(BOM)
    with pytest.warns(UserWarning, match="byte-order"), pytest.raises(MissingError, match="is empty but for a byte-order mark"):
        corpus.pieces([tmp_path / "empty.txt"])


def test_line_ends_of_windows_are_kept_and_said(command, model, tmp_path):
    r"""\r\n stays as it is, wherever in the file the first one is; stderr says so, and what takes them out."""
    (tmp_path / "a.txt").write_bytes((TEXT * 20).encode() + TEXT.replace("\n", "\r\n").encode())
    for code, _, err in (command(*flags) for flags in commands(tmp_path / "a.txt", model, tmp_path / "out")):
        assert code == 0 and "has line ends of \\r\\n, the first at byte" in err and "tr -d '\\r'" in err and err.count("\n") == 1
    data = load_data(tmp_path / "out")
    assert data.tokenizer.decode(np.concatenate([data.train[:], data.val[:]])) == TEXT * 20 + TEXT.replace("\n", "\r\n")


@pytest.mark.parametrize(("name", "content"), [
    ("a.json", json.dumps([{"text": TEXT}, {"text": TEXT}])),
    ("a.txt", json.dumps([{"text": TEXT}, {"text": TEXT}], indent=2)),
    ("a.txt", "\n [ {\"id\": 3, \"body\": \"x\"}]"),
    ("a.txt", json.dumps([TEXT, TEXT])),
    ("a.json", json.dumps({"text": TEXT})),
    ("b.json", BOM.decode() + json.dumps([{"text": TEXT}])),
])
def test_json_is_refused_with_what_to_type(name, content, command, model, tmp_path):
    """A JSON array is no text, however the file is called; what is to be typed is in the line, and does what it says."""
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    for code, out, err in (command(*flags) for flags in commands(path, model, tmp_path / "out")):
        assert (code, out) == (2, "") and "is JSON, and would be read as plain text; convert it to JSONL" in err
    typed = err.partition("with: python -c \"")[2].partition("\" > ")[0]
    if TEXT.splitlines()[0] in content and "[" in content:
        made = subprocess.run([sys.executable, "-c", typed], capture_output=True, text=True, check=True).stdout
        assert made and [json.loads(line)["text"] for line in made.splitlines()] == [TEXT] * len(made.splitlines())


@pytest.mark.parametrize("content", ["[1] a note\n", "[Enter Hamlet]\n", '["What," he said.]\n', "{ a brace }\n", "[[1, 2], 3] text\n"])
def test_text_that_begins_like_json_is_text(content, command, model, tmp_path):
    """Brackets alone make no JSON."""
    (tmp_path / "a.txt").write_text(content + TEXT)
    assert all(code == 0 and err == "" for code, _, err in
               (command(*flags) for flags in commands(tmp_path / "a.txt", model, tmp_path / "out")))


def test_utf_16_and_json_lines_are_named(command, model, tmp_path):
    """UTF-16 is refused with the command that converts it; JSON Lines in a .txt are read, and said to look so."""
    (tmp_path / "a.txt").write_bytes(TEXT.encode("utf-16"))
    (tmp_path / "b.txt").write_text("".join(json.dumps({"text": line}) + "\n" for line in TEXT.splitlines()))
    assert all(code == 3 and "is UTF-16; convert it to UTF-8 with: iconv" in err for code, _, err in
               (command(*flags) for flags in commands(tmp_path / "a.txt", model, tmp_path / "out")))
    assert all(code == 0 and "looks like JSON Lines, and is read as plain text; rename it to b.jsonl" in err for code, _, err in
               (command(*flags) for flags in commands(tmp_path / "b.txt", model, tmp_path / "out")))


# ── documents ──
DOCUMENTS = st.lists(st.sampled_from([END, END, "\n", "Over many a", " quaint", "naïve 🤗", " <|endof", "text|>", "<|"]), min_size=1,
                     max_size=40).map("".join)


@given(text=DOCUMENTS, size=st.integers(1, 40))
def test_pieces_of_documents_are_the_whole(text, size, tmp_path_factory):
    """However small the pieces, their ids put together are tiktoken's of the whole with allowed_special, and their bytes are the file's."""
    path, tokenizer = tmp_path_factory.mktemp("c") / "a.txt", tiny_tokenizer()
    path.write_text(text, encoding="utf-8", newline="")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus, "PIECE", size)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            some = corpus.pieces([path], special=True)
    ids = [i for part in corpus.in_parallel(corpus.encode, some, 1, "", tokenizer) for i in part.ids.tolist()]
    assert ids == tokenizer.encoding.encode(text, allowed_special={END})
    assert b"".join(piece.read() for piece in some) == text.encode()
    counts = np.sum([corpus.measure(piece) for piece in some], axis=0)
    plain = text.split(END)
    assert counts.tolist() == [sum(map(len, plain)), sum(len(p.encode()) for p in plain), sum(len(p.split()) for p in plain),
                               sum(bool(p.strip()) for p in plain)]


def test_documents_are_tiktokens(command, tmp_path, monkeypatch):
    """gpt2.prepare --allow-special gives tiktoken's ids with allowed_special, split between documents; without it, plain text's."""
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(data_file("tiktoken_cache")))
    text = END + f"\n{END}\n".join(f"Number {i}: {TEXT}" for i in range(20)) + END
    (tmp_path / "a.txt").write_text(text)
    code, _, err = command(prepare, tmp_path / "a.txt", "--out", tmp_path / "out", "--allow-special", "--workers", 1)
    assert (code, err) == (0, "")
    data, theirs = load_data(tmp_path / "out"), tiktoken.Encoding(
        "gpt2", pat_str=r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+""",
        mergeable_ranks=load_tokenizer("gpt2").encoding._mergeable_ranks, special_tokens={END: 50256})
    assert [*data.train[:], *data.val[:]] == theirs.encode(text, allowed_special={END})
    assert data.train[-1] == 50256 and data.val[0] != 50256            # the border is between two documents
    assert (data.meta["train"]["documents"], data.meta["val"]["documents"]) == (18, 2)
    code, _, err = command(prepare, tmp_path / "a.txt", "--out", tmp_path / "out", "--workers", 1)
    assert code == 0 and f"has {END} in it, which is read as plain text; --allow-special makes it the token" in err
    assert 50256 not in load_data(tmp_path / "out").train[:]


def test_documents_where_none_are(command, model, tmp_path):
    """--allow-special on a text without the token says so; with a tokenizer that has none, and on what is no text, it is refused."""
    (tmp_path / "a.txt").write_text(TEXT)
    vocabulary = {k: v for k, v in json.loads(tiny_tokenizer().files()["vocab.json"]).items() if k != END}
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "vocab.json").write_text(json.dumps(vocabulary))
    (tmp_path / "bare" / "merges.txt").write_bytes(tiny_tokenizer().files()["merges.txt"])
    code, _, err = command(prepare, tmp_path / "a.txt", "--out", tmp_path / "out", "--tokenizer", tmp_path / "bare", "--allow-special")
    assert code == 2 and "has no <|endoftext|>, which separates documents" in err
    said = pytest.warns(UserWarning, match=r"has no <\|endoftext\|> in it: it is one document")
    with said, pytest.raises(MissingError, match="1 document"):
        prepare.prepare([tmp_path / "a.txt"], tmp_path / "out", str(model), allow_special=True)
    (tmp_path / "two.txt").write_text(TEXT + END + TEXT)
    prepare.prepare([tmp_path / "two.txt"], tmp_path / "out", str(model), 0.5, allow_special=True)
    code, _, err = command(evaluate, "--data", tmp_path / "out", "--task", "loss", "--model", model, "--allow-special")
    assert code == 2 and "--allow-special is for text files" in err


def test_evaluate_reads_documents(command, model, tmp_path):
    """With --allow-special <|endoftext|> in a text file is one token and no character of the text."""
    (tmp_path / "a.txt").write_text(TEXT + END + TEXT)
    flags = ("--data", tmp_path / "a.txt", "--task", "loss", "--model", model, "--json")
    documents, plain = (json.loads(command(evaluate, *flags, *more)[1])["per"] for more in (["--allow-special"], []))
    ids = tiny_tokenizer().encode(TEXT)
    assert documents["token"]["count"] == 2 * len(ids)
    assert documents["character"]["count"] == 2 * len(TEXT) - len(tiny_tokenizer().decode(ids[:1]))
    assert plain["character"]["count"] == documents["character"]["count"] + len(END)


def test_a_vocabulary_is_learned_from_the_documents_alone(tmp_path):
    """train:N sees no <|endoftext|>: its characters are no word of the text."""
    (tmp_path / "a.txt").write_text(END.join(["endof"] * 40))
    prepare.prepare([tmp_path / "a.txt"], tmp_path / "out", "train:261", allow_special=True)
    assert load_data(tmp_path / "out").tokenizer.encode("endof") == [260 - 1]


@pytest.mark.parametrize("name, special, what", [("a.txt", False, "white space between words"), ("a.txt", True, "<|endoftext|>"),
                                                 ("a.jsonl", False, "line end")])
def test_what_cannot_be_cut_is_not_read_whole(tmp_path, name, special, what):
    """A file of zeros, which a disk has lost, is no text, however large it is said to be."""
    with open(tmp_path / name, "wb") as file:
        file.write(b"a text " * 10 + b"\n<|endoftext|>")
        file.truncate(400 << 20)
    with pytest.raises(MissingError, match=re.escape(f"has no {what} in 256 MB from byte 0 on; is it a text?")):
        corpus.pieces([tmp_path / name], special)


def test_a_line_is_counted_however_long_the_file(tmp_path, monkeypatch):
    """Piece after piece; and deep nesting is an error of one line as any other."""
    monkeypatch.setattr("gpt2.data.corpus.PIECE", 64)
    for wrong, reason in ((b"{", "is not JSON"), (b"[" * 100_000, "nested too deeply|is not JSON"),
                          (b'{"text": "a", "text": "b"}', "twice")):
        (tmp_path / "a.jsonl").write_bytes(b'{"text": "a b"}\n' * 40 + wrong + b"\n")
        with pytest.raises(MissingError, match=rf"a\.jsonl, line 41 .*({reason})"):
            for piece in corpus.pieces([tmp_path / "a.jsonl"]):
                corpus.measure(piece)
