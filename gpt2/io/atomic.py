"""Files and folders written whole or not at all, and TOML read."""
from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import MissingError, UsageError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_LEFT = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{8}\.(?:tmp|old)")


def read_toml(path: str | Path, flag: str) -> dict[str, Any]:
    """The contents of a TOML file that the flag named.

    MissingError where it cannot be read, UsageError where it is no TOML.
    """
    try:
        return tomllib.loads(Path(path).read_text("utf-8"))
    except OSError as error:
        raise MissingError(f"{flag} {path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{flag} {path} is not UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{flag} {path} is not TOML: {error}") from None


def check_writable(path: str | os.PathLike[str]) -> None:
    """UsageError if no file of this name can be written; for use before a long computation."""
    folder = Path(path).absolute().parent
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise UsageError(f"cannot write {path}: {folder} is not a folder that can be written to")


# ── what a killed process leaves ──
def _beside(path: Path, token: str, kind: str) -> Path:
    """The hidden name under which a path is staged ("tmp") or steps aside ("old")."""
    path = path.absolute()
    return path.with_name(f".{path.name}.{token}.{kind}")


def left_of(path: Path) -> str | None:
    """The name of the file or folder that a killed process was writing to `path`, else None."""
    found = _LEFT.fullmatch(path.name)
    return found and found["name"]


def clear(folder: str | os.PathLike[str]) -> None:
    """Remove what killed processes left half-written in a folder."""
    for path in Path(folder).iterdir():
        if left_of(path):
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def remove(folder: Path) -> None:
    """Remove a folder, which is whole until it is gone from its place. OSError where it stays."""
    folder.rename(gone := _beside(folder, secrets.token_hex(4), "old"))
    shutil.rmtree(gone, ignore_errors=True)


# ── files of a folder that is there, or is made ──
class Stage:
    """Files that are written beside their places in a folder, and take them together (`staged`).

    last: the file that describes the others. stale: old files to remove, by name.
    """

    def __init__(self, folder: Path, last: str | None) -> None:
        self.folder, self.last, self.token = folder, last, secrets.token_hex(4)
        self.stale: set[str] = set()
        self.files: dict[str, Path] = {}                # where each lies until all are whole
        self.aside: Path | None = None                  # the old `last`

    @contextlib.contextmanager
    def open(self, name: str) -> Iterator[BinaryIO]:
        """A new file, which is on the disk when the block ends."""
        self.files[name] = _beside(self.folder / name, self.token, "tmp")
        with open(self.files[name], "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())

    def write(self, name: str, pieces: Iterable[Any]) -> None:
        """A new file with these contents, piece after piece."""
        with self.open(name) as file:
            for piece in pieces:
                file.write(piece)

    def rename(self, name: str, to: str) -> None:
        """Give a file that is staged another name."""
        self.files[to] = self.files.pop(name)

    def take_places(self) -> None:
        """Rename all; an old `last` that differs steps aside first, and the new one comes last."""
        names = sorted(self.files, key=lambda name: name == self.last)          # a stable sort
        if self.last is not None and len(names) > 1:
            old = self.folder / self.last
            if old.exists() and old.read_bytes() != self.files[self.last].read_bytes():
                old.replace(aside := _beside(old, self.token, "old"))
                self.aside = aside
        for name in names:
            try:
                if name == names[-1]:
                    for stale in self.stale - self.files.keys():
                        (self.folder / stale).unlink(missing_ok=True)
                self.files[name].replace(self.folder / name)
            except BaseException:
                if self.aside is not None and name == names[0]:                 # nothing is replaced yet
                    self.aside.replace(self.folder / str(self.last))
                raise
        sync(self.folder)


@contextlib.contextmanager
def staged(folder: str | os.PathLike[str], last: str | None = None) -> Iterator[Stage]:
    """Inside the block files are staged; at its end all of them take their places, or none does.

    The folder is made where it is not there. last: the name of the file that describes the others.
    While they take their places it is not there, unless its contents stay the same: so a folder
    without it is incomplete, and one with it never mixes old and new. UsageError where the folder
    cannot be written.
    """
    out = Path(folder)
    made = [path for path in (out, *out.parents) if not path.exists()]
    stage = Stage(out, last)
    try:
        out.mkdir(parents=True, exist_ok=True)
        yield stage
        stage.take_places()
    except OSError as error:
        raise UsageError(f"cannot write {out}: {error.strerror or error}") from None
    finally:                                            # Ctrl-C too
        for path in (*stage.files.values(), *([stage.aside] if stage.aside else [])):
            with contextlib.suppress(OSError):
                path.unlink()
        for path in made:
            with contextlib.suppress(OSError):
                path.rmdir()                            # only where it is empty


def write_files(folder: str | os.PathLike[str], files: Mapping[str, bytes]) -> None:
    """Write `files` (name to contents) into a folder, all or none; the last one describes the others.

    UsageError where the folder cannot be written.
    """
    with staged(folder, list(files)[-1]) as stage:
        for name, content in files.items():
            stage.write(name, [content])


# ── whole folders ──
@contextlib.contextmanager
def new_folder(folder: str | os.PathLike[str], mark: str | None = None) -> Iterator[Path]:
    """Inside the block a folder is filled under another name, which it changes at the end.

    mark: a file by which an earlier folder is known, which is then replaced. UsageError where a
    folder of the name is there and has no such file. OSError where it cannot be written.
    """
    out, token = Path(folder), secrets.token_hex(4)
    if out.exists() and (mark is None or not (out / mark).is_file()):
        raise UsageError(f"{out} is there, and not from an earlier run"
                         + (f" (it has no {mark})" if mark else "") + "; name another folder")
    beside, aside = _beside(out, token, "tmp"), _beside(out, token, "old")
    try:
        beside.mkdir(parents=True)
        yield beside
        sync(beside)
        if out.exists():
            out.rename(aside)
        beside.rename(out)
        sync(out.absolute().parent)
    except OSError:
        if aside.exists() and not out.exists():
            aside.rename(out)
        raise
    finally:
        for left in (beside, aside):
            shutil.rmtree(left, ignore_errors=True)


def write_folder(folder: str | os.PathLike[str], files: Mapping[str, Iterable[Any]],
                 mark: str) -> None:
    """Write a folder of these files, given in pieces; an earlier folder that has `mark` is replaced.

    UsageError where it cannot be written, and for a folder that is something else.
    """
    try:
        with new_folder(folder, mark) as beside:
            for name, pieces in files.items():
                (beside / name).parent.mkdir(parents=True, exist_ok=True)
                write_new(beside / name, pieces)
    except OSError as error:
        raise UsageError(f"cannot write {folder}: {error.strerror or error}") from None


def write_new(path: Path, pieces: Iterable[Any]) -> None:
    """Write a file that is not there yet, piece after piece, down to the disk."""
    with open(path, "xb") as file:
        for piece in pieces:
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())


def sync(folder: Path) -> None:
    """Make the names in a folder reach the disk, where the system can do that."""
    with contextlib.suppress(OSError):                  # not every system opens a directory
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
