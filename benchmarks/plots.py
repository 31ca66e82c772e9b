"""Plots of a run, from its JSON document: the peers' times compared with ours, and how time and memory grow."""
from __future__ import annotations

from collections.abc import Iterator, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

from .peers import US
from .report import context_lines, write
from .rows import NICKNAMES

# each peer has its own marker, so that plots can be read without colours
STYLE = {US: ("#c1272d", "o"), "torch": ("#0000a7", "s"), "torch-compile": ("#5a7bd8", "D"), "jax": ("#008176", "^"),
         "transformers": ("#0000a7", "s"), "ctranslate2": ("#b07d00", "v"), "ctranslate2-int8": ("#dcb75a", "<"), "llm.c": ("#555555", "P"),
         "mygrad": ("#008176", "^"), "autograd": ("#b07d00", "v")}
AXES = {"tokens": "tokens in a row (T)", "batch": "rows in a batch (B)", "size": "parameters", "threads": "cores"}


def _machine(found: Mapping[str, Any]) -> str:
    date, cpu, blas = context_lines(found)[:3]
    return f"{date.split(';')[0][:10]} · {cpu.split(';')[0]} · {blas.split(';')[0]} · float32"


def _finish(figure: Any, path: Path, found: Mapping[str, Any]) -> Path:
    """Add a line about the machine, and write the file."""
    figure.text(0.01, 0.005, _machine(found), fontsize=7, color="#555555")
    figure.tight_layout(rect=(0, 0.025, 1, 1))
    image = BytesIO()
    figure.savefig(image, dpi=150, format="png")
    write(path, image.getvalue())
    return path


def ratios(found: Mapping[str, Any], path: Path) -> Path | None:
    """A bar for each peer and row: its time divided by minigrad's; a mark shows the target."""
    from matplotlib.figure import Figure

    bars = [(entry, c) for entry in found["rows"] if not entry["row"]["axes"] for c in entry["peers"] if c["ratio"] is not None]
    if not bars:
        return None
    figure = Figure(figsize=(8, 1.2 + 0.3 * len(bars)))
    axes = figure.add_subplot()
    for place, (entry, c) in enumerate(bars):
        colour = STYLE.get(c["peer"], ("#555555", "o"))[0]
        axes.barh(place, c["ratio"], color=colour, height=0.7)
        met = next((t for t in entry["targets"] if t["what"] == f"{c['peer']} / {US}"), None)
        if met:
            axes.plot([met["wanted"]] * 2, [place - 0.42, place + 0.42], color="black", linewidth=2)
        axes.text(c["ratio"], place, f" {c['ratio']:.2f}×", va="center", fontsize=8,
                  bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5, "alpha": 0.8})
    axes.axvline(1.0, color=STYLE[US][0], linewidth=1.5)
    axes.set_yticks(range(len(bars)), [f"{entry['row']['name']} · {c['peer']}" for entry, c in bars], fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlabel(f"time / time of {US}, medians of interleaved rounds\nred line: as fast as {US}; black notch: target", fontsize=8)
    axes.set_title(f"How much longer others take than {US}")
    return _finish(figure, path, found)


def _lines(entries: list[Mapping[str, Any]], axis: str, value: str) -> dict[str, list[tuple[Any, float]]]:
    """The points of one panel, for each peer."""
    lines: dict[str, list[tuple[Any, float]]] = {}
    for entry in entries:
        row = entry["row"]
        at = NICKNAMES[row["size"]] if axis == "size" else row[axis]
        for c in entry["peers"]:
            lines.setdefault(c["peer"], []).append((at, c[value] * (1e-9 if value == "peak" else 1.0)))
    return lines


def growth(found: Mapping[str, Any], kind: str, path: Path) -> Path | None:
    """Time (above) and memory (below) over each axis that was measured."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    entries = [entry for entry in found["rows"] if entry["row"]["kind"] == kind and entry["row"]["axes"] and entry["peers"]]
    axes_names = [axis for axis in AXES if any(axis in entry["row"]["axes"] for entry in entries)]
    if not axes_names:
        return None
    figure = Figure(figsize=(3.6 * len(axes_names), 6.4))
    grid = figure.subplots(2, len(axes_names), squeeze=False)
    for column, axis in enumerate(axes_names):
        chosen = [entry for entry in entries if axis in entry["row"]["axes"]]
        for panel, value, label in ((grid[0][column], "median", "seconds"), (grid[1][column], "peak", "peak memory, GB")):
            for name, points in _lines(chosen, axis, value).items():
                colour, mark = STYLE.get(name, ("#555555", "o"))
                panel.plot([str(x) for x, _ in points], [y for _, y in points], color=colour, marker=mark, label=name)
            if value == "peak" and axis != "size":
                panel.set_ylim(bottom=0.0)              # the values differ by less than half: show the true proportion
            else:
                panel.set_yscale("log")
                panel.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
                panel.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
                panel.yaxis.set_minor_formatter(NullFormatter())
            panel.grid(True, which="both", linewidth=0.3)
            panel.set_xlabel(AXES[axis], fontsize=8)
            panel.set_ylabel(label, fontsize=8)
        row = chosen[0]["row"]
        fixed = [f"B {row['batch']}"] * (axis != "batch") + [f"T {row['tokens']}"] * (axis != "tokens")
        fixed += [NICKNAMES[row["size"]]] * (axis != "size")
        grid[0][column].set_title(f"over {axis} ({', '.join(fixed)})", fontsize=9)
    grid[0][0].legend(fontsize=8)
    figure.suptitle({"train": "A training step of GPT-2", "forward": "A forward pass of GPT-2"}.get(kind, kind))
    return _finish(figure, path, found)


def draw(found: Mapping[str, Any], folder: Path) -> Iterator[Path]:
    """Draw all plots for which the document has data; return their paths."""
    made = [ratios(found, folder / f"{'-'.join(found['suites'])}-ratios.png"),
            *(growth(found, kind, folder / f"scaling-{kind}.png") for kind in ("forward", "train"))]
    yield from (path for path in made if path is not None)
