"""What can go wrong in minigrad, each as one line: what, where, what to do."""
from __future__ import annotations

from typing import Any


class MinigradError(Exception):
    """Base of minigrad's errors. `exit_code` is what a command that meets one ends with.

    modules: the modules the error passed through, innermost first. where: their path by name, such
    as "blocks.3.mlp.c_fc", set by the outermost one; it then ends the message.
    """

    exit_code = 1

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.modules: list[Any] = []
        self.where: str | None = None

    def __str__(self) -> str:
        message = super().__str__()
        return f"{message}; in {self.where}" if self.where else message


class ShapeError(MinigradError, ValueError):
    """Shapes, axes or indices that do not fit."""


class DTypeError(MinigradError, TypeError):
    """Dtypes that do not mix, or that an op has no meaning for."""


class DeviceError(MinigradError, RuntimeError):
    """Arrays on different devices, or a device that does not exist."""


class GraphError(MinigradError, RuntimeError):
    """A gradient that cannot be had: nothing was recorded, or a value changed since."""


class OutOfMemoryError(MinigradError, MemoryError):
    """A device's memory does not suffice.

    The message says what was asked for, what is free, and what to lower.
    """


class BackendUnavailable(MinigradError, RuntimeError):
    """A backend whose library, driver or device is missing.

    The message names the command that gets it.
    """

    exit_code = 4


class DistributedError(MinigradError, RuntimeError):
    """What another process could not do, and with which exit code it would have ended."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code
