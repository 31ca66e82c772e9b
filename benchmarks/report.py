"""The report on the measurements: medians, ratios and verdicts, as lines of text, as a Markdown table and as a JSON document."""
from __future__ import annotations

import contextlib
import json
import os
import statistics
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .peers import FLOOR, US
from .rows import Row


@dataclass
class Measured:
    """The times of one peer in one row. ours, floor: the seconds of minigrad and of the floor in the same rounds."""

    seconds: list[float] = field(default_factory=list)
    ours: list[float] = field(default_factory=list)
    floor: list[float] = field(default_factory=list)
    peak: int = 0
    about: str = ""
    same: bool = True                                   # whether its answer was compared with ours


@dataclass
class Result:
    """The results of one row: the peers that were measured, and those that were not, with the reasons."""

    row: Row
    measured: dict[str, Measured] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    wrong: dict[str, list[str]] = field(default_factory=dict)


def _target(what: str, wanted: float, found: float, met: bool) -> dict[str, Any]:
    return {"what": what, "wanted": wanted, "found": found, "met": met}


def targets(result: Result) -> list[dict[str, Any]]:
    """Each target of the row that could be judged: its name, the wanted and the measured value, and whether it is met."""
    row, middle = result.row, {name: statistics.median(m.seconds) for name, m in result.measured.items() if m.seconds}
    if US not in middle:
        return []
    out = []
    for name, wanted in row.ratio.items():
        if name in middle:
            found = ratio(result.measured[name])
            out.append(_target(f"{name} / {US}", wanted, found, found >= wanted))
    if row.share is not None and (part := share(result.measured[US])) is not None:
        out.append(_target("share of floor", row.share, part, part >= row.share))
    for name, wanted in row.memory.items():
        if name in middle and result.measured[name].peak:
            found = result.measured[US].peak / result.measured[name].peak
            out.append(_target(f"peak of {US} / {name}", wanted, found, found <= wanted))
    if row.seconds is not None:
        out.append(_target("seconds", row.seconds, middle[US], middle[US] <= row.seconds))
    return out


def ratio(measured: Measured) -> float:
    """The peer's median divided by minigrad's, over the same rounds."""
    n = len(measured.seconds)
    return statistics.median(measured.seconds) / statistics.median(measured.ours[:n])


def share(measured: Measured) -> float | None:
    """The floor's median divided by the peer's, over the same rounds."""
    n = min(len(measured.seconds), len(measured.floor))
    return statistics.median(measured.floor[:n]) / statistics.median(measured.seconds[:n]) if n else None


def cells(result: Result) -> list[dict[str, Any]]:
    """For each peer, as plain data: seconds (median, low, high), the ratio to minigrad, the share of the floor, and the peak memory."""
    out = []
    for name, m in result.measured.items():
        if m.seconds and name != FLOOR:
            out.append({"peer": name, "median": statistics.median(m.seconds), "low": min(m.seconds), "high": max(m.seconds),
                        "rounds": len(m.seconds), "ratio": ratio(m) if name != US and m.ours else None, "share": share(m), "peak": m.peak,
                        "same": m.same, "about": m.about, "seconds": m.seconds})
    return out


def document(results: list[Result], context: Mapping[str, Any]) -> dict[str, Any]:
    """All results as a JSON document."""
    rows = []
    for result in results:
        floor = result.measured.get(FLOOR)
        rows.append({"row": result.row.to_dict(), "peers": cells(result), "targets": targets(result), "left_out": result.left_out,
                     "wrong": result.wrong, "floor": floor.seconds if floor else []})
    return {**context, "rows": rows}


# ── as text ──
def time_of(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= 10 * size:
            return f"{seconds / size:.0f} {unit}" if seconds >= 100 * size else f"{seconds / size:.1f} {unit}"
    return f"{seconds * 1e3:.2f} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.1f} µs"


def rate_of(row: Mapping[str, Any], seconds: float) -> str:
    """Tokens per second, if the row reads or generates tokens."""
    tokens = {"decode": row["new"], "train": row["tokens"], "forward": row["tokens"]}.get(row["kind"])
    if not tokens:
        return ""
    rate = row["batch"] * tokens / seconds
    return f"{rate:,.{0 if rate >= 10 else 1}f} tok/s"


def verdict(target: Mapping[str, Any]) -> str:
    most = target["what"] == "seconds" or target["what"].startswith("peak")
    if target["what"] == "seconds":
        wanted, found = time_of(target["wanted"]), time_of(target["found"])
    elif target["what"].startswith("share"):
        wanted, found = f"{target['wanted']:.0%}", f"{target['found']:.1%}"
    else:
        wanted, found = f"{target['wanted']:g}×", f"{target['found']:.2f}×"
    return f"{target['what']} {found}, wanted {'≤' if most else '≥'} {wanted}: {'met' if target['met'] else 'NOT MET'}"


HEAD = ("peer", "median", "from … to", "rate", "× minigrad", "of floor", "peak")


def table(entry: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """The peers of one row of the document as lines of cells, one for each column of HEAD."""
    out: list[tuple[str, ...]] = []
    for c in entry["peers"]:
        spread = f"{time_of(c['low'])} … {time_of(c['high'])}"
        out.append((c["peer"] + ("" if c["same"] else " (other numbers)"), time_of(c["median"]), spread, rate_of(entry["row"], c["median"]),
                    f"{c['ratio']:.2f}" if c["ratio"] is not None else "",
                    f"{c['share']:.0%}" if c["share"] is not None else "", f"{c['peak'] / 1e9:.2f} GB" if c["peak"] else ""))
    return out


def remarks(entry: Mapping[str, Any]) -> list[str]:
    """The lines below a row: verdicts, and the peers that are missing or gave wrong answers."""
    out = [verdict(target) for target in entry["targets"]]
    out += [f"{name}: NOT TIMED, its answer is not ours: {lines[0]}" for name, lines in entry["wrong"].items()]
    return out + [f"{name}: left out: {why}" for name, why in entry["left_out"].items()]


def text(entry: Mapping[str, Any]) -> str:
    """One row of the document, for a terminal."""
    body = table(entry)
    lines = [f"── {entry['row']['name']}, fp32, {entry['peers'][0]['rounds'] if entry['peers'] else 0} rounds"]
    if body:
        wide = [max(len(line[i]) for line in (HEAD, *body)) for i in range(len(HEAD))]
        lines += ["  " + "  ".join(f"{cell:<{w}}" if i == 0 else f"{cell:>{w}}" for i, (cell, w) in enumerate(zip(line, wide)))
                  for line in (HEAD, *body)]
    return "\n".join([*lines, *(f"  {line}" for line in remarks(entry))])


def context_lines(found: Mapping[str, Any]) -> list[str]:
    """The machine, BLAS, versions and rates, on which all numbers depend."""
    machine, rates = found["machine"], found["rates"]
    cpu, memory, blas = machine["cpu"], machine["memory"], machine["blas"]
    gib = f"{memory['total'] / 2**30:.1f} GiB" if memory.get("total") else "memory unknown"
    lines = [
        f"{found['date']}; {machine['platform']}; Python {machine['python']}",
        f"{cpu['model']}, {cpu['usable']} cores, {gib}; {' '.join(found['flags']) or 'no flags known'}",
        f"BLAS: {blas['name']} {blas['version']}, kernels {blas['architecture']}, {blas['threads']} threads; "
        "OPENBLAS_CORETYPE, OPENBLAS_L2_SIZE and thread counts unset for all",
        "versions: " + ", ".join(f"{name} {version}" for name, version in found["versions"].items()),
    ]
    if rates:
        lines.append(f"rates at the shapes of {rates['size']}: sgemm {rates['sgemm 256'] / 1e9:.0f} GFLOP/s at 256 positions, "
                     f"{rates['sgemm 1024'] / 1e9:.0f} at 1024; gemv {rates['gemv'] / 1e9:.1f} GB/s; copy {rates['copy'] / 1e9:.1f} GB/s")
    return lines


def markdown(found: Mapping[str, Any]) -> str:
    """The document as a page in Markdown."""
    lines = [f"# {', '.join(found['suites'])}: {found['date'][:10]}", "", *(f"* {line}" for line in context_lines(found)), "",
             f"Medians of up to {found['rounds']} interleaved rounds; ratio: the peer's median over minigrad's in the same rounds.", ""]
    lines += ["| row | " + " | ".join(HEAD) + " |", "|---" * (len(HEAD) + 1) + "|"]
    for entry in found["rows"]:
        for i, line in enumerate(table(entry)):
            lines.append("| " + " | ".join([entry["row"]["name"] if i == 0 else "", *line]) + " |")
    told = [f"* {entry['row']['name']}: {line}" for entry in found["rows"] for line in remarks(entry)]
    about = {c["peer"]: c["about"] for entry in found["rows"] for c in entry["peers"]}
    lines += ["", *told, "", *(f"* {name}: {line}" for name, line in about.items()), ""]
    return "\n".join(lines)


def write(path: Path, content: str | bytes) -> None:
    """Write a temporary file and rename it, so that the file is complete or does not exist."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, made = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
        os.chmod(made, 0o644)
        os.replace(made, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(made)
        raise


def save(path: Path, found: Mapping[str, Any]) -> None:
    """Write the document, and a page in Markdown beside it."""
    write(path, json.dumps(found, indent=1, allow_nan=False) + "\n")
    write(path.with_suffix(".md"), markdown(found))
