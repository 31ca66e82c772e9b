"""python -m docs.laboratory: the experiments' pages, from what `python -m gpt2.experiments` wrote; --run has it write them anew.

docs/experiments/NAME.json and NAME.png are results; NAME.md and the table of verdicts in index.md are made of them.
"""
from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.processes import UNSET
from gpt2.cli.command import Extend
from gpt2.cli.tables import columns, number
from gpt2.experiments import NAMES, experiment

from .pages import DOCS, ROOT

FOLDER = DOCS / "experiments"
MOST = 24                                               # rows of a table on a page
BEGIN, END = "<!-- verdicts, by python -m docs.laboratory -->", "<!-- end of verdicts -->"


def escaped(text: str) -> str:
    """Text as Markdown that says just this."""
    return re.sub(r"([\\`*_|<>\[\]$#~])", r"\\\1", text)


def of_file(stem: str) -> dict[str, Any]:
    """What an experiment found, by its name, or by another that its files were given."""
    return dict(json.loads((FOLDER / f"{stem}.json").read_text("utf-8")))


def stems() -> list[str]:
    """The experiments in their order, and what there is of other models after it."""
    return [*NAMES, *sorted({path.stem for path in FOLDER.glob("*.json")} - set(NAMES))]


def cells(row: dict[str, Any], header: list[str]) -> Iterator[str]:
    for key in header:
        value = row.get(key)
        yield escaped(value if isinstance(value, str) else str(value) if isinstance(value, list) else number(value))


def definitions(name: str) -> str:
    """Links to the functions that measure and judge."""
    path = f"gpt2/experiments/{name.replace('-', '_')}"
    return ", ".join(f"[`{path.replace('/', '.')}.{function}`](../../{path}.py)" for function in ("measure", "judge"))


def page(stem: str) -> str:
    """The page of a file of results."""
    found = of_file(stem)
    name = found["experiment"]
    module = experiment(name)
    about, _, more = module.__doc__.strip().partition("\n")
    rows = found["rows"]
    header = columns(rows)
    shipped = found["model"] == "shakespeare"
    command = f"python -m gpt2.experiments {name}{'' if shipped else ' --model ' + found['model']}"
    lines = [f"# {name}{'' if shipped else ' on ' + found['model'].partition('.')[0]}", "", f"{escaped(about)} `{command}`", ""]
    lines += [escaped(" ".join(paragraph.split())) + "\n" for paragraph in more.strip().split("\n\n") if paragraph]
    lines += ["```text", found["equation"], "```", ""]
    lines += [f"**{v['verdict'].capitalize()}**: {escaped(v['claim'])} ({escaped(v['because'])}).\n" for v in found["verdicts"]]
    lines += [f"![{escaped(about)}]({stem}.png)", "", "## The numbers", ""]
    lines += [f"| {' | '.join(escaped(key) for key in header)} |", f"|{'---|' * len(header)}"]
    lines += [f"| {' | '.join(cells(row, header))} |" for row in rows[:MOST]]
    if len(rows) > MOST:
        lines += ["", f"{MOST} rows of {len(rows)}; all of them are in [`{stem}.json`]({stem}.json)."]
    if found.get("notes"):
        lines += ["", "```text", *(note.replace("```", "'''") for note in found["notes"][:MOST]), "```"]
    lines += ["", "## How it is measured and judged", "",
              f"On the model `{found['model']}`, seed {found['seed']}, with {found['backend']}, in {found['seconds']:.1f} s; "
              f"{found['date']}, {escaped(found['machine'])}. The verdicts are a function of the numbers in "
              f"[`{stem}.json`]({stem}.json) alone, by the rule in the docstring of `judge`.",
              "", "## In the code", "", f"Code: {definitions(name)}", "", "## Check it", ""]
    lines += ["```bash", *([f"{command} --seed {found['seed']}"] if shipped else []),
              f"pytest -n 0 -m '' tests/gpt2/experiments -k {name}", "```", ""]
    return "\n".join(lines)


def verdicts() -> str:
    """The table of all verdicts, for index.md."""
    lines = [BEGIN, "", "| experiment | what is claimed | verdict |", "|---|---|---|"]
    for stem in stems():
        for i, v in enumerate(of_file(stem)["verdicts"]):
            shown = f"[{stem}]({stem}.md)" if i == 0 else ""
            lines.append(f"| {shown} | {escaped(v['claim'])} | **{v['verdict']}**: {escaped(v['because'])} |")
    return "\n".join([*lines, "", END])


def files() -> dict[Path, str]:
    """Every file that this makes, as it should be."""
    index = FOLDER / "index.md"
    text = index.read_text("utf-8")
    before, after = text.partition(BEGIN)[0], text.partition(END)[2]
    return {**{FOLDER / f"{stem}.md": page(stem) for stem in stems()}, index: before + verdicts() + after}


def main(argv: list[str] | None = None) -> int:
    p = argparse.ArgumentParser(prog="python -m docs.laboratory", description=__doc__, allow_abbrev=False)
    p.add_argument("--run", nargs="*", action=Extend, metavar="NAME", help="measure these experiments anew, or all where none is named")
    args = p.parse_args(argv)
    if args.run is not None:
        # as a user's machine has it: no BLAS kernels forced
        environment = {k: v for k, v in os.environ.items() if k not in UNSET}
        with tempfile.TemporaryDirectory() as out:
            command = [sys.executable, "-m", "gpt2.experiments", *(args.run or ["all"]), "--out", out]
            if (code := subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, env=environment).returncode):
                return code
            # the table is in the JSON, and the page of a pass is large
            for made in (*Path(out).glob("*.json"), *Path(out).glob("*.png")):
                shutil.copy(made, FOLDER)
    for path, text in files().items():
        path.write_text(text, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
