"""Folders that commands write to: nothing is replaced that is not theirs, and one at a time works.

A marker in the folder lists the files that commands have written there, and which command each is
from. Only these are ever replaced or removed; for anything else the command ends with its name. A
lock keeps a second process out of the folder as long as the first one works.
"""
from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import UsageError
from .atomic import clear, folders, new_folder, write_files, write_new

MARK = ".gpt2-wrote.json"                               # {file: the command that wrote it}
LOCK = ".gpt2-lock"


def written(folder: Path) -> dict[str, str]:
    """The files that commands have written to a folder, and the command of each, by the marker."""
    try:
        found = json.loads((folder / MARK).read_bytes()[:1 << 20])["files"]
        return {str(name): str(by) for name, by in found.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}                                       # then nothing may be replaced


def _marker(files: dict[str, str]) -> bytes:
    return json.dumps({"files": dict(sorted(files.items()))}, indent=1).encode() + b"\n"


def check(folder: Path, by: str, names: Iterable[str]) -> None:
    """UsageError for the first of the names that is there, and which the command did not write."""
    own = written(folder)
    for name in names:
        if os.path.lexists(folder / name) and own.get(name) != by:
            raise UsageError(f"{folder} holds {name}, which {by} did not write; move it away, or "
                             "choose another folder")


def claim(folder: Path, by: str, names: Iterable[str], adopt: bool = False) -> None:
    """Enter names in the marker before they are written.

    UsageError as in `check`, unless `adopt` says that what is there is the command's own.
    """
    names = list(names)
    if not adopt:
        check(folder, by, names)
    before = written(folder)
    after = before | dict.fromkeys(names, by)
    if after != before:
        write_files(folder, {MARK: _marker(after)})


def unclaim(folder: Path, names: Iterable[str]) -> None:
    """Take names out of the marker, after they have been removed."""
    before = written(folder)
    after = {name: by for name, by in before.items() if name not in set(names)}
    if after != before:
        write_files(folder, {MARK: _marker(after)})


@contextlib.contextmanager
def locked(path: Path, folder: Path, by: str) -> Iterator[None]:
    """Hold a lock, in a file of this path, for the folder. UsageError if another process has it.

    The system frees the lock when the process ends, however it ends. Where it has no such locks,
    there is none.
    """
    try:
        import fcntl
    except ImportError:                                 # Windows
        yield
        return
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            who = os.read(handle, 200).decode(errors="replace").strip() or "another process"
            os.close(handle)
            raise UsageError(f"{folder} is in use by {who}; wait until it ends, or choose another "
                             "folder") from None
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                os.close(handle)
                raise
        if os.path.exists(path) and os.path.samestat(os.fstat(handle), os.stat(path)):
            break
        os.close(handle)                                # the last holder removed it just now
    try:
        os.ftruncate(handle, 0)
        os.write(handle, f"{by}, process {os.getpid()} on {socket.gethostname()}\n".encode())
        yield
    finally:
        with contextlib.suppress(OSError):
            os.unlink(path)
        os.close(handle)


@contextlib.contextmanager
def _explained(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UsageError(f"cannot write {folder}: {error.strerror or error}") from None


@contextlib.contextmanager
def open_folder(folder: Path, by: str, names: Iterable[str] = (),
                adopt: bool = False) -> Iterator[None]:
    """Hold a folder, which is created, and claim names in it (`claim`).

    UsageError if another process holds it, if it cannot be written, or if a name is taken.
    """
    with _explained(folder), folders(folder), locked(folder / LOCK, folder, by):
        clear(folder)
        claim(folder, by, names, adopt)
        yield


@contextlib.contextmanager
def whole_folder(folder: Path, by: str) -> Iterator[Path]:
    """A folder to fill inside the block; at its end it stands under its name, as a whole.

    An earlier folder of this command is replaced. UsageError, before anything is written, if the
    folder holds a file that the command did not write, if another process is writing it, or if it
    cannot be written.
    """
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file, not a folder")
    parent = folder.absolute().parent
    lock = parent / f".{folder.absolute().name}{LOCK}"
    with _explained(folder), folders(parent), locked(lock, folder, by):
        clear(parent, folder.absolute().name)
        _check_whole(folder, by)
        with new_folder(folder) as made:
            yield made
            _check_whole(folder, by)                    # somebody may have put a file there since
            write_new(made / MARK, [_marker(dict.fromkeys(_files(made), by))])


def fill(folder: Path, files: Mapping[str, Iterable[Any]]) -> None:
    """Write new files, given in pieces, and the folders that they are in."""
    for name, pieces in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_new(folder / name, pieces)


def _files(folder: Path) -> list[str]:
    """Everything in a folder but folders, by relative names."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*")
                  if not path.is_dir() or path.is_symlink())


def _check_whole(folder: Path, by: str) -> None:
    if folder.exists():
        check(folder, by, [name for name in _files(folder) if name != MARK])
