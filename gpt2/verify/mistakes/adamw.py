"""Mistakes in a step of AdamW, and other programs' settings for it."""
from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

STEPS = {
    "no decay": "weight decay is left out",
    "coupled": "weight decay is added to the gradient (Adam with L2); AdamW takes it off the "
               "parameter itself",
    "decay alone": "weight decay is not multiplied by the learning rate",
    "decay plus": "weight decay has the wrong sign: parameters grow",
    "no correction": "the moments are not divided by 1 − βᵗ (bias correction)",
    "no first": "the first moment is not divided by 1 − β₁ᵗ (bias correction)",
    "no second": "the second moment is not divided by 1 − β₂ᵗ (bias correction)",
    "t stays 1": "the step count of the bias correction does not grow",
    "t from 2": "the step count of the bias correction begins at 2; t is 1 in the first step",
    "t twice": "the step count of the bias correction grows by 2 in a step",
    "t for each": "the step count grows with each parameter; it grows once in a step",
    "kept corrected": "the moments that are divided by 1 − βᵗ are kept; the correction is for the "
                      "step alone",
    "kept first": "the first moment that is divided by 1 − β₁ᵗ is kept; the correction is for the "
                  "step alone",
    "kept second": "the second moment that is divided by 1 − β₂ᵗ is kept; the correction is for "
                   "the step alone",
    "eps inside": "ε is inside the root; it is added to it: √v̂ + ε",
    "eps early": "ε is added before the bias correction of v; it is added after: √(v/(1 − β₂ᵗ)) + "
                 "ε",
    "no root": "the step is divided by v̂; it is divided by its root",
    "betas swapped": "β₁ and β₂ are swapped",
    "no square": "the second moment is of g; it is of g²",
    "square of m": "the second moment is of m², the first one's square; it is of g²",
    "m alone": "the step is m̂, not divided by √v̂",
    "g over root": "the step is the gradient divided by √v̂; it is m̂ divided by it",
    "second by first": "the second moment is divided by 1 − β₁ᵗ (bias correction); it is divided "
                       "by 1 − β₂ᵗ",
    "first twice": "the first moment is divided by 1 − β₁ᵗ twice",
    "own head": "the head is a parameter of its own that began as a copy of wte, with moments of "
                "its own; the two are one parameter",
    "second new by first": "the second moment's new part is multiplied by 1 − β₁; it is multiplied "
                           "by 1 − β₂",
    "first new by second": "the first moment's new part is multiplied by 1 − β₂; it is multiplied "
                           "by 1 − β₁",
    "points summed": "the gradients of activations are not zeroed between steps",
    "nesterov": "the step looks ahead: it takes β₁ m + (1 − β₁) g instead of m (NAdam)",
    "v is new": "the second moment is g² of this step alone; it is a running mean",
    "same gradient": "each step takes the first step's gradients",
    "no biases": "biases are not stepped",
    "last block stays": "the last block is not stepped: the loop over blocks ends one too early",
    "first block stays": "the first block is not stepped: the loop over blocks starts at 1",
    "tables stay": "wte and wpe are not stepped",
    "matrices": "only matrices decay; here all parameters do",
    "no norms": "LayerNorms do not decay; here all parameters do",
    "no bias decay": "biases do not decay; here all parameters do",
    "no tables": "wte and wpe do not decay; here all parameters do",
    "no positions": "wpe does not decay; here all parameters do",
    "blocks alone": "only the blocks' matrices decay (minGPT); here all parameters do",
    "table summed": "wte's gradient is not zeroed between steps",
    "moments kept not": "the moments start from zero at every step",
    "plain moments": "the moments' new part is not multiplied by 1 − β",
    "plain first": "the first moment's new part is not multiplied by 1 − β₁",
    "plain second": "the second moment's new part is not multiplied by 1 − β₂",
    "eps minus": "ε is taken away from the root; it is added",
    "summed": "gradients are not zeroed between steps",
    "all summed": "gradients are not zeroed between steps, of parameters and of activations",
    "head stays": "the head keeps its first table: it is a copy that AdamW does not step; it and "
                  "wte are one parameter",
    "clipped": "gradients are clipped to a norm of 1",
    "sgd": "that is a step of gradient descent, not of AdamW",
    "plus": "the step has the wrong sign",
    "tied twice": "the tied table is stepped twice, as wte and as lm_head; it is one parameter",
    "tied twice, one state": "the tied table is stepped twice with one state: the optimiser holds "
                             "it as wte and as lm_head",
    "tied twice, one state and count": "the tied table is stepped twice in each step, with one "
                                       "state; it is one parameter",
}
# which parameters do not decay
UNDECAYED: dict[str, Callable[[str, np.ndarray], bool]] = {
    "no decay": lambda name, x: True,
    "coupled": lambda name, x: True,
    "matrices": lambda name, x: x.ndim < 2,
    "no norms": lambda name, x: ".ln_" in name or name.startswith("ln_f"),
    "no bias decay": lambda name, x: name.endswith(".bias"),
    "no tables": lambda name, x: name.startswith(("wte", "wpe")),
    "no positions": lambda name, x: name.startswith("wpe"),
    "blocks alone": lambda name, x: x.ndim < 2 or not name.startswith("h."),
}
# which parameters AdamW does not step
UNSTEPPED: dict[str, Callable[[str, Sequence[str]], bool]] = {
    "no biases": lambda name, names: name.endswith(".bias"),
    "tables stay": lambda name, names: name.startswith(("wte", "wpe")),
    "first block stays": lambda name, names: name.startswith("h.0."),
    "last block stays": lambda name, names: name.startswith(
        f"h.{max(int(x.split('.')[1]) for x in names if x.startswith('h.'))}."),
}
# AdamW's settings, and the values that other programs use
SETTINGS: dict[str, tuple[str, tuple[float, ...]]] = {
    "lr": ("the learning rate", (1e-5, 3e-5, 1e-4, 3e-4, 6e-4, 1e-3, 3e-3, 1e-2)),
    "beta1": ("β₁", (0.0, 0.5, 0.8, 0.85, 0.9, 0.95, 0.98, 0.99)),
    "beta2": ("β₂", (0.9, 0.95, 0.98, 0.99, 0.995, 0.999, 0.9999)),
    "eps": ("ε", (0.0, 1e-12, 1e-10, 1e-9, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3)),
    "weight_decay": ("weight decay", (1e-4, 1e-3, 0.01, 0.05, 0.1, 0.2, 1.0)),
}


def clipped(slopes: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Gradients by name, scaled so that the norm of all together is at most 1."""
    norm = max(1.0, math.sqrt(sum(float(np.square(g).sum()) for g in slopes.values())))
    return {name: g / norm for name, g in slopes.items()}


class Optimizer:
    """AdamW with some mistakes of STEPS, or none; it steps parameters by name."""

    def __init__(self, settings: Mapping[str, float], wrong: Sequence[str] = ()) -> None:
        self.wrong, self.t = wrong, 0
        self.lr, self.beta1, self.beta2, self.eps, self.decay = (
            settings[key] for key in ("lr", "beta1", "beta2", "eps", "weight_decay"))
        if "betas swapped" in wrong:
            self.beta1, self.beta2 = self.beta2, self.beta1
        self.order: list[str] = []
        self.m, self.v, self.sums = dict[
            str, np.ndarray](), dict[str, np.ndarray](), dict[str, np.ndarray]()

    def step(self, own: Mapping[str, np.ndarray],
             slopes: Mapping[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
        """Each parameter's name and its array after the step, in the order of `slopes`."""
        self.t += 1
        self.order = list(own)                          # as the model has its parameters
        slopes = clipped(slopes) if "clipped" in self.wrong else slopes
        for name, g in slopes.items():
            x = own[name]
            if name == "wte.weight" and "tied twice" in self.wrong:
                x = self.updated("lm_head.weight", x, g)
            if name == "wte.weight" and "tied twice, one state and count" in self.wrong:
                x = self.updated(name, x, g)
            if name == "wte.weight" and "tied twice, one state" in self.wrong:
                self.t, now = 2 * self.t - 1, self.t
                x = self.updated(name, x, g)
                self.t += 1
                yield name, self.updated(name, x, g)
                self.t = now
                continue
            yield name, self.updated(name, x, g)

    def of(self, right: Any, **others: Callable[[], Any]) -> Any:
        """The value that a mistake gives a quantity; `right` if no mistake changes it.

        The quantity's name is the method's, with _ for a space.
        """
        return next((made()
                     for name, made in others.items() if name.replace("_", " ") in self.wrong),
                    right)

    def updated(self, name: str, x: np.ndarray, g: np.ndarray) -> np.ndarray:
        wrong, lr, b1, b2, eps = self.wrong, self.lr, self.beta1, self.beta2, self.eps
        if "same gradient" in wrong:
            g = self.sums.setdefault(name, g)
        if "summed" in wrong or "all summed" in wrong or (
            "table summed" in wrong and name == "wte.weight"):
            g = self.sums[name] = self.sums.get(name, 0.0) + g
        if "coupled" in wrong:
            g = g + self.decay * x
        keep = 0.0 if "moments kept not" in wrong else 1.0
        new1, new2 = (1.0, 1.0) if "plain moments" in wrong else (1.0 - b1, 1.0 - b2)
        new1, new2 = self.of(new1, plain_first=lambda: 1.0,
                             first_new_by_second=lambda: 1.0
                             - b2), self.of(new2, plain_second=lambda: 1.0,
                                            second_new_by_first=lambda: 1.0 - b1)
        m = self.m[name] = keep * b1 * self.m.get(name, 0.0) + new1 * g
        v = self.v[name] = keep * b2 * self.v.get(name, 0.0) + new2 * self.of(
            g * g, no_square=lambda: np.abs(g), square_of_m=lambda: m * m)
        t = self.of(self.t, t_stays_1=lambda: 1, t_from_2=lambda: self.t + 1,
                    t_twice=lambda: 2 * self.t,
                    t_for_each=lambda: (self.t - 1) * len(self.order) + 1 + self.order.index(name))
        c1 = self.of(1.0 - b1**t, no_correction=lambda: 1.0, no_first=lambda: 1.0)
        c1 = c1 * c1 if "first twice" in wrong else c1
        c2 = self.of(1.0 - b2**t, no_correction=lambda: 1.0, no_second=lambda: 1.0,
                     second_by_first=lambda: 1.0 - b1**t)
        if {"kept corrected", "kept first"} & set(wrong):
            self.m[name] = m / c1
        if {"kept corrected", "kept second"} & set(wrong):
            self.v[name] = v / c2
        m = b1 * m + (1.0 - b1) * g if "nesterov" in wrong else m
        v, c2 = (g * g, 1.0) if "v is new" in wrong else (v, c2)
        root = self.of(np.sqrt(v / c2) + eps, eps_minus=lambda: np.sqrt(v / c2) - eps,
                       eps_inside=lambda: np.sqrt(v / c2 + eps),
                       eps_early=lambda: (np.sqrt(v) + eps) / math.sqrt(c2),
                       no_root=lambda: v / c2 + eps, m_alone=lambda: 1.0)
        move = lr * self.of(m / c1 / root, sgd=lambda: g, g_over_root=lambda: g / root)
        if any(kind in wrong and stays(name, self.order) for kind, stays in UNSTEPPED.items()):
            return x
        if not any(kind in wrong and stays(name, x) for kind, stays in UNDECAYED.items()):
            x = x * (1.0
                     + self.of(-lr, decay_plus=lambda: lr, decay_alone=lambda: -1.0) * self.decay)
        return x + move if "plus" in wrong else x - move
