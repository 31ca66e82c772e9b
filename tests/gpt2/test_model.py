"""The model by itself: both forms of it, its weights, its cache, and what it refuses."""
from __future__ import annotations

import copy
import math
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_gpt2 import CONTEXT, tiny_config, tiny_model

import minigrad as mg
from gpt2.config import GPT2Config, num_parameters, parameter_shapes
from gpt2.decoding.kv_cache import KVCache
from gpt2.errors import GPT2Error, UsageError
from gpt2.model import GPT2
from minigrad.debug import explain
from minigrad.errors import GraphError, MinigradError, ShapeError

SWITCHES = [{}, {"activation_function": "gelu"}, {"activation_function": "relu"}, {"tie_word_embeddings": False}, {"n_head": 1},
            {"scale_attn_weights": False}, {"scale_attn_by_inverse_layer_idx": True}, {"n_inner": 20}, {"layer_norm_epsilon": 1e-6}]


def close(dtype="float64"):
    """Two orders of summation agree to this part of the largest number: two layers of six products of up to 128 terms, forth and back."""
    return 2 * 2 * 6 * 128 * float(np.finfo(dtype).eps)


def ids_of(rows, tokens, vocab=300, seed=0):
    return np.random.default_rng(seed).integers(0, vocab, (rows, tokens))


def wide(dtype="float64", explicit=False, dropout=0.0, **config):
    """A tiny model whose weights, biases and LayerNorm parameters are all large enough to matter."""
    drops = {f"{place}_pdrop": dropout for place in ("resid", "embd", "attn")}
    model = GPT2(tiny_config(**{"initializer_range": 0.2, **drops, **config}), dtype=dtype, explicit=explicit, seed=3).eval()
    for i, p in enumerate(model.parameters()):
        if p.ndim == 1:
            p.assign(p.array + mg.random.normal(mg.random.key(i), p.shape, std=0.2, dtype=dtype).array)
    return model


def run(model, ids, cache=None, **options):
    """Logits as an array, with no graph."""
    with mg.no_grad():
        return model(ids, cache=cache, **options).numpy()


def loss_and_gradients(model, ids, targets, **options):
    model.zero_grad()
    loss = model.loss(ids, targets, **options)
    loss.backward()
    return loss.item(), {name: p.grad.numpy() for name, p in model.named_parameters()}


def apart(a, b):
    """The largest difference as a part of the largest number."""
    return np.abs(a - b).max() / np.abs(b).max()


# ── two forms ──
@pytest.mark.parametrize("config", SWITCHES)
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_explicit_and_fused_agree(config, dropout):
    """On the unfused definitions the model gives the same logits, loss and gradients; with dropout too, for both draw the same masks."""
    ids, found = ids_of(2, 9), []
    targets = ids[:, 1:].copy()
    targets[0, 2:4] = -100
    for explicit in (False, True):
        model = wide(explicit=explicit, dropout=dropout, **config).train()
        mg.random.manual_seed(5)
        found.append((*loss_and_gradients(model, ids[:, :-1], targets), run(model.eval(), ids)))
    (loss, grads, logits), (wanted_loss, wanted, wanted_logits) = found
    assert abs(loss - wanted_loss) <= close() * wanted_loss
    assert apart(logits, wanted_logits) <= close()
    for name in wanted:
        assert apart(grads[name], wanted[name]) <= close(), name


# ── parameters ──
@pytest.mark.parametrize("config", [{}, {"tie_word_embeddings": False, "n_inner": 20, "n_layer": 3}])
def test_names_and_shapes_are_those_of_the_configuration(config):
    """named_parameters yields parameter_shapes, in order, and each number counts once."""
    config = tiny_config(**config)
    model = GPT2(config)
    assert [(name, p.shape) for name, p in model.named_parameters()] == list(parameter_shapes(config).items())
    assert model.num_parameters() == num_parameters(config) == sum(p.numel() for p in model.parameters())


def test_a_tied_weight_gets_the_sum_of_both_uses():
    """∂L/∂wte of the tied model is the embedding's gradient plus the head's of an untied one with equal weights."""
    tied, untied = wide(), wide(tie_word_embeddings=False)
    arrays = tied.state_dict()
    untied.load_state_dict({**arrays, "lm_head.weight": arrays["wte.weight"]})
    ids = ids_of(2, 9)
    _, grads = loss_and_gradients(tied, ids[:, :-1], ids[:, 1:])
    _, parts = loss_and_gradients(untied, ids[:, :-1], ids[:, 1:])
    both = parts["wte.weight"] + parts["lm_head.weight"]
    assert apart(grads["wte.weight"], both) <= close()
    assert min(np.abs(parts[name]).max() for name in ("wte.weight", "lm_head.weight")) > 1e-2 * np.abs(both).max()


def test_a_tied_weight_is_updated_once():
    """It is one parameter for an optimiser: a step of SGD takes lr·gradient off it once, and head and embedding stay the same."""
    model, ids = wide(), ids_of(2, 9)
    before = model.wte.weight.numpy().copy()
    assert model.num_parameters() == wide(tie_word_embeddings=False).num_parameters() - before.size
    _, grads = loss_and_gradients(model, ids[:, :-1], ids[:, 1:])
    mg.optim.SGD(model.parameters(), lr=0.5).step()
    assert np.array_equal(model.wte.weight.numpy(), before - 0.5 * grads["wte.weight"])
    assert model.lm_head.weight is model.wte.weight


@pytest.mark.parametrize("how", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"])
@pytest.mark.parametrize("switches", [{}, {"activation_function": "gelu"}, {"activation_function": "relu"},
                                      {"tie_word_embeddings": False}], ids=str)
@pytest.mark.parametrize("explicit", [False, True])
def test_a_copy_stands_alone(explicit, switches, how):
    """deepcopy and pickle give a model of the same ties and bits, whose steps leave the original as it was."""
    model, ids = wide(explicit=explicit, **switches), ids_of(2, 9)
    made = how(model)
    assert not any(p is q or np.shares_memory(p.array, q.array) for p, q in zip(made.parameters(), model.parameters()))
    loss, grads = loss_and_gradients(model, ids[:, :-1], ids[:, 1:])
    again, theirs = loss_and_gradients(made, ids[:, :-1], ids[:, 1:])
    assert loss == again and all(np.array_equal(grads[name], theirs[name]) for name in grads) and grads.keys() == theirs.keys()
    assert (made.lm_head.weight is made.wte.weight) is (model.lm_head.weight is model.wte.weight)
    before = run(model, ids)
    mg.optim.SGD(made.parameters(), lr=0.5).step()
    assert np.array_equal(run(model, ids), before) and not np.array_equal(run(made, ids), before)


def test_first_weights():
    """N(0, 0.02²), divided by √(2L) where a block writes to the residual stream; LayerNorm 1 and 0; the seed decides.

    They are those draws of the seed's keys to the bit: a deviation off by a thousandth would show in no sample of this size.
    """
    config = tiny_config(n_embd=128, n_layer=8)
    model, again, other = GPT2(config, seed=1), GPT2(config, seed=1), GPT2(config, seed=2)
    seen = []
    for i, ((name, p), q, r) in enumerate(zip(model.named_parameters(), again.parameters(), other.parameters())):
        value = p.numpy()
        assert np.array_equal(value, q.numpy())
        if p.ndim == 2:
            std = 0.02 / math.sqrt(16) if name.endswith("c_proj.weight") else 0.02
            assert abs(value.std() / std - 1) < 5 / math.sqrt(2 * value.size), name       # five deviations of a sample's deviation
            assert abs(value.mean()) < 5 * std / math.sqrt(value.size), name
            assert np.array_equal(value, mg.random.normal(mg.random.fold_in(mg.random.key(1), i), p.shape, std=std).numpy()), name
            assert not np.array_equal(value, r.numpy())
            assert not any(np.array_equal(value.ravel()[:100], earlier) for earlier in seen), name
            seen.append(value.ravel()[:100])
        else:
            assert (value == (1.0 if "ln" in name and name.endswith("weight") else 0.0)).all(), name


def test_a_seed_means_the_same_weights_in_every_dtype():
    """The float32 weights of a seed are its float64 weights, rounded."""
    exact = GPT2(tiny_config(), seed=4, dtype="float64").state_dict()
    for name, value in GPT2(tiny_config(), seed=4).state_dict().items():
        assert value.dtype == np.float32 and np.array_equal(value, exact[name].astype(np.float32)), name


def test_the_first_loss_is_that_of_no_knowledge():
    """A new model's loss is ln V, and half the variance d·0.02² of its logits, which is what made-up preferences cost."""
    config = GPT2Config(vocab_size=4096, n_positions=64, n_embd=64, n_layer=4, n_head=4)
    rng = np.random.default_rng(0)
    ids, targets = rng.integers(0, 4096, (2, 8, 64))
    variance = config.n_embd * 0.02**2
    # a mean over 512 targets and one over 4096 words: five deviations of each
    off = 5 * math.sqrt(variance) * (1 / math.sqrt(512) + 1 / math.sqrt(4096))
    assert abs(GPT2(config, seed=0).eval().loss(ids, targets).item() - math.log(4096) - variance / 2) < off


def test_given_parameters_are_used_as_they_are():
    """parameters= is taken without a copy where dtype and backend allow, and a missing or an unexpected name is refused."""
    config = tiny_config()
    arrays = {name: np.full(shape, 0.5, np.float32) for name, shape in parameter_shapes(config).items()}
    model = GPT2(config, parameters=arrays)
    assert all(np.shares_memory(p.array, arrays[name]) for name, p in model.named_parameters())
    assert {p.dtype for p in GPT2(config, parameters=arrays, dtype="float64").parameters()} == {np.dtype("float64")}
    spare = {**arrays, "lm_head.weight": arrays["wte.weight"]}
    del spare["ln_f.bias"]
    with pytest.raises(UsageError, match=r"missing \['ln_f.bias'\], unexpected \['lm_head.weight'\]"):
        GPT2(config, parameters=spare)


@pytest.mark.parametrize("config", [{}, {"tie_word_embeddings": False, "n_inner": 20, "activation_function": "relu", "n_head": 1}])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_what_is_saved_comes_back_to_the_bit(tmp_path, config, dtype):
    """from_pretrained(save_pretrained(…)) has the same configuration, the same bits, and remembers where it came from."""
    model = wide(dtype, **config)
    model.save_pretrained(tmp_path / "out")
    back = GPT2.from_pretrained(tmp_path / "out", dtype=dtype)
    assert back.config == model.config and back.path == tmp_path / "out"
    assert np.array_equal(run(back, ids_of(2, 9)), run(model, ids_of(2, 9)))
    for (name, p), q in zip(model.named_parameters(), back.parameters()):
        assert np.array_equal(p.numpy(), q.numpy()) and q.dtype == dtype, name


def test_training_a_loaded_model_leaves_its_file_alone(tmp_path):
    """Loaded weights are maps of the file; a step changes them in memory only."""
    wide("float32").save_pretrained(tmp_path)
    stored = (tmp_path / "model.safetensors").read_bytes()
    model, ids = GPT2.from_pretrained(tmp_path), ids_of(2, 9)
    before = model.wpe.weight.numpy().copy()
    loss_and_gradients(model, ids[:, :-1], ids[:, 1:])
    mg.optim.AdamW(model.parameters(), lr=0.1).step()
    assert not np.array_equal(model.wpe.weight.numpy(), before)
    assert (tmp_path / "model.safetensors").read_bytes() == stored


# ── forward ──
@pytest.mark.parametrize("explicit", [False, True])
def test_no_token_sees_a_later_one(explicit):
    """Logits up to place t do not change, to the bit, when tokens after t do."""
    model, ids = wide("float32", explicit=explicit), ids_of(2, 12)
    before = run(model, ids)
    for t in (0, 5, 10):
        changed = ids.copy()
        changed[:, t + 1:] = (changed[:, t + 1:] + 1) % 300
        after = run(model, changed)
        assert np.array_equal(before[:, :t + 1], after[:, :t + 1]) and not np.array_equal(before[:, t + 1], after[:, t + 1])


def test_every_earlier_token_is_seen():
    """The last logits change with any one token before them."""
    model, ids = wide(), ids_of(1, 8)
    last = run(model, ids)[:, -1]
    for t in range(8):
        changed = ids.copy()
        changed[0, t] = (changed[0, t] + 1) % 300
        assert apart(run(model, changed)[:, -1], last) > 1e-6, t


def test_last_gives_the_last_logits():
    """last=True computes the head at the last place alone."""
    model, ids = wide(), ids_of(2, 9)
    out = run(model, ids, last=True)
    assert out.shape == (2, 1, 300) and apart(out, run(model, ids)[:, -1:]) <= close()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_everything_is_in_the_models_dtype(dtype):
    """Logits, loss and gradients have the dtype of the parameters."""
    model, ids = wide(dtype, dropout=0.1).train(), ids_of(2, 9)
    loss = model.loss(ids[:, :-1], ids[:, 1:])
    loss.backward()
    assert {x.dtype for x in (model(ids), loss, *(p.grad for p in model.parameters()))} == {np.dtype(dtype)}


@given(st.integers(0, 2**16 - 2), st.sampled_from([-100, -1, 7]))
def test_ignored_targets_do_not_count(which, ignore_index):
    """The loss is the mean of −log p over the targets that are not ignore_index, and so is its gradient; the others have no part in it."""
    model, ids = wide(), ids_of(2, 9)
    targets = np.where(ids[:, 1:] == ignore_index, 0, ids[:, 1:])
    ignored = ((which >> np.arange(16)) & 1).reshape(2, 8).astype(bool)
    loss, grads = loss_and_gradients(model, ids[:, :-1], np.where(ignored, ignore_index, targets), ignore_index=ignore_index)
    model.zero_grad()
    log_p = mg.log_softmax(model(ids[:, :-1]))
    terms = [log_p[b, t, int(targets[b, t])] for b, t in np.argwhere(~ignored)]
    wanted = -mg.stack(terms).sum() / float(len(terms))
    wanted.backward()
    assert abs(loss - wanted.item()) <= close() * wanted.item()
    for name, p in model.named_parameters():
        assert apart(grads[name], p.grad.numpy()) <= close(), name


def test_a_loss_over_nothing_is_nan():
    """When all targets are ignored there is no mean, as in PyTorch."""
    assert math.isnan(wide().loss(ids_of(1, 4), np.full((1, 4), -100)).item())


def test_ids_may_come_in_any_form():
    """Lists, arrays of any integer dtype and Tensors mean the same ids."""
    model, ids = wide(), ids_of(2, 9)
    for form in (ids.tolist(), ids.astype(np.uint16), ids.astype(np.int32), np.asfortranarray(ids), mg.tensor(ids)):
        assert np.array_equal(run(model, form), run(model, ids))


# ── dropout ──
def test_a_new_model_is_in_evaluation_mode():
    """Without train() nothing is dropped: the same logits each time, which are those of a model without dropout."""
    model, ids = wide(dropout=0.5), ids_of(2, 9)
    assert not any(module.training for _, module in model.named_modules())
    assert np.array_equal(run(model, ids), run(model, ids)) and np.array_equal(run(model, ids), run(wide(), ids))
    assert np.array_equal(run(model.train().eval(), ids), run(wide(), ids))
    assert np.array_equal(run(wide().train(), ids), run(wide(), ids))


@pytest.mark.parametrize("place", ["embd_pdrop", "attn_pdrop", "resid_pdrop"])
def test_training_mode_drops(place):
    """Each dropout by itself changes the logits, differently each time, and the same way after the same seed."""
    model, ids = wide(**{place: 0.3}).train(), ids_of(2, 9)
    found = []
    for seed in (0, 0, 1):
        mg.random.manual_seed(seed)
        found.append((run(model, ids), run(model, ids)))
    assert np.array_equal(found[0], found[1]) and not np.array_equal(found[0], found[2])
    assert not np.array_equal(*found[0]) and not np.array_equal(found[0][0], run(model.eval(), ids))


# ── the cache ──
@st.composite
def pieces(draw, tokens=12):
    """Lengths of one token or more that add up to `tokens`."""
    cuts = sorted(draw(st.sets(st.integers(1, tokens - 1))))
    return np.diff([0, *cuts, tokens]).tolist()


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@given(pieces(), st.sampled_from(SWITCHES))
def test_the_cache_may_be_filled_in_any_pieces(dtype, pieces, config):
    """Whole, in chunks or token by token: the logits are those of one pass without a cache."""
    model, ids = wide(dtype, **config), ids_of(3, 12)
    cache, out, at = KVCache(model.config, 3, 12, dtype=dtype), [], 0
    for n in pieces:
        out.append(run(model, ids[:, at:at + n], cache))
        at += n
    assert apart(np.concatenate(out, axis=1), run(model, ids)) <= close(dtype)
    assert cache.length == 12 and cache.nbytes == 2 * 2 * 3 * 12 * 32 * np.dtype(dtype).itemsize


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@given(st.lists(st.integers(1, 8), min_size=1, max_size=4), st.sampled_from([[1], [1, 1], [3], [2, 1]]))
def test_a_padded_row_is_its_single_run(dtype, lengths, more):
    """A row padded at the left, in a batch, gives the logits that it gives alone, and goes on doing so, in any pieces."""
    model, width = wide(dtype), max(lengths)
    rows = [ids_of(1, n + sum(more), seed=i)[0] for i, n in enumerate(lengths)]
    cache = KVCache(model.config, len(rows), width + sum(more), dtype=dtype, pad=[width - n for n in lengths])
    out = [run(model, [[0] * (width - n) + list(row[:n]) for n, row in zip(lengths, rows)], cache)]
    at = 0
    for n in more:
        out.append(run(model, [row[k + at:k + at + n] for k, row in zip(lengths, rows)], cache))
        at += n
    together = np.concatenate(out, axis=1)
    for got, n, row in zip(together, lengths, rows):
        assert apart(got[width - n:], run(model, row[None])[0]) <= close(dtype)
    assert np.isfinite(together).all()                  # places of padding too: their queries see no key


def test_what_padding_holds_does_not_matter():
    """Logits of a padded row are the same, to the bit, whatever ids stand in the padding."""
    model, row = wide("float32"), ids_of(1, 4)[0]
    found = []
    for filler in (0, 7):
        cache = KVCache(model.config, 1, 9, pad=[5])
        found.append(run(model, [[filler] * 5 + list(row)], cache)[:, 5:])
    assert np.array_equal(*found)


def test_a_cache_is_refused_where_it_does_not_fit():
    """More tokens than there is room for, other rows than it was made for, or a wish for gradients: one line, and the cache as it was."""
    model = wide()
    cache = KVCache(model.config, 2, 6, dtype="float64")
    run(model, ids_of(2, 4), cache)
    cases = [(ids_of(2, 3), UsageError, "room for 6 tokens; 4 [+] 3 do not fit"), (ids_of(1, 1), UsageError, "for 2 rows; these are 1"),
             (ids_of(3, 1), UsageError, "for 2 rows; these are 3")]
    for ids, kind, says in cases:
        with pytest.raises(kind, match=says):
            run(model, ids, cache)
    with pytest.raises(GraphError, match=r"a pass through a KV cache has no gradient; run it inside minigrad.no_grad\(\)"):
        model(ids_of(2, 1), cache=cache)
    assert cache.length == 4
    assert apart(run(model, ids_of(2, 6)[:, 4:], cache), run(model, np.hstack([ids_of(2, 4), ids_of(2, 6)[:, 4:]]))[:, 4:]) <= close()
    with pytest.raises(UsageError, match=f"{CONTEXT + 1} tokens do not fit the context of {CONTEXT}"):
        long = KVCache(model.config, 1, CONTEXT + 1, dtype="float64")
        run(model, ids_of(1, CONTEXT), long)
        run(model, [[0]], long)


# ── what is refused ──
REFUSED = [
    ([[0, 300]], "id 300 is outside the vocabulary 0 … 299"), ([[0, -1]], "id -1 is outside the vocabulary 0 … 299"),
    ([[2**70]], "must be integers"), ([[0.5]], "must be integers"), ([[1.0]], "must be integers"), ([["a"]], "must be integers"),
    ([[None]], "must be integers"), ("text", "must be integers"), (np.zeros((1, 2)), "must be integers"),
    (mg.tensor([[1.0]]), "must be integers"),
]


@pytest.mark.parametrize(("ids", "says"), [
    *REFUSED, ([[True]], "must be integers"), ([[1, 2], [3]], "rectangle"), ([[]], "at least one token"), ([], "at least one token"),
    ([1, 2], r"\[batch, tokens\]"), ([[[1]]], r"\[batch, tokens\]"), (3, r"\[batch, tokens\]"),
    ([[1] * (CONTEXT + 1)], f"{CONTEXT + 1} tokens do not fit the context of {CONTEXT}; shorten the input"),
])
def test_ids_that_are_refused(ids, says):
    """One line that says what is wrong with the ids."""
    with pytest.raises(UsageError, match=says) as error:
        tiny_model()(ids)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("ids", "says"), [
    *REFUSED, ([np.zeros(2)], "must be integers"), (3, "must be integers"), ([1, [2]], "must be integers"),
    ([], "empty"), ([[]], "empty"), ([[1], []], "empty"),
])
def test_prompts_that_are_refused(ids, says):
    """generate says in one line what is wrong with a prompt; it rounds nothing to an id."""
    with pytest.raises(UsageError, match=says) as error:
        tiny_model().generate(ids, 2, greedy=True)
    assert "\n" not in str(error.value)


def test_ids_in_a_tensor_are_checked_too():
    """Ids that are on the device already are checked where the backend checks for itself."""
    for ids in ([[0, 300]], [[0, -1]]):
        with pytest.raises(ShapeError, match="ids must lie in 0 … 299"):
            tiny_model()(mg.tensor(ids))


@pytest.mark.parametrize(("targets", "says"), [
    ([[1, 300]], "must lie in 0 … 299; 300 does not"), ([[1, -1]], "must lie in 0 … 299; -1 does not"),
    ([[1, 2, 3]], r"must be \[1, 2\], not \[1, 3\]"), ([1, 2], r"must be \[1, 2\], not \[2\]"),
    ([[1.0, 2.0]], "targets must be integers"), ([[1, 2], [3]], "targets must be a rectangle"),
])
def test_targets_that_are_refused(targets, says):
    """One line that says what is wrong with the targets."""
    with pytest.raises((GPT2Error, MinigradError), match=says) as error:
        tiny_model().loss([[1, 2]], targets)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("dtype", ["int32", "float8", "f4"])
def test_a_dtype_that_is_not_supported(dtype):
    """Other dtypes are refused by name."""
    with pytest.raises(UsageError, match=f"dtype '{dtype}' is not supported; choose float32, float64, float16 or bfloat16"):
        GPT2(tiny_config(), dtype=dtype)


# ── memory ──
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_recomputation_changes_nothing_but_memory(dropout):
    """With recompute=True loss and gradients are the same to the bit, dropout included, and each block keeps its input alone."""
    ids, found = ids_of(2, CONTEXT), []
    for recompute in (False, True):
        model = wide(dropout=dropout)
        model.recompute = recompute
        model.train()
        mg.random.manual_seed(5)
        kept = explain(model.loss(ids, ids)).kept
        mg.random.manual_seed(5)
        found.append((*loss_and_gradients(model, ids, ids), kept))
    (a, grads, most), (b, again, least) = found
    assert a == b and least < most / 3
    for name, g in grads.items():
        np.testing.assert_array_equal(g, again[name], err_msg=name)
    assert GPT2(tiny_config(), recompute=True).recompute


@pytest.mark.parametrize("config", [{}, {"tie_word_embeddings": False}, {"n_inner": 50}])
def test_panels_change_nothing_but_the_order_of_sums(config):
    """Inside packed() logits are those outside, up to rounding; what is saved and trained is the weights."""
    ids, model = ids_of(3, 5), wide(**config)
    before, names = run(model, ids), list(model.state_dict())
    with model.packed():
        assert list(model.state_dict()) == names and len(model.F.panels) == 4 * model.config.n_layer + 1
        assert apart(run(model, ids), before) < close()


@pytest.mark.parametrize("config", [{}, {"tie_word_embeddings": False}])
def test_a_layout_changes_nothing_but_the_order_in_memory(config, tmp_path):
    """Laid out for decoding, tall matrices lie column by column; logits, gradients and what is saved stay; train() lays out by rows."""
    ids, model = ids_of(2, 7), wide(**config)
    before, loss, saved = run(model, ids), loss_and_gradients(model, ids, ids), {n: a.copy() for n, a in model.state_dict().items()}
    model.lay_out()
    tall = [n for n, p in model.named_parameters() if p.ndim == 2 and p.shape[0] > p.shape[1] and n != "wpe.weight"]
    tall = [n for n in tall if n != "wte.weight" or model.lm_head.weight is model.wte.weight]         # rows are multiplied with the head
    assert ("wte.weight" in tall or "lm_head.weight" in tall) and "h.0.mlp.c_proj.weight" in tall
    assert all(p.array.flags.f_contiguous == (n in tall) for n, p in model.named_parameters() if p.ndim == 2)
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(array, saved[name])
    assert apart(run(model, ids), before) < close() and apart(run(model, ids[:1, :1]), before[:1, :1]) < close()
    again = loss_and_gradients(model, ids, ids)
    for name, g in loss[1].items():
        assert apart(again[1][name], g) < close(), name
    model.save_pretrained(tmp_path)
    for name, p in GPT2.from_pretrained(tmp_path, dtype="float64").named_parameters():
        np.testing.assert_array_equal(p.array, saved[name])
    mg.optim.AdamW(model.parameters()).step()           # changes a matrix in either layout
    moved = {n: p.array.copy() for n, p in model.named_parameters()}
    model.train()
    assert all(p.array.flags.c_contiguous for p in model.parameters())
    for name, p in model.named_parameters():
        np.testing.assert_array_equal(p.array, moved[name])
    assert not np.array_equal(moved["wte.weight"], saved["wte.weight"])
