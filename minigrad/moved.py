"""Old names of modules. Importing one gives the module that has its contents now, and warns.

They work for one version, and go with the next.
"""
from __future__ import annotations

import importlib
import importlib.machinery
import sys
import warnings
from collections.abc import Mapping
from types import ModuleType
from typing import Any

MOVED = {f"minigrad.{old}": f"minigrad.{new}" for old, new in {
    "backend.numpy_kernels": "backend.numpy.kernels",
    "backend.numpy_attention": "backend.numpy.attention",
    "backend.cupy_kernels": "backend.cupy.kernels",
    "backend.cupy_attention": "backend.cupy.attention",
    "backend.cupy_decode": "backend.cupy.decode",
    "fused.by_parts": "nn.unfused",
    "testing.double": "testing.fake_cupy", "testing.cuda": "testing.fake_cupy.cuda",
    "testing.strict": "testing.array_api_strict",
    "testing.strategies": "testing.laws.strategies", "testing.tolerance": "testing.laws.tolerance",
}.items()}


class Finder:
    """Finds the modules of a table, from old names to new ones, for `sys.meta_path`."""

    def __init__(self, moved: Mapping[str, str]) -> None:
        self.moved = moved

    def find_spec(self, name: str, path: Any = None,
                  target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if name not in self.moved:
            return None
        loader: Any = Loader(self.moved[name])          # importlib.abc has the type, and is slow
        return importlib.machinery.ModuleSpec(name, loader)


class Loader:
    """Loads the module that has the contents now."""

    def __init__(self, new: str) -> None:
        self.new = new

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        warnings.warn(f"{spec.name} is {self.new} now, and its old name goes with the next version",
                      DeprecationWarning, stacklevel=2)
        module = importlib.import_module(self.new)
        self.spec = module.__spec__                     # the import puts the old name's there
        return module

    def exec_module(self, module: ModuleType) -> None:
        """It was run when it was imported by its own name."""
        module.__spec__ = self.spec


def install() -> None:
    """Let imports find modules of minigrad by their old names."""
    sys.meta_path.append(Finder(MOVED))  # type: ignore[arg-type]
