"""Pictures that read well without their text: one style, and PNG, SVG or PDF by the name of the file."""
from __future__ import annotations

import argparse
import warnings
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from .atomic import write_files

SUFFIXES = (".png", ".svg", ".pdf")
# told apart by the colour-blind (Okabe, Ito 2008)
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")


def picture(value: str) -> Path:
    """For `add_argument(type=)`: the name of a picture to write."""
    path = Path(value)
    if path.suffix.lower() not in SUFFIXES:
        raise argparse.ArgumentTypeError(f"{value!r} is no name of a picture; end it in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}")
    return path


def new_figure(width: float, height: float, rows: int = 1, columns: int = 1, **options: Any) -> tuple[Any, Any]:
    """A figure of so many inches, and its panels as an array [rows, columns]."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def name_ticks(axes: Any, axis: str, names: Sequence[str], **options: Any) -> None:
    """Put names at 0, 1, 2 … of the "x" or "y" axis, as they are: "$" starts no mathematics."""
    (axes.set_xticks if axis == "x" else axes.set_yticks)(range(len(names)), names, **options)
    for label in (axes.get_xticklabels() if axis == "x" else axes.get_yticklabels()):
        label.set_parse_math(False)


def legend_below(axes: Any, columns: int = 2) -> None:
    """The panel's legend under its names and ticks, where it covers nothing that is drawn."""
    from matplotlib.transforms import ScaledTranslation

    inches = 0.5 if axes.get_xlabel() else 0.24
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=columns, fontsize=7, frameon=False, borderaxespad=0.0,
                bbox_transform=axes.transAxes + ScaledTranslation(0.0, -inches, axes.figure.dpi_scale_trans))


def image(figure: Any, suffix: str = ".png") -> bytes:
    """The figure as a file of this kind; the same figure gives the same bytes."""
    out, kind = BytesIO(), suffix.lower()[1:]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")      # a token may be any character
        metadata = {"png": {"Software": None}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}[kind]
        figure.savefig(out, dpi=150, format=kind, metadata=metadata)
    return out.getvalue()


def write_figure(figure: Any, path: Path) -> None:
    """Write the figure, whole or not at all. UsageError where the place cannot be written."""
    write_files(path.parent, {path.name: image(figure, path.suffix)})
