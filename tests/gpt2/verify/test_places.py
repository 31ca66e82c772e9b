"""Where a port differs: with its own tensors in the place of ours a wrong step shows in itself alone, and what follows is right."""
from __future__ import annotations

import contextlib
import io

import mistakes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minigrad as mg
from gpt2.golden.__main__ import read_golden
from gpt2.golden.truth import judged
from gpt2.hooks import BLOCK
from gpt2.model import GPT2
from gpt2.verify import __main__ as verify
from gpt2.verify.__main__ import truth_of
from gpt2.verify.diagnosis import step_by_step
from gpt2.verify.mistakes.adamw import Optimizer
from gpt2.verify.mistakes.any_step import GENERAL
from gpt2.verify.mistakes.backward import ATTENTION, GELU, RESIDUAL
from gpt2.verify.mistakes.forward import ADDED, MLPS, PATTERNS, QKV
from gpt2.verify.mistakes.norms import NORMS
from gpt2.verify.places import MATRICES, forced, groups, places, solved
from gpt2.verify.planting import BOTH, DERIVATIVE, VALUE, at_point, computed, parameters, with_parameters
from gpt2.verify.port import ALLOWED, distance
from gpt2.verify.suspect import Judge, Suspect, start

pytestmark = pytest.mark.rounding
LAYER = 1                                               # the block of three in which mistakes are planted
SMALL = ("constant", "factor", "by erf", "by tanh")     # of GELU: what one block alone makes of these is rounding
OTHERS = ("of another block", "the first one", "of the last", "of the next", "before it")
IN_BLOCKS = [bug for bug in [*QKV, *PATTERNS, *ADDED, *MLPS, *GENERAL] if bug.at in BLOCK and "transposed" not in bug.says
             and not any(kind in bug.says for kind in (*SMALL, *OTHERS))]
SAVED = [bug for bug in [*NORMS, *PATTERNS] if bug.at.endswith((".rstd", ".mean", "attn.pattern"))]
ON_THE_WAY_BACK = [bug for bug in [*GELU, *ATTENTION, *RESIDUAL] if not any(kind in bug.says for kind in SMALL)]


@pytest.fixture(scope="module")
def golden(tmp_path_factory):
    folder = tmp_path_factory.mktemp("truth")
    with contextlib.redirect_stdout(io.StringIO()):
        return read_golden(mistakes.truth(folder, mistakes.CONFIG) / "golden")


@pytest.fixture(scope="module")
def model(golden) -> GPT2:
    return truth_of(golden)


def dumped(golden, run, wanted) -> dict[str, np.ndarray]:
    """What a port that computes this has under the names that are wanted, in float32; its steps are right."""
    port = Suspect(run, golden.manifest["adamw"], kept={}).values([name for name in golden.entries if wanted(name)])
    return {name: a.astype(np.float32).astype(np.float64) for name, a in port}


def values(name):
    return not name.endswith(".grad") and not name.startswith("step.")


def usual(name):
    """What most ports have: values, and gradients of parameters."""
    return values(name) or name.endswith((".weight.grad", ".bias.grad"))


def judge_of(golden, port):
    return Judge(golden, lambda name: ("float32", judged(name, port[name])), list(port), golden.entries)


def wrong_by_itself(golden, model, port):
    return forced(judge_of(golden, port), model).left()


@pytest.mark.parametrize("wanted", [lambda name: True, lambda name: usual(name) or name.startswith("step."),
                                    lambda name: not values(name) or not name.startswith("blocks.")])
def test_a_right_port_is_right_in_each_step(golden, model, wanted):
    """Our own float32 run is."""
    right = start(golden, model).run
    narrow = right._replace(model=with_parameters(model, {name: a.astype(np.float32) for name, a in parameters(model).items()}))
    assert wrong_by_itself(golden, model, dumped(golden, narrow, wanted)) == []


def shown_by_a_value(golden, model, bug):
    """A mistake in one block shows there, and nowhere after it, though all that comes after it is another."""
    try:
        port = dumped(golden, bug.plant(start(golden, model).run, [LAYER], BOTH), values)
    except (mg.MinigradError, IndexError, ValueError):
        return                                          # which this model cannot have
    ends = ("ln_f.", "logits") if bug.says.startswith(("LayerNorm ", "each matrix ")) else ()
    wrong = wrong_by_itself(golden, model, port)
    assert wrong and all(name.startswith((f"blocks.{LAYER}.", *ends)) for name in wrong), (bug.says, wrong)
    first = next(name for name, a in port.items() if distance(golden.entries[name], golden.array(name), a, "float32") > ALLOWED)
    assert wrong[0] == first, bug.says


def shown_by_a_gradient(golden, model, bug):
    """Of a port that has no gradients of activations: they are found in those of its matrices."""
    port = dumped(golden, bug.plant(start(golden, model).run, [LAYER], DERIVATIVE), usual)
    wrong = wrong_by_itself(golden, model, port)
    # what a block hands back is what the block before it gets
    own = (f"blocks.{LAYER}.", f"h.{LAYER}.", f"blocks.{LAYER - 1}.resid_post.grad")
    assert wrong and all(name.startswith(own) for name in wrong), (bug.says, wrong)


@pytest.mark.parametrize("i", range(0, len(SAVED), 3))
def test_a_rule_reads_what_the_port_has_saved(golden, model, i):
    """A forward pass that is wrong, with the right rules for what it has saved, is wrong in values alone."""
    bug, right = SAVED[i], start(golden, model).run
    port = dumped(golden, bug.plant(right, [0, 1, 2], VALUE), usual)
    assert not [name for name in wrong_by_itself(golden, model, port) if not values(name)], bug.says


def of_first_row(name, model, found):
    """The gradient of a matrix' weight with the first row of the batch in the place of all."""
    layer, part = name.split(".")[1], name.split(".", 2)[2].removesuffix(".weight.grad")
    source, points = MATRICES[part]
    x, g = found[f"blocks.{layer}.{source}"], [found[f"blocks.{layer}.{point}.grad"] for point in points]
    g = np.concatenate([y.swapaxes(1, 2).reshape(*y.shape[::2], -1) if y.ndim == 4 else y for y in g], axis=-1)
    x = x.swapaxes(1, 2).reshape(*x.shape[::2], -1) if x.ndim == 4 else x
    return np.einsum("bti,bto->io", np.broadcast_to(x[:1], x.shape), g)


def test_what_is_wrong_in_the_gradients_of_parameters_alone(golden, model):
    """One matrix' weight and bias twice, or all weights with another input: what is handed back is right, and is not suspected."""
    right = dumped(golden, start(golden, model).run, lambda name: not name.startswith("step."))
    port = {name: a for name, a in right.items() if usual(name)}
    two = {name: 2.0 * port[name] for name in ("h.1.mlp.c_fc.weight.grad", "h.1.mlp.c_fc.bias.grad")}
    assert wrong_by_itself(golden, model, port | two) == list(two)
    weights = {name: of_first_row(name, model, right) for name in port if name.endswith(tuple(f"{part}.weight.grad" for part in MATRICES))}
    assert len(weights) == 12 and wrong_by_itself(golden, model, port | weights) == list(weights)
    back = at_point("mlp.act", lambda here, x: x * 3.0)(start(golden, model).run, [1], DERIVATIVE)
    port = dumped(golden, back, usual)
    two = {name: 2.0 * port[name] for name in ("h.2.mlp.c_fc.weight.grad", "h.2.mlp.c_fc.bias.grad")}
    assert wrong_by_itself(golden, model, port | two) == ["blocks.1.mlp.pre.grad", *two]           # beside one of the way back


def test_the_steps_are_those_of_the_ports_own_gradients(golden, model):
    """A gradient that is wrong is wrong by itself; the first step that AdamW makes of it is right."""
    run = at_point("mlp.act", lambda here, x: x * 3.0)(start(golden, model).run, [1], DERIVATIVE)
    wrong = wrong_by_itself(golden, model, dumped(golden, run, lambda name: usual(name) or name.startswith("step.1.")))
    assert wrong == ["blocks.1.mlp.pre.grad"]
    port = dumped(golden, start(golden, model).run, lambda name: usual(name) or name.startswith("step.1."))
    slope = {"ln_f.bias": -port["ln_f.bias.grad"]}
    stepped = dict(Optimizer(golden.manifest["adamw"]).step({"ln_f.bias": parameters(model)["ln_f.bias"]}, slope))["ln_f.bias"]
    other = {"ln_f.bias.grad": slope["ln_f.bias"], "step.1.ln_f.bias": stepped.astype(np.float32).astype(np.float64)}
    assert wrong_by_itself(golden, model, port | other) == ["ln_f.bias.grad"]
    port["step.1.ln_f.bias"] = port["step.1.ln_f.bias"] + 1.0
    assert wrong_by_itself(golden, model, port) == ["step.1.ln_f.bias"]


def verdict(golden, model, run):
    port = dumped(golden, run, lambda name: usual(name) or name.startswith("step."))
    return step_by_step(forced(judge_of(golden, port), model), True)


def test_one_mistake_is_not_explained_by_two_that_undo_each_other(golden, model):
    """Scores of 0 on the diagonal are no mask that hides it: then the weights were wrong, too."""
    run = at_point("attn.scores", lambda here, x: x * (1.0 - np.eye(x.shape[-1])))(start(golden, model).run, [0, 1, 2], VALUE)
    found = verdict(golden, model, run)
    assert not found.named and [(place.where, look) for place, look in found.places] == [
        ("blocks.0, 1, 2.attn.scores", "where it is wrong, it is 0")]


@pytest.mark.parametrize("says, what", [("K and V are swapped", VALUE), ("there is no causal mask", BOTH)])
def test_two_mistakes_are_named_each_in_its_place(golden, model, says, what):
    """The first on the way forward alone, with the right derivative; or in both."""
    one, lacks = (next(bug for bug in bugs if part in bug.says) for bugs, part in ((PATTERNS, says), (GELU, "lacks the 3 of")))
    run = lacks.plant(one.plant(start(golden, model).run, [0, 1, 2], what), [0, 1, 2], DERIVATIVE)
    found = verdict(golden, model, run)
    assert found.sure and found.causes == [one.says + ", in the forward pass alone" * (what == VALUE), lacks.says]


@given(st.integers(0, len(IN_BLOCKS) - 1))
def test_what_follows_from_a_wrong_value_is_right(golden, model, i):
    shown_by_a_value(golden, model, IN_BLOCKS[i])


@given(st.integers(0, len(ON_THE_WAY_BACK) - 1))
def test_what_follows_from_a_wrong_gradient_is_right(golden, model, i):
    shown_by_a_gradient(golden, model, ON_THE_WAY_BACK[i])


@pytest.mark.slow
def test_what_follows_from_each_mistake_is_right(golden, model):
    for bug in IN_BLOCKS:
        shown_by_a_value(golden, model, bug)
    for bug in ON_THE_WAY_BACK:
        shown_by_a_gradient(golden, model, bug)


@pytest.mark.parametrize("part", MATRICES)
def test_the_gradient_of_a_matrix_holds_that_of_what_it_gave(golden, model, part):
    """Where it has more rows than there are tokens, and its bias tells of the same one."""
    source, points = MATRICES[part]
    names = [f"blocks.1.{source}", *(f"blocks.1.{point}.grad" for point in points), f"h.1.{part}.weight.grad", f"h.1.{part}.bias.grad"]
    right = computed(start(golden, model).run, names)
    x = right[names[0]]
    x = x.swapaxes(1, 2).reshape(*x.shape[::2], -1) if x.ndim == 4 else x

    def found(port, x=x):
        return solved(Judge(golden, lambda name: ("float32", port[name]), names, golden.entries), x, part, 1, model.config.n_head)

    for point in points:
        name = f"blocks.1.{point}.grad"
        np.testing.assert_allclose(found(right).values[name], right[name], rtol=0, atol=1e-9 * np.abs(right[name]).max())
    one_row = right | {names[-1]: right[names[-1]] * 2.0}
    assert found(one_row) is None
    assert found(right, np.concatenate([x] * 9)) is None                            # more tokens than columns


def test_two_mistakes_that_nobody_knows_are_two_places(golden, model, tmp_path, capsys):
    """Each is told with what it looks like, and nothing else is."""
    run = at_point("mlp.act", lambda here, x: x * mg.tanh(here["mlp.pre"]))(start(golden, model).run, [0, 1, 2], BOTH)
    run = at_point("attn.z", lambda here, x: here["attn.pattern"] @ here["attn.v"][:, [0, 0, 3, 2]])(run, [1], BOTH)
    np.savez(tmp_path / "port.npz", **{name: a.astype(np.float32) for name, a in dumped(golden, run, values).items()})
    assert verify.main(["--golden", str(golden.folder), "--against", str(tmp_path / "port.npz")]) == 1
    out = capsys.readouterr().out.splitlines()
    at = out.index("computed from the port's own earlier values, these tensors are wrong, and all others are right:")
    assert out[at + 1].startswith("    blocks.0, 1, 2.mlp.act (gelu.2): ")
    assert out[at + 2] == "    blocks.1.attn.z (attention.3): its heads 0 … 3 are computed with V of heads 0, 0, 3, 2"
    assert "tensors compared" in out[at + 3]


def test_names_of_several_blocks_are_one_line():
    names = ["blocks.2.attn.q", "blocks.0.attn.q", "h.1.ln_1.bias.grad", "loss", "step.1.wpe.weight", "step.1.h.0.ln_1.bias"]
    assert list(groups(names)) == ["blocks.0, 2.attn.q", "h.1.ln_1.bias.grad", "loss", "step.1: 2 parameters, such as wpe.weight"]


GIVEN = [f"blocks.{i}.{point}.grad" for i in (0, 1) for point in ("attn.q", "attn.out", "mlp.pre", "mlp.out")]


@pytest.mark.parametrize(("wrong", "told"), [
    (["blocks.1.mlp.act"], [("blocks.1.mlp.act", None)]),
    (["blocks.1.attn.q.grad", "blocks.0.attn.q.grad"], [("blocks.0, 1.attn.q.grad", "attn.out.grad")]),
    (["blocks.0.resid_post.grad"], [("blocks.0.resid_post.grad", "attn.q.grad of the block after it")]),
    (["blocks.1.attn.v.grad", "blocks.1.attn.q.grad"],
     [("blocks.1.attn.v.grad", "attn.out.grad"), ("blocks.1.attn.q.grad", "attn.out.grad")]),
    (["blocks.0.resid_mid.grad", "h.0.ln_2.weight.grad", "h.0.ln_2.bias.grad"],
     [("blocks.0.resid_mid.grad, h.0.ln_2.weight.grad, h.0.ln_2.bias.grad", "mlp.pre.grad")]),
    (["blocks.1.resid_post.grad", "ln_f.weight.grad", "wte.weight.grad"],
     [("blocks.1.resid_post.grad, ln_f.weight.grad, wte.weight.grad", "the loss")]),
    (["wpe.weight.grad", "wte.weight.grad"], [("wpe.weight.grad, wte.weight.grad", "blocks.0.attn.q.grad")]),
    (["step.2.loss", "step.2.h.0.ln_1.bias", "step.2.h.1.ln_1.bias"], [("step.2.loss", None), (
        "step.2: 2 parameters, such as h.0.ln_1.bias, all in blocks 0, 1 (the gradients of this step, or AdamW)", None)]),
])
def test_a_place_is_told_with_what_it_is_computed_from(wrong, told):
    assert [(place.where, place.origin) for place in places(wrong, [*GIVEN, *wrong])] == told


def test_a_tensor_of_another_shape_is_left_out(golden, model, tmp_path, capsys):
    """What is wrong besides is told."""
    bug = next(bug for bug in ADDED if "replaces the residual stream" in bug.says)
    port = dumped(golden, bug.plant(start(golden, model).run, [0, 1, 2], BOTH), usual)
    port["pos_embed"] = np.broadcast_to(port["pos_embed"], (3, *port["pos_embed"].shape))
    np.savez(tmp_path / "port.npz", **{name: a.astype(np.float32) for name, a in port.items()})
    assert verify.main(["--golden", str(golden.folder), "--against", str(tmp_path / "port.npz")]) == 1
    out = capsys.readouterr().out
    assert f"likely: {bug.says}\n" in out and "has shape [3, 8, 32]; the truth has [8, 32]" in out and "nan" not in out


def test_a_tensor_that_is_only_written_wrongly(golden, model):
    """What is computed from it is right with ours, so it alone is wrong; and not where the port goes on with it."""
    port = dumped(golden, start(golden, model).run, usual)
    found = step_by_step(forced(judge_of(golden, port | {"blocks.1.resid_mid": 2.5 * port["blocks.1.resid_mid"]}), model), True)
    assert [(place.where, look) for place, look in found.places] == [
        ("blocks.1.resid_mid", "it is 2.5 times what it should be; "
                               "the values computed from it are right, so perhaps only the written tensor is wrong")]
    port = dumped(golden, at_point("resid_mid", lambda here, x: x * mg.tanh(x))(start(golden, model).run, [1], VALUE), usual)
    found = step_by_step(forced(judge_of(golden, port), model), True)
    assert [place.where for place, _ in found.places] == ["blocks.1.resid_mid"] and "only the written" not in found.places[0][1]
