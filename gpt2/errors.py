"""What a user of gpt2 can get wrong, each with the exit code that its command ends with."""
from __future__ import annotations


class GPT2Error(Exception):
    """Base of the errors that a command prints as one line; `exit_code` is the process's."""

    exit_code = 1


class UsageError(GPT2Error, ValueError):
    """A flag, value, prompt or configuration that cannot be honoured."""

    exit_code = 2


class MissingError(GPT2Error):
    """Weights or data that are missing, truncated, foreign, or not as their configuration says."""

    exit_code = 3


class DifferentError(GPT2Error):
    """Numbers that differ from the ones they are checked against by more than rounding."""

    exit_code = 5
