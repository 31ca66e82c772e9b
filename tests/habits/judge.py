"""Both run a row; what came of it is compared: the value, the names afterwards, and the gradients."""
from __future__ import annotations

import ast
import copy
import functools
import io
import math
import operator
import pickle
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
import torch.nn.attention.bias
import torch.utils.checkpoint

import minigrad as mg

from . import inputs
from .row import NUMBERS, RAISES, SAME, Made, Numbers, Row, as_data, eps, execute, names, near, numbers_in, quiet, short, unlike

PLAIN = {"np": np, "math": math, "copy": copy, "pickle": pickle, "io": io, "operator": operator, "functools": functools,
         "threading": threading, "ThreadPoolExecutor": ThreadPoolExecutor, "set_weights": inputs.set_weights}
OURS = {**PLAIN, "mg": mg, "nn": mg.nn, "optim": mg.optim}
TORCH = {**PLAIN, "torch": torch, "nn": torch.nn, "optim": torch.optim, "F": torch.nn.functional}


def known_to_us(value: Any) -> Any:
    """Our objects as data."""
    if isinstance(value, mg.Tensor):
        array = np.array(value.numpy())
        data = Numbers(array, str(array.dtype), value.requires_grad if value.is_leaf else None, value)
        return data if value.grad is None or not value.is_leaf else {"value": data, "grad": known_to_us(value.grad)}
    if isinstance(value, mg.nn.Module):
        parameters = {name.removeprefix("transformer."): known_to_us(p) for name, p in value.named_parameters()}
        return {"parameters": parameters, "training": bool(value.training)}
    if isinstance(value, mg.optim.Optimizer):
        return [{"lr": as_data(group["lr"], known_to_us)} for group in value.param_groups]
    return NotImplemented


def known_to_torch(value: Any) -> Any:
    """PyTorch's objects as data."""
    if isinstance(value, torch.Tensor):
        with quiet():
            array = value.detach().to(torch.float32 if value.dtype == torch.bfloat16 else value.dtype).numpy().copy()
            grad = value.grad if value.is_leaf else None
        data = Numbers(array, str(value.dtype).removeprefix("torch."), value.requires_grad if value.is_leaf else None, value)
        return data if grad is None else {"value": data, "grad": known_to_torch(grad)}
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    if isinstance(value, torch.device):
        return "numpy" if str(value) == "cpu" else str(value)
    if isinstance(value, torch.nn.Module):
        parameters = {name.removeprefix("transformer."): known_to_torch(p) for name, p in value.named_parameters()}
        return {"parameters": parameters, "training": value.training}
    if isinstance(value, torch.optim.Optimizer):
        return [{"lr": as_data(group["lr"], known_to_torch)} for group in value.param_groups]
    return NotImplemented


def ours_as_data(value: Any) -> Any:
    return as_data(value, known_to_us)


def theirs_as_data(value: Any) -> Any:
    return as_data(value, known_to_torch)


def without_tensors(value: Any) -> Any:
    return as_data(value, lambda value: NotImplemented)


class Peer:
    """PyTorch: its lines run on its tensors, and its autograd has the gradients."""

    name = "PyTorch"
    library = "torch"
    space: dict[str, Any] = TORCH
    ours_space: dict[str, Any] = OURS
    strict = True
    unit = 2.0**-23                                     # of a gradient, at least: float32

    def line(self, row: Row) -> str:
        """The peer's line."""
        return row.line(self.library)

    def used(self, row: Row) -> set[str]:
        """The inputs of both lines: what one of them does to one, the other is asked for."""
        return names(row.typed) | names(self.line(row))

    def ours(self, row: Row) -> Made:
        return execute(row.typed, self.ours_space, inputs.tensors(self.used(row), mg), ours_as_data)

    def theirs(self, row: Row) -> Made:
        return execute(self.line(row), self.space, inputs.tensors(self.used(row), torch), theirs_as_data)

    def data(self, made: Made) -> dict[str, Any]:
        return {"value": theirs_as_data(made.value), **{name: theirs_as_data(v) for name, v in made.names.items()}}

    def gradients(self, row: Row, made: Made, ours: dict[str, Any]) -> dict[str, np.ndarray] | None:
        """The gradient of a sum of all that was made, by name of a leaf; None where the graph is used up."""
        parts = [(n.tensor * torch.tensor(inputs.weights(n.array.shape), dtype=n.tensor.dtype)).sum().double()
                 for n in results(self.data(made)) if n.tensor.requires_grad]
        if not parts:
            return {}
        wanted = {name: value for name, value in leaves(made.start, torch.Tensor, torch.nn.Module) if value.requires_grad}
        try:
            found = torch.autograd.grad(sum(parts), list(wanted.values()), retain_graph=True, allow_unused=True)
        except RuntimeError:
            return None
        return {name: np.zeros(value.shape) if g is None else g.detach().double().numpy()
                for (name, value), g in zip(wanted.items(), found)}


class NumPy(Peer):
    """NumPy: its lines run on arrays, and a difference quotient in float64 has the gradients."""

    name = "NumPy"
    library = "np"
    space = PLAIN
    strict = False
    unit = 2.0**-20                                     # difference quotients
    step = 2.0**-13                                     # its square, a sixth of a third derivative below 100: 3e-7

    def theirs(self, row: Row) -> Made:
        return execute(self.line(row), self.space, inputs.arrays(self.used(row)), without_tensors)

    def data(self, made: Made) -> dict[str, Any]:
        return {"value": without_tensors(made.value), **{name: without_tensors(v) for name, v in made.names.items()}}

    def gradients(self, row: Row, made: Made, ours: dict[str, Any]) -> dict[str, np.ndarray] | None:
        wanted = [name for name in made.before if name in inputs.LEAVES and inputs.LEAVES[name].dtype == np.float32]
        kept = {name for name in wanted if isinstance(n := ours.get(name), Numbers) and n.tensor.is_leaf}

        def total(name: str, at: tuple[int, ...], by: float) -> float:
            given = inputs.arrays(self.used(row), np.float64)
            given[name][at] += by
            run = execute(self.line(row), self.space, given)
            data = {key: one for key, one in self.data(run).items() if key not in kept}
            made = [n for n in numbers_in(data) if n.array.dtype.kind == "f" and n.dtype not in NUMBERS]
            return float(sum((n.array * inputs.weights(n.array.shape)).sum() for n in made))

        return {name: np.array([(total(name, at, self.step) - total(name, at, -self.step)) / (2.0 * self.step)
                                for at in np.ndindex(inputs.LEAVES[name].shape)]).reshape(inputs.LEAVES[name].shape)
                for name in wanted}


def leaves(names: dict[str, Any], tensor: type, module: type) -> Iterator[tuple[str, Any]]:
    """The leaves among the names, those of modules too."""
    for name, value in names.items():
        if isinstance(value, tensor) and value.is_leaf:
            yield name, value
        elif isinstance(value, module):
            yield from ((f"{name}.{key}", p) for key, p in value.named_parameters())


def results(data: dict[str, Any]) -> list[Numbers]:
    """What the line made, each object once: Tensors that are the value, or that a name means and that are no leaf."""
    seen: dict[int, Numbers] = {}
    for name, one in data.items():
        for n in numbers_in(one):
            if n.tensor is not None and (name == "value" or not n.tensor.is_leaf):
                seen.setdefault(id(n.tensor), n)
    return list(seen.values())


def our_gradients(made: Made, data: dict[str, Any]) -> dict[str, np.ndarray]:
    """As `Peer.gradients`, by our own backward pass. What it refuses is raised."""
    parts = []
    for n in results(data):
        if n.tensor.requires_grad:
            factors = mg.tensor(np.asarray(inputs.weights(n.array.shape), n.array.dtype))
            parts.append((n.tensor * factors).sum().astype("float64"))
    wanted = {name: value for name, value in leaves(made.start, mg.Tensor, mg.nn.Module) if value.requires_grad}
    if not parts or not wanted:
        return {}
    found = mg.gradients(functools.reduce(operator.add, parts), list(wanted.values()), retain_graph=True)
    return {name: np.asarray(g.numpy(), np.float64) for name, g in zip(wanted, found)}


def verdict(row: Row, peer: Peer) -> str:
    """"same", "error: message", or what is wrong: "different: …", "nothing: …", "accepted: …", "row: …"."""
    theirs, ours = peer.theirs(row), peer.ours(row)
    if (theirs.error is not None) != row.raises:
        return f"row: the peer {'raises ' + repr(theirs.error) if theirs.error else 'does not raise'}"
    if theirs.error is not None and isinstance(theirs.error, (NameError, SyntaxError)):
        return f"row: {theirs.error!r}"
    if isinstance(ours.error, (NameError, SyntaxError)):
        return f"row: {ours.error!r}"
    if ours.error is not None:
        after = {name: ours_as_data(value) for name, value in ours.names.items() if name in ours.before}
        for where, what in unlike(after, ours.before, "", True) if simple(row.typed) else ():
            return f"different: refused, but {where.strip('.')} is {what}"
        return told(ours.error)
    if theirs.error is not None:
        return f"accepted: {short(ours_as_data(ours.value))}; the peer: {type(theirs.error).__name__}: {theirs.error}"[:300]
    try:
        mine = {"value": ours_as_data(ours.value), **{name: ours_as_data(v) for name, v in ours.names.items()}}
    except Exception as error:                          # a Tensor that cannot be looked at
        return told(error)
    other = peer.data(theirs)
    with quiet():
        for where, what in unlike(mine, other, "", peer.strict):
            return f"{'nothing' if nothing(where, mine, ours.before) else 'different'}: {where.strip('.')} is {what}"
        expected = peer.gradients(row, theirs, mine)
        if expected is None:
            return SAME
        try:
            found = our_gradients(ours, mine)
        except Exception as error:
            return told(error)
    unit = max([peer.unit, *(eps(n.dtype) for n in numbers_in(mine) if n.array.dtype.kind in "fV")])
    for name in expected | found:
        g = expected[name] if name in expected else np.zeros_like(found[name])
        got = found[name] if name in found else np.zeros_like(g)
        if not near(got, g, unit):
            cut = "nothing: the graph is cut" if name not in found else "different"
            return f"{cut}: the gradient of {name} is {short(Numbers(got, 'float'))} and not {short(Numbers(g, 'float'))}"
    return SAME


def simple(line: str) -> bool:
    """Whether a line is one simple statement, so that nothing may be changed where it is refused."""
    body = ast.parse(line).body
    return len(body) == 1 and isinstance(body[0], (ast.Expr, ast.Assign, ast.AugAssign, ast.Delete))


def told(error: Exception) -> str:
    """What the user is told, in a line."""
    return "error: " + " ".join(str(error).split())


def nothing(where: str, mine: dict[str, Any], before: dict[str, Any]) -> bool:
    """Whether the difference is that nothing came of the line."""
    name = where.strip(".").partition(".")[0].partition("[")[0]
    if mine.get(name, RAISES) is None:
        return True
    return name in before and not list(unlike(mine[name], before[name], "", True))


def kept(row: Row, peer: Peer) -> str | None:
    """None where the row tells the truth; else what is so."""
    found = verdict(row, peer)
    if row.ours == SAME:
        return None if found == SAME else found
    fragment = row.ours.removeprefix("error: ")
    return None if found.startswith("error: ") and fragment in found else found
