"""Old names of modules, which work for one version, and the new ones (`minigrad.moved`)."""
from __future__ import annotations

from typing import Any

MOVED = {f"gpt2.{old}": f"gpt2.{new}" for old, new in {
    "tokenizer": "data.tokenizer", "bpe": "data.train_bpe", "corpus": "data.corpus",
    "checkpoint": "weights.checkpoint", "pretrained": "weights.pretrained",
    "locate": "weights.locate", "llmc": "weights.llmc",
    "decode": "decoding.decode", "sampling": "decoding.sampling", "cache": "decoding.kv_cache",
    "lookup": "decoding.prompt_lookup", "text": "decoding.streaming",
    "trainer": "train.trainer", "snapshot": "train.checkpoints", "report": "train.progress",
    "evaluation": "evaluate.likelihood", "stats": "inspect.statistics", "figures": "io.plots",
    "published": "verify.published", "truth": "golden.truth", "port": "verify.port",
}.items()}


class Finder:
    """Finds the modules of MOVED; minigrad is imported only when one of them is imported."""

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> Any:
        if name not in MOVED:
            return None
        from minigrad import moved

        return moved.Finder(MOVED).find_spec(name)
