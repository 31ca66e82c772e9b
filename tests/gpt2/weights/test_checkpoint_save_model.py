"""Checkpoints of safetensors' `save_model`, which keeps one of two tensors that share their memory and notes what the other was."""
from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from tiny_gpt2 import tiny_config

from gpt2.errors import MissingError
from gpt2.model import GPT2
from gpt2.weights.checkpoint import read_checkpoint, read_tensors

torch, transformers, safetensors_torch = (pytest.importorskip(name) for name in ("torch", "transformers", "safetensors.torch"))
IDS = np.array([[7, 31, 4, 250]])


@pytest.fixture(params=["as it is", "without transformer.", "compiled"])
def saved(request, tmp_path):
    """saved(tied, note, config): a directory with such a file, and the model of transformers that it is of."""
    def make(tied=True, note=True, config=True):
        ours = tiny_config(tie_word_embeddings=tied, resid_pdrop=0.0)
        fields = {name: value for name, value in ours.to_dict().items() if name != "architectures"}
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**fields)).eval()
        folder = tmp_path / f"{tied} {note} {config}"
        folder.mkdir()
        path = folder / "model.safetensors"
        safetensors_torch.save_model(model, str(path))
        with safe_open(path, "np") as file:
            metadata = file.metadata() or {}
        assert ("transformer.wte.weight" in load_file(path)) == (not tied)
        assert metadata.get("transformer.wte.weight") == ("lm_head.weight" if tied else None)
        called = {"as it is": lambda name: name, "without transformer.": lambda name: name.removeprefix("transformer."),
                  "compiled": lambda name: f"_orig_mod.{name}"}[request.param]
        tensors = {called(name): array for name, array in load_file(path).items()}
        save_file(tensors, path, {called(name): called(kept) for name, kept in metadata.items()} if note else None)
        if config:
            (folder / "config.json").write_text(json.dumps(ours.to_dict()))
        return folder, model
    return make


def logits(model):
    with torch.no_grad():
        return model(torch.tensor(IDS)).logits.numpy()


@pytest.mark.parametrize("note", [True, False])
def test_a_tied_model_loads_from_its_head(saved, note):
    """lm_head.weight is wte.weight where config.json ties them, with the note in the metadata and without it."""
    folder, theirs = saved(note=note)
    ours = GPT2.from_pretrained(folder)
    assert ours.lm_head.weight is ours.wte.weight
    assert np.array_equal(ours.wte.weight.numpy(), theirs.lm_head.weight.detach().numpy())
    np.testing.assert_allclose(ours(IDS).numpy(), logits(theirs), rtol=0, atol=1e-5)
    if note:
        assert read_tensors(folder).missing() == []


def test_an_untied_model_is_told_apart(saved):
    """With both tensors there and different, each is its own; one alone under an untied config is refused."""
    folder, theirs = saved(tied=False)
    ours = GPT2.from_pretrained(folder)
    assert ours.lm_head.weight is not ours.wte.weight
    for name, p in (("transformer.wte.weight", ours.wte.weight), ("lm_head.weight", ours.lm_head.weight)):
        assert np.array_equal(p.numpy(), theirs.state_dict()[name].numpy())
    assert not np.array_equal(ours.wte.weight.numpy(), ours.lm_head.weight.numpy())
    path = folder / "model.safetensors"
    tensors = load_file(path)
    save_file({name: array for name, array in tensors.items() if not name.endswith("wte.weight")}, path)
    with pytest.raises(MissingError, match=r"has no tensor 'wte\.weight'"):
        read_checkpoint(folder)
    (folder / "config.json").write_text(json.dumps(tiny_config().to_dict()))           # a config that ties what differs
    save_file(tensors, path)
    with pytest.raises(MissingError, match=r"'lm_head\.weight' differs from 'wte\.weight'"):
        read_checkpoint(folder)


def test_an_untied_config_with_the_note_has_both(saved):
    """Where the note says that the two are one and the configuration keeps them apart, both start from that one."""
    folder, _ = saved()
    (folder / "config.json").write_text(json.dumps(tiny_config(tie_word_embeddings=False).to_dict()))
    ours = GPT2.from_pretrained(folder)
    assert ours.lm_head.weight is not ours.wte.weight
    assert np.array_equal(ours.wte.weight.numpy(), ours.lm_head.weight.numpy())


def test_a_head_alone_is_not_guessed_to_be_tied(tmp_path):
    """Without a configuration and without the note a head tells nothing of the embedding: it may be another's. With the note it does."""
    arrays = {name: np.zeros(shape, np.float32) for name, shape in
              {"lm_head.weight": (5, 768), "wpe.weight": (4, 768), "h.0.ln_1.weight": (768,)}.items()}
    save_file(arrays, tmp_path / "a.safetensors")
    save_file(arrays, tmp_path / "b.safetensors", {"transformer.wte.weight": "lm_head.weight"})
    with pytest.raises(MissingError, match=r"has no tensor 'wte\.weight'"):
        read_checkpoint(tmp_path / "a.safetensors")
    with pytest.raises(MissingError, match=r"has no tensor 'h\.0\.ln_1\.bias'; is it a partial"):
        read_checkpoint(tmp_path / "b.safetensors")
    with pytest.warns(UserWarning, match="n_head=12"):
        found = read_tensors(tmp_path / "b.safetensors")
    assert found.config.tie_word_embeddings and found.config.vocab_size == 5 and "wte.weight" not in found.missing()
