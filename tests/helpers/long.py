"""What of a long table a default run asks; `pytest -m slow` asks the rest."""
from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest


def slow_unless(asked: Callable[[Any], bool], rows: Iterable[Any]) -> list[Any]:
    """The rows of a table for parametrize; those that are not `asked` in a default run are marked slow."""
    return [row if asked(row) else pytest.param(*row if isinstance(row, tuple) else [row], marks=pytest.mark.slow) for row in rows]
