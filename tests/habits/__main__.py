"""The table in Markdown; with --check, each row that does not tell the truth, and what is so instead."""
from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))     # the packages of this clone, wherever it is called from

from .judge import kept
from .open_rows import OPEN
from .table import markdown, rows


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.habits", description=__doc__, allow_abbrev=False)
    parser.add_argument("--check", action="store_true", help="run every row; the exit code is 1 where a new one is wrong")
    if not parser.parse_args().check:
        print("\n".join(markdown()))
        return 0
    code = 0
    for part, peer, row in rows():
        if (wrong := kept(row, peer)) is not None:
            known = row.typed in OPEN
            print(f"{part}{' (known)' if known else ''}: {row.typed!r}: {wrong}", flush=True)
            code |= not known
    return code


if __name__ == "__main__":
    sys.exit(main())
