"""Experiments on GPT-2: `python -m gpt2.experiments NAME|all|--list`, one file each.

An experiment's docstring says which question it answers. EQUATION is the equation in question.
`measure(lab)` returns numbers that JSON can store, with their table in "rows". `judge(found)`
returns verdicts, which follow from these numbers alone. `draw(found)` draws the picture. NAMES is
the registry, in the order in which the model computes.
"""
from __future__ import annotations

from importlib import import_module
from typing import Any

NAMES = (
    "parameter-counts", "weight-histograms", "embedding-linear", "weight-tying", "layer-norm",
    "fused-qkv", "causal-averaging", "softmax-extremes", "attention-vs-pytorch", "gelu-relu",
    "temperature", "sampling", "device-timing", "device-errors", "attention-maps", "induction",
    "ablate-query", "ladder", "nano-sort", "hessian",
)


def experiment(name: str) -> Any:
    """The module of an experiment."""
    return import_module(f".{name.replace('-', '_')}", __name__)
