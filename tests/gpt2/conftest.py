"""What tests of python -m gpt2.generate share: models to run it on, and the command run in this process."""
from __future__ import annotations

import pytest
from in_process import end_of
from tiny_gpt2 import SAYS, scripted_model, tiny_model, tiny_tokenizer

from gpt2.generate import main


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Directories by name: random weights, a scripted model that says SAYS and ends, and one that repeats SAYS."""
    tokenizer, folder = tiny_tokenizer(), tmp_path_factory.mktemp("models")
    says = tokenizer.encode(SAYS)
    tiny_model(seed=1).save_pretrained(folder / "random", tokenizer=tokenizer)
    scripted_model([*says, tokenizer.eot]).save_pretrained(folder / "says", tokenizer=tokenizer)
    scripted_model(says, n_positions=len(says), eos_token_id=None).save_pretrained(folder / "forever", tokenizer=tokenizer)
    return folder


@pytest.fixture
def run(models, capsys):
    """run(model, *flags): exit code, stdout and stderr of the command, in this process."""

    def ended(model, *flags):
        where = models / model if (models / model).exists() else model
        return end_of(lambda: main(["--model", str(where), "--backend", "numpy", *map(str, flags)]), capsys, "gpt2.generate")

    return ended
