"""Pictures in one style, written as PNG, SVG or PDF by the suffix of the file name."""
from __future__ import annotations

import argparse
import warnings
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from .atomic import write_files

SUFFIXES = (".png", ".svg", ".pdf")
# colours that colour-blind people can distinguish (Okabe, Ito 2008)
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")


def picture(value: str) -> Path:
    """For `add_argument(type=)`: the path of a picture to write."""
    path = Path(value)
    if path.suffix.lower() not in SUFFIXES:
        known = f"{', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}"
        raise argparse.ArgumentTypeError(f"{value!r} is not the name of a picture; "
                                         f"it must end in {known}")
    return path


def new_figure(width: float, height: float, rows: int = 1, columns: int = 1,
               **options: Any) -> tuple[Any, Any]:
    """A figure of this size in inches, and its panels as an array [rows, columns]."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def name_ticks(axes: Any, axis: str, names: Sequence[str], **options: Any) -> None:
    """Put names at 0, 1, 2 … of the "x" or "y" axis; a "$" in a name does not start a formula."""
    (axes.set_xticks if axis == "x" else axes.set_yticks)(range(len(names)), names, **options)
    for label in (axes.get_xticklabels() if axis == "x" else axes.get_yticklabels()):
        label.set_parse_math(False)


def legend_below(axes: Any, columns: int = 2) -> None:
    """Put the panel's legend below its ticks and axis label, where it covers nothing."""
    from matplotlib.transforms import ScaledTranslation

    inches = 0.5 if axes.get_xlabel() else 0.24
    below = axes.transAxes + ScaledTranslation(0.0, -inches, axes.figure.dpi_scale_trans)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, 0.0), bbox_transform=below, ncols=columns,
                fontsize=7, frameon=False, borderaxespad=0.0)


def image(figure: Any, suffix: str = ".png") -> bytes:
    """The bytes of the figure as a file of this kind; equal figures have equal bytes."""
    out, kind = BytesIO(), suffix.lower()[1:]
    with warnings.catch_warnings():
        # a token in a label may have any character
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        unset = {"png": "Software", "svg": "Date", "pdf": "CreationDate"}[kind]
        figure.savefig(out, dpi=150, format=kind, metadata={unset: None})
    return out.getvalue()


def write_figure(figure: Any, path: Path) -> None:
    """Write the figure as a whole or not at all. UsageError if the file cannot be written."""
    write_files(path.parent, {path.name: image(figure, path.suffix)})
