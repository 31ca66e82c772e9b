"""python -m gpt2.experiments: measure claims about GPT-2.

Each experiment has an equation, a table, a verdict and a picture.
"""
from __future__ import annotations

import argparse
import csv
import datetime
import difflib
import io
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import minigrad as mg
from minigrad.backend import explained
from minigrad.errors import MinigradError
from minigrad.info import machine

from ..cli.command import Parser, add_backend, at_least, backend_of, emit_json, run_command
from ..cli.tables import columns, plain, table
from ..errors import GPT2Error, UsageError
from ..inspect.weights import WHICH
from ..io.atomic import check_writable, write_files
from ..io.outputs import open_folder
from ..io.plots import image
from . import NAMES, experiment
from .lab import Lab


def parser() -> argparse.ArgumentParser:
    p = Parser(prog="python -m gpt2.experiments", description=__doc__)
    p.add_argument("names", nargs="*", metavar="NAME",
                   help="experiments to run, or all")
    p.add_argument("--list", action="store_true",
                   help="list the experiments")
    p.add_argument("--out", type=Path, default=Path("experiments"), metavar="DIR",
                   help="the folder for NAME.png, .csv and .json (default: experiments)")
    p.add_argument("--model", default="shakespeare", metavar="NAME|DIR",
                   help="the model to measure (default: shakespeare, which ships with the package)")
    p.add_argument("--data", type=Path, metavar="FILE",
                   help="a text to train and test on (default: text that the model generates)")
    p.add_argument("--seed", type=at_least(0), default=0, metavar="N",
                   help="the seed of all random numbers (default: 0)")
    p.add_argument("--which", choices=[*WHICH, "all"],
                   help="the weights that weight-histograms measures (default: all)")
    add_backend(p)
    p.add_argument("--json", action="store_true", help="one JSON document instead of tables")
    return p


def chosen(names: list[str]) -> list[str]:
    """The experiments with these names; all of them if "all" is among the names.

    UsageError, with similar names, for an unknown name.
    """
    if not names:
        raise UsageError("name an experiment, or all; --list shows what there is")
    for name in names:
        if name not in (*NAMES, "all"):
            near = difflib.get_close_matches(name, NAMES, 3)
            hint = f"similar names: {', '.join(near)}" if near else "--list shows what there is"
            raise UsageError(f"there is no experiment {name!r}; {hint}")
    return list(NAMES) if "all" in names else names


def csv_of(rows: list[dict[str, Any]]) -> bytes:
    """The rows as CSV, with every column that any row has."""
    out = io.StringIO()
    writer = csv.DictWriter(out, columns(rows), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue().encode()


def question(module: Any) -> str:
    """The first line of the experiment's docstring, which `python -OO` removes."""
    return (module.__doc__ or "").strip().partition("\n")[0]


def perform(name: str, lab: Lab, out: Path) -> dict[str, Any]:
    """Run an experiment, write its three files, and return its document."""
    module, started = experiment(name), time.perf_counter()
    lab.files.clear()
    found = plain(module.measure(lab))
    verdicts = [v._asdict() for v in module.judge(found)]
    document = {
        "experiment": name, "about": question(module),
        "equation": module.EQUATION, "model": lab.model_name, "backend": lab.device,
        "seed": lab.seed, "date": datetime.date.today().isoformat(), "machine": machine(),
        "seconds": round(time.perf_counter() - started, 2), "verdicts": verdicts, **found,
    }
    picture = image(module.draw(found))
    files = {**lab.files, f"{name}.png": picture, f"{name}.csv": csv_of(found["rows"]),
             f"{name}.json": json.dumps(document, indent=1).encode() + b"\n"}
    with open_folder(out, "gpt2.experiments", files):
        write_files(out, files)
    return document


def lines_of(document: dict[str, Any]) -> Iterator[str]:
    """The lines to print about an experiment."""
    yield f"{document['experiment']}: {document['about']}"
    yield document["equation"]
    yield ""
    rows = document["rows"]
    header = columns(rows)
    cells = [[str(row[key]) if isinstance(row.get(key), list) else row.get(key) for key in header]
             for row in rows]
    yield from table(header, cells,
                     left=sum(isinstance(rows[0].get(key), str) for key in header[:2]) or 1)
    yield ""
    yield from document.get("notes", [])
    for one in document["verdicts"]:
        yield f"VERDICT: {one['verdict']} — {one['claim']} ({one['because']})"


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    if args.list:
        about = [(name, question(experiment(name))) for name in NAMES]
        for line in table(("experiment", "question"), about, left=2):
            print(line)
        return 0
    names = chosen(args.names)
    if args.which and "weight-histograms" not in names:
        raise UsageError(f"--which is for weight-histograms only, not for {', '.join(names)}")
    check_writable(args.out / names[0])
    device = str(mg.backend.get(backend_of(args)))
    lab = Lab(args.model, device, args.data, args.seed, args.which or "all")
    _ = lab.path                        # raises an error for a missing model before any measurement
    documents, code = list[dict[str, Any]](), 0
    for name in names:
        try:
            document = perform(name, lab, args.out)
        except (GPT2Error, MinigradError, OSError, ImportError, MemoryError) as error:
            ours = explained(error) or error            # the next experiments may work
            reason = " ".join(str(ours).split()) or type(ours).__name__
            print(f"gpt2.experiments: {name}: {reason}", file=sys.stderr, flush=True)
            code = code or getattr(ours, "exit_code", 1)
            continue
        if not args.json:
            print("\n".join([""] * bool(documents) + list(lines_of(document))), flush=True)
        documents.append(document)
        print(f"gpt2.experiments: {name}: {document['seconds']:.1f} s, "
              f"wrote {args.out / name}.png, .csv, .json", file=sys.stderr)
    if args.json and (documents or len(names) > 1):
        emit_json(documents if len(names) > 1 else documents[0])
    return code


if __name__ == "__main__":
    run_command(main, "gpt2.experiments")
