"""The ops with their derivatives, and Tensor's operators and methods."""
from __future__ import annotations

from ..engine.tensor import Tensor
from . import elementwise, index, linalg, methods, numpy_protocol, reduce, shape

methods.attach(Tensor)
numpy_protocol.attach()
