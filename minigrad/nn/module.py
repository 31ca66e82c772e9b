"""What a module is: parameters and modules by name, training mode, saving and moving."""
from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

from .. import backend, hints
from ..engine.making import Parameter, tensor
from ..engine.tensor import Tensor
from ..errors import DTypeError, MinigradError, ShapeError
from . import functional

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

    F: the functions that `forward` calls: `minigrad.nn.functional`, or another object with the same
    functions, such as `minigrad.nn.unfused`.
    """

    training = True
    F: Any = functional

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
