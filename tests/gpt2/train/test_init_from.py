"""A run taken up again with other settings: every setting of gpt2.train says what it does then, or is refused."""
from __future__ import annotations

import shutil

import pytest
from tiny_gpt2 import prepare_texts

import gpt2.train.__main__ as training
from gpt2.cli.command import run_command
from gpt2.train.init_from import ON_RESUME, SHAPE
from tests.gpt2.train.test_checkpoints import TEXT, fresh, held, told

OTHERS = {                                              # another value of each setting than `fresh` gives it
    "log_interval": 2, "eval_interval": 3, "sample_every": 1, "save_every": 2, "keep": 5, "save_dtype": "float64", "backend": "numpy",
    "recompute": True, "debug_nan": True, "dropout": 0.3, "attn_dropout": 0.3, "gradient_accumulation_steps": 1, "weight_decay": 0.5,
    "beta1": 0.5, "beta2": 0.5, "grad_clip": 0.5, "overfit_one_batch": True, "seed": 3, "max_iters": 15, "learning_rate": 2e-2,
    "min_lr": 1e-6, "warmup_iters": 1, "batch_size": 3, "block_size": 8, "eval_iters": 1, "freeze": "wpe.*", "dtype": "bfloat16",
    "n_layer": 3, "n_head": 4, "n_embd": 64, "device": 0, "config": None, "init_from": None, "out_dir": None, "data": None,
    "distributed": None, "dry_run": None,
}
APART = {"device", "config", "init_from", "out_dir", "data", "distributed", "dry_run"}  # what a test elsewhere is about, or a GPU


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "poem"
    prepare_texts([TEXT * 20], folder, "train:300")
    return folder


@pytest.fixture(scope="module")
def begun(data, tmp_path_factory):
    """A run over with 14 steps, validated on some of the text; and the same stopped after 12."""
    out = tmp_path_factory.mktemp("begun") / "out"
    with pytest.raises(SystemExit):
        run_command(lambda: training.main(["--out-dir", str(out), *fresh(data, "--eval-iters", 2, "--keep", 9)]), "gpt2.train")
    return out


@pytest.fixture
def resumed(begun, run, tmp_path):
    """resumed(*flags): take the run up again after step 12, in a copy; code, stdout and the warnings or the error."""
    def call(*flags):
        shutil.copytree(begun, tmp_path / "out")
        shutil.rmtree(tmp_path / "out" / "checkpoint-14")
        code, _, err = run(tmp_path / "out", "--init-from", "resume", *flags)
        return code, [line for line in err.splitlines() if line.startswith("gpt2.train: ")]

    return call


def flag(name):
    value = OTHERS[name]
    return [f"--{name.replace('_', '-')}", *([] if value is True else [value])]


def test_every_setting_is_classified():
    """The table has each flag of the command, no other, and classes that are known; what shapes decide is refused."""
    assert ON_RESUME.keys() == {action.dest for action in training.parser()._actions} - {"help"} == OTHERS.keys()
    assert {kind for kinds in ON_RESUME.values() for kind in kinds} == {"same", "steps", "schedule", "windows", "weights"}
    assert all(ON_RESUME[name] == ("weights",) for name in SHAPE)


@pytest.mark.parametrize("name", sorted(OTHERS.keys() - APART))
def test_each_setting_does_what_the_table_says(name, resumed):
    """Another value changes nothing and says nothing, or is said on stderr with the flag and both values, or is refused with the flag."""
    code, said = resumed(*flag(name))
    kinds, called = ON_RESUME[name], f"--{name.replace('_', '-')}"
    if "windows" in kinds or kinds == ("weights",):
        assert code == 2 and len(said) == 1 and called in said[0], said
        assert kinds == ("weights",) or "the best so far is of 129, so they cannot be compared" in said[0]
        return
    assert code == 0
    if kinds == ("same",):
        assert said == []
    else:
        [line] = said
        assert line.startswith(f"gpt2.train: warning: {called} ") and " instead of " in line
        assert ("the learning rate of step 13 is " in line) == (kinds == ("schedule",))
        assert ("the steps from here on differ" in line) == ("steps" in kinds)


def test_the_same_settings_say_nothing(resumed):
    """Typed again with the values that they had, there is nothing to say."""
    assert resumed("--batch-size", 4, "--eval-iters", 2, "--learning-rate", 0.01, "--max-iters", 14, "--dtype", "float32") == (0, [])


def test_a_smaller_max_iters_says_what_it_does_to_the_learning_rate(run, data, tmp_path):
    """The schedule ends earlier, so that the rate of the next step is lower: both numbers are said, and the step has the one said."""
    out = tmp_path / "out"
    assert run(out, *fresh(data), "--max-iters", 40, "--warmup-iters", 1, "--save-every", 4, "--log-interval", 1, "--keep", 20)[0] == 0
    rates = [line["lr"] for line in told(out) if "lr" in line]
    for step in held(out)[1]:
        if step > 12:
            shutil.rmtree(out / f"checkpoint-{step}")
    code, _, err = run(out, "--init-from", "resume", "--max-iters", 14)
    after = [line["lr"] for line in told(out) if "lr" in line]
    assert code == 0 and after[12] < 0.5 * rates[12]
    assert (f"warning: --max-iters 14 instead of 40: the learning rate of step 13 is {after[12]:.2e}, and would have been "
            f"{rates[12]:.2e}\n") in err


def test_validation_stays_comparable(run, data, tmp_path):
    """Another --batch-size with --eval-iters that make the same tokens of it goes on; so does one where all of the text is read."""
    flags = ("--max-iters", 2, "--eval-interval", 1, "--gradient-accumulation-steps", 1)
    for out, first, second in ((tmp_path / "a", ("--batch-size", 4, "--eval-iters", 2), ("--batch-size", 2, "--eval-iters", 4)),
                               (tmp_path / "b", ("--batch-size", 4), ("--batch-size", 2))):
        assert run(out, *fresh(data, *flags, *first))[0] == 0
        code, _, err = run(out, "--init-from", "resume", "--max-iters", 3, *second)
        assert code == 0 and "the steps from here on differ" in err
        if len(first) > 2:
            code, _, err = run(out, "--init-from", "resume", "--max-iters", 4, "--batch-size", 1)
            assert code == 2 and "leave it out, give --eval-iters 8, or start a new run with --init-from" in err


def test_what_was_frozen_stays_frozen(run, data, tmp_path):
    """To thaw a parameter is refused: the checkpoint has no moments of it; to freeze one more is said."""
    out = tmp_path / "out"
    assert run(out, *fresh(data), "--max-iters", 2, "--freeze", "wte.*", "wpe.*")[0] == 0
    code, _, err = run(out, "--init-from", "resume", "--max-iters", 3, "--freeze", "wte.*")
    assert code == 2 and "wpe.weight was frozen, and" in err and "has no AdamW moments for it" in err
    code, _, err = run(out, "--init-from", "resume", "--max-iters", 3, "--freeze", "wte.*", "--freeze", "wpe.*", "ln_f.*")
    assert code == 0 and "--freeze ['wte.*', 'wpe.*', 'ln_f.*'] instead of ['wte.*', 'wpe.*']: the steps from here on" in err
