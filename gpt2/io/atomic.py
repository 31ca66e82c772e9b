"""Files and folders that are written as a whole or not at all."""
from __future__ import annotations

import contextlib
import ctypes
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import UsageError

_LEFT = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{8}\.(?:tmp|old)")


def check_writable(path: str | os.PathLike[str]) -> None:
    """UsageError if a file of this name cannot be written; call it before a long computation."""
    folder = Path(path).absolute().parent
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise UsageError(f"cannot write {path}: {folder} is not a writable folder")


# ── files that a killed process leaves ──
def _beside(path: Path, token: str, kind: str) -> Path:
    """The hidden name for a new file or folder ("tmp"), or for the one that it replaces ("old")."""
    path = path.absolute()
    return path.with_name(f".{path.name}.{token}.{kind}")


def left_of(path: Path) -> str | None:
    """The final name of a file or folder that a killed process left at `path`, else None."""
    found = _LEFT.fullmatch(path.name)
    return found and found["name"]


def clear(folder: str | os.PathLike[str], name: str | None = None) -> None:
    """Remove the incomplete files and folders that killed processes left in a folder.

    name: only those of this final name. A folder that was killed while it was replaced gets its
    name back.
    """
    for path in sorted(Path(folder).iterdir()):
        final = left_of(path)
        if final is None or name not in (None, final):
            continue
        if path.is_dir() and path.suffix == ".old" and not path.with_name(final).exists():
            path.rename(path.with_name(final))
        elif path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def remove(folder: Path) -> None:
    """Rename a folder and remove it, so that nobody sees half of it. OSError if it stays."""
    folder.rename(gone := _beside(folder, secrets.token_hex(4), "old"))
    shutil.rmtree(gone, ignore_errors=True)


# ── new files ──
@contextlib.contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """A file that does not exist yet; its contents are on the disk when the block ends."""
    with open(path, "xb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def write_new(path: Path, pieces: Iterable[Any]) -> None:
    """Write a file that does not exist yet, piece after piece, and sync it to the disk."""
    with new_file(path) as file:
        for piece in pieces:
            file.write(piece)


def sync(folder: Path) -> None:
    """Sync the names in a folder to the disk, if the system can do that."""
    with contextlib.suppress(OSError):                  # some systems cannot open a directory
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextlib.contextmanager
def folders(path: Path) -> Iterator[None]:
    """A folder that exists inside the block; folders that were made for it go if they are empty."""
    made = [one for one in (path, *path.parents) if not one.exists()]
    try:
        path.mkdir(parents=True, exist_ok=True)
        yield
    finally:
        for one in made:
            with contextlib.suppress(OSError):
                one.rmdir()                             # fails unless it is empty


# ── several files of one folder ──
class Stage:
    """Files that are written under hidden names in their folder, and renamed together (`staged`).

    last: the name of the file that describes the others, which is renamed last. stale: the names of
    old files to remove.
    """

    def __init__(self, folder: Path, last: str | None) -> None:
        self.folder, self.last, self.token = folder, last, secrets.token_hex(4)
        self.stale: set[str] = set()
        self.files: dict[str, Path] = {}                # hidden path of each, by its final name
        self.aside: Path | None = None                  # hidden path of the old `last`

    def open(self, name: str) -> contextlib.AbstractContextManager[BinaryIO]:
        """A new file to write to (`new_file`)."""
        return new_file(self._hidden(name))

    def write(self, name: str, pieces: Iterable[Any]) -> None:
        """Write a new file with these contents, piece after piece."""
        write_new(self._hidden(name), pieces)

    def _hidden(self, name: str) -> Path:
        self.files[name] = _beside(self.folder / name, self.token, "tmp")
        return self.files[name]

    def rename(self, name: str, to: str) -> None:
        """Change the final name of a staged file."""
        self.files[to] = self.files.pop(name)

    def take_places(self) -> None:
        """Give all files their final names, `last` after the others.

        If there is an old `last` with other contents, it is renamed before anything else.
        """
        *others, end = sorted(self.files, key=lambda name: name == self.last)      # False, True
        old = self.folder / end
        try:
            if (others and end == self.last and old.exists()
                    and old.read_bytes() != self.files[end].read_bytes()):
                old.replace(aside := _beside(old, self.token, "old"))
                self.aside = aside
            for name in others:
                self.files[name].replace(self.folder / name)
            for stale in self.stale - self.files.keys():
                (self.folder / stale).unlink(missing_ok=True)
            self.files[end].replace(old)
        except BaseException:
            # no file was replaced yet: the old `last` describes the folder again
            if self.aside is not None and self.files[others[0]].exists():
                self.aside.replace(old)
            raise
        sync(self.folder)


@contextlib.contextmanager
def staged(folder: str | os.PathLike[str], last: str | None = None) -> Iterator[Stage]:
    """Files are staged inside the block; at its end all of them get their final names, or none.

    The folder is created if it does not exist. last: the name of the file that describes the
    others. It is absent while the others are renamed, unless its contents stay the same: a folder
    without it is incomplete, and one with it never mixes old and new files. UsageError if the
    folder cannot be written.
    """
    out = Path(folder)
    stage = Stage(out, last)
    try:
        with folders(out):
            try:
                yield stage
                stage.take_places()
            finally:                                    # also after Ctrl-C
                for path in (*stage.files.values(), *([stage.aside] if stage.aside else [])):
                    with contextlib.suppress(OSError):
                        path.unlink()
    except OSError as error:
        where = out / list(stage.files)[-1] if stage.files else out
        raise UsageError(f"cannot write {where}: {error.strerror or error}") from None


def write_files(folder: str | os.PathLike[str], files: Mapping[str, bytes]) -> None:
    """Write files, given as name to contents, into a folder, all or none.

    The last file is the one that describes the others (`staged`). UsageError if the folder cannot
    be written.
    """
    with staged(folder, list(files)[-1]) as stage:
        for name, content in files.items():
            stage.write(name, [content])


# ── whole folders ──
def exchange(a: Path, b: Path) -> bool:
    """Exchange the names of two folders at once; False if the system cannot do that."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2         # Linux
    except (AttributeError, OSError, TypeError):
        return False
    here, swap = -100, 2                                # AT_FDCWD, RENAME_EXCHANGE
    return renameat2(here, os.fsencode(a.absolute()), here, os.fsencode(b.absolute()), swap) == 0


@contextlib.contextmanager
def new_folder(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """A folder to fill inside the block, under a hidden name; it gets its final name at the end.

    It replaces a folder of this name: the caller has made sure that nothing in it is lost. There is
    one under this name at every moment, if the system can exchange two names. OSError if it cannot
    be written.
    """
    out, token = Path(folder), secrets.token_hex(4)
    beside, aside = _beside(out, token, "tmp"), _beside(out, token, "old")
    try:
        beside.mkdir(parents=True)
        yield beside
        sync(beside)
        if out.exists() and not exchange(beside, out):
            out.rename(aside)
        if not out.exists():
            beside.rename(out)
        sync(out.absolute().parent)
    except OSError:
        if aside.exists() and not out.exists():
            aside.rename(out)
        raise
    finally:
        for left in (beside, aside):
            shutil.rmtree(left, ignore_errors=True)
