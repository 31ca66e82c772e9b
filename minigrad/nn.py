"""Modules: Linear, Embedding, LayerNorm, Dropout, GELU, ReLU, Tanh, Sequential. PyTorch's names and meaning."""
from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from . import backend, random
from . import fused as F
from .errors import MinigradError, ShapeError
from .ops.index import embedding
from .ops.linalg import linear
from .tensor import Parameter, Tensor


def empty_parameter(*shape: int, dtype: str = "float32", device: str = "numpy") -> Parameter:
    """A parameter whose values are yet to be assigned."""
    here, number = backend.get(device)
    return Parameter(here.adopt(here.namespace.empty(shape, dtype=dtype), device=number))


class Module:
    """Parameters and other modules as attributes; call it to run `forward`."""

    training = True

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(f"{type(self).__name__} has no forward")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return self.forward(*args, **kwargs)
        except MinigradError as error:
            self.locate(error)
            raise

    def locate(self, error: MinigradError) -> None:
        """On its way out an error learns which module it came from, by its name as seen from here."""
        error.modules.append(self)
        inner = error.modules[0]
        error.where = next((name for name, module in self.named_modules() if module is inner and name), error.where)

    def children(self) -> Iterator[tuple[str, Module]]:
        """Direct submodules and their names; those in a list are called name.0, name.1, …"""
        for name, value in vars(self).items():
            if isinstance(value, Module):
                yield name, value
            elif isinstance(value, (list, tuple)):
                yield from ((f"{name}.{i}", m) for i, m in enumerate(value) if isinstance(m, Module))

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, Module]]:
        """This module and all below it, with their names."""
        yield prefix, self
        for name, child in self.children():
            yield from child.named_modules(f"{prefix}.{name}" if prefix else name)

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """Every parameter once, also when it is used in several places, under its first name."""
        seen: set[int] = set()
        for prefix, module in self.named_modules():
            for name, value in vars(module).items():
                if isinstance(value, Parameter) and id(value) not in seen:
                    seen.add(id(value))
                    yield (f"{prefix}.{name}" if prefix else name), value

    def parameters(self) -> Iterator[Parameter]:
        """Every parameter once."""
        return (p for _, p in self.named_parameters())

    def state_dict(self) -> dict[str, Any]:
        """The parameters' arrays by name; they share memory with the module."""
        return {name: p.array for name, p in self.named_parameters()}

    def load_state_dict(self, arrays: Mapping[str, Any]) -> None:
        """Copy arrays into the parameters. ShapeError names what is missing, unexpected or of another shape."""
        own = dict(self.named_parameters())
        missing, unexpected = own.keys() - arrays.keys(), arrays.keys() - own.keys()
        if missing or unexpected:
            raise ShapeError(f"load_state_dict: missing {sorted(missing)}, unexpected {sorted(unexpected)}")
        for name, p in own.items():
            value = arrays[name].array if isinstance(arrays[name], Tensor) else arrays[name]
            if tuple(value.shape) != p.shape:
                raise ShapeError(f"load_state_dict: {name} is {list(value.shape)} but the parameter {list(p.shape)}")
        for name, p in own.items():
            value = arrays[name].array if isinstance(arrays[name], Tensor) else arrays[name]
            here, number = backend.get(p.device)
            p.assign(here.array(value, dtype=p.dtype, device=number))

    def train(self, mode: bool = True) -> Module:
        """Training mode (dropout drops) or not, for this module and all below it."""
        for _, module in self.named_modules():
            module.training = mode
        return self

    def eval(self) -> Module:
        return self.train(False)

    def to(self, device: str) -> Module:
        """Move every parameter to a device, "numpy" or "cupy:N"."""
        here, number = backend.get(device)
        for p in self.parameters():
            source = backend.of(p.array)
            p.assign(here.array(p.array if source is here else source.host(p.array), device=number))
        return self

    def zero_grad(self) -> None:
        """Forget the gradients of all parameters."""
        for p in self.parameters():
            if p.requires_grad:
                p.grad = None


class Linear(Module):
    """y = x Wᵀ + b with W [out_features, in_features], both uniform in ±1/√in_features at first, as in PyTorch."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True, *, dtype: str = "float32", device: str = "numpy",
                 key: int | None = None) -> None:
        keys = random.split(random.next_key() if key is None else key)
        bound = 1.0 / math.sqrt(in_features) if in_features else 0.0
        how: dict[str, Any] = {"low": -bound, "high": bound, "dtype": dtype, "device": device}
        self.weight = Parameter(random.uniform(keys[0], (out_features, in_features), **how))
        self.bias = Parameter(random.uniform(keys[1], (out_features,), **how)) if bias else None

    def forward(self, x: Tensor) -> Tensor:                                     # [..., in] -> [..., out]
        return linear(x, self.weight) if self.bias is None else linear(x, self.weight, self.bias)


class Embedding(Module):
    """Rows of a table: ids [...] -> [..., embedding_dim]; standard normal at first, as in PyTorch."""

    def __init__(self, num_embeddings: int, embedding_dim: int, *, dtype: str = "float32", device: str = "numpy",
                 key: int | None = None) -> None:
        key = random.next_key() if key is None else key
        self.weight = Parameter(random.normal(key, (num_embeddings, embedding_dim), dtype=dtype, device=device))

    def forward(self, ids: Any) -> Tensor:                                      # [...] -> [..., d]
        return embedding(ids, self.weight)


class LayerNorm(Module):
    """Layer normalisation over the last axis, with weight 1 and bias 0 at first."""

    def __init__(self, normalized_shape: int, eps: float = 1e-5, *, dtype: str = "float32", device: str = "numpy") -> None:
        here, number = backend.get(device)
        self.eps = eps
        self.weight = Parameter(here.array([1.0] * normalized_shape, dtype=dtype, device=number))
        self.bias = Parameter(here.array([0.0] * normalized_shape, dtype=dtype, device=number))

    def forward(self, x: Tensor) -> Tensor:                                     # [..., d] -> [..., d]
        return F.layer_norm(x, self.weight, self.bias, eps=self.eps)


class Dropout(Module):
    """In training mode zeroes elements with probability p and divides the rest by 1 − p; draws from the default stream."""

    def __init__(self, p: float = 0.5) -> None:
        if not 0.0 <= p < 1.0:
            raise ShapeError(f"Dropout: p must lie in [0, 1), not {p}")
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, p=self.p, training=self.training)


class _Function(Module):
    """A module without parameters."""

    def __init__(self, f: Callable[[Tensor], Tensor]) -> None:
        self._f = f

    def forward(self, x: Tensor) -> Tensor:
        return self._f(x)


class GELU(_Function):
    """GELU; approximate "none" (exact, PyTorch's default) or "tanh" (GPT-2's)."""

    def __init__(self, approximate: str = "none") -> None:
        super().__init__(lambda x: F.gelu(x, approximate=approximate))


class ReLU(_Function):
    def __init__(self) -> None:
        super().__init__(lambda x: x.relu())


class Tanh(_Function):
    def __init__(self) -> None:
        super().__init__(lambda x: x.tanh())


class Sequential(Module):
    """Modules one after the other; their parameters are called 0.weight, 1.weight, …"""

    def __init__(self, *modules: Module) -> None:
        for i, module in enumerate(modules):
            setattr(self, str(i), module)

    def forward(self, x: Any) -> Any:
        for _, module in self.children():
            x = module(x)
        return x
