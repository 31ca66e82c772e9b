"""Laws of gpt2.weights.checkpoint: what transformers and we write reads back bit for bit, and nothing else does."""
from __future__ import annotations

import json
import os
import re
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from data import test_data
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file
from safetensors.torch import save_file as save_torch
from tiny_weights import TINY, UNTIED, assert_same, save, weights
from transformers import GPT2Config as TheirConfig
from transformers import GPT2LMHeadModel

from gpt2.config import GPT2Config, parameter_shapes
from gpt2.errors import GPT2Error, MissingError, UsageError
from gpt2.io.safetensors import as_stored, read_header
from gpt2.weights.checkpoint import read_checkpoint, write_checkpoint

DTYPES = ("float32", "float16", "bfloat16", "float64")


def refused(path: Path, match: str, kind: type[GPT2Error] = MissingError, **options) -> str:
    """The one line with which reading is refused."""
    with pytest.raises(kind, match=match) as raised:
        read_checkpoint(path, **options)
    message = str(raised.value)
    assert "\n" not in message and len(message) < 500
    return message


# ── there and back ──
@pytest.mark.parametrize("config", [TINY, UNTIED], ids=["tied", "untied"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_written_is_read(tmp_path, config, dtype):
    """Config, order of names and numbers come back, the numbers as the stored dtype rounds them (ties to even)."""
    given_ = weights(config)
    write_checkpoint(tmp_path / "new" / "dir", config, given_, dtype=dtype)
    read = read_checkpoint(tmp_path / "new" / "dir")
    assert read.config == config and read.dtype == dtype and read.path == tmp_path / "new" / "dir"
    assert list(read.parameters) == list(parameter_shapes(config))
    assert read.nbytes == 4 * sum(a.size for a in given_.values())
    rounded = {name: torch.from_numpy(a).to(getattr(torch, dtype)).float().numpy() for name, a in given_.items()}
    assert_same(read.parameters, rounded)
    assert sorted(p.name for p in (tmp_path / "new" / "dir").iterdir()) == ["config.json", "model.safetensors"]


@pytest.mark.parametrize("stored", DTYPES)
@pytest.mark.parametrize("wanted", ["float32", "float64", "float16"])
def test_every_stored_dtype_is_read_in_every_dtype_as_torch_converts_it(tmp_path, stored, wanted):
    """Widening is exact, narrowing rounds once."""
    given_ = weights()
    write_checkpoint(tmp_path, TINY, given_, dtype=stored)
    theirs = {name: torch.from_numpy(a).to(getattr(torch, stored)).to(getattr(torch, wanted)).numpy() for name, a in given_.items()}
    assert_same(read_checkpoint(tmp_path, dtype=wanted).parameters, theirs)


_HALVES = st.integers(0, 0xFFFF) | st.sampled_from([0, 0x7F7F, 0x7F80, 0x7FFF, 0x8000, 0xFF80, 0xFFFF])


@given(st.lists(st.tuples(_HALVES, st.sampled_from([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF])), min_size=1, max_size=30))
def test_bfloat16_is_rounded_as_torch_rounds_it(halves):
    """Nearest, ties to even, infinity and signed zero kept, NaN a NaN; bit for bit except for a NaN's payload."""
    array = np.array([high << 16 | low for high, low in halves], np.uint32).view(np.float32)
    ours, theirs = as_stored(array, "BF16"), torch.from_numpy(array).bfloat16()
    nan = np.isnan(array)
    assert np.array_equal(ours[~nan], theirs.view(torch.int16).numpy().view(np.uint16)[~nan])
    assert np.isnan((ours[nan].astype(np.uint32) << 16).view(np.float32)).all()


@pytest.mark.parametrize("config", [TINY, UNTIED], ids=["tied", "untied"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_transformers_loads_what_we_write(tmp_path, config, dtype):
    """GPT2LMHeadModel.from_pretrained has the same bits under the same names, in the stored dtype, and misses nothing."""
    given_ = weights(config)
    write_checkpoint(tmp_path, config, given_, dtype=dtype)
    model, report = GPT2LMHeadModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    assert model.dtype == getattr(torch, dtype)
    theirs = {name.removeprefix("transformer."): p.detach() for name, p in model.named_parameters()}
    assert theirs.keys() == given_.keys()
    for name, p in theirs.items():
        assert torch.equal(p, torch.from_numpy(given_[name]).to(getattr(torch, dtype))), name
    assert (model.lm_head.weight is model.transformer.wte.weight) == config.tie_word_embeddings


@pytest.mark.parametrize("config", [TINY, UNTIED], ids=["tied", "untied"])
@pytest.mark.parametrize("shards", ["5GB", "1KB"], ids=["one-file", "sharded"])
def test_we_load_what_transformers_writes(tmp_path, config, shards):
    """Also through an index and its shards; the index may be named itself."""
    model = GPT2LMHeadModel(TheirConfig(**config.to_dict()))
    model.save_pretrained(tmp_path, max_shard_size=shards)
    index = tmp_path / "model.safetensors.index.json"
    assert index.exists() == (shards == "1KB")
    theirs = {name.removeprefix("transformer."): p.detach().numpy() for name, p in model.named_parameters()}
    for path in [tmp_path, index] if index.exists() else [tmp_path]:
        read = read_checkpoint(path)
        assert read.config == config
        assert_same(read.parameters, theirs)


def test_a_read_checkpoint_can_be_written_over_the_one_it_came_from(tmp_path):
    """The maps keep the old file alive, so that load, change and save in one place works."""
    write_checkpoint(tmp_path, TINY, weights())
    read = read_checkpoint(tmp_path)
    read.parameters["wte.weight"][:] = 1.0
    write_checkpoint(tmp_path, TINY, read.parameters)
    assert_same(read_checkpoint(tmp_path).parameters, {**weights(), "wte.weight": np.ones((5, 6), np.float32)})


@pytest.mark.parametrize("config", [TINY, UNTIED], ids=["tied", "untied"])
def test_stored_names_are_those_that_transformers_writes(tmp_path, config):
    """GPT2LMHeadModel.save_pretrained and we name and shape the same tensors."""
    GPT2LMHeadModel(TheirConfig(**config.to_dict())).save_pretrained(tmp_path / "theirs")
    write_checkpoint(tmp_path / "ours", config, weights(config))
    ours, theirs = (load_file(tmp_path / side / "model.safetensors") for side in ("ours", "theirs"))
    assert {name: a.shape for name, a in ours.items()} == {name: a.shape for name, a in theirs.items()}


def test_parameters_keep_their_own_dtypes_when_none_is_named(tmp_path):
    """dtype=None stores as they are, mixed ones too, and any tensor stays aligned."""
    config = GPT2Config(vocab_size=3, n_positions=1, n_embd=3, n_layer=1, n_head=1, n_inner=1)
    given_ = {name: a.astype(np.float16 if "ln_" in name else np.float64) for name, a in weights(config).items()}
    write_checkpoint(tmp_path, config, dict(reversed(given_.items())))
    for entry in read_header(tmp_path / "model.safetensors")[0]:
        assert entry.offset % {"F16": 2, "F64": 8}[entry.dtype] == 0
    stored = load_file(tmp_path / "model.safetensors")
    assert_same({name.removeprefix("transformer."): a for name, a in stored.items()}, given_)
    assert read_checkpoint(tmp_path).dtype == "float64"


# ── names ──
@pytest.mark.parametrize(
    "prefix", ["", "transformer.", "module.", "_orig_mod.", "_orig_mod.module.transformer.", "module._orig_mod.transformer."]
)
@pytest.mark.parametrize("config", [TINY, UNTIED], ids=["tied", "untied"])
def test_prefixes_are_taken_off_in_any_order(tmp_path, prefix, config):
    """Of transformers, DataParallel and torch.compile; the head has them without `transformer.`."""
    head = prefix.replace("transformer.", "") + "lm_head.weight"
    save(tmp_path, {head if name == "lm_head.weight" else prefix + name: a for name, a in weights(config).items()}, config)
    assert_same(read_checkpoint(tmp_path).parameters, weights(config))


def test_mask_buffers_are_left_out_and_biases_are_not(tmp_path):
    """h.N.attn.bias and h.N.attn.masked_bias of any dtype; never h.N.attn.c_attn.bias."""
    masks = {f"transformer.h.{i}.attn.bias": np.tril(np.ones((1, 1, 4, 4), dtype)) for i, dtype in enumerate([np.uint8, np.float32])}
    masks["transformer.h.0.attn.masked_bias"] = np.array(-1e4, np.float32)
    save(tmp_path, {**{f"transformer.{n}": a for n, a in weights().items()}, **masks})
    assert_same(read_checkpoint(tmp_path).parameters, weights())


def test_a_tied_head_may_be_stored_too(tmp_path):
    """lm_head.weight that equals wte.weight is left out, NaN or not; one that differs is named."""
    both = weights()
    both["lm_head.weight"] = both["wte.weight"].copy()
    save(tmp_path, both)
    assert_same(read_checkpoint(tmp_path).parameters, weights())
    for name in ("wte.weight", "lm_head.weight"):
        both[name][0, 0] = np.nan
    save(tmp_path, both)
    with pytest.warns(UserWarning, match="NaN or infinity in 'wte.weight'"):
        read_checkpoint(tmp_path)
    both["lm_head.weight"][4, 5] += 1
    save(tmp_path, both)
    assert "config.json" in refused(tmp_path, r"'lm_head\.weight' differs from 'wte\.weight'")
    both["lm_head.weight"] = np.zeros((6, 6), np.float32)
    save(tmp_path, both)
    refused(tmp_path, r"'lm_head\.weight' differs")
    both["lm_head.weight"] = np.zeros((5, 6), np.int8)
    save(tmp_path, both)
    refused(tmp_path, r"'lm_head\.weight' differs")


def test_an_untied_head_must_be_stored(tmp_path):
    """The message names the tensor and the config that asks for it."""
    save(tmp_path, weights(TINY), UNTIED)
    assert "config.json does not tie it" in refused(tmp_path, r"no tensor 'lm_head\.weight'")


def test_two_tensors_of_one_name_are_refused(tmp_path):
    """With and without prefix: nobody can know which is meant."""
    save(tmp_path, {**weights(), "module.ln_f.bias": weights()["ln_f.bias"]})
    refused(tmp_path, r"'ln_f\.bias' twice, as .*'module\.ln_f\.bias'")


# ── what is not a whole checkpoint ──
def test_a_missing_tensor_is_named_and_the_rest_counted(tmp_path):
    """The first in model order, and how many of how many there are."""
    partial = {name: a for name, a in weights().items() if name not in ("h.1.mlp.c_proj.weight", "ln_f.bias")}
    save(tmp_path, partial)
    message = refused(tmp_path, "partial checkpoint")
    assert message.endswith(
        "model.safetensors has no tensor 'h.1.mlp.c_proj.weight'; is it a partial checkpoint? (26 of 28 tensors found)"
    )


def test_the_partial_weights_of_openai_are_refused_as_partial():
    """123 of the 148 tensors are there, alone in a file: its width tells the size, and the count is said, and no warning of the guess."""
    path = test_data("gpt2-124M-partial.safetensors")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        refused(path, r"no tensor 'wte\.weight'; is it a partial checkpoint\? \(123 of 148 tensors found\)")


def test_an_unexpected_tensor_is_named(tmp_path):
    """A head of another task, cross-attention, or a layer more than config.json has."""
    save(tmp_path, {**weights(), "score.weight": np.zeros(3, np.float32)})
    refused(tmp_path, r"not parameters by .*config\.json: 'score\.weight'$")
    more = GPT2Config(vocab_size=5, n_positions=4, n_embd=6, n_layer=3, n_head=3, n_inner=10)
    save(tmp_path, weights(more))
    refused(tmp_path, r"not parameters by .*config\.json: 'h\.2\.attn\.c_attn\.bias', .* and 9 more")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"n_inner": None}, r"'h\.0\.mlp\.c_fc\.weight' is \[6, 10\], but \[6, 24\] by .*config\.json; is it of another model"),
        ({"vocab_size": 6}, r"'wte\.weight' is \[5, 6\], but \[6, 6\] by"),
        ({"n_positions": 9}, r"'wpe\.weight' is \[4, 6\], but \[9, 6\] by"),
        ({"n_layer": 3}, r"no tensor 'h\.2\.ln_1\.weight'.*28 of 40"),
        ({"n_layer": 10**4}, r"28 tensors; .*config\.json has n_layer=10000"),
        ({"n_layer": 10**39}, r"config\.json: n_layer must be 10,000 at most, not 10{39}$"),
    ],
)
def test_a_config_that_disagrees_with_the_file_is_named_with_it(tmp_path, change, match):
    """Both files and both shapes are in the message."""
    save(tmp_path, weights())
    (tmp_path / "config.json").write_text(json.dumps({**TINY.to_dict(), **change}))
    refused(tmp_path, match)


def test_a_transpose_is_recognised(tmp_path):
    """nn.Linear's [out, in] where GPT-2 has Conv1D's [in, out]."""
    save(tmp_path, {**weights(), "h.0.attn.c_attn.weight": np.zeros((18, 6), np.float32)})
    refused(tmp_path, r"'h\.0\.attn\.c_attn\.weight' is \[18, 6\], but \[6, 18\] .*transpose.*Conv1D")


def test_integers_are_no_weights(tmp_path):
    """Quantised tensors are named with their dtype."""
    save(tmp_path, {**weights(), "ln_f.bias": np.zeros(6, np.int8)})
    refused(tmp_path, r"'ln_f\.bias' is stored as I8")


def test_another_models_file_is_foreign(tmp_path):
    """With or without a config.json beside it."""
    other = {"model.embed_tokens.weight": np.zeros((5, 6), np.float32), "model.norm.weight": np.zeros(6, np.float32)}
    refused(save(tmp_path, other), r"not a GPT-2 checkpoint.*'model\.embed_tokens\.weight'")
    refused(save(tmp_path / "bare", other, None), "not a GPT-2 checkpoint")
    refused(save(tmp_path / "empty", {}), "not a GPT-2 checkpoint")


@pytest.mark.parametrize("kept", [0, 1, 7, 8, 100, 2000, -1])
def test_a_truncated_file_is_refused(tmp_path, kept):
    """At the length, in the header, in the data, and one byte short."""
    save(tmp_path, weights())
    data = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(data[:kept])
    refused(tmp_path, r"model\.safetensors is not a complete safetensors file")


def test_a_file_with_bytes_after_its_end_is_refused(tmp_path):
    """What no tensor covers does not belong there."""
    save(tmp_path, weights())
    with open(tmp_path / "model.safetensors", "ab") as f:
        f.write(b"0000")
    refused(tmp_path, "not a complete safetensors file")


@given(place=st.floats(0, 1, exclude_max=True), byte=st.integers(0, 255))
@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_header_is_read_or_refused_and_never_breaks(tmp_path, place, byte):
    """Any one byte of the header replaced by any other: a checkpoint or a GPT2Error, no other exception."""
    path = save(tmp_path, weights(), None) / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[int(place * (8 + int.from_bytes(data[:8], "little")))] = byte
    path.write_bytes(data)
    try:
        assert read_checkpoint(path, config=TINY).parameters.keys() == weights().keys()
    except GPT2Error as error:
        assert "\n" not in str(error)


def test_a_file_of_another_kind_is_refused(tmp_path):
    """Text, a pointer that git left, a directory."""
    (tmp_path / "a.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n")
    refused(tmp_path / "a.safetensors", "not a complete safetensors file")
    refused(tmp_path, r"holds no model\.safetensors")
    refused(tmp_path / "nowhere", "does not exist")
    (tmp_path / "model.safetensors").mkdir()
    refused(tmp_path, r"cannot read .*model\.safetensors: ")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "ckpt.pt", "pytorch_model-00001-of-00002.bin"])
def test_a_pickle_is_never_loaded(tmp_path, name):
    """Neither from a directory nor by its path; the message says how to convert. With safetensors beside it it is ignored."""
    class Bomb:
        def __reduce__(self):
            return (pytest.fail, ("a pickle was loaded",))

    torch.save(Bomb(), tmp_path / name)
    (tmp_path / "config.json").write_text(json.dumps(TINY.to_dict()))
    for path in (tmp_path, tmp_path / name):
        assert "save_pretrained" in refused(path, f"{re.escape(name)} is a pickle")
    save(tmp_path, weights())
    assert_same(read_checkpoint(tmp_path).parameters, weights())


@pytest.mark.parametrize("index", ["", "{}", "[]", '{"weight_map": 3}', '{"weight_map": {"a": 3}}', '{"weight_map"'])
def test_an_index_that_is_none_is_refused(tmp_path, index):
    """Truncated or foreign."""
    (tmp_path / "model.safetensors.index.json").write_text(index)
    refused(tmp_path, r"index\.json.*; it is not an index of shards")


def test_an_index_of_another_model_is_refused(tmp_path):
    """Each tensor is where the index says."""
    GPT2LMHeadModel(TheirConfig(**TINY.to_dict())).save_pretrained(tmp_path, max_shard_size="1KB")
    index = tmp_path / "model.safetensors.index.json"
    told = json.loads(index.read_text())
    index.write_text(json.dumps({**told, "weight_map": {**told["weight_map"], "x.weight": next(iter(told["weight_map"].values()))}}))
    refused(tmp_path, r"says that model-00001-of-.* holds 'x\.weight', which is not in it")
    for name in ("", ".", "a\0b", "\ud800"):
        index.write_text(json.dumps({"weight_map": {"a": name}}))
        refused(tmp_path, r"index\.json")


def test_a_missing_shard_is_named(tmp_path):
    """And an index cannot point outside of its directory."""
    GPT2LMHeadModel(TheirConfig(**TINY.to_dict())).save_pretrained(tmp_path, max_shard_size="1KB")
    lost = sorted(tmp_path.glob("model-*.safetensors"))[1]
    lost.unlink()
    refused(tmp_path, rf"names {lost.name}, which is not there")
    save(tmp_path / "outside", weights())
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "config.json").write_text(json.dumps(TINY.to_dict()))
    (inside / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../outside/model.safetensors"}}))
    refused(inside, r"names model\.safetensors, which is not there")


def test_a_bad_config_beside_the_weights_is_named(tmp_path):
    """Its field, or that it is truncated."""
    save(tmp_path, weights())
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    refused(tmp_path, r"config\.json: model_type='llama'")
    (tmp_path / "config.json").write_text('{"n_embd": ')
    refused(tmp_path, r"config\.json is not JSON")


def test_an_unknown_dtype_is_refused(tmp_path):
    """By its name, with those that there are."""
    write_checkpoint(tmp_path, TINY, weights())
    for dtype in ("int8", "", "f4"):
        refused(tmp_path, "choose float32, float64, float16 or bfloat16", UsageError, dtype=dtype)


def test_bfloat16_needs_ml_dtypes(tmp_path, monkeypatch):
    """NumPy has none."""
    write_checkpoint(tmp_path, TINY, weights())
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    refused(tmp_path, "pip install ml_dtypes", UsageError, dtype="bfloat16")


@pytest.mark.parametrize("stored", DTYPES)
def test_reading_in_bfloat16(tmp_path, stored):
    """Stored so, it is mapped; else the nearest. Written again it is the same file."""
    ml_dtypes = pytest.importorskip("ml_dtypes")
    write_checkpoint(tmp_path, TINY, weights(), dtype=stored)
    wide = read_checkpoint(tmp_path, dtype="float64").parameters
    read = read_checkpoint(tmp_path, dtype="bfloat16")
    for name, a in read.parameters.items():
        assert a.dtype == ml_dtypes.bfloat16
        np.testing.assert_array_equal(a, wide[name].astype(ml_dtypes.bfloat16))
    write_checkpoint(tmp_path / "again", TINY, read.parameters)
    again = read_checkpoint(tmp_path / "again", dtype="bfloat16")
    assert again.dtype == "bfloat16" and all(np.array_equal(a, again.parameters[n]) for n, a in read.parameters.items())


# ── a file alone ──
def test_a_file_alone_has_its_config_in_its_metadata(tmp_path):
    """What we wrote needs no config.json, wherever it is moved; all fields come back."""
    config = GPT2Config.from_dict({**TINY.to_dict(), "layer_norm_epsilon": 1e-6, "activation_function": "relu"})
    write_checkpoint(tmp_path, config, weights(config))
    alone = tmp_path / "sub" / "mine.safetensors"
    alone.parent.mkdir()
    os.replace(tmp_path / "model.safetensors", alone)
    read = read_checkpoint(alone)
    assert read.config == config and read.path == alone
    assert_same(read.parameters, weights(config))


def test_the_config_beside_a_file_comes_before_its_metadata_and_a_given_one_before_both(tmp_path):
    """One order for directories and files; of what does not change the logits they may say different things."""
    write_checkpoint(tmp_path, TINY, weights())
    edited = {**TINY.to_dict(), "eos_token_id": 2, "resid_pdrop": 0.5}
    (tmp_path / "config.json").write_text(json.dumps(edited))
    for path in (tmp_path, tmp_path / "model.safetensors"):
        assert read_checkpoint(path).config == GPT2Config.from_dict(edited)
        assert read_checkpoint(path, config=GPT2Config.from_dict({**edited, "n_head": 1})).config.n_head == 1


@pytest.mark.parametrize("field, value", [("n_head", 2), ("activation_function", "relu"), ("layer_norm_epsilon", 1e-6),
                                          ("scale_attn_weights", False), ("scale_attn_by_inverse_layer_idx", True)])
def test_a_config_that_contradicts_its_copy_is_refused(tmp_path, field, value):
    """What no shape shows is in the header of the weights too; a given config comes before both."""
    write_checkpoint(tmp_path, TINY, weights())
    edited = {**TINY.to_dict(), field: value}
    (tmp_path / "config.json").write_text(json.dumps(edited))
    refused(tmp_path, rf"config\.json has {field}={value}, and .*model\.safetensors was written with {field}=")
    assert read_checkpoint(tmp_path, config=GPT2Config.from_dict(edited)).config == GPT2Config.from_dict(edited)


def test_shapes_tell_the_config_of_a_published_width(tmp_path):
    """Layers, vocabulary, context and MLP width are read off; n_head is the published one of this width, with a warning."""
    shaped = GPT2Config(vocab_size=7, n_positions=3, n_embd=768, n_layer=2, n_head=12, n_inner=5)
    for config in (shaped, GPT2Config.from_dict({**shaped.to_dict(), "tie_word_embeddings": False})):
        path = save(tmp_path, weights(config), None) / "model.safetensors"
        with pytest.warns(UserWarning, match=r"n_head=12 .* those of gpt2$"):
            assert read_checkpoint(path).config == config


def test_a_width_that_was_not_published_needs_its_config(tmp_path):
    """n_head is not to be guessed; the message says what to do, and a given config does it."""
    path = save(tmp_path, weights(), None) / "model.safetensors"
    refused(path, r"does not contain n_head.* put its config\.json beside it")
    assert_same(read_checkpoint(path, config=TINY).parameters, weights())


# ── NaN and infinity ──
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_none_is_warned_of(tmp_path, dtype, value):
    """One warning, one line, with the names of the tensors; the checkpoint is read nevertheless."""
    bad = weights(dtype=dtype)
    for name in ("h.0.ln_1.bias", "h.1.mlp.c_fc.weight"):
        bad[name].reshape(-1)[-1] = value
    save(tmp_path, bad)
    with pytest.warns(UserWarning, match=r"NaN or infinity in 'h\.0\.ln_1\.bias', 'h\.1\.mlp\.c_fc\.weight'$") as caught:
        read = read_checkpoint(tmp_path, dtype=dtype)
    assert len(caught) == 1 and "\n" not in str(caught[0].message)
    assert_same(read.parameters, bad)


@pytest.mark.parametrize(("dtype", "large"), [("float32", 3e38), ("float64", 1e308), ("float16", 65504.0)])
def test_a_large_number_is_no_infinity(tmp_path, dtype, large):
    """Its square overflows, and no warning comes."""
    big = weights(dtype=dtype)
    big["wte.weight"][0, 0] = large
    save(tmp_path, big)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_checkpoint(tmp_path, dtype=dtype)


def test_a_number_too_large_for_the_wanted_dtype_is_warned_of(tmp_path):
    """1e5 read in float16 is infinite."""
    save(tmp_path, {**weights(), "ln_f.bias": np.full(6, 1e5, np.float32)})
    with pytest.warns(UserWarning, match=r"NaN or infinity in 'ln_f\.bias'"):
        read_checkpoint(tmp_path, dtype="float16")


def test_bfloat16_of_torch_is_read(tmp_path):
    """As another library writes it: a float32 with the lower half gone."""
    tensors = {name: torch.from_numpy(a).bfloat16() for name, a in weights().items()}
    save(tmp_path, weights())
    save_torch(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    read = read_checkpoint(tmp_path)
    assert read.dtype == "bfloat16"
    assert_same(read.parameters, {name: t.float().numpy() for name, t in tensors.items()})
