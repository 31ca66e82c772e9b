"""python -m gpt2.prepare: turn text or JSONL files into token shards for training and evaluation.

Training and evaluation map the shards into memory.
"""
from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .cli.command import Parser, at_least, emit_json, run_command
from .data.corpus import Piece, encode, in_parallel, measure, pieces, processors, split_at, words
from .data.shards import SPLITS, write_data
from .data.tokenizer import Tokenizer, load_tokenizer
from .data.train_bpe import train_bpe
from .errors import MissingError, UsageError
from .io.outputs import whole_folder


def prepare(inputs: Sequence[str | Path], out: str | Path, tokenizer: str = "gpt2",
            val_fraction: float = 0.1, *, download: bool = False, workers: int = 1,
            allow_special: bool = False) -> dict[str, Any]:
    """Tokenize files, in this order, into the directory `out`; they may be larger than memory.

    Text files are concatenated, but no token spans two files. In JSONL files (.jsonl, .ndjson) each
    line is an object whose "text" is a document; <|endoftext|> follows each document.
    allow_special: <|endoftext|> in the text is that token, as in tiktoken with allowed_special, and
    ends a document of a text file. The last val_fraction of the characters, in whole documents, is
    for validation, the text before it for training. tokenizer: "gpt2", a directory, or "train:N",
    a BPE of N ids that is learned from the training part only.

    The result does not depend on `workers`, the number of processes, nor on where files are cut
    for them. Returns the contents of meta.json. If it raises UsageError or MissingError, `out` is
    unchanged.
    """
    if not 0.0 < val_fraction < 1.0:
        raise UsageError("--val-fraction must be between 0 and 1, both excluded, "
                         f"not {val_fraction}")
    coder = None if tokenizer.startswith("train:") else load_tokenizer(tokenizer, download=download)
    size = _size(tokenizer) if coder is None else 0
    some = pieces([Path(path) for path in inputs], allow_special)
    if some[0].documents and coder is not None and coder.eot is None:
        raise UsageError(f"--tokenizer {tokenizer} has no <|endoftext|>, which separates documents")
    with whole_folder(Path(out), "gpt2.prepare") as made:
        measured = list(in_parallel(measure, some, workers, "measuring"))
        characters = [counts[0] for counts in measured]
        total = sum(characters)
        parts = dict(zip(SPLITS, split_at(some, characters, int(total * (1.0 - val_fraction)))))
        if not all(parts.values()):
            documents = sum(counts[3] for counts in measured)
            what = "1 document is" if documents == 1 else f"{total} characters are"
            raise MissingError(f"{what} too few to use {val_fraction:g} of them for validation")
        if coder is None:
            coder = _learned(parts["train"], size, workers)
        return write_data(made, coder, {
            split: in_parallel(encode, part, workers, f"encoding {split}", coder)
            for split, part in parts.items()})


def _size(tokenizer: str) -> int:
    try:
        return int(tokenizer.removeprefix("train:"))
    except ValueError:
        raise UsageError(f"--tokenizer {tokenizer}: a number, the size of the vocabulary, must "
                         "follow train:") from None


def _learned(part: list[Piece], size: int, workers: int) -> Tokenizer:
    counts = Counter[str]()
    for found in in_parallel(words, part, workers, "counting words"):
        counts.update(found)
    return train_bpe(counts, size)


def parser() -> argparse.ArgumentParser:
    p = Parser(prog="python -m gpt2.prepare", description=__doc__)
    p.add_argument("input", nargs="+", type=Path, metavar="INPUT",
                   help='UTF-8 text files, or JSONL files with a "text" in each line, in order')
    p.add_argument("--out", required=True, type=Path, metavar="DIR",
                   help="a directory that is new, empty, or the result of an earlier run")
    p.add_argument("--tokenizer", default="gpt2", metavar="gpt2|train:N|DIR",
                   help="GPT-2's tokenizer (default), a BPE of N ids that is learned from the "
                        "training part, or the tokenizer of a directory")
    p.add_argument("--allow-special", action="store_true",
                   help="read <|endoftext|> in the text as that token, which ends a document "
                        "(default: as plain text)")
    p.add_argument("--val-fraction", type=float, default=0.1,
                   help="share of the characters, at the end, that is used for validation")
    p.add_argument("--workers", type=at_least(1), default=processors(), metavar="N",
                   help="number of processes (default: one for each processor)")
    p.add_argument("--download", action="store_true",
                   help="download GPT-2's vocabulary if it is not here")
    p.add_argument("--json", action="store_true", help="print meta.json instead of the summary")
    return p


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    meta = prepare(args.input, args.out, args.tokenizer, args.val_fraction,
                   download=args.download, workers=args.workers, allow_special=args.allow_special)
    if args.json:
        emit_json(meta)
        return 0
    for split, size in ((split, meta[split]) for split in SPLITS):
        print(f"{split} {size['tokens']:,} tokens ({size['characters']:,} characters)", end=", ")
    print(f"vocabulary {meta['vocab_size']} ({meta['tokenizer']['name']}) -> {args.out}")
    return 0


if __name__ == "__main__":
    run_command(main, "gpt2.prepare")
