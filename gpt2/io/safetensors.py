"""Safetensors files: their headers, reading one array at a time, and writing piece by piece."""
from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..errors import MissingError, UsageError

CODES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "float64": "F64"}
NAMES = {code: name for name, code in CODES.items()}
# NumPy has no bfloat16, which is read and written as its bits
_NUMPY: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2"), "F64": np.dtype("<f8"),
}
_PIECE = 1 << 18                    # numbers converted at a time, about as many as a cache holds


class Stored(NamedTuple):
    """A tensor of a file: its name, dtype code and shape, and the offset of its first byte."""

    file: Path
    key: str
    dtype: str
    shape: tuple[int, ...]
    offset: int


def read_header(file: Path) -> tuple[list[Stored], dict[str, str]]:
    """The tensors of a safetensors file, and its metadata.

    MissingError if it is not a complete safetensors file, OSError if it cannot be opened.
    """
    from safetensors import SafetensorError, safe_open

    with open(file, "rb") as f:
        try:
            with safe_open(os.fspath(file), framework="numpy"):
                pass                                    # checks the file, but has no offsets
        except SafetensorError as error:
            raise MissingError(f"{file} is not a complete safetensors file ({error}); "
                               "is it truncated?") from None
        (length,) = struct.unpack("<Q", f.read(8))
        header = json.loads(f.read(length))
    metadata = header.pop("__metadata__", None) or {}
    start = 8 + length
    return [Stored(file, key, entry["dtype"], tuple(entry["shape"]),
                   start + entry["data_offsets"][0]) for key, entry in header.items()], metadata


class Loader:
    """Reads stored tensors as arrays of the wanted dtype, with one memory map for each file."""

    def __init__(self, wanted: np.dtype[Any]) -> None:
        self.wanted = wanted
        self.maps: dict[Path, np.ndarray] = {}

    def __call__(self, entry: Stored) -> np.ndarray:
        dtype, count = _NUMPY[entry.dtype], math.prod(entry.shape)
        same = dtype == self.wanted or (entry.dtype == "BF16" and self.wanted.name == "bfloat16")
        if same and entry.offset % dtype.itemsize == 0:
            if entry.file not in self.maps:
                self.maps[entry.file] = np.asarray(np.memmap(entry.file, np.uint8, mode="c"))
            stored = self.maps[entry.file][entry.offset:entry.offset + count * dtype.itemsize]
            return stored.view(self.wanted).reshape(entry.shape)
        # read piece by piece, not mapped: pages of a map would stay in memory beside the result
        array = np.empty(count, self.wanted)
        with open(entry.file, "rb", buffering=0) as f, np.errstate(over="ignore", invalid="ignore"):
            f.seek(entry.offset)
            for i in range(0, count, _PIECE):
                piece = np.fromfile(f, dtype, min(_PIECE, count - i))
                if entry.dtype == "BF16":               # the upper half of a float32
                    piece = (piece.astype("<u4") << 16).view("<f4")
                array[i:i + _PIECE] = piece             # `read_checkpoint` warns of infinities
        return array.reshape(entry.shape)

    def same(self, a: Stored, b: Stored) -> bool:
        """Whether two tensors have equal numbers, where NaN equals NaN."""
        if a.shape != b.shape or not {a.dtype, b.dtype} <= NAMES.keys():
            return False
        # row by row, because a comparison of all rows at once takes much memory
        return all(np.array_equal(x, y, equal_nan=True) for x, y in zip(self(a), self(b)))


def safetensors_header(shapes: Mapping[str, tuple[int, ...]], codes: Mapping[str, str],
                       metadata: Mapping[str, str]) -> tuple[bytes, list[str]]:
    """The header of a safetensors file, and the names of its tensors in the order of the file.

    codes: the dtypes of the tensors, such as "F32".
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    # the largest numbers first, so that all tensors are aligned
    order = sorted(codes, key=lambda name: -_NUMPY[codes[name]].itemsize)
    for name in order:
        start, end = end, end + math.prod(shapes[name]) * _NUMPY[codes[name]].itemsize
        header[name] = {"dtype": codes[name], "shape": list(shapes[name]),
                        "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text, order


class TooLarge(UsageError):
    """A number that the dtype in which it should be stored does not have."""


def safetensors_pieces(arrays: Mapping[str, np.ndarray], codes: Mapping[str, str],
                       metadata: Mapping[str, str]) -> Iterator[Any]:
    """The pieces of a safetensors file with these arrays, each stored in the dtype of its code.

    The library `safetensors` is not used: it has no bfloat16 for NumPy, and it would need all
    arrays converted at once.
    """
    shapes = {name: a.shape for name, a in arrays.items()}
    header, order = safetensors_header(shapes, codes, metadata)
    yield header
    for name in order:
        try:
            array = as_stored(arrays[name], codes[name])
        except FloatingPointError:
            own = name.removeprefix("transformer.")
            raise TooLarge(f"'{own}' has values too large for {NAMES[codes[name]]}; "
                           "choose another dtype") from None
        yield array


def as_stored(array: np.ndarray, code: str) -> np.ndarray:
    """The array in C order in the dtype of `code`; bfloat16 as bits, rounded to nearest even."""
    with np.errstate(over="raise"):
        if code != "BF16":
            return np.ascontiguousarray(array, _NUMPY[code])
        bits = np.ascontiguousarray(array, "<f4").view("<u4")
    rounded = ((bits >> 16) & 1) + np.uint32(0x7FFF)
    rounded += bits                                     # overflows only for a NaN
    rounded >>= 16
    return np.where(np.isnan(array), 0x7FC0, rounded).astype("<u2")
