"""Tokens that files beside a vocabulary add: the ids that transformers gives them, or a refusal."""
from __future__ import annotations

import json

import numpy as np
import pytest
from data import test_data as data_file
from tiny_gpt2 import TEXT, tiny_model, tiny_tokenizer

from gpt2.cli.command import run_command
from gpt2.data.shards import load_data
from gpt2.data.tokenizer import load_tokenizer
from gpt2.data.train_bpe import train_bpe
from gpt2.errors import MissingError, UsageError
from gpt2.generate import main
from gpt2.prepare import prepare

N = 300                                                 # ids of the tiny tokenizer
TEXTS = ["a<|pad|> b  <|pad|>foo", "<|endoftext|>foo<|endoftext|>", "none", "[MASK]<|pad|><|end|>"]


def token(content, **fields):
    return {"content": content, "lstrip": False, "rstrip": False, "normalized": False, "single_word": False, "special": True, **fields}


def written(folder, files):
    tiny_tokenizer().save(folder)
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize("files", [
    {"added_tokens.json": {"<|pad|>": N}},
    {"added_tokens.json": {"<|pad|>": N + 1, "foo": N}},
    {"added_tokens.json": {"<|endoftext|>": N - 1, "[MASK]": N}},
    {"added_tokens.json": {"a": 64}},
    {"tokenizer_config.json": {"added_tokens_decoder": {str(N + 1): token("foo"), str(N): token("<|pad|>")}}},
    {"tokenizer_config.json": {"added_tokens_decoder": {}}, "added_tokens.json": {"<|pad|>": N}},
    {"tokenizer_config.json": {"pad_token": "<|pad|>"}},
    {"tokenizer_config.json": {"pad_token": token("<|pad|>", __type="AddedToken"), "mask_token": "[MASK]"}},
    {"tokenizer_config.json": {"pad_token": "<|endoftext|>", "add_bos_token": False, "add_prefix_space": False}},
    {"special_tokens_map.json": {"pad_token": "<|pad|>", "eos_token": "<|endoftext|>"}},
    {"special_tokens_map.json": {"pad_token": token("<|pad|>")}, "added_tokens.json": {"<|pad|>": N}},
    {"tokenizer_config.json": {"extra_special_tokens": ["<|end|>", "[MASK]"]}},
], ids=str)
def test_added_tokens_are_those_of_transformers(files, tmp_path):
    """Every file in which transformers finds added tokens gives the same ids here, and the same text back."""
    transformers = pytest.importorskip("transformers")
    folder = written(tmp_path, files)
    ours, theirs = load_tokenizer(folder), transformers.GPT2Tokenizer.from_pretrained(folder)
    for text in TEXTS:
        ids = theirs(text)["input_ids"]
        assert ours.encode(text, allow_special=True) == ids
        assert ours.decode(ids) == text
    assert ours.encode(TEXTS[0], allow_special=False) == tiny_tokenizer().encode(TEXTS[0], allow_special=False)      # all is plain text
    for text in TEXTS:
        if any(token in text for token in ours.encoding.special_tokens_set):
            with pytest.raises(UsageError, match="pass allow_special=True"):
                ours.encode(text)
        else:
            assert ours.encode(text) == ours.encode(text, allow_special=True)


def test_a_pad_token_beside_gpt2s_vocabulary(tmp_path, monkeypatch):
    """Beside GPT-2's own vocabulary <|pad|> is one token, id 50257, as for GPT2TokenizerFast."""
    transformers = pytest.importorskip("transformers")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(data_file("tiktoken_cache")))
    load_tokenizer("gpt2").save(tmp_path)
    (tmp_path / "added_tokens.json").write_text('{"<|pad|>": 50257}')
    ours = load_tokenizer(tmp_path)
    assert ours.encode("a<|pad|>", allow_special=True) == [64, 50257]
    assert (ours.n_vocab, ours.n_plain) == (50258, 50257)
    assert transformers.GPT2TokenizerFast.from_pretrained(tmp_path)("a<|pad|>")["input_ids"] == [64, 50257]


def test_a_tokenizer_json_keeps_its_added_tokens(tmp_path):
    """What transformers saves after add_special_tokens, a tokenizer.json, gives the same ids."""
    transformers = pytest.importorskip("transformers")
    theirs = transformers.GPT2Tokenizer.from_pretrained(written(tmp_path / "a", {}))
    theirs.add_special_tokens({"pad_token": "<|pad|>"})
    theirs.add_tokens(["foo"])
    theirs.save_pretrained(tmp_path / "b")
    assert (tmp_path / "b" / "tokenizer.json").exists()
    ours = load_tokenizer(tmp_path / "b")
    for text in TEXTS:
        assert ours.encode(text, allow_special=True) == theirs(text)["input_ids"]


@pytest.mark.parametrize(("files", "said"), [
    ({"added_tokens.json": {"<|pad|>": N + 5}}, f"has the id {N + 5}, and transformers would use {N}"),
    ({"added_tokens.json": {"<|pad|>": 5}}, f"has the id 5, and transformers would use {N}"),
    ({"tokenizer_config.json": {"added_tokens_decoder": {str(N): token("<|pad|>", lstrip=True)}}}, "sets lstrip"),
    ({"tokenizer_config.json": {"mask_token": token("[MASK]", rstrip=True)}}, "sets rstrip"),
    ({"tokenizer_config.json": {"add_bos_token": True}}, "sets add_bos_token"),
    ({"tokenizer_config.json": {"add_prefix_space": True}}, "sets add_prefix_space"),
    ({"added_tokens.json": {"<|end|>": N, "<|end|>x": N + 1}}, "begins with the added token '<|end|>'"),
    ({"added_tokens.json": [1]}, "added_tokens.json must be an object"),
    ({"tokenizer_config.json": {"added_tokens_decoder": {"x": token("<|pad|>")}}}, "'x' is not an id"),
    ({"added_tokens.json": {"<|pad|>": "x"}}, "'<|pad|>' must be an integer"),
    ({"tokenizer_config.json": {"pad_token": 3}}, "pad_token must be a text or an object or null, not 3"),
], ids=str)
def test_added_tokens_that_would_get_other_ids_are_refused(files, said, tmp_path):
    """An id that transformers would not give, white space that a token takes with it, and what is no token: one line, exit code 3."""
    with pytest.raises(MissingError) as caught:
        load_tokenizer(written(tmp_path, files))
    assert said in str(caught.value) and str(tmp_path) in str(caught.value)


def test_added_tokens_are_saved(tmp_path):
    """A tokenizer with added tokens is saved so that it is the same again, also for transformers, and data made with it loads."""
    transformers = pytest.importorskip("transformers")
    ours = load_tokenizer(written(tmp_path / "a", {"added_tokens.json": {"<|pad|>": N + 1, "foo": N}}))
    ours.save(tmp_path / "b")
    again, theirs = load_tokenizer(tmp_path / "b"), transformers.GPT2Tokenizer.from_pretrained(tmp_path / "b")
    for text in TEXTS:
        ids = ours.encode(text, allow_special=True)
        assert again.encode(text, allow_special=True) == theirs(text)["input_ids"] == ids
    assert again.sha256 == ours.sha256
    (tmp_path / "poem.txt").write_text(TEXT)
    prepare([tmp_path / "poem.txt"], tmp_path / "data", str(tmp_path / "a"))
    assert load_data(tmp_path / "data").tokenizer.sha256 == ours.sha256
    prepare([tmp_path / "poem.txt"], tmp_path / "data", "train:290")   # and nothing of it is left where another is written
    assert load_data(tmp_path / "data").tokenizer.n_vocab == 290


def test_save_refuses_a_folder_that_adds_tokens(tmp_path):
    """An added_tokens.json or a tokenizer_config.json that lies there would change the tokenizer that is saved."""
    for name in ("added_tokens.json", "tokenizer_config.json", "special_tokens_map.json"):
        folder = tmp_path / name.partition(".")[0]
        folder.mkdir()
        (folder / name).write_text("{}")
        with pytest.raises(UsageError, match=rf"holds a {name}, which would be read too"):
            train_bpe(TEXT, 270).save(folder)


def test_a_model_without_the_added_rows_still_generates(tmp_path, capsys):
    """A pad token that the model's table has no row for is warned of; the text is that without the token."""
    model = tiny_model(seed=1)
    model.save_pretrained(tmp_path / "plain", tokenizer=tiny_tokenizer())
    model.save_pretrained(tmp_path / "padded", tokenizer=tiny_tokenizer())
    (tmp_path / "padded" / "added_tokens.json").write_text(json.dumps({"<|pad|>": N}))
    said = {}
    for name in ("plain", "padded"):
        with pytest.raises(SystemExit) as end:
            flags = ["--model", str(tmp_path / name), "--max-new-tokens", "8", "--logprobs", "3"]
            run_command(lambda flags=flags: main(flags), "gpt2.generate")
        said[name] = capsys.readouterr()
        assert end.value.code == 0
    assert said["plain"].out == said["padded"].out
    assert f"adds ids up to {N}, and the model's ids end at {N - 1}" in said["padded"].err
    assert "adds ids" not in said["plain"].err
    assert np.shape(model.wte.weight.array)[0] == N
