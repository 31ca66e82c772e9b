"""Laws of gpt2.config: the published figures, transformers' config.json both ways, and refusals by name."""
from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import GPT2Config as TheirConfig
from transformers import GPT2LMHeadModel
from transformers.activations import ACT2FN

from gpt2.config import (
    ACTIVATION_NAMES,
    LARGEST,
    PUBLISHED,
    GPT2Config,
    num_parameters,
    parameter_shapes,
    training_flop_per_token,
)
from gpt2.errors import MissingError, UsageError

NAMES = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")


def configs() -> st.SearchStrategy[GPT2Config]:
    """Small configurations of every kind."""
    size = st.integers(1, 9)
    p = st.floats(0, 1, exclude_max=True)
    flag = st.booleans()
    return st.builds(
        lambda heads, width, **rest: GPT2Config(n_head=heads, n_embd=heads * width, **rest),
        heads=st.integers(1, 4), width=st.integers(1, 4), vocab_size=size, n_positions=size, n_layer=st.integers(1, 3),
        n_inner=st.none() | size, activation_function=st.sampled_from(sorted(ACTIVATION_NAMES)),
        resid_pdrop=p, embd_pdrop=p, attn_pdrop=p, layer_norm_epsilon=st.floats(1e-12, 1), initializer_range=st.floats(0, 1),
        scale_attn_weights=flag, scale_attn_by_inverse_layer_idx=flag, reorder_and_upcast_attn=flag,
        tie_word_embeddings=flag, bos_token_id=st.sampled_from([None, 0, 50256]), eos_token_id=st.sampled_from([None, 0, 50256]),
    )


# ── the published sizes ──
@pytest.mark.parametrize(
    ("name", "sizes", "total", "layer_norm", "biases", "attention", "mlp"),
    [
        ("gpt2", (12, 12, 768), 124_439_808, 38_400, 102_144, 22.75, 45.50),
        ("gpt2-medium", (24, 16, 1024), 354_823_168, 100_352, 271_360, 28.37, 56.74),
        ("gpt2-large", (36, 20, 1280), 774_030_080, 186_880, 508_160, 30.48, 60.96),
        ("gpt2-xl", (48, 25, 1600), 1_557_611_200, 310_400, 846_400, 31.56, 63.11),
    ],
)
def test_published_sizes_have_the_published_numbers_of_parameters(name, sizes, total, layer_norm, biases, attention, mlp):
    """Layers, heads, width; the total with the tied weight once; and the shares of each kind."""
    config = GPT2Config.from_name(name)
    count = {key: math.prod(shape) for key, shape in parameter_shapes(config).items()}

    def share(test) -> int:
        return sum(n for key, n in count.items() if test(key))

    assert (config.n_layer, config.n_head, config.n_embd) == sizes
    assert num_parameters(config) == total
    assert share(lambda key: "ln_" in key) == layer_norm
    assert share(lambda key: key.endswith("bias")) == biases
    assert round(100 * share(lambda key: ".attn." in key and key.endswith("weight")) / total, 2) == attention
    assert round(100 * share(lambda key: ".mlp." in key and key.endswith("weight")) / total, 2) == mlp


def test_untying_small_adds_one_embedding():
    """38,597,376 = 50257 · 768 more numbers, under the name lm_head.weight."""
    tied, untied = GPT2Config(), GPT2Config(tie_word_embeddings=False)
    assert num_parameters(untied) - num_parameters(tied) == 38_597_376
    assert parameter_shapes(untied).keys() - parameter_shapes(tied).keys() == {"lm_head.weight"}


def test_the_name_gpt2_is_the_default_configuration():
    """GPT2Config() is the small model, with transformers' defaults in every field."""
    theirs = TheirConfig().to_dict()
    assert GPT2Config.from_name("gpt2") == GPT2Config()
    for field in dataclasses.fields(GPT2Config):
        assert getattr(GPT2Config(), field.name) == theirs[field.name], field.name


@pytest.mark.parametrize("name", ["gpt-2-medium", "gpt3", "llama", ""])
def test_an_unknown_name_is_answered_with_the_names(name):
    """UsageError on one line, with all names; the nearest is proposed where one is near."""
    with pytest.raises(UsageError) as raised:
        GPT2Config.from_name(name)
    message = str(raised.value)
    assert "\n" not in message and all(known in message for known in NAMES)
    assert ("did you mean 'gpt2-medium'?" in message) == (name == "gpt-2-medium")
    assert tuple(PUBLISHED) == NAMES


# ── shapes ──
@given(configs())
def test_names_and_shapes_are_those_of_transformers(config):
    """parameter_shapes names every parameter of GPT2LMHeadModel, tied ones once, each with its shape."""
    with torch.device("meta"):
        model = GPT2LMHeadModel(TheirConfig(**config.to_dict()))
    theirs = {name.removeprefix("transformer."): tuple(p.shape) for name, p in model.named_parameters()}
    assert parameter_shapes(config) == theirs


def test_the_order_of_names_is_that_of_the_model():
    """Embeddings, blocks in order, each from ln_1 to mlp.c_proj, ln_f, and the head last: transformers' order too."""
    config = GPT2Config(vocab_size=3, n_embd=4, n_head=2, n_layer=11, tie_word_embeddings=False)
    with torch.device("meta"):
        model = GPT2LMHeadModel(TheirConfig(**config.to_dict()))
    assert list(parameter_shapes(config)) == [name.removeprefix("transformer.") for name, _ in model.named_parameters()]


# ── config.json ──
@given(configs())
def test_a_configuration_survives_json(config):
    """from_dict(json(to_dict(c))) = c."""
    assert GPT2Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@given(configs())
def test_transformers_reads_what_we_write_and_we_read_what_it_writes(config):
    """Every field comes back through transformers' own class and its config.json."""
    theirs = TheirConfig.from_dict(config.to_dict())
    assert theirs.architectures == ["GPT2LMHeadModel"]
    assert GPT2Config.from_dict(theirs.to_dict()) == config
    assert GPT2Config.from_dict(json.loads(theirs.to_json_string(use_diff=False))) == config


@pytest.mark.parametrize("synonym", sorted(ACTIVATION_NAMES))
def test_synonyms_of_an_activation_are_the_same_function(synonym):
    """In float64 |f(x) − g(x)| ≤ |x|·(8ε + ¼δ), with δ the relative error of the constant √(2/π) in gelu_fast.

    d/dc ½x(1 + tanh(cu)) · cδ = ½x · cu·sech²(cu) · δ, and z·sech²z ≤ 0.448, which makes less than ¼|x|δ.
    """
    x = torch.linspace(-12, 12, 4001, dtype=torch.float64)
    delta = abs(0.7978845608 / math.sqrt(2 / math.pi) - 1) if synonym == "gelu_fast" else 0.0
    error = (ACT2FN[synonym](x) - ACT2FN[ACTIVATION_NAMES[synonym]](x)).abs()
    assert bool((error <= x.abs() * (8 * np.finfo(np.float64).eps + delta / 4)).all())
    assert GPT2Config(activation_function=synonym).activation_function == ACTIVATION_NAMES[synonym]


def test_the_three_activations_are_three_functions():
    """No two of gelu_new, gelu and relu are within 1e-4 of each other everywhere (GELUs: 4.73e-4 at x = 2.699)."""
    x = torch.linspace(-4, 4, 4001, dtype=torch.float64)
    values = [ACT2FN[name](x) for name in ("gelu_new", "gelu", "relu")]
    assert set(ACTIVATION_NAMES.values()) == {"gelu_new", "gelu", "relu"}
    for i in range(3):
        for j in range(i):
            assert float((values[i] - values[j]).abs().max()) > 1e-4


def test_other_names_of_sizes_are_taken_as_transformers_takes_them():
    """hidden_size and its kin are n_embd and its kin; the two must not differ."""
    fields = {"hidden_size": 6, "num_attention_heads": 3, "num_hidden_layers": 2, "max_position_embeddings": 5}
    ours, theirs = GPT2Config.from_dict(fields), TheirConfig(**fields)
    for name in ("n_embd", "n_head", "n_layer", "n_positions"):
        assert getattr(ours, name) == getattr(theirs, name)
    with pytest.raises(UsageError, match=r"n_embd=8 and hidden_size=6"):
        GPT2Config.from_dict({**fields, "n_embd": 8})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model_type", "llama"), ("model_type", "gpt_bigcode"), ("is_encoder_decoder", True), ("add_cross_attention", True),
        ("pruned_heads", {"0": [1]}), ("quantization_config", {"load_in_8bit": True}), ("position_embedding_type", "rotary"),
        ("rope_theta", 10000.0), ("rope_scaling", {"type": "linear"}), ("rope_parameters", {"rope_theta": 1.0}),
        ("auto_map", {"AutoModelForCausalLM": "modeling.Mine"}), ("activation_function", "silu"),
        ("activation_function", "gelu_10"), ("activation_function", "quick_gelu"),
    ],
)
def test_what_changes_the_numbers_and_is_not_ours_is_refused_by_name(field, value):
    """UsageError, one line, with the field in it."""
    with pytest.raises(UsageError, match=field) as raised:
        GPT2Config.from_dict({**GPT2Config().to_dict(), field: value})
    assert "\n" not in str(raised.value)


def test_what_does_not_change_the_logits_is_ignored():
    """Fields of other heads, of generation and of bookkeeping, neutral values of refused ones, and unknown ones."""
    harmless = {
        "use_cache": False, "summary_type": "mean", "summary_first_dropout": 0.5, "task_specific_params": {"a": 1},
        "transformers_version": "4.0", "torch_dtype": "float16", "dtype": "float16", "n_ctx": 7, "return_dict": False,
        "architectures": ["GPT2DoubleHeadsModel"], "pad_token_id": -1, "temperature": 2.0, "id2label": {"0": "a"},
        "add_cross_attention": False, "is_encoder_decoder": False, "pruned_heads": {}, "quantization_config": None,
        "position_embedding_type": "absolute", "model_type": None, "auto_map": {"AutoTokenizer": "x.Y"}, "what_is_this": 3,
    }
    assert GPT2Config.from_dict(harmless) == GPT2Config()


# ── values ──
_BAD = {
    "vocab_size": [0, -1, True, 3.0, "12", None, [3]],
    "n_positions": [0, True, 1.5, None],
    "n_embd": [0, 7, "768", None, 12.0],
    "n_layer": [0, -2, False, None],
    "n_head": [0, 5, None, "12"],
    "n_inner": [0, -1, True, 2.0, "9"],
    "resid_pdrop": [1, 1.0, -0.1, math.nan, True, "0.1", None, 10**400],
    "embd_pdrop": [1.5, -1, None],
    "attn_pdrop": [math.inf, False],
    "layer_norm_epsilon": [0, 0.0, -1e-5, math.nan, math.inf, True, "1e-5", None],
    "initializer_range": [-0.02, math.nan, math.inf, None, True],
    "scale_attn_weights": [1, 0, None, "true"],
    "scale_attn_by_inverse_layer_idx": [1, None],
    "reorder_and_upcast_attn": ["no", 0],
    "tie_word_embeddings": [None, 1, "False"],
    "activation_function": [None, 3, ["gelu"], "", "GELU"],
    "bos_token_id": [-1, 50257, 50256.0, True, [1]],
    "eos_token_id": [50258, "0", [], [50256, -1], [True], [1.0], [[1]], -1],
}


@pytest.mark.parametrize(
    ("field", "value"), [(field, value) for field, values in _BAD.items() for value in values], ids=lambda x: str(x)[:20]
)
def test_a_bad_value_is_named(field, value):
    """UsageError, one line, with the field and the value; True is no 1, 3.0 no 3, "12" no 12."""
    with pytest.raises(UsageError, match=field) as raised:
        GPT2Config(**{field: value})
    message = str(raised.value)
    shown = repr(value)
    assert "\n" not in message and len(message) < 300 and (len(shown) > 30 or shown in message)


@pytest.mark.parametrize("field", LARGEST)
def test_a_size_of_no_model_is_refused_at_once(field):
    """The largest is taken, one more and 10³⁹ are not, and nothing as large is computed for that."""
    sizes = {"n_head": 1, "n_embd": 2**20} if field != "n_head" else {"n_embd": 2**20}
    assert getattr(GPT2Config(**{**sizes, field: LARGEST[field]}), field) == LARGEST[field]
    for value in (LARGEST[field] + 1, 10**39):
        with pytest.raises(UsageError, match=f"^{field} must be {LARGEST[field]:,} at most, not {value}$"):
            GPT2Config(**{field: value})


def test_every_field_has_a_bad_value():
    """No field is without a check."""
    assert _BAD.keys() == {field.name for field in dataclasses.fields(GPT2Config)}


def test_the_default_ids_are_tolerated_in_a_small_vocabulary():
    """transformers writes 50256 whatever vocab_size is; another id outside is an error."""
    config = GPT2Config(vocab_size=3)
    assert (config.bos_token_id, config.eos_token_id) == (50256, 50256)
    assert GPT2Config(vocab_size=3, bos_token_id=None, eos_token_id=2).eos_token_id == 2
    with pytest.raises(UsageError, match="eos_token_id"):
        GPT2Config(vocab_size=3, eos_token_id=3)


def test_a_configuration_cannot_be_changed_after_its_checks():
    """Frozen; equal ones hash alike; whole numbers become floats where a float is meant."""
    config = GPT2Config(resid_pdrop=0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.n_layer = 3  # type: ignore[misc]
    assert isinstance(config.resid_pdrop, float)
    assert hash(config) == hash(GPT2Config(resid_pdrop=0.0))


# ── files ──
def test_a_configuration_is_read_from_a_file_or_its_directory(tmp_path):
    """As transformers' save_pretrained leaves it."""
    TheirConfig(n_embd=8, n_head=2, n_layer=1, n_inner=5).save_pretrained(tmp_path)
    config = GPT2Config.from_file(tmp_path)
    assert config == GPT2Config.from_file(tmp_path / "config.json") == GPT2Config(n_embd=8, n_head=2, n_layer=1, n_inner=5)


@pytest.mark.parametrize("content", [b"", b"{", b'{"n_embd": 8', b"\xff\xfe", b"[" * 100_000, b"n_embd: 8"])
def test_a_file_that_is_not_json_is_named(tmp_path, content):
    """MissingError with the path: truncated, foreign, not UTF-8, or nested without end."""
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(MissingError, match=r"config\.json") as raised:
        GPT2Config.from_file(tmp_path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("content", ["[]", "3", "null", '{"n_embd": 7}', '{"model_type": "t5"}', '{"resid_pdrop": NaN}'])
def test_a_file_with_bad_fields_is_named_with_the_field(tmp_path, content):
    """MissingError with the path in front."""
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(MissingError, match=r"config\.json[: ]"):
        GPT2Config.from_file(tmp_path)


def test_a_file_that_is_not_there_is_missing(tmp_path):
    """MissingError, exit code 3, with the path that was looked for."""
    with pytest.raises(MissingError, match=r"config\.json") as raised:
        GPT2Config.from_file(tmp_path)
    assert raised.value.exit_code == 3


def test_the_flop_of_a_step_count_products_alone():
    """6 N + 12 L d T, where N has each matrix of a product once: the head, tied or not, and no table of looked-up rows."""
    tied = GPT2Config(vocab_size=70, n_positions=16, n_embd=24, n_layer=3, n_head=4)
    untied = GPT2Config.from_dict({**tied.to_dict(), "tie_word_embeddings": False})
    n = num_parameters(tied) - 16 * 24
    assert training_flop_per_token(tied, 8) == 6 * n + 12 * 3 * 24 * 8 == training_flop_per_token(untied, 8)
