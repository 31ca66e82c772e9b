"""The results of `benchmarks.gpu` as text: lines for a terminal, and a report in Markdown that can be pasted into an issue."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

ROOM = 60_000                                           # characters: an issue has room for 65,536
# the labels of .github/ISSUE_TEMPLATE/bug.yml
QUESTIONS = ("What did you run?", "What happened, and what did you expect?", "What does `python -m minigrad.info` print?")
ELSEWHERE = "in the file of the same name that ends in .json"
ABOUT = ("### All rows", "",
         "Medians of rounds on the device's clock, warmed up. *of the most*: of the rate of the products alone, or of copying. *× "
         "ours*: the time of PyTorch (eager) or transformers over ours; in a line of a peer, its own. *held*: memory that was kept, "
         "at the highest.",
         "")
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


def failures(found: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """Of each failure: its place, its error, the smallest example that was found, and the command that repeats it."""
    out = []
    for name, part in found["parts"].items():
        repeat = f"{found['command']} --only {name}"
        if part["error"]:
            out.append((name, part["error"], "", repeat))
        for row in part["rows"]:
            if "error" in row:
                where = (name, row["what"] if row["what"] != "failed" else "", row.get("who", ""), row.get("dtype", ""))
                out.append((", ".join(filter(None, where)), row["error"], row.get("example", ""), row.get("repeat", repeat)))
    return out


def markdown(found: Mapping[str, Any]) -> str:
    """All results as a report for an issue: its headings are those of the form for bugs, and it is no longer than an issue may be."""
    wrong = failures(found)
    lines = [f"# GPU, {found['date'][:10]}: {f'{len(wrong)} failures' if wrong else 'nothing failed'}", "",
             f"### {QUESTIONS[0]}", "", *_block("bash", f"{found['command']} --minutes {found['minutes']:g}"), found["about"], "",
             f"### {QUESTIONS[1]}", "", "Expected: every part is done, and nothing fails."
             + (" **Toy sizes: the times mean nothing.**" if found["size"] == "tiny" else "")
             + (" The run was interrupted." if found["interrupted"] else ""), "",
             *(f"* {name}: {part['status']}, {part['seconds']:.0f} s" for name, part in found["parts"].items()), ""]
    for i, (where, reason, example, repeat) in enumerate(wrong):
        more = [f"{i + 1}. {_cell(where)}: FAILED: {_cell(reason)}", "", *_block("text", example, 3), *_block("bash", repeat, 3)]
        if sum(map(len, lines)) + sum(map(len, more)) > ROOM // 2:
            lines += [f"and {len(wrong) - i} more, {ELSEWHERE}", ""]
            break
        lines += more
    head = "\n".join([*lines, f"### {QUESTIONS[2]}", "", *_block("text", found["info"][:ROOM // 8]), *ABOUT, ""])
    rest = "\n".join(tables(found))
    if len(head) + len(rest) > ROOM:
        rest = rest[:ROOM - len(head)].rpartition("\n")[0] + f"\n\nand more, {ELSEWHERE}\n"
    return head + rest


def tables(found: Mapping[str, Any]) -> list[str]:
    """All rows, a table for each part."""
    lines = []
    for name, part in found["parts"].items():
        if part["rows"]:
            lines += [f"**{name}**", "", "| " + " | ".join(HEAD) + " |", "|---" * len(HEAD) + "|"]
            lines += ["| " + " | ".join(map(_cell, cells(row))) + " |" for row in part["rows"]] + [""]
    return lines


def _block(kind: str, text: str, indent: int = 0) -> list[str]:
    """A block of code; nothing for an empty one."""
    lines = [f"~~~{kind}", *text.splitlines(), "~~~"]
    return [*(" " * indent + line for line in lines), ""] if text else []


def _cell(told: str) -> str:
    return told.replace("|", "\\|").replace("<", "&lt;")
