"""How large is the curvature of a small GPT-2's loss, and in how many directions is it large?"""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import minigrad as mg

from ..io.plots import COLOURS, legend_below, new_figure
from ..model import GPT2
from .lab import Lab, Verdict, small_config, train, verdict

EQUATION = ("H v = ∇⟨∇L(θ), v⟩, backward through backward; "
            "Lanczos: H Q = Q T + r eᵀ, and the small T has the outer eigenvalues of H;\n"
            "L(θ + αv) = L + α⟨g, v⟩ + ½ α² ⟨v, H v⟩ + …")
STEPS, LANCZOS, TOP = 60, 24, 3
ALPHAS = np.linspace(-0.4, 0.4, 21)


def products(model: Any, x: np.ndarray, y: np.ndarray,
             ) -> tuple[Callable[[np.ndarray], np.ndarray], np.ndarray, list[Any]]:
    """The function v ↦ H v on flat vectors, the flat gradient, and the parameters."""
    params = list(model.parameters())
    loss = model.loss(x, y)
    slopes = mg.gradients(loss, params, create_graph=True)

    def product(v: np.ndarray) -> np.ndarray:
        parts = _split(v, params)
        dot = mg.sum(slopes[0] * parts[0])
        for g, part in zip(slopes[1:], parts[1:]):
            dot = dot + mg.sum(g * part)
        return _flat(mg.gradients(dot, params, retain_graph=True))

    return product, _flat(slopes), params


def _split(v: np.ndarray, params: list[Any]) -> list[mg.Tensor]:
    ends = np.cumsum([p.numel() for p in params])
    return [mg.Tensor(mg.backend.of(p.array).adopt(np.ascontiguousarray(part.reshape(p.shape))))
            for part, p in zip(np.split(v, ends[:-1]), params)]


def _flat(tensors: Any) -> np.ndarray:
    return np.concatenate([t.numpy().reshape(-1) for t in tensors])


def lanczos(product: Callable[[np.ndarray], np.ndarray], n: int, steps: int, seed: int,
            ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ritz values, their vectors [n, steps], and a bound on each one's distance from an eigenvalue.

    All vectors are kept orthogonal (Lanczos 1950; the bound |β s_k| is Paige's).
    """
    rng = np.random.default_rng(seed)
    basis = [rng.standard_normal(n)]
    basis[0] /= np.linalg.norm(basis[0])
    alphas, betas = [], []
    for _ in range(steps):
        w = product(basis[-1])
        alphas.append(float(w @ basis[-1]))
        for _ in range(2):                              # two passes are enough (Parlett 1980)
            for q in basis:
                w -= (w @ q) * q
        betas.append(float(np.linalg.norm(w)))
        if betas[-1] < 1e-12:
            break
        basis.append(w / betas[-1])
    k = len(alphas)
    off = np.diag(betas[:k - 1], 1) + np.diag(betas[:k - 1], -1)
    values, vectors = np.linalg.eigh(np.diag(alphas) + off)
    return values, np.stack(basis[:k], 1) @ vectors, np.abs(betas[k - 1] * vectors[-1])


def measure(lab: Lab) -> dict[str, Any]:
    vocab = 64
    ids = lab.text_ids % vocab                          # a small vocabulary keeps the matrix small
    config = small_config(vocab, n_embd=32, n_head=2, n_positions=32)
    first = GPT2(config, backend=lab.device, dtype="float64", seed=lab.seed).eval()
    start = {name: p.numpy().copy() for name, p in first.named_parameters()}
    trained = GPT2(config, backend=lab.device, dtype="float64",
                   parameters={name: a.copy() for name, a in start.items()})
    train(trained, trained.loss, ids, steps=STEPS, rows=8, block=32, seed=lab.seed)
    text = ids[:8 * 33].reshape(8, 33)
    x, y = text[:, :-1], text[:, 1:]
    rows, curves, spectrum = [], {}, {}
    for name, model in (("untrained", first), ("trained", trained)):
        product, gradient, params = products(model, x, y)
        n = gradient.size
        values, vectors, errors = lanczos(product, n, LANCZOS, lab.seed)
        top = np.argsort(-np.abs(values))[:TOP]
        spectrum[name] = values.tolist()
        at = [p.numpy().copy() for p in params]

        def along(v: np.ndarray, a: float, model: Any = model, params: list[Any] = params,
                  at: list[np.ndarray] = at) -> float:
            """The loss at θ + a v."""
            for p, own, part in zip(params, at, _split(v, params)):
                p.assign(part.array * a + mg.backend.of(p.array).adopt(own))
            try:
                with mg.no_grad():
                    return float(model.loss(x, y).item())
            finally:
                for p, own in zip(params, at):
                    p.assign(mg.backend.of(p.array).adopt(own.copy()))

        other = np.random.default_rng(lab.seed + 1).standard_normal(n)
        other /= np.linalg.norm(other)
        flat = product(other)                           # the graph needs the parameters unchanged
        sharpest = vectors[:, top[0]]
        symmetric = abs(float(other @ product(sharpest) - sharpest @ flat))
        for rank, k in enumerate(top):
            v, h = vectors[:, k], 1e-3
            second = (along(v, h) - 2 * along(v, 0.0) + along(v, -h)) / h**2
            rows.append({"model": name, "eigenvalue": float(values[k]),
                         "± at most": float(errors[k]), "second difference": second,
                         "share of the gradient":
                             float((gradient @ v) ** 2 / (gradient @ gradient)),
                         "rank": rank + 1})
        slope = float(gradient @ sharpest)
        curves[name] = {"top": [along(sharpest, a) for a in ALPHAS],
                        "random": [along(other, a) for a in ALPHAS],
                        "parabola": [along(sharpest, 0.0) + a * slope
                                     + 0.5 * a * a * float(values[top[0]]) for a in ALPHAS],
                        "random curvature": float(other @ flat), "symmetric": symmetric}
    return {"rows": rows, "curves": curves, "spectrum": spectrum, "parameters": n,
            "notes": [f"{n:,} parameters; curvature in a random direction: "
                      + ", ".join(f"{k} {c['random curvature']:.2e}" for k, c in curves.items())]}


def judge(found: dict[str, Any]) -> list[Verdict]:
    """Eigenvalues equal second differences of the loss, within 1 % of the largest and their bound.

    H is symmetric to 1e-9. The largest curvature is more than 50 times that in a random direction.
    """
    off = max(abs(r["eigenvalue"] - r["second difference"]) - r["± at most"] for r in found["rows"])
    size = max(abs(r["eigenvalue"]) for r in found["rows"])
    largest = {name: max(abs(r["eigenvalue"]) for r in found["rows"] if r["model"] == name)
               for name in found["curves"]}
    random = {name: abs(c["random curvature"]) for name, c in found["curves"].items()}
    uneven = [largest[name] > 50 * random[name] for name in largest]
    return [
        verdict(off < 0.01 * size
                and max(c["symmetric"] for c in found["curves"].values()) < 1e-9 * size,
                "backward through backward computes the loss's curvature",
                f"eigenvalues and second differences differ by at most {max(off, 0.0):.1e} beyond "
                f"the bound; the largest eigenvalue is {size:.2f}"),
        verdict(True if all(uneven) else None if any(uneven) else False,
                "the curvature is large in few directions: in a random one it is less than a "
                "fiftieth of the largest",
                "; ".join(f"{name}: the largest is {largest[name]:.2f}, in a random direction it "
                          f"is {random[name]:.1e}" for name in largest)),
    ]


def draw(found: dict[str, Any]) -> Any:
    figure, axes = new_figure(11, 3.6, 1, 3)
    for panel, (name, c) in zip(axes[0, :2], found["curves"].items()):
        panel.plot(ALPHAS, c["top"], "o-", color=COLOURS[0], markersize=3,
                   label="most curved direction")
        panel.plot(ALPHAS, c["parabola"], "--", color="black", linewidth=1,
                   label="its parabola, by H")
        panel.plot(ALPHAS, c["random"], color=COLOURS[1], label="random direction")
        panel.set(title=f"{name}: loss along a line", xlabel="α", ylabel="nats")
        legend_below(panel)
    for i, (name, values) in enumerate(found["spectrum"].items()):
        axes[0, 2].plot(values, [i] * len(values), "|", color=COLOURS[i], markersize=24, label=name)
    axes[0, 2].set_xscale("symlog", linthresh=0.01)
    reach = max(abs(v) for values in found["spectrum"].values() for v in values)
    # every second power of ten, because there is no room for more
    marks = [mark for mark in (0.1, 10.0, 1000.0) if mark <= max(reach, 0.1)]
    names = [*(f"−{mark:g}" for mark in marks[::-1]), "0", *(f"{mark:g}" for mark in marks)]
    axes[0, 2].set_xticks([*(-mark for mark in marks[::-1]), 0.0, *marks], names)
    axes[0, 2].set_yticks([0, 1], list(found["spectrum"]))
    axes[0, 2].set(title=f"Ritz values, {LANCZOS} steps of Lanczos", xlabel="eigenvalue",
                   ylim=(-0.6, 1.6))
    return figure
