"""python -m gpt2.verify: compare a port with the ground truth, or weights with published figures.

For a port, it reports the first tensor that differs and the mistakes that explain the differences.
"""
from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..cli.command import Parser, add_backend, emit_json, run_command
from ..cli.tables import number, plain, table
from ..errors import GPT2Error, MissingError, UsageError
from ..golden.__main__ import MODEL, Golden, read_golden
from ..model import GPT2
from ..weights.locate import locate
from . import published
from .diagnosis import Verdict, diagnosed, reader
from .port import (
    ALLOWED,
    EPS,
    Compared,
    Named,
    Port,
    check_map,
    compare,
    name_in,
    read_map,
    read_port,
)

SHOWN = 12                                              # wrong tensors that the table shows
AGREES, DIFFERS = 0, 1                                  # exit codes


def parser() -> argparse.ArgumentParser:
    p = Parser(prog="python -m gpt2.verify", description=__doc__)
    what = p.add_mutually_exclusive_group(required=True)
    what.add_argument("--against", type=Path, metavar="PATH",
                      help="the port's tensors: a .safetensors, .npz or .npy file, "
                           "or a folder of such files")
    what.add_argument("--model", metavar="NAME|DIR",
                      help="OpenAI's weights: gpt2, or a directory; "
                           "computes the published figures with them")
    p.add_argument("--golden", type=Path, default=Path("golden"), metavar="DIR",
                   help="the folder that gpt2.golden wrote (default: golden)")
    p.add_argument("--map", type=Path, metavar="FILE.toml",
                   help="a file that maps our names to the port's: "
                        '"blocks.*.attn.out" = "layer*.attention"')
    p.add_argument("--all", action="store_true",
                   help="print a line for every tensor, not only for the wrong ones")
    p.add_argument("--data", type=Path, metavar="DIR",
                   help="with --model: a folder with tinyshakespeare.txt, wikitext2-test.raw, "
                        "lambada_test.jsonl, hellaswag_val.jsonl")
    p.add_argument("--slow", action="store_true",
                   help="with --model: also compute the figures that take many minutes on a CPU")
    add_backend(p)
    p.add_argument("--json", action="store_true", help="one JSON document instead of a table")
    return p


def truth_of(golden: Golden) -> GPT2 | None:
    """The model that computed the truth: float64, unfused, on the CPU.

    None if its weights are not on this machine. MissingError if those in the folder are damaged.
    """
    inside, wanted = golden.folder / MODEL, golden.manifest["config"]
    if inside.exists():
        model = GPT2.from_pretrained(inside, dtype="float64", explicit=True)
        if model.config.to_dict() != wanted:
            raise MissingError(f"the model in {inside} has another configuration than the truth; "
                               "make the truth anew")
        return model
    try:
        path = locate(golden.manifest["model"])
        model = GPT2.from_pretrained(path, dtype="float64", explicit=True)
    except GPT2Error:
        return None
    return model if model.config.to_dict() == wanted else None


def against(args: argparse.Namespace) -> tuple[dict[str, Any], list[str], int]:
    """The JSON document, the lines to print and the exit code of a comparison with a port."""
    golden, names = read_golden(args.golden), read_map(args.map)
    check_map(names, golden.entries)
    port = read_port(args.against, golden)
    found, missing = compare(golden, port, names)
    wrong = [c for c in found if not c.ok]
    lines: list[str] = []
    if shown := found if args.all else wrong[:SHOWN]:
        lines += tensor_table(shown)
        if not args.all and len(wrong) > SHOWN:
            lines.append(f"… and {len(wrong) - SHOWN} more")
        lines.append("")
    said = Verdict([], True, False, [])
    if wrong:
        model = truth_of(golden)
        said = diagnosed(golden, model, found, reader(golden, port, names))
        lines.append(first_to_differ(found, wrong[0]))
        lines += explanation(golden, found, said)
        if model is None and not wrong[0].trouble:
            lines.append("the weights are not here, so bugs could not be planted "
                         "in our model for comparison")
    lines.append(f"{len(found)} tensors compared, {len(found) - len(wrong)} agree"
                 + (f"; the port lacks {len(missing)}: {few(missing)}" if missing else ""))
    others = unused(port, golden, names)
    if others:
        lines.append(f"{len(others)} tensors of the port have names that are not ours, and were "
                     f"not compared: {few(others)}; use --map to match them")
    unseen = [*golden.manifest.get("unseen", []), *narrow(port, found, names)]
    if not any(c.name.endswith(("attn.k", "attn.scores")) for c in found):
        unseen.append("a mistake in K's bias, which softmax cancels: write attn.k to check it")
    lines += [f"this truth cannot show {line}" for line in unseen if not wrong]
    document = {
        "golden": str(args.golden), "against": str(args.against),
        "compared": [c._asdict() | {"ok": c.ok} for c in found],
        "missing": missing, "unused": others, "first": wrong[0].name if wrong else None,
        "causes": said.causes, "named": said.named, "sure": said.sure, "unexplained": said.left,
        "allowed": ALLOWED,
        "places": [place._asdict() | {"looks": look} for place, look in said.places],
        "unseen": unseen,
    }
    return document, lines, DIFFERS if wrong else AGREES


def tensor_table(shown: Sequence[Compared]) -> Iterator[str]:
    """A table with one line for each of these tensors."""
    header = ("tensor", "equation", "units", "max error", "at", "port", "truth", "")
    rows = []
    for c in shown:
        numbers: tuple[Any, ...] = ("",) * 5
        if c.at or not c.trouble:
            numbers = (c.units, c.worst, str(list(c.at)), c.found, c.wanted)
        rows.append((c.name, c.equation, *numbers, c.trouble or ("" if c.ok else "wrong")))
    return table(header, rows, left=2)


def few(names: Sequence[str]) -> str:
    """The first three names, and … if there are more."""
    return f"{', '.join(names[:3])}{' …' * (len(names) > 3)}"


def first_to_differ(found: Sequence[Compared], first: Compared) -> str:
    """The line about the first tensor that differs."""
    before = found.index(first)
    line = f"the first to differ: {first.name} ({first.equation}) "
    line += first.trouble or f"by {number(first.units)} units, where {ALLOWED:g} are allowed"
    if before:
        line += f"; all {before} before it agree, up to {found[before - 1].name}"
    return line


def explanation(golden: Golden, found: Sequence[Compared], said: Verdict) -> Iterator[str]:
    """The lines about what explains the differences."""
    if not said.named and not said.places:
        for what in said.causes:
            yield f"no known mistake explains this; what it looks like: {what}"
    elif said.sure:
        for i, cause in enumerate(said.causes):
            yield f"{'and likely' if i else 'likely'}: {cause}"
    else:
        told = any(look.startswith("perhaps ") for _, look in said.places)
        if said.named and not told:
            for cause in said.causes:
                yield f"perhaps: {cause}"
        if said.left and not said.places:
            one = "the first of these mistakes" if len(said.causes) > 1 else "this mistake"
            yield (f"{one} does not explain {len(said.left)} of the {len(found)} tensors: "
                   f"{few(said.left)}")
    if said.places:
        judged = any(name.startswith("step.") for place, _ in said.places for name in place.names)
        steps = any(c.name.startswith("step.") for c in found if not c.ok)
        later = " but AdamW's later steps, which follow from these" if steps and not judged else ""
        yield ("computed from the port's own earlier values, these tensors are wrong, "
               f"and all others are right{later}:")
    for place, look in said.places:
        start = f", from {place.origin}" if place.origin else ""
        equation = golden.entries[place.names[0]].equation
        yield f"    {place.where} ({equation}){start}{f': {look}' * bool(look)}"


def unused(port: Port, golden: Golden, names: Mapping[str, Named]) -> list[str]:
    """The port's names that match none of ours, such as a misspelt one."""
    used = {named.name for name in golden.entries if (named := name_in(port, name, names))}
    return [name for name in port if name not in used]


def narrow(port: Port, found: Sequence[Compared], names: Mapping[str, Named]) -> list[str]:
    """The mistakes that do not show in tensors that the port stored in 16 bits."""
    kinds = [port[named.name]().dtype for c in found if (named := name_in(port, c.name, names))]
    halves = [kind for kind in kinds if EPS[kind] > EPS["float32"]]
    if not halves:
        return []
    return [f"a small mistake in what is stored in {halves[0]} ({len(halves)} tensors), "
            f"whose rounding is {EPS[halves[0]] / EPS['float32']:,.0f} times float32's: "
            "store float32"]


def figures(args: argparse.Namespace) -> tuple[dict[str, Any], list[str], int]:
    """The JSON document, the lines to print and the exit code of the published figures.

    The exit code is MissingError's if no figure could be computed.
    """
    found = published.run(args)
    known = [figure.what for figure in published.FIGURES]
    computed = any(c.verdict != "skipped" for c in found if c.what in known)
    failed, skipped = (sum(c.verdict == verdict for c in found)
                       for verdict in ("FAILED", "skipped"))
    rows = [(c.what, c.source, c.expected, c.found or c.why, c.verdict) for c in found]
    lines = [*table(("figure", "source", "published", "found", ""), rows, left=4), "",
             f"{len(found) - failed - skipped} hold, {failed} do not, {skipped} skipped"]
    code = DIFFERS if failed else AGREES if computed else MissingError.exit_code
    return {"model": args.model, "figures": [c._asdict() for c in found]}, lines, code


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    if args.model is None and (args.slow or args.data):
        raise UsageError("--data and --slow go with --model only")
    if args.against and not args.against.exists():
        raise MissingError(f"--against {args.against} does not exist")
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        document, lines, code = against(args) if args.against else figures(args)
    if args.json:
        emit_json(plain(document))
    else:
        for line in lines:
            print(line)
    return code


if __name__ == "__main__":
    run_command(main, "gpt2.verify")
