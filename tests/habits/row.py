"""A row of the table, and what a line makes when it is executed."""
from __future__ import annotations

import ast
import collections
import contextlib
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

SAME = "same"
RAISES = "# raises"


class Row(NamedTuple):
    """typed: the line, with our names in the place of theirs. theirs: the same line for the peer; "=" where only
    the name of the library differs; it ends in "# raises" where the peer refuses it. ours: "same", or "error: "
    and a part of the message.
    """

    typed: str
    theirs: str
    ours: str

    def line(self, library: str) -> str:
        """The peer's line."""
        if not self.theirs.startswith("="):
            return self.theirs
        return re.sub(r"\bmg\.", f"{library}.", self.typed) + self.theirs[1:]

    @property
    def raises(self) -> bool:
        """Whether the peer refuses the line."""
        return self.theirs.endswith(RAISES)


@dataclass
class Made:
    """What a line left: its value, the names after it, or the error."""

    value: Any = None
    names: dict[str, Any] = field(default_factory=dict)
    start: dict[str, Any] = field(default_factory=dict)            # the inputs
    before: dict[str, Any] = field(default_factory=dict)           # the inputs, described before the line ran
    error: Exception | None = None


def names(line: str) -> set[str]:
    """The names that a line mentions."""
    return {node.id for node in ast.walk(ast.parse(line)) if isinstance(node, ast.Name)}


def execute(line: str, library: dict[str, Any], space: dict[str, Any], describe: Callable[[Any], Any] | None = None) -> Made:
    """Run the statements of a line on the inputs of `space`; the value is that of the last one, if it is an expression."""
    tree = ast.parse(line)
    made = Made(start=space)
    if describe is not None:
        made.before = {name: describe(value) for name, value in space.items()}
    given = {**library, **space}
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        try:
            exec(compile(tree, "<row>", "exec"), given)
            if isinstance(last, ast.Expr):
                made.value = eval(compile(ast.Expression(last.value), "<row>", "eval"), given)
            if isinstance(made.value, Iterator):
                made.value = list(made.value)
        except Exception as error:
            made.error = error
    made.names = {name: value for name, value in given.items() if name[:2] != "__" and value is not library.get(name, made)}
    return made


# ── values as plain data ──
@dataclass
class Numbers:
    """An array, a Tensor or a number. dtype: its name, or the Python type's. live: of a leaf, whether it wants a gradient."""

    array: np.ndarray
    dtype: str
    live: bool | None = None
    tensor: Any = None


class Opaque:
    """What is not compared: functions, handles and so on."""


def as_data(value: Any, known: Callable[[Any], Any]) -> Any:
    """The value in lists, dicts, strings, None, Numbers and Opaque; `known` tells what it knows of."""
    found = known(value)
    if found is not NotImplemented:
        return found
    if value is None or isinstance(value, (str, bytes)):
        return value
    if isinstance(value, (bool, int, float)):
        return Numbers(np.asarray(value), type(value).__name__)
    if isinstance(value, np.dtype) or (isinstance(value, type) and issubclass(value, np.generic)):
        return str(np.dtype(value))
    if isinstance(value, (np.ndarray, np.generic)):
        return Numbers(np.array(value), str(value.dtype))
    if isinstance(value, collections.abc.Mapping):
        return {str(key): as_data(one, known) for key, one in value.items()}
    if isinstance(value, (list, tuple, collections.abc.ValuesView)):
        return [as_data(one, known) for one in value]
    return Opaque()


def numbers_in(data: Any) -> Iterator[Numbers]:
    """All Numbers in data."""
    if isinstance(data, Numbers):
        yield data
    elif isinstance(data, (dict, list)):
        for one in data.values() if isinstance(data, dict) else data:
            yield from numbers_in(one)


# ── comparing ──
NUMBERS = ("bool", "int", "float")                      # Python's, which have no width


def kind(dtype: str) -> str:
    """The class of a dtype: b, i or f."""
    return dtype.lstrip("bu")[0] if dtype not in ("bool", "bfloat16") else "b" if dtype == "bool" else "f"


def eps(dtype: str) -> float:
    """The distance from 1 to the next number, of floats."""
    return {"float16": 2.0**-10, "bfloat16": 2.0**-7, "float32": 2.0**-23}.get(dtype, 2.0**-52)


def unlike(ours: Any, theirs: Any, path: str, strict: bool) -> Iterator[tuple[str, str]]:
    """Where, and in what, ours differs from theirs. strict: to the dtype, and not only to its class."""
    if isinstance(theirs, Opaque) or isinstance(ours, Opaque):
        if type(ours) is not type(theirs):
            yield path, f"{short(ours)} and not {short(theirs)}"
    elif isinstance(theirs, Numbers) and isinstance(ours, Numbers):
        if (what := unlike_numbers(ours, theirs, strict)) is not None:
            yield path, what
    elif isinstance(theirs, dict) and isinstance(ours, dict):
        if ours.keys() != theirs.keys():
            yield path, f"{sorted(ours)} and not {sorted(theirs)}"
            return
        for key in theirs:
            yield from unlike(ours[key], theirs[key], f"{path}.{key}", strict)
    elif isinstance(theirs, list) and isinstance(ours, list):
        if len(ours) != len(theirs):
            yield path, f"{len(ours)} parts and not {len(theirs)}"
            return
        for at, (one, other) in enumerate(zip(ours, theirs)):
            yield from unlike(one, other, f"{path}[{at}]", strict)
    elif type(ours) is not type(theirs) or ours != theirs:
        yield path, f"{short(ours)} and not {short(theirs)}"


def unlike_numbers(ours: Numbers, theirs: Numbers, strict: bool) -> str | None:
    """In what the numbers differ, shape and dtype first."""
    both = f"{short(ours)} and not {short(theirs)}"
    if ours.array.shape != theirs.array.shape:
        return both
    python = ours.dtype in NUMBERS or theirs.dtype in NUMBERS
    if kind(ours.dtype) != kind(theirs.dtype) or (strict and not python and ours.dtype != theirs.dtype):
        return both
    if strict and ours.live is not None and theirs.live is not None and ours.live != theirs.live:
        return f"requires_grad is {ours.live} and not {theirs.live}"
    return None if near(ours.array, theirs.array, max(eps(ours.dtype), eps(theirs.dtype))) else both


def near(ours: np.ndarray, theirs: np.ndarray, unit: float) -> bool:
    """Equal up to rounding: no sum here has more than 24 terms and no line more than a few steps, so 100 units of
    float32 of the largest number; of 16 bits, whose sums are float32's, 4. NaN equals NaN.
    """
    if ours.dtype.kind not in "fV" and theirs.dtype.kind not in "fV":
        return bool(np.array_equal(ours, theirs))
    a, b = ours.astype(np.float64), theirs.astype(np.float64)
    finite = np.isfinite(b)
    if not np.array_equal(np.isfinite(a), finite) or not np.array_equal(a[~finite], b[~finite], equal_nan=True):
        return False
    largest = max(1.0, float(np.abs(b[finite]).max(initial=0.0)))
    return float(np.abs(a[finite] - b[finite]).max(initial=0.0)) <= (4 if unit > 1e-4 else 100) * unit * largest


def short(data: Any) -> str:
    """Data in a few characters."""
    if isinstance(data, Numbers):
        values = np.array2string(np.asarray(data.array), precision=4, separator=",", threshold=8).replace("\n", "")
        return f"{data.dtype}{list(data.array.shape)} {values}"[:120]
    if isinstance(data, list):
        return f"[{', '.join(map(short, data))}]"[:120]
    return "an object" if isinstance(data, Opaque) else " ".join(repr(data).split())[:120]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without warnings."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        yield
