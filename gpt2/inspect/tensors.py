"""The tensors of any checkpoint: what is there, what is odd about it, and what is missing."""
from __future__ import annotations

import argparse
import math
import re
from collections.abc import Iterator
from typing import Any

from ..cli.tables import table
from ..config import parameter_shapes
from ..io.safetensors import NAMES
from ..model_flags import add_weights, weights_of
from ..weights.checkpoint import Tensors
from .result import Found
from .statistics import summary


def flags(p: argparse.ArgumentParser) -> None:
    add_weights(p)


def run(args: argparse.Namespace) -> Found:
    tensors = weights_of(args)
    rows, seen = [], dict[tuple[Any, ...], str]()
    expected = parameter_shapes(tensors.config) if tensors.config else {}
    places = {name: i for i, name in enumerate(expected)}
    for name, entry in sorted(tensors.stored.items(), key=lambda item: places.get(item[0], len(places))):
        row: dict[str, Any] = {"name": name, "dtype": NAMES.get(entry.dtype, entry.dtype), "shape": list(entry.shape)}
        if entry.dtype in NAMES:
            array = tensors(name, "float64" if entry.dtype == "F64" else "float32")
            row |= summary(array)
            same = (entry.shape, row["mean"], row["norm"], row["kurtosis"]) if row["count"] > 1 and row["std"] else (name,)
            twin = seen.setdefault(same, name)
            equal = twin != name and bool((tensors(twin) == array).all())
            row["odd"] = [*_odd(row), *([f"equal to {twin}"] * equal)]
        else:
            row["odd"] = ["no float"]
        if expected and name not in expected and name != "lm_head.weight":
            row["odd"].append("no parameter of GPT-2")
        elif name in expected and entry.shape != expected[name]:
            row["odd"].append(f"{list(expected[name])} by the configuration")
        rows.append(row)
    numbers = sum(math.prod(row["shape"]) for row in rows)
    said = ("mean", "std", "min", "max", "norm", "kurtosis")
    lines = [*table(("tensor", "dtype", "shape", *said, "odd"), [(row["name"], row["dtype"], str(row["shape"]), *map(row.get, said),
                                                                 "; ".join(row["odd"])) for row in rows], left=3), "",
             f"{tensors.source}: {len(rows)} tensors, {numbers:,} numbers"
             + (f", and {len(tensors.buffers)} mask buffers, which are no parameters" if tensors.buffers else ""),
             *said_missing(tensors)]
    return Found({"source": str(tensors.source), "tensors": rows, "numbers": numbers, "buffers": tensors.buffers,
                  "missing": tensors.missing()}, lines)


def _odd(row: dict[str, Any]) -> Iterator[str]:
    for key, what in (("nan", "NaN"), ("inf", "infinity")):
        if row[key]:
            yield f"{row[key]:,} × {what}"
    if row["count"] > 1 and row["nan"] + row["inf"] < row["count"] and row["std"] == 0.0:
        yield "all zero" if row["mean"] == 0.0 else f"all {row['mean']:g}"


def said_missing(tensors: Tensors) -> Iterator[str]:
    """A line on what a partial checkpoint lacks, tensors of all layers as one, or nothing."""
    missing = tensors.missing()
    if missing and tensors.config:
        groups: dict[str, list[int]] = {}
        for name in missing:
            layer = re.match(r"h\.(\d+)\.", name)
            groups.setdefault(re.sub(r"^h\.\d+\.", "h.i.", name), []).extend([int(layer[1])] if layer else [])
        said = [name if not layers else f"{name} of {_layers(layers, tensors.config.n_layer)}" for name, layers in groups.items()]
        yield f"missing: {len(missing)} of {len(parameter_shapes(tensors.config))} tensors: {', '.join(said)}"
    if tensors.config is None:
        yield "nothing tells its configuration, so what may be missing is not known"


def _layers(layers: list[int], n: int) -> str:
    return "every layer" if len(layers) == n else f"layer{'s' * (len(layers) > 1)} {', '.join(map(str, layers))}"
