"""A model goes from gpt2.train to transformers' Trainer and back: weights, configuration and vocabulary as either wrote them."""
from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers
from agreement import theirs
from tiny_gpt2 import TEXT, prepare_texts

import gpt2.train.__main__ as training
from gpt2 import GPT2
from gpt2.data.shards import load_data
from gpt2.data.tokenizer import load_tokenizer
from gpt2.evaluate.__main__ import main as evaluate
from tests.gpt2.train.test_train import SMALL

pytest.importorskip("accelerate", reason="transformers' Trainer needs accelerate; pip install '.[test]'")
BLOCK = 16


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Prepared data, and what six steps of gpt2.train on it left."""
    folder = tmp_path_factory.mktemp("made")
    prepare_texts([TEXT * 8], folder / "data", "train:300")
    training.main([*SMALL, "--data", str(folder / "data"), "--out-dir", str(folder / "ours"), "--max-iters", "6",
                   "--save-dtype", "float32"])
    return folder


@pytest.fixture(scope="module")
def continued(made):
    """transformers' Trainer goes on from our checkpoint-6 for four steps and writes a directory of its own; its losses."""
    ids = np.asarray(load_data(made / "data").train, np.int64)[:BLOCK * 60].reshape(-1, BLOCK)
    model = transformers.GPT2LMHeadModel.from_pretrained(made / "ours" / "checkpoint-6")
    tokenizer = transformers.AutoTokenizer.from_pretrained(made / "ours")
    how = transformers.TrainingArguments(output_dir=str(made / "theirs"), max_steps=4, save_steps=4, per_device_train_batch_size=8,
                                         logging_steps=1, learning_rate=1e-2, use_cpu=True, report_to=[], disable_tqdm=True, seed=0)
    labels = ids.copy()
    labels[:, 0] = -100                                 # nothing predicts it, and the Trainer divides by how many labels count
    rows = [{"input_ids": row, "labels": label} for row, label in zip(torch.tensor(ids), torch.tensor(labels))]
    trainer = transformers.Trainer(model, how, train_dataset=rows,
                                   processing_class=tokenizer, data_collator=transformers.default_data_collator)
    trainer.train()
    return trainer


@pytest.mark.parametrize("place", ["ours", "ours/checkpoint-6"])
def test_transformers_loads_what_training_saved(made, place):
    """The best model and every checkpoint-N are directories for transformers: the same logits, and the same ids of a text."""
    ids = np.asarray(load_data(made / "data").val[:BLOCK], np.int64)[None]
    model = theirs(made / place)
    with torch.no_grad():
        wanted = model(torch.tensor(ids)).logits.numpy()
    np.testing.assert_allclose(GPT2.from_pretrained(made / place)(ids).numpy(), wanted, rtol=0, atol=1e-5)
    assert transformers.AutoTokenizer.from_pretrained(made / place)(TEXT)["input_ids"] == load_tokenizer(made / "data").encode(TEXT)


def test_transformers_goes_on_from_it(made, continued):
    """Its first loss is that of a model trained six steps, not of a new one, and falls from there."""
    losses = [line["loss"] for line in continued.state.log_history if "loss" in line]
    ids = np.asarray(load_data(made / "data").train, np.int64)[:BLOCK * 60].reshape(-1, BLOCK)
    here = GPT2.from_pretrained(made / "ours" / "checkpoint-6").loss(ids[:, :-1], ids[:, 1:]).item()
    assert len(losses) == 4 and abs(losses[0] - here) < 0.2 < np.log(300) - here - 0.2 and losses[-1] < losses[0] - 0.1


def test_we_load_what_its_trainer_wrote(made, continued, capsys):
    """Out of its checkpoint-4, optimizer.pt and all, come the same logits and vocabulary; gpt2.evaluate reads it, gpt2.train goes on."""
    place = made / "theirs" / "checkpoint-4"
    assert {"optimizer.pt", "trainer_state.json", "training_args.bin"} <= {path.name for path in place.iterdir()}
    ids = np.asarray(load_data(made / "data").val[:BLOCK], np.int64)[None]
    with torch.no_grad():
        wanted = continued.model.eval()(torch.tensor(ids)).logits.numpy()
    np.testing.assert_allclose(GPT2.from_pretrained(place)(ids).numpy(), wanted, rtol=0, atol=1e-5)
    assert load_tokenizer(place).sha256 == load_data(made / "data").tokenizer.sha256
    assert evaluate(["--task", "loss", "--data", str(made / "data"), "--model", str(place)]) == 0
    flags = ["--data", str(made / "data"), "--init-from", str(place), "--out-dir", str(made / "again"), "--max-iters", "2",
             "--batch-size", "4", "--warmup-iters", "0", "--backend", "numpy"]
    assert training.main(flags) == 0
    assert "best: step 2" in capsys.readouterr().out
