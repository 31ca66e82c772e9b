"""A training pass of GPT-2 is transformers' on the same dropout masks: where masks apply, with which p, and that each is its own.

Our model draws a key for each mask from the default stream of `minigrad.random`. The keys are recorded, the masks are made of them, and
PyTorch's dropout function uses these masks instead of its own, in the order in which transformers asks for them.
"""
from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from agreement import report, table

import minigrad as mg
from gpt2.config import GPT2Config
from gpt2.model import GPT2
from tests.gpt2.test_against_transformers import SIZES, inputs, random_of_theirs

pytestmark = pytest.mark.rounding

ROWS, T = 2, 140                                        # three tiles of the attention kernel, which has a slice of the mask in each
CONFIG = {**SIZES, "vocab_size": 40, "n_positions": T, "n_embd": 32, "n_layer": 3, "embd_pdrop": 0.1, "resid_pdrop": 0.2,
          "attn_pdrop": 0.3, "attn_implementation": "eager"}           # the others drop inside one function of PyTorch
FORMS = {"fused": {}, "explicit": {"explicit": True}, "recompute": {"recompute": True}}
SIGMAS = 6.0                                            # a fair mask is farther from its share once in 5e8


def places() -> list[tuple[str, tuple[int, ...], float]]:
    """Name, shape and p of each mask, in the order of the pass."""
    stream, weights = (ROWS, T, CONFIG["n_embd"]), (ROWS, CONFIG["n_head"], T, T)
    found = [("embd", stream, CONFIG["embd_pdrop"])]
    for i in range(CONFIG["n_layer"]):
        found += [(f"h.{i}.attn", weights, CONFIG["attn_pdrop"]), (f"h.{i}.attn.resid", stream, CONFIG["resid_pdrop"]),
                  (f"h.{i}.mlp.resid", stream, CONFIG["resid_pdrop"])]
    return found


def masks_of(keys: list[int]) -> list[np.ndarray]:
    """The masks, true where an element stays, of the keys that one pass drew."""
    assert len(keys) == len(places()), f"{len(keys)} masks were drawn; GPT-2 has {', '.join(name for name, *_ in places())}"
    return [mg.random.keep_mask(mg.backend.cpu, key, shape, p) for key, (_, shape, p) in zip(keys, places())]


def training_pass(model: Any, ids: np.ndarray, targets: np.ndarray, keys: list[int] | None = None) -> dict[str, np.ndarray]:
    """Loss and gradients by parameter, of either model in training mode. keys: those of the forward pass are added to it."""
    model.train()
    if isinstance(model, GPT2):
        with pytest.MonkeyPatch.context() as patch:
            real = mg.random.next_key
            patch.setattr(mg.random, "next_key", lambda: keys.append(real()) or keys[-1])
            mg.random.manual_seed(5)
            loss = model.loss(ids, targets)
        loss.backward()                                 # recomputed blocks draw their keys again, and these are not recorded
    else:
        loss = torch.nn.functional.cross_entropy(model(torch.tensor(ids)).logits.flatten(0, 1), torch.tensor(targets).flatten())
        loss.backward()
    grads = {name.removeprefix("transformer."): np.asarray(p.grad) for name, p in model.named_parameters()}
    return {"loss": np.asarray(loss.detach()), **grads}


def playing(masks: list[np.ndarray]) -> Any:
    """torch.nn.functional.dropout with these masks, one after the other, and the p that it is given."""
    def dropout(x: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> torch.Tensor:
        assert training
        mask = torch.tensor(masks.pop(0))
        assert mask.shape == x.shape
        return torch.where(mask, x / (1.0 - p), 0.0)

    return dropout


@pytest.mark.parametrize("form, dtype", [("fused", "float32"), ("fused", "float64"), ("explicit", "float64"), ("recompute", "float32")])
def test_a_training_pass_is_transformers_on_the_same_masks(form: str, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loss and every gradient, with dropout of embeddings, attention weights and both residual branches; each p is another."""
    wanted, (ids, targets) = random_of_theirs(CONFIG, 0).to(getattr(torch, dtype)), inputs(CONFIG, 0)
    weights = {name.removeprefix("transformer."): p.detach().numpy().copy() for name, p in wanted.named_parameters()}
    ours = GPT2(GPT2Config.from_dict(wanted.config.to_dict()), dtype=dtype, parameters=weights, **FORMS[form])
    keys: list[int] = []
    found = training_pass(ours, ids, targets, keys)
    monkeypatch.setattr(torch.nn.functional, "dropout", playing(masks := masks_of(keys)))
    lines = report(found, training_pass(wanted, ids, targets), ours.config, ROWS, T)
    assert not masks                                    # transformers used all of them
    assert max(line.units for line in lines) <= 1.0, table(lines, f"{form}, {dtype}")


def test_each_mask_of_a_pass_is_one_of_its_own() -> None:
    """Each keeps its share 1 − p, and two of a shape drop the same element p² of the time, as independent ones do: within 6σ.

    σ = √(q(1 − q)/n) for a share q of n elements. The same mask in two layers would drop the same element p of the time.
    """
    keys: list[int] = []
    training_pass(GPT2(GPT2Config.from_dict(CONFIG)), *inputs(CONFIG, 0), keys)
    drawn = list(zip(places(), masks_of(keys)))
    for (name, _, p), mask in drawn:
        assert abs((~mask).mean() - p) <= SIGMAS * math.sqrt(p * (1.0 - p) / mask.size), name
    for ((one, _, p), a), ((other, _, q), b) in itertools.combinations(drawn, 2):
        if a.shape == b.shape:
            both = p * q
            assert abs((~a & ~b).mean() - both) <= SIGMAS * math.sqrt(both * (1.0 - both) / a.size), (one, other)
