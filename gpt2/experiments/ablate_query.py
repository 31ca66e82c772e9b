"""Does a model need its queries: how much is lost if W_Q, W_K or W_V is replaced?

They are replaced in one layer, in the first layers, or in one head.
"""
from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np

import minigrad as mg

from ..decoding.sampling import log_softmax
from ..inspect.statistics import entropy
from ..io.plots import COLOURS, legend_below, new_figure
from .lab import Lab, Verdict, inside, spread, verdict
from .temperature import repetition

EQUATION = ("W_Q, columns 0 … d − 1 of c_attn, replaced by noise of the same mean and deviation, "
            "by zero, or by its own numbers permuted;\nΔ = loss − clean loss")
PARTS, SEEDS, ROWS = "QKV", 3, 6
ALL = ("noise", "zero", "permuted")
HEADS = 48                                              # with more heads, only Q is replaced
PROMPT, TOKENS = 8, 48                                  # of a prompt, and of its continuation
HARMLESS = 0.1                                          # nats
LOOPS = 0.5                                             # share of 4-grams that occurred before
NOISE = 0.9                                             # of ln V
CLAIMED = ("harmless", "loses meaning", "loops", "noise")   # of 12 layers: 1–3, 4–6, 7–9, more


@contextlib.contextmanager
def replaced(model: Any, part: str, layers: list[int], how: str, seed: int,
             head: int | None = None) -> Iterator[None]:
    """Replace W_part of these layers, or one head's columns of it, inside a `with` block.

    part: Q, K or V, or "bias" for all of c_attn's bias. how: noise, zero or permuted. At the end
    of the block the weights are restored.
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
                flat = block.reshape(-1)
                shuffled = rng.permutation(flat).reshape(block.shape) if how != "zero" else 0.0
                new[..., columns] = shuffled
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

    @cache
    def change(part: str, which: tuple[int, ...], how: str, seed: int,
               head: int | None) -> dict[str, float]:
        with replaced(model, part, list(which), how, seed, head):
            return compared(clean, look(model, x, which[0], clean), y)

    plan: list[tuple[str, str, tuple[int, ...], int | None, tuple[str, ...]]] = []
    plan += [(f"layer {i}", part, (i,), None, ALL)
             for part in (*PARTS, "bias") for i in range(layers)]
    plan += [(f"layers 0 … {n - 1}", part, tuple(range(n)), None, ALL if part == "Q" else ALL[:1])
             for part in PARTS for n in range(1, layers + 1)]
    plan += [(f"head {i}.{j}", part, (i,), j, ALL[:1])
             for part in (PARTS if layers * heads <= HEADS else "Q")
             for i in range(layers) for j in range(heads)]
    rows, said = [], time.monotonic()
    for done, (kind, part, which, head, ways) in enumerate(plan):
        said = progress(said, f"{kind} of {part}, {done} of {len(plan)} done")
        for how in ways:
            seeds = range(1 if how == "zero" else SEEDS)
            every = [change(part, which, how, seed, head) for seed in seeds]
            row: dict[str, Any] = {"what": kind, "part": part, "by": how}
            keys = (("Δ loss", "±"), ("KL", "± KL"), ("entropy of attention", "± entropy"))
            for key, error in keys:
                row[key], row[error] = spread([one[key] for one in every])
            rows.append(row | {"layers": len(which)})
    greedy, samples = [], []
    prompts = text[:, :min(PROMPT, length)].tolist()
    for n in range(layers + 1):
        said, shares = progress(said, f"greedy text, {n} of {layers} layers"), []
        for seed in range(SEEDS if n else 1):
            with replaced(model, "Q", list(range(n)), "noise", seed):
                made = model.generate(prompts, max_new_tokens=TOKENS, seed=lab.seed, greedy=True,
                                      eos_token_id=None, overflow="slide")
            texts = [row[len(prompt):] for row, prompt in zip(made, prompts)]
            shares.append(float(np.mean([repetition(row) for row in texts])))
            if not seed:
                text = lab.tokenizer.decode(texts[0])
                samples.append(f"greedy, W_Q noise in {n} layers: {text!r}")
        mean, deviation = spread(shares)
        greedy.append({"layers": n, "repeated": mean, "±": deviation})
    again = compared(clean, look(model, x), y)
    left_out = []
    if layers * heads > HEADS:
        left_out = [f"single heads of K and V are left out, because there are {layers * heads}"]
    return {"rows": rows, "clean": float(nll(clean["logp"], y).mean()),
            "entropy": float(entropy(clean["pattern"]).mean()), "layers": layers, "greedy": greedy,
            "uniform": math.log(clean["logp"].shape[-1]), "restored": again["Δ loss"],
            "notes": [f"{x.size} tokens, {SEEDS} seeds; ± is the standard error over the seeds",
                      *left_out, *samples]}


def progress(said: float, what: str) -> float:
    """Print a line about the progress on stderr, at most every 5 s; the time of the last line."""
    now = time.monotonic()
    if now - said < 5.0:
        return said
    print(f"gpt2.experiments: ablate-query: {what}", file=sys.stderr, flush=True)
    return now


def look(model: Any, x: np.ndarray, first: int = 0,
         clean: dict[str, Any] | None = None) -> dict[str, Any]:
    """Log-probabilities [B, T, V] and all heads' patterns [L, B, h, T, T], on the host.

    Without `clean`, also the input of each block, on the device. clean, first: a result of the
    clean model, and the first block whose weights were changed; earlier blocks are not computed
    again.
    """
    names = [f"blocks.{i}.attn.pattern" for i in range(len(model.h))]
    if clean is None:
        found = model.trace(x, only="*")
        host = {name: mg.backend.of(a).host(a)
                for name, a in found.items() if name == "logits" or name in names}
        before = [found[f"blocks.{i}.resid_pre"] for i in range(len(names))]
        return {"logp": log_softmax(host["logits"].astype(np.float64)),
                "pattern": np.stack([host[name] for name in names]), "before": before}
    seen: list[np.ndarray] = []
    keep = dict.fromkeys(names[first:], lambda weights, name: seen.append(weights.numpy()))
    with mg.no_grad(), model.hooks(keep):
        stream = mg.Tensor(clean["before"][first])
        for block in model.h[first:]:
            stream = block(stream)
        logits = model.lm_head(model.ln_f(stream)).numpy()
    return {"logp": log_softmax(logits.astype(np.float64)),
            "pattern": np.concatenate([clean["pattern"][:first], np.stack(seen)])}


def nll(logp: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The negative log-likelihood of targets y [B, T]."""
    return -np.take_along_axis(logp, y[..., None], -1)[..., 0]          # [B, T]


def compared(clean: dict[str, Any], now: dict[str, Any], y: np.ndarray) -> dict[str, float]:
    """The changes: loss in nats, KL divergence of the next token, entropy of attention."""
    p = np.exp(clean["logp"])
    return {"Δ loss": float((nll(now["logp"], y) - nll(clean["logp"], y)).mean()),
            "KL": float((p * (clean["logp"] - now["logp"])).sum(-1).mean()),
            "entropy of attention": float(entropy(now["pattern"]).mean())}


def quarter(n: int, layers: int) -> int:
    """The quarter of the depth, 0 … 3, in which the last of the first n layers lies."""
    return math.ceil(4 * n / layers) - 1


def both(answers: list[bool | None]) -> bool | None:
    """Whether all hold; None if the numbers do not decide it, or if there are no answers."""
    return False if False in answers else None if None in answers or not answers else True


def judge(found: dict[str, Any]) -> list[Verdict]:
    """Claims about 12 layers, by quarters of the depth: W_Q of the first n layers is noise.

    A claim must hold for each n of its quarter. Harmless: Δ is below 0.1 nats. Loses meaning: Δ is
    above that, and the loss is below 90 % of ln V. Loops: in greedy text more than half of the
    4-grams occurred before; inconclusive if that is so for the clean model. Noise: the loss is
    above 90 % of ln V. Values against queries: in each layer, replaced one at a time.

    Each must hold, or fail, by two standard errors over the seeds; else it is inconclusive, and so
    is a quarter without a layer.
    """
    layers, clean, limit = found["layers"], found["clean"], NOISE * found["uniform"]
    noise = [r for r in found["rows"] if r["by"] == "noise"]
    several = sorted((r for r in noise if r["part"] == "Q" and r["what"].startswith("layers ")),
                     key=lambda r: r["layers"])
    greedy = {g["layers"]: g for g in found["greedy"]}

    def above(value: float, error: float | None, least: float) -> bool | None:
        return inside(value - 2 * (error or 0.0), value + 2 * (error or 0.0), least)

    def harm(r: dict[str, Any]) -> bool | None:
        return above(r["Δ loss"], r["±"], HARMLESS)

    def wild(r: dict[str, Any]) -> bool | None:
        return above(clean + r["Δ loss"], r["±"], limit)

    def loops(r: dict[str, Any]) -> bool | None:
        share = greedy[r["layers"]]
        if greedy[0]["repeated"] >= LOOPS:
            return None
        return above(share["repeated"], share["±"], LOOPS)

    def negated(answer: bool | None) -> bool | None:
        return None if answer is None else not answer

    rules = (lambda r: negated(harm(r)), lambda r: both([harm(r), negated(wild(r))]), loops, wild)
    claims = ("do no harm", "destroy the text's meaning", "make the text repeat itself",
              "make the text noise")
    verdicts = []
    for k, (rule, said) in enumerate(zip(rules, claims)):
        own = [r for r in several if quarter(r["layers"], layers) == k]
        if k == 2:
            shares = [greedy[r["layers"]] for r in own]
            numbers = ", ".join(f"{share['repeated']:.2f} ± {share['±'] or 0.0:.2f} for "
                                f"n = {share['layers']}" for share in shares)
            because = ("share of 4-grams that occurred before, with random queries in the first n "
                       f"layers: {numbers}; {greedy[0]['repeated']:.2f} for n = 0")
        else:
            numbers = ", ".join(f"{r['Δ loss']:+.3f} ± {r['±'] or 0.0:.3f} for n = {r['layers']}"
                                for r in own)
            because = ("change of the loss in nats, with random queries in the first n layers: "
                       f"{numbers}; the clean loss is {clean:.2f}")
            because += f", ln V is {found['uniform']:.2f}" if k else ""
        named = ("the first quarter", "half", "three quarters", "more than three quarters")[k]
        claim = f"random queries in {named} of the layers {said}"
        verdicts.append(verdict(both([rule(r) for r in own]), claim,
                                because if own else f"no n of {layers} layers is in this quarter"))
    alone = {part: [r for r in noise if r["part"] == part and r["what"].startswith("layer ")]
             for part in PARTS}
    means = {part: float(np.mean([r["Δ loss"] for r in own])) for part, own in alone.items()}
    error = math.sqrt(sum((r["±"] or 0.0) ** 2 for part in "QV" for r in alone[part])) / layers
    more = [above(v["Δ loss"] - q["Δ loss"], math.hypot(v["±"] or 0.0, q["±"] or 0.0), 0.0)
            for q, v in zip(alone["Q"], alone["V"])]
    late = several[-1]
    return [
        *verdicts,
        verdict(harm(late), "random queries in all layers do harm",
                f"they change the loss by {late['Δ loss']:+.3f} ± {late['±'] or 0.0:.3f} nats"),
        verdict(True if all(more) else False if set(more) == {False} else None,
                "values matter more than queries",
                "replaced in one layer, they change the loss by "
                + ", ".join(f"{part} {means[part]:+.3f}" for part in PARTS)
                + f" nats on average; the standard error of V − Q is {error:.3f}; V changes it "
                f"more than Q in {more.count(True)} of {len(more)} layers"),
        verdict(found["restored"] == 0.0, "the weights are restored after each ablation",
                f"the loss differs by {found['restored']:g}"),
    ]


def draw(found: dict[str, Any]) -> Any:
    figure, axes = new_figure(12, 7.4, 2, 3)
    rows, layers = found["rows"], found["layers"]
    noise = [r for r in rows if r["by"] == "noise"]
    for panel in (axes[0, 0], axes[1, 0], axes[1, 1]):
        panel.set_yscale("symlog", linthresh=0.02)
        panel.margins(y=0.12)

    def points(panel: Any, x: Any, own: list[dict[str, Any]], key: str, error: str, shape: str,
               colour: str, label: str) -> None:
        panel.errorbar(x, [r[key] for r in own], [r[error] or 0.0 for r in own], fmt=shape,
                       color=colour, capsize=3, markersize=4, label=label)

    keys = (("Δ loss", "±"), ("KL", "± KL"), ("entropy of attention", "± entropy"))

    for k, part in enumerate((*PARTS, "bias")):
        own = [r for r in noise if r["part"] == part and r["what"].startswith("layer ")]
        at = np.arange(layers) + 0.08 * (k - 1.5)       # side by side, so that no bar hides another
        label = part if part == "bias" else f"W_{part}"
        for panel, (key, error) in zip(axes[0], keys):
            points(panel, at, own, key, error, "o-", COLOURS[k], label)
    axes[0, 0].set(title="one layer made noise: loss", ylabel="Δ loss, nats")
    axes[0, 1].set(title="one layer made noise: KL", ylabel="nats of the clean next token",
                   yscale="log")
    axes[0, 2].set(title="one layer made noise: entropy", ylabel="nats of attention")
    axes[0, 2].axhline(found["entropy"], color="black", linestyle="--", linewidth=1, label="clean")
    for panel in axes[0]:
        panel.set_xlabel("layer")
        panel.set_xticks(range(layers))
    ways = (("Q", "noise", 0), ("Q", "zero", 5), ("Q", "permuted", 4), ("K", "noise", 1),
            ("V", "noise", 2))
    for k, (part, how, colour) in enumerate(ways):
        own = [r for r in rows if r["part"] == part and r["by"] == how
               and r["what"].startswith("layers ")]
        beside = np.arange(1, layers + 1) + 0.08 * (k - 2)
        points(axes[1, 0], beside, own, "Δ loss", "±", "o-", COLOURS[colour], f"W_{part} {how}")
    axes[1, 0].axhline(NOISE * found["uniform"] - found["clean"], color="black", linestyle=":",
                       linewidth=1,
                       label=f"noise: loss above {NOISE:g} ln V")
    axes[1, 0].set(title="the first n layers: loss", xlabel="n", ylabel="Δ loss, nats")
    chosen = [r for r in noise if r["what"].startswith("head ")]
    for k, part in enumerate(PARTS):
        own = [r for r in chosen if r["part"] == part]
        if own:
            positions = np.arange(len(own)) + 0.25 * (k - 1)
            points(axes[1, 1], positions, own, "Δ loss", "±", "o", COLOURS[k], f"W_{part}")
    names = [r["what"].removeprefix("head ") for r in chosen if r["part"] == "Q"]
    per = len(names) // layers
    if len(names) <= 24:
        axes[1, 1].set_xticks(range(len(names)), names, fontsize=7, rotation=90)
    else:
        middle = np.arange(layers) * per + (per - 1) / 2
        axes[1, 1].set_xticks(middle, [str(i) for i in range(layers)])
    for i in range(1, layers):
        axes[1, 1].axvline(i * per - 0.5, color="#cccccc", linewidth=0.8)
    axes[1, 1].set(title="one head made noise: loss", ylabel="Δ loss, nats",
                   xlabel="layer.head" if len(names) <= 24 else "layer")
    points(axes[1, 2], [g["layers"] for g in found["greedy"]], found["greedy"], "repeated", "±",
           "o-", COLOURS[0], "W_Q noise")
    axes[1, 2].axhline(LOOPS, color="black", linestyle="--", linewidth=1,
                       label=f"loops: above {LOOPS:g}")
    axes[1, 2].set(title="4-grams repeated in greedy text", xlabel="n, the first n layers",
                   ylabel="share", ylim=(-0.03, 1.12))
    for panel in (axes[0, 0], axes[1, 0], axes[1, 1]):
        panel.axhline(HARMLESS, color="black", linestyle="--", linewidth=1,
                      label=f"harmless: below {HARMLESS:g}")
        panel.set_yticks(marks(panel), [f"{v:g}".replace("-", "−") for v in marks(panel)])
        panel.minorticks_off()
    for panel in (axes[1, 0], axes[1, 2]):
        panel.set_xticks([g["layers"] for g in found["greedy"]][0 if panel is axes[1, 2] else 1:])
        panel.set_xlim(0.5 - (panel is axes[1, 2]), layers + 0.5)
        for k, said in enumerate(CLAIMED):
            panel.text((k + 0.5) * layers / 4 + 0.5, 0.97, said, ha="center", va="top", fontsize=6,
                       color="#555555", transform=panel.get_xaxis_transform())
            panel.axvline(k * layers / 4 + 0.5, color="#cccccc", linewidth=0.8)
    for panel in axes.flat:
        legend_below(panel, 3)
    figure.suptitle("W_Q, W_K, W_V or the bias replaced (standard errors over seeds; "
                    "grey: what is claimed of these quarters)", fontsize=11)
    return figure


def marks(panel: Any) -> list[float]:
    """The ticks of a scale that is linear around 0 and logarithmic beyond."""
    low, high = panel.get_ylim()
    return [v for v in (-10.0, -1.0, -0.1, -0.02, 0.0, 0.02, 0.1, 1.0, 10.0) if low <= v <= high]
