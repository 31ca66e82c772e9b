"""Is causal averaging a product with a triangular matrix, and the softmax of a mask?"""
from __future__ import annotations

from typing import Any

import numpy as np

import minigrad as mg

from ..io.plots import new_figure
from .lab import Lab, Verdict, verdict

EQUATION = ("y = A x, A = tril(1) with rows normalised = softmax(log tril(1)); "
            "A_ts = 1/(t + 1) for s ≤ t, 0 after   (causal.1–2)")
CLAIM = ("averaging the past is the softmax of a causal mask, "
         "and no output depends on a later input")
T = 8


def measure(lab: Lab) -> dict[str, Any]:
    """Compute A, the softmax of the mask, and the derivatives by later inputs.

    A is (causal.1), the softmax of the mask is (causal.2), and the derivatives are those of A and
    of a block of the model (causal.4).
    """
    ones = mg.tril(lab.tensor(np.ones((T, T)), "float64"))
    averaged = ones / mg.sum(ones, axis=-1, keepdims=True)                      # [T, T]
    # the logarithm of tril(1), with the lowest number in the place of −∞
    mask = np.where(np.tri(T, dtype=bool), 0.0, np.finfo(np.float64).min)       # [T, T]
    softened = mg.softmax(lab.tensor(mask, "float64"))                          # [T, T]
    x = lab.tensor(np.random.default_rng(lab.seed).standard_normal((1, T, 4)), "float64")
    alone = mg.jacobian(lambda x: mg.matmul(softened, x))(x).numpy().reshape(T, 4, T, 4)
    model = lab.model
    embedded = mg.Tensor(model.wte.weight.array[:T][None]).detach()
    block = mg.jacobian(lambda x: mg.sum(model.h[0](x), axis=-1))(embedded).numpy()[0]
    # block: [T, 1, T, d]
    slopes = np.abs(block.reshape(T, T, -1)).max(-1)
    later = np.triu(np.ones((T, T), bool), 1)
    identity = np.einsum("ts,de->tdse", averaged.numpy(), np.eye(4))            # [T, 4, T, 4]
    return {
        "rows": [{"query t": t, "row of A": averaged.numpy()[t].round(4).tolist(),
                  "1/(t+1)": 1 / (t + 1),
                  "largest slope from a later input, A":
                      float(np.abs(alone[t][:, later[t]]).max(initial=0.0)),
                  "… a block of the model": float(slopes[t, later[t]].max(initial=0.0))}
                 for t in range(T)],
        "difference": float(np.abs(averaged.numpy() - softened.numpy()).max()),
        "jacobian": float(np.abs(alone - identity).max()),
        "later": float(max(np.abs(alone[:, 0, :, 0])[later].max(), slopes[later].max())),
        "earlier": float(slopes[~later].min()),
        "matrix": averaged.numpy().tolist(), "slopes": slopes.tolist(),
    }


def judge(found: dict[str, Any]) -> list[Verdict]:
    """The two matrices are equal, and the Jacobian is the matrix, within 4 eps of float64.

    The derivatives by later inputs are exactly 0.
    """
    bound = 4 * np.finfo(np.float64).eps
    holds = (found["difference"] <= bound and found["jacobian"] <= bound
             and found["later"] == 0.0 and found["earlier"] > 0.0)
    return [verdict(holds, CLAIM,
                    f"the two matrices differ by {found['difference']:.1e}; the largest derivative "
                    f"by a later input is {found['later']:g}, the smallest by an earlier one "
                    f"{found['earlier']:.1e}")]


def draw(found: dict[str, Any]) -> Any:
    figure, axes = new_figure(8, 3.6, 1, 2)
    panels = ((axes[0, 0], found["matrix"], "A: row t averages the inputs 0 … t"),
              (axes[0, 1], found["slopes"], "|∂y_t/∂x_s| through a trained block"))
    for panel, values, title in panels:
        a = np.array(values)
        shown = panel.imshow(np.where(a == 0.0, np.nan, a), cmap="Blues", vmin=0.0)
        panel.set_facecolor("#eeeeee")
        panel.set_title(title, fontsize=10)
        panel.set_xlabel("input s")
        panel.set_ylabel("output t")
        figure.colorbar(shown, ax=panel, shrink=0.8)
    figure.supxlabel("grey: exactly 0", fontsize=8)
    return figure
