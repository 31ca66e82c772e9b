"""A saved model with its ground truth, the PyTorch port's tensors of it, and what gpt2.verify says of them."""
from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from tiny_gpt2 import tiny_config, tiny_tokenizer
from torch_port import Port

from gpt2.cli.command import run_command
from gpt2.golden import __main__ as golden
from gpt2.model import GPT2
from gpt2.verify import __main__ as verify
from minigrad import random

IDS = [5, 17, 5, 99, 201, 7, 7, 42, 12, 250, 3, 3, 88, 9, 130, 61, 77, 4, 5, 17, 33]           # 2 rows of 10, and the last target
ADAM = (1e-2, 0.9, 0.999, 1e-8, 0.1)


@pytest.fixture
def run(capsys):
    """run(command, *flags): exit code, stdout and stderr of golden or verify."""

    def ended(command, *flags):
        with pytest.raises(SystemExit) as end:
            run_command(lambda: command.main([*map(str, flags)]), f"gpt2.{command.__name__.split('.')[-1]}")
        printed = capsys.readouterr()
        return end.value.code, printed.out, printed.err

    return ended


def some_model(**fields):
    """Three blocks, with biases and LayerNorm weights that matter, and norms small enough for ε to."""
    model = GPT2(tiny_config(n_layer=3, initializer_range=0.15, **fields), seed=4).eval()
    for i, (name, p) in enumerate(model.named_parameters()):
        if p.ndim == 1:
            p.assign(p.array + random.normal(random.fold_in(6, i), p.shape, std=0.3).array)
        elif name == "wte.weight":                      # variances of about 1e-2: ε = 1e-5 is a thousandth of them
            p.assign(p.array * 0.5)
    return model


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A saved model, its weights, and its ground truth with gradients and three steps, at (folder, weights, config, golden folder)."""
    folder = tmp_path_factory.mktemp("golden")
    model = some_model()
    model.save_pretrained(folder / "model", tokenizer=tiny_tokenizer())
    golden.main(["--model", str(folder / "model"), "--ids", ",".join(map(str, IDS)), "--batch-size", "2", "--grad", "--steps", "3",
                 "--learning-rate", str(ADAM[0]), "--out", str(folder / "truth")])
    weights = {name: p.array.copy() for name, p in model.named_parameters()}
    return folder, weights, model.config, folder / "truth"


def ported(made, bug=None, only=None, dtype=torch.float32, steps=0, grad=False, edit=None, adam=ADAM):
    """What the PyTorch port computes, saved; edit changes the tensors before that."""
    folder, weights, config, _ = made
    ids = np.array(IDS)
    found = Port(weights, config, bug, only, dtype).run(ids[:-1].reshape(2, 10), ids[1:].reshape(2, 10), grad, steps, adam)
    arrays = {name: x.numpy().copy() for name, x in found.items()}
    if edit is not None:
        edit(arrays)
    path = folder / "port.safetensors"
    save_file(arrays, path)
    return path


def judged(run, made, path, *flags):
    """Exit code and document of a comparison."""
    code, out, err = run(verify, "--golden", made[3], "--against", path, "--json", *flags)
    assert err == "", err
    return code, json.loads(out)
