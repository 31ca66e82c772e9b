"""Can a GPT with 85 thousand parameters learn to sort six digits, and where does it attend?"""
from __future__ import annotations

import itertools
from typing import Any

import numpy as np

import minigrad as mg

from ..config import GPT2Config
from ..inspect import page
from ..inspect.attention import patterns
from ..io.plots import COLOURS, name_ticks, new_figure
from ..model import GPT2
from .lab import Lab, Verdict, verdict

EQUATION = ("x = a_1 … a_6 s_1 … s_5, targets s_1 … s_6 at positions 5 … 10, none before, "
            "with s = sort(a);\n"
            "3 layers, 3 heads, width 48, untied head")
N, KINDS, EXAMPLE, BATCH, MOST = 6, 3, [2, 1, 0, 1, 1, 2], 64, 3000


def pairs(digits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Inputs [B, 11] and targets [B, 11] of digits [B, 6]; a target of −100 is ignored."""
    whole = np.concatenate([digits, np.sort(digits, axis=1)], axis=1)   # [B, 12]
    targets = whole[:, 1:].copy()
    targets[:, :N - 1] = -100
    return whole[:, :-1], targets


def sorts(model: Any, digits: np.ndarray) -> np.ndarray:
    """Which rows [B, 6] the model sorts correctly, greedily and one digit at a time."""
    ids = digits
    with mg.no_grad():
        for _ in range(N):
            chosen = model(ids, last=1).numpy()[:, -1].argmax(-1)       # [B]
            ids = np.concatenate([ids, chosen[:, None]], axis=1)
    return (ids[:, N:] == np.sort(digits, axis=1)).all(1)


def measure(lab: Lab) -> dict[str, Any]:
    config = GPT2Config(vocab_size=KINDS, n_positions=2 * N - 1, n_embd=48, n_layer=3, n_head=3,
                        tie_word_embeddings=False, resid_pdrop=0.0, embd_pdrop=0.0,
                        attn_pdrop=0.0, bos_token_id=None, eos_token_id=None)
    model = GPT2(config, backend=lab.device, seed=lab.seed)
    every = np.array(list(itertools.product(range(KINDS), repeat=N)))   # [729, 6]
    rng = np.random.default_rng(lab.seed)
    optimizer = mg.optim.AdamW(mg.optim.decay_groups(model.parameters(), 0.1), 2e-3, (0.9, 0.95))
    losses, rows = [], []
    model.train()
    for step in range(1, MOST + 1):
        x, y = pairs(every[rng.integers(0, len(every), BATCH)])
        optimizer.zero_grad()
        loss = model.loss(x, y)
        loss.backward()
        mg.optim.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        if step % 50 == 0:
            right = int(sorts(model, every).sum())
            rows.append({"step": step, "loss": float(np.mean(losses[-50:])), "sorted": right,
                         "of": len(every)})
            if right == len(every):
                break
    model.eval()
    with mg.no_grad():
        ids = list(EXAMPLE)
        for _ in range(N):
            ids.append(int(model([ids], last=1).numpy()[0, -1].argmax()))
    found = patterns(model, ids[:-1])
    document = page.document(model, None, ids[:-1], "nano-sort", 1_500_000)
    lab.files["nano-sort.html"] = page.html(document)
    wrong = every[~sorts(model, every)][:5].tolist()
    bare = sum(block.attn.c_attn.bias.numel() for block in model.h)
    n = model.num_parameters()
    return {"rows": rows, "losses": losses, "example": ids, "patterns": found.tolist(),
            "parameters": n, "without": bare, "wrong": wrong,
            "notes": [f"{EXAMPLE} → {ids[N:]}; {n:,} parameters, {n - bare:,} without the "
                      "biases of Q, K and V; nano-sort.html traces it"]}


def judge(found: dict[str, Any]) -> list[Verdict]:
    """All 729 rows are sorted correctly, the example is sorted, and the parameters are counted."""
    last = found["rows"][-1]
    return [
        verdict(last["sorted"] == last["of"],
                "a GPT of this size learns to sort all 729 rows of six digits",
                f"it sorts {last['sorted']} of {last['of']} rows after {last['step']} steps of "
                f"{BATCH} rows"),
        verdict(found["example"][N:] == sorted(EXAMPLE), f"it sorts {EXAMPLE}",
                f"its result is {found['example'][N:]}"),
        verdict(found["parameters"] == 85_296, "it has 85,296 parameters",
                f"{found['parameters']:,} with all biases, "
                f"{found['parameters'] - found['without']:,} without those of Q, K and V"),
    ]


def draw(found: dict[str, Any]) -> Any:
    layers, heads = np.array(found["patterns"]).shape[:2]
    figure, axes = new_figure(11, 5.4, layers, heads + 1)
    for panel in axes[1:, 0]:
        panel.set_visible(False)
    axes[0, 0].semilogy(found["losses"], color=COLOURS[0], linewidth=0.8)
    axes[0, 0].set(title="loss on the sorted half", xlabel="step", ylabel="nats")
    right = axes[1, 0]
    right.set_visible(True)
    right.plot([row["step"] for row in found["rows"]], [row["sorted"] for row in found["rows"]],
               "o-", color=COLOURS[2], markersize=3)
    right.axhline(729, color="black", linestyle="--", linewidth=1)
    right.set(title="rows sorted, of 729", xlabel="step")
    names = [str(i) for i in found["example"][:-1]]
    for i, j in np.ndindex(layers, heads):
        panel, a = axes[i, j + 1], np.array(found["patterns"][i][j])
        shown = np.where(np.tri(len(a), dtype=bool), a, np.nan)
        panel.imshow(shown, cmap="Blues", vmin=0.0, vmax=1.0)
        panel.set_title(f"head {i}.{j}", fontsize=8)
        panel.axhline(N - 1.5, color=COLOURS[1], linewidth=1)
        for axis in "xy":
            name_ticks(panel, axis, names, fontsize=7)
    figure.suptitle(f"{EXAMPLE} sorted: heads from each digit (down) to those before; "
                    "below the line it writes the sorted ones", fontsize=9)
    return figure
