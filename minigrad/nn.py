"""Modules, which have PyTorch's names and meaning.

They are Linear, Embedding, LayerNorm, Dropout, GELU, ReLU, Tanh, Sequential and ModuleList.
"""
from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

from . import backend, hints, random
from . import fused as F
from .engine.making import Parameter, tensor
from .engine.tensor import Tensor
from .errors import DTypeError, MinigradError, ShapeError
from .ops.elementwise import relu, tanh
from .ops.index import embedding
from .ops.linalg import linear

M = TypeVar("M", bound="Module")


def empty_parameter(*shape: int, dtype: str = "float32", device: str = "numpy") -> Parameter:
    """A parameter whose values must still be assigned."""
    return Parameter(Tensor(backend.get(device).empty(shape, dtype=dtype)))


def forget(parameters: Iterable[Tensor], set_to_none: bool) -> None:
    """Drop the gradients; with set_to_none=False replace each of them by zeros."""
    for p in parameters:
        if p.grad is not None:
            here, g = backend.of(p.grad.array), p.grad.array
            here.at(g)
            p.grad = None if set_to_none else Tensor(here.zeros_like(g))


# containers whose contents have names (an index or a key), and containers whose contents have none
_NAMED = (list, tuple, dict)
_UNNAMED: Any = (set, frozenset, deque, type({}.values()))
_LOOKED_AT = (Tensor, *_NAMED, *_UNNAMED)


def _missed(where: str, value: Any) -> None:
    """Raise TypeError for a leaf that requires a gradient and is not a Parameter.

    `parameters()` would not list such a leaf, so no optimiser would train it.
    """
    if isinstance(value, Parameter) or not isinstance(value, Tensor):
        return
    if value.requires_grad and value.is_leaf:
        raise TypeError(f"{where} would not be among the parameters: it is a Tensor that requires "
                        "a gradient, but not a Parameter; use mg.nn.Parameter(value)")


def _members(holder: Any, where: str) -> Iterator[tuple[str, Any]]:
    """The modules, parameters and containers in a module or a container, with their names.

    where: the holder's name, for error messages.
    """
    holder = vars(holder) if isinstance(holder, Module) else holder
    for name, value in list(holder.items() if isinstance(holder, dict) else enumerate(holder)):
        if isinstance(value, Module):
            yield str(name), value
        elif isinstance(value, _LOOKED_AT):
            if isinstance(value, (Parameter, *_NAMED)):
                yield str(name), value
            elif isinstance(value, Tensor):
                _missed(f"{where}.{name}", value)
            elif any(isinstance(v, (Module, Parameter)) for v in value):
                raise TypeError(f"{where}.{name} is a {type(value).__name__}, in which modules and "
                                f"parameters have no names; use a list or a dict")


def _below(holder: Any, where: str, seen: set[int], deep: bool = True) -> Iterator[tuple[str, Any]]:
    """Each module and container inside the holder, once, in PyTorch's order.

    Their names begin with `where`. deep: the modules that are found are searched too.
    """
    for inner, value in _members(holder, where):
        if not isinstance(value, Parameter) and id(value) not in seen:
            seen.add(id(value))
            name = f"{where}.{inner}"
            yield name, value
            if deep or not isinstance(value, Module):
                yield from _below(value, name, seen, deep)


class _Import(str):
    """The name of a Python module: a name can be copied and pickled, the module itself cannot."""


class Module:
    """A module has parameters and other modules as attributes; calling it runs `forward`.

    The attributes may also be lists, tuples and dicts of them, nested or not. The index or the key
    is then part of the name, as in "blocks.0.weight" and "experts.a.weight". Neither
    `super().__init__()` nor a ModuleList is needed.
    """

    training = True

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute.

        TypeError if a Parameter would be replaced by something else, or if the value is a leaf that
        requires a gradient and is not a Parameter.
        """
        where, here = f"{type(self).__name__}.{name}", vars(self).get(name)
        if isinstance(here, Parameter) and value is not None and not isinstance(value, Parameter):
            raise TypeError(f"{where} is a Parameter and cannot be replaced by a "
                            f"{type(value).__name__}; use .{name} = mg.nn.Parameter(value), or "
                            f".{name}.assign(value) to change its value")
        _missed(where, value)
        super().__setattr__(name, value)

    def __getstate__(self) -> dict[str, Any]:
        """The attributes for a copy; a Python module, such as minigrad.fused, becomes its name."""
        return {k: _Import(v.__name__) if isinstance(v, ModuleType) else v
                for k, v in vars(self).items()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update({k: import_module(v) if type(v) is _Import else v
                           for k, v in state.items()})

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(f"{type(self).__name__} has no forward")

    if not TYPE_CHECKING:

        def __getattr__(self, name):
            if name.startswith("__"):
                raise AttributeError(name)
            raise hints.unknown(type(self).__name__, name, hints.NN_MODULE,
                                [*vars(self), *dir(type(self))])

    def __repr__(self) -> str:
        """The settings and the sizes of the parameters; each submodule has a line of its own."""
        inner = [f"  ({name}): " + repr(module).replace("\n", "\n  ")
                 for name, module in self.named_children()]
        own = [f"{name}={p.dtype}{list(p.shape)}" for name, p in vars(self).items()
               if isinstance(p, Parameter)]
        own += [f"{name}={value!r}" for name, value in vars(self).items()
                if isinstance(value, int | float | str) and name != "training"]
        head, end = f"{type(self).__name__}({', '.join(own)}", ")"
        return "\n".join([head, *inner, end]) if inner else head + end

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return self.forward(*args, **kwargs)
        except MinigradError as error:
            self.locate(error)
            raise
        except TypeError:
            hints.refuse(self.forward, kwargs)
            raise

    def locate(self, error: MinigradError) -> None:
        """Set `error.where` to the name that the module which raised the error has in this one."""
        error.modules.append(self)
        inner = error.modules[0]
        names = (name for name, module in self.named_modules() if module is inner and name)
        error.where = next(names, error.where)

    def named_children(self) -> Iterator[tuple[str, Module]]:
        """The direct submodules, each once, with their names: name.0, name.1, … for a list."""
        me = type(self).__name__
        for name, value in _below(self, me, {id(self)}, deep=False):
            if isinstance(value, Module):
                yield name[len(me) + 1:], value

    def children(self) -> Iterator[Module]:
        """The direct submodules, each once."""
        return (module for _, module in self.named_children())

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, Module]]:
        """This module and all modules inside it, each once, with their names."""
        yield prefix, self
        me = type(self).__name__
        for name, value in _below(self, me, {id(self)}):
            if isinstance(value, Module):
                inner = name[len(me) + 1:]
                yield f"{prefix}.{inner}" if prefix else inner, value

    def modules(self) -> Iterator[Module]:
        """This module and all modules inside it, each once."""
        return (module for _, module in self.named_modules())

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """Every parameter once, under its first name, even when it is used several times.

        The order is PyTorch's. ValueError if two parameters would have the same name. TypeError for
        a set of parameters or modules, and for a leaf that requires a gradient and is not a
        Parameter.
        """
        me = type(self).__name__
        found, names = set[int](), set[str]()
        for where, holder in [(me, self), *_below(self, me, {id(self)})]:
            for inner, value in _members(holder, where):
                if isinstance(value, Parameter) and id(value) not in found:
                    name = f"{where}.{inner}"[len(me) + 1:]
                    if name in names:
                        raise ValueError(f"{me}: two parameters would be called {name!r}; "
                                         f"rename an attribute or a key")
                    found.add(id(value))
                    names.add(name)
                    yield name, value

    def parameters(self) -> Iterator[Parameter]:
        """Every parameter once."""
        return (p for _, p in self.named_parameters())

    def state_dict(self) -> dict[str, Any]:
        """The parameters' arrays by name; a tied parameter is listed once.

        The arrays share memory with the module, so a step of an optimiser changes them too.
        """
        return {name: p.array for name, p in self.named_parameters()}

    @hints.instead
    def load_state_dict(self, arrays: Mapping[str, Any]) -> None:
        """Copy arrays or Tensors into the parameters, cast to the parameters' dtypes (PyTorch's).

        ShapeError names the arrays that are missing, unexpected or of another shape; TypeError
        names a value that is not an array. After an error no parameter has changed.
        """
        if not isinstance(arrays, Mapping):
            raise TypeError(f"load_state_dict: the argument is a {type(arrays).__name__}; a dict "
                            "from names to arrays is needed")
        own = dict(self.named_parameters())
        missing, unexpected = own.keys() - arrays.keys(), arrays.keys() - own.keys()
        if missing or unexpected:
            raise ShapeError(f"load_state_dict: missing {sorted(missing)}, "
                             f"unexpected {sorted(unexpected, key=str)}")
        for name, p in own.items():
            value = arrays[name]
            if not hasattr(value, "shape"):
                raise TypeError(f"load_state_dict: {name} is a {type(value).__name__}; "
                                f"an array or a Tensor is needed")
            if tuple(value.shape) != p.shape:
                raise ShapeError(f"load_state_dict: {name} is {list(value.shape)} but the "
                                 f"parameter is {list(p.shape)}")
        for name, p in own.items():                     # in the memory that state_dict() shares
            backend.of(p.array).at(p.array)
            p.array[...] = tensor(arrays[name], dtype=p.dtype, device=p.device).array
            p.changed()

    def requires_grad_(self: M, on: bool = True) -> M:
        """Make every parameter want a gradient, or stop wanting one."""
        for p in self.parameters():
            p.requires_grad_(on)
        return self

    def train(self: M, mode: bool = True) -> M:
        """Switch training mode, in which dropout is active, on or off; for all submodules too."""
        if not isinstance(mode, bool):
            raise TypeError(f"train: mode is {mode!r}; it must be True or False")
        for module in self.modules():
            module.training = mode
        return self

    def eval(self: M) -> M:
        """Switch training mode off, for all submodules too: dropout then changes nothing."""
        return self.train(False)

    def to(self, device: str) -> Module:
        """Move every parameter, and its gradient, to a device, "numpy" or "cupy:N".

        DTypeError for a dtype: the dtype of a parameter cannot be changed.
        """
        if backend.is_dtype(device):
            raise DTypeError(f"to: {device} is a dtype, and the dtype of a parameter cannot be "
                             "changed; choose it when the module is made")
        for p in self.parameters():
            g = p.grad
            p.assign(tensor(p, device=device))
            if g is not None:
                p.grad = tensor(g, device=device)
        return self

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients of all parameters; with set_to_none=False make them zero instead."""
        forget(self.parameters(), set_to_none)


class Linear(Module):
    """y = x Wᵀ + b with W [out_features, in_features].

    The initial values of W and b are uniform in ±1/√in_features, as in PyTorch.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True, *,
                 dtype: str = "float32", device: str = "numpy", key: int | None = None) -> None:
        keys = random.split(random.next_key() if key is None else key)
        bound = 1.0 / math.sqrt(in_features) if in_features else 0.0
        how: dict[str, Any] = {"low": -bound, "high": bound, "dtype": dtype, "device": device}
        self.weight = Parameter(random.uniform(keys[0], (out_features, in_features), **how))
        self.bias = Parameter(random.uniform(keys[1], (out_features,), **how)) if bias else None

    def forward(self, x: Tensor) -> Tensor:                             # [..., in] -> [..., out]
        return linear(x, self.weight) if self.bias is None else linear(x, self.weight, self.bias)


class Embedding(Module):
    """Rows of a table: ids [...] -> [..., embedding_dim].

    The initial values are standard normal, as in PyTorch.
    """

    @hints.instead
    def __init__(self, num_embeddings: int, embedding_dim: int, *, dtype: str = "float32",
                 device: str = "numpy", key: int | None = None) -> None:
        key = random.next_key() if key is None else key
        self.weight = Parameter(random.normal(key, (num_embeddings, embedding_dim), dtype=dtype,
                                              device=device))

    def forward(self, ids: Any) -> Tensor:                              # [...] -> [..., d]
        return embedding(ids, self.weight)


class LayerNorm(Module):
    """Layer normalisation over the last axis; the initial weight is 1, the initial bias 0."""

    @hints.instead
    def __init__(self, normalized_shape: int, eps: float = 1e-5, *, dtype: str = "float32",
                 device: str = "numpy") -> None:
        there = backend.get(device)
        self.eps = eps
        self.weight = Parameter(there.array([1.0] * normalized_shape, dtype=dtype))
        self.bias = Parameter(there.array([0.0] * normalized_shape, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:                             # [..., d] -> [..., d]
        return F.layer_norm(x, self.weight, self.bias, eps=self.eps)


class Dropout(Module):
    """Dropout: in training mode an element is set to zero with probability p.

    The other elements are divided by 1 − p. The random numbers come from the default stream.
    """

    def __init__(self, p: float = 0.5) -> None:
        if not 0.0 <= p < 1.0:
            raise ShapeError(f"Dropout: p must lie in [0, 1), not {p}")
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, p=self.p, training=self.training)


class GELU(Module):
    """GELU; approximate is "none" (exact, PyTorch's default) or "tanh" (GPT-2's)."""

    def __init__(self, approximate: str = "none") -> None:
        self.approximate = approximate

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(x, approximate=self.approximate)


class ReLU(Module):
    """max(x, 0)."""

    def forward(self, x: Tensor) -> Tensor:
        return relu(x)


class Tanh(Module):
    """The hyperbolic tangent."""

    def forward(self, x: Tensor) -> Tensor:
        return tanh(x)


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


if not TYPE_CHECKING:
    __getattr__ = hints.missing("minigrad.nn", hints.NN, lambda: [*globals()])
