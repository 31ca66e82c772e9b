"""Modules, which have PyTorch's names and meaning.

They are Linear, Embedding, LayerNorm, Dropout, GELU, ReLU, Tanh, Sequential and ModuleList.
"""
from typing import TYPE_CHECKING

from .. import hints
from ..engine.making import Parameter
from . import functional, unfused
from .layers import (
    GELU,
    Dropout,
    Embedding,
    LayerNorm,
    Linear,
    ModuleList,
    ReLU,
    Sequential,
    Tanh,
)
from .module import Module, empty_parameter, forget

__all__ = ["GELU", "Dropout", "Embedding", "LayerNorm", "Linear", "Module", "ModuleList",
           "Parameter", "ReLU", "Sequential", "Tanh", "empty_parameter", "forget", "functional",
           "unfused"]

if not TYPE_CHECKING:
    __getattr__ = hints.missing("minigrad.nn", hints.NN, lambda: [*globals()])
