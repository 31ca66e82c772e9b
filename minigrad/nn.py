"""Modules, with PyTorch's names and meaning.

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
    """A parameter whose values are yet to be assigned."""
    return Parameter(Tensor(backend.get(device).empty(shape, dtype=dtype)))


def forget(parameters: Iterable[Tensor], set_to_none: bool) -> None:
    """No gradients any more; with set_to_none=False zeros where there was one."""
    for p in parameters:
        if p.grad is not None:
            here, g = backend.of(p.grad.array), p.grad.array
            here.at(g)
            p.grad = None if set_to_none else Tensor(here.zeros_like(g))


# containers that name what they hold, by place or by key, and some that do not
_NAMED = (list, tuple, dict)
_UNNAMED: Any = (set, frozenset, deque, type({}.values()))
_LOOKED_AT = (Tensor, *_NAMED, *_UNNAMED)


def _missed(where: str, value: Any) -> None:
    """Refuse a leaf that requires a gradient and is no Parameter.

    `parameters()` would not list it, so that no optimiser would train it.
    """
    if isinstance(value, Parameter) or not isinstance(value, Tensor):
        return
    if value.requires_grad and value.is_leaf:
        raise TypeError(f"{where} would not be among the parameters: it is a Tensor that requires "
                        "a gradient and no Parameter; type mg.nn.Parameter(value)")


def _members(holder: Any, where: str) -> Iterator[tuple[str, Any]]:
    """The modules, parameters and containers that a module or container holds, by name.

    where: the holder's name, for errors.
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
    """Each module and container below the holder, once, in PyTorch's order.

    Their names begin with `where`. deep: also what is below the modules that are found.
    """
    for inner, value in _members(holder, where):
        if not isinstance(value, Parameter) and id(value) not in seen:
            seen.add(id(value))
            name = f"{where}.{inner}"
            yield name, value
            if deep or not isinstance(value, Module):
                yield from _below(value, name, seen, deep)


class _Import(str):
    """The name of a Python module, which itself can be neither copied nor pickled."""


class Module:
    """Parameters and other modules as attributes; call it to run `forward`.

    They may stand in lists, tuples and dicts, also nested ones, and are then called by place or
    key, as in "blocks.0.weight" and "experts.a.weight". Neither `super().__init__()` nor a
    ModuleList is needed.
    """

    training = True

    def __setattr__(self, name: str, value: Any) -> None:
        """TypeError for what is no Parameter where one was, or another leaf with a gradient."""
        where, here = f"{type(self).__name__}.{name}", vars(self).get(name)
        if isinstance(here, Parameter) and value is not None and not isinstance(value, Parameter):
            raise TypeError(f"{where} is a Parameter and cannot be replaced by a "
                            f"{type(value).__name__}; type .{name} = mg.nn.Parameter(value), or "
                            f".{name}.assign(value) to change its value")
        _missed(where, value)
        super().__setattr__(name, value)

    def __getstate__(self) -> dict[str, Any]:
        """What a copy is made from. Python modules, such as minigrad.fused, go by their names."""
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
        """Its settings and the sizes of its own parameters; each module in it has its own line."""
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
        """On its way out an error learns the name, as seen from here, of the module it is from."""
        error.modules.append(self)
        inner = error.modules[0]
        names = (name for name, module in self.named_modules() if module is inner and name)
        error.where = next(names, error.where)

    def named_children(self) -> Iterator[tuple[str, Module]]:
        """The direct submodules, each once, with their names; name.0, name.1, … in a list."""
        me = type(self).__name__
        for name, value in _below(self, me, {id(self)}, deep=False):
            if isinstance(value, Module):
                yield name[len(me) + 1:], value

    def children(self) -> Iterator[Module]:
        """The direct submodules, each once."""
        return (module for _, module in self.named_children())

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, Module]]:
        """This module and all below it, each once, with their names."""
        yield prefix, self
        me = type(self).__name__
        for name, value in _below(self, me, {id(self)}):
            if isinstance(value, Module):
                inner = name[len(me) + 1:]
                yield f"{prefix}.{inner}" if prefix else inner, value

    def modules(self) -> Iterator[Module]:
        """This module and all below it, each once."""
        return (module for _, module in self.named_modules())

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """Every parameter once, also when it is used in several places, under its first name.

        The order is PyTorch's. ValueError where two would have one name; TypeError for a set of
        parameters or modules, and for a leaf that requires a gradient and is no Parameter.
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
        """The parameters' arrays by name, a tied one once.

        They share memory with the module, so that a step of an optimiser changes them too.
        """
        return {name: p.array for name, p in self.named_parameters()}

    @hints.instead
    def load_state_dict(self, arrays: Mapping[str, Any]) -> None:
        """Copy arrays or Tensors into the parameters, cast to their dtypes, as in PyTorch.

        ShapeError names what is missing, unexpected or of another shape, TypeError what is no
        array; then nothing was changed.
        """
        if not isinstance(arrays, Mapping):
            raise TypeError(f"load_state_dict: a {type(arrays).__name__} is given; a dict of "
                            "arrays by name is needed")
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
                                 f"parameter {list(p.shape)}")
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
        """Training mode (dropout drops) or not, for this module and all below it."""
        if not isinstance(mode, bool):
            raise TypeError(f"train: mode is {mode!r}; it must be True or False")
        for module in self.modules():
            module.training = mode
        return self

    def eval(self: M) -> M:
        """Evaluation mode, for this module and all below it: dropout passes everything on."""
        return self.train(False)

    def to(self, device: str) -> Module:
        """Move every parameter, and its gradient, to a device, "numpy" or "cupy:N".

        DTypeError for a dtype, which parameters keep.
        """
        if backend.is_dtype(device):
            raise DTypeError(f"to: {device} is a dtype, and parameters keep theirs; choose it when "
                             "the module is made")
        for p in self.parameters():
            g = p.grad
            p.assign(tensor(p, device=device))
            if g is not None:
                p.grad = tensor(g, device=device)
        return self

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients of all parameters; with set_to_none=False make them zero instead."""
        forget(self.parameters(), set_to_none)


class Linear(Module):
    """y = x Wᵀ + b with W [out_features, in_features].

    Both W and b are uniform in ±1/√in_features at first, as in PyTorch.
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

    They are standard normal at first, as in PyTorch.
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
    """Layer normalisation over the last axis, with weight 1 and bias 0 at first."""

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
    """In training mode zeroes elements with probability p and divides the rest by 1 − p.

    It draws from the default stream.
    """

    def __init__(self, p: float = 0.5) -> None:
        if not 0.0 <= p < 1.0:
            raise ShapeError(f"Dropout: p must lie in [0, 1), not {p}")
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, p=self.p, training=self.training)


class GELU(Module):
    """GELU; approximate "none" (exact, PyTorch's default) or "tanh" (GPT-2's)."""

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
    """Modules one after the other; their parameters are called 0.weight, 1.weight, …

    TypeError for what is no Module.
    """

    def __init__(self, *modules: Module) -> None:
        for i, module in enumerate(modules):
            if not isinstance(module, Module):
                what = f"a {type(module).__name__}"
                if isinstance(module, type):
                    what = f"the class {module.__name__}"
                raise TypeError(f"Sequential: argument {i} is {what} and no Module; give Modules "
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
    """A list of modules, as PyTorch has it; a plain list does as well."""

    def __init__(self, modules: Iterable[Module] = ()) -> None:
        super().__init__(*modules)

    def forward(self, x: Any) -> Any:
        raise NotImplementedError("a ModuleList has no forward; call its modules, or use "
                                  "Sequential")


if not TYPE_CHECKING:
    __getattr__ = hints.missing("minigrad.nn", hints.NN, lambda: [*globals()])
