"""The attention pattern of each head over the tokens of a prompt, and numbers that describe it."""
from __future__ import annotations

import argparse
from typing import Any

import numpy as np

import minigrad as mg

from ..cli.command import at_least
from ..cli.tables import table
from ..errors import UsageError
from ..io.plots import name_ticks, new_figure
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
from .statistics import entropy

FEW, LARGEST = 24, 40.0         # up to so many tokens a picture may grow, to at most so many inches


def flags(p: argparse.ArgumentParser) -> None:
    add_model(p)
    add_prompt(p)
    p.add_argument("--layer", type=at_least(0), metavar="I", help="show only this layer's heads")
    p.add_argument("--head", type=at_least(0), metavar="J",
                   help="show only this head of each layer")


def patterns(model: Any, ids: list[int]) -> np.ndarray:
    """The attention weights of all heads, on the host, [L, h, T, T]."""
    found = model.trace([ids], only="blocks.*.attn.pattern")
    return np.stack([mg.backend.of(a).host(a)[0] for a in found.values()]).astype(np.float64)


def character(pattern: np.ndarray) -> dict[str, float]:
    """Numbers that describe a head's pattern [T, T]: means over the queries, without the first one.

    If there is only one query, the numbers are its own. entropy: in nats. distance: from the query
    to the key, in tokens. first, previous, itself: the shares of the weight on the first token, the
    token before the query, and the query's own token.
    """
    rows = slice(1, None) if len(pattern) > 1 else slice(None)
    places = np.arange(len(pattern))
    back = places[:, None] - places[None]
    return {
        "entropy": float(entropy(pattern)[rows].mean()),
        "distance": float((pattern * back).sum(-1)[rows].mean()),
        "first": float(pattern[rows, 0].mean()),
        "previous": float(np.diagonal(pattern, -1).mean()) if len(pattern) > 1 else 0.0,
        "itself": float(np.diagonal(pattern)[rows].mean()),
    }


def run(args: argparse.Namespace) -> Found:
    model, tokenizer = model_of(args)
    ids = prompt_ids(args, tokenizer, model.config.n_positions)
    for flag, value, size in (("layer", args.layer, model.config.n_layer),
                              ("head", args.head, model.config.n_head)):
        if value is not None and value >= size:
            raise UsageError(f"--{flag} {value} does not exist; the model has 0 … {size - 1}")
    with numbers_watched(model):
        found = patterns(model, ids)
    tokens = labels(tokenizer, ids)
    heads = [(i, j) for i in range(found.shape[0]) for j in range(found.shape[1])
             if args.layer in (None, i) and args.head in (None, j)]
    rows = [{"layer": i, "head": j, **character(found[i, j])} for i, j in heads]
    names = ("entropy", "distance", "first", "previous", "itself")
    cells = [(f"{row['layer']}.{row['head']}", *(row[name] for name in names)) for row in rows]
    lines = [*table(("head", *names), cells), "",
             f"{len(ids)} tokens: {' '.join(tokens)}",
             "entropy in nats, distance in tokens; then the shares of the weight on the first "
             "token, the token before, the token itself; means over the queries from the second on"]
    lines += [name_of(args)] * (args.random_weights is not None)
    patterns_of = {f"{i}.{j}": found[i, j] for i, j in heads}
    document = {**said_of(args), "ids": ids, "tokens": tokens, "heads": rows,
                "patterns": patterns_of}
    return Found(document, lines, lambda: draw(patterns_of, tokens))


def draw(found: dict[str, np.ndarray], tokens: list[str]) -> Any:
    """A map for each head, with queries from top to bottom and keys from left to right.

    Tokens are named if there is room for the names; the map of a short prompt grows until there is.
    """
    columns = min(len(found), 4 if len(found) <= 16 else 12)
    count = -(-len(found) // columns)
    size = 6.0 if len(found) == 1 else 3.0 if len(found) <= 16 else 1.3
    # inches for the map, the longest name beside it, and the title
    room = 0.1 * len(tokens) + 0.07 * max(map(len, tokens)) + 0.35
    if len(tokens) <= FEW and max(columns, count) * room <= LARGEST:
        size = max(size, room)
    named = room <= size
    figure, axes = new_figure(size * columns + 0.9, size * count + 0.8, count, columns)
    for (name, pattern), panel in zip(found.items(), axes.flat):
        seen = np.where(np.tri(len(pattern), dtype=bool), pattern, np.nan)
        shown = panel.imshow(seen, vmin=0.0, vmax=1.0, cmap="Blues")
        panel.set_title(f"head {name}" if size > 2 else name, fontsize=9 if size > 2 else 6, pad=2)
        panel.set_facecolor("#eeeeee")
        for axis in "xy":
            name_ticks(panel, axis, tokens if named else [], fontsize=6)
        panel.tick_params(axis="x", rotation=90, length=0)
        panel.tick_params(axis="y", length=0)
    for panel in axes.flat[len(found):]:
        panel.set_visible(False)
    figure.colorbar(shown, ax=axes, label="attention weight", shrink=0.6 if count > 1 else 0.9)
    figure.supxlabel("key", fontsize=8)
    figure.supylabel("query", fontsize=8)
    return figure
