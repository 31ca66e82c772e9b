"""What a page says of commands, names, numbers and shapes, beside what the code says: each function yields a line for each difference."""
from __future__ import annotations

import argparse
import builtins
import fnmatch
import functools
import importlib
import keyword
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from . import commands, facts, pages, shapes
from .pages import ROOT, name_of

ADDED = {"silu", "silu/x", "silu_unfused", "_silu_dx", "silu.py"}     # what docs/adding-an-op.md adds
ENDINGS = {"py", "cu", "h", "json", "jsonl", "md", "npy", "npz", "png", "safetensors", "toml", "txt"}
FOREIGN = {"TMPDIR"}                                    # names of others that nothing here spells
SPAN = re.compile(r"``?([^`]+?)``?(?!`)")
COMMANDS = "python3?|pip|pytest|git|mpiexec|cc|make|ruff|mypy"
NAMED = re.compile(r"python -m\s+((?:minigrad|gpt2|benchmarks|docs|tests)\.[\w.]+\w)")
RUN = re.compile(r"python -m\s+((?:minigrad|gpt2|benchmarks|docs|tests)\.[\w.]+)((?:[^&|;]|;;)*)")


def paragraphs(page: Path) -> Iterator[str]:
    """The paragraphs of a page's text; each row of a table, and each item of a list, is one."""
    for block in re.split(r"\n\s*\n", pages.prose(page.read_text("utf-8"))):
        yield from re.split(r"\n(?=[|*])", block)


def by_hand(page: Path) -> bool:
    """Whether a page speaks of the code as it is now: the changelog names what is gone, pages of experiments are made of results."""
    return page.name != "CHANGELOG.md" and page.parent.name != "experiments"


def tables(page: Path) -> Iterator[list[list[str]]]:
    """The tables of a page: the cells of the header, then those of each row."""
    for block in re.split(r"\n\s*\n", pages.prose(page.read_text("utf-8"))):
        rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip().strip("|"))]
                for line in block.splitlines() if line.startswith("|")]
        if len(rows) > 2:
            yield [rows[0], *rows[2:]]


# ── flags ──
def spelled(page: Path) -> Iterator[str]:
    """Commands of ours in a sentence or in a block that are none, or that have no such flag, or whose flag does not take that value."""
    shown = [*SPAN.findall(pages.prose(page.read_text("utf-8"))), *(command for command, _ in pages.commands(page))]
    for line in shown:
        for name, rest in RUN.findall(line):
            words = shlex.split(rest.replace("'", '"') if rest.count("'") % 2 else rest)
            known = commands.flags(name)
            if known is None:
                yield f"{name_of(page)}: there is no command {name} in {line!r}"
                continue
            if words and commands.flags(f"{name} {words[0]}"):
                known = {**known, **(commands.flags(f"{name} {words[0]}") or {})}
            for flag, value in zip(words, [*words[1:], ""]):
                if re.fullmatch(r"--[a-z][\w-]*", flag):
                    if flag not in known:
                        yield f"{name_of(page)}: {name} has no flag {flag}, in {line!r}"
                    elif not takes(known[flag], value):
                        yield f"{name_of(page)}: {name} {flag} does not take {value!r}, in {line!r}"


def takes(action: argparse.Action, value: str) -> bool:
    """Whether a flag takes a value as it is shown. A word in capitals, and three dots, stand for any."""
    return (action.choices is None or not value or value.startswith("-") or value.isupper() or "…" in value
            or value in ADDED or value in map(str, action.choices))


def bare(page: Path) -> Iterator[str]:
    """Flags that stand alone in a sentence, and that no command has, or that do not take that value; and in a row of a table that names
    commands, flags that none of these has."""
    for paragraph in paragraphs(page) if by_hand(page) else ():
        near = set(NAMED.findall(paragraph)) if paragraph.startswith("|") else set()
        known = [with_subcommands(name) for name in sorted(near or all_commands())]
        if "pytest" in paragraph:                       # whose flags are not ours
            continue
        for span in SPAN.findall(paragraph):
            words = span.split()
            for flag, value in zip(words, [*words[1:], ""]) if span.startswith("--") else ():
                found = [actions[flag] for actions in known if flag in actions]
                if flag.startswith("--") and not found:
                    yield f"{name_of(page)}: no command that it names has a flag {flag}"
                elif found and not any(takes(action, value) for action in found):
                    yield f"{name_of(page)}: {flag} does not take {value!r}"
    for header, *rows in tables(page):                  # a column under a flag lists its values
        for column, flag in ((n, cell.strip("`")) for n, cell in enumerate(header) if cell.startswith("`--")):
            listed = {value for row in rows for value in SPAN.findall(row[column])}
            taken = [set(map(str, actions[flag].choices)) for actions in map(with_subcommands, all_commands())
                     if flag in actions and actions[flag].choices]
            if taken and listed not in taken:
                yield f"{name_of(page)}: the table of {flag} lists {', '.join(sorted(listed))}, and no command takes these"


@functools.cache
def all_commands() -> tuple[str, ...]:
    return tuple(name.removesuffix(".__main__") for name in commands.modules())


@functools.cache
def with_subcommands(name: str) -> dict[str, argparse.Action]:
    """The flags of a command and of all its subcommands."""
    found = dict(commands.flags(name) or {})
    if not name.startswith("tests.") and found:
        module = f"{name}.__main__" if (ROOT.joinpath(*name.split("."))).is_dir() else name
        for one in commands.parsers(module):
            found |= {flag: action for action in one._actions for flag in action.option_strings}
    return found


# ── names ──

@functools.cache
def sources() -> str:
    """All text of this repository that is no page: names are looked up in it."""
    kinds = (".py", ".cu", ".h", ".js", ".c", ".html")
    return "\n".join(p.read_text("utf-8") for top in ("minigrad", "gpt2", "benchmarks", "docs", "tests")
                     for p in sorted((ROOT / top).rglob("*")) if p.suffix in kinds and not p.name.startswith("test_"))


@functools.cache
def files() -> tuple[str, ...]:
    """The names of all files."""
    return tuple(p.name for top in (".ci", "minigrad", "gpt2", "benchmarks", "docs", "tests") for p in (ROOT / top).rglob("*"))


@functools.cache
def words() -> frozenset[str]:
    """Every name in the sources, and Python's own."""
    return frozenset(re.findall(r"[A-Za-z_]\w*", sources())) | set(dir(builtins)) | set(keyword.kwlist)


def named(page: Path) -> Iterator[str]:
    """Names in code spans that occur nowhere in the code, and names that a file is said to define and does not."""
    text = pages.prose(page.read_text("utf-8"))
    for span in sorted(set(SPAN.findall(text))) if by_hand(page) else ():
        if not known(page, " ".join(span.split())):
            yield f"{name_of(page)}: nothing in the code is called `{span}`"
    for name, path in re.findall(r"`([A-Za-z_]\w*)` in `([\w./]+\.py)`", " ".join(text.split())):
        file = ROOT / path
        if file.is_file() and not re.search(rf"^\s*(?:def |class )?{name}\b[^=\n]*[(:=]", file.read_text("utf-8"), re.M):
            yield f"{name_of(page)}: {path} defines no {name}"


def known(page: Path, span: str) -> bool:
    """Whether a code span is a path, or a name that leads somewhere, or text whose names of four letters and more are all in the code.

    Commands are looked at elsewhere, capitals stand for a name of the reader's, and what a sample of the page makes is known on the page.
    """
    name = span.strip("\"'")
    if name in ADDED | FOREIGN or re.match(rf"({COMMANDS})\b|[-$~]|[A-Z_]+=\w|\w+://", name):
        return True
    if re.search(r"\b[A-Z]{3,}\b", name) and not name.isupper():
        return True
    if re.fullmatch(r"[\w.*+/-]*\w[+/]?", name):
        if re.fullmatch(r"(mg|np|minigrad|gpt2|benchmarks)(\.\w+)+", name):
            return leads(name)
        parts = name.split(".")
        return (any(any(base.glob(name)) for base in (ROOT, page.parent, pages.DOCS)) or bool(fnmatch.filter(files(), name))
                or name in sources() or any(name in block.text for block in pages.blocks(page, "python", "pycon", "bash", "toml"))
                or (1 < len(parts) and parts[-1] not in ENDINGS and all(part in words() or part.isdigit() for part in parts)))
    return all(word in words() | ADDED for word in re.findall(r"[A-Za-z_]\w{3,}", name))


def leads(name: str) -> bool:
    """Whether a dotted name leads somewhere; mg and np are what samples call by them."""
    parts = name.split(".")
    parts[0] = {"mg": "minigrad", "np": "numpy"}.get(parts[0], parts[0])
    for n in range(len(parts), 0, -1):                  # the longest name of a module first: minigrad.fused.gelu is a function as well
        try:
            here: Any = importlib.import_module(".".join(parts[:n]))
        except ImportError:
            continue
        for part in parts[n:]:
            here = getattr(here, part, None)
        return here is not None
    return False


# ── facts ──
def told(page: Path) -> Iterator[str]:
    """Sentences that the page has to hold, with the numbers that the code has, and does not."""
    text = " ".join(page.read_text("utf-8").split())
    for sentence in facts.of(name_of(page)):
        if " ".join(sentence.split()) not in text:
            yield f"{name_of(page)}: it does not say {sentence!r}, which is so (docs/facts.py)"


POINT = {"wte": "embed", "wpe": "pos_embed", "ln_1": "ln_1.out", "split_heads": "attn.q", "F.attention": "attn.pattern",
         "attn.c_proj": "attn.out", "ln_2": "ln_2.out", "ln_f": "ln_f.out", "lm_head": "logits"}           # where what a step makes is seen


def points(page: Path) -> Iterator[str]:
    """Rows of a table of steps or of points of the model with another shape or another equation than the model's."""
    for header, *rows in tables(page):
        if not {"shape", "equation"} <= {*header} or not {"by", "point"} & {*header}:
            continue
        names, at, labels = ([*header].index(name) for name in ("point" if "point" in header else "by", "shape", "equation"))
        for row in rows:
            found = [POINT.get(name, name) for name in SPAN.findall(row[names])]
            said = re.findall(r"\[[^\]]*\]", row[at])
            for n, name in enumerate(found):
                if name not in model_points():
                    if "point" in header:
                        yield f"{name_of(page)}: the model has no point {name}"
                    continue
                shape, label = model_points()[name]
                for defect in shapes.wrong([(said[min(n, len(said) - 1)], shape)], B=2, T=5, S=5, d=12, h=3, n=20, V=50):
                    yield f"{name_of(page)}: {name}: {defect}"
                if f"({label})" not in row[labels]:
                    yield f"{name_of(page)}: {name} is ({label}), and its row says {row[labels]}"


@functools.cache
def model_points() -> dict[str, tuple[Any, str]]:
    """What stands at each point of a small model's first block, and its equation."""
    from gpt2 import GPT2, GPT2Config

    model = GPT2(GPT2Config(vocab_size=50, n_positions=8, n_embd=12, n_head=3, n_inner=20, n_layer=1), seed=0).eval()
    labels, seen = model.equations(), model.trace([[1, 2, 3, 4, 5]] * 2)
    return {name.removeprefix("blocks.0."): (seen[name], label) for name, label in labels.items()}


def outputs(page: Path) -> Iterator[str]:
    """Blocks of text that no command right before them prints and that do not say why not, and words in them that are not the code's."""
    for block in pages.blocks(page, "text") if by_hand(page) else ():
        if block.text not in pages.printed(page).values() and not block.skipped:
            yield f"{name_of(page)}: nobody compares the block of text at line {block.line} with what is printed"
        for word in sorted(set(re.findall(r"[A-Za-z_]\w{3,}", block.text)) - words()):
            yield f"{name_of(page)}: the block of text at line {block.line} has {word!r}, which nothing in the code prints"


# ── the house ──
def drawn(page: Path) -> Iterator[str]:
    """Modules in a drawing of boxes and lines that are not there, and on the page with the drawing of the packages, modules that it leaves
    out; folders that a list of them names and that are not there."""
    text = page.read_text("utf-8")
    for drawing in re.findall(r"^```\n(.*?)^```", text, re.M | re.S):
        if "│" not in drawing:
            continue
        for line in drawing.replace("│", " ").splitlines():
            left = re.match(r" {0,24}(\S.*?)(?: {4,}|$)", re.sub(r"^(gpt2|minigrad) ", "", line))
            for name in re.findall(r"[a-z_]\w*(?:/|\b)", left[1].replace("─", " ")) if left else ():
                if not any((ROOT / top / f"{name.rstrip('/')}{end}").exists() for top in ("gpt2", "minigrad") for end in ("", ".py")):
                    yield f"{name_of(page)}: the drawing has {name!r}, and there is no such module"
        listed = {"experiments", "mistakes", "inspect"}                         # folders that the page names as a whole
        for path in sorted([*(ROOT / "gpt2").rglob("[a-z]*.py"), *(ROOT / "minigrad").glob("[a-z]*.py")]):
            if path.parent.name not in listed and not re.search(rf"\b{path.stem}\b", text):
                yield f"{name_of(page)}: nothing is said of {name_of(path)}"
    for name in re.findall(r"^    (\w+/) {2,}", pages.prose(text), re.M):
        if not (ROOT / name).is_dir():
            yield f"{name_of(page)}: there is no folder {name}"
