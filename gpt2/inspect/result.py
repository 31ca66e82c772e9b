"""What a command of gpt2.inspect found, in the three forms it is shown in."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple


class Found(NamedTuple):
    """document: for --json. lines: for stdout. figure: makes the picture for --out, or None. page: the bytes of a page for --out."""

    document: dict[str, Any]
    lines: list[str]
    figure: Callable[[], Any] | None = None
    page: Callable[[], bytes] | None = None
