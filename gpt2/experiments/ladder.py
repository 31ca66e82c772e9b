"""How much does each part of GPT-2 lower the loss: positions, a head, a block, more of them?"""
from __future__ import annotations

import math
from typing import Any

import numpy as np

import minigrad as mg
from minigrad import nn

from ..config import GPT2Config
from ..io.plots import COLOURS, legend_below, new_figure
from ..model import Attention, Block
from ..weights.pretrained import PretrainedModel
from .lab import Lab, Verdict, held_out, inside, small_config, spread, train, verdict

EQUATION = ("loss = −log p(next token) in nats; untrained it is ln V, "
            "and the lowest possible loss is the text's entropy")
STEPS, ROWS, SEEDS = 80, 8, 3
RUNGS = ("embedding only", "position, LayerNorm, tying", "one head", "one block", "blocks",
         "GPT-2, many heads")


class Alone(nn.Module):
    """x + attention(LN(x)): a block without its MLP."""

    def __init__(self, config: GPT2Config, layer: int, **where: Any) -> None:
        self.ln_1 = nn.LayerNorm(config.n_embd, config.layer_norm_epsilon, **where)
        self.attn = Attention(config, layer, **where)

    def forward(self, x):                                              # [B, T, d]
        return x + self.attn(self.ln_1(x))                             # [B, T, d]


class Rung(PretrainedModel):
    """A model with the parts up to a rung; its head is tied from the second rung on."""

    def __init__(self, config: GPT2Config, rung: int, *, backend: str, seed: int) -> None:
        self.config, self.where = config, self.place(backend, "float32")
        self.compute_dtype = "float32"
        where = self.where
        self.wte = nn.Embedding(config.vocab_size, config.n_embd, init=False, **where)
        if rung:
            self.wpe = nn.Embedding(config.n_positions, config.n_embd, init=False, **where)
            self.ln_f = nn.LayerNorm(config.n_embd, config.layer_norm_epsilon, **where)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False, init=False, **where)
        if rung:                                                       # a tied head
            self.lm_head.weight = self.wte.weight
        of = Alone if rung == 2 else Block
        layers = range(config.n_layer if rung > 1 else 0)
        self.h = [of(config, i, **where) for i in layers]
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
        return self.lm_head(x)                                  # [B, T, d] -> [B, T, V]

    def loss(self, ids, targets):                                      # 2 × [B, T]
        return mg.cross_entropy(self(ids), self.integers(targets, "targets"))


def measure(lab: Lab) -> dict[str, Any]:
    ids, rows, out = lab.text_ids, lab.blocks(32, 64), []
    cut, uniform = int(0.9 * len(ids)), math.log(lab.model.config.vocab_size)
    curves: dict[str, list[float]] = {}
    finals: list[list[float]] = []
    held = np.array([ids[i:i + 65] for i in range(cut, len(ids) - 65, 32)])
    for rung, name in enumerate(RUNGS):
        config = small_config(lab.model.config.vocab_size, n_head=4 if rung == 5 else 1,
                              n_layer=2 if rung > 3 else 1)
        before, losses, seconds = [], [], []
        # a seed draws the same weights and batches for each rung, so that rungs can be compared
        for seed in range(lab.seed, lab.seed + SEEDS):
            model = Rung(config, rung, backend=lab.device, seed=seed)
            before.append(held_out(model.loss, rows))
            made = train(model, model.loss, ids[:cut], steps=STEPS, rows=ROWS, block=64, seed=seed)
            losses.append(held_out(model.loss, held))
            seconds.append(made.seconds)
            curves.setdefault(name, made.losses)
        mean, error = spread(losses)
        step, doubt = math.nan, math.nan
        if finals:
            step, doubt = spread([now - then for now, then in zip(losses, finals[-1])])
        finals.append(losses)
        out.append({"model": name, "parameters": model.num_parameters(),
                    "untrained": max(before, key=lambda b: abs(b - uniform)),
                    "trained": mean, "±": error, "change": step, "± change": doubt,
                    "tokens/s": ROWS * 64 / float(np.median(seconds))})
    return {"rows": out, "curves": curves, "steps": STEPS, "seeds": SEEDS, "uniform": uniform,
            "notes": [f"{SEEDS} seeds, of weights and batches, {STEPS} steps each; "
                      "± is the standard error over them"]}


def judge(found: dict[str, Any]) -> list[Verdict]:
    """Untrained, the loss is within 0.1 nats of ln V.

    The last rung's loss must be 0.05 nats below the first's, and each rung's below that of the rung
    before it, by two standard errors of the difference over the seeds. If two standard errors reach
    the limit, the verdict is inconclusive.
    """
    first, *_, last = found["rows"]
    gain, error = first["trained"] - last["trained"], 2 * math.hypot(first["±"], last["±"])
    off = max(abs(row["untrained"] - found["uniform"]) for row in found["rows"])
    helps = {}
    for row in found["rows"][1:]:
        gained, doubt = -row["change"], 2 * row["± change"]
        helps[row["model"]] = inside(gained - doubt, gained + doubt, 0.0)
    open_, worse = ([name for name, answer in helps.items() if answer is kind]
                    for kind in (None, False))
    return [
        verdict(off < 0.1, "an untrained model's loss is ln V",
                f"it differs from ln V = {found['uniform']:.3f} nats by at most {off:.3f}"),
        verdict(inside(gain - error, gain + error, 0.05),
                "a whole GPT-2 learns more than embeddings alone",
                f"embeddings alone reach a loss of {first['trained']:.3f} ± {first['±']:.3f} nats, "
                f"a whole GPT-2 {last['trained']:.3f} ± {last['±']:.3f}"),
        verdict(False if worse else None if open_ else True, "every part helps",
                f"after {found['steps']} steps, {found['seeds']} seeds, the loss changes from rung "
                "to rung by " + ", ".join(f"{row['change']:+.3f} ± {row['± change']:.3f}"
                                          for row in found["rows"][1:]) + " nats"
                + (f"; these do not help: {', '.join(worse)}" if worse else "")
                + (f"; not decided: {', '.join(open_)}" if open_ else "")),
    ]


def draw(found: dict[str, Any]) -> Any:
    figure, axes = new_figure(10.5, 4.2, 1, 2)
    for colour, (name, losses) in zip(COLOURS, found["curves"].items()):
        smooth = np.convolve(losses, np.ones(10) / 10, "valid")
        axes[0, 0].plot(np.arange(len(smooth)) + 10, smooth, color=colour, label=name)
    axes[0, 0].axhline(found["uniform"], color="black", linestyle="--", linewidth=1, label="ln V")
    axes[0, 0].set(title="trained alike, one seed", xlabel="step",
                   ylabel="training loss, nats (mean of 10)")
    legend_below(axes[0, 0], 3)
    names = [row["model"] for row in found["rows"]]
    axes[0, 1].barh(names, [row["trained"] for row in found["rows"]],
                    xerr=[row["±"] for row in found["rows"]], capsize=4,
                    color=COLOURS[:len(names)])
    for i, row in enumerate(found["rows"]):
        axes[0, 1].text(row["trained"] + row["±"], i,
                        f"  {row['trained']:.2f}, {row['parameters'] / 1e3:.0f} k",
                        va="center", fontsize=8)
    axes[0, 1].invert_yaxis()
    axes[0, 1].margins(x=0.3)
    axes[0, 1].set(title="loss on text held out, and parameters",
                   xlabel="nats (standard errors over seeds)")
    return figure
