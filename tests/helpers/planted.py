"""A page with a mistake in it, for tests which demand that the mistake is noticed."""
from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

from data import ROOT


@contextlib.contextmanager
def planted(page: str, old: str, new: str) -> Iterator[Path]:
    """The page, which whoever reads it inside the block finds with `new` where `old` stands first; the file stays as it is."""
    path, read = ROOT / page, Path.read_text
    text = path.read_text("utf-8")
    assert old in text, f"{page} does not say {old!r}"
    changed = text.replace(old, new, 1)
    with mock.patch.object(Path, "read_text", lambda self, *how, **named: changed if self == path else read(self, *how, **named)):
        yield path
