"""The logit lens (nostalgebraist 2020): ln_f and the head, applied after each block."""
from __future__ import annotations

import argparse
import math
from typing import Any

import numpy as np

import minigrad as mg

from ..cli.tables import table
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


def flags(p: argparse.ArgumentParser) -> None:
    add_model(p)
    add_prompt(p)


def lens(model: Any, ids: list[int]) -> dict[str, np.ndarray]:
    """Log-probabilities [T, V], on the host, from the residual stream at several depths.

    Their keys are "embeddings" and "block i"; each is the log softmax of the head of ln_f of the
    residual stream there. The last one is that of the model's own logits. A position whose logits
    are NaN or infinite has NaN.
    """
    found, out = model.trace([ids], only="blocks.*.resid_*"), dict[str, np.ndarray]()
    with mg.no_grad():
        for name, array in found.items():
            block, point = name.split(".")[1:]
            if point == "resid_post" or name == "blocks.0.resid_pre":
                x = mg.Tensor(array)                                            # [1, T, d]
                logits = model.lm_head(model.ln_f(x))                    # [1, T, V]
                logp = mg.log_softmax(mg.tensor(logits.numpy()[0].astype(np.float64)))
                out["embeddings" if point == "resid_pre" else f"block {block}"] = logp.numpy()
    return out


def run(args: argparse.Namespace) -> Found:
    model, tokenizer = model_of(args)
    ids = prompt_ids(args, tokenizer, model.config.n_positions)
    with numbers_watched(model):
        found = lens(model, ids)
    tokens = labels(tokenizer, ids)
    known = model.config.vocab_size if tokenizer is None else tokenizer.n_vocab
    last = list(found.values())[-1]
    rows, following = [], [*ids[1:], None]
    for name, logp in found.items():
        best = [None if np.isnan(row).any() else int(row[:known].argmax()) for row in logp]
        p = np.exp(last)
        rows.append({
            "after": name,
            "ids": best,
            "tokens": ["" if i is None else labels(tokenizer, [i])[0] for i in best],
            "p": [math.nan if i is None else math.exp(row[i]) for i, row in zip(best, logp)],
            "kl": (p * (last - logp)).sum(-1).tolist(),
            "nll": [None if t is None else -float(logp[i, t]) for i, t in enumerate(following)],
        })
    depths = [row["after"] for row in rows]
    cells = [(token, *(f"{row['tokens'][i]} {row['p'][i]:.2f}".lstrip() for row in rows))
             for i, token in enumerate(tokens)]
    losses = [float(np.mean(row["nll"][:-1])) if len(ids) > 1 else math.nan for row in rows]
    divergences = [float(np.mean(row["kl"])) for row in rows]
    lines = [*table(("token", *depths), cells), "",
             *table(("mean over the positions", *depths),
                    [("loss in nats", *losses), ("KL from the model's own", *divergences)]), "",
             "each cell: the likeliest next token after the token on the left, and its "
             "probability, if ln_f and the head are applied to the residual stream there"]
    lines += [name_of(args)] * (args.random_weights is not None)
    document = {**said_of(args), "ids": ids, "tokens": tokens, "lens": rows}
    return Found(document, lines, lambda: draw(rows, tokens))


def draw(rows: list[dict[str, Any]], tokens: list[str]) -> Any:
    """A cell for each position and depth: the likeliest token, coloured by its probability.

    The last layer is on top.
    """
    figure, axes = new_figure(max(5.0, 0.75 * len(tokens) + 1.6), 0.36 * len(rows) + 1.5)
    panel = axes[0, 0]
    up = rows[::-1]
    shown = panel.imshow(np.array([row["p"] for row in up]), vmin=0.0, vmax=1.0, cmap="YlGnBu",
                         aspect="auto")
    for y, row in enumerate(up):
        for x, (token, p) in enumerate(zip(row["tokens"], row["p"])):
            panel.text(x, y, token, ha="center", va="center", fontsize=7,
                       color="white" if p > 0.55 else "black", parse_math=False)
    name_ticks(panel, "x", tokens, fontsize=8, rotation=45, ha="right", rotation_mode="anchor")
    name_ticks(panel, "y", [row["after"] for row in up], fontsize=8)
    panel.set_xlabel("token that was read")
    panel.set_title("The likeliest next token from the residual stream at each depth", fontsize=9)
    figure.colorbar(shown, ax=panel, label="its probability")
    return figure
