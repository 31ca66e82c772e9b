"""Old names of modules. Importing one gives the module that has its contents now, and warns.

They work for one version, and go with the next.
"""
from __future__ import annotations

import importlib
import importlib.machinery
import sys
import warnings
from types import ModuleType
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
    """Finds the modules of MOVED, for `sys.meta_path`."""

    @staticmethod
    def find_spec(name: str, path: Any = None,
                  target: Any = None) -> importlib.machinery.ModuleSpec | None:
        return importlib.machinery.ModuleSpec(name, Loader()) if name in MOVED else None


class Loader:
    """Loads the module that has the contents now."""

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        new = MOVED[spec.name]
        warnings.warn(f"{spec.name} is {new} now, and its old name goes with the next version",
                      DeprecationWarning, stacklevel=2)
        module = importlib.import_module(new)
        self.spec = module.__spec__                     # the import puts the old name's there
        return module

    def exec_module(self, module: ModuleType) -> None:
        """It was run when it was imported by its own name."""
        module.__spec__ = self.spec


def install() -> None:
    """Let imports find the old names, after all that is there."""
    sys.meta_path.append(Finder)  # type: ignore[arg-type]
