"""What the pages of these docs hold: equations and their labels, sources named, blocks of code, commands, links.

A page is plain Markdown with four conventions, which this file reads and tests/test_docs.py checks:

* `\\tag{softmax.1}` inside $$ … $$ labels an equation. Docstrings name it as (softmax.1), or several as (softmax.2–4).
* A paragraph "Code: [`minigrad.fused.softmax.softmax_unfused`](../minigrad/fused/softmax.py)" names live source, which the site shows
  beside the text before it.
* Blocks marked python run in order, those of a page in one namespace; lines with >>> are compared with what they print.
* Blocks marked bash are commands, each run in an empty folder of the page; `<!-- not run: REASON -->` before a block leaves it out. A block
  marked text right below one is what its last command prints; … is any lines, and numbers with a point are any numbers.
"""
from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
LABEL = r"[a-z][a-z_]*\.\d+"
TAG = re.compile(rf"\\tag\{{({LABEL})\}}")
_GROUP = re.compile(rf"\(((?:[^()]*[\s,;])?(?:{LABEL})(?:[–,;][^()]*)?)\)")
_ONE = re.compile(r"(?<![\w.])([a-z][a-z_]*)?\.(\d+)(?:–\.?(\d+))?(?![\w.])")
SOURCE = re.compile(r"\[`([^`]+)`\]\(([^)#]+)\)")


def pages() -> list[Path]:
    """Every page: README.md and the others at the top, benchmarks/README.md, and docs/ with its folders."""
    beside = [*(ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "CHANGELOG", "SECURITY")), ROOT / "benchmarks" / "README.md"]
    return [p for p in beside if p.exists()] + sorted(DOCS.rglob("*.md"))


def name_of(page: Path) -> str:
    """docs/softmax.md and the like."""
    return page.relative_to(ROOT).as_posix()


def sections(page: Path) -> list[str]:
    """A page cut before each heading."""
    return re.split(r"^(?=#+ )", page.read_text("utf-8"), flags=re.M)


def prose(text: str) -> str:
    """Text without its fenced blocks."""
    return re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)


# ── labels ──
def labels_in(text: str) -> set[str]:
    """The labels of equations that a docstring or comment names: (softmax.1), (layer_norm.5–7), (attention.1, .4–7; Dao 2023)."""
    found = set()
    for group in _GROUP.findall(text):
        family = ""
        for name, first, last in _ONE.findall(group):
            family = name or family
            found |= {f"{family}.{i}" for i in range(int(first), int(last or first) + 1)}
    return found


def sources() -> list[Path]:
    """The files whose docstrings and comments carry labels."""
    return sorted(p for top in ("minigrad", "gpt2") for kind in ("*.py", "*.cu") for p in (ROOT / top).rglob(kind))


def labels_of_code() -> dict[str, list[str]]:
    """Every label that the code names, with the files that do."""
    found: dict[str, list[str]] = {}
    for path in sources():
        for label in sorted(labels_in(path.read_text("utf-8"))):
            found.setdefault(label, []).append(name_of(path))
    return found


def labels_of_pages() -> dict[str, list[str]]:
    """Every label that an equation of a page has, with the pages that have it: one each, if all is well."""
    found: dict[str, list[str]] = {}
    for page in pages():
        for label in TAG.findall(page.read_text("utf-8")):
            found.setdefault(label, []).append(name_of(page))
    return found


# ── equations ──
DISPLAYED = re.compile(r"\$\$(.*?)\$\$", re.S)
_SPACING = re.compile(r"\\(?:[,;! ]|quad|qquad|(?:big|Big)[lr]?(?![a-z])|begin\{aligned\}|end\{aligned\}|\\)|[&\s]")


def equations(page: Path) -> Iterator[tuple[str, str]]:
    """Each displayed equation and its label; one without a label is called PAGE.aside.1 and so on, as softmax.aside.1."""
    asides = 0
    for found in DISPLAYED.findall(prose(page.read_text("utf-8"))):
        tag = TAG.search(found)
        asides += tag is None
        yield tag[1] if tag else f"{page.stem}.aside.{asides}", TAG.sub("", found)


def without_spacing(equation: str) -> str:
    """What an equation says, whichever way it is set: without spaces, sizes of brackets and the full stop."""
    return _SPACING.sub("", equation).rstrip(".,")


# ── sources by name ──
def source_of(name: str, path: Path) -> tuple[str, int]:
    """The text of a definition, decorators and all, and the line where it begins.

    name: "minigrad.fused.softmax.softmax_unfused" in a file of Python, the function's own name in a .cu file. LookupError where there
    is none.
    """
    lines = path.read_text("utf-8").splitlines()
    if path.suffix == ".cu":
        return _kernel(name, lines, path)
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    if not name.startswith(f"{module}."):
        raise LookupError(f"{name} is not a name of {name_of(path)}, whose names begin with {module}.")
    body, node = ast.parse("\n".join(lines)).body, None
    for part in name.removeprefix(f"{module}.").split("."):
        node = next((n for n in body if part in _names(n)), None)
        if node is None:
            raise LookupError(f"there is no {name} in {name_of(path)}")
        body = getattr(node, "body", [])
    assert node is not None and node.end_lineno is not None
    first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])
    text = lines[first - 1:node.end_lineno]
    indent = len(text[0]) - len(text[0].lstrip())
    return "\n".join(line[indent:] for line in text), first


def _names(node: ast.stmt) -> list[str]:
    """What a statement defines."""
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return [t.id for t in targets if isinstance(t, ast.Name)]


def _kernel(name: str, lines: list[str], path: Path) -> tuple[str, int]:
    """A function of a .cu file: from the comment above it to the brace that closes it."""
    at = next((i for i, line in enumerate(lines) if line[:1].strip() and re.search(rf"\b{re.escape(name)}\(", line)
               and not line.startswith("//") and not line.rstrip().endswith(";")), None)
    if at is None:
        raise LookupError(f"there is no {name} in {name_of(path)}")
    end = next(i for i in range(at, len(lines)) if lines[i].startswith("}"))
    while at and lines[at - 1].startswith(("//", "template", "extern")):
        at -= 1
    return "\n".join(lines[at:end + 1]), at + 1


def named_sources(page: Path) -> list[tuple[str, Path]]:
    """The names and files of a page's "Code:" paragraphs."""
    return [(name, (page.parent / target).resolve()) for paragraph in re.split(r"\n\s*\n", page.read_text("utf-8"))
            if paragraph.startswith("Code: ") for name, target in SOURCE.findall(paragraph)]


# ── blocks ──
class Block(NamedTuple):
    """A fenced block: its language, its text, the line it begins at, and why it is not run, if it is not."""

    page: Path
    language: str
    text: str
    line: int
    skipped: str | None


_FENCE = re.compile(r"(?:<!-- not run: (?P<why>[^\n]*?) -->\n+)?^```(?P<language>[\w-]*)[^\n]*\n(?P<text>.*?)^```[ \t]*$", re.M | re.S)


def blocks(page: Path, *languages: str) -> Iterator[Block]:
    """The fenced blocks of these languages, in order."""
    text = page.read_text("utf-8")
    for found in _FENCE.finditer(text):
        if found["language"] in languages:
            yield Block(page, found["language"], found["text"], text.count("\n", 0, found.start("text")) + 1, found["why"])


def commands(page: Path) -> Iterator[tuple[str, str | None]]:
    """The commands of a page, one line each, without what a shell takes for a comment, and why they are not run, if they are not."""
    for block in blocks(page, "bash"):
        yield from _lines(block)


def _lines(block: Block) -> Iterator[tuple[str, str | None]]:
    for line in re.sub(r"\\\n\s*", "", block.text).splitlines():
        if command := re.sub(r"(^|\s)#.*", "", line).strip():
            yield command, block.skipped


def printed(page: Path) -> dict[str, str]:
    """The blocks of text of a page, each under the command that prints it: the last one of the block of commands right before it."""
    found, last = {}, None
    for block in blocks(page, "bash", "text", "python", "pycon", "toml"):
        if block.language == "text" and last is not None and not block.skipped:
            found[last] = block.text
        lines = [command for command, skipped in _lines(block) if not skipped] if block.language == "bash" else []
        last = lines[-1] if lines else None
    return found


def links(page: Path) -> Iterator[str]:
    """The targets of a page's links and pictures that lie in this repository."""
    text = re.sub(r"`[^`\n]*`", "``", prose(page.read_text("utf-8")))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"[a-z]+:", target):
            yield target
