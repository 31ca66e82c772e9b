"""Token shards: `gpt2.prepare` writes them, training and evaluation map them into memory.

A directory holds vocab.json and merges.txt, `train-00000-of-00001.safetensors` … and `val-…`, and
meta.json; without meta.json it is incomplete. A shard is one tensor "ids" [N] of uint16 or uint32.
Its header has the hash of the vocabulary and the counts of the text.
"""
from __future__ import annotations

import hashlib
import json
import re
import struct
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypedDict

import numpy as np

from ..errors import MissingError
from ..io.atomic import new_file, write_new
from ..io.outputs import fill
from ..io.records import Between, Count, Sha256, Size, read_json, sealed
from ..io.safetensors import read_header
from .tokenizer import Tokenizer, load_tokenizer

SPLITS: tuple[Literal["train", "val"], ...] = ("train", "val")
COUNTS: tuple[Literal["characters", "bytes", "words", "documents"], ...] = (
    "characters", "bytes", "words", "documents")
SHARD = 100_000_000                         # the largest number of tokens in a shard
# tokens of a split that loading checks: in a larger split, the two ends of each shard
CHECKED = 1 << 28
# bytes before the ids; the header is written last, so its length is fixed beforehand
_HEADER = 4096
META, AGAIN = "meta.json", "prepare the data again"
_CODES: dict[str, np.dtype[Any]] = {"U16": np.dtype("<u2"), "U32": np.dtype("<u4")}


class _Hash(TypedDict, total=False):
    sha256: Sha256                                      # of the ids; data of older versions lack it


class Split(_Hash):
    """What meta.json says of a split."""

    tokens: Count
    shards: Annotated[int, Between(1, 99_999)]
    characters: Count
    bytes: Count
    words: Count
    documents: Count


class Vocabulary(TypedDict):
    """The tokenizer of prepared data, by its name and the sha256 of its vocab.json."""

    name: Annotated[str, Size(0, 1000)]
    sha256: Sha256


class Meta(TypedDict):
    """meta.json."""

    tokenizer: Vocabulary
    vocab_size: Annotated[int, Between(1, 2**32)]
    train: Split
    val: Split


class Part(NamedTuple):
    """Ids [N] of a piece of text, and its counts, in the order of `COUNTS`.

    They are characters, UTF-8 bytes, words between white space, and documents (0: not JSONL).
    """

    ids: np.ndarray
    counts: tuple[int, int, int, int]


class Tokens:
    """The ids of a split, indexed by an int or a slice of step 1.

    They are memory-mapped and read-only. A slice is a copy only if it crosses shards.
    """

    def __init__(self, shards: Sequence[np.ndarray]) -> None:
        self.shards, self.dtype = shards, shards[0].dtype
        self.ends = list(accumulate(map(len, shards)))

    def __len__(self) -> int:
        return self.ends[-1]

    def __getitem__(self, where: Any) -> Any:
        if not isinstance(where, slice):
            at = range(len(self))[where]
            k = bisect_right(self.ends, at)
            return self.shards[k][at - self.ends[k]]
        start, stop, step = where.indices(len(self))
        if step != 1:
            raise ValueError(f"tokens are sliced with a step of 1, not {step}")
        k = bisect_right(self.ends, start)
        pieces = []
        while start < stop:
            end = min(stop, self.ends[k])
            offset = self.ends[k] - len(self.shards[k])
            pieces.append(self.shards[k][start - offset:end - offset])
            start, k = end, k + 1
        return pieces[0] if len(pieces) == 1 else np.concatenate([self.shards[0][:0], *pieces])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self[:], dtype=dtype)


@dataclass(frozen=True, eq=False)
class Data:
    """Prepared data: the ids of each split, and their tokenizer.

    meta: the contents of meta.json.
    """

    directory: Path
    train: Tokens
    val: Tokens
    meta: Meta

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that made the ids. MissingError if the directory now holds another one."""
        tokenizer = load_tokenizer(self.directory)
        if tokenizer.sha256 != self.meta["tokenizer"]["sha256"]:
            raise MissingError(f"{self.directory} has another vocabulary than its {META} names; "
                               f"{AGAIN}")
        return tokenizer


# ── reading ──
def load_data(directory: str | Path) -> Data:
    """The prepared data in a directory.

    The ids are compared with the sha256 in meta.json, unless a split has more than CHECKED of them.
    MissingError for files that are missing, damaged, of another vocabulary, or disagree with
    meta.json.
    """
    folder = Path(directory)
    path = folder / META
    if not path.is_file():
        raise MissingError(f"{folder} holds no prepared data (no {META}); "
                           "python -m gpt2.prepare makes it")
    meta = read_json(path, Meta, advice=AGAIN)
    train, val = (_load(folder, split, meta) for split in SPLITS)
    return Data(folder, train, val, meta)


def _load(folder: Path, split: Literal["train", "val"], meta: Meta) -> Tokens:
    """The ids of a split."""
    told = meta[split]
    paths = [folder / _name(split, k, told["shards"]) for k in range(told["shards"])]
    found = [_shard(path, meta["tokenizer"]["sha256"]) for path in paths]
    shards = [ids for ids, _ in found]
    whole = sum(map(len, shards))
    if not told["tokens"] or whole != told["tokens"] or len({ids.dtype for ids in shards}) != 1:
        raise MissingError(f"{folder} holds {whole} tokens of {split}, and {META} says "
                           f"{told['tokens']}; {AGAIN}")
    some = CHECKED // (2 * len(paths))
    for path, ids in zip(paths, shards):
        highest = max(int(ids[:some].max(initial=0)), int(ids[-some:].max(initial=0)))
        if highest >= meta["vocab_size"]:
            raise MissingError(f"{path} holds id {highest}, but the vocab_size in {META} is "
                               f"{meta['vocab_size']}; {AGAIN}")
    for count in COUNTS:
        said = [metadata.get(count, "") for _, metadata in found]
        known = all(re.fullmatch("[0-9]{1,16}", n) for n in said)
        if known and (total := sum(map(int, said))) != told[count]:
            raise MissingError(f"{META} in {folder} says that {split} has {told[count]} {count}, "
                               f"and its shards say {total}; {AGAIN}")
    if "sha256" in told and whole <= CHECKED:
        digest = hashlib.sha256()
        for ids in shards:
            digest.update(np.ascontiguousarray(ids).data)
        if digest.hexdigest() != told["sha256"]:
            raise MissingError(f"the ids of {split} in {folder} do not have the sha256 that {META} "
                               f"names: a shard is damaged; {AGAIN}")
    return Tokens(shards)


def _name(split: str, k: int, count: int) -> str:
    return f"{split}-{k:05d}-of-{count:05d}.safetensors"


def _shard(path: Path, sha256: str) -> tuple[np.ndarray, dict[str, str]]:
    """The ids of a shard, memory-mapped, and its metadata.

    sha256: the hash of the vocabulary that it should have.
    """
    try:
        stored, metadata = read_header(path)
    except OSError as error:
        what = f"cannot be read ({error.strerror})"
        if isinstance(error, FileNotFoundError):
            what = "is missing"
        raise MissingError(f"{path} {what}; {AGAIN}") from None
    layout = [(entry.key, len(entry.shape)) for entry in stored]
    if layout != [("ids", 1)] or stored[0].dtype not in _CODES:
        found = [f"{entry.key} {entry.dtype}{list(entry.shape)}" for entry in stored]
        raise MissingError(f"{path} holds {', '.join(found) or 'nothing'}, not token ids; {AGAIN}")
    if metadata.get("tokenizer") != sha256:
        raise MissingError(f"{path} was made with another tokenizer than {META} names; {AGAIN}")
    if not stored[0].shape[0]:
        return np.zeros(0, _CODES[stored[0].dtype]), metadata
    ids = np.memmap(path, _CODES[stored[0].dtype], "r", stored[0].offset, stored[0].shape)
    return ids, metadata


# ── writing ──
def write_data(out: Path, coder: Tokenizer, parts: Mapping[str, Iterable[Part]]) -> dict[str, Any]:
    """Write the parts of each split, one after the other, and return the contents of meta.json.

    out: a folder that is empty. MissingError for a split without text, OSError if the folder cannot
    be written.
    """
    fill(out, {name: [content] for name, content in coder.files().items()})
    meta: dict[str, Any] = {"tokenizer": {"name": coder.name, "sha256": coder.sha256},
                            "vocab_size": coder.n_vocab}
    for split in SPLITS:
        meta[split] = _write_split(out, split, coder, parts[split])
        if not meta[split]["tokens"]:
            raise MissingError(f"there is no text for {split}; give more text, or another "
                               "--val-fraction")
    write_new(out / META, [sealed(meta)])
    return meta


def _write_split(out: Path, split: str, coder: Tokenizer, parts: Iterable[Part]) -> dict[str, Any]:
    """Write the shards of a split; returns the entry of meta.json. A shard ends where a part does.
    """
    kind = "U16" if coder.n_vocab <= 1 << 16 else "U32"
    whole, tokens, digest = [0] * len(COUNTS), 0, hashlib.sha256()
    shards: list[Path] = []
    rest = iter(parts)
    part = next(rest, None)
    while part is not None or not shards:
        shards.append(out / f"{split}-{len(shards)}.tmp")
        counts, size = [0] * len(COUNTS), 0
        with new_file(shards[-1]) as file:
            file.write(b" " * _HEADER)
            while part is not None and (size == 0 or size + len(part.ids) <= SHARD):
                numbers = np.ascontiguousarray(part.ids, _CODES[kind])
                file.write(numbers.data)
                digest.update(numbers.data)
                size, counts = size + len(numbers), [a + b for a, b in zip(counts, part.counts)]
                part = next(rest, None)
            metadata = {"tokenizer": coder.sha256, "vocab_size": coder.n_vocab, "split": split,
                        "tokens": size, **dict(zip(map(str, COUNTS), counts))}
            file.seek(0)
            file.write(_header(kind, size, metadata))
        whole, tokens = [a + b for a, b in zip(whole, counts)], tokens + size
    for k, path in enumerate(shards):                   # now it is known how many there are
        path.rename(out / _name(split, k, len(shards)))
    return {"tokens": tokens, "shards": len(shards), **dict(zip(COUNTS, whole)),
            "sha256": digest.hexdigest()}


def _header(kind: str, size: int, metadata: Mapping[str, Any]) -> bytes:
    """The header of a safetensors file with one tensor "ids" [size], as long as `_HEADER`."""
    text = json.dumps({
        "__metadata__": {key: str(value) for key, value in metadata.items()},
        "ids": {"dtype": kind, "shape": [size],
                "data_offsets": [0, size * _CODES[kind].itemsize]},
    }).encode()
    return struct.pack("<Q", _HEADER - 8) + text.ljust(_HEADER - 8)
