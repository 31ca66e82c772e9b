"""Files and folders written whole or not at all, and TOML read."""
from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..errors import MissingError, UsageError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def read_toml(path: str | Path, flag: str) -> dict[str, Any]:
    """What a TOML file says. MissingError where it cannot be read, UsageError for what is no TOML; flag: who named it."""
    try:
        return tomllib.loads(Path(path).read_text("utf-8"))
    except OSError as error:
        raise MissingError(f"{flag} {path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{flag} {path} is not UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{flag} {path} is not TOML: {error}") from None


def check_writable(path: str | os.PathLike[str]) -> None:
    """UsageError where a file of this name cannot be written, so that it is said before something long is computed."""
    folder = Path(path).absolute().parent
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise UsageError(f"cannot write {path}: {folder} is no folder that can be written to")


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


def write_folder(folder: str | os.PathLike[str], files: Mapping[str, Iterable[Any]], mark: str) -> None:
    """Write a folder of these files, given in pieces; an earlier folder that holds the file `mark` is replaced.

    It is written under another name and renamed. UsageError where it cannot be written, and for a folder that is something else.
    """
    out = Path(folder)
    if out.exists() and not (out / mark).is_file():
        raise UsageError(f"{out} is there, and not from an earlier run (it has no {mark}); name another folder")
    token = secrets.token_hex(4)
    beside, aside = (out.absolute().with_name(f".{out.absolute().name}.{token}.{kind}") for kind in ("tmp", "old"))
    try:
        beside.mkdir(parents=True)
        for name, pieces in files.items():
            (beside / name).parent.mkdir(parents=True, exist_ok=True)
            write_new(beside / name, pieces)
        sync(beside)
        if out.exists():
            out.rename(aside)
        beside.rename(out)
        sync(out.absolute().parent)
    except OSError as error:
        if aside.exists() and not out.exists():
            aside.rename(out)
        raise UsageError(f"cannot write {error.filename or out}: {error.strerror}") from None
    finally:
        for left in (beside, aside):
            shutil.rmtree(left, ignore_errors=True)


def write_new(path: Path, pieces: Iterable[Any]) -> None:
    """Write a file that is not there yet, piece after piece, down to the disk. OSError where that fails."""
    with open(path, "xb") as file:
        for piece in pieces:
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())


def sync(folder: Path) -> None:
    """Let the names in a folder reach the disk, where the system can do that."""
    with contextlib.suppress(OSError):                  # not every system opens a directory
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
