"""Tables of aligned text, and the format of numbers in them."""
from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any


def table(header: Sequence[str], rows: Sequence[Sequence[Any]], left: int = 1) -> Iterator[str]:
    """The lines of a table; the first `left` columns are aligned left, the others right."""
    text = [list(header)]
    for row in rows:
        text.append([visible(x) if isinstance(x, str) else number(x) for x in row])
    widths = [max(len(row[i]) for row in text) for i in range(len(header))]
    for row in text:
        yield "  ".join(cell.ljust(width) if i < left else cell.rjust(width)
                        for i, (cell, width) in enumerate(zip(row, widths))).rstrip()


def visible(text: str) -> str:
    """Text in one line, with all that would steer a terminal written as \\x1b, \\n and so on.

    Names and errors may hold what a foreign file holds.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def columns(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The columns of all rows, in the order in which they first occur."""
    return list(dict.fromkeys(key for row in rows for key in row))


def number(x: Any) -> str:
    """A float with five digits, an integer with commas, an empty text for None."""
    if x is None:
        return ""
    if isinstance(x, bool) or not isinstance(x, float):
        return f"{x:,}" if isinstance(x, int) and not isinstance(x, bool) else str(x)
    if x == 0 or not math.isfinite(x):
        return f"{x:g}"
    return f"{x:.4f}" if 1e-2 <= abs(x) < 1e4 else f"{x:.4g}"


def plain(value: Any) -> Any:
    """`value` converted to what JSON can hold.

    Arrays become lists, NumPy's numbers become Python's, NaN and infinities become None.
    """
    if isinstance(value, dict):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(inner) for inner in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value
