"""The result of a command of gpt2.inspect, in the forms in which it is shown."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple


class Found(NamedTuple):
    """The result of a command.

    document: for --json. lines: for stdout. figure, page: make the picture, or the bytes of the
    HTML page, for --out; None if the command has none.
    """

    document: dict[str, Any]
    lines: list[str]
    figure: Callable[[], Any] | None = None
    page: Callable[[], bytes] | None = None
