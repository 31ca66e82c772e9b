"""python -m minigrad: its commands."""
from __future__ import annotations

import sys

from .commands import run

COMMANDS = {
    "info": "what minigrad can use on this machine, and what is missing",
    "testing": "put an op, or a kernel in any language, to the laws",
    "testing.mutate": "break every rule on purpose, and demand that a law notices",
    "testing.mutate_kernels": "break every faster kernel on purpose, and demand that a law notices",
}


def main(argv: list[str] | None = None) -> int:
    """Run one of COMMANDS, or list them."""
    return run("minigrad", COMMANDS, sys.argv[1:] if argv is None else argv)


if __name__ == "__main__":
    sys.exit(main())
