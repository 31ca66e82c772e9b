"""The modules that models are built of, with PyTorch's names and meaning."""
from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

from .. import backend, hints, random
from ..engine.making import Parameter
from ..engine.tensor import Tensor
from ..errors import ShapeError
from .module import Module, empty_parameter


class Linear(Module):
    """y = x Wᵀ + b with W [out_features, in_features].

    The initial values of W and b are uniform in ±1/√in_features, as in PyTorch. init=False leaves
    them to be assigned.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True, *,
                 dtype: str = "float32", device: str = "numpy", key: int | None = None,
                 init: bool = True) -> None:
        if not init:
            self.weight = empty_parameter(out_features, in_features, dtype=dtype, device=device)
            self.bias = empty_parameter(out_features, dtype=dtype, device=device) if bias else None
            return
        keys = random.split(random.next_key() if key is None else key)
        bound = 1.0 / math.sqrt(in_features) if in_features else 0.0
        how: dict[str, Any] = {"low": -bound, "high": bound, "dtype": dtype, "device": device}
        self.weight = Parameter(random.uniform(keys[0], (out_features, in_features), **how))
        self.bias = Parameter(random.uniform(keys[1], (out_features,), **how)) if bias else None

    def forward(self, x: Tensor) -> Tensor:                             # [..., in] -> [..., out]
        if self.bias is None:
            return self.F.linear(x, self.weight)
        return self.F.linear(x, self.weight, self.bias)


class Embedding(Module):
    """Rows of a table: ids [...] -> [..., embedding_dim].

    The initial values are standard normal, as in PyTorch. init=False leaves them to be assigned.
    """

    @hints.instead
    def __init__(self, num_embeddings: int, embedding_dim: int, *, dtype: str = "float32",
                 device: str = "numpy", key: int | None = None, init: bool = True) -> None:
        if not init:
            self.weight = empty_parameter(num_embeddings, embedding_dim, dtype=dtype, device=device)
            return
        key = random.next_key() if key is None else key
        self.weight = Parameter(random.normal(key, (num_embeddings, embedding_dim), dtype=dtype,
                                              device=device))

    def forward(self, ids: Any) -> Tensor:                              # [...] -> [..., d]
        return self.F.embedding(ids, self.weight)


class LayerNorm(Module):
    """Layer normalisation over the last axis: x̂ ⊙ weight + bias   (layer_norm.1).

    The initial weight is 1, the initial bias 0.
    """

    @hints.instead
    def __init__(self, normalized_shape: int, eps: float = 1e-5, *, dtype: str = "float32",
                 device: str = "numpy") -> None:
        there = backend.get(device)
        self.eps = eps
        self.weight = Parameter(there.array([1.0] * normalized_shape, dtype=dtype))
        self.bias = Parameter(there.array([0.0] * normalized_shape, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:                             # [..., d] -> [..., d]
        return self.F.layer_norm(x, self.weight, self.bias, eps=self.eps)

    def of_sum(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:    # 2 × [..., d]
        """x + y, and the normalisation of this sum, as on a residual stream."""
        return self.F.add_layer_norm(x, y, self.weight, self.bias, eps=self.eps)   # 2 × [..., d]


class Dropout(Module):
    """Dropout: in training mode an element is set to zero with probability p.

    The other elements are divided by 1 − p. The random numbers come from the default stream.
    """

    def __init__(self, p: float = 0.5) -> None:
        if not 0.0 <= p < 1.0:
            raise ShapeError(f"Dropout: p must lie in [0, 1), not {p}")
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return self.F.dropout(x, p=self.p, training=self.training)


class GELU(Module):
    """GELU; approximate is "none" (exact, PyTorch's default) or "tanh" (GPT-2's)."""

    def __init__(self, approximate: str = "none") -> None:
        self.approximate = approximate

    def forward(self, x: Tensor) -> Tensor:
        return self.F.gelu(x, approximate=self.approximate)


class ReLU(Module):
    """max(x, 0)."""

    def forward(self, x: Tensor) -> Tensor:
        return self.F.relu(x)


class Tanh(Module):
    """The hyperbolic tangent."""

    def forward(self, x: Tensor) -> Tensor:
        return self.F.tanh(x)


class Sequential(Module):
    """Modules that are run one after the other; their parameters are called 0.weight, 1.weight, …

    TypeError for an argument that is not a Module.
    """

    def __init__(self, *modules: Module) -> None:
        for i, module in enumerate(modules):
            if not isinstance(module, Module):
                what = f"a {type(module).__name__}"
                if isinstance(module, type):
                    what = f"the class {module.__name__}"
                raise TypeError(f"Sequential: argument {i} is {what}, not a Module; pass Modules "
                                "one by one, as in Sequential(Linear(2, 3), ReLU()) or "
                                "Sequential(*modules)")
            setattr(self, str(i), module)

    def forward(self, x: Any) -> Any:
        for module in self:
            x = module(x)
        return x

    def __iter__(self) -> Iterator[Module]:
        return (module for module in vars(self).values() if isinstance(module, Module))

    def __len__(self) -> int:
        return sum(1 for _ in iter(self))

    def __getitem__(self, i: int) -> Module:
        return [*iter(self)][i]


class ModuleList(Sequential):
    """A list of modules, as in PyTorch; a plain list works as well."""

    def __init__(self, modules: Iterable[Module] = ()) -> None:
        super().__init__(*modules)

    def forward(self, x: Any) -> Any:
        raise NotImplementedError("a ModuleList has no forward; call its modules, or use "
                                  "Sequential")
