"""Files written whole or not at all."""
from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path

from .errors import UsageError


def write_files(directory: str | os.PathLike[str], files: Mapping[str, bytes]) -> None:
    """Write `files` (name to contents) into `directory`, replacing those of the same names, all or none.

    All are written beside their places first. The last is removed before the others are replaced and comes
    back last, so that a directory without it is incomplete and one with it never mixes old and new.
    Raises UsageError where the directory cannot be written.
    """
    folder = Path(directory)
    beside = {name: folder / f"{name}.tmp" for name in files}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in reversed(beside):
            with open(beside[name], "wb") as file:
                file.write(files[name])
                file.flush()
                os.fsync(file.fileno())
        (folder / list(beside)[-1]).unlink(missing_ok=True)
        for name, path in beside.items():
            path.replace(folder / name)
    except OSError as error:
        raise UsageError(f"cannot write {error.filename or folder}: {error.strerror}") from None
    finally:
        for path in beside.values():
            with contextlib.suppress(OSError):
                path.unlink()
