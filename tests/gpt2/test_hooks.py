"""Points of the forward pass: read without a trace, replaced with the effect it should have, and gradients that are slopes."""
from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from tiny_gpt2 import tiny_model, tiny_tokenizer
from transformers import GPT2LMHeadModel

import minigrad as mg
from gpt2.decoding.gpu_step import Stepper
from gpt2.errors import UsageError
from gpt2.hooks import BESIDE, BLOCK, ENDS, STATISTICS
from gpt2.model import GPT2
from minigrad.testing.fake_cupy import cuda
from minigrad.testing.fake_cupy.fake import install

IDS = np.random.default_rng(0).integers(0, 300, (2, 9))
TARGETS = np.random.default_rng(1).integers(0, 300, (2, 9))
POINTS = ["embed", "pos_embed", *(f"blocks.{i}.{name}" for i in range(2) for name in BLOCK), *ENDS]


def moved(model):
    """With biases and LayerNorm weights that matter."""
    for i, p in enumerate(model.parameters()):
        if p.ndim == 1:
            p.assign(p.array + mg.random.normal(mg.random.fold_in(2, i), p.shape, std=0.3).array)
    return model


@pytest.fixture
def model():
    return moved(tiny_model(seed=2))


@pytest.fixture(scope="module")
def wide():
    """The same weights in float64, for slopes."""
    small = moved(tiny_model(seed=2))
    return GPT2(small.config, dtype="float64", parameters={k: v.astype(np.float64) for k, v in small.state_dict().items()})


def logits(model):
    with mg.no_grad():
        return model(IDS).numpy()


def test_every_point_is_met_once_in_order(model):
    """points() lists them as the pass meets them; a pattern meets those it matches."""
    met = []
    assert list(model.points()) == POINTS
    with model.hooks({"*": lambda x, name: met.append(name)}):
        model(IDS)
    assert met == POINTS
    met.clear()
    with model.hooks({"blocks.*.mlp.act": lambda x, name: met.append(name)}):
        model(IDS)
    assert met == ["blocks.0.mlp.act", "blocks.1.mlp.act"]


@pytest.mark.parametrize("explicit", [False, True])
def test_reading_changes_no_bit(explicit):
    """With a hook that reads at every point logits, loss, gradients and generated ids are the same to the bit, in training mode too."""
    model = moved(tiny_model(seed=2))
    model = GPT2(model.config, parameters=model.state_dict(), explicit=explicit)

    def everything(only):
        mg.random.manual_seed(3)
        model.train()
        with model.hooks(dict.fromkeys(only, lambda x, name: None)):
            loss = model.loss(IDS, TARGETS)
            loss.backward()
            grads = [p.grad.numpy() for p in model.parameters()]
            model.eval()
            model.zero_grad()
            return [loss.numpy(), logits(model), *grads, np.array(model.generate(IDS[:1], max_new_tokens=6, greedy=True))]

    plain = everything([])
    # a hook of the logits makes them, which the loss does without otherwise
    for a, b in zip(plain, everything([name for name in POINTS if name != "logits"]), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(plain[1], everything(["logits"])[1])
    np.testing.assert_allclose(plain[0], everything(["logits"])[0], rtol=1e-6)


def test_the_values_are_transformers(model, tmp_path):
    """Residual streams, patterns and what ln_f makes are those that transformers returns; other points follow from each other."""
    model.save_pretrained(tmp_path, tokenizer=tiny_tokenizer())
    theirs = GPT2LMHeadModel.from_pretrained(tmp_path, attn_implementation="eager").eval()
    with torch.no_grad():
        out = theirs(torch.tensor(IDS), output_hidden_states=True, output_attentions=True)
    found = model.trace(IDS)
    assert list(found) == POINTS
    wanted = {"blocks.0.resid_pre": out.hidden_states[0], "blocks.0.resid_post": out.hidden_states[1],
              "blocks.1.resid_pre": out.hidden_states[1], "ln_f.out": out.hidden_states[2], "logits": out.logits,
              **{f"blocks.{i}.attn.pattern": out.attentions[i] for i in range(2)}}
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value.numpy(), rtol=0, atol=2e-5, err_msg=name)
    for i in range(2):
        at = {name: found[f"blocks.{i}.{name}"] for name in BLOCK}
        np.testing.assert_allclose(at["resid_mid"], at["resid_pre"] + at["attn.out"], rtol=0, atol=1e-5)
        np.testing.assert_allclose(at["resid_post"], at["resid_mid"] + at["mlp.out"], rtol=0, atol=1e-5)
        np.testing.assert_allclose(at["attn.z"], at["attn.pattern"] @ at["attn.v"], rtol=0, atol=1e-5)
        np.testing.assert_allclose(at["attn.scores"], at["attn.q"] @ at["attn.k"].swapaxes(2, 3) / np.sqrt(at["attn.q"].shape[-1]),
                                   rtol=0, atol=1e-5)
        for norm, read in (("ln_1", "resid_pre"), ("ln_2", "resid_mid")):
            centred = at[read] - at[f"{norm}.mean"]
            np.testing.assert_allclose(centred.mean(-1), 0.0, atol=1e-6)
            np.testing.assert_allclose(at[f"{norm}.rstd"], (np.square(centred).mean(-1, keepdims=True) + 1e-5) ** -0.5, rtol=1e-5)
            own = getattr(model.h[i], norm)
            np.testing.assert_allclose(at[f"{norm}.out"], centred * at[f"{norm}.rstd"] * own.weight.numpy() + own.bias.numpy(),
                                       rtol=0, atol=1e-5)
        np.testing.assert_allclose(at["mlp.act"], mg.gelu(mg.tensor(at["mlp.pre"]), mg.tensor(np.zeros(128, np.float32)),
                                                          approximate="tanh").numpy(), rtol=0, atol=1e-5)
    np.testing.assert_array_equal(found["embed"], model.wte.weight.array[IDS])


@pytest.mark.parametrize("name", [name for name in POINTS if not name.endswith(STATISTICS)])
def test_the_gradient_is_the_slope(wide, name):
    """NAME.grad is what the loss changes by, per unit, when what passes there is moved: in a random direction, by central differences."""
    found = wide.trace(IDS, TARGETS, only=name, gradients=True)
    assert list(found) == [name, "loss", f"{name}.grad"]
    grad = found[f"{name}.grad"]
    direction = np.random.default_rng(7).standard_normal(grad.shape)
    if name.endswith("pattern"):                        # weights are given to keys that a query may see
        direction = np.tril(direction)
    ends = []
    for step in (1e-6, -1e-6):
        with mg.no_grad(), wide.hooks({name: lambda x, name, step=step: x + step * mg.tensor(direction)}):
            ends.append(wide.F.cross_entropy(wide(IDS), TARGETS).item())
    slope = (ends[0] - ends[1]) / 2e-6
    # the difference of two losses of about 10, each off by 1e-15 or so of it, over 2e-6; and the third derivative's part
    assert abs(slope - (grad * direction).sum()) < 1e-7 * (1 + abs(slope)), (slope, (grad * direction).sum())


@pytest.mark.parametrize("name", [name for name in POINTS if not name.endswith((*BESIDE, *STATISTICS))])
def test_gradients_come_by(model, name):
    """A gradient hook gets what the trace says, and changes nothing unless it returns something; zeros end the way back there."""
    wanted = model.trace(IDS, TARGETS, only=name, gradients=True)[f"{name}.grad"]

    def grads(*hooks):
        model.zero_grad()
        with model.hooks({}, *hooks):
            loss = model.F.cross_entropy(model(IDS), model.integers(TARGETS))
        loss.backward()
        return {key: p.grad.numpy() for key, p in model.named_parameters() if p.grad is not None}

    seen = []
    plain, read = grads(), grads({name: lambda g, name: seen.append((name, g.numpy()))})
    assert [at for at, _ in seen] == [name]
    np.testing.assert_array_equal(seen[0][1], wanted)
    for key, g in plain.items():
        np.testing.assert_array_equal(read[key], g)
    ended = grads({name: lambda g, name: g * 0.0})
    changed = {key for key in plain if not np.array_equal(ended[key], plain[key])}
    if name == "logits":
        assert changed == plain.keys() and not any(g.any() for g in ended.values())
    elif name == "blocks.1.mlp.act":
        assert {"h.1.mlp.c_fc.weight", "h.1.mlp.c_fc.bias"} <= changed and not changed & {"h.1.mlp.c_proj.weight", "ln_f.weight"}
        assert not ended["h.1.mlp.c_fc.weight"].any()
    else:
        assert changed


def test_gradients_that_do_not_come_by(model):
    """At points beside the pass, without a graph, and of what does not fit: a line, or nothing at all."""
    for name, instead in (("blocks.0.attn.pattern", "attn.z, or trace"), ("blocks.0.attn.scores", "attn.z, or trace"),
                          ("blocks.1.mlp.pre", "mlp.act, or trace"), ("blocks.1.ln_2.mean", "blocks.1.ln_2.out"),
                          ("ln_f.rstd", "ln_f.out")):
        with pytest.raises(UsageError, match=f"no gradient arrives at {name}: .*; take {instead}"):
            with model.hooks({}, {name: print}):
                pass
    assert not model.hooked
    plain = logits(model)
    with model.hooks({}, {"ln_f.out": lambda g, name: g[:1]}):
        np.testing.assert_array_equal(logits(model), plain)            # nothing is recorded
        loss = model.loss(IDS, TARGETS)
    with pytest.raises(mg.ShapeError, match=r"a hook of float32\[2, 9, 32\] returned float32\[1, 9, 32\]"):
        loss.backward()


@pytest.mark.parametrize("name", POINTS)
def test_what_is_put_there_goes_on(model, name):
    """The value itself as another array changes the logits by rounding alone; zeros in its place change them."""
    plain = logits(model)
    with model.hooks({name: lambda x, name: x.numpy().copy()}):
        np.testing.assert_allclose(logits(model), plain, rtol=0, atol=1e-4)
    with model.hooks({name: lambda x, name: x * 0.0}):
        assert np.abs(logits(model) - plain).max() > 1e-2
    np.testing.assert_array_equal(logits(model), plain)


def test_a_loss_of_logits_that_are_replaced(model):
    """model.loss makes logits where a hook wants them: of zeros every token is as likely as any other."""
    with model.hooks({"logits": lambda x, name: x * 0.0}):
        assert model.loss(IDS, TARGETS).item() == pytest.approx(np.log(300), rel=1e-6)


def test_ablation_and_patching(model):
    """Zeros at a block's outputs are the block left out; the last residual stream of another text gives that text's logits."""
    other = np.random.default_rng(5).integers(0, 300, IDS.shape)
    with mg.no_grad():
        wanted = model(other).numpy()
        stream = model.trace(other)["blocks.1.resid_post"]
    with model.hooks({"blocks.1.resid_post": lambda x, name: stream}):
        np.testing.assert_array_equal(logits(model), wanted)
    with model.hooks({"blocks.0.attn.out": lambda x, name: x * 0.0, "blocks.0.mlp.out": lambda x, name: x * 0.0}):
        ablated = logits(model)
    short = tiny_model(seed=2, n_layer=1)
    short.load_state_dict({name: model.state_dict()[name.replace("h.0", "h.1")] for name in short.state_dict()})
    np.testing.assert_allclose(ablated, logits(short), rtol=0, atol=1e-5)


def test_hooks_with_a_cache(model):
    """Decoding token by token with a cache meets the same points; the pattern's last axis is all keys so far."""
    shapes = []
    with model.hooks({"blocks.1.attn.pattern": lambda x, name: shapes.append(x.shape)}):
        model.generate(IDS[:1, :5], max_new_tokens=3, greedy=True)
    assert [shape[2:] for shape in shapes] == [(5, 5), (1, 6), (1, 7)]


@pytest.mark.skipif(cuda.compiler() is None, reason="the fake GPU has no kernels without g++")
def test_hooks_take_decoding_the_long_way(model):
    """On a GPU a step of decoding is one function without points: while there are hooks it is not taken, and they are met."""
    install()
    there = GPT2(model.config, backend="fake", parameters=model.state_dict())
    assert Stepper.fits(there, 1)
    met, wanted = [], there.generate(IDS[:1], max_new_tokens=3, greedy=True)
    with there.hooks({"ln_f.out": lambda x, name: met.append(name)}):
        assert not Stepper.fits(there, 1)
        assert there.generate(IDS[:1], max_new_tokens=3, greedy=True) == wanted and len(met) == 3


def test_of_several_hooks_the_outer_comes_first(model):
    """Each gets what the one before gave; when a block is left, by an error too, its hooks are gone and no others."""
    seen = []
    with model.hooks({"embed": lambda x, name: x * 0.0 + 1.0}):
        with pytest.raises(KeyError):
            with model.hooks({"embed": lambda x, name: seen.append(x.numpy().mean()), "*": lambda x, name: x * 2.0}):
                model(IDS)
                raise KeyError
        with model.hooks({"pos_embed": lambda x, name: seen.append(name), "embed": lambda x, name: seen.append(x.numpy().mean())}):
            model(IDS)
        assert model.hooked
    assert seen == [1.0, 1.0, "pos_embed"] or seen == [1.0, "pos_embed", 1.0]
    assert not model.hooked and all(module.F is mg.nn.functional for module in model.modules())


@pytest.mark.parametrize("name, said", [
    ("blocks.1.mlp.akt", r"there is no point 'blocks.1.mlp.akt'; similar names: blocks.1.mlp.act"),
    ("blocks.7.mlp.act", r"there is no point 'blocks.7.mlp.act'; similar names: blocks.\d.mlp.act"),
    ("x", r"there is no point 'x'; there are embed, blocks.0.resid_pre … logits"),
    ("*.nothing", r"there is no point '\*.nothing'"),
])
def test_points_that_are_none(model, name, said):
    """The nearest names are given, and no hook is left behind."""
    with pytest.raises(UsageError, match=said):
        with model.hooks({"embed": print, name: print}):
            pass
    with pytest.raises(UsageError, match=said):
        model.trace(IDS, only=name)
    assert not model.hooked


@pytest.mark.parametrize("made", [lambda x: x[:1], lambda x: x.numpy().astype(np.float64)])
def test_what_does_not_fit(model, made):
    """A hook that gives another shape or dtype is named."""
    with model.hooks({"blocks.0.attn.z": lambda x, name: made(x)}):
        with pytest.raises(UsageError, match=re.escape("the hook at blocks.0.attn.z returned ") + ".*; the pass needs float32.* there"):
            model(IDS)


def test_traces_that_cannot_be(model):
    """Gradients need targets, and blocks whose inside is kept."""
    with pytest.raises(UsageError, match="trace: gradients need targets"):
        model.trace(IDS, gradients=True)
    again = GPT2(model.config, recompute=True).eval()
    with pytest.raises(UsageError, match="trace: gradients need a model without recompute"):
        again.trace(IDS, TARGETS, gradients=True)
    assert "loss" in again.trace(IDS, TARGETS)
