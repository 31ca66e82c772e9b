"""python -m gpt2.inspect: show a model's architecture, weights and activations.

The results are tables, pictures, and an HTML page.
"""
from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ..cli.command import Parser, emit_json, run_command
from ..cli.tables import plain
from ..io.atomic import check_writable, write_files
from ..io.plots import picture, write_figure
from . import arch, attention, diff, lens, page, tensors, weights

COMMANDS = {
    "arch": (arch.arch_flags, arch.arch,
             "the model as a table: shapes, parameters, FLOP and bytes of each step"),
    "params": (arch.params_flags, arch.params,
               "the numbers of parameters by kind, by layer, and by weight and bias"),
    "tensors": (tensors.flags, tensors.run,
                "the tensors of any checkpoint, with statistics and a note on what is unusual"),
    "weights": (weights.flags, weights.run,
                "the distributions of the weights: embeddings, layers, Q, K and V"),
    "attention": (attention.flags, attention.run, "the tokens to which each head attends"),
    "logit-lens": (lens.flags, lens.run,
                   "the next token that the model would predict after each block"),
    "trace": (page.flags, page.run, "a forward pass as one HTML page that needs no network"),
    "diff": (diff.flags, diff.run,
             "a comparison of two checkpoints; tensors that differ most come first"),
}
DRAWN = {"weights": "distributions", "attention": "head maps", "logit-lens": "lens"}


def html(value: str) -> Path:
    """For `add_argument(type=)`: the name of a page to write."""
    path = Path(value)
    if path.suffix.lower() not in (".html", ".htm"):
        raise argparse.ArgumentTypeError(f"{value!r} is not the name of a page; end it in .html")
    return path


def parser() -> argparse.ArgumentParser:
    p = Parser(prog="python -m gpt2.inspect", description=__doc__)
    commands = p.add_subparsers(dest="command", required=True, metavar="COMMAND",
                                parser_class=Parser)
    for name, (flags, _, what) in COMMANDS.items():
        one = commands.add_parser(name, help=what, description=f"{what[0].upper()}{what[1:]}.")
        flags(one)
        one.add_argument("--json", action="store_true",
                         help="print one JSON document instead of a table")
        if name in DRAWN:
            one.add_argument("--out", type=picture, metavar="FILE",
                             help=f"write the {DRAWN[name]} as a picture: .png, .svg or .pdf")
        elif name == "trace":
            one.add_argument("--out", type=html, default=Path("trace.html"), metavar="FILE",
                             help="the page to write (default: trace.html)")
    return p


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    out = getattr(args, "out", None)
    if out is not None:
        check_writable(out)
    found = COMMANDS[args.command][1](args)
    if out is not None:
        if found.page is not None:
            write_files(out.parent, {out.name: found.page()})
        elif found.figure is not None:
            write_figure(found.figure(), out)
    if args.json:
        written = {"out": str(out)} if out else {}
        emit_json(plain({"command": args.command, **found.document, **written}))
    else:
        for line in found.lines:
            print(line)
        if out is not None:
            print(f"gpt2.inspect: wrote {out}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    run_command(main, "gpt2.inspect")
