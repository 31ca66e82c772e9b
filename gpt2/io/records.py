"""Files that are read within bounds, and records in JSON whose fields have types and ranges.

The schema of a record is a type, as in an annotation: int, float, str, bool, None, Any, a union, a
Literal, list[T], dict[str, T], a TypedDict, or Annotated[T, rule, …] with the rules `Between`,
`Size` and `Like`. An int has at most 64 bits, a float is finite, and a str is valid Unicode.
"""
from __future__ import annotations

import functools
import json
import math
import os
import re
import stat
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from reprlib import repr as brief
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    BinaryIO,
    Literal,
    NamedTuple,
    TypeVar,
    Union,
    cast,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

from ..errors import MissingError

MB = 1 << 20
SEAL = "crc32"                                          # the field with a record's own checksum
T = TypeVar("T")


class Wrong(ValueError):
    """What is wrong with a value, and at which keys and indices of its record."""

    def __init__(self, what: str, *place: str | int) -> None:
        self.what, self.place = what, place

    def inside(self, key: str | int) -> Wrong:
        """The same, of a record that has this one under `key`."""
        return Wrong(self.what, key, *self.place)

    def __str__(self) -> str:
        names = [f"[{key}]" if isinstance(key, int) else
                 f".{key}" if re.fullmatch(r"[\w.-]{1,80}", key) else f".{brief(key)}"
                 for key in self.place]
        return f"{''.join(names).removeprefix('.')} {self.what}".lstrip()


# ── rules of a schema ──
class Between(NamedTuple):
    """A number from `low` to `high`, both included."""

    low: float
    high: float = math.inf

    def holds(self, value: Any) -> bool:
        return bool(self.low <= value <= self.high)

    def __str__(self) -> str:
        return f"from {self.low} on" if self.high == math.inf else f"from {self.low} to {self.high}"


class Size(NamedTuple):
    """A list, an object or a text with `low` to `high` items, fields or characters."""

    low: int
    high: int

    def holds(self, value: Any) -> bool:
        return self.low <= len(value) <= self.high

    def __str__(self) -> str:
        return f"of size {self.low} to {self.high}"


class Like(NamedTuple):
    """A text that a regular expression describes. said: what an error calls such a text."""

    pattern: str
    said: str

    def holds(self, value: Any) -> bool:
        return re.fullmatch(self.pattern, value) is not None

    def __str__(self) -> str:
        return f"that is {self.said}"


Count = Annotated[int, Between(0, 2**53)]               # 2⁵³: a float has it exactly
Sha256 = Annotated[str, Like("[0-9a-f]{64}", "a sha256 in hexadecimal")]


# ── values ──
def checked(value: Any, schema: Any) -> Any:
    """The value, if it is as the schema says. Wrong if it is not.

    Of a TypedDict the result has its fields only, whatever else the value has, and a whole number
    for a float becomes a float.
    """
    return _check_of(schema)[0](value)


def _text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:                          # half a surrogate pair, as in "\ud800"
        return False
    return True


def _number(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:                               # JSON has integers of any length
        return False


# the check of each plain type, and its name in an error
_PLAIN: dict[Any, tuple[Callable[[Any], bool], str]] = {
    int: (lambda v: type(v) is int and -2**63 <= v < 2**64, "an integer of 64 bits"),
    float: (lambda v: type(v) in (int, float) and _number(v), "a finite number"),
    str: (lambda v: type(v) is str and _text(v), "a text"),
    bool: (lambda v: type(v) is bool, "true or false"),
    NoneType: (lambda v: v is None, "null"),
    Any: (lambda v: True, "anything"),
}


@functools.cache
def _check_of(schema: Any) -> tuple[Callable[[Any], Any], str]:
    """A function that checks a value, and the name of what the schema describes."""
    origin, args = get_origin(schema), get_args(schema)
    if schema is None or schema in _PLAIN:
        kind = NoneType if schema is None else schema
        return functools.partial(_plain, kind), _PLAIN[kind][1]
    if origin is Annotated:
        inner, name = _check_of(args[0])
        name = " ".join([{"an integer of 64 bits": "an integer"}.get(name, name),
                         *map(str, args[1:])])
        return functools.partial(_ruled, inner, args[1:], name), name
    if origin in (Union, UnionType):
        options = [_check_of(arg) for arg in args]
        name = " or ".join(option[1] for option in options)
        return functools.partial(_either, options, name), name
    if origin is Literal:
        # Python keeps one Literal for all orders of its values, in the order that came first
        name = " or ".join(sorted(json.dumps(arg) for arg in args))
        return functools.partial(_one_of, args, name), name
    if origin is list:
        return functools.partial(_list, _check_of(args[0])[0]), "a list"
    if origin is dict:
        return functools.partial(_mapping, _check_of(args[1])[0]), "an object"
    assert is_typeddict(schema), schema
    checks = {name: _check_of(own)[0]
              for name, own in get_type_hints(schema, include_extras=True).items()}
    return functools.partial(_fields, checks, schema.__required_keys__), "an object"


def _plain(kind: Any, value: Any) -> Any:
    holds, name = _PLAIN[kind]
    if not holds(value):
        raise Wrong(f"must be {name}, not {brief(value)}")
    return float(value) if kind is float else value


def _ruled(inner: Callable[[Any], Any], rules: tuple[Any, ...], name: str, value: Any) -> Any:
    found = inner(value)
    for rule in rules:
        if not rule.holds(found):
            raise Wrong(f"must be {name}, not {brief(value)}")
    return found


def _either(options: list[tuple[Callable[[Any], Any], str]], name: str, value: Any) -> Any:
    wrong: list[Wrong] = []
    for check, _ in options:
        try:
            return check(value)
        except Wrong as error:
            wrong.append(error)
    deepest = max(wrong, key=lambda error: len(error.place))
    raise deepest if deepest.place else Wrong(f"must be {name}, not {brief(value)}")


def _one_of(values: tuple[Any, ...], name: str, value: Any) -> Any:
    if not any(type(value) is type(one) and value == one for one in values):
        raise Wrong(f"must be {name}, not {brief(value)}")
    return value


def _list(check: Callable[[Any], Any], value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise Wrong(f"must be a list, not {brief(value)}")
    out = []
    for i, one in enumerate(value):
        try:
            out.append(check(one))
        except Wrong as error:
            raise error.inside(i) from None
    return out


def _mapping(check: Callable[[Any], Any], value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise Wrong(f"must be an object, not {brief(value)}")
    out = {}
    for key, one in value.items():
        if not _text(key):
            raise Wrong("is a key that is not valid Unicode", key)
        try:
            out[key] = check(one)
        except Wrong as error:
            raise error.inside(key) from None
    return out


def _fields(checks: Mapping[str, Callable[[Any], Any]], required: frozenset[str],
            value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise Wrong(f"must be an object, not {brief(value)}")
    out = {}
    for name, check in checks.items():
        if name in value:
            try:
                out[name] = check(value[name])
            except Wrong as error:
                raise error.inside(name) from None
        elif name in required:
            raise Wrong("is missing", name)
    return out


# ── JSON ──
def parsed(data: bytes | str) -> Any:
    """The value of a JSON text. Wrong if it is none, or has a key twice in one object."""
    try:
        text = data.decode() if isinstance(data, bytes) else data
        return json.loads(text, object_pairs_hook=_object)
    except Wrong:
        raise
    except UnicodeDecodeError as error:
        raise Wrong(f"is not UTF-8 (byte 0x{error.object[error.start]:02x} at offset "
                    f"{error.start})") from None
    except ValueError as error:
        raise Wrong(f"is not JSON ({error})") from None
    except RecursionError:
        raise Wrong("is not a record: it is nested too deeply") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise Wrong(f"has the key {brief(next(key for key in keys if keys.count(key) > 1))} twice")
    return found


def sealed(document: Mapping[str, Any]) -> bytes:
    """The JSON text of a record, with its checksum, which `unsealed` compares."""
    text = json.dumps({**document, SEAL: _checksum(document)}, indent=1, allow_nan=False)
    return text.encode() + b"\n"


def unsealed(found: Any) -> Any:
    """A record without its checksum. Wrong if it has another one; an older record has none."""
    if not isinstance(found, dict) or SEAL not in found:
        return found
    rest = {name: value for name, value in found.items() if name != SEAL}
    try:
        same = found[SEAL] == _checksum(rest)
    except RecursionError:
        same = False
    if not same:
        raise Wrong(f"is damaged: it does not have the checksum that its field {SEAL} names "
                    f"(if you have edited it, remove {SEAL})")
    return rest


def _checksum(document: Mapping[str, Any]) -> str:
    return f"{zlib.crc32(json.dumps(document, sort_keys=True).encode()):08x}"


# ── files ──
def open_file(path: str | os.PathLike[str], buffering: int = -1) -> BinaryIO:
    """Open a regular file for reading.

    MissingError for anything else, such as a pipe or a device, which might never end; OSError if it
    cannot be opened.
    """
    def without_waiting(name: str, flags: int) -> int:
        return os.open(name, flags | getattr(os, "O_NONBLOCK", 0))      # not for a pipe's writer

    file = cast(BinaryIO, open(path, "rb", buffering, opener=without_waiting))
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise MissingError(f"{path} is not a regular file")
    return file


def read_bytes(path: str | os.PathLike[str], most: int) -> bytes:
    """The contents of a regular file. MissingError if it has more than `most` bytes, or is none."""
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        data = file.read(most + 1) if size <= most else b""
    if size > most or len(data) > most:
        raise MissingError(f"{path} has {max(size, len(data)):,} bytes, and a file of its kind has "
                           f"{most:,} at most")
    return data


def read_text(path: str | os.PathLike[str], most: int) -> str:
    """The text of a regular file in UTF-8. MissingError as for `read_bytes`."""
    data = read_bytes(path, most)
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise MissingError(f"{path} is not UTF-8 (byte 0x{data[error.start]:02x} at offset "
                           f"{error.start})") from None


def read_lines(file: BinaryIO, most: int) -> Iterator[bytes]:
    """The lines of a file; of a line with more than `most` bytes, the first `most` + 1 of them."""
    while line := file.readline(most + 1):
        yield line
        while len(line) > most and not line.endswith(b"\n"):            # the rest of a long line
            line = file.readline(most + 1)


def read_json(path: str | os.PathLike[str], schema: type[T], most: int = MB, *,
              advice: str = "is it truncated?") -> T:
    """The record in a file of at most `most` bytes, as its schema says.

    MissingError, with the field and the advice, if the file cannot be read or is another one.
    """
    try:
        return cast(T, checked(unsealed(parsed(read_bytes(path, most))), schema))
    except OSError as error:
        raise MissingError(f"{path} cannot be read: {error.strerror or error}; {advice}") from None
    except Wrong as error:
        said = f"{path}: {error}" if error.place else f"{Path(path)} {error}"
        raise MissingError(f"{said}; {advice}") from None
