"""The distributions of weights: the two embeddings, the layers by depth, and Q, K and V."""
from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from ..cli.tables import table
from ..errors import MissingError
from ..io.plots import COLOURS, new_figure
from ..model_flags import add_weights, weights_of
from ..weights.checkpoint import Tensors
from .result import Found
from .statistics import QUANTILES, STANDS_OUT, ks, outlier_columns, spearman, summary
from .tensors import said_missing

WHICH = ("embeddings", "layers", "qkv")
MOST = 8                                # the most outlier dimensions that a line names
EMBEDDINGS = {"wte.weight": "token", "wpe.weight": "position"}
BINS = {
    "embeddings": np.linspace(-0.6, 0.6, 71),
    "layers": np.linspace(-1.0, 1.0, 171),
    "qkv": np.linspace(-1.0, 1.0, 151),
}


class Sample(NamedTuple):
    """Numbers with a name, in the panel `group`, of the layer `depth` or of all layers (None)."""

    group: str
    name: str
    depth: int | None
    values: Callable[[], np.ndarray]


def samples(tensors: Tensors, which: str) -> list[Sample]:
    """The samples in the checkpoint for one of WHICH. MissingError for tensors of other shapes."""
    layers = range(tensors.config.n_layer if tensors.config else 0)

    def have(names: list[str]) -> list[str]:
        return [name for name in names if name in tensors.stored]

    if which == "embeddings":
        for name in have([*EMBEDDINGS]):
            if len(shape := tensors.stored[name].shape) != 2:
                raise MissingError(f"{tensors.source}: '{name}' is {list(shape)}, and a table of "
                                   "rows [n, d] is expected; is it flattened?")
        return [Sample("", name, None, partial(tensors, name)) for name in have([*EMBEDDINGS])]
    if which == "layers":
        return [Sample(part, name, i, partial(tensors, name))
                for part in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
                for i in layers for name in have([f"h.{i}.{part}.weight"])]
    out = []
    found = [(i, name) for i in layers for name in have([f"h.{i}.attn.c_attn.weight"])]
    d = tensors.config.n_embd if tensors.config else 0
    for _, name in found:               # checked, because [3d, d] could be split too if 3 divides d
        if (shape := tensors.stored[name].shape) != (d, 3 * d):
            raise MissingError(f"{tensors.source}: '{name}' is {list(shape)}, and {[d, 3 * d]} is "
                               "expected, stored [in, out]; is it transposed?")

    def third(at: int, names: list[str]) -> np.ndarray:
        """Q, K or V (at = 0, 1, 2) of these matrices, [len(names)·d, d]."""
        return np.concatenate([np.split(tensors(name), 3, axis=1)[at] for name in names])

    for at, part in enumerate("QKV"):
        out += [Sample(part, f"h.{i} {part}", i, partial(third, at, [name])) for i, name in found]
        if found:
            out.append(Sample(part, f"{part} of all layers", None,
                              partial(third, at, [name for _, name in found])))
    return out


def distributions(tensors: Tensors, which: str) -> dict[str, Any]:
    """Statistics of each sample, its histogram over BINS[which], and comparisons of the samples.

    embeddings: the KS distance of the two, and the "outliers" of each, as in `outlier_columns`.
    layers: Spearman's correlation of depth and standard deviation, for each kind of weight. qkv:
    the same for Q, K and V, and their KS distances, of all layers and of each layer. All are
    computed from the finite numbers. MissingError if the checkpoint has none of these tensors.
    """
    found = samples(tensors, which)
    if not found:
        raise MissingError(f"{tensors.source} has no tensors for {which!r}")
    rows, bins, pairs = [], BINS[which], dict[str, float]()
    # the sorted samples, for `ks`; sorting takes most of the time
    ordered: dict[tuple[str, int | None], np.ndarray] = {}
    for sample in found:
        array = sample.values()
        values = np.sort(array, axis=None)
        row = {"name": sample.name, "group": sample.group, "depth": sample.depth,
               **summary(values, quantiles=True)}
        values = values[np.isfinite(values)] if left_out(row) else values
        if which != "layers":
            ordered[sample.name if which == "embeddings" else sample.group, sample.depth] = values
        shares = np.histogram(values, bins)[0] / max(1, values.size)
        row |= {"outside": 1.0 - float(shares.sum()), "histogram": shares.tolist()}
        if which == "embeddings":
            row["outliers"] = [{"dimension": i, "ratio": ratio}
                               for i, ratio in outlier_columns(array)]
        rows.append(row)
    if which == "embeddings":
        if len(found) == 2:
            pairs["KS wte, wpe"] = ks(*ordered.values())
    else:
        for group in dict.fromkeys(sample.group for sample in found):
            own = [row for row in rows if row["group"] == group and row["depth"] is not None]
            pairs[f"Spearman of depth and std, {group}"] = spearman(
                [row["depth"] for row in own], [row["std"] for row in own])
    if which == "qkv":
        for a, b in ("QK", "QV", "KV"):
            for depth in dict.fromkeys(sample.depth for sample in found):
                where = "all layers" if depth is None else f"h.{depth}"
                pairs[f"KS {a}, {b} in {where}"] = ks(ordered[a, depth], ordered[b, depth])
    return {"which": which, "bins": bins.tolist(), "samples": rows, "comparisons": pairs}


def flags(p: argparse.ArgumentParser) -> None:
    add_weights(p)
    p.add_argument("--which", choices=[*WHICH, "all"], default="all",
                   help="(default: all that the checkpoint has)")


def run(args: argparse.Namespace) -> Found:
    tensors = weights_of(args)
    chosen = [which for which in WHICH
              if args.which == which or (args.which == "all" and samples(tensors, which))]
    if not chosen:
        raise MissingError(f"{tensors.source} has no weights with GPT-2's names")
    found = [distributions(tensors, which) for which in chosen]
    lines = []
    for one in found:
        lines += [*distribution_lines(one), ""]
    lines += said_missing(tensors)
    document = {"source": str(tensors.source), "distributions": found,
                "missing": tensors.missing()}
    return Found(document, lines, lambda: draw(found))


def left_out(row: dict[str, Any]) -> int:
    """How many of a sample's numbers are not finite."""
    return int(row["nan"] + row["inf"])


def measurable(row: dict[str, Any]) -> bool:
    """Whether a sample has a finite number."""
    return left_out(row) < row["count"]


def remarks(found: dict[str, Any]) -> Iterator[str]:
    """Lines about numbers that are not finite, and about the outlier dimensions of each table."""
    for row in found["samples"]:
        if not measurable(row):
            yield (f"{row['name']} has no finite number: {row['nan']:,} × NaN, "
                   f"{row['inf']:,} × infinity")
        elif left_out(row):
            yield (f"{row['name']}: {left_out(row):,} of {row['count']:,} numbers are NaN or "
                   "infinite, and are left out")
        if measurable(row) and (some := row.get("outliers")) is not None:
            first = ", ".join(f"{one['dimension']} ({one['ratio']:.3g}×)" for one in some[:MOST])
            more = f" and {len(some) - MOST} more" if len(some) > MOST else ""
            yield (f"{row['name']}: outlier dimensions, root mean square more than {STANDS_OUT:g} "
                   f"times the median column's: {first or 'none'}{more}")


def distribution_lines(found: dict[str, Any]) -> list[str]:
    """The result of `distributions` as tables."""
    header = (found["which"], "mean", "std", "kurtosis", *(f"{q:.0%}" for q in QUANTILES),
              "min", "max")
    pairs = found["comparisons"].items()
    cells = [(row["name"], row["mean"], row["std"], row["kurtosis"], *row["quantiles"],
              row["min"], row["max"]) for row in found["samples"]]
    lines = list(table(header, cells))
    if notes := list(remarks(found)):
        lines += ["", *notes]
    return [*lines, "", *table(("compared", ""), list(pairs))] if pairs else lines


def title(found: dict[str, Any], group: str) -> str:
    """The title of a panel, which names the embeddings that the checkpoint has."""
    if group:
        return f"{group} weights, by depth"
    return f"{' and '.join(EMBEDDINGS[row['name']] for row in found['samples'])} embeddings"


def draw(found: list[dict[str, Any]]) -> Any:
    """Histograms: a row of panels for each result of `distributions`, layers coloured by depth."""
    from matplotlib import colormaps

    panels = [list(dict.fromkeys(row["group"] for row in one["samples"])) for one in found]
    columns = max(map(len, panels))
    figure, axes = new_figure(3.4 * columns + 0.6, 2.9 * len(found), len(found), columns)
    for one, groups, line in zip(found, panels, axes):
        for unused in line[len(groups):]:
            unused.set_visible(False)
        centres = (np.array(one["bins"][1:]) + np.array(one["bins"][:-1])) / 2
        depths = [row["depth"] for row in one["samples"] if row["depth"] is not None]
        deepest = max(depths, default=0)
        for group, panel in zip(groups, line):
            own = [row for row in one["samples"] if row["group"] == group and measurable(row)]
            panel.set_title(title(one, group), fontsize=9)
            if not own:
                panel.text(0.5, 0.5, "no finite number", ha="center", va="center",
                           transform=panel.transAxes, fontsize=8)
                continue
            for i, row in enumerate(own):
                share = np.array(row["histogram"]) / (one["bins"][1] - one["bins"][0])
                depth = row["depth"]
                if one["which"] == "embeddings":
                    colour, who = COLOURS[i], row["name"]
                elif depth is None:
                    colour, who = "black", "all"
                else:
                    colour = colormaps["viridis"](0.9 * depth / max(1, deepest))
                    who = f"layer {depth}"
                named = one["which"] == "embeddings" or depth in (None, 0, deepest)
                panel.plot(centres, share, color=colour, linewidth=1.6 if depth is None else 1.0,
                           label=f"{who}, std {row['std']:.3f}" if named else None)
            wide = 1.6 * max(abs(q) for row in own
                             for q in (row["quantiles"][0], row["quantiles"][-1]))
            panel.set_xlim(-min(wide, one["bins"][-1]), min(wide, one["bins"][-1]))
            panel.set_ylim(0.0, 1.2 * panel.get_ylim()[1])
            panel.set_xlabel("weight", fontsize=8)
            panel.set_ylabel("density", fontsize=8)
            panel.tick_params(labelsize=7)
            panel.legend(fontsize=7, loc="upper right")
    return figure
