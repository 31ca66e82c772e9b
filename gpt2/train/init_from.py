"""Where a run of `gpt2.train` begins: new weights, a model that is there, or a checkpoint with all that belongs to it."""
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

NOT_KEPT = ("config", "out_dir", "dry_run", "distributed")             # settings that a run taken up again does not take over
# What it does to a run that is taken up again to give a setting another value than it had: "same" changes no number of it;
# "steps" changes the steps from here on, "schedule" their learning rate, and both are said; "windows" lets validation be of other
# tokens, which cannot be compared with the best so far, and is refused; so is "weights", what the weights and moments there decide.
ON_RESUME: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("config", "init_from", "out_dir", "log_interval", "eval_interval", "sample_every", "save_every", "keep", "save_dtype",
                     "backend", "device", "distributed", "recompute", "dry_run", "debug_nan"), ("same",)),
    **dict.fromkeys(("dropout", "attn_dropout", "gradient_accumulation_steps", "weight_decay", "beta1", "beta2", "grad_clip",
                     "overfit_one_batch", "seed"), ("steps",)),
    **dict.fromkeys(("max_iters", "learning_rate", "min_lr", "warmup_iters"), ("schedule",)),
    **dict.fromkeys(("batch_size", "block_size"), ("steps", "windows")),               # windows: where --eval-iters counts them
    "eval_iters": ("windows",),
    **dict.fromkeys(("freeze", "dtype"), ("steps", "weights")),        # weights: to thaw; float64 from or to anything else
    **dict.fromkeys(("n_layer", "n_head", "n_embd", "data"), ("weights",)),            # data: other text, and not the same elsewhere
}
SHAPE = ("n_layer", "n_head", "n_embd")                 # what a model that is there already has decided


def newest(out: str) -> tuple[Path, dict[str, Any]]:
    """The newest checkpoint-N of a directory and its record. UsageError where there is none."""
    found = snapshot.snapshots(out)
    if not found:
        raise UsageError(f"--out-dir {out} holds no checkpoint-N to resume from; start with --init-from scratch")
    return found[-1], snapshot.record(found[-1])


def other_settings(args: argparse.Namespace, record: dict[str, Any], place: str, tokens: int) -> Iterator[str]:
    """A line on what other settings than before do to a run that is taken up again, by ON_RESUME. UsageError for what it refuses.

    tokens: how many the validation text has.
    """
    before = {**vars(args), **{name: value for name, value in record["settings"].items() if name in ON_RESUME}}
    was, done = argparse.Namespace(**before), record["step"]
    other = [name for name in ON_RESUME if before[name] != getattr(args, name)]

    def named(kind: str) -> str:
        return ", ".join(f"--{name.replace('_', '-')} {getattr(args, name)} instead of {before[name]}"
                         for name in other if kind in ON_RESUME[name])

    best, now = (min(validated(settings) or tokens, tokens) for settings in (was, args))
    if best != now and record["best"] is not None:
        raise UsageError(f"{named('windows')}: the validation loss would be of {now:,} tokens, and the best so far is of {best:,}, "
                         f"so they cannot be compared; leave it out{same_tokens(args, validated(was) or tokens)}, or begin a run of "
                         f"its own with --init-from {place}")
    if named("schedule"):
        yield (f"{named('schedule')}: the learning rate of step {done + 1} is {rate(args, done):.2e}, and would have been "
               f"{rate(was, done):.2e}")
    if named("steps"):
        yield f"{named('steps')}: the steps from here on are others than the run would have taken"


def same_tokens(args: argparse.Namespace, wanted: int) -> str:
    """The --eval-iters that makes validation be of `wanted` tokens, as a hint; nothing where none does."""
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
    from ..data.tokenizer import load_tokenizer

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
        from ..weights.checkpoint import read_checkpoint
        from ..weights.locate import locate

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
        if thawed := sorted(trainer.trained.keys() - record["state"].get("adamw_steps", trainer.trained).keys()):
            raise UsageError(f"--freeze {' '.join(args.freeze)}: {thawed[0]} was frozen, and {place} has no AdamW moments of it; "
                             f"leave --freeze out, or begin a run of its own with --init-from {place}")
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
