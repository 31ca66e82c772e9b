"""GPT-2 on minigrad: configuration, model, tokenizer, checkpoints, sampling, and the commands `python -m gpt2.<command>`."""
from __future__ import annotations

from typing import Any

from minigrad.moved import install

from .moved import MOVED

install(MOVED)
_HOMES = {"GPT2Config": "config", "GPT2": "model", "SamplingOptions": "decoding.sampling",
          "Tokenizer": "data.tokenizer", "load_tokenizer": "data.tokenizer",
          "GPT2Error": "errors", "UsageError": "errors", "MissingError": "errors"}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    """Public names are imported when first used, so that a command loads only what it needs."""
    if name not in _HOMES:
        raise AttributeError(f"module 'gpt2' has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value
