"""Checkpoints of a training run, from which it can be resumed: directories checkpoint-N.

checkpoint-N is the state after N steps. It is a directory that transformers reads, with weights of
float32 (or float64), and with two more files: optimizer.safetensors has the moments of AdamW, and
training.json has everything else on which the next steps depend. A checkpoint is written under
another name and renamed when it is complete. If the run is killed or the disk is full, the earlier
checkpoints stay as they are.
"""
from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict

import numpy as np

from ..config import GPT2Config
from ..data.shards import Meta
from ..errors import GPT2Error, MissingError, UsageError
from ..io.atomic import new_folder, remove, write_new
from ..io.outputs import claim, unclaim, written
from ..io.records import MB, Between, Count, Size, read_json, sealed
from ..io.safetensors import CODES, Loader, read_header, safetensors_pieces
from ..weights.checkpoint import read_checkpoint
from ..weights.pretrained import PretrainedModel

BY = "gpt2.train"                                       # whose checkpoints are removed again
RECORD, MOMENTS = "training.json", "optimizer.safetensors"
_NAME = re.compile(r"checkpoint-([0-9]{1,16})")


class Scaler(TypedDict):
    """The state of the loss' scale."""

    factor: Annotated[float, Between(1e-300)]
    good: Count


class _Pending(TypedDict, total=False):
    pending: list[float]                                # losses that no line has told yet
    seconds: Annotated[float, Between(0.0)]


class State(_Pending):
    """What the next steps depend on besides the tensors. random: key and count of the stream."""

    dtype: Literal["float32", "float64"]
    random: Annotated[list[Annotated[int, Between(0)]], Size(2, 2)]
    adamw_steps: Annotated[dict[str, Count], Size(1, 10**6)]
    scaler: Scaler


class Validation(TypedDict):
    """Validation losses."""

    nats_per_token: float
    nats_per_char: float


class Past(Validation):
    """Validation losses after a step."""

    step: Count


class Best(TypedDict):
    """The best model so far."""

    step: Count
    validation: Validation
    minutes: Annotated[float, Between(0.0)]


class _Told(TypedDict, total=False):
    parameters: Count
    versions: dict[str, str]
    train_loss: float


class Record(_Told):
    """training.json. settings: by their names in TOML; `gpt2.train` checks them as its flags."""

    step: Count
    state: State
    settings: dict[str, Any]
    data: Meta
    history: list[Past]
    best: Best | None


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
            write_new(folder / RECORD, [sealed(record)])
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


def record(path: Path) -> Record:
    """The contents of a checkpoint's training.json. MissingError if it is damaged."""
    try:
        found = read_json(path / RECORD, Record, 64 * MB)
        if path.name != f"checkpoint-{found['step']}":
            raise MissingError(f"its {RECORD} is of step {found['step']}")
        # AdamW takes each step for all parameters, or for none where a gradient overflowed
        counts = found["state"]["adamw_steps"]
        if len(set(counts.values())) > 1 or max(counts.values()) > found["step"]:
            raise MissingError(f"AdamW's steps in its {RECORD} are not the same number for all "
                               f"parameters, {found['step']} at most")
    except MissingError as error:
        raise damaged(path, error) from None
    return found


def damaged(path: Path, error: Exception) -> MissingError:
    """The error for a checkpoint whose reading raised `error`."""
    return MissingError(f"training cannot be resumed from {path} ({error}); "
                        "remove it to resume from the one before it")


def load(path: Path) -> tuple[GPT2Config, dict[str, np.ndarray], dict[str, np.ndarray], Record]:
    """Configuration, parameters and moments by name, and record of a checkpoint.

    MissingError if the checkpoint is damaged.
    """
    found = record(path)
    try:
        model = read_checkpoint(path, dtype=found["state"]["dtype"])
        moments = _moments(path / MOMENTS, found["state"],
                           {name: a.shape for name, a in model.parameters.items()})
    except GPT2Error as error:
        raise damaged(path, error) from None
    parameters = {name: np.array(a) for name, a in model.parameters.items()}
    return model.config, parameters, moments, found


def _moments(path: Path, state: State, shapes: Mapping[str, tuple[int, ...]]
             ) -> dict[str, np.ndarray]:
    """AdamW's moments by name. MissingError if they are not those of the state and the shapes."""
    try:
        stored = {entry.key: entry for entry in read_header(path)[0]}
    except OSError as error:
        raise MissingError(f"cannot read {path}: {error.strerror or error}") from None
    wanted = {f"{kind}.{name}": name for name, count in state["adamw_steps"].items() if count
              for kind in ("exp_avg", "exp_avg_sq")}
    if stored.keys() != wanted.keys() or not state["adamw_steps"].keys() <= shapes.keys():
        raise MissingError(f"{path} does not hold the moments of the parameters that {RECORD} "
                           "names")
    load = Loader(np.dtype(state["dtype"]))
    for key, entry in stored.items():
        if (entry.dtype, entry.shape) != (CODES[state["dtype"]], shapes[wanted[key]]):
            raise MissingError(f"{path}: '{key}' is {entry.dtype}{list(entry.shape)}, and its "
                               f"parameter {list(shapes[wanted[key]])} in {state['dtype']}")
    return {key: np.array(load(entry)) for key, entry in stored.items()}
