"""python -m docs.check [PAGE ...]: whether the pages say what is so; one line for each thing that is not.

Labels of equations in code and pages match both ways; names of sources, and names in sentences, exist; links lead somewhere; numbers that
were measured say where they come from, and those that the code has are the code's; commands in sentences are there and have such flags;
samples of Python run, print what is shown, and make arrays of the shapes in their comments; commands run, and print the block of text below
them. --quick leaves out the running of commands, which takes minutes.
"""
from __future__ import annotations

import argparse
import doctest
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from . import pages, shapes, statements
from .pages import ROOT, name_of

MEASURED = re.compile(r"(?<![\w.])\d[\d.,]* ?(?:ms|µs|ns|s a step|seconds|minutes|GB/s|GFLOP/s|TFLOP/s|tok/s|tokens a second)(?![\w])")
IN_CLONE = re.compile(r"pytest|ruff|mypy|HYPOTHESIS_PROFILE=\w+ pytest|python (-m (docs|benchmarks|tests)\b|tests/|docs/)")
CORES = min(8, os.cpu_count() or 1)                      # pages that are looked at at a time
LONGEST = 900                                           # seconds that a command may take


# ── what is read ──
def labels() -> Iterator[str]:
    """What does not match between the labels in code and those of equations."""
    code, shown = pages.labels_of_code(), pages.labels_of_pages()
    for label in sorted(code.keys() - shown.keys()):
        yield f"{code[label][0]}: names ({label}), which no page derives"
    for label in sorted(shown.keys() - code.keys()):
        yield f"{shown[label][0]}: derives ({label}), which no docstring or comment names"
    for label, where in sorted(shown.items()):
        if len(where) > 1:
            yield f"{where[1]}: the label ({label}) is there twice, first in {where[0]}"


def names(page: Path) -> Iterator[str]:
    """Sources that a page names and that are not there."""
    for name, path in pages.named_sources(page):
        try:
            pages.source_of(name, path)
        except (LookupError, OSError, ValueError) as error:
            yield f"{name_of(page)}: Code: {error}"


def links(page: Path) -> Iterator[str]:
    """Links that lead nowhere, and labels in the text that no equation has."""
    for target in pages.links(page):
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        if not there.exists():
            yield f"{name_of(page)}: the link {target} leads nowhere"
        elif anchor and there.suffix == ".md" and anchor not in anchors(there):
            yield f"{name_of(page)}: {name_of(there)} has no heading #{anchor}"
    named = pages.labels_in(page.read_text("utf-8"))
    for label in sorted(named - pages.labels_of_pages().keys() if named else ()):
        yield f"{name_of(page)}: names ({label}), which no page derives"


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as repository browsers make them."""
    heads = re.findall(r"^#+ (.+)$", page.read_text("utf-8"), re.M)
    return {re.sub(r"[^\w -]", "", head.lower()).strip().replace(" ", "-") for head in heads}


def measured(page: Path) -> Iterator[str]:
    """Sections with numbers that a machine was asked for, and neither a file of results nor a command that asks again."""
    for part in pages.sections(page):
        found = MEASURED.search(pages.prose(part))
        if found and not re.search(r"results/|`?python -m |pytest |timeit", part):
            heading = part.splitlines()[0].lstrip("# ")
            yield f"{name_of(page)}: {heading!r} says {found[0]!r}, and not which file of results or command it is from"


PEERS = {"minigrad": "minigrad", "of floor": "minigrad", "PyTorch eager": "torch", "torch.compile": "torch-compile", "JAX jit": "jax",
         "CTranslate2": "ctranslate2", "MyGrad": "mygrad", "HIPS autograd": "autograd"}      # what a column of a page calls a peer


def tables(page: Path) -> Iterator[str]:
    """Rows of a table beside a link to a table of results that these have not got, and numbers that are not that peer's there."""
    for part in pages.sections(page):
        links = [(page.parent / link).resolve() for link in re.findall(r"\]\(([^)]*benchmarks/results/[^)]*\.md)\)", part)]
        results: dict[tuple[str, str], list[str]] = {}
        for path in filter(Path.exists, links):
            name = ""
            for line in path.read_text("utf-8").splitlines():
                if line.startswith("| ") or line.startswith("|  |"):
                    row, peer, *cells = [cell.strip() for cell in line.strip("|").split("|")]
                    name = row or name
                    results.setdefault((name, peer), []).extend(re.findall(r"\d[\d.]*", " ".join(cells)))
        lines = [line for line in part.splitlines() if line.startswith("|")] if results else []
        header = [cell.strip() for cell in lines[0].strip("|").split("|")] if lines else []
        for line in lines[2:] if "minigrad" in header else []:
            name, *cells = [cell.strip() for cell in line.strip("|").split("|")]
            if (name, "minigrad") not in results:
                yield f"{name_of(page)}: the results have no row {name!r}"
                continue
            for column, cell in zip(header[1:], cells):
                told = re.findall(r"([A-Za-z][\w. ]*?) \**(\d[\d.]*)", cell) if column == "others" else \
                    [(column, number) for number in re.findall(r"(?<![\w.])\d[\d.]*", cell)]
                for peer, shown in told:
                    digits, theirs = len(shown.partition(".")[2]), results.get((name, PEERS.get(peer, peer)), [])
                    if not any(f"{float(n):.{digits}f}" == shown for n in theirs):
                        yield f"{name_of(page)}: {name!r} says {shown} of {peer}, which its results do not"


# ── what is run ──
def samples(page: Path) -> Iterator[str]:
    """Blocks of Python that do not run, or do not print what they show; each page has a process of its own."""
    if not any(pages.blocks(page, "python", "pycon")):
        return
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run([sys.executable, "-m", "docs.check", "--samples-here", str(page)], cwd=folder, text=True, capture_output=True,
                              env=environment(), stdin=subprocess.DEVNULL, timeout=LONGEST)
    if done.returncode:
        yield f"{name_of(page)}: {done.stdout.strip() or done.stderr.strip()[-2000:]}"


def samples_here(page: Path) -> list[str]:
    """The same in this process, in one namespace."""
    space: dict[str, object] = {"__name__": "__main__"}
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    found = [block for block in pages.blocks(page, "python", "pycon") if not block.skipped]
    claims = {block.line + n: claim for block in found for n, claim in shapes.claims(block.text).items()}
    with shapes.returned(str(page), claims) as returned:
        for block in found:
            where, said = f"line {block.line}", []
            if ">>> " in block.text:
                test = doctest.DocTestParser().get_doctest(block.text, space, where, str(page), block.line)
                test.globs = space
                runner.run(test, out=said.append, clear_globs=False)
            else:
                try:
                    exec(compile("\n" * block.line + block.text, str(page), "exec"), space)
                except BaseException:
                    said.append(traceback.format_exc(limit=-2))
            if wrong := said or list(shapes.wrong(shapes.assigned(block.text, space))):
                return [f"{where}: {''.join(wrong)}"]
    return list(shapes.wrong(returned))


def commands(page: Path, tell: Callable[[str], None] = lambda line: None, collect: bool = False) -> Iterator[str]:
    """Commands that do not end well. What is about a clone runs here, all else in a folder of the page's own, one after the other.

    collect: of pytest it is asked only whether there are such tests.
    """
    shown = pages.printed(page)
    with tempfile.TemporaryDirectory() as folder:
        for command, skipped in pages.commands(page):
            if skipped or command.startswith(("cd ", "git clone")):
                continue
            if command.startswith("pip install"):
                yield from extras(page, command)
                continue
            started = time.perf_counter()
            asked = f"{command} --collect-only -q" if collect and re.match(r"(\w+=\w+ )?pytest ", command) else command
            done = subprocess.run(["bash", "-uo", "pipefail", "-c", asked], cwd=ROOT if IN_CLONE.match(command) else folder, text=True,
                                  env=environment(), capture_output=True, stdin=subprocess.DEVNULL, timeout=LONGEST)
            tell(f"{time.perf_counter() - started:6.1f} s  {name_of(page)}: {command}")
            if asked != command and done.returncode == 0:
                yield from unselected(page, command, done.stdout)
            if done.returncode:
                yield f"{name_of(page)}: {command!r} ended with {done.returncode}: {(done.stderr.strip() or done.stdout.strip())[-600:]}"
            elif command in shown and not prints(done.stdout, shown[command]):
                yield f"{name_of(page)}: {command!r} does not print what is shown, but\n{done.stdout}"


def prints(found: str, shown: str) -> bool:
    """Whether an output is what a page shows, where … stands for any lines. Spaces do not count, and numbers with a point or an exponent
    are some number: how they round is the machine's affair."""
    def plain(text: str) -> str:
        return " ".join(re.sub(r"-?\d+\.\d+(?:e[-+]?\d+)?|\d+e[-+]?\d+", "#", text).split())

    pattern = ".*".join(re.escape(plain(part)) for part in re.split(r"^…$", shown, flags=re.M))
    return re.fullmatch(pattern, plain(found)) is not None


def unselected(page: Path, command: str, collected: str) -> Iterator[str]:
    """Alternatives of a command's -k that select none of the tests that were collected."""
    words = shlex.split(command)
    wanted = words[words.index("-k") + 1] if "-k" in words else ""
    ids = [line.lower() for line in collected.splitlines() if "::" in line]
    for one in re.split(r" or ", wanted) if "(" not in wanted and "not " not in wanted else []:
        if not any(all(word.lower() in found for word in one.split(" and ")) for found in ids):
            yield f"{name_of(page)}: {command!r}: no test is called {one!r}"


def extras(page: Path, command: str) -> Iterator[str]:
    """Extras that setup.py does not have; the installing itself is done where the suite runs."""
    known = re.findall(r'^        "(\w+)": \[', (ROOT / "setup.py").read_text("utf-8"), re.M)
    for group in re.findall(r"\.\[([\w,]+)\]", " ".join(shlex.split(command.split("&&")[0]))):
        for name in group.split(","):
            if name not in known:
                yield f"{name_of(page)}: {command!r}: setup.py has no extra {name!r}"


def environment() -> dict[str, str]:
    """This Python first, the clone importable, no windows, no network, and one thread each, for several run at a time."""
    here = os.path.dirname(sys.executable)
    return {**os.environ, "PATH": f"{here}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "MPLBACKEND": "Agg",
            "HF_HUB_OFFLINE": "1", "HYPOTHESIS_PROFILE": "few", "PYTHONIOENCODING": "utf-8", "OPENBLAS_NUM_THREADS": "1"}


# what is asked of a page without running anything
QUICK: tuple[Callable[[Path], Iterator[str]], ...] = (
    names, links, measured, tables, statements.spelled, statements.bare, statements.named, statements.told, statements.points,
    statements.outputs, statements.drawn)


def main(argv: list[str] | None = None) -> int:
    p = argparse.ArgumentParser(prog="python -m docs.check", description=__doc__, allow_abbrev=False)
    p.add_argument("pages", nargs="*", type=Path, metavar="PAGE", help="Markdown files (default: all)")
    p.add_argument("--quick", action="store_true", help="leave the commands out")
    p.add_argument("--collect", action="store_true", help="of pytest ask only whether there are such tests, where the suite has just run")
    p.add_argument("--samples-here", action="store_true", help=argparse.SUPPRESS)
    args = p.parse_args(argv)
    if missing := [page for page in args.pages if not page.is_file()]:
        p.exit(2, f"docs.check: there is no page {missing[0]}\n")
    chosen = [page.resolve() for page in args.pages] or pages.pages()
    if args.samples_here:
        wrong = samples_here(chosen[0])
        print("\n".join(wrong))
        return bool(wrong)
    wrong = [] if args.pages else list(labels())

    def everything(page: Path) -> list[str]:
        found = [defect for what in (*QUICK, samples) for defect in what(page)]
        return found if args.quick else [*found, *commands(page, lambda line: print(line, file=sys.stderr, flush=True), args.collect)]

    with ThreadPoolExecutor(CORES) as pool:             # each page's commands one after the other, in processes of their own
        for defects in pool.map(everything, chosen):
            wrong += defects
    if wrong:
        print("\n".join(wrong))
    print(f"docs.check: {len(chosen)} pages, {len(wrong)} defects", file=sys.stderr)
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
