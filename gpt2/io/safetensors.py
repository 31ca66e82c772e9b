"""Safetensors files: their headers, reading one array at a time, and writing piece by piece.

A file that is written here has a checksum of each tensor in its metadata, which is compared when
the tensor is read. Other programs ignore it, and their files are read without.
"""
from __future__ import annotations

import json
import math
import os
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from reprlib import repr as brief
from typing import Annotated, Any, NamedTuple, TypedDict

import numpy as np

from ..errors import MissingError, UsageError
from .records import MB, Count, Size, Wrong, checked, open_file, parsed

CODES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "float64": "F64"}
NAMES = {code: name for name, code in CODES.items()}
# NumPy has no bfloat16, which is read and written as its bits
_NUMPY: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2"), "F64": np.dtype("<f8"),
}
# bits of a number of each dtype that the format has
_BITS = {"BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F4": 4,
         "F6_E2M3": 6, "F6_E3M2": 6, "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32,
         "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64, "C64": 64}
HEADER, AXES = 16 * MB, 32          # the most bytes of a header, and axes of a tensor, we read
CHECKSUMS = "gpt2_crc32"            # the checksums of a file's tensors, in its metadata
_PIECE = 1 << 18                    # numbers converted at a time, about as many as a cache holds


class Stored(NamedTuple):
    """A tensor of a file: its name, dtype code and shape, and the offset of its first byte.

    crc: its checksum by the file's header, or another record; None if there is none.
    """

    file: Path
    key: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    crc: str | None = None


class _Entry(TypedDict):
    """A tensor in a header; the library's names."""

    dtype: str
    shape: Annotated[list[Count], Size(0, AXES)]
    data_offsets: Annotated[list[Count], Size(2, 2)]


# ── reading ──
def read_header(file: Path) -> tuple[list[Stored], dict[str, str]]:
    """The tensors of a safetensors file in the order of its header, and its metadata.

    MissingError if it is not a complete safetensors file, or if its header does not have the
    checksums that it names; OSError if it cannot be opened.
    """
    with open_file(file) as f:
        size = os.fstat(f.fileno()).st_size
        length = int.from_bytes(f.read(8), "little")
        try:
            if not 2 <= length <= min(size - 8, HEADER):
                raise Wrong(f"it has {size:,} bytes, and a header of {length:,} by the first eight")
            header = checked(parsed(f.read(length)), dict[str, Any])
            metadata = checked(header.pop("__metadata__", None), dict[str, str] | None) or {}
            entries = checked(header, dict[str, _Entry])
            _check_layout(entries, size - 8 - length)
        except Wrong as error:
            raise MissingError(f"{file} is not a complete safetensors file ({error}); "
                               "is it truncated?") from None
    sums = _checksums(file, entries, metadata)
    return [Stored(file, key, entry["dtype"], tuple(entry["shape"]),
                   8 + length + entry["data_offsets"][0], sums.get(key))
            for key, entry in entries.items()], metadata


def _check_layout(entries: Mapping[str, _Entry], size: int) -> None:
    """Wrong unless the tensors cover `size` bytes, without gaps, and each has those of its shape.
    """
    end = 0
    for key, entry in sorted(entries.items(), key=lambda item: item[1]["data_offsets"]):
        start, stop = entry["data_offsets"]
        bits = _BITS.get(entry["dtype"])
        if bits is None:
            raise Wrong(f"is of an unknown dtype, {brief(entry['dtype'])}", key)
        if start != end or 8 * (stop - start) != bits * math.prod(entry["shape"]):
            raise Wrong(f"lies at bytes {start} to {stop}, which does not fit its shape "
                        "or the tensor before it", key)
        end = stop
    if end != size:
        raise Wrong(f"its tensors have {end:,} bytes, and the file has {size:,} for them")


def _checksums(file: Path, entries: Mapping[str, _Entry], metadata: dict[str, str]
               ) -> dict[str, str]:
    """The checksums of the tensors, which are taken out of the metadata. {} if there are none."""
    if CHECKSUMS not in metadata:
        return {}
    try:
        sums = checked(parsed(metadata.pop(CHECKSUMS)), dict[str, str])
    except Wrong:
        sums = {}
    if sums.pop("", None) != _of_metadata(metadata) or sums.keys() != entries.keys():
        raise MissingError(f"{file} is damaged: its header does not have the checksums that it "
                           "names; copy it again, or make it anew")
    return sums


def _of_metadata(metadata: Mapping[str, str]) -> str:
    return f"{zlib.crc32(json.dumps(metadata, sort_keys=True).encode()):08x}"


def _begun(key: str, code: str, shape: Iterable[int]) -> int:
    """The checksum of a tensor's name, dtype and shape, which its bytes continue."""
    return zlib.crc32(json.dumps([key, code, *shape]).encode())


def checksum(key: str, code: str, shape: Iterable[int], stored: np.ndarray) -> str:
    """The checksum of a tensor. stored: its array as `as_stored` returns it."""
    return f"{zlib.crc32(stored.data, _begun(key, code, shape)):08x}"


class Loader:
    """Reads stored tensors as arrays of the wanted dtype, with one memory map for each file.

    MissingError if the bytes of a tensor do not have its checksum. sound: the tensors for which
    that was compared, by file and name.
    """

    def __init__(self, wanted: np.dtype[Any], sound: set[tuple[Path, str]] | None = None) -> None:
        self.wanted = wanted
        self.maps: dict[Path, np.ndarray] = {}
        self.sound = set[tuple[Path, str]]() if sound is None else sound

    def __call__(self, entry: Stored) -> np.ndarray:
        dtype, count = _NUMPY[entry.dtype], math.prod(entry.shape)
        same = dtype == self.wanted or (entry.dtype == "BF16" and self.wanted.name == "bfloat16")
        crc = _begun(entry.key, entry.dtype, entry.shape)
        asked = entry.crc is not None and (entry.file, entry.key) not in self.sound
        if same and entry.offset % dtype.itemsize == 0:
            if entry.file not in self.maps:
                self.maps[entry.file] = np.asarray(np.memmap(entry.file, np.uint8, mode="c"))
            stored = self.maps[entry.file][entry.offset:entry.offset + count * dtype.itemsize]
            if asked:
                self._compare(entry, zlib.crc32(stored.data, crc))
            return stored.view(self.wanted).reshape(entry.shape)
        # read piece by piece, not mapped: pages of a map would stay in memory beside the result
        array = np.empty(count, self.wanted)
        with open_file(entry.file, 0) as f, np.errstate(over="ignore", invalid="ignore"):
            f.seek(entry.offset)
            for i in range(0, count, _PIECE):
                piece = np.fromfile(f, dtype, min(_PIECE, count - i))
                crc = zlib.crc32(piece.data, crc) if asked else crc
                if entry.dtype == "BF16":               # the upper half of a float32
                    piece = (piece.astype("<u4") << 16).view("<f4")
                array[i:i + _PIECE] = piece             # `read_checkpoint` warns of infinities
        if asked:
            self._compare(entry, crc)
        return array.reshape(entry.shape)

    def _compare(self, entry: Stored, crc: int) -> None:
        if f"{crc:08x}" != entry.crc:
            raise MissingError(f"{entry.file} is damaged: '{entry.key}' does not have its "
                               "checksum; copy the file again, or make it anew")
        self.sound.add((entry.file, entry.key))

    def same(self, a: Stored, b: Stored) -> bool:
        """Whether two tensors have equal numbers, where NaN equals NaN."""
        if a.shape != b.shape or not {a.dtype, b.dtype} <= NAMES.keys():
            return False
        # row by row, because a comparison of all rows at once takes much memory
        return all(np.array_equal(x, y, equal_nan=True) for x, y in zip(self(a), self(b)))


# ── writing ──
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

    The metadata get a checksum of each tensor, and of the other metadata under "". The library
    `safetensors` is not used: it has no bfloat16 for NumPy, and it would need all arrays converted
    at once.
    """
    shapes = {name: a.shape for name, a in arrays.items()}
    sums = {"": _of_metadata(metadata)}
    for name in codes:                                  # converted twice: the header comes first
        try:
            stored = as_stored(arrays[name], codes[name])
        except FloatingPointError:
            own = name.removeprefix("transformer.")
            raise TooLarge(f"'{own}' has values too large for {NAMES[codes[name]]}; "
                           "choose another dtype") from None
        sums[name] = checksum(name, codes[name], shapes[name], stored)
    header, order = safetensors_header(shapes, codes, {**metadata, CHECKSUMS: json.dumps(sums)})
    yield header
    for name in order:
        yield as_stored(arrays[name], codes[name])


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
