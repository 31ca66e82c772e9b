"""python -m gpt2.prepare: text files to the token arrays that training and evaluation map into memory."""
from __future__ import annotations

import argparse
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from .bpe import train_bpe
from .cli import Parser, emit_json, run_command
from .errors import MissingError, UsageError
from .tokenizer import Tokenizer, load_tokenizer, write_files

SPLITS = ("train", "val")
FILES = ("vocab.json", "merges.txt", "train.npy", "val.npy", "meta.json")   # the last makes the others valid
CHECKED = 1 << 24                           # tokens on either end of a split that are looked at on loading


@dataclass(frozen=True, eq=False)
class Data:
    """What `prepare` wrote: ids [N] of each split, uint16 or uint32, memory-mapped, and what they stand for.

    meta holds "tokenizer" (name, sha256), "vocab_size", and for "train" and "val": tokens, characters, bytes.
    """

    directory: Path
    train: np.ndarray
    val: np.ndarray
    meta: dict[str, Any]

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that made the ids. Raises MissingError where the directory now holds another one."""
        tokenizer = load_tokenizer(self.directory)
        if tokenizer.sha256 != self.meta["tokenizer"]["sha256"]:
            raise MissingError(f"{self.directory} has another vocabulary than meta.json says; prepare again")
        return tokenizer


def prepare(texts: Sequence[str], out: Path, tokenizer: str = "gpt2", val_fraction: float = 0.1,
            download: bool = False) -> dict[str, Any]:
    """Tokenize the texts, put together, into the directory `out`.

    The last val_fraction of the characters is for validation, what is before them for training. tokenizer:
    "gpt2", a directory, or "train:N" for a BPE of N ids that learns from the training part alone.
    Returns the contents of meta.json. Raises UsageError or MissingError, with `out` as it was.
    """
    if not 0.0 < val_fraction < 1.0:
        raise UsageError(f"--val-fraction must be between 0 and 1, both excluded, not {val_fraction}")
    _check_out(out)
    text = "".join(texts)
    border = int(len(text) * (1.0 - val_fraction))
    parts = dict(zip(SPLITS, (text[:border], text[border:])))
    if not all(parts.values()):
        raise MissingError(f"{len(text)} characters are too few to hold back {val_fraction:g} of them")
    coder = _tokenizer(tokenizer, parts["train"], download)
    meta: dict[str, Any] = {"tokenizer": {"name": coder.name, "sha256": coder.sha256}}
    meta["vocab_size"] = coder.n_vocab
    files = coder.files()
    for split, part in parts.items():
        ids = np.array(coder.encode(part), dtype=np.uint16 if coder.n_vocab <= 1 << 16 else np.uint32)
        buffer = io.BytesIO()
        np.save(buffer, ids)
        files[f"{split}.npy"] = buffer.getvalue()
        meta[split] = {"tokens": len(ids), "characters": len(part), "bytes": len(part.encode())}
    files["meta.json"] = (json.dumps(meta, indent=1) + "\n").encode()
    write_files(out, {name: files[name] for name in FILES})
    return meta


def load_data(directory: str | Path) -> Data:
    """What `prepare` wrote. Raises MissingError for what is missing, cut short or does not agree."""
    folder = Path(directory)
    path = folder / "meta.json"
    if not path.is_file():
        raise MissingError(f"{folder} holds no prepared data (no meta.json); python -m gpt2.prepare makes it")
    try:
        meta = json.loads(path.read_bytes())
        vocab_size, _ = int(meta["vocab_size"]), meta["tokenizer"]["sha256"]
        sizes = {split: int(meta[split]["tokens"]) for split in SPLITS}
    except (OSError, ValueError, KeyError, TypeError) as error:
        why = f"{type(error).__name__}: {error}"
        raise MissingError(f"{path} cannot be read ({why}); prepare again") from None
    train, val = (_load(folder / f"{split}.npy", sizes[split], vocab_size) for split in SPLITS)
    return Data(folder, train, val, meta)


def _load(path: Path, tokens: int, vocab_size: int) -> np.ndarray:
    try:
        ids = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        what = "is missing" if isinstance(error, FileNotFoundError) else "is damaged or cut short"
        raise MissingError(f"{path} {what}; prepare again") from None
    if not isinstance(ids, np.ndarray):
        raise MissingError(f"{path} is an archive, not an array; prepare again")
    if ids.dtype not in (np.uint16, np.uint32) or ids.shape != (max(tokens, 1),):
        found = f"{ids.dtype}{list(ids.shape)}"
        raise MissingError(f"{path} holds {found}, meta.json says {tokens} tokens; prepare again")
    highest = max(int(ids[:CHECKED].max()), int(ids[-CHECKED:].max()))
    if highest >= vocab_size:
        raise MissingError(f"{path} holds id {highest}, meta.json says {vocab_size} ids; prepare again")
    return ids


def _tokenizer(name: str, training_text: str, download: bool) -> Tokenizer:
    if not name.startswith("train:"):
        return load_tokenizer(name, download=download)
    try:
        vocab_size = int(name.removeprefix("train:"))
    except ValueError:
        raise UsageError(f"--tokenizer {name}: after train: comes a number, the vocabulary's size") from None
    return train_bpe(training_text, vocab_size)


def _check_out(out: Path) -> None:
    """A directory that holds anything but an earlier result is left alone."""
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {out} is a file, not a directory")
    held = {path.name for path in out.iterdir()} if out.exists() else set()
    ours = {*FILES, *(f"{name}.tmp" for name in FILES)}
    if held and (held - ours or not held & {"meta.json", "meta.json.tmp"}):
        foreign = min(held - ours or held)
        raise UsageError(f"--out {out} holds what is not prepared data ({foreign}); choose another directory")


def read_text(path: Path) -> str:
    """The UTF-8 text of a file, line ends as they are. Raises MissingError where there is none."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise MissingError(f"{path} cannot be read: {error.strerror}") from None
    if not data:
        raise MissingError(f"{path} is empty")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        where = f"byte 0x{data[error.start]:02x} at offset {error.start}"
        raise MissingError(f"{path} is not UTF-8 ({where})") from None


def parser() -> argparse.ArgumentParser:
    p = Parser(prog="python -m gpt2.prepare", description=__doc__)
    p.add_argument("input", nargs="+", type=Path, metavar="INPUT", help="UTF-8 text files, in this order")
    p.add_argument("--out", required=True, type=Path, metavar="DIR", help="new, empty, or an earlier result")
    p.add_argument("--tokenizer", default="gpt2", metavar="gpt2|train:N|DIR",
                   help="GPT-2's (default), a BPE of N ids learned from the training part, or a directory's")
    p.add_argument("--val-fraction", type=float, default=0.1, help="share of the characters, at the end")
    p.add_argument("--download", action="store_true", help="fetch GPT-2's vocabulary if it is not here")
    p.add_argument("--json", action="store_true", help="print meta.json instead of the summary")
    return p


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    texts = [read_text(path) for path in args.input]
    meta = prepare(texts, args.out, args.tokenizer, args.val_fraction, args.download)
    if args.json:
        emit_json(meta)
        return 0
    for split, size in ((split, meta[split]) for split in SPLITS):
        print(f"{split} {size['tokens']:,} tokens ({size['characters']:,} characters)", end=", ")
    print(f"vocabulary {meta['vocab_size']} ({meta['tokenizer']['name']}) -> {args.out}")
    return 0


if __name__ == "__main__":
    run_command(main, "gpt2.prepare")
