"""What does it mean that the head is the embedding, and what goes wrong with a copy?"""
from __future__ import annotations

from typing import Any

import numpy as np

from ..config import PUBLISHED, GPT2Config
from ..figures import COLOURS, new_figure
from ..model import GPT2
from .lab import Lab, Verdict, held_out, small_config, train, verdict

EQUATION = "logits = x Wᵀ with W the token table;  ∂L/∂W = ∂L/∂W_embedding + ∂L/∂W_head   (embedding.3, linear.2)"
STEPS, VOCAB = 150, GPT2Config().vocab_size


def measure(lab: Lab) -> dict[str, Any]:
    ids = lab.text_ids
    rows = lab.blocks(32, 64)
    config = small_config(lab.model.config.vocab_size)
    tied = GPT2(config, backend=lab.device, dtype="float64", seed=lab.seed)
    own = dict(tied.named_parameters())
    apart = GPT2(small_config(config.vocab_size, tie_word_embeddings=False), backend=lab.device, dtype="float64",
                 parameters={**{k: p.array for k, p in own.items()}, "lm_head.weight": own["wte.weight"].array.copy()})
    grads = {}
    for name, model in (("tied", tied), ("apart", apart)):
        model.zero_grad()
        model.loss(rows[:4, :-1], rows[:4, 1:]).backward()
        grads[name] = {k: p.grad.numpy() for k, p in model.named_parameters() if p.grad is not None}
    total = grads["apart"]["wte.weight"] + grads["apart"]["lm_head.weight"]
    sums = float(np.abs(grads["tied"]["wte.weight"] - total).max())
    single = GPT2(config, backend=lab.device, seed=lab.seed)
    start = {k: p.array.copy() for k, p in single.named_parameters()}
    # Parameter(embedding.weight) makes a second entry of the optimiser with a gradient of its own: the same start, and then two
    # tables   (tying.3)
    copied = GPT2(small_config(config.vocab_size, tie_word_embeddings=False), backend=lab.device,
                  parameters={**start, "lm_head.weight": start["wte.weight"].copy()})
    table = []
    for name, model in (("tied", single), ("copied", copied)):
        made = train(model, model.loss, ids, steps=STEPS, rows=8, block=64, seed=lab.seed)
        head, embedding = model.lm_head.weight.numpy(), model.wte.weight.numpy()
        table.append({"head": name, "parameters": model.num_parameters(), "loss": held_out(model.loss, rows),
                      "apart": float(np.linalg.norm(head - embedding) / np.linalg.norm(embedding)), "losses": made.losses})
    return {
        "rows": [{k: v for k, v in row.items() if k != "losses"} for row in table], "losses": {row["head"]: row["losses"] for row in table},
        "sum": sums, "scale": float(np.abs(total).max()),
        "parts": {name: float(np.linalg.norm(grads["apart"][name])) for name in ("wte.weight", "lm_head.weight")},
        "saved": {name: VOCAB * sizes["n_embd"] for name, sizes in PUBLISHED.items()}, "steps": STEPS,
        "notes": [f"tying saves {VOCAB * sizes['n_embd']:,} parameters in {name}" for name, sizes in PUBLISHED.items()],
    }


def judge(found: dict[str, Any]) -> list[Verdict]:
    """The gradients equal to 100 eps of the largest, in float64. A copy is no tying where the two tables are 1 % apart after training."""
    eps = float(np.finfo(np.float64).eps)
    rows = {row["head"]: row for row in found["rows"]}
    parts = found["parts"]
    return [
        verdict(found["sum"] <= 100 * eps * found["scale"] and min(parts.values()) > 0.0, "the tied gradient is the sum of both uses",
                f"off by {found['sum']:.1e} of {found['scale']:.2g}; norms {parts['wte.weight']:.3g} and {parts['lm_head.weight']:.3g}"),
        verdict(rows["tied"]["apart"] == 0.0 and rows["copied"]["apart"] > 0.01, "Parameter(embedding.weight) is not tying",
                f"after {found['steps']} steps the copy is {100 * rows['copied']['apart']:.0f} % away and has "
                f"{rows['copied']['parameters'] - rows['tied']['parameters']:,} parameters more"),
        verdict(found["saved"]["gpt2"] == 38_597_376, "tying saves 38,597,376 parameters in GPT-2 small", f"{found['saved']['gpt2']:,}"),
    ]


def draw(found: dict[str, Any]) -> Any:
    figure, axes = new_figure(8, 3.4, 1, 2)
    for colour, (name, losses) in zip(COLOURS, found["losses"].items()):
        smooth = np.convolve(losses, np.ones(10) / 10, "valid")
        axes[0, 0].plot(np.arange(len(smooth)) + 10, smooth, color=colour, label=name)
    axes[0, 0].set(title="tied, and copied by mistake", xlabel="step", ylabel="training loss, nats (mean of 10)")
    axes[0, 0].legend(fontsize=8)
    axes[0, 1].bar(["embedding", "head"], list(found["parts"].values()), color=COLOURS[:2])
    axes[0, 1].set(title="two gradients that a tied table adds", ylabel="norm at the start")
    return figure
