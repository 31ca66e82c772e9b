"""GPT-2 on minigrad: configuration, model, tokenizer, checkpoints and sampling.

The commands are `python -m gpt2.<command>`; `python -m gpt2` lists them.
"""
from __future__ import annotations

import sys
from typing import Any

from .moved import Finder

if sys.argv[:1] == ["-m"]:              # python -m gpt2.NAME is importing its command
    import signal

    # until `run_command`, Ctrl-C ends the process as the system does, without a traceback
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)

sys.meta_path.append(Finder)  # type: ignore[arg-type]
_HOMES = {"GPT2Config": "config", "GPT2": "model", "SamplingOptions": "decoding.sampling",
          "Tokenizer": "data.tokenizer", "load_tokenizer": "data.tokenizer",
          "GPT2Error": "errors", "UsageError": "errors", "MissingError": "errors"}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that a command loads only what it needs."""
    if name not in _HOMES:
        raise AttributeError(f"module 'gpt2' has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value
