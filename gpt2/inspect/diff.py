"""A comparison of two checkpoints; the tensors that differ most come first."""
from __future__ import annotations

import argparse
import math
from typing import Any

import numpy as np

from ..cli.command import at_least
from ..cli.tables import table
from ..errors import MissingError
from ..io.safetensors import NAMES
from ..weights.checkpoint import read_tensors
from ..weights.locate import locate
from .result import Found
from .tensors import said_missing


def flags(p: argparse.ArgumentParser) -> None:
    for name in ("a", "b"):
        p.add_argument(name, metavar=name.upper(),
                       help="shakespeare, gpt2, …, a directory, or a .safetensors file, which may "
                            "be a part of a model")
    p.add_argument("--limit", type=at_least(1), metavar="N", help="print only the first N rows")


def compared(a: np.ndarray, b: np.ndarray) -> dict[str, Any]:
    """How b differs from a of the same shape, in float64.

    max: the largest |b − a|. at: its index. relative: ‖b − a‖/‖a‖. cosine: of the angle between a
    and b. Where both are NaN, or the same infinity, there is no difference, and nothing is added to
    the norms; where only one of them is, the difference is infinite.
    """
    x, y = a.astype(np.float64), b.astype(np.float64)
    same = (x == y) | (np.isnan(x) & np.isnan(y))
    x, y = (np.where(same & ~np.isfinite(v), 0.0, v) for v in (x, y))
    with np.errstate(invalid="ignore", over="ignore"):
        gap = np.where(same, 0.0, np.abs(y - x))
        gap = np.where(np.isnan(gap), np.inf, gap)
        norm, size, other = (float(np.sqrt(np.square(v).sum())) for v in (gap, x, y))
        cosine = float((x * y).sum()) / (size * other) if size * other else math.nan
    at = np.unravel_index(int(gap.argmax()), gap.shape) if gap.size else ()
    relative = norm / size if size and norm < math.inf else (math.inf if norm else 0.0)
    return {"max": float(gap.max(initial=0.0)), "at": [int(i) for i in at], "relative": relative,
            "cosine": cosine}


def told(row: dict[str, Any]) -> dict[str, Any]:
    """A row for JSON: infinities and NaN, which JSON does not have, become "inf" and "nan"."""
    return {key: f"{value:g}" if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in row.items()}


def run(args: argparse.Namespace) -> Found:
    left, right = (read_tensors(locate(name)) for name in (args.a, args.b))
    both = [name for name in left.stored if name in right.stored]
    if not both:
        raise MissingError(f"{left.source} and {right.source} have no tensor of the same name")
    rows: list[dict[str, Any]] = []
    for name in both:
        shapes = [list(side.stored[name].shape) for side in (left, right)]
        row: dict[str, Any] = {"name": name, "shape": shapes[0]}
        if shapes[0] != shapes[1]:
            hint = ", the transpose" if shapes[0] == shapes[1][::-1] else ""
            row |= {"relative": math.inf, "note": f"{shapes[1]} in B{hint}"}
        elif {side.stored[name].dtype for side in (left, right)} <= NAMES.keys():
            a, b = left(name, "float64"), right(name, "float64")
            row |= compared(a, b)
            if row["relative"] and a.ndim == 2 and np.array_equal(a, b.T):
                row["note"] = "the transpose"
        else:
            row |= {"relative": math.nan, "note": "not floats"}
        rows.append(row)
    rows.sort(key=lambda row: -row["relative"] if row["relative"] == row["relative"] else 0.0)
    same = sum(row.get("max") == 0.0 for row in rows)
    only = {"A": [name for name in left.stored if name not in right.stored],
            "B": [name for name in right.stored if name not in left.stored]}
    cells = [(row["name"], str(row["shape"]), row["relative"], row.get("max"), row.get("cosine"),
              row.get("note") or str(row["at"]))
             for row in [row for row in rows if row.get("max") != 0.0][:args.limit]]
    header = ("tensor", "shape", "‖B−A‖/‖A‖", "max |B−A|", "cosine", "at")
    lines = [*(table(header, cells, left=2) if cells else ["no difference"]), "",
             f"A {left.source}, B {right.source}: {len(both)} tensors in both, "
             f"{same} of them equal"]
    lines += [f"only in {side}: {len(names)}: {', '.join(names[:4])}{' …' * (len(names) > 4)}"
              for side, names in only.items() if names]
    lines += [f"{name}, {line}" for name, side in (("A", left), ("B", right)) if side.config
              for line in said_missing(side)]
    document = {"a": str(left.source), "b": str(right.source), "tensors": list(map(told, rows)),
                "equal": same, "only": only}
    return Found(document, lines)
