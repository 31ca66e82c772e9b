"""Where a run of `gpt2.train` begins: new weights, a model that is there, or a checkpoint with all that belongs to it."""
from __future__ import annotations

import argparse
import platform
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import minigrad as mg
from minigrad.distributed import ProcessGroup

from . import snapshot
from .cli import floats_of
from .config import GPT2Config
from .data import Data
from .errors import UsageError
from .model import GPT2
from .trainer import Trainer

NOT_KEPT = ("config", "out_dir", "dry_run", "distributed")             # settings that a run taken up again does not take over
SHAPE = ("n_layer", "n_head", "n_embd")                 # what a model that is there already has decided


def newest(out: str) -> tuple[Path, dict[str, Any]]:
    """The newest checkpoint-N of a directory and its record. UsageError where there is none."""
    found = snapshot.snapshots(out)
    if not found:
        raise UsageError(f"--out-dir {out} holds no checkpoint-N to resume from; start with --init-from scratch")
    return found[-1], snapshot.record(found[-1])


def new_config(args: argparse.Namespace, data: Data) -> GPT2Config:
    """The configuration that the flags describe."""
    return GPT2Config(
        vocab_size=data.meta["vocab_size"],
        n_positions=args.block_size,
        n_layer=args.n_layer,
        n_head=args.n_head,
        n_embd=args.n_embd,
        embd_pdrop=args.dropout,
        resid_pdrop=args.dropout,
        attn_pdrop=args.attn_dropout,
        bos_token_id=data.tokenizer.eot,
        eos_token_id=data.tokenizer.eot,
    )


def fitted(config: GPT2Config, args: argparse.Namespace, sources: dict[str, str], data: Data, where: str) -> GPT2Config:
    """The configuration of weights that are there already, with this run's dropout. UsageError for flags that contradict it."""
    for name in (*SHAPE, "block_size"):
        has, asked = getattr(config, name, config.n_positions), getattr(args, name)
        wrong = asked > has if name == "block_size" else asked != has
        if sources[name] == "default" or (sources[name] == "checkpoint" and name in SHAPE):
            setattr(args, name, has)
        elif wrong:
            raise UsageError(f"--{name.replace('_', '-')} {asked} does not fit {where}, which has {has}; leave it out")
    if config.vocab_size not in (data.meta["vocab_size"], data.tokenizer.n_plain):
        raise UsageError(f"{args.data} has a vocabulary of {data.meta['vocab_size']} ids and {where} one of {config.vocab_size}; "
                         f"prepare the data with --tokenizer {where}")
    return replace(config, embd_pdrop=args.dropout, resid_pdrop=args.dropout, attn_pdrop=args.attn_dropout)


def same_tokenizer(where: Path, data: Data) -> None:
    """UsageError where the model's directory has another tokenizer than the data."""
    from .tokenizer import load_tokenizer

    here = any((where / name).exists() for name in ("vocab.json", "tokenizer.json"))
    if here and (theirs := load_tokenizer(where)).sha256 != data.tokenizer.sha256:
        raise UsageError(f"{data.directory} was made with another tokenizer ({data.tokenizer.name}) than {where} has ({theirs.name}); "
                         f"prepare it again with --tokenizer {where}")


class Origin(NamedTuple):
    """Configuration, weights (None: new ones), AdamW's moments, the record of the run so far, and the place all this is from."""

    config: GPT2Config
    parameters: dict[str, Any] | None
    moments: dict[str, Any]
    record: dict[str, Any]
    place: str


def origin(args: argparse.Namespace, sources: dict[str, str], data: Data) -> Origin:
    """Where --init-from says to begin. UsageError where the flags, the data and what is there do not fit together."""
    dtype = stored_dtype(args)
    record: dict[str, Any] = {"data": data.meta, "history": [], "best": None}
    parameters, moments, place = None, dict[str, Any](), args.init_from
    if args.init_from == "scratch":
        config = new_config(args, data)
    elif args.init_from == "resume":
        path = newest(args.out_dir)[0]
        place = str(path)
        config, parameters, moments, record = snapshot.load(path)
        if record["data"] != data.meta:
            raise UsageError(f"{args.data} is not the data that {path} was trained on; to go on with other data give --init-from {path}")
        if record["state"]["dtype"] != dtype:
            raise UsageError(f"--dtype {args.dtype} computes on {dtype} weights, and {path} holds {record['state']['dtype']}; leave it out")
        config = fitted(config, args, sources, data, place)
    else:
        from .checkpoint import read_checkpoint
        from .locate import locate

        path = locate(args.init_from)
        found = read_checkpoint(path, dtype=dtype)
        same_tokenizer(path if path.is_dir() else path.parent, data)
        config = fitted(found.config, args, sources, data, place)
        parameters = {name: np.array(a) for name, a in found.parameters.items()}         # the file stays as it is
    for split, ids in (("train", data.train), ("val", data.val)):
        if len(ids) <= args.block_size:
            raise UsageError(f"{split} holds {len(ids)} tokens; a block of {args.block_size} needs one more than its size")
    return Origin(config, parameters, moments, record, place)


def stored_dtype(args: argparse.Namespace) -> str:
    """The dtype of weights and moments."""
    return "float64" if args.dtype == "float64" else "float32"


def start(args: argparse.Namespace, data: Data, begin: Origin, group: ProcessGroup) -> tuple[Trainer, dict[str, Any]]:
    """A trainer that begins there, and the record of its run so far."""
    config, parameters, moments, record, place = begin
    # what is computed again is not looked at when it is computed first
    model = GPT2(config, backend=group.place(args.backend), dtype=stored_dtype(args), compute_dtype=floats_of(args.dtype),
                 recompute=args.recompute and not args.debug_nan, seed=args.seed, parameters=parameters)
    freeze(model, args.freeze)
    trainer = Trainer(model, data.train, args, group)
    if args.init_from == "resume":
        try:
            trainer.restore(record["step"], record["state"], moments)
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise snapshot.damaged(Path(place), error) from None
    elif record["best"] is None:
        record["parameters"] = model.num_parameters()
    record["settings"] = {name: value for name, value in vars(args).items() if name not in NOT_KEPT}
    record["versions"] = {"minigrad": mg.__version__, "numpy": np.__version__, "python": platform.python_version()}
    return trainer, record


def freeze(model: GPT2, patterns: list[str]) -> None:
    """Parameters of these names want no gradient. UsageError for a pattern that no name matches, and where nothing is left to train."""
    named = dict(model.named_parameters())
    for pattern in patterns:
        matched = [name for name in named if fnmatchcase(name, pattern)]
        if not matched:
            raise UsageError(f"--freeze {pattern!r} matches no parameter; they are called {', '.join(list(named)[:3])}, …")
        for name in matched:
            named[name].requires_grad_(False)
    if not any(p.requires_grad for p in named.values()):
        raise UsageError("--freeze leaves nothing to train")
