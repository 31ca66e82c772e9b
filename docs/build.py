"""python -m docs.build: the site, from the pages in docs/. Warnings are errors. Needs pip install -e '.[docs]'."""
from __future__ import annotations

import argparse
import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent


def main(argv: list[str] | None = None) -> int:
    p = argparse.ArgumentParser(prog="python -m docs.build", description=__doc__, allow_abbrev=False)
    p.add_argument("--out", type=Path, default=DOCS / "_build", metavar="DIR", help="where the site goes (default: docs/_build)")
    args = p.parse_args(argv)
    try:
        from sphinx.cmd.build import build_main
    except ImportError:
        print("docs.build: Sphinx is not installed: pip install -e '.[docs]'", file=sys.stderr)
        return 2
    # every page each time: the table of contents is on all of them, and it takes seconds
    code = build_main(["-q", "-W", "--keep-going", "-E", "-a", "-b", "html", "-d", str(args.out / ".doctrees"), str(DOCS), str(args.out)])
    if code == 0:
        print(args.out / "index.html")
    return code


if __name__ == "__main__":
    sys.exit(main())
