"""Training mode: which models start in it, and what refuses one whose dropout would draw."""
from __future__ import annotations

import numpy as np
import pytest
from tiny_gpt2 import prepare_texts, tiny_config, tiny_model, tiny_tokenizer

import minigrad as mg
from gpt2.decoding.decode import steps
from gpt2.decoding.streaming import continue_text
from gpt2.errors import UsageError
from gpt2.evaluate.__main__ import main as evaluate
from gpt2.evaluate.likelihood import total_nll
from gpt2.experiments import lab
from gpt2.generate import main as generate
from gpt2.inspect.__main__ import main as look
from gpt2.model import GPT2

IDS = np.array([[7, 31, 4, 250, 9, 3]])
NONE = {"embd_pdrop": 0.0, "resid_pdrop": 0.0, "attn_pdrop": 0.0}
USES = {
    "generate": lambda model: model.generate(IDS, 3, greedy=True),
    "steps": lambda model: [step.ids for step in steps(model, IDS.tolist(), max_new_tokens=2)],
    "continue_text": lambda model: continue_text(model, tiny_tokenizer(), "Once", max_new_tokens=2)[0].tokens,
    "trace": lambda model: float(model.trace(IDS, IDS)["loss"]),
    "gradients": lambda model: model.trace(IDS, IDS, gradients=True)["embed.grad"].tolist(),
    "evaluate": lambda model: total_nll(model, IDS[0]),
}


def modes(model):
    return {module.training for module in model.modules()}


def test_new_weights_start_in_training_mode(tmp_path):
    """GPT2(config) is in training mode as every new Module is, all of it; weights that exist are in evaluation mode."""
    assert modes(GPT2(tiny_config())) == modes(GPT2(tiny_config(), explicit=True, recompute=True, seed=3)) == {True}
    model = tiny_model(seed=3)
    assert modes(GPT2(model.config, parameters=model.state_dict())) == {False}
    model.save_pretrained(tmp_path)
    assert modes(GPT2.from_pretrained(tmp_path)) == {False}
    assert model.eval() is model and model.train() is model and modes(model) == {True}


def test_a_training_loop_of_ones_own_has_dropout():
    """The losses of a new model draw: two passes differ, and they are those of the same stream; after eval() they do not."""
    model = GPT2(tiny_config(initializer_range=0.3), seed=1)
    mg.random.manual_seed(4)
    losses = [model.loss(IDS, IDS).item() for _ in range(2)]
    mg.random.manual_seed(4)
    assert [model.loss(IDS, IDS).item() for _ in range(2)] == losses and losses[0] != losses[1]
    model.eval()
    assert len({model.loss(IDS, IDS).item() for _ in range(2)}) == 1


@pytest.mark.parametrize("use", USES.values(), ids=USES)
@pytest.mark.parametrize("place", NONE)
def test_dropout_that_would_draw_is_refused(place, use):
    """Text, traces and evaluations of a model in training mode say to call eval(); with no dropout training mode changes nothing."""
    model = GPT2(tiny_config(**{**NONE, place: 0.5}), seed=1)
    with pytest.raises(UsageError, match=r"the model is in training mode, and its dropout .*; call model\.eval\(\) first$"):
        use(model)
    wanted = use(model.eval())
    model.h[1].train()                                  # one block is enough, also where its own dropout is 0
    with pytest.raises(UsageError, match=r"call model\.eval\(\) first"):
        use(model)
    assert use(model.eval()) == wanted
    plain = GPT2(tiny_config(**NONE), seed=1)
    assert modes(plain) == {True} and use(plain) == wanted


def test_hooks_see_the_pass_that_is_made():
    """hooks() reads a training pass as it is, dropout included, and changes no draw of it."""
    model, met = GPT2(tiny_config(**{**NONE, "embd_pdrop": 0.5}), seed=1), []
    mg.random.manual_seed(4)
    wanted = model(IDS).numpy()
    mg.random.manual_seed(4)
    with model.hooks({"blocks.0.resid_pre": lambda x, name: met.append(x.numpy())}):
        assert np.array_equal(model(IDS).numpy(), wanted)
    assert 0.2 < (met[0] == 0.0).mean() < 0.8


def test_commands_on_random_weights_have_no_dropout(tmp_path, capsys):
    """--random-weights SEED draws nothing but the weights: two runs print the same, and no command is refused."""
    tiny_model().save_pretrained(tmp_path / "m", tokenizer=tiny_tokenizer())
    prepare_texts(["Once upon a midnight dreary " * 40], tmp_path / "data", str(tmp_path / "m"))
    how = ["--model", str(tmp_path / "m"), "--random-weights", "3"]
    for command in (lambda: generate([*how, "--prompt", "Once", "--max-new-tokens", "5"]),
                    lambda: look(["attention", *how, "--prompt", "Once upon"]),
                    lambda: look(["logit-lens", *how, "--prompt", "Once upon"]),
                    lambda: evaluate(["--task", "perplexity", *how, "--data", str(tmp_path / "data")])):
        said = []
        for _ in range(2):
            assert command() == 0
            said.append([line for line in capsys.readouterr().out.splitlines() if " s" not in line])
        assert said[0] == said[1]


def test_experiments_judge_without_dropout():
    """lab.train leaves evaluation mode, whatever it was given."""
    model = GPT2(tiny_config(), seed=1)
    lab.train(model, model.loss, np.tile(np.arange(9), 40), steps=1, rows=2, block=8)
    assert modes(model) == {False}
