"""What does an error say if tensors of different devices, dtypes or shapes meet?"""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import minigrad as mg

from ..io.plots import COLOURS, new_figure
from .lab import Lab, Verdict, verdict

EQUATION = ("an op is defined for arguments of one device, one dtype and shapes that fit; "
            "all else is an error in one line")


def measure(lab: Lab) -> dict[str, Any]:
    """With a GPU the devices are real; without one, the second is the tests' fake GPU."""
    real = lab.device.startswith("cupy")
    if not real:
        from minigrad.testing import fake_cupy

        fake_cupy.install()
    other = lab.device if real else "fake"
    here = mg.tensor(np.ones((2, 3), np.float32))
    there = mg.tensor(np.ones((3, 4), np.float32), device=other)
    same = mg.tensor(np.ones((3, 4), np.float32))
    cases: list[tuple[str, Callable[[], Any], tuple[str, ...]]] = [
        ("two devices", lambda: mg.matmul(here, there), ("matmul", "numpy", other, '.to("')),
        ("two dtypes", lambda: here + mg.tensor(np.ones((2, 3))), ("add", "float32", "float64")),
        ("shapes that do not fit",
         lambda: mg.matmul(here, mg.tensor(np.ones((4, 5), np.float32))),
         ("matmul", "[2, 3]", "[4, 5]")),
        ("not a scalar", lambda: mg.tensor([1.0, 2.0], requires_grad=True).backward(),
         ("backward", "scalar")),
        ("an unknown device", lambda: mg.tensor([1.0], device="tpu"), ("tpu",)),
    ]
    rows = []
    for name, f, words in cases:
        try:
            f()
            said, kind = "", "nothing"
        except mg.MinigradError as error:
            said, kind = str(error), type(error).__name__
        except Exception as error:              # a library's own error must not come through
            said, kind = f"{error}", f"bare {type(error).__name__}"
        rows.append({"mixed": name, "raises": kind, "says": said,
                     "one line": "\n" not in said and bool(said),
                     "names it": all(word in said for word in words)})
    apart = mg.matmul(here, there.to("numpy")).numpy() - mg.matmul(here, same).numpy()
    moved = float(np.abs(apart).max())
    return {"rows": rows, "moved": moved, "real": real}


def judge(found: dict[str, Any]) -> list[Verdict]:
    """Each case raises minigrad's own error, in one line that names the op and the tensors.

    The remedy that the error names must work.
    """
    bad = [row["mixed"] for row in found["rows"] if not (row["one line"] and row["names it"])
           or row["raises"].startswith(("bare", "nothing"))]
    good, every = len(found["rows"]) - len(bad), len(found["rows"])
    because = f"{good} of {every} errors do" + (f", not {', '.join(bad)}" if bad else "")
    if not found["real"]:
        because += "; the second device is the tests' fake GPU, because there is no GPU"
    return [verdict(not bad and found["moved"] == 0.0,
                    "an error names the op, both tensors, and the remedy", because)]


def draw(found: dict[str, Any]) -> Any:
    import textwrap

    figure, axes = new_figure(9, 0.8 * len(found["rows"]) + 0.6)
    panel = axes[0, 0]
    panel.axis("off")
    for i, row in enumerate(found["rows"]):
        good = row["one line"] and row["names it"]
        colour = COLOURS[2] if good else COLOURS[1]
        panel.text(0.0, -i, f"{row['mixed']}: {row['raises']}", color=colour, fontsize=10,
                   weight="bold", va="top")
        panel.text(0.02, -i - 0.32, "\n".join(textwrap.wrap(row["says"], 110)[:2]), fontsize=8.5,
                   family="monospace", va="top", parse_math=False)
    panel.set(xlim=(0, 1), ylim=(-len(found["rows"]), 0.2),
              title="What is said when things are mixed")
    return figure
