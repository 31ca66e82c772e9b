"""A forward pass as one HTML page that needs no network: tokens, every head's pattern, MLP, norms, logits, every tensor."""
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
from ..model_flags import add_model, add_prompt, labels, model_of, name_of, numbers_watched, prompt_ids, said_of
from .result import Found
from .statistics import summary

PAGE = Path(__file__).with_name("page.html")
BEST = 20                                               # rows of the next-token table
LOGITS = 1 << 20                                        # numbers of the logits that are kept whole at most, last places first


def flags(p: argparse.ArgumentParser) -> None:
    add_model(p)
    add_prompt(p)
    p.add_argument("--values", type=at_least(1000), default=1_500_000, metavar="N",
                   help="numbers that the page holds at most besides logits; larger tensors are sampled (default: 1,500,000, about 8 MB)")


def sampling_steps(shape: tuple[int, ...], limit: int) -> list[int]:
    """The step along each axis with which at most `limit` numbers are left: the longest axis is thinned first."""
    steps = [1] * len(shape)
    left = list(shape)
    while math.prod(left) > limit and max(left) > 1:
        axis = left.index(max(left))
        steps[axis] += 1
        left[axis] = -(-shape[axis] // steps[axis])
    return steps


def limit_for(sizes: list[int], total: int) -> int:
    """The largest limit under which min(size, limit) of all sizes are `total` together at most, at least 1."""
    rest = total
    for i, size in enumerate(sorted(sizes)):
        share = rest // (len(sizes) - i)
        if size > share:
            return max(1, share)
        rest -= size
    return max(sizes)


def packed(array: np.ndarray) -> str:
    """Base64 of little-endian float32."""
    return base64.b64encode(np.ascontiguousarray(array, "<f4").tobytes()).decode()


def document(model: Any, tokenizer: Any, ids: list[int], name: str, total: int) -> dict[str, Any]:
    """All that the page shows. Every tensor without its axis of one row: statistics of the whole, and values, thinned to `total` in all.

    tensors[i]: `kept` numbers of each axis, every `steps`-th, are in `data`. logits: those of the last `places` places, whole.
    norms: of the residual streams `norm_names`, at each place. best: the likeliest ids after each place.
   """
    found = {key: mg.backend.of(a).host(a).reshape(a.shape[a.ndim > 2:]) for key, a in model.trace([ids]).items()}
    heads = [key for key in found if key.endswith("pattern")]          # looked at most: half of the room is theirs
    of_heads = limit_for([found[key].size for key in heads], total // 2)
    taken = sum(min(found[key].size, of_heads) for key in heads)
    limit = limit_for([a.size for key, a in found.items() if key not in heads], total - taken)
    tensors, equations = [], model.equations()
    for key, array in found.items():
        steps = sampling_steps(array.shape, of_heads if key in heads else limit)
        kept = array[tuple(slice(None, None, step) for step in steps)]
        tensors.append({"name": key, "equation": equations[key], "shape": list(array.shape), "steps": steps, "kept": list(kept.shape),
                        **summary(array), "data": packed(kept)})
    logits = found["logits"].astype(np.float32)
    known = model.config.vocab_size if tokenizer is None else tokenizer.n_vocab
    places = max(1, min(len(ids), LOGITS // logits.shape[-1]))
    best = np.argsort(-logits[:, :known], axis=-1, kind="stable")[:, :BEST].tolist()
    streams = {key: a for key, a in found.items() if key.endswith(("0.resid_pre", "resid_mid", "resid_post"))}
    config = model.config
    return {
        "model": name, "what": f"{name}: {config.n_layer} layers, {config.n_head} heads, width {config.n_embd}, "
                               f"{model.num_parameters():,} parameters, {model.compute_dtype}; {len(ids)} tokens",
        "ids": ids, "tokens": labels(tokenizer, ids), "layers": config.n_layer, "vocab": config.vocab_size, "known": known,
        "labels": dict(zip(uniques := sorted({i for row in best for i in row}), labels(tokenizer, uniques))),
        "best": best, "logits": {"places": places, "data": packed(logits[-places:])},
        "norms": [np.sqrt(np.square(a, dtype=np.float64).sum(-1)).tolist() for a in streams.values()], "norm_names": list(streams),
        "tensors": tensors,
    }


def html(found: dict[str, Any]) -> bytes:
    """The page with its data inside; "<" is written so that no text can end the script."""
    data = json.dumps(plain(found), separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    return PAGE.read_text("utf-8").replace("@DATA@", data).encode()


def run(args: argparse.Namespace) -> Found:
    model, tokenizer = model_of(args)
    ids = prompt_ids(args, tokenizer, model.config.n_positions)
    with numbers_watched(model):
        found = document(model, tokenizer, ids, name_of(args), args.values)
    rows = [{key: value for key, value in one.items() if key not in ("data", "steps", "kept")} for one in found["tensors"]]
    said = ("mean", "std", "min", "max", "norm")
    lines = list(table(("point", "equation", "shape", *said),
                       [(row["name"], row["equation"], str(row["shape"]), *(row[key] for key in said)) for row in rows], left=3))
    lines += ["", name_of(args)] * (args.random_weights is not None)
    return Found({**said_of(args), "ids": ids, "tokens": found["tokens"], "points": rows}, lines, page=lambda: html(found))
