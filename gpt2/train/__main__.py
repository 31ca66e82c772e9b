"""python -m gpt2.train: train a GPT-2 on data that `gpt2.prepare` wrote.

A run starts with new weights, from a model, or from the newest checkpoint of a stopped run. The
flags are nanoGPT's; --config FILE.toml holds them without their leading dashes. Ctrl-C and SIGTERM
end a run after the current step, with a checkpoint.
"""
from __future__ import annotations

import argparse
import contextlib
import json
import math
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import minigrad as mg
from minigrad.debug import detect_anomaly
from minigrad.distributed import ProcessGroup, init_process_group
from minigrad.errors import DistributedError, GraphError

from ..cli.command import PRECISIONS, Extend, Parser, add_backend, at_least, backend_of, run_command
from ..cli.settings import as_toml, check_stored, flags_given, merged, read_settings
from ..data.shards import Data, load_data
from ..data.tokenizer import BESIDE
from ..errors import UsageError
from ..evaluate.likelihood import total_nll
from ..io import outputs
from ..io.atomic import folders, write_files
from ..io.safetensors import TooLarge
from ..model import GPT2
from . import checkpoints as snapshot
from .init_from import newest, origin, other_settings, start
from .memory import check_fits, footprint, table
from .progress import METRICS, PICTURE, Report
from .trainer import Trainer, rows_of, validated

BEST = ("config.json", "model.safetensors", "vocab.json", "merges.txt", "training.json", *BESIDE)
ADVICE = "lower --learning-rate or raise --warmup-iters"
SAMPLED = 100                                           # tokens of a sample


def parser() -> argparse.ArgumentParser:
    p = Parser(prog="python -m gpt2.train", description=__doc__)
    p.add_argument("--config", metavar="FILE",
                   help="settings from a TOML file; flags on the command line override them")
    p.add_argument("--init-from", default="scratch", metavar="scratch|resume|DIR",
                   help="scratch: new weights; resume: the newest checkpoint of --out-dir, with "
                        "the state of its run; or a model, as a directory or by name")
    p.add_argument("--data", metavar="DIR", help="a directory that gpt2.prepare wrote")
    p.add_argument("--out-dir", metavar="DIR",
                   help="directory for the best model and the checkpoints, checkpoint-N; a new run "
                        "needs one without an earlier run")
    m = p.add_argument_group("model")
    m.add_argument("--n-layer", type=at_least(1), default=4)
    m.add_argument("--n-head", type=at_least(1), default=4)
    m.add_argument("--n-embd", type=at_least(1), default=256)
    m.add_argument("--block-size", type=at_least(1), default=128, help="context, in tokens")
    m.add_argument("--dropout", type=float, default=0.0,
                   help="dropout of embeddings and residual branches")
    m.add_argument("--attn-dropout", type=float, default=0.0, help="dropout of attention weights")
    m.add_argument("--freeze", nargs="+", action=Extend, default=[], metavar="PATTERN",
                   help="parameters that are not trained: 'wte.*' 'h.[0-3].*'")
    o = p.add_argument_group("optimisation")
    o.add_argument("--batch-size", type=at_least(1), default=16)
    o.add_argument("--gradient-accumulation-steps", type=at_least(1), default=1,
                   help="batches whose gradients are summed for one change of the weights")
    o.add_argument("--max-iters", type=at_least(1), default=2000)
    o.add_argument("--learning-rate", type=float, default=1e-3)
    o.add_argument("--min-lr", type=float, default=None,
                   help="the last learning rate (default: a tenth of --learning-rate)")
    o.add_argument("--warmup-iters", type=at_least(0), default=100)
    o.add_argument("--weight-decay", type=float, default=0.1)
    o.add_argument("--beta1", type=float, default=0.9)
    o.add_argument("--beta2", type=float, default=0.99)
    o.add_argument("--grad-clip", type=float, default=1.0,
                   help="largest global norm of the gradient; 0: no clipping")
    o.add_argument("--overfit-one-batch", action="store_true",
                   help="use the first batch for every step; a right model learns it by heart")
    o.add_argument("--seed", type=int, default=0)
    r = p.add_argument_group("reports and checkpoints")
    r.add_argument("--log-interval", type=at_least(1), default=50, metavar="N",
                   help="print the training loss every N steps")
    r.add_argument("--eval-interval", type=at_least(1), default=500, metavar="N",
                   help="compute the validation loss every N steps")
    r.add_argument("--eval-iters", type=at_least(1), metavar="N",
                   help="validate on N batches (default: on the whole validation text)")
    r.add_argument("--sample-every", type=at_least(1), metavar="N",
                   help="print a short sample every N steps")
    r.add_argument("--save-every", type=at_least(1), metavar="N",
                   help="save a checkpoint every N steps (default: --eval-interval)")
    r.add_argument("--keep", type=at_least(1), default=2, metavar="N",
                   help="how many checkpoints are kept")
    r.add_argument("--save-dtype", default="float16", choices=["float16", "float32", "float64"],
                   help="dtype of the stored weights of the best model")
    c = p.add_argument_group("computation")
    add_backend(c)
    c.add_argument("--distributed", default="none", choices=["none", "mpi", "nccl"],
                   help="divide each step's batch among the processes that mpiexec started; nccl: "
                        "one GPU for each")
    c.add_argument("--dtype", default="float32", choices=PRECISIONS,
                   help="dtype of the computation; weights are float64 with float64, else float32. "
                        "tf32: float32, but a GPU may round the factors of matrix products")
    c.add_argument("--recompute", action="store_true",
                   help="compute each block again in the backward pass: less memory, more time")
    c.add_argument("--dry-run", action="store_true",
                   help="print how much memory a step needs, part by part, and do not train")
    c.add_argument("--debug-nan", action="store_true",
                   help="name the op that first makes NaN or infinity; slow")
    return p


# ── before anything starts ──
def settings(argv: list[str] | None) -> tuple[argparse.Namespace, dict[str, str]]:
    """All settings, and the source of each.

    The command line overrides the file, the file overrides the checkpoint to resume from, and the
    checkpoint overrides the defaults.
    """
    p = parser()
    given = flags_given(p, argv)
    file = read_settings(p, given["config"]) if "config" in given else {}
    args, _ = merged(p, ("file", file), ("command line", given))
    if args.out_dir is None:
        raise UsageError("--out-dir is missing; give a directory for the checkpoints")
    stored = {}
    if args.init_from == "resume":
        path, earlier = newest(args.out_dir)
        try:
            stored = check_stored(p, earlier["settings"])
            check_ranges({**vars(args), **stored})
        except UsageError as error:
            what = UsageError(f"its {snapshot.RECORD}: settings: {error}")
            raise snapshot.damaged(path, what) from None
    args, sources = merged(p, ("checkpoint", stored), ("file", file), ("command line", given))
    if args.data is None:
        raise UsageError("--data is missing; give a directory that python -m gpt2.prepare wrote")
    return args, sources


def check_ranges(settings: Mapping[str, Any]) -> None:
    """UsageError for a number that is out of its range."""
    numbers, fractions = "a number from 0 on", "from 0 on and below 1"
    for names, top, wanted in (
        (("learning_rate", "min_lr", "weight_decay", "grad_clip"), math.inf, numbers),
        (("dropout", "attn_dropout", "beta1", "beta2"), 1.0, fractions),
    ):
        for name in names:
            value = settings[name]
            if value is not None and not 0.0 <= value < top:
                raise UsageError(f"--{name.replace('_', '-')} must be {wanted}, not {value}")


def check(args: argparse.Namespace, group: ProcessGroup) -> None:
    """UsageError if the settings do not allow a training run."""
    check_ranges(vars(args))
    if args.n_embd % args.n_head:
        raise UsageError(f"--n-embd {args.n_embd} is not a multiple of --n-head {args.n_head}")
    rows = args.batch_size * args.gradient_accumulation_steps
    each = rows_of(args, group.world_size)
    if each * group.world_size != rows or each % min(args.batch_size, each or 1):
        raise UsageError(f"{rows} rows a step (--batch-size {args.batch_size} × "
                         f"--gradient-accumulation-steps {args.gradient_accumulation_steps}) "
                         f"cannot be divided evenly among {group.world_size} processes")
    if args.init_from != "resume" and group.rank == 0:
        check_out(Path(args.out_dir))


def check_out(out: Path) -> None:
    """UsageError if the directory holds a run already, or if it cannot be written."""
    held = ([name for name in BEST if (out / name).exists()]
            or [p.name for p in snapshot.snapshots(out)])
    if held:
        raise UsageError(f"--out-dir {out} holds {held[0]} already; choose another directory, "
                         "or continue the run with --init-from resume")
    outputs.check(out, snapshot.BY, (METRICS, PICTURE))
    try:                                # tried now: otherwise it would fail after hours of training
        with folders(out):
            tempfile.TemporaryFile(dir=out).close()
    except OSError as error:
        raise UsageError(f"--out-dir {out} cannot be written: {error.strerror}") from None


# ── the run ──
class Stop:
    """Delays SIGINT and SIGTERM to the end of a step; a second signal ends the run at once.

    signal: the signal that this process had. told: the signal that all processes know of.
    """

    signal: int | None = None
    told: int | None = None

    def __enter__(self) -> Stop:
        self.was: dict[int, Any] = {}
        for number in (signal.SIGINT, signal.SIGTERM):
            with contextlib.suppress(ValueError):       # raised outside the main thread
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self.was[number] = signal.signal(number, self._remember)
        return self

    def _remember(self, number: int, frame: Any) -> None:
        if self.signal is not None:
            raise KeyboardInterrupt
        self.signal = number

    def agreed(self, group: ProcessGroup) -> bool:
        """Whether one of the processes had a signal; all processes call it after the same step."""
        signals = group.all_gather_object(self.signal)
        self.told = next((number for number in signals if number is not None), None)
        return self.told is not None

    def __exit__(self, *error: object) -> None:
        for number, handler in self.was.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def evaluating(model: GPT2) -> Iterator[None]:
    """Put the model in evaluation mode inside the block."""
    model.eval()
    try:
        yield
    finally:
        model.train()


def validate(model: GPT2, data: Data, group: ProcessGroup, limit: int | None = None
             ) -> dict[str, float]:
    """Validation loss in nats per token and per character, computed by all processes together.

    limit: use only the first so many tokens of the validation text.
    """
    ids = data.val if limit is None else data.val[:limit]
    with evaluating(model):
        mine = total_nll(model, ids, part=group.rank, parts=group.world_size)
    nll, tokens = group.mean([*map(float, mine)])
    characters = data.meta["val"]["characters"] * len(ids) / len(data.val)
    return {"nats_per_token": nll / tokens, "nats_per_char": nll * group.world_size / characters}


def sample(model: GPT2, data: Data, seed: int) -> str:
    """A short text, sampled from the model at temperature 1."""
    from ..decoding.sampling import SamplingOptions
    from ..decoding.streaming import continue_text

    with evaluating(model), mg.no_grad():
        start = [int(data.val[0])]      # an id: "<|endoftext|>" as a text could be read in two ways
        room = max(1, min(SAMPLED, model.config.n_positions - 1))
        [made] = continue_text(model, data.tokenizer, start, max_new_tokens=room,
                               options=SamplingOptions(), seed=seed)
        return data.tokenizer.stream().push(start[0]) + made.text


def save_best(args: argparse.Namespace, trainer: Trainer, record: dict[str, Any], data: Data
              ) -> None:
    """Save the model and training.json in --out-dir itself.

    transformers and `gpt2.generate --model` can read the model there.
    """
    out = Path(args.out_dir)
    # removed before the weights are written: it never describes other weights than those beside it
    (out / snapshot.RECORD).unlink(missing_ok=True)
    try:
        trainer.model.save_pretrained(out, dtype=args.save_dtype, tokenizer=data.tokenizer)
    except TooLarge as error:
        raise TooLarge(f"{error}: continue with --init-from resume --save-dtype float32") from None
    rest = {name: value for name, value in record.items() if name not in ("best", "state")}
    text = json.dumps(rest | record["best"], indent=1) + "\n"
    write_files(out, {snapshot.RECORD: text.encode()})


def save(args: argparse.Namespace, trainer: Trainer, record: dict[str, Any], data: Data,
         report: Report) -> None:
    """Save checkpoint-N, from which --init-from resume continues; process 0 writes it.

    DistributedError if the processes have different weights. UsageError if a weight is NaN or
    infinite: then the checkpoints before are the ones to continue from.
    """
    for name, p in trainer.trained.items():
        here = mg.backend.of(p.array).at(p.array)
        if not here.isfinite(p.array).all():
            kept = snapshot.snapshots(args.out_dir)
            last = f"; {kept[-1].name} is the last checkpoint without it" if kept else ""
            raise trainer.group.met_by_all(UsageError(
                f"{name} holds NaN or infinity after step {trainer.done}{last}; {ADVICE}, "
                "or find the op with --debug-nan"))
    state = {**trainer.state(), "pending": report.losses(), "seconds": report.seconds}
    agree(trainer)
    if trainer.group.rank == 0:
        record = {**record, "step": trainer.done, "state": state}
        snapshot.save(args.out_dir, trainer.model, trainer.moments(), record, data.tokenizer,
                      args.keep)


def agree(trainer: Trainer) -> None:
    """DistributedError if the processes' weights are not the same, to the bit."""
    if trainer.group.world_size > 1 and not trainer.group.same(trainer.model.parameters()):
        raise trainer.group.met_by_all(DistributedError(
            f"the weights of the processes differ after step {trainer.done}: "
            "are their machines and files the same?"))


def run(args: argparse.Namespace, data: Data, trainer: Trainer, record: dict[str, Any],
        report: Report, stop: Stop) -> None:
    """Train up to step --max-iters or a stop signal, and save checkpoints and the best model.

    `record` is updated at each report.
    """
    limit = validated(args)
    if trainer.done == 0:
        save(args, trainer, record, data, report)       # a disk that is too small fails at once
    else:
        agree(trainer)                                  # `save` checks the same
    stopping = stop.agreed(trainer.group)
    while trainer.done < args.max_iters and not stopping:
        started = time.perf_counter()
        step = trainer.step()
        report.count(step, time.perf_counter() - started)
        stopping = stop.agreed(trainer.group)
        done, last = trainer.done, trainer.done == args.max_iters
        if done % args.log_interval == 0 or last or (step.changed and not math.isfinite(step.norm)):
            healthy(report.losses(), done, trainer.group)
            record["train_loss"] = report.line(step)
        if done % args.eval_interval == 0 or last:
            evaluate(args, data, trainer, record, report, limit)
        if args.sample_every and done % args.sample_every == 0 and trainer.group.rank == 0:
            text = sample(trainer.model, data, args.seed + done)
            report.say(f"step {done}: sample: {text!r}")
            report.note(sample=text)
        if done % (args.save_every or args.eval_interval) == 0 or last or stopping:
            save(args, trainer, record, data, report)


def healthy(losses: list[float], done: int, group: ProcessGroup) -> None:
    """UsageError if one of the last losses, which are the same in all processes, is not finite."""
    bad = next((i for i, value in enumerate(losses) if not math.isfinite(value)), None)
    if bad is not None:
        raise group.met_by_all(UsageError(
            f"the loss became {losses[bad]} at step {done - len(losses) + bad + 1}; {ADVICE}, "
            "or find the op with --debug-nan"))


def evaluate(args: argparse.Namespace, data: Data, trainer: Trainer, record: dict[str, Any],
             report: Report, limit: int | None) -> None:
    """Report the validation loss, and save the model if it is the best so far."""
    val, done = validate(trainer.model, data, trainer.group, limit), trainer.done
    per_char = val["nats_per_char"]
    if not math.isfinite(per_char):
        raise trainer.group.met_by_all(UsageError(
            f"the validation loss became {per_char} at step {done}; {ADVICE}"))
    record["history"].append({"step": done, **val})
    report.val = per_token = val["nats_per_token"]
    report.say(f"step {done}: validation {per_char:.4f} nats per character "
               f"({per_token:.4f} per token)")
    report.note(val_loss=per_token, val_nats_per_char=per_char)
    if record["best"] is None or per_char < record["best"]["validation"]["nats_per_char"]:
        record["best"] = {"step": done, "validation": val, "minutes": report.seconds / 60}
        if trainer.group.rank == 0:
            save_best(args, trainer, record, data)


def prepared(args: argparse.Namespace, sources: dict[str, str], group: ProcessGroup, parts: int
             ) -> tuple[Data, Trainer, dict[str, Any]] | None:
    """The data, the trainer and the record of its run; None after --dry-run.

    parts: how many processes share this device's memory. UsageError or MissingError if the
    settings, the data and the weights do not allow a training run.
    """
    data = load_data(args.data)
    check(args, group)
    begin = origin(args, sources, data)
    changes: list[str] = []
    if args.init_from == "resume":
        changes = list(other_settings(args, begin.record, begin.place, len(data.val)))
    needs = footprint(begin.config, args, group.world_size)
    free = mg.backend.get(group.place(args.backend)).backend.free_memory() // parts
    if args.dry_run and group.rank == 0:
        print(table(needs, free))
    check_fits(needs, free, args)
    if args.dry_run:
        return None
    trainer, record = start(args, data, begin, group)
    if trainer.done >= args.max_iters:
        raise UsageError(f"the checkpoint is of step {trainer.done}, and --max-iters is "
                         f"{args.max_iters}; raise --max-iters")
    for line in changes if group.rank == 0 else []:
        warnings.warn(line, stacklevel=2)
    return data, trainer, record


def main(argv: list[str] | None = None) -> int:
    args, sources = settings(argv)
    device = args.backend if args.device is None else f"cupy:{args.device}"
    group = init_process_group(args.distributed, device)
    args.backend = group.together(lambda: backend_of(args))
    where = group.together(lambda: group.place(args.backend))
    part, parts = group.sharing(where)
    ready = group.together(lambda: prepared(args, sources, group, parts))
    if ready is None:
        return 0
    data, trainer, record = ready
    mg.backend.get(where).backend.settle(part, parts)
    with group.watched():
        return trained(args, sources, data, trainer, record)


def trained(args: argparse.Namespace, sources: dict[str, str], data: Data, trainer: Trainer,
            record: dict[str, Any]) -> int:
    """Train, and return the exit code of the command."""
    out, group = Path(args.out_dir), trainer.group

    def take() -> None:
        """Hold the folder, of which another process may have made a run since it was checked."""
        if group.rank == 0:
            resumed = args.init_from == "resume"
            names = [*BEST, METRICS, PICTURE, *snapshot.own(out)]
            held.enter_context(outputs.open_folder(out, snapshot.BY, names, resumed))
            if not resumed:
                check_out(out)

    with contextlib.ExitStack() as held:
        group.together(take)
        return in_folder(args, sources, data, trainer, record)


def in_folder(args: argparse.Namespace, sources: dict[str, str], data: Data, trainer: Trainer,
              record: dict[str, Any]) -> int:
    """Train, in a folder that this process holds, and return the exit code of the command."""
    out, group = Path(args.out_dir), trainer.group
    if group.rank == 0:
        used = {name: value for name, value in vars(args).items() if name != "config"}
        print(as_toml(used, sources), file=sys.stderr)
    state = record.get("state", {})
    report = Report(out, trainer, state.get("seconds", 0.0), state.get("pending"))
    numbers = sum(p.numel() for p in trainer.trained.values())
    processes = f" on {group.world_size} processes" if group.world_size > 1 else ""
    report.say(f"{trainer.model.num_parameters():,} parameters, {numbers:,} of them trained, "
               f"{len(data.train):,} training tokens, {args.max_iters - trainer.done:,} steps of "
               f"{trainer.tokens:,} tokens{processes}, peak {report.peak / 1e9:,.0f} GFLOP/s")
    with Stop() as stop:
        try:
            with detect_anomaly() if args.debug_nan else contextlib.nullcontext():
                run(args, data, trainer, record, report, stop)
        except GraphError as error:                     # of detect_anomaly
            raise GraphError(f"step {trainer.done + 1}: {error}") from None
        except KeyboardInterrupt:
            if group.world_size > 1:                    # the other processes wait for this one
                raise
            stop.told = stop.signal or signal.SIGINT
        finally:
            report.close()
    if stop.told is not None and trainer.done < args.max_iters:
        kept = snapshot.snapshots(out)
        rest = (f"continue from {kept[-1].name} with --init-from resume --out-dir {out}" if kept
                else "no checkpoint was saved")
        if group.rank == 0:
            print(f"gpt2.train: stopped by {signal.Signals(stop.told).name} after step "
                  f"{trainer.done}; {rest}", file=sys.stderr)
        return 128 + stop.told
    best = record["best"]
    if group.rank == 0:
        print(f"best: step {best['step']}, {best['validation']['nats_per_char']:.4f} nats per "
              f"character; saved in {out}")
    return 0


if __name__ == "__main__":
    run_command(main, "gpt2.train")
