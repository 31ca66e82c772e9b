"""What the tests of python -m gpt2.generate share: models to run it on, and the command run in this process."""
from __future__ import annotations

import pytest
from tiny_gpt2 import scripted_model, tiny_model, tiny_tokenizer

from gpt2.cli import run_command
from gpt2.generate import main

SAYS = "Tap 🤗 on, tap 🤗🤗 off"


def write_models(folder):
    """Directories by name: random weights, a scripted model that says SAYS and ends, and one that repeats SAYS. Returns the folder."""
    tokenizer = tiny_tokenizer()
    says = tokenizer.encode(SAYS)
    tiny_model(seed=1).save_pretrained(folder / "random", tokenizer=tokenizer)
    scripted_model([*says, tokenizer.eot]).save_pretrained(folder / "says", tokenizer=tokenizer)
    scripted_model(says, n_positions=len(says), eos_token_id=None).save_pretrained(folder / "forever", tokenizer=tokenizer)
    return folder


def ended(capsys, models, model, *flags):
    """Exit code, stdout and stderr of the command on one of the models, or on another name."""
    where = models / model if (models / model).exists() else model
    with pytest.raises(SystemExit) as end:
        run_command(lambda: main(["--model", str(where), "--backend", "numpy", *map(str, flags)]), "gpt2.generate")
    printed = capsys.readouterr()
    return end.value.code, printed.out, printed.err
