"""Ours beside transformers': the same inputs through both, and how far apart the results are."""
from __future__ import annotations

from typing import Any

import numpy as np
import torch
import transformers

import minigrad as mg
from gpt2.model import GPT2

transformers.utils.logging.disable_progress_bar()


def theirs(directory: Any, dtype: str = "float32") -> Any:
    """transformers' model from a directory, with nothing missing, left over or newly drawn; without dropout."""
    model, info = transformers.GPT2LMHeadModel.from_pretrained(directory, dtype=getattr(torch, dtype), output_loading_info=True)
    assert not any(info.values()), info
    return model.eval()


def logits(model: Any, ids: Any) -> np.ndarray:
    """[B, T, V] of either model."""
    if isinstance(model, GPT2):
        with mg.no_grad():
            return model(ids).numpy()
    with torch.no_grad():
        return model(torch.tensor(ids)).logits.numpy()


def loss(model: Any, ids: Any, targets: Any) -> Any:
    """Mean cross-entropy, a scalar that can be walked back from, of either model."""
    if isinstance(model, GPT2):
        return model.loss(ids, targets)
    return torch.nn.functional.cross_entropy(model(torch.tensor(ids)).logits.flatten(0, 1), torch.tensor(targets).flatten())


def gradients(model: Any, ids: Any, targets: Any) -> dict[str, np.ndarray]:
    """∂loss/∂parameter by transformers' names without `transformer.`, of either model."""
    model.zero_grad()
    loss(model, ids, targets).backward()
    found = {name.removeprefix("transformer."): np.asarray(p.grad) for name, p in model.named_parameters()}
    model.zero_grad()
    return found


def norm(x: np.ndarray) -> float:
    """‖x‖, summed in float64."""
    return float(np.sqrt(np.einsum("i,i->", x.ravel(), x.ravel(), dtype=np.float64)))


def worst(ours: dict[str, np.ndarray], wanted: dict[str, np.ndarray], noise: float = 0.0) -> tuple[float, str]:
    """The largest ‖ours − wanted‖ / ‖wanted‖ over the tensors, and whose it is. What is below `noise` is no difference."""
    assert ours.keys() == wanted.keys()

    def apart(name: str) -> float:
        a, b = ours[name], wanted[name]
        assert a.shape == b.shape and a.dtype == b.dtype, name
        difference = norm(a - b)
        return 0.0 if difference <= noise else difference / norm(b) if norm(b) else float("inf")

    return max((apart(name), name) for name in wanted)
