"""python -m gpt2.prepare: text or JSONL files to the token shards that training and evaluation map into memory."""
from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .cli.command import Parser, at_least, emit_json, run_command
from .data.corpus import Piece, encode, in_parallel, measure, pieces, processors, split_at, words
from .data.shards import SPLITS, check_out, write_data
from .data.tokenizer import Tokenizer, load_tokenizer
from .data.train_bpe import train_bpe
from .errors import MissingError, UsageError


def prepare(inputs: Sequence[str | Path], out: str | Path, tokenizer: str = "gpt2", val_fraction: float = 0.1, *,
            download: bool = False, workers: int = 1, allow_special: bool = False) -> dict[str, Any]:
    """Tokenize files, in this order, into the directory `out`; they may be larger than memory.

    Text files are put together, without a token that spans two. Of JSONL files (.jsonl, .ndjson) each line is an object whose "text"
    is a document; <|endoftext|> follows it. allow_special: <|endoftext|> in the text is that token, as tiktoken has it with
    allowed_special, and ends a document of a text file. The last val_fraction of the characters, in whole documents, is for
    validation, what is before them for training. tokenizer: "gpt2", a directory, or "train:N" for a BPE of N ids that learns from the
    training part alone.
    The result depends on neither `workers`, the number of processes, nor on where files are cut for them.
    Returns the contents of meta.json. Raises UsageError or MissingError, with `out` as it was.
    """
    if not 0.0 < val_fraction < 1.0:
        raise UsageError(f"--val-fraction must be between 0 and 1, both excluded, not {val_fraction}")
    out = Path(out)
    check_out(out)
    coder = None if tokenizer.startswith("train:") else load_tokenizer(tokenizer, download=download)
    size = _size(tokenizer) if coder is None else 0
    some = pieces([Path(path) for path in inputs], allow_special)
    if some[0].documents and coder is not None and coder.eot is None:
        raise UsageError(f"--tokenizer {tokenizer} has no <|endoftext|>, which goes between documents")
    measured = list(in_parallel(measure, some, workers, "measuring"))
    characters = [counts[0] for counts in measured]
    parts = dict(zip(SPLITS, split_at(some, characters, int(sum(characters) * (1.0 - val_fraction)))))
    if not all(parts.values()):
        what = "1 document is" if sum(counts[3] for counts in measured) == 1 else f"{sum(characters)} characters are"
        raise MissingError(f"{what} too few to hold back {val_fraction:g} of them")
    if coder is None:
        coder = _learned(parts["train"], size, workers)
    meta = write_data(out, coder, {split: in_parallel(encode, part, workers, f"encoding {split}", coder) for split, part in parts.items()})
    return meta


def _size(tokenizer: str) -> int:
    try:
        return int(tokenizer.removeprefix("train:"))
    except ValueError:
        raise UsageError(f"--tokenizer {tokenizer}: after train: comes a number, the vocabulary's size") from None


def _learned(part: list[Piece], size: int, workers: int) -> Tokenizer:
    counts = Counter[str]()
    for found in in_parallel(words, part, workers, "counting words"):
        counts.update(found)
    return train_bpe(counts, size)


def parser() -> argparse.ArgumentParser:
    p = Parser(prog="python -m gpt2.prepare", description=__doc__)
    p.add_argument("input", nargs="+", type=Path, metavar="INPUT",
                   help='UTF-8 text files, or JSONL files with a "text" a line, in this order')
    p.add_argument("--out", required=True, type=Path, metavar="DIR", help="new, empty, or an earlier result")
    p.add_argument("--tokenizer", default="gpt2", metavar="gpt2|train:N|DIR",
                   help="GPT-2's (default), a BPE of N ids learned from the training part, or a directory's")
    p.add_argument("--allow-special", action="store_true",
                   help="<|endoftext|> in the text is that token, and ends a document (default: it is plain text)")
    p.add_argument("--val-fraction", type=float, default=0.1, help="share of the characters, at the end")
    p.add_argument("--workers", type=at_least(1), default=processors(), metavar="N", help="processes (default: one for each processor)")
    p.add_argument("--download", action="store_true", help="fetch GPT-2's vocabulary if it is not here")
    p.add_argument("--json", action="store_true", help="print meta.json instead of the summary")
    return p


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    meta = prepare(args.input, args.out, args.tokenizer, args.val_fraction, download=args.download, workers=args.workers,
                   allow_special=args.allow_special)
    if args.json:
        emit_json(meta)
        return 0
    for split, size in ((split, meta[split]) for split in SPLITS):
        print(f"{split} {size['tokens']:,} tokens ({size['characters']:,} characters)", end=", ")
    print(f"vocabulary {meta['vocab_size']} ({meta['tokenizer']['name']}) -> {args.out}")
    return 0


if __name__ == "__main__":
    run_command(main, "gpt2.prepare")
