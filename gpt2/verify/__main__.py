"""python -m gpt2.verify: a port's tensors against ground truth, and why they differ; or OpenAI's weights against published figures."""
from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
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
from .port import ALLOWED, EPS, Compared, Named, Port, check_map, compare, name_in, read_map, read_port

SHOWN = 12                                              # lines of tensors that are wrong
AGREES, DIFFERS = 0, 1                                  # what it ends with


def parser() -> argparse.ArgumentParser:
    p = Parser(prog="python -m gpt2.verify", description=__doc__)
    what = p.add_mutually_exclusive_group(required=True)
    what.add_argument("--against", type=Path, metavar="PATH",
                      help="a port's tensors: a .safetensors, .npz or .npy file, or a folder of such")
    what.add_argument("--model", metavar="NAME|DIR", help="OpenAI's weights: gpt2, or a directory; runs the published figures on them")
    p.add_argument("--golden", type=Path, default=Path("golden"), metavar="DIR", help="what gpt2.golden wrote (default: golden)")
    p.add_argument("--map", type=Path, metavar="FILE.toml", help='our names to the port\'s: "blocks.*.attn.out" = "layer*.attention"')
    p.add_argument("--all", action="store_true", help="a line for every tensor, and not only for those that are wrong")
    p.add_argument("--data", type=Path, metavar="DIR",
                   help="with --model: a folder with tinyshakespeare.txt, wikitext2-test.raw, lambada_test.jsonl, hellaswag_val.jsonl")
    p.add_argument("--slow", action="store_true", help="with --model: also the figures that take many minutes on a CPU")
    add_backend(p)
    p.add_argument("--json", action="store_true", help="one JSON document instead of a table")
    return p


def truth_of(golden: Golden) -> GPT2 | None:
    """The model that the truth was made with, in float64 by its definitions, on the CPU; None where its weights are not here."""
    inside = golden.folder / MODEL
    try:
        path = inside if inside.exists() else locate(golden.manifest["model"])
        model = GPT2.from_pretrained(path, dtype="float64", explicit=True)
    except GPT2Error:
        return None
    return model if model.config.to_dict() == golden.manifest["config"] else None


def against(args: argparse.Namespace) -> tuple[dict[str, Any], list[str], int]:
    """The document, the lines and the exit code of a comparison."""
    golden, names = read_golden(args.golden), read_map(args.map)
    check_map(names, golden.entries)
    port = read_port(args.against, golden)
    found, missing = compare(golden, port, names)
    wrong = [c for c in found if not c.ok]
    lines = []
    shown = found if args.all else wrong[:SHOWN]
    if shown:
        lines += [*table(("tensor", "equation", "units", "max error", "at", "port", "truth", ""),
                         [(c.name, c.equation,
                           *((c.units, c.worst, str(list(c.at)), c.found, c.wanted) if c.at or not c.trouble else ("",) * 5),
                           c.trouble or ("" if c.ok else "wrong")) for c in shown], left=2)]
        lines += [f"… and {len(wrong) - SHOWN} more"] * (not args.all and len(wrong) > SHOWN) + [""]
    said = Verdict([], True, False, [])
    if wrong:
        model = truth_of(golden)
        said = diagnosed(golden, model, found, reader(golden, port, names))
        after = found[found.index(wrong[0]) - 1].name if found.index(wrong[0]) else None
        first = wrong[0]
        lines.append(f"the first to differ: {first.name} ({first.equation}) "
                     + (first.trouble or f"by {number(first.units)} units, where {ALLOWED:g} are allowed")
                     + (f"; all {found.index(first)} before it agree, up to {after}" if after else ""))
        if not said.named and not said.places:
            lines += [f"no mistake that is known gives this; what it looks like: {what}" for what in said.causes]
        elif said.sure:
            lines += [f"{'and likely' if i else 'likely'}: {cause}" for i, cause in enumerate(said.causes)]
        else:
            told = any(look.startswith("perhaps ") for _, look in said.places)
            lines += [f"perhaps: {cause}" for cause in said.causes if said.named and not told]
            if said.left and not said.places:
                lines.append(f"with {'the first of these' if len(said.causes) > 1 else 'it'}, {len(said.left)} of {len(found)} tensors are "
                             f"still not the port's: {', '.join(said.left[:3])}{' …' * (len(said.left) > 3)}")
        if said.places:
            judged = any(name.startswith("step.") for place, _ in said.places for name in place.names)
            later = "" if judged or not any(c.name.startswith("step.") for c in wrong) else ", but for AdamW's later steps, which follow"
            lines.append(f"computed from what the port has before them, these are wrong, and all else is right{later}:")
        for place, look in said.places:
            start = f", from {place.origin}" if place.origin else ""
            lines.append(f"    {place.where} ({golden.entries[place.names[0]].equation}){start}{f': {look}' * bool(look)}")
        if model is None and not first.trouble:
            lines.append("the weights are not here, so bugs could not be planted to compare with")
    lines.append(f"{len(found)} tensors compared, {len(found) - len(wrong)} agree"
                 + (f"; the port lacks {len(missing)}: {', '.join(missing[:3])}{' …' * (len(missing) > 3)}" if missing else ""))
    others = unused(port, golden, names)
    if others:
        lines.append(f"{len(others)} tensors of the port have names that are not ours, and were not compared: {', '.join(others[:3])}"
                     f"{' …' * (len(others) > 3)}; --map names them")
    unseen = [*golden.manifest.get("unseen", []), *narrow(port, found, names)]
    if not any(c.name.endswith(("attn.k", "attn.scores")) for c in found):
        unseen.append("a mistake in K's bias, which softmax cancels: attn.k would")
    lines += [f"this truth cannot show {line}" for line in unseen if not wrong]
    document = {"golden": str(args.golden), "against": str(args.against), "compared": [c._asdict() | {"ok": c.ok} for c in found],
                "missing": missing, "unused": others, "first": wrong[0].name if wrong else None, "causes": said.causes, "named": said.named,
                "sure": said.sure, "unexplained": said.left, "allowed": ALLOWED,
                "places": [place._asdict() | {"looks": look} for place, look in said.places],
                "unseen": unseen}
    return document, lines, DIFFERS if wrong else AGREES


def unused(port: Port, golden: Golden, names: Mapping[str, Named]) -> list[str]:
    """The names of the port that are compared with nothing, such as a misspelt one."""
    used = {named.name for name in golden.entries if (named := name_in(port, name, names))}
    return [name for name in port if name not in used]


def narrow(port: Port, found: Sequence[Compared], names: Mapping[str, Named]) -> list[str]:
    """What cannot be seen in tensors that the port stored in 16 bits."""
    kinds = [port[named.name]().dtype for c in found if (named := name_in(port, c.name, names))]
    halves = [kind for kind in kinds if EPS[kind] > EPS["float32"]]
    if not halves:
        return []
    return [f"a small mistake in what is stored in {halves[0]} ({len(halves)} tensors), whose rounding is "
            f"{EPS[halves[0]] / EPS['float32']:,.0f} times float32's: store float32"]


def figures(args: argparse.Namespace) -> tuple[dict[str, Any], list[str], int]:
    """The document, the lines and the exit code of the published figures: that of missing weights where none could be computed."""
    found = published.run(args)
    computed = any(c.verdict != "skipped" for c in found if c.what in [figure.what for figure in published.FIGURES])
    failed, skipped = (sum(c.verdict == verdict for c in found) for verdict in ("FAILED", "skipped"))
    lines = [*table(("figure", "source", "published", "found", ""),
                    [(c.what, c.source, c.expected, c.found or c.why, c.verdict) for c in found], left=4), "",
             f"{len(found) - failed - skipped} hold, {failed} do not, {skipped} skipped"]
    code = DIFFERS if failed else AGREES if computed else MissingError.exit_code
    return {"model": args.model, "figures": [c._asdict() for c in found]}, lines, code


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    if args.model is None and (args.slow or args.data):
        raise UsageError("--data and --slow go with --model")
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
