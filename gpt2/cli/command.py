"""Functions that all commands share: they end a command, read flags and stdin, and print JSON.

A command module ends with

    if __name__ == "__main__":
        run_command(main, "gpt2.generate")

where `main()` parses its flags with `Parser`, prints its result on stdout and its progress on
stderr, and raises an error for everything it cannot do.
"""
from __future__ import annotations

import argparse
import codecs
import contextlib
import json
import os
import signal
import sys
import warnings
from collections.abc import Callable
from reprlib import repr as brief
from typing import Any, NoReturn, TextIO

from minigrad.commands import Parser as Parser
from minigrad.errors import MinigradError

from ..errors import GPT2Error, UsageError
from .tables import visible

LARGEST = 64 << 20                                      # bytes of stdin
PRECISIONS = ("float32", "tf32", "bfloat16", "float16", "float64")      # the values of --dtype


def run_command(main: Callable[[], int | None], prog: str) -> NoReturn:
    """Run `main` and exit with its result; an error that a user can cause is one line on stderr.

    Exit codes: an error's own `exit_code` (2 usage, 3 weights or data missing, 4 no such backend,
    else 1); 1 when a file or memory fails; 130 on Ctrl-C; 141 (128 + SIGPIPE) and no message when
    the reader of stdout has ended, as with `| head`. Any other exception is a bug, and its
    traceback is printed.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:               # by gpt2/__init__.py
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if sys.stdout is None:                              # closed, as with >&-: nobody reads
        sys.stdout = open(os.devnull, "w", encoding="utf-8")
    if hasattr(sys.stdout, "reconfigure"):
        # a terminal without UTF-8 must not end a run
        sys.stdout.reconfigure(errors="backslashreplace")
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: _say(f"{prog}: warning: {_line(message)}")
        code: int | None
        try:
            try:
                code = main()
            finally:
                if sys.stdout is not None:
                    sys.stdout.flush()          # here, so that the error of a full disk is handled
        except (GPT2Error, MinigradError) as error:
            _say(f"{prog}: {_line(error)}")
            code = error.exit_code
        except KeyboardInterrupt:
            signal.signal(signal.SIGINT, signal.SIG_IGN)        # a second Ctrl-C changes nothing
            _say(f"{_fresh_line()}{prog}: interrupted")
            code = 128 + signal.SIGINT
        except BrokenPipeError:
            code = 141
        except Exception as error:
            code = _ended(error, prog)
        finally:
            _let_go(sys.stdout)
            _let_go(sys.stderr)
    sys.exit(code)


class Extend(argparse.Action):
    """For a repeatable flag that takes a list: later values are appended to earlier ones.

    The first values replace the default: `--suite ops` is ops alone, though the default is cpu and
    ops.
    """

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any,
                 option_string: str | None = None) -> None:
        have = getattr(namespace, self.dest, None)
        given = [] if have is self.default or not isinstance(have, list) else have
        setattr(namespace, self.dest, [*given, *values])


def add_backend(p: argparse._ActionsContainer) -> None:
    """Add the flags --backend and --device, for `backend_of`."""
    p.add_argument("--backend", default="auto", metavar="NAME",
                   help="auto, numpy, cupy or cupy:N (default: auto)")
    p.add_argument("--device", type=at_least(0), metavar="N",
                   help="the GPU of this number, as --backend cupy:N (nvidia-smi -L lists them)")


def backend_of(args: argparse.Namespace) -> str:
    """The backend that --backend and --device name, such as "cupy:1", checked to be available.

    UsageError if the two contradict each other, or if there is no backend of that name;
    BackendUnavailable if a library or a GPU that it needs is missing.
    """
    import minigrad as mg

    library, _, number = args.backend.partition(":")
    if args.device is not None:
        if library == "numpy" or (number and number != str(args.device)):
            raise UsageError(f"--device {args.device} is the number of a GPU, and --backend is "
                             f"{args.backend}; leave out one of the two")
        if library == "auto":
            library = "cupy"                            # only CuPy uses GPUs
        number = str(args.device)
    name = f"{library}:{number}" if number else args.backend
    try:
        mg.backend.get(name).backend.said = _say
    except mg.errors.DeviceError as error:
        raise UsageError(f"--{'backend' if args.device is None else 'device'}: {error}") from None
    return name


def floats_of(dtype: str) -> str:
    """The dtype of --dtype, which is one of PRECISIONS.

    "tf32" is float32, and from here on a GPU may round the factors of matrix products to TF32.
    """
    import minigrad as mg

    mg.set_float32_matmul_precision("high" if dtype == "tf32" else "highest")
    return "float32" if dtype == "tf32" else dtype


def at_least(minimum: int) -> Callable[[str], int]:
    """For `add_argument(type=)`: a whole number from `minimum` to 2⁶³ − 1."""

    def parse(value: str) -> int:
        try:
            number = int(value)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{value!r} is not a whole number") from None
        if number < minimum:
            raise argparse.ArgumentTypeError(f"{number} is less than {minimum}")
        if number >= 1 << 63:
            raise argparse.ArgumentTypeError(f"{brief(number)} is not a number of 64 bits")
        return number

    return parse


def comma_separated(value: str) -> list[str]:
    """For `add_argument(type=)`, with action=Extend: the names in "a,b"."""
    return [name for name in (part.strip() for part in value.split(",")) if name]


def text(value: str) -> str:
    """For `add_argument(type=)`: text that was valid UTF-8 on the command line.

    Python turns other bytes into lone surrogates.
    """
    try:
        value.encode()
    except UnicodeEncodeError as error:
        where = f"byte 0x{ord(value[error.start]) & 0xff:02x} after {error.start} characters"
        raise argparse.ArgumentTypeError(f"not UTF-8 ({where})") from None
    return value


def read_stdin() -> str:
    """All of stdin as text; line ends are not changed.

    A byte-order mark is left out with a warning. Raises UsageError if stdin is not UTF-8, or has
    more than LARGEST bytes.
    """
    if sys.stdin is None:
        raise UsageError("stdin is closed; pipe text into it or name the text with a flag")
    data = sys.stdin.buffer.read(LARGEST + 1)
    if len(data) > LARGEST:
        raise UsageError(f"stdin has more than {LARGEST:,} bytes; is it a text?")
    if data.startswith(codecs.BOM_UTF8):
        warnings.warn("stdin begins with a byte-order mark, which is left out", stacklevel=2)
        data = data[len(codecs.BOM_UTF8):]
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        where = f"byte 0x{data[error.start]:02x} at offset {error.start}"
        raise UsageError(f"stdin is not UTF-8 ({where})") from None


def emit_json(document: Any) -> None:
    """Print `document` on stdout as one line of strict JSON, in ASCII so that any encoding has it.

    Raises ValueError for a NaN or an infinity, which JSON does not have: the caller replaces it.
    """
    print(json.dumps(document, allow_nan=False), flush=True)


def _ended(error: Exception, prog: str) -> int:
    """Print one line for an error of files, memory or a library; return the exit code.

    Any other error is raised again.
    """
    from minigrad.backend import explained

    if (ours := explained(error)) is not None:
        _say(f"{prog}: {_line(ours)}")
        return ours.exit_code
    if isinstance(error, OSError):
        _say(f"{prog}: {_os_line(error)}")
        return 1
    if isinstance(error, MemoryError):
        size = f" ({_line(error)})" if str(error) else ""
        _say(f"{prog}: out of memory{size}; use a smaller model, batch or context")
        return 1
    raise error


def _line(message: object) -> str:
    return visible(" ".join(str(message).split()))


def _os_line(error: OSError) -> str:
    if error.strerror is None:
        return _line(error) or type(error).__name__
    names = [os.fsdecode(name) for name in (error.filename, error.filename2)
             if isinstance(name, str | bytes)]
    return _line(": ".join([*names, error.strerror]))


def _fresh_line() -> str:
    terminal = sys.stderr is not None and sys.stderr.isatty()
    return "\n" if terminal else ""                     # the terminal has just echoed ^C


def _say(line: str) -> None:
    if sys.stderr is not None:          # None after `2>&-`; print would write to stdout then
        with contextlib.suppress(OSError):
            # one write: print writes twice, and lines of other processes may come in between
            sys.stderr.write(line + "\n")
            sys.stderr.flush()


def _let_go(stream: TextIO | None) -> None:
    """Flush the stream. If it is broken, redirect it to os.devnull, or Python complains at exit."""
    if stream is None:
        return
    try:
        stream.flush()
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, stream.fileno())
            os.close(null)
