"""What does tying the head to the embedding change, and what does an untied parameter break?

The second parameter is either on the same memory as the embedding, or on a copy.
"""
from __future__ import annotations

from typing import Any

import numpy as np

import minigrad as mg

from ..config import PUBLISHED, GPT2Config
from ..io.plots import COLOURS, legend_below, new_figure
from ..model import GPT2
from .lab import BETAS, DECAY, Lab, Verdict, held_out, small_config, spread, train, verdict

EQUATION = ("logits = x Wᵀ with W the token table;  "
            "∂L/∂W = ∂L/∂W_embedding + ∂L/∂W_head   (embedding.3, linear.2)")
STEPS, SEEDS, BLOCK, VOCAB = 100, 5, 64, GPT2Config().vocab_size
HEADS = ("tied", "shared", "copied")
T95 = {2: 12.706, 5: 2.776}                             # Student's t, 95 %, by the number of pairs


def model_with(head: str, lab: Lab, seed: int, dtype: str = "float32") -> GPT2:
    """A model with one of HEADS; the initial numbers are the same for all of them.

    tied: one parameter. shared: Parameter(embedding.weight), a second parameter on the same memory
    (tying.3). copied: a second parameter on its own memory   (tying.4).
    """
    vocab = lab.model.config.vocab_size
    tied = GPT2(small_config(vocab), backend=lab.device, dtype=dtype, seed=seed)
    if head == "tied":
        return tied
    own = {name: p.array for name, p in tied.named_parameters()}
    own["lm_head.weight"] = own["wte.weight"].copy()
    model = GPT2(small_config(vocab, tie_word_embeddings=False), backend=lab.device, dtype=dtype,
                 parameters=own)
    if head == "shared":
        model.lm_head.weight = mg.Parameter(model.wte.weight)
    return model


def groups(model: GPT2, decay: float = DECAY) -> list[dict[str, Any]]:
    """Parameter groups for an optimiser.

    An untied head has its own group, the last one: a GPU would change all parameters of one group
    at once, and so write the same memory twice.
    """
    head = [] if model.lm_head.weight is model.wte.weight else [model.lm_head.weight]
    others = [p for p in model.parameters() if not head or p is not head[0]]
    rest = mg.optim.decay_groups(others, decay)
    return [*rest, {"params": head, "weight_decay": decay}] if head else rest


def tables(model: GPT2) -> np.ndarray:
    """The tables that the model reads as embedding and as head, [2, V, d]."""
    return np.stack([model.wte.weight.numpy(), model.lm_head.weight.numpy()])


def first_step(model: GPT2, optimizer: Any, rows: np.ndarray) -> np.ndarray:
    """The change of both tables in the optimiser's first step on these rows, [2, V, d]."""
    before = tables(model)
    model.loss(rows[:, :-1], rows[:, 1:]).backward()
    optimizer.step()
    return tables(model) - before


def one_memory(model: GPT2) -> bool:
    """Whether embedding and head share their memory; this overwrites the embedding."""
    model.wte.weight.array[...] = 1.0
    return bool((model.lm_head.weight.numpy() == 1.0).all())


def away(a: np.ndarray, b: np.ndarray) -> float:
    """‖a − b‖/‖b‖"""
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def measure(lab: Lab) -> dict[str, Any]:
    ids, rows = lab.apart(32, BLOCK)
    grads, steps = {}, {}
    for head in HEADS:
        model = model_with(head, lab, lab.seed, "float64")
        plain = first_step(model, mg.optim.SGD(groups(model, 0.0), 0.1), rows[:4])
        grads[head] = {name: p.grad.numpy()
                       for name, p in model.named_parameters() if p.grad is not None}
        model = model_with(head, lab, lab.seed, "float64")
        steps[head] = plain, first_step(model, mg.optim.AdamW(groups(model), 3e-3, BETAS), rows[:4])
    parts = {name: grads["copied"][name] for name in ("wte.weight", "lm_head.weight")}
    total = parts["wte.weight"] + parts["lm_head.weight"]
    table, losses, held = [], dict[str, list[float]](), dict[str, list[float]]()
    for head in HEADS:
        held[head] = []
        for seed in range(lab.seed, lab.seed + SEEDS):
            model = model_with(head, lab, seed)
            made = train(model, model.loss, ids, steps=STEPS, rows=8, block=BLOCK, seed=seed,
                         groups=groups(model))
            losses.setdefault(head, made.losses)
            held[head].append(held_out(model.loss, rows))
        embedding, unembedding = tables(model)
        sgd, adamw = (away(own, tied) for own, tied in zip(steps[head], steps["tied"]))
        table.append({"head": head, "parameters": model.num_parameters(),
                      "entries": sum(len(group["params"]) for group in groups(model)),
                      "first step off, SGD": sgd, "first step off, AdamW": adamw,
                      "loss": float(np.mean(held[head])), "apart": away(unembedding, embedding),
                      "one memory": one_memory(model)})
    return {
        "rows": table, "losses": losses, "held": held, "steps": STEPS,
        "sum": float(np.abs(grads["tied"]["wte.weight"] - total).max()),
        "scale": float(np.abs(total).max()),
        "parts": {name: float(np.linalg.norm(part)) for name, part in parts.items()},
        "unsummed": min(away(grads["shared"][name], total) for name in parts),
        "saved": {name: VOCAB * sizes["n_embd"] for name, sizes in PUBLISHED.items()},
        "notes": [f"tying saves {VOCAB * sizes['n_embd']:,} parameters in {name}"
                  for name, sizes in PUBLISHED.items()],
    }


def judge(found: dict[str, Any]) -> list[Verdict]:
    """The gradients are equal within 100 eps of the largest number, in float64.

    "Not tying": there is one more optimiser entry on one memory, no gradient is within 1 % of the
    sum, and AdamW's first step is more than 1 % away from the tied one. "Trains wrongly": that step
    is away, and the held-out loss is higher, in pairs by seed, at 95 % of Student's t.
    """
    eps = float(np.finfo(np.float64).eps)
    rows = {row["head"]: row for row in found["rows"]}
    parts, tied, shared = found["parts"], rows["tied"], rows["shared"]
    more, one = shared["entries"] - tied["entries"], shared["one memory"]
    step = shared["first step off, AdamW"]
    return [
        verdict(found["sum"] <= 100 * eps * found["scale"] and min(parts.values()) > 0.0,
                "the tied gradient is the sum of both uses",
                f"its largest difference from the sum is {found['sum']:.1e}, where the largest "
                f"number is {found['scale']:.2g}; the norms of the two parts are "
                f"{parts['wte.weight']:.3g} and {parts['lm_head.weight']:.3g}"),
        verdict(more == 1 and found["unsummed"] > 0.01 and step > 0.01 if one else None,
                "Parameter(embedding.weight) is not tying: "
                "two optimiser entries, gradients not summed",
                f"{'one memory' if one else 'two memories'}, but {shared['entries']} optimiser "
                f"entries, where the tied model has {tied['entries']}; the relative difference of "
                f"its gradients from the sum is {found['unsummed']:.2f} or more; its first step "
                f"differs from the tied one by {step:.2f} with AdamW, and by "
                f"{shared['first step off, SGD']:.0e} with SGD, where both parts add up"),
        _trained(found, shared, "Parameter(embedding.weight) trains wrongly"),
        _trained(found, rows["copied"], "a copied parameter trains wrongly"),
        verdict(found["saved"]["gpt2"] == 38_597_376,
                "tying saves 38,597,376 parameters in GPT-2 small", f"{found['saved']['gpt2']:,}"),
    ]


def _trained(found: dict[str, Any], row: dict[str, Any], claim: str) -> Verdict:
    held = {head: np.array(losses) for head, losses in found["held"].items()}
    more, error = spread(held[row["head"]] - held["tied"])
    pairs = len(held["tied"])
    worse = None if abs(more) < T95[pairs] * error else more > 0.0
    step = row["first step off, AdamW"]
    return verdict(worse if step > 0.01 else False, claim,
                   f"the first step differs from the tied one by {step:.2f}; after "
                   f"{found['steps']} steps the held-out loss differs by {more:+.4f} ± {error:.4f} "
                   f"nats ({pairs} pairs of seeds), and the two tables differ by "
                   f"{100 * row['apart']:.0f} %")


def draw(found: dict[str, Any]) -> Any:
    figure, axes = new_figure(11, 3.4, 1, 3)
    for i, (colour, (name, losses)) in enumerate(zip(COLOURS, found["losses"].items())):
        smooth = np.convolve(losses, np.ones(10) / 10, "valid")
        axes[0, 0].plot(np.arange(len(smooth)) + 10, smooth, color=colour, label=name)
        axes[0, 1].plot([i] * len(found["held"][name]), found["held"][name], "o", color=colour)
    axes[0, 0].set(title="tied, shared and copied", xlabel="step",
                   ylabel="training loss, nats (mean of 10)")
    legend_below(axes[0, 0])
    axes[0, 1].set_xticks(range(len(found["held"])), list(found["held"]))
    axes[0, 1].set(title=f"held-out loss after {found['steps']} steps, a dot a seed", ylabel="nats")
    axes[0, 1].margins(x=0.3)
    axes[0, 2].bar(["embedding", "head"], list(found["parts"].values()), color=COLOURS[3:5])
    axes[0, 2].set(title="two gradients that a tied table adds", ylabel="norm at the start")
    return figure
