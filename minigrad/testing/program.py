"""A kernel that is a program of its own, in any language.

It reads questions from its standard input and writes answers to its standard output. A message
consists of lines of text, the last of which is `end`. A line `array NAME DTYPE AXES LENGTH ...` is
followed by the numbers of that array, in C order and in this machine's byte order.
docs/any-language.md describes the whole protocol.
"""
from __future__ import annotations

import contextlib
import inspect
import json
import os
import shlex
import signal
import subprocess
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..engine.graph import no_grad
from ..engine.tensor import Tensor
from .laws.strategies import Example
from .laws.subject import Broken, NotApplicable, Subject, flat

DTYPES = ("float16", "bfloat16", "float32", "float64", "bool", "int8", "int16", "int32", "int64",
          "uint8", "uint16", "uint32", "uint64")
LINE = 4096                                             # bytes; no line of a message is longer


class Failure(Broken):
    """The program gave no answer, or an answer that does not follow the protocol."""


class CannotRun(Exception):
    """The program cannot be started."""


class Hung(BaseException):
    """The program did not answer in time.

    This is not an Exception, so that the search for a smaller example ends here: it would wait for
    a timeout on each of the smaller examples.
    """

    def __init__(self, text: str, example: Example) -> None:
        super().__init__(text)
        self.example = example


class Unsayable(Exception):
    """The protocol cannot express a setting, such as a slice."""


def inputs_of(f: Callable[..., Any], count: int) -> list[str]:
    """The names of the first `count` arguments of a function; those of `*xs` are xs0, xs1, …"""
    names: list[str] = []
    for p in inspect.signature(f).parameters.values():
        if p.kind is p.VAR_POSITIONAL:
            names += [f"{p.name}{i}" for i in range(count - len(names))]
        elif p.kind is not p.KEYWORD_ONLY:
            names.append(p.name)
    return names[:count]


def message(call: str, settings: dict[str, Any], arrays: dict[str, Any],
            numbers: bool = True) -> bytes:
    """A message as bytes; numbers=False writes the size of each array instead of its numbers."""
    parts = [f"{call}\n".encode()] if call else []
    constants = {name: v for name, v in settings.items() if isinstance(v, np.ndarray)}
    for name, v in settings.items():
        if name not in constants:
            parts.append(f"setting {name} {said(name, v)}\n".encode())
    for name, a in {**arrays, **constants}.items():
        line = " ".join(map(str, ("array", name, a.dtype.name, a.ndim, *a.shape)))
        data = a.tobytes() if numbers else f"({a.nbytes} bytes)\n".encode()
        parts += [f"{line}\n".encode(), data]
    return b"".join([*parts, b"end\n"])


def said(name: str, value: Any) -> str:
    """A setting as JSON; Unsayable if JSON cannot express it."""
    try:
        return json.dumps(value.item() if isinstance(value, np.generic) else value)
    except TypeError:
        raise Unsayable(f"the setting {name}={value!r} cannot be sent to a program: it is not a "
                        "number, a text, a list or an array") from None


class Program:
    """A program that is started for the first question, and again after it has ended.

    `close` ends it. command: the command line, written as in a shell. definition: the function of
    Tensors that the program must equal; its arguments give the names of the inputs, and its value
    gives the shape and the dtype of the answer. timeout: the time limit for each answer, in
    seconds.
    """

    def __init__(self, command: str, definition: Callable[..., Any], timeout: float = 10.0) -> None:
        self.command, self.definition, self.timeout = command, definition, timeout
        self.skipped: Counter[str] = Counter()      # the program's reasons, and how often each came
        self.failures: set[str] = set()             # the messages about answers that are not valid
        self.spoke = False                          # has any answer followed the protocol?
        self.answered = False                       # has the process that runs now given one?
        self.late = False                           # has the time limit ended the process?
        self.process: Any = None
        self.errors: Any = None

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def subject(self, name: str, *, vjp: bool = True, **more: Any) -> Subject:
        """The program as a subject of `check` and of the laws."""
        return Subject(name, None, value=self.value, pull=self.vjp if vjp else None,
                       definition=self.definition, wider=False, **more)

    # ── questions ──
    def value(self, *arrays: Any, **settings: Any) -> Any:
        """The program's value at plain arrays."""
        with no_grad():
            wanted = flat(self.definition(*[Tensor(np.asarray(a)) for a in arrays], **settings))
        return self._ask("value", settings, self._named(arrays), {"value": wanted})["value"]

    def vjp(self, u: Any, *arrays: Any, **settings: Any) -> tuple[Any, ...]:
        """The program's gradients of all inputs for the cotangent u."""
        named = self._named(arrays)
        found = self._ask("vjp", settings, {**named, "cotangent": u}, named)
        return tuple(found[name] for name in named)

    def _named(self, arrays: Sequence[Any]) -> dict[str, Any]:
        names = inputs_of(self.definition, len(arrays))
        return dict(zip(names, map(np.asarray, arrays), strict=True))

    def _ask(self, call: str, settings: dict[str, Any], arrays: dict[str, Any],
             wanted: dict[str, Any]) -> dict[str, Any]:
        request = message(call, settings, arrays)
        if self.late:                               # the last answer came just as the time ran out
            self.close(wait=0.0)
        while True:
            process, served = self._running(), self.answered
            clock = threading.Timer(self.timeout, self._kill, [process])
            clock.daemon = True
            clock.start()
            try:
                with contextlib.suppress(OSError):      # it has ended: reading the answer shows it
                    process.stdin.write(request)
                    process.stdin.flush()
                return self._answer(process, wanted)
            except NotApplicable as reason:
                self.skipped[str(reason)] += 1
                raise
            except _Refused as error:
                raise self._failure(f"{call}: {error}") from None
            except (_Ended, Failure) as error:
                if self.late:
                    self.close(wait=0.0)
                    inputs = tuple(a for name, a in arrays.items() if name != "cotangent")
                    raise Hung(f"{call}: no answer within {self.timeout:g} s (--timeout); "
                               "the program must flush each answer, as with fflush(stdout) in C",
                               Example(inputs, settings)) from None
                ended = self._end_of(process) if isinstance(error, _Ended) else ""
                midway = isinstance(error, _Ended) and error.begun
                if served and ended == "ended with exit code 0" and not midway:
                    continue            # it answers one question and ends; start it again
                words = str(error)
                if ended:
                    words = f"the program {ended} before the end of its answer{self._last_words()}"
                # otherwise its further output would be read as the answer to the next question
                self.close(wait=0.0)
                raise self._failure(f"{call}: {words}") from None
            finally:
                clock.cancel()

    def _failure(self, what: str) -> Failure:
        self.failures.add(what)
        return Failure(what)

    # ── answers ──
    def _answer(self, process: Any, wanted: dict[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        while True:
            line = process.stdout.readline(LINE)
            if not line:
                raise _Ended(bool(found))
            word, _, rest = line.decode("utf-8", "replace").strip().partition(" ")
            if word == "end":
                break
            if word in ("skip", "error") and not found:
                self.answered = self.spoke = True
                if word == "skip":
                    raise NotApplicable(rest or "the program gave no reason")
                raise _Refused(rest or "no message")
            if word != "array":
                raise Failure(f"it wrote {_cut(line)}; "
                              "a line must begin with array, end, error or skip")
            name, array = self._array(process, rest.split(), wanted)
            if name in found:
                raise Failure(f"it answered with the array {name} twice")
            found[name] = array
        if missing := [name for name in wanted if name not in found]:
            raise Failure(f"its answer has no array {missing[0]}")
        self.answered = self.spoke = True
        return found

    def _array(self, process: Any, words: list[str], wanted: dict[str, Any]) -> tuple[str, Any]:
        """Read an array of an answer; `wanted` has the arrays that the question asked for, by name.

        Failure if its name, dtype or shape is not that of a wanted array.
        """
        line = " ".join(["array", *words])
        numbers = words[2:]
        if len(words) < 3 or not all(w.isdecimal() for w in numbers) \
                or int(words[2]) != len(words) - 3:
            raise Failure(f"it wrote {_cut(line)}; "
                          "the line of an array is: array NAME DTYPE AXES LENGTH ...")
        name, dtype, shape = words[0], words[1], tuple(map(int, words[3:]))
        if name not in wanted:
            raise Failure(f"it answered with an array {_cut(name)}; "
                          f"the question asks for {', '.join(wanted)}")
        if dtype not in DTYPES:
            raise Failure(f"the dtype of {name} is {_cut(dtype)}; dtypes are {', '.join(DTYPES)}")
        self.spoke, kind = True, np.dtype(wanted[name].dtype)
        if (dtype, shape) != (kind.name, tuple(wanted[name].shape)):
            said, asked = f"{dtype}{list(shape)}", f"{kind.name}{list(wanted[name].shape)}"
            raise Failure(f"the array {name} is {said}, not {asked}")
        size = int(np.prod(shape, dtype=np.int64)) * kind.itemsize
        data = process.stdout.read(size)
        if len(data) < size:
            raise _Ended(True)
        return name, np.frombuffer(data, kind).reshape(shape).copy()

    # ── the process ──
    def _running(self) -> Any:
        if self.process is not None and self.process.poll() is not None:
            self.close()
        if self.process is None:
            self.errors = tempfile.TemporaryFile()
            self.answered = self.late = False
            try:
                words = shlex.split(self.command) or [""]
                self.process = subprocess.Popen(
                    words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors,
                    start_new_session=os.name == "posix")
            except (OSError, ValueError) as error:
                raise CannotRun(_why(self.command, error)) from None
        return self.process

    def _kill(self, process: Any) -> None:
        self.late = True
        _end(process)

    def _end_of(self, process: Any) -> str:
        try:
            code = process.wait(0.5)
        except subprocess.TimeoutExpired:
            code = None
        if code is None or self.late:                   # it still runs, or ran until its time limit
            return "closed its output"
        if code >= 0:
            return f"ended with exit code {code}"
        with contextlib.suppress(ValueError):
            return f"was ended by {signal.Signals(-code).name}"
        return f"was ended by signal {-code}"

    def _last_words(self) -> str:
        self.errors.seek(max(0, self.errors.seek(0, os.SEEK_END) - LINE))
        lines = self.errors.read().decode("utf-8", "replace").split("\n")
        said = [line.strip() for line in lines if line.strip()]
        return f"; the last line of its stderr: {_cut(said[-1])}" if said else ""

    def close(self, wait: float = 0.5) -> None:
        """End the process and every process that it started.

        Its input is closed first, and it has `wait` seconds to end by itself.
        """
        process, self.process = self.process, None
        if process is not None:
            with contextlib.suppress(OSError):
                process.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(wait)
            _end(process)
            process.wait()
            process.stdout.close()
            self.errors.close()


class _Ended(Exception):
    """The output of the program has ended. begun: the program had begun an answer."""

    def __init__(self, begun: bool) -> None:
        self.begun = begun


class _Refused(Failure):
    """The program answered with `error`; it still runs."""

    def __init__(self, text: str) -> None:
        super().__init__(f"the program says: {text}")


def _end(process: Any) -> None:
    with contextlib.suppress(OSError):
        if os.name == "posix":
            # a script may have started other processes, which hold the same pipes
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()


def _cut(text: str | bytes) -> str:
    text = text.decode("utf-8", "replace").rstrip("\n") if isinstance(text, bytes) else text
    return repr(text if len(text) <= 60 else f"{text[:60]} …")


def _why(command: str, error: Exception) -> str:
    if not command.strip():
        return "the command is empty"
    if isinstance(error, FileNotFoundError):
        return f"there is no program {shlex.split(command)[0]}"
    if isinstance(error, PermissionError):
        return f"{shlex.split(command)[0]} is not executable; make it so with chmod +x"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}; a script begins with a line such as #!/usr/bin/env python3"
    return str(error)
