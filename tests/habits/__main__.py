"""python -m tests.habits: the table in Markdown; --check says of each row that is not true what is so instead."""
from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))     # this checkout's packages, however it is called

from .judge import kept
from .table import is_open, markdown, rows

if "--check" in sys.argv[1:]:
    for part, peer, row in rows():
        if (wrong := kept(row, peer)) is not None:
            print(f"{part}{' (open)' if is_open(part, row) else ''} | {row.typed!r} | {wrong}", flush=True)
else:
    print("\n".join(markdown()))
