"""What does each part of GPT-2 add: embeddings, positions, a head, a block, blocks, many heads?"""
from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np

import minigrad as mg

from ..config import GPT2Config
from ..figures import COLOURS, new_figure
from ..model import Attention, Block, Embedding, LayerNorm
from ..pretrained import PretrainedModel
from .lab import Lab, Verdict, held_out, small_config, train, verdict

EQUATION = "loss = −log p(next token) in nats; untrained it is ln V, and the best any model can do is the text's entropy"
STEPS, ROWS = 150, 8
RUNGS = ("embedding only", "position, LayerNorm", "one head", "one block", "blocks", "GPT-2, many heads")


class Alone(mg.nn.Module):
    """x + attention(LN(x)): a block without its MLP."""

    def __init__(self, F: Any, config: GPT2Config, layer: int, **where: Any) -> None:
        self.ln_1, self.attn = LayerNorm(F, config, **where), Attention(F, config, layer, **where)

    def forward(self, x):                                              # [B, T, d]
        return x + self.attn(self.ln_1(x))                             # [B, T, d]


class Rung(PretrainedModel):
    """A model as far as a rung goes, with a tied head; `of` makes its layers."""

    def __init__(self, config: GPT2Config, rung: int, *, backend: str, seed: int) -> None:
        self.config, self.where = config, self.place(backend, "float32")
        self.compute_dtype = "float32"
        self.wte = Embedding(config.vocab_size, config.n_embd, **self.where)
        if rung:
            self.wpe = Embedding(config.n_positions, config.n_embd, **self.where)
            self.ln_f = LayerNorm(mg.fused, config, **self.where)
        of = Alone if rung == 2 else Block
        self.h = [of(mg.fused, config, i, **self.where) for i in range(config.n_layer if rung > 1 else 0)]
        self.fill(seed, None)

    def matrices(self):
        return iter(())

    def forward(self, ids):                                            # [B, T]
        ids, positions, _ = self.inputs(ids, None)                     # [B, T], [T]
        x = self.wte(ids)                                              # [B, T] -> [B, T, d]
        if hasattr(self, "wpe"):
            x = x + self.wpe(positions)                                # [B, T, d] + [T, d]
        for block in self.h:
            x = block(x)                                               # [B, T, d]
        x = self.ln_f(x) if hasattr(self, "ln_f") else x               # [B, T, d]
        return self.wte.scores(x)                                      # [B, T, d] -> [B, T, V]

    def loss(self, ids, targets):                                      # 2 × [B, T]
        return mg.cross_entropy(self(ids), self.integers(targets, "targets"))


def measure(lab: Lab) -> dict[str, Any]:
    ids, rows, out, curves = lab.text_ids, lab.blocks(32, 64), [], {}
    cut = int(0.9 * len(ids))
    held = np.array([ids[i:i + 65] for i in range(cut, len(ids) - 65, 32)])
    for rung, name in enumerate(RUNGS):
        config = small_config(lab.model.config.vocab_size, n_head=4 if rung == 5 else 1, n_layer=2 if rung > 3 else 1)
        model = Rung(config, rung, backend=lab.device, seed=lab.seed)
        before = held_out(model.loss, rows)
        made = train(model, model.loss, ids[:cut], steps=STEPS, rows=ROWS, block=64, seed=lab.seed)
        out.append({"model": name, "parameters": model.num_parameters(), "untrained": before, "trained": held_out(model.loss, held),
                    "tokens/s": ROWS * 64 / made.seconds})
        curves[name] = made.losses
    return {"rows": out, "curves": curves, "steps": STEPS, "uniform": math.log(lab.model.config.vocab_size)}


def judge(found: dict[str, Any]) -> list[Verdict]:
    """Untrained within 0.1 nats of ln V. The last rung 0.05 nats below the first; none more than 0.02 nats above the one before."""
    losses = [row["trained"] for row in found["rows"]]
    off = max(abs(row["untrained"] - found["uniform"]) for row in found["rows"])
    steps = [b - a for a, b in pairwise(losses)]
    worse = [row["model"] for row, step in zip(found["rows"][1:], steps) if step > 0.02]
    return [
        verdict(off < 0.1, "an untrained model's loss is ln V", f"off by {off:.3f} of {found['uniform']:.3f} nats at most"),
        verdict(losses[0] - losses[-1] > 0.05, "a whole GPT-2 learns more than embeddings alone",
                f"{losses[0]:.3f} and {losses[-1]:.3f} nats"),
        verdict(not worse, "every part helps",
                f"{', '.join(f'{s:+.3f}' for s in steps)} nats from rung to rung after {found['steps']} steps, one seed"
                + (f"; not {', '.join(worse)}" if worse else "")),
    ]


def draw(found: dict[str, Any]) -> Any:
    figure, axes = new_figure(9.5, 3.8, 1, 2)
    for colour, (name, losses) in zip(COLOURS, found["curves"].items()):
        smooth = np.convolve(losses, np.ones(10) / 10, "valid")
        axes[0, 0].plot(np.arange(len(smooth)) + 10, smooth, color=colour, label=name)
    axes[0, 0].axhline(found["uniform"], color="black", linestyle="--", linewidth=1)
    axes[0, 0].set(title="trained alike (dashed: ln V)", xlabel="step", ylabel="training loss, nats (mean of 10)")
    axes[0, 0].legend(fontsize=7)
    names = [row["model"] for row in found["rows"]]
    axes[0, 1].barh(names, [row["trained"] for row in found["rows"]], color=COLOURS[:len(names)])
    for i, row in enumerate(found["rows"]):
        axes[0, 1].text(row["trained"], i, f" {row['trained']:.2f}, {row['parameters'] / 1e3:.0f} k", va="center", fontsize=8)
    axes[0, 1].invert_yaxis()
    axes[0, 1].margins(x=0.3)
    axes[0, 1].set(title="loss on text held out, and parameters", xlabel="nats")
    return figure
