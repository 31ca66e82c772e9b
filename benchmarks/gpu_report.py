"""The results of `benchmarks.gpu` as text: lines for a terminal, and a page in Markdown."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

HEAD = ("what", "who", "dtype", "median", "from … to", "of the most", "× ours", "held", "")


def number(value: float, unit: str) -> str:
    """A value with its unit, with three digits, or with all digits before the decimal point."""
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:,.{digits}f} {unit}"


def cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    """A row as text, with one cell for each column of HEAD."""
    if "value" in row:
        unit = row["unit"]
        measured = (number(row["value"], unit), f"{number(row['low'], '').strip()} … {number(row['high'], '').strip()}")
    else:
        measured = ("", "")
    return (row["what"], row.get("who", ""), row.get("dtype", ""), *measured, f"{row['share']:.0%}" if row.get("share") else "",
            f"{row['ratio']:.2f}" if row.get("ratio") else "", f"{row['peak'] / 1e9:.2f} GB" if row.get("peak") else "",
            f"FAILED: {row['error']}" if "error" in row else row.get("note", ""))


def text(name: str, part: Mapping[str, Any]) -> list[str]:
    """The lines of one part, for a terminal."""
    lines = [f"── {name}: {part['status']} in {part['seconds']:.0f} s" + (f": {part['error']}" if part["error"] else "")]
    return lines + ["  " + "  ".join(filter(None, cells(row))) for row in part["rows"]]


def markdown(found: Mapping[str, Any]) -> str:
    """All results as a page in Markdown."""
    lines = [f"# GPU: {found['date'][:10]}", "", f"`python -m benchmarks.gpu`, {found['date']}, backend {found['backend']}, "
             f"{found['minutes']:g} minutes" + (", **toy sizes: the times mean nothing**" if found["size"] == "tiny" else "")
             + (", interrupted" if found["interrupted"] else "") + ".", "",
             "Medians of rounds on the device's clock, warmed up. *of the most*: of the rate of the products alone, or of copying. "
             "*× ours*: the time of PyTorch (eager) or transformers over ours; in a line of a peer, its own. *held*: memory that was kept, "
             "at the highest.", ""]
    for name, part in found["parts"].items():
        lines += [f"## {name}: {part['status']}, {part['seconds']:.0f} s", ""]
        lines += [f"FAILED: {_cell(part['error'])}", ""] if part["error"] else []
        if part["rows"]:
            lines += ["| " + " | ".join(HEAD) + " |", "|---" * len(HEAD) + "|"]
            lines += ["| " + " | ".join(map(_cell, cells(row))) + " |" for row in part["rows"]] + [""]
    return "\n".join(lines)


def _cell(told: str) -> str:
    return told.replace("|", "\\|").replace("<", "&lt;")
