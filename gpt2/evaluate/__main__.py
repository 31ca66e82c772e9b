"""python -m gpt2.evaluate: measure how well a model predicts text, or run HellaSwag or LAMBADA."""
from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ..cli.command import Parser, at_least, emit_json, run_command
from ..data.corpus import encode, in_parallel, pieces
from ..data.shards import load_data
from ..errors import GPT2Error, MissingError, UsageError
from ..model_flags import add_model, model_of, name_of, said_of
from .likelihood import Score, continuation_spans, exp, extent, scores, text_counts, text_spans
from .tasks import PROTOCOLS, chosen, complete, last_words, protocol_of, read_items, summed

TEXT = ("loss", "perplexity", "bits-per-byte")          # they differ in which one is printed first
ITEMS = ("hellaswag", "lambada")


def parser() -> argparse.ArgumentParser:
    p = Parser(prog="python -m gpt2.evaluate", description=__doc__)
    p.add_argument("--task", required=True, choices=[*TEXT, *ITEMS],
                   help="the first three report loss, perplexity and bits per byte of a text, and "
                        "differ in which one is printed first; the others read their JSONL files")
    p.add_argument("--data", required=True, type=Path, metavar="PATH",
                   help="a text or JSONL file, or a directory that gpt2.prepare wrote, whose "
                        "validation part is used")
    add_model(p)
    names = list(dict.fromkeys(name for _, name in PROTOCOLS))
    p.add_argument("--protocol", choices=names, metavar="NAME",
                   help="how prompts are built from items and scored: lm-eval, or llm.c for "
                        "hellaswag, or openai for lambada (default: lm-eval)")
    p.add_argument("--allow-special", action="store_true",
                   help="read <|endoftext|> in a text file as that token (default: as plain text)")
    p.add_argument("--max-length", type=at_least(1), metavar="N",
                   help="the most tokens of a window (default: the model's context)")
    p.add_argument("--stride", type=at_least(1), metavar="N",
                   help="by how many tokens the window moves in a longer text (default: half a "
                        "window)")
    p.add_argument("--batch-size", type=at_least(1), default=8, metavar="N",
                   help="windows or endings in a batch (default: 8)")
    p.add_argument("--limit", type=at_least(1), metavar="N",
                   help="read only the first N tokens or items")
    p.add_argument("--json", action="store_true", help="print one JSON document instead of a table")
    return p


# ── text ──
def text_ids(path: Path, tokenizer: Any, name: str, allow_special: bool = False) -> Any:
    """The ids of a file, or of the validation part of prepared data.

    allow_special: <|endoftext|> in a file is that token. UsageError if the data was made with
    another tokenizer.
    """
    if not path.is_dir():
        parts = in_parallel(encode, pieces([path], allow_special), 1, "encoding", tokenizer)
        return np.concatenate([part.ids for part in parts])
    data = load_data(path)
    if data.meta["tokenizer"]["sha256"] != tokenizer.sha256:
        raise UsageError(f"{path} was made with the tokenizer {data.meta['tokenizer']['name']}, "
                         f"and {name} has another one, {tokenizer.name}; "
                         f"prepare the data again with --tokenizer {name}")
    return data.val


def run_text(args: argparse.Namespace, model: Any, tokenizer: Any) -> tuple[dict[str, Any], bool]:
    """The result, and whether Ctrl-C ended it early."""
    window, stride = extent(model, args.max_length, args.stride)
    ids = text_ids(args.data, tokenizer, args.model, args.allow_special)
    ids = ids[:args.limit and args.limit + 1]
    if len(ids) < 2:
        raise MissingError(f"{args.data} holds {len(ids)} token; the first token is not predicted, "
                           "so at least 2 are needed")
    each = scores(model, text_spans(ids, window, stride), args.batch_size)
    found, cut = progress(each, len(ids) - 1, "token", lambda score: score.tokens)
    nll, tokens = math.fsum(score.nll for score in found), sum(score.tokens for score in found)
    counts = dict(zip(("byte", "character", "word"), text_counts(ids[1:tokens + 1], tokenizer)))
    per = {unit: {"count": count, "nats": nll / count, "bits": nll / count / math.log(2),
                  "perplexity": exp(nll / count)}
           for unit, count in {"token": tokens, **counts}.items() if count}
    return {"window": window, "stride": stride, "total": len(ids) - 1, "done": tokens,
            "unit": "tokens", "nll": nll, "per": per}, cut


def text_table(result: dict[str, Any], task: str) -> Iterator[str]:
    """The result of `run_text` as lines of text."""
    per = result["per"]
    if task == "loss":
        yield f"loss {per['token']['nats']:.4f} nats per token"
    elif task == "perplexity":
        yield f"perplexity {number(per['token']['perplexity'])} per token"
    else:
        yield (f"bits per byte {per['byte']['bits']:.4f}" if "byte" in per
               else "bits per byte: the tokens contain no text")
    yield f"{'per':<10}{'nats':>10}{'bits':>10}{'perplexity':>14}{'count':>16}"
    for unit in ("token", "word", "character", "byte"):
        if unit in per:
            row = per[unit]
            yield (f"{unit:<10}{row['nats']:>10.4f}{row['bits']:>10.4f}"
                   f"{number(row['perplexity']):>14}{row['count']:>16,}")


# ── items ──
def run_items(args: argparse.Namespace, model: Any, tokenizer: Any) -> tuple[dict[str, Any], bool]:
    """The result, and whether Ctrl-C ended it early."""
    window, stride = extent(model, args.max_length, args.stride)
    made, paired = protocol_of(args.task, args.protocol)
    items = read_items(args.data, made, args.limit)
    endings = [paired(tokenizer, item.context, ending) for item in items for ending in item.endings]
    spans = [continuation_spans(*ids, window, stride) for ids in endings]
    longer = sum(len(context) + len(ending) > window + 1 for context, ending in endings)
    each = scores(model, (span for some in spans for span in some), args.batch_size)
    found, cut = progress(summed(spans, each), len(spans), "ending", lambda score: 1)
    rest = iter(found)
    rows = [[next(rest) for _ in item.endings] for item in items[:complete(items, len(found))]]
    result = {"protocol": args.protocol or "lm-eval", "window": window, "stride": stride,
              "total": len(items), "done": len(rows), "unit": "items", "longer": longer}
    return result | (chosen(items, rows) if args.task == "hellaswag" else last_words(rows)), cut


def items_table(result: dict[str, Any], task: str) -> Iterator[str]:
    """The result of `run_items` as lines of text."""
    hit = ("the right ending is the likeliest" if task == "hellaswag"
           else "each token of the last word is the likeliest")
    for name, what in (("acc", hit), ("acc_norm", "the same per character"),
                       ("acc_per_token", "the same per token")):
        if name in result:
            value = result[name]
            yield f"{name:<14}{value['value']:.4f} ± {value['stderr']:.4f}  {what}"
    if "perplexity" in result:
        yield f"{'perplexity':<14}{number(result['perplexity'])}  of last words"


# ── the command ──
def progress(found: Iterator[Score], total: int, unit: str, size: Callable[[Score], int]
             ) -> tuple[list[Score], bool]:
    """Collect the scores under a progress bar; the result is the scores, and whether Ctrl-C came.

    After Ctrl-C these are the scores so far; if there are none, KeyboardInterrupt is raised.
    GPT2Error for a score that is not finite.
    """
    out: list[Score] = []
    with tqdm(total=total, unit=f" {unit}s", disable=None, leave=False) as bar:
        try:
            for score in found:
                if not math.isfinite(score.nll):
                    at = sum(map(size, out)) + 1
                    raise GPT2Error(f"the negative log-likelihood of {unit} {at} or of a later one "
                                    f"is {score.nll}; the weights hold NaN, or are too large for "
                                    "--dtype")
                out.append(score)
                bar.update(size(score))
        except KeyboardInterrupt:
            if not out:
                raise
            return out, True
    return out, False


def number(x: float | None) -> str:
    """A perplexity as text."""
    return "above 1e307" if x is None else f"{x:.2f}" if x < 1e6 else f"{x:.3g}"


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    if not args.data.exists():
        raise MissingError(f"--data {args.data} does not exist")
    if args.protocol is not None:
        protocol_of(args.task, args.protocol)
    if args.allow_special and (args.data.is_dir() or args.task in ITEMS):
        raise UsageError(f"--allow-special is for text files, and --data {args.data} is not one; "
                         "leave out --allow-special")
    model, tokenizer = model_of(args)
    run, table = (run_text, text_table) if args.task in TEXT else (run_items, items_table)
    result, cut = run(args, model, tokenizer)
    if not result["done"]:
        raise KeyboardInterrupt
    if args.json:
        emit_json({"task": args.task, "data": str(args.data), **said_of(args),
                   "backend": model.where["device"], "dtype": args.dtype, "partial": cut, **result})
    else:
        for line in table(result, args.task):
            print(line)
        done = f"{result['done']:,}"
        if cut:
            done = f"partial: {done} of {result['total']:,}"
        by = f" by the protocol of {result['protocol']}" if "protocol" in result else ""
        longer = (f", {result['longer']:,} endings longer than the window with their context"
                  if result.get("longer") else "")
        print(f"{args.data}, {name_of(args)} in {args.dtype}: {done} {result['unit']}{by}, "
              f"window {result['window']:,} tokens, stride {result['stride']:,}{longer}")
    if cut:
        print("gpt2.evaluate: interrupted", file=sys.stderr)
    return 130 if cut else 0


if __name__ == "__main__":
    run_command(main, "gpt2.evaluate")
