"""A forward pass as one HTML page that needs no network.

It shows tokens, the pattern of every head, MLP, norms, logits, and every tensor.
"""
from __future__ import annotations

import argparse
import base64
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

import minigrad as mg

from ..cli.command import at_least
from ..cli.tables import plain, table
from ..model_flags import (
    add_model,
    add_prompt,
    labels,
    model_of,
    name_of,
    numbers_watched,
    prompt_ids,
    said_of,
)
from .result import Found
from .statistics import summary

PAGE = Path(__file__).with_name("page.html")
BEST = 20                                               # rows of the next-token table
LOGITS = 1 << 20                        # the most logits on the page; those of the last tokens stay


def flags(p: argparse.ArgumentParser) -> None:
    add_model(p)
    add_prompt(p)
    p.add_argument("--values", type=at_least(1000), default=1_500_000, metavar="N",
                   help="the page holds at most so many numbers besides logits; larger tensors are "
                        "sampled (default: 1,500,000, about 8 MB)")


def sampling_steps(shape: tuple[int, ...], limit: int) -> list[int]:
    """The steps along the axes that leave at most `limit` numbers; the longest axis is first."""
    steps = [1] * len(shape)
    left = list(shape)
    while math.prod(left) > limit and max(left) > 1:
        axis = left.index(max(left))
        steps[axis] += 1
        left[axis] = -(-shape[axis] // steps[axis])
    return steps


def limit_for(sizes: list[int], total: int) -> int:
    """The largest limit with Σ min(size, limit) ≤ `total`, summed over all sizes; at least 1."""
    rest = total
    for i, size in enumerate(sorted(sizes)):
        share = rest // (len(sizes) - i)
        if size > share:
            return max(1, share)
        rest -= size
    return max(sizes)


def packed(array: np.ndarray) -> str:
    """The array as base64 of little-endian float32."""
    return base64.b64encode(np.ascontiguousarray(array, "<f4").tobytes()).decode()


def document(model: Any, tokenizer: Any, ids: list[int], name: str, total: int) -> dict[str, Any]:
    """The data of the page.

    tensors: for every tensor, without its batch axis, statistics of all its numbers, and a sample
    in `data`: every `steps`-th number, `kept` numbers, of each axis; at most `total` numbers for
    all tensors together. logits: all logits of the last `places` positions. norms: those of the
    residual streams `norm_names`, at each position. best: the likeliest ids after each position.
    """
    found = {key: mg.backend.of(a).host(a).reshape(a.shape[a.ndim > 2:])
             for key, a in model.trace([ids]).items()}
    # half of the numbers are for the patterns, the most interesting part
    heads = [key for key in found if key.endswith("pattern")]
    of_heads = limit_for([found[key].size for key in heads], total // 2)
    taken = sum(min(found[key].size, of_heads) for key in heads)
    limit = limit_for([a.size for key, a in found.items() if key not in heads], total - taken)
    tensors, equations = [], model.equations()
    for key, array in found.items():
        steps = sampling_steps(array.shape, of_heads if key in heads else limit)
        kept = array[tuple(slice(None, None, step) for step in steps)]
        tensors.append({"name": key, "equation": equations[key], "shape": list(array.shape),
                        "steps": steps, "kept": list(kept.shape), **summary(array),
                        "data": packed(kept)})
    logits = found["logits"].astype(np.float32)
    known = model.config.vocab_size if tokenizer is None else tokenizer.n_vocab
    places = max(1, min(len(ids), LOGITS // logits.shape[-1]))
    best = np.argsort(-logits[:, :known], axis=-1, kind="stable")[:, :BEST].tolist()
    uniques = sorted({i for row in best for i in row})
    streams = {key: a for key, a in found.items()
               if key.endswith(("0.resid_pre", "resid_mid", "resid_post"))}
    config = model.config
    return {
        "model": name,
        "what": f"{name}: {config.n_layer} layers, {config.n_head} heads, width {config.n_embd}, "
                f"{model.num_parameters():,} parameters, {model.compute_dtype}; {len(ids)} tokens",
        "ids": ids,
        "tokens": labels(tokenizer, ids),
        "layers": config.n_layer,
        "vocab": config.vocab_size,
        "known": known,
        "labels": dict(zip(uniques, labels(tokenizer, uniques))),
        "best": best,
        "logits": {"places": places, "data": packed(logits[-places:])},
        "norms": [np.sqrt(np.square(a, dtype=np.float64).sum(-1)).tolist()
                  for a in streams.values()],
        "norm_names": list(streams),
        "tensors": tensors,
    }


def html(found: dict[str, Any]) -> bytes:
    """The page with its data; "<" is escaped, so that no text in the data can end the script."""
    data = json.dumps(plain(found), separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    return PAGE.read_text("utf-8").replace("@DATA@", data).encode()


def run(args: argparse.Namespace) -> Found:
    model, tokenizer = model_of(args)
    ids = prompt_ids(args, tokenizer, model.config.n_positions)
    with numbers_watched(model):
        found = document(model, tokenizer, ids, name_of(args), args.values)
    rows = [{key: value for key, value in one.items() if key not in ("data", "steps", "kept")}
            for one in found["tensors"]]
    numbers = ("mean", "std", "min", "max", "norm")
    cells = [(row["name"], row["equation"], str(row["shape"]), *(row[key] for key in numbers))
             for row in rows]
    lines = list(table(("point", "equation", "shape", *numbers), cells, left=3))
    lines += ["", name_of(args)] * (args.random_weights is not None)
    return Found({**said_of(args), "ids": ids, "tokens": found["tokens"], "points": rows}, lines,
                 page=lambda: html(found))
