"""Mistakes are planted as their table says: a backward one changes no value, and shows first where it says that it does."""
from __future__ import annotations

import numpy as np
import pytest
from tiny_gpt2 import tiny_config

from gpt2.golden.revealing import telling_weights
from gpt2.golden.truth import Adam, backward_order, permitted
from gpt2.hooks import STATISTICS
from gpt2.model import GPT2
from gpt2.verify.mistakes.adamw import STEPS, Optimizer
from gpt2.verify.mistakes.any_step import FACTORS, GENERAL
from gpt2.verify.mistakes.any_step_backward import FACTORS_BACK, GENERAL_BACK
from gpt2.verify.mistakes.backward import BACKWARD
from gpt2.verify.mistakes.forward import FORWARD
from gpt2.verify.places import backward_positions, qualified
from gpt2.verify.planting import BOTH, DERIVATIVE, VALUE, Bug, Run, computed

pytestmark = pytest.mark.rounding
IDS = np.array([[5, 17, 5, 99, 201], [7, 42, 260, 250, 3]])
TARGETS = np.array([[17, 5, 99, 201, 7], [42, 260, 250, 3, 61]])
LAYERS = [0, 1]


@pytest.fixture(scope="module")
def run():
    weights = telling_weights(tiny_config(), 0)
    return Run(GPT2(tiny_config(), dtype="float64", explicit=True,
                    parameters={name: a.astype(np.float64) for name, a in weights.items()}).eval(), IDS, TARGETS)


@pytest.fixture(scope="module")
def names(run):
    """Values, and gradients of parameters in the order of the way back."""
    return ([*run.model.points(), "loss"], [f"{name}.grad" for name in backward_order(name for name, _ in run.model.named_parameters())])


def differ(a, b):
    return np.abs(a - b).max() > 1e-9 * max(np.abs(a).max(), 1e-300)


def test_nothing_planted_is_the_model_itself(run, names):
    """Values, gradients at points and of parameters, as trace() and backward() have them."""
    values, slopes = names
    points = [f"{name}.grad" for name in run.model.points() if not name.endswith(STATISTICS)]
    found = computed(run, [*values, *points, *slopes])
    traced = run.model.trace(IDS, TARGETS, gradients=True)
    for name in [*values, *points]:
        np.testing.assert_allclose(found[name], permitted(name, traced[name]), rtol=1e-9, atol=1e-12, err_msg=name)
    run.model.zero_grad()
    run.model.loss(IDS, TARGETS).backward()
    for name, p in run.model.named_parameters():
        np.testing.assert_allclose(found[f"{name}.grad"], p.grad.array, rtol=1e-9, atol=1e-12, err_msg=name)
    assert list(computed(run, ["blocks.0.attn.z"])) == ["blocks.0.attn.z"]


def with_numbers(factors):
    return [Bug(factor.at, factor.says, factor.plant(1.5)) for factor in factors]


def test_a_backward_mistake_changes_gradients_alone(run, names):
    """No value; and of the gradients none that comes before where its table says that it shows first."""
    changes_gradients_alone(run, names, BACKWARD)


def test_a_general_mistake_on_the_way_back_changes_gradients_alone(run, names):
    changes_gradients_alone(run, names, [*GENERAL_BACK, *with_numbers(FACTORS_BACK)])


def changes_gradients_alone(run, names, bugs):
    values, slopes = names
    right, order = computed(run, [*values, *slopes]), backward_positions(2)
    for bug in bugs:
        wrong = computed(bug.plant(run, LAYERS, DERIVATIVE), [*values, *slopes])
        assert not [name for name in values if differ(right[name], wrong[name])], bug.says
        changed = sorted(order[name.removesuffix(".grad")] for name in slopes if differ(right[name], wrong[name]))
        assert changed and changed[0] >= order[qualified(bug.at, 1, True)], bug.says


def test_a_general_mistake_shows_first_where_its_table_says(run, names):
    """Nothing that comes before its point is another value."""
    values, _ = names
    right, place = computed(run, values), {name: i for i, name in enumerate(values)}
    for bug in [*GENERAL, *with_numbers(FACTORS)]:
        wrong = computed(bug.plant(run, LAYERS, BOTH), values)
        changed = sorted(place[name] for name in values if differ(right[name], wrong[name]))
        assert changed and changed[0] >= place[qualified(bug.at, 0, False)], bug.says


@pytest.mark.slow
def test_a_mistake_in_the_value_alone_has_the_same_values(run, names):
    values, slopes = names
    for bug in FORWARD:
        if "one too large" in bug.says:                 # an id that is none
            continue
        both, alone = (computed(bug.plant(run, LAYERS, what), [*values, *slopes]) for what in (BOTH, VALUE))
        for name in values:
            np.testing.assert_allclose(both[name], alone[name], rtol=1e-7, atol=1e-10, err_msg=f"{bug.says}: {name}")


def test_every_mistake_of_a_step_is_another_step():
    """In the first step or in the second; without one it is that of mg.optim.AdamW, which gpt2.golden runs."""
    own = {"wte.weight": np.array([[0.5, -1.0]]), "wpe.weight": np.array([[0.3]]), "h.0.mlp.c_fc.weight": np.array([[0.7]]),
           "h.0.mlp.c_fc.bias": np.array([2.0, 1e-3]), "h.0.ln_1.weight": np.array([1.5])}
    first = {name: np.full_like(a, 0.1) for name, a in own.items()}
    slopes = ({**first, "wte.weight": np.array([[3.0, -1e-4]]), "h.0.mlp.c_fc.bias": np.array([0.0, 3e-8])},
              {**first, "wte.weight": np.array([[1.0, 2.0]]), "h.0.mlp.c_fc.bias": np.array([-1.0, 1.0])})

    def two(*wrong):
        optimizer, now = Optimizer(Adam(lr=0.1)._asdict(), wrong), own
        for g in slopes:
            now = dict(optimizer.step(now, g))
        return np.concatenate([a.ravel() for a in now.values()])

    right = two()
    of_the_model = {"head stays", "own head", "points summed"}                       # test_mistakes.py has it
    assert all(np.abs(two(wrong) - right).max() > 1e-6 for wrong in STEPS if wrong not in of_the_model)
