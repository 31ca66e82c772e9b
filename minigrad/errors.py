"""minigrad's errors; each message is one line that says what is wrong, where, and what to do."""
from __future__ import annotations

from typing import Any


class MinigradError(Exception):
    """Base of minigrad's errors. A command that ends with one exits with its `exit_code`.

    modules: the modules through which the error passed, the innermost first. where: the innermost
    module's path, such as "blocks.3.mlp.c_fc"; the message then ends with it.
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
    """The error for shapes, axes or indices that do not fit."""


class DTypeError(MinigradError, TypeError):
    """The error for dtypes that differ, or that an op does not support."""


class DeviceError(MinigradError, RuntimeError):
    """The error for arrays on different devices, or a device that does not exist."""


class GraphError(MinigradError, RuntimeError):
    """The error if a gradient cannot be computed: nothing was recorded, or a value changed."""


class OutOfMemoryError(MinigradError, MemoryError):
    """The error if a device has too little memory.

    The message says how much was requested, how much is free, and which setting to reduce.
    """


class BackendUnavailable(MinigradError, RuntimeError):
    """The error for a backend whose library, driver or device is missing.

    The message names the command that installs it.
    """

    exit_code = 4


class DistributedError(MinigradError, RuntimeError):
    """The error for something that another process could not do, with that process's exit code."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code
