"""Text and JSONL files of any size, in pieces that several processes measure, count and encode.

A piece is a range of bytes of one file. A text is cut only before white space that follows another
character: no word of GPT-2's split (`tokenizer.GPT2_SPLIT`) continues there, so the tokens of the
pieces, concatenated, are the tokens of the whole text.
"""
from __future__ import annotations

import codecs
import contextlib
import io
import json
import mmap
import multiprocessing
import os
import re
import signal
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from ..errors import GPT2Error, MissingError, UsageError
from ..io.records import Wrong, open_file, parsed
from .shards import Part
from .tokenizer import END_OF_TEXT, Tokenizer
from .train_bpe import count_words

PIECE, LONGEST = 4 << 20, 256 << 20     # bytes of a piece, and of one that cannot be cut, at most
JSONL = {".jsonl", ".ndjson"}
_HEAD = 1 << 20                         # bytes of a file that are examined for JSON
# a JSON array of objects or of strings; no text begins like this
_ARRAY = re.compile(rb'\s*\[\s*(\{\s*"([^"\\]|\\.)*"\s*:|"([^"\\]|\\.)*"\s*(,\s*"|\]))')
_SPACE, _END = re.compile(rb"[ \t\n\r]"), END_OF_TEXT.encode()
_tokenizer: Tokenizer                   # the tokenizer of this process, for `encode`


class Piece(NamedTuple):
    """Bytes start … stop − 1 of a file: whole characters, or whole lines of a JSONL file.

    special: <|endoftext|> in the text is that token. Then a text file has documents, each up to the
    end of that token, and a piece has whole documents.
    """

    path: Path
    start: int
    stop: int
    special: bool = False

    @property
    def lines(self) -> bool:
        return self.path.suffix.lower() in JSONL

    @property
    def documents(self) -> bool:
        return self.lines or self.special

    def plain(self, text: str) -> str:
        """The text without its special tokens, which do not count as characters."""
        return text.replace(END_OF_TEXT, "") if self.special else text

    def read(self) -> bytes:
        """The bytes of the piece. MissingError if they cannot be read."""
        try:
            with open_file(self.path) as file:
                file.seek(self.start)
                return file.read(self.stop - self.start)
        except OSError as error:
            raise MissingError(f"{self.path} cannot be read: {error.strerror}") from None

    def texts(self) -> Iterator[tuple[int, str]]:
        """Each document, or the whole text, with the position of the byte after it.

        The documents of a JSONL file are the texts of its lines, without empty ones. MissingError
        for bytes that are not UTF-8, and for lines that are not JSON.
        """
        data = self.read()
        if not self.lines and self.special:
            at = 0
            for document in re.split(rb"(?<=<\|endoftext\|>)", data):
                if document:
                    text, at = self._decoded(document, at), at + len(document)
                    yield self.start + at, text
            return
        if not self.lines:
            yield self.stop, self._decoded(data, 0)
            return
        at = 0
        for line in io.BytesIO(data):
            if line.strip():
                text = self._text_of(self._decoded(line, at), at)
                if text:
                    yield self.start + at + len(line), text
            at += len(line)

    def _decoded(self, data: bytes, at: int) -> str:
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            where = f"byte 0x{data[error.start]:02x} at offset {self.start + at + error.start}"
            raise MissingError(f"{self.path} is not UTF-8 ({where})") from None

    def _text_of(self, line: str, at: int) -> str:
        try:
            found = parsed(line)
        except Wrong as error:
            raise MissingError(f"{self._line(at)} {error}") from None
        if not isinstance(found, dict) or not isinstance(found.get("text"), str):
            raise MissingError(f'{self._line(at)} has no "text" that is a string')
        try:
            found["text"].encode()
        except UnicodeEncodeError as error:
            where = f"lone surrogate U+{ord(found['text'][error.start]):04X}"
            raise MissingError(f"{self._line(at)} is not valid Unicode ({where})") from None
        return str(found["text"])

    def _line(self, at: int) -> str:
        """The file and the line of a byte of this piece, counted from 1."""
        end = self.start + at
        lines = sum(Piece(self.path, k, min(k + PIECE, end)).read().count(b"\n")
                    for k in range(0, end, PIECE))
        return f"{self.path}, line {lines + 1}"


def pieces(paths: Sequence[Path], special: bool = False) -> list[Piece]:
    """All files, in this order, in pieces of about PIECE bytes.

    special: <|endoftext|> in the files is that token. There is a warning about a byte-order mark,
    which is left out of the text, and about line ends of \\r\\n, which are part of it. MissingError
    for files that are missing or empty; UsageError for text and JSONL files together, and for JSON
    that is not JSONL.
    """
    out: list[Piece] = []
    for path in paths:
        try:
            size = path.stat().st_size
            if not path.is_file():
                raise UsageError(f"{path} is not a file")
            if not size:
                raise MissingError(f"{path} is empty")
            with open_file(path) as file:
                start = _looked_at(file, path, special)
                if start == size:
                    raise MissingError(f"{path} is empty but for a byte-order mark")
                while start < size:
                    stop, end = min(size, start + PIECE), min(size, start + LONGEST + 1)
                    if stop < size:
                        lines = Piece(path, 0, 0).lines
                        stop = (_cut_after(file, b"\n" if lines else _END, stop, end)
                                if lines or special else _cut(file, stop, end))
                        if stop - start > LONGEST:
                            what = ("line end" if lines else END_OF_TEXT if special
                                    else "white space between words")
                            raise MissingError(f"{path} has no {what} in {LONGEST >> 20} MB from "
                                               f"byte {start} on; is it a text?")
                    out.append(Piece(path, start, stop, special))
                    start = stop
        except OSError as error:
            raise MissingError(f"{path} cannot be read: {error.strerror}") from None
    if len({piece.lines for piece in out}) > 1:
        raise UsageError("text and JSONL files cannot be prepared together: JSONL has documents, "
                         "with <|endoftext|> after each; prepare them separately")
    return out


def _looked_at(file: Any, path: Path, special: bool) -> int:
    """Where the text of a file begins, which is after a byte-order mark if there is one.

    There are warnings about contents that a user may not expect.
    """
    head = file.read(4)
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise MissingError(f"{path} is UTF-16; convert it to UTF-8 with: "
                           f"iconv -f UTF-16 -t UTF-8 {path} > NEW.txt")
    start = len(codecs.BOM_UTF8) if head.startswith(codecs.BOM_UTF8) else 0
    if start:
        warnings.warn(f"{path} begins with a byte-order mark, which is left out", stacklevel=4)
    if Piece(path, 0, 0).lines:
        return start                    # white space between lines of JSON is not part of a text
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        head = data[start:start + _HEAD]
        if path.suffix.lower() == ".json" or _ARRAY.match(head):
            to = path.with_suffix(".jsonl")
            raise UsageError(
                f"{path} is JSON, and would be read as plain text; convert it to JSONL, a line "
                "for each document, with: python -c \"import json; "
                "[print(json.dumps(d if isinstance(d, dict) else {'text': d})) "
                f"for d in json.load(open('{path}', encoding='utf-8-sig'))]\" > {to} "
                f"(or rename it to {to.name} if each line is a JSON object)")
        if _is_jsonl(head):
            warnings.warn(f"{path} looks like JSON Lines, and is read as plain text; rename it to "
                          f"{path.with_suffix('.jsonl').name} to read the texts in it",
                          stacklevel=4)
        if (at := data.find(b"\r\n")) >= 0:
            warnings.warn(f"{path} has line ends of \\r\\n, the first at byte {at}; each \\r is "
                          f"part of the text; remove them with: tr -d '\\r' < {path} > NEW.txt",
                          stacklevel=4)
        if not special and data.find(_END) >= 0:
            warnings.warn(f"{path} has {END_OF_TEXT} in it, which is read as plain text; "
                          "--allow-special makes it the token", stacklevel=4)
        if special and data.find(_END) < 0:
            warnings.warn(f"{path} has no {END_OF_TEXT} in it: it is one document", stacklevel=4)
    return start


def _is_jsonl(head: bytes) -> bool:
    """Whether the first line of a file that begins with `head` is a JSON object with a "text"."""
    try:
        first = json.loads(head.lstrip().partition(b"\n")[0])
    except (ValueError, RecursionError):
        return False
    return isinstance(first, dict) and isinstance(first.get("text"), str)


def _cut(file: Any, at: int, size: int) -> int:
    """The first position from `at` on where a piece may end: a character, then white space.

    `size` if there is none before it.
    """
    while at < size:
        file.seek(at - 4)               # the character before may have up to four bytes
        window = file.read(min(1 << 16, size - at + 4))
        for match in _SPACE.finditer(window, 4):
            before = window[max(0, match.start() - 4):match.start()].decode(errors="replace")[-1:]
            if before and not before.isspace() and before != "\ufffd":
                return int(at - 4 + match.start())
        at += len(window) - 4
    return size


def _cut_after(file: Any, mark: bytes, at: int, size: int) -> int:
    """The first position from `at` on that is directly after `mark`; `size` if there is none."""
    at = max(0, at - len(mark))
    while at < size:
        file.seek(at)
        window = file.read(min(1 << 16, size - at))
        found = window.find(mark)
        if found >= 0:
            return int(at + found + len(mark))
        at += max(1, len(window) - len(mark) + 1)
    return size


# ── the work on a piece ──
def measure(piece: Piece) -> tuple[int, int, int, int]:
    """The numbers of characters, UTF-8 bytes, words and documents."""
    counts = (0, 0, 0, 0)
    for _, text in piece.texts():
        counts = _plus(counts, _counts(piece.plain(text), piece))
    return counts


def words(piece: Piece) -> Counter[str]:
    """How often each word of GPT-2's split occurs."""
    return count_words(part for _, text in piece.texts()
                       for part in (text.split(END_OF_TEXT) if piece.special else [text]))


def encode(piece: Piece) -> Part:
    """The ids, with <|endoftext|> after each document of a JSONL file, and `measure`'s result."""
    ids, counts = list[int](), (0, 0, 0, 0)
    for _, text in piece.texts():
        try:
            ids += _tokenizer.encode(text, allow_special=piece.special)
        except UsageError as error:
            raise UsageError(f"{piece.path}: {error}") from None
        if piece.lines and _tokenizer.eot is not None:
            ids.append(_tokenizer.eot)
        counts = _plus(counts, _counts(piece.plain(text), piece))
    return Part(np.array(ids, np.uint16 if _tokenizer.n_vocab <= 1 << 16 else np.uint32), counts)


def _counts(text: str, piece: Piece) -> tuple[int, int, int, int]:
    documents = piece.lines or (piece.special and bool(text.strip()))
    return len(text), len(text.encode()), len(text.split()), int(documents)


def _plus(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    return (a[0] + b[0], a[1] + b[1], a[2] + b[2], a[3] + b[3])


def split_at(some: Sequence[Piece], characters: Sequence[int], border: int
             ) -> tuple[list[Piece], list[Piece]]:
    """The pieces of the first `border` characters, and the rest.

    A document belongs to the part of its first character. characters: the number of characters of
    each piece.
    """
    for i, (piece, size) in enumerate(zip(some, characters)):
        if border < size:
            at = piece.start
            for stop, text in piece.texts():
                if not piece.documents:
                    at += len(text[:border].encode())
                elif border > 0:
                    at, border = stop, border - len(piece.plain(text))
            halves = [piece._replace(stop=at), piece._replace(start=at)]
            left, right = ([half] if half.start < half.stop else [] for half in halves)
            return [*some[:i], *left], [*right, *some[i + 1:]]
        border -= size
    return list(some), []


# ── the processes ──
def in_parallel(work: Callable[[Piece], Any], some: Sequence[Piece], workers: int, title: str,
                tokenizer: Tokenizer | None = None) -> Iterator[Any]:
    """The results of `work` for all pieces, in order, with a progress bar in bytes.

    GPT2Error if one of the processes ends unexpectedly.
    """
    with tqdm(total=sum(piece.stop - piece.start for piece in some), unit="B", unit_scale=True,
              desc=title, disable=None, leave=False) as bar:
        for piece, result in zip(some, _results(work, some, min(workers, len(some)), tokenizer)):
            bar.update(piece.stop - piece.start)
            yield result


def _results(work: Callable[[Piece], Any], some: Sequence[Piece], workers: int,
             tokenizer: Tokenizer | None) -> Iterable[Any]:
    if workers <= 1:
        _begin(tokenizer)
        yield from map(work, some)
        return
    others, done = set(multiprocessing.active_children()), False
    # new processes, not forks: this process may have threads
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _begin_alone,
                               (tokenizer,))
    try:
        with _without_interrupts():
            results = pool.map(work, some)
        yield from results
        done = True
    except BrokenProcessPool:
        raise GPT2Error("a process that read the text was ended from outside (out of memory?); "
                        "try fewer --workers") from None
    finally:
        with _ignoring_interrupts():                    # a second Ctrl-C would end it half way
            for process in [] if done else multiprocessing.active_children():
                if process not in others:
                    process.kill()                      # else it would finish its piece first
            pool.shutdown(cancel_futures=True)


def _begin(tokenizer: Tokenizer | None) -> None:
    global _tokenizer
    if tokenizer is not None:
        _tokenizer = tokenizer


def _begin_alone(tokenizer: Tokenizer | None) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _begin(tokenizer)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


@contextlib.contextmanager
def _without_interrupts() -> Iterator[None]:
    """Delay Ctrl-C until after the block.

    Processes that start inside the block ignore Ctrl-C: only the process that waits for them
    handles it.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _ignoring_interrupts() -> Iterator[None]:
    """Ignore Ctrl-C inside the block, in the main thread, which alone can do that."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def processors() -> int:
    """How many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
