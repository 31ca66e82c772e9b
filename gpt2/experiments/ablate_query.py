"""Does a model need its queries: what is lost when W_Q, W_K or W_V is replaced, layer by layer and head by head?"""
from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np

import minigrad as mg

from ..figures import COLOURS, new_figure
from ..sampling import log_softmax
from ..stats import entropy
from .lab import Lab, Verdict, spread, verdict

EQUATION = ("W_Q, columns 0 … d − 1 of c_attn, replaced by noise of the same mean and deviation, by zero, or by its own numbers permuted;\n"
            "Δ = loss − clean loss")
PARTS, SEEDS, ROWS = "QKV", 3, 6
HARMLESS = 0.1                                          # nats


@contextlib.contextmanager
def replaced(model: Any, part: str, layers: list[int], how: str, seed: int, head: int | None = None) -> Iterator[None]:
    """Inside the block W_part of these layers (or one head's columns of it) is noise, zero or permuted; afterwards all is as it was.

    part: Q, K or V, or "bias" for c_attn's bias as a whole.
    """
    d, size = model.config.n_embd, model.config.n_embd // model.config.n_head
    start = 0 if part == "bias" else d * PARTS.index(part) + (0 if head is None else head * size)
    columns = slice(start, None if part == "bias" else start + (d if head is None else size))
    before = {}
    try:
        for i in layers:
            p = parameter(model, i, part)
            own = before[i] = p.numpy().copy()
            rng, block = np.random.default_rng([seed, i]), own[..., columns]
            new = own.copy()
            if how == "noise":
                new[..., columns] = block.mean() + block.std() * rng.standard_normal(block.shape)
            else:
                new[..., columns] = 0.0 if how == "zero" else rng.permutation(block.reshape(-1)).reshape(block.shape)
            p.assign(mg.backend.of(p.array).adopt(new.astype(own.dtype)))
        yield
    finally:
        for i, own in before.items():
            p = parameter(model, i, part)
            p.assign(mg.backend.of(p.array).adopt(own))


def parameter(model: Any, layer: int, part: str) -> Any:
    own = model.h[layer].attn.c_attn
    return own.bias if part == "bias" else own.weight


def measure(lab: Lab) -> dict[str, Any]:
    model = lab.model
    layers, heads = model.config.n_layer, model.config.n_head
    length = min(96, model.config.n_positions - 1)
    text = lab.blocks(ROWS, length)
    x, y = text[:, :-1], text[:, 1:]
    clean = look(model, x)

    def change(part: str, which: list[int], how: str, seed: int = 0, head: int | None = None) -> dict[str, float]:
        with replaced(model, part, which, how, seed, head):
            return compared(clean, look(model, x), y)

    rows = []

    def add(kind: str, part: str, which: list[int], head: int | None = None, ways: tuple[str, ...] = ("noise", "zero", "permuted")) -> None:
        for how in ways:
            every = [change(part, which, how, seed, head) for seed in range(1 if how == "zero" else SEEDS)]
            mean, error = spread([one["Δ loss"] for one in every])
            rows.append({"what": kind, "part": part, "by": how, "Δ loss": mean, "±": error,
                         "KL": float(np.mean([one["KL"] for one in every])),
                         "entropy of attention": float(np.mean([one["entropy"] for one in every])), "layers": len(which)})

    for part in (*PARTS, "bias"):
        for i in range(layers):
            add(f"layer {i}", part, [i])
    for n in range(1, layers + 1):
        add(f"layers 0 … {n - 1}", "Q", list(range(n)))
    for i in range(layers if layers * heads <= 48 else 0):
        for j in range(heads):
            add(f"head {i}.{j}", "Q", [i], j, ("noise",))
    start = lab.tokenizer.encode("\n")[-1:]
    samples = []
    for n in range(layers + 1):
        with replaced(model, "Q", list(range(n)), "noise", 0):
            made = model.generate([start], max_new_tokens=24, seed=lab.seed, greedy=True, eos_token_id=None)[0]
            samples.append(f"greedy, W_Q noise in {n} layers: {lab.tokenizer.decode(made[1:])!r}")
    again = compared(clean, look(model, x), y)
    return {"rows": rows, "clean": float(nll(clean["logp"], y).mean()), "entropy": float(entropy(clean["pattern"]).mean()),
            "layers": layers,
            "restored": again["Δ loss"], "notes": samples}


def look(model: Any, x: np.ndarray) -> dict[str, np.ndarray]:
    """Log-probabilities [B, T, V] and every head's weights [L, B, h, T, T] on the host."""
    found = model.trace(x, only="*")
    host = {name: mg.backend.of(a).host(a) for name, a in found.items() if name == "logits" or name.endswith("pattern")}
    return {"logp": log_softmax(host["logits"].astype(np.float64)),
            "pattern": np.stack([a for name, a in host.items() if name != "logits"])}


def nll(logp: np.ndarray, y: np.ndarray) -> np.ndarray:
    return -np.take_along_axis(logp, y[..., None], -1)[..., 0]


def compared(clean: dict[str, np.ndarray], now: dict[str, np.ndarray], y: np.ndarray) -> dict[str, float]:
    """What changed: loss in nats, KL of the clean next token from the new one, entropy of attention."""
    p = np.exp(clean["logp"])
    return {"Δ loss": float((nll(now["logp"], y) - nll(clean["logp"], y)).mean()),
            "KL": float((p * (clean["logp"] - now["logp"])).sum(-1).mean()),
            "entropy": float(entropy(now["pattern"]).mean())}


def judge(found: dict[str, Any]) -> list[Verdict]:
    """Harmless: Δ below 0.1 nats by noise, by two standard errors either way. V against Q: the mean of single layers, by noise."""
    rows, layers = found["rows"], found["layers"]
    quarter = max(1, layers // 4)
    early = next(r for r in rows if r["what"] == f"layers 0 … {quarter - 1}" and r["by"] == "noise")
    late = next(r for r in rows if r["what"] == f"layers 0 … {layers - 1}" and r["by"] == "noise")
    harm, error = early["Δ loss"] - HARMLESS, 2 * (early["±"] or 0.0)
    alone = {part: np.array([r["Δ loss"] for r in rows if r["part"] == part and r["by"] == "noise" and r["what"].startswith("layer ")])
             for part in PARTS}
    return [
        verdict(None if abs(harm) < error else harm < 0, "random queries in the first quarter of the layers do no harm",
                f"layers 0 … {quarter - 1}: {early['Δ loss']:+.3f} ± {early['±'] or 0.0:.3f} nats on {found['clean']:.2f}"),
        verdict(late["Δ loss"] - 2 * (late["±"] or 0.0) > HARMLESS, "random queries in all layers do harm",
                f"{late['Δ loss']:+.3f} ± {late['±'] or 0.0:.3f} nats"),
        verdict(bool(alone["V"].mean() > alone["Q"].mean()), "values matter more than queries",
                ", ".join(f"{part} {alone[part].mean():+.3f}" for part in PARTS) + " nats, one layer at a time"),
        verdict(found["restored"] == 0.0, "the weights are restored after each ablation", f"loss differs by {found['restored']:g}"),
    ]


def draw(found: dict[str, Any]) -> Any:
    figure, axes = new_figure(10, 3.4, 1, 3)
    for colour, part in zip(COLOURS, PARTS):
        own = [r for r in found["rows"] if r["part"] == part and r["by"] == "noise" and r["what"].startswith("layer ")]
        axes[0, 0].errorbar(range(len(own)), [r["Δ loss"] for r in own], [r["±"] for r in own], fmt="o-", color=colour, capsize=3,
                            label=f"W_{part}")
    axes[0, 0].set(title="one layer's matrix made noise", xlabel="layer", ylabel="Δ loss, nats")
    for colour, how in zip(COLOURS, ("noise", "zero", "permuted")):
        own = [r for r in found["rows"] if r["what"].startswith("layers 0 …") and r["by"] == how]
        axes[0, 1].errorbar([r["layers"] for r in own], [r["Δ loss"] for r in own], [r["±"] or 0.0 for r in own], fmt="o-", color=colour,
                            capsize=3, label=how)
    axes[0, 1].set(title="W_Q of the first n layers", xlabel="n", ylabel="Δ loss, nats")
    heads = [r for r in found["rows"] if r["what"].startswith("head")]
    axes[0, 2].bar(range(len(heads)), [r["Δ loss"] for r in heads], yerr=[r["±"] for r in heads], color=COLOURS[4])
    axes[0, 2].set_xticks(range(len(heads)), [r["what"].removeprefix("head ") for r in heads], fontsize=7, rotation=90)
    axes[0, 2].set(title="W_Q of one head made noise", xlabel="head", ylabel="Δ loss, nats")
    for panel in axes[0, :2]:
        panel.axhline(HARMLESS, color="black", linestyle="--", linewidth=1)
        panel.legend(fontsize=8)
    return figure
