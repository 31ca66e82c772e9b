"""Parameters of two tiny models, all different: made, saved as others save them, and compared."""
from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from gpt2.config import GPT2Config, parameter_shapes

TINY = GPT2Config(vocab_size=5, n_positions=4, n_embd=6, n_layer=2, n_head=3, n_inner=10)
UNTIED = GPT2Config(vocab_size=5, n_positions=4, n_embd=6, n_layer=2, n_head=3, n_inner=10, tie_word_embeddings=False)


def weights(config: GPT2Config = TINY, seed: int = 0, dtype: str = "float32") -> dict[str, np.ndarray]:
    """Random parameters, all different."""
    random = np.random.default_rng(seed)
    return {name: random.standard_normal(shape).astype(dtype) for name, shape in parameter_shapes(config).items()}


def save(path: Path, tensors: dict[str, np.ndarray], config: GPT2Config | None = TINY) -> Path:
    """A directory as somebody else would write it: any names, no metadata of ours."""
    path.mkdir(exist_ok=True)
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    if config is not None:
        (path / "config.json").write_text(json.dumps(config.to_dict()))
    return path


def assert_same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> None:
    """The same names and the same bits."""
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype and a[name].shape == b[name].shape, name
        assert a[name].tobytes() == b[name].tobytes(), name
