"""Training stopped and taken up again: directories checkpoint-N, each written whole beside its place and then renamed.

A checkpoint-N is a directory that transformers reads, with float32 (float64) weights, and beside them optimizer.safetensors (AdamW's
moments) and training.json (all else that decides the steps after N). What is killed, or finds the disk full, leaves the ones before.
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
from ..io.safetensors import safetensors_pieces
from ..weights.checkpoint import read_checkpoint
from ..weights.pretrained import PretrainedModel

RECORD, MOMENTS = "training.json", "optimizer.safetensors"
_NAME = re.compile(r"checkpoint-(\d+)")


class SaveError(GPT2Error):
    """A checkpoint that could not be written; those before it are as they were."""


def snapshots(out: str | Path) -> list[Path]:
    """The checkpoint-N of a directory, the newest last."""
    folder = Path(out)
    found = [(int(m[1]), p) for p in (folder.iterdir() if folder.is_dir() else ()) if (m := _NAME.fullmatch(p.name)) and p.is_dir()]
    return [path for _, path in sorted(found)]


def save(out: str | Path, model: PretrainedModel, moments: Mapping[str, np.ndarray], record: Mapping[str, Any], tokenizer: Any,
         keep: int) -> Path:
    """Write checkpoint-N, N being record["step"], and remove the oldest so that `keep` are left.

    moments: arrays by name, such as "exp_avg.wte.weight". SaveError where it cannot be written.
    """
    place = Path(out) / f"checkpoint-{record['step']}"
    if place.exists():                                  # whole, and of this very step
        return place
    codes = {name: "F64" if a.dtype.itemsize == 8 else "F32" for name, a in moments.items()}
    try:
        with new_folder(place) as beside:
            model.save_pretrained(beside, tokenizer=tokenizer)
            write_new(beside / MOMENTS, safetensors_pieces(moments, codes, {"format": "np"}))
            text = json.dumps(record, indent=1, allow_nan=False) + "\n"
            write_new(beside / RECORD, [text.encode()])
        for old in snapshots(out)[:-keep]:
            remove(old)
    except (OSError, UsageError) as error:
        failed = error if isinstance(error, OSError) else error.__context__
        said = failed.strerror if isinstance(failed, OSError) else error
        kept = [p.name for p in snapshots(out)]
        rest = f"{kept[-1]} is whole; go on from it with --init-from resume" if kept else "and there is none before it"
        raise SaveError(f"{place} cannot be written: {said}; {rest}") from None
    return place


def record(path: Path) -> dict[str, Any]:
    """What the training.json of a checkpoint-N says. MissingError where it cannot be read."""
    try:
        found = json.loads((path / RECORD).read_bytes())
        if not isinstance(found, dict) or not {"step", "state", "settings", "data", "history", "best"} <= found.keys():
            raise ValueError("it is not the record of a run")
    except (OSError, ValueError) as error:
        raise damaged(path, error) from None
    return found


def damaged(path: Path, error: Exception) -> MissingError:
    """What to say of a checkpoint-N that gave this error."""
    what = error.strerror if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
    return MissingError(f"{path} cannot be taken up again ({what}); remove it to go on from the one before it")


def load(path: Path) -> tuple[GPT2Config, dict[str, np.ndarray], dict[str, np.ndarray], dict[str, Any]]:
    """Configuration, parameters and moments by name, and the record of a checkpoint-N. MissingError where it is damaged."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    told = record(path)
    try:
        moments = load_file(path / MOMENTS)
        found = read_checkpoint(path, dtype=str(told["state"]["dtype"]))
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise damaged(path, error) from None
    return found.config, {name: np.array(a) for name, a in found.parameters.items()}, moments, told
