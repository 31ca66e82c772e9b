"""The start of a run of `gpt2.train`: new weights, a model, or a checkpoint of an earlier run."""
from __future__ import annotations

import argparse
import platform
from collections.abc import Iterator
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import minigrad as mg
from minigrad.distributed import ProcessGroup

from ..cli.command import floats_of
from ..config import GPT2Config
from ..data.shards import Data
from ..errors import UsageError
from ..model import GPT2
from . import checkpoints as snapshot
from .trainer import Trainer, rate, validated

# settings that a checkpoint does not store
NOT_KEPT = ("config", "out_dir", "dry_run", "distributed")
# What happens if a resumed run has another value of a setting than the checkpoint:
#   same      no number of the run changes
#   steps     the steps from here on change; a warning names the setting
#   schedule  their learning rate changes; a warning names the setting
#   windows   the validation loss would be of other tokens and could not be compared with the best
#             loss so far: an error
#   weights   the stored weights and moments do not fit the new value: an error
ON_RESUME: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("config", "init_from", "out_dir", "log_interval", "eval_interval",
                     "sample_every", "save_every", "keep", "save_dtype", "backend", "device",
                     "distributed", "recompute", "dry_run", "debug_nan"), ("same",)),
    **dict.fromkeys(("dropout", "attn_dropout", "gradient_accumulation_steps", "weight_decay",
                     "beta1", "beta2", "grad_clip", "overfit_one_batch", "seed"), ("steps",)),
    **dict.fromkeys(("max_iters", "learning_rate", "min_lr", "warmup_iters"), ("schedule",)),
    # windows: only with --eval-iters, which counts batches
    **dict.fromkeys(("batch_size", "block_size"), ("steps", "windows")),
    "eval_iters": ("windows",),
    # weights: only if a frozen parameter is to be trained, or float64 is the old or the new dtype
    **dict.fromkeys(("freeze", "dtype"), ("steps", "weights")),
    # data: the same data in another directory is accepted
    **dict.fromkeys(("n_layer", "n_head", "n_embd", "data"), ("weights",)),
}
SHAPE = ("n_layer", "n_head", "n_embd")                 # settings that an existing model has fixed


def newest(out: str) -> tuple[Path, snapshot.Record]:
    """The newest checkpoint-N of a directory and its record. UsageError if there is none."""
    found = snapshot.snapshots(out)
    if not found:
        raise UsageError(f"--out-dir {out} holds no checkpoint-N to resume from; "
                         "start with --init-from scratch")
    return found[-1], snapshot.record(found[-1])


def other_settings(args: argparse.Namespace, record: dict[str, Any], place: str, tokens: int
                   ) -> Iterator[str]:
    """Warnings about the settings that differ from those of the checkpoint, by ON_RESUME.

    UsageError for a difference of kind "windows". tokens: how many tokens the validation text has.
    """
    stored = {name: value for name, value in record["settings"].items() if name in ON_RESUME}
    before = {**vars(args), **stored}
    was, done = argparse.Namespace(**before), record["step"]
    other = [name for name in ON_RESUME if before[name] != getattr(args, name)]

    def named(kind: str) -> str:
        return ", ".join(
            f"--{name.replace('_', '-')} {getattr(args, name)} instead of {before[name]}"
            for name in other if kind in ON_RESUME[name])

    best, now = (min(validated(settings) or tokens, tokens) for settings in (was, args))
    if best != now and record["best"] is not None:
        hint = same_tokens(args, validated(was) or tokens)
        raise UsageError(f"{named('windows')}: the validation loss would be of {now:,} tokens, and "
                         f"the best so far is of {best:,}, so they cannot be compared; leave it out"
                         f"{hint}, or start a new run with --init-from {place}")
    if named("schedule"):
        yield (f"{named('schedule')}: the learning rate of step {done + 1} is "
               f"{rate(args, done):.2e}, and would have been {rate(was, done):.2e}")
    if named("steps"):
        yield f"{named('steps')}: the steps from here on differ from those of the earlier settings"


def same_tokens(args: argparse.Namespace, wanted: int) -> str:
    """A hint with the --eval-iters that validates on `wanted` tokens, or an empty text."""
    iters, rest = divmod(wanted - 1, args.batch_size * args.block_size)
    return f", give --eval-iters {iters}" if iters and not rest else ""


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


def fitted(config: GPT2Config, args: argparse.Namespace, sources: dict[str, str], data: Data,
           where: str) -> GPT2Config:
    """The configuration of existing weights with this run's dropout.

    The settings in `args` that were not given take its values. UsageError for flags that contradict
    it, and for data with another vocabulary. where: the source of the weights, for messages.
    """
    for name in (*SHAPE, "block_size"):
        has, asked = getattr(config, name, config.n_positions), getattr(args, name)
        wrong = asked > has if name == "block_size" else asked != has
        if sources[name] == "default" or (sources[name] == "checkpoint" and name in SHAPE):
            setattr(args, name, has)
        elif wrong:
            flag = f"--{name.replace('_', '-')}"
            raise UsageError(f"{flag} {asked} does not fit {where}, which has {has}; "
                             f"leave out {flag}")
    if config.vocab_size not in (data.meta["vocab_size"], data.tokenizer.n_plain):
        raise UsageError(f"{args.data} has a vocabulary of {data.meta['vocab_size']} ids and "
                         f"{where} one of {config.vocab_size}; "
                         f"prepare the data with --tokenizer {where}")
    return replace(config, embd_pdrop=args.dropout, resid_pdrop=args.dropout,
                   attn_pdrop=args.attn_dropout)


def same_tokenizer(where: Path, data: Data) -> None:
    """UsageError if the model's directory has another tokenizer than the data."""
    from ..data.tokenizer import load_tokenizer

    here = any((where / name).exists() for name in ("vocab.json", "tokenizer.json"))
    if here and (theirs := load_tokenizer(where)).sha256 != data.tokenizer.sha256:
        raise UsageError(f"{data.directory} was made with the tokenizer {data.tokenizer.name}, and "
                         f"{where} has another one, {theirs.name}; "
                         f"prepare the data again with --tokenizer {where}")


class Origin(NamedTuple):
    """The state in which a run starts. parameters: None for new weights. place: its source."""

    config: GPT2Config
    parameters: dict[str, Any] | None
    moments: dict[str, Any]
    record: dict[str, Any]
    place: str


def origin(args: argparse.Namespace, sources: dict[str, str], data: Data) -> Origin:
    """The state that --init-from names. UsageError if it does not fit the flags and the data."""
    dtype = stored_dtype(args)
    record: dict[str, Any] = {"data": data.meta, "history": [], "best": None}
    parameters, moments, place = None, dict[str, Any](), args.init_from
    if args.init_from == "scratch":
        config = new_config(args, data)
    elif args.init_from == "resume":
        path = newest(args.out_dir)[0]
        place = str(path)
        config, parameters, moments, found = snapshot.load(path)
        record = dict(found)
        if record["data"] != data.meta:
            raise UsageError(f"{args.data} is not the data that {path} was trained on; "
                             f"to train on other data give --init-from {path}")
        if record["state"]["dtype"] != dtype:
            raise UsageError(f"--dtype {args.dtype} needs {dtype} weights, and {path} holds "
                             f"{record['state']['dtype']}; leave out --dtype")
        config = fitted(config, args, sources, data, place)
    else:
        from ..weights.checkpoint import read_checkpoint
        from ..weights.locate import locate

        path = locate(args.init_from)
        model = read_checkpoint(path, dtype=dtype)
        same_tokenizer(path if path.is_dir() else path.parent, data)
        config = fitted(model.config, args, sources, data, place)
        # copies: training must not change the file, which the arrays may be mapped to
        parameters = {name: np.array(a) for name, a in model.parameters.items()}
    for split, ids in (("train", data.train), ("val", data.val)):
        if len(ids) <= args.block_size:
            raise UsageError(f"{split} holds {len(ids)} tokens; a block of {args.block_size} "
                             "tokens needs one more than its size")
    return Origin(config, parameters, moments, record, place)


def stored_dtype(args: argparse.Namespace) -> str:
    """The dtype of weights and moments."""
    return "float64" if args.dtype == "float64" else "float32"


def start(args: argparse.Namespace, data: Data, begin: Origin, group: ProcessGroup
          ) -> tuple[Trainer, dict[str, Any]]:
    """A trainer that starts from `begin`, and the record of its run so far."""
    config, parameters, moments, record, place = begin
    model = GPT2(
        config,
        backend=group.place(args.backend),
        dtype=stored_dtype(args),
        compute_dtype=floats_of(args.dtype),
        # checkpointed blocks run without recording, so --debug-nan cannot see inside them
        recompute=args.recompute and not args.debug_nan,
        seed=args.seed,
        parameters=parameters,
    )
    freeze(model, args.freeze)
    trainer = Trainer(model, data.train, args, group)
    if args.init_from == "resume":
        known = record["state"]["adamw_steps"].keys()
        if thawed := sorted(trainer.trained.keys() - known):
            raise UsageError(f"--freeze {' '.join(args.freeze)}: {thawed[0]} was frozen, and "
                             f"{place} has no AdamW moments for it; leave out --freeze, or start a "
                             f"new run with --init-from {place}")
        trainer.restore(record["step"], record["state"], moments)
    elif record["best"] is None:
        record["parameters"] = model.num_parameters()
    record["settings"] = {name: value for name, value in vars(args).items()
                          if name not in NOT_KEPT}
    record["versions"] = {"minigrad": mg.__version__, "numpy": np.__version__,
                          "python": platform.python_version()}
    return trainer, record


def freeze(model: GPT2, patterns: list[str]) -> None:
    """Turn off the gradients of the parameters whose names match one of the patterns.

    UsageError for a pattern that matches no name, and if no parameter is left to train.
    """
    named = dict(model.named_parameters())
    for pattern in patterns:
        matched = [name for name in named if fnmatchcase(name, pattern)]
        if not matched:
            raise UsageError(f"--freeze {pattern!r} matches no parameter; they are called "
                             f"{', '.join(list(named)[:3])}, …")
        for name in matched:
            named[name].requires_grad_(False)
    if not any(p.requires_grad for p in named.values()):
        raise UsageError("--freeze leaves nothing to train")
