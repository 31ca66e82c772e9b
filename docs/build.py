"""python -m docs.build: the site, from the pages in docs/. Warnings are errors. Needs pip install -e '.[docs]'."""
from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent


def main(argv: list[str] | None = None) -> int:
    p = argparse.ArgumentParser(prog="python -m docs.build", description=__doc__, allow_abbrev=False)
    p.add_argument("--out", type=Path, default=DOCS / "_build", metavar="DIR", help="where the site goes (default: docs/_build)")
    p.add_argument("--fresh", action="store_true", help="read every page again, not those that changed alone")
    args = p.parse_args(argv)
    try:
        from sphinx.cmd.build import build_main
    except ImportError:
        print("docs.build: Sphinx is not installed: pip install -e '.[docs]'", file=sys.stderr)
        return 2
    if args.fresh:
        shutil.rmtree(args.out, ignore_errors=True)
    code = build_main(["-q", "-W", "--keep-going", "-b", "html", "-d", str(args.out / ".doctrees"), str(DOCS), str(args.out)])
    if code == 0:
        print(args.out / "index.html")
    return code


if __name__ == "__main__":
    sys.exit(main())
