"""The tensors of a checkpoint, with statistics, unusual properties, and missing tensors."""
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
    stored = sorted(tensors.stored.items(), key=lambda item: places.get(item[0], len(places)))
    for name, entry in stored:
        row: dict[str, Any] = {"name": name, "dtype": NAMES.get(entry.dtype, entry.dtype),
                               "shape": list(entry.shape)}
        if entry.dtype in NAMES:
            array = tensors(name, "float64" if entry.dtype == "F64" else "float32")
            row |= summary(array)
            # tensors that may be equal: of one shape, with the same statistics
            same = ((entry.shape, row["mean"], row["norm"], row["kurtosis"])
                    if row["count"] > 1 and row["std"] else (name,))
            twin = seen.setdefault(same, name)
            equal = twin != name and bool((tensors(twin) == array).all())
            row["odd"] = [*_odd(row), *([f"equal to {twin}"] * equal)]
        else:
            row["odd"] = ["not floats"]
        if expected and name not in expected and name != "lm_head.weight":
            row["odd"].append("not a parameter of GPT-2")
        elif name in expected and entry.shape != expected[name]:
            row["odd"].append(f"{list(expected[name])} by the configuration")
        rows.append(row)
    numbers = sum(math.prod(row["shape"]) for row in rows)
    columns = ("mean", "std", "min", "max", "norm", "kurtosis")
    cells = [(row["name"], row["dtype"], str(row["shape"]), *map(row.get, columns),
              "; ".join(row["odd"])) for row in rows]
    buffers = (f", and {len(tensors.buffers)} mask buffers, which are not parameters"
               if tensors.buffers else "")
    lines = [*table(("tensor", "dtype", "shape", *columns, "odd"), cells, left=3), "",
             f"{tensors.source}: {len(rows)} tensors, {numbers:,} numbers{buffers}",
             *said_missing(tensors)]
    return Found({"source": str(tensors.source), "tensors": rows, "numbers": numbers,
                  "buffers": tensors.buffers, "missing": tensors.missing()}, lines)


def _odd(row: dict[str, Any]) -> Iterator[str]:
    """What the statistics of a tensor show to be unusual."""
    for key, what in (("nan", "NaN"), ("inf", "infinity")):
        if row[key]:
            yield f"{row[key]:,} × {what}"
    if row["count"] > 1 and row["nan"] + row["inf"] < row["count"] and row["std"] == 0.0:
        yield "all zero" if row["mean"] == 0.0 else f"all {row['mean']:g}"


def said_missing(tensors: Tensors) -> Iterator[str]:
    """A line with the missing tensors of a partial checkpoint, grouped over layers; or nothing."""
    missing = tensors.missing()
    if missing and tensors.config:
        groups: dict[str, list[int]] = {}
        for name in missing:
            layer = re.match(r"h\.(\d+)\.", name)
            group = groups.setdefault(re.sub(r"^h\.\d+\.", "h.i.", name), [])
            group.extend([int(layer[1])] if layer else [])
        names = [name if not layers else f"{name} of {_layers(layers, tensors.config.n_layer)}"
                 for name, layers in groups.items()]
        yield (f"missing: {len(missing)} of {len(parameter_shapes(tensors.config))} tensors: "
               f"{', '.join(names)}")
    if tensors.config is None:
        yield "there is no configuration, so it is not known whether tensors are missing"


def _layers(layers: list[int], n: int) -> str:
    if len(layers) == n:
        return "every layer"
    return f"layer{'s' * (len(layers) > 1)} {', '.join(map(str, layers))}"
