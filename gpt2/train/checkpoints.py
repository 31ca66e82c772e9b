"""Checkpoints of a training run, from which it can be resumed: directories checkpoint-N.

checkpoint-N is the state after N steps. It is a directory that transformers reads, with weights of
float32 (or float64), and with two more files: optimizer.safetensors has the moments of AdamW, and
training.json has everything else on which the next steps depend. A checkpoint is written under
another name and renamed when it is complete. If the run is killed or the disk is full, the earlier
checkpoints stay as they are.
"""
from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..config import GPT2Config
from ..errors import GPT2Error, MissingError, UsageError
from ..io.atomic import new_folder, remove, write_new
from ..io.outputs import claim, unclaim, written
from ..io.safetensors import safetensors_pieces
from ..weights.checkpoint import read_checkpoint
from ..weights.pretrained import PretrainedModel

BY = "gpt2.train"                                       # whose checkpoints are removed again
RECORD, MOMENTS = "training.json", "optimizer.safetensors"
FIELDS = {"step", "state", "settings", "data", "history", "best"}      # of training.json
_NAME = re.compile(r"checkpoint-(\d+)")


class SaveError(GPT2Error):
    """A checkpoint could not be written; the earlier ones are unchanged."""


def snapshots(out: str | Path) -> list[Path]:
    """The checkpoints in a directory, the newest last."""
    folder, found = Path(out), []
    for path in (folder.iterdir() if folder.is_dir() else ()):
        if (match := _NAME.fullmatch(path.name)) and path.is_dir():
            found.append((int(match[1]), path))
    return [path for _, path in sorted(found)]


def own(out: Path) -> list[str]:
    """The names of the checkpoints in a directory that training wrote, and not another program."""
    return [path.name for path in snapshots(out) if (path / RECORD).is_file()]


def save(out: str | Path, model: PretrainedModel, moments: Mapping[str, np.ndarray],
         record: Mapping[str, Any], tokenizer: Any, keep: int) -> Path:
    """Write checkpoint-N, where N is record["step"], and remove all but the newest `keep`.

    moments: arrays by name, such as "exp_avg.wte.weight". SaveError if it cannot be written.
    """
    path = Path(out) / f"checkpoint-{record['step']}"
    if path.exists():                                   # complete, and of the same step
        return path
    codes = {name: "F64" if a.dtype.itemsize == 8 else "F32" for name, a in moments.items()}
    try:
        claim(path.parent, BY, [path.name])
        with new_folder(path) as folder:
            model.save_pretrained(folder, tokenizer=tokenizer)
            write_new(folder / MOMENTS, safetensors_pieces(moments, codes, {"format": "np"}))
            text = json.dumps(record, indent=1, allow_nan=False) + "\n"
            write_new(folder / RECORD, [text.encode()])
        own = written(path.parent)
        old = [one for one in snapshots(out)[:-keep] if own.get(one.name) == BY]
        for one in old:
            remove(one)
        unclaim(path.parent, [one.name for one in old])
    except (OSError, UsageError) as error:
        cause = error if isinstance(error, OSError) else error.__context__
        why = cause.strerror if isinstance(cause, OSError) else error
        rest = "there is no earlier checkpoint"
        if left := snapshots(out):
            rest = f"{left[-1].name} is complete; continue from it with --init-from resume"
        raise SaveError(f"{path} cannot be written: {why}; {rest}") from None
    return path


def record(path: Path) -> dict[str, Any]:
    """The contents of a checkpoint's training.json. MissingError if it cannot be read."""
    try:
        found = json.loads((path / RECORD).read_bytes())
        if not isinstance(found, dict) or not FIELDS <= found.keys():
            raise ValueError(f"{RECORD} does not have all fields")
    except (OSError, ValueError) as error:
        raise damaged(path, error) from None
    return found


def damaged(path: Path, error: Exception) -> MissingError:
    """The error for a checkpoint whose reading raised `error`."""
    what = error.strerror if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
    return MissingError(f"training cannot be resumed from {path} ({what}); "
                        "remove it to resume from the one before it")


def load(path: Path) -> tuple[GPT2Config, dict[str, np.ndarray], dict[str, np.ndarray],
                              dict[str, Any]]:
    """Configuration, parameters and moments by name, and record of a checkpoint.

    MissingError if the checkpoint is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    found = record(path)
    try:
        moments = load_file(path / MOMENTS)
        model = read_checkpoint(path, dtype=str(found["state"]["dtype"]))
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise damaged(path, error) from None
    parameters = {name: np.array(a) for name, a in model.parameters.items()}
    return model.config, parameters, moments, found
