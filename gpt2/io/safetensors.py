"""Tensors in safetensors files: where they lie, arrays of them one at a time, and files of them written piece by piece."""
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
_NUMPY: dict[str, np.dtype[Any]] = {                    # NumPy has no bfloat16: its bits
    "F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2"), "F64": np.dtype("<f8"),
}
_PIECE = 1 << 18                                         # numbers converted at a time: about what fits a cache


class Stored(NamedTuple):
    """Where a tensor lies: its name and dtype as the file has them, its shape, and its first byte."""

    file: Path
    key: str
    dtype: str
    shape: tuple[int, ...]
    offset: int


def read_header(file: Path) -> tuple[list[Stored], dict[str, str]]:
    """What is stored in one safetensors file, and its metadata. Raises OSError, or MissingError where it is none or cut short."""
    from safetensors import SafetensorError, safe_open

    with open(file, "rb") as f:
        try:
            with safe_open(os.fspath(file), framework="numpy"):
                pass                                    # judges the file, but does not tell offsets
        except SafetensorError as error:
            raise MissingError(f"{file} is not a whole safetensors file ({error}); is it truncated?") from None
        (length,) = struct.unpack("<Q", f.read(8))
        header = json.loads(f.read(length))
    metadata = header.pop("__metadata__", None) or {}
    return [
        Stored(file, key, entry["dtype"], tuple(entry["shape"]), 8 + length + entry["data_offsets"][0])
        for key, entry in header.items()
    ], metadata


class Loader:
    """Arrays of stored tensors in the wanted dtype; one memory map for each file."""

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
        # read piece by piece, not mapped: the pages of a map would stay in memory beside the result
        array = np.empty(count, self.wanted)
        with open(entry.file, "rb", buffering=0) as f, np.errstate(over="ignore", invalid="ignore"):
            f.seek(entry.offset)
            for i in range(0, count, _PIECE):
                piece = np.fromfile(f, dtype, min(_PIECE, count - i))
                if entry.dtype == "BF16":               # the upper half of a float32
                    piece = (piece.astype("<u4") << 16).view("<f4")
                array[i:i + _PIECE] = piece              # what overflows is warned of later
        return array.reshape(entry.shape)

    def same(self, a: Stored, b: Stored) -> bool:
        """The same numbers, NaN being one. Compared row by row: a whole comparison takes much memory."""
        if a.shape != b.shape or not {a.dtype, b.dtype} <= NAMES.keys():
            return False
        return all(np.array_equal(x, y, equal_nan=True) for x, y in zip(self(a), self(b)))


def safetensors_header(shapes: Mapping[str, tuple[int, ...]], codes: Mapping[str, str],
                       metadata: Mapping[str, str]) -> tuple[bytes, list[str]]:
    """The beginning of a safetensors file with tensors of these shapes and codes, such as "F32", and the order in which they follow."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    order = sorted(codes, key=lambda name: -_NUMPY[codes[name]].itemsize)      # all are aligned so
    for name in order:
        start, end = end, end + math.prod(shapes[name]) * _NUMPY[codes[name]].itemsize
        header[name] = {"dtype": codes[name], "shape": list(shapes[name]), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text, order


def safetensors_pieces(arrays: Mapping[str, np.ndarray], codes: Mapping[str, str], metadata: Mapping[str, str]) -> Iterator[Any]:
    """The pieces of a safetensors file with these arrays under these names, each stored as its code.

    The library has no bfloat16 for NumPy, and would want all tensors converted at once.
    """
    header, order = safetensors_header({name: a.shape for name, a in arrays.items()}, codes, metadata)
    yield header
    for name in order:
        try:
            array = as_stored(arrays[name], codes[name])
        except FloatingPointError:
            raise UsageError(f"'{name.removeprefix('transformer.')}' has values too large for {NAMES[codes[name]]}; use another") from None
        yield array


def as_stored(array: np.ndarray, code: str) -> np.ndarray:
    """The array, C-contiguous, in its stored dtype; bfloat16 as the bits of the nearest, ties to even."""
    with np.errstate(over="raise"):
        if code != "BF16":
            return np.ascontiguousarray(array, _NUMPY[code])
        bits = np.ascontiguousarray(array, "<f4").view("<u4")
    rounded = ((bits >> 16) & 1) + np.uint32(0x7FFF)
    rounded += bits                                     # only a NaN wraps round
    rounded >>= 16
    return np.where(np.isnan(array), 0x7FC0, rounded).astype("<u2")
