"""All entries of the jury, in the order of the table."""
from __future__ import annotations

from importlib import import_module

from .entry import ENTRIES

MODULES = (
    "right_elementwise", "right_reductions", "right_layers", "right_products", "right_libraries",
    "right_narrow", "wrong_memory", "wrong_elementwise", "wrong_rows", "wrong_layers",
    "wrong_losses", "wrong_products", "wrong_narrow", "wrong_libraries",
)

for name in MODULES:
    import_module(f"{__package__}.{name}")              # it lists its entries

__all__ = ["ENTRIES"]
