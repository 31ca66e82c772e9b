"""python -m gpt2.train: train a GPT-2 on data that `gpt2.prepare` made. Flags as in nanoGPT."""
from __future__ import annotations

import argparse
import contextlib
import json
import math
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

import minigrad as mg

from .cli import PRECISIONS, Parser, add_backend, at_least, backend_of, floats_of, run_command
from .config import GPT2Config
from .errors import UsageError
from .evaluation import total_nll
from .model import GPT2
from .prepare import Data, load_data
from .tokenizer import write_files

WRITTEN = ("config.json", "model.safetensors", "vocab.json", "merges.txt", "training.json")
ADVICE = "lower --learning-rate or raise --warmup-iters"


def parser() -> argparse.ArgumentParser:
    p = Parser(prog="python -m gpt2.train", description=__doc__)
    p.add_argument("--data", required=True, metavar="DIR", help="a directory that gpt2.prepare wrote")
    p.add_argument("--out-dir", required=True, metavar="DIR", help="where the checkpoint goes; must not hold one already")
    p.add_argument("--n-layer", type=at_least(1), default=4)
    p.add_argument("--n-head", type=at_least(1), default=4)
    p.add_argument("--n-embd", type=at_least(1), default=256)
    p.add_argument("--block-size", type=at_least(1), default=128, help="context, in tokens")
    p.add_argument("--dropout", type=float, default=0.0, help="of embeddings and residual branches")
    p.add_argument("--attn-dropout", type=float, default=0.0, help="of attention weights")
    p.add_argument("--batch-size", type=at_least(1), default=16)
    p.add_argument("--max-iters", type=at_least(1), default=2000)
    p.add_argument("--learning-rate", type=float, default=1e-3)
    p.add_argument("--min-lr", type=float, default=None, help="a tenth of --learning-rate when left out")
    p.add_argument("--warmup-iters", type=at_least(0), default=100)
    p.add_argument("--weight-decay", type=float, default=0.1)
    p.add_argument("--beta1", type=float, default=0.9)
    p.add_argument("--beta2", type=float, default=0.99)
    p.add_argument("--grad-clip", type=float, default=1.0, help="largest global norm of the gradient; 0: no clipping")
    p.add_argument("--eval-interval", type=at_least(1), default=500)
    p.add_argument("--log-interval", type=at_least(1), default=50)
    add_backend(p)
    p.add_argument("--dtype", default="float32", choices=PRECISIONS,
                   help="of the computation; weights are float32 (float64) whatever it is. tf32: products of float32 that a GPU may round")
    p.add_argument("--recompute", action="store_true", help="compute each block again on the walk back: less memory, more time")
    p.add_argument("--save-dtype", default="float16", choices=["float16", "float32", "float64"], help="of the stored weights")
    p.add_argument("--seed", type=int, default=0)
    return p


def check(args: argparse.Namespace, data: Data) -> None:
    """UsageError for settings that cannot be trained with, before anything starts."""
    for names, top, wanted in ((("learning_rate", "min_lr", "weight_decay", "grad_clip"), math.inf, "a number from 0 on"),
                               (("dropout", "attn_dropout", "beta1", "beta2"), 1.0, "from 0 on and below 1")):
        for name in names:
            value = getattr(args, name)
            if value is not None and not 0.0 <= value < top:
                raise UsageError(f"--{name.replace('_', '-')} must be {wanted}, not {value}")
    if args.n_embd % args.n_head:
        raise UsageError(f"--n-embd {args.n_embd} is not a multiple of --n-head {args.n_head}")
    args.backend = backend_of(args)
    for split, ids in (("train", data.train), ("val", data.val)):
        if len(ids) <= args.block_size:
            raise UsageError(f"{split} holds {len(ids)} tokens; a block of {args.block_size} needs one more than its size")
    out = Path(args.out_dir)
    if held := [name for name in (*WRITTEN, "tokenizer.json") if (out / name).exists()]:
        raise UsageError(f"--out-dir {out} holds {held[0]} already; choose another")
    made = [folder for folder in (out, *out.parents) if not folder.exists()]
    try:                                                # now, not after hours of training
        out.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=out).close()
    except OSError as error:
        raise UsageError(f"--out-dir {out} cannot be written: {error.strerror}") from None
    finally:
        for folder in made:
            with contextlib.suppress(OSError):
                folder.rmdir()


def batch(ids: Any, size: int, block: int, key: int) -> tuple[Any, Any]:
    """`size` random windows of `block` tokens [B, T] and the tokens that follow each of theirs [B, T]."""
    starts = mg.random.randint(key, (size,), 0, len(ids) - block).numpy()
    rows = np.stack([np.asarray(ids[i:i + block + 1], dtype=np.int64) for i in starts])
    return rows[:, :-1], rows[:, 1:]


def validate(model: GPT2, data: Data) -> dict[str, float]:
    """Loss on the whole validation text: nats per token and per character."""
    model.eval()
    nll, tokens = total_nll(model, data.val)
    model.train()
    return {"nats_per_token": nll / tokens, "nats_per_char": nll / data.meta["val"]["characters"]}


def train(args: argparse.Namespace, data: Data) -> dict[str, Any]:
    """Train, keep the best checkpoint by validation loss in --out-dir, and return the record that is stored beside it."""
    out = sys.stderr
    rate = {"max_lr": args.learning_rate, "min_lr": args.learning_rate / 10 if args.min_lr is None else args.min_lr,
            "warmup_steps": args.warmup_iters, "total_steps": args.max_iters}
    config = GPT2Config(
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
    computed = floats_of(args.dtype)
    model = GPT2(config, backend=args.backend, dtype="float64" if computed == "float64" else "float32", compute_dtype=computed,
                 recompute=args.recompute, seed=args.seed)
    scaler = mg.optim.GradScaler(enabled=args.dtype == "float16")
    model.train()
    mg.backend.get(model.where["device"])[0].settle()
    mg.random.manual_seed(args.seed)
    stream = mg.random.fold_in(mg.random.key(args.seed), 1)
    optimizer = mg.optim.AdamW(mg.optim.decay_groups(model.parameters(), args.weight_decay), lr=args.learning_rate,
                               betas=(args.beta1, args.beta2))
    print(f"{model.num_parameters():,} parameters, {len(data.train):,} training tokens, {args.max_iters:,} steps of "
          f"{args.batch_size}×{args.block_size} tokens", file=out)
    started, best = time.perf_counter(), math.inf
    recent: list[mg.Tensor] = []                        # losses on the device: asking for each would be a wait
    settings = {name: value for name, value in vars(args).items() if name not in ("data", "out_dir")}
    record: dict[str, Any] = {"settings": settings, "data": data.meta, "parameters": model.num_parameters(), "history": []}
    for step in range(args.max_iters):
        lr = mg.optim.warmup_cosine(step, **rate)
        for group in optimizer.param_groups:
            group["lr"] = lr
        loss = model.loss(*batch(data.train, args.batch_size, args.block_size, mg.random.fold_in(stream, step)))
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        norm = mg.optim.clip_grad_norm_(model.parameters(), args.grad_clip or math.inf)
        stepped = scaler.step(optimizer, norm)
        optimizer.zero_grad()
        recent.append(loss.detach())
        done, last = step + 1, step + 1 == args.max_iters
        if done % args.log_interval == 0 or last or (stepped and not math.isfinite(norm)):
            losses = mg.stack(recent).tolist()
            if not math.isfinite(sum(losses)):
                bad = next(i for i, value in enumerate(losses) if not math.isfinite(value))
                raise UsageError(f"the loss became {losses[bad]} at step {done - len(losses) + bad + 1}; {ADVICE}")
            seconds = time.perf_counter() - started
            mean = sum(losses) / len(losses)
            recent = recent[-1:] if last else []
            print(
                f"step {done}: train loss {mean:.4f}, grad norm {norm:.2f}, lr {lr:.2e}, "
                f"{done * args.batch_size * args.block_size / seconds:,.0f} tokens/s, {seconds / 60:.1f} min",
                file=out,
                flush=True,
            )
            record["train_loss"] = mean
        if done % args.eval_interval == 0 or last:
            val = validate(model, data)
            if not math.isfinite(val["nats_per_char"]):
                raise UsageError(f"the validation loss became {val['nats_per_char']} at step {done}; {ADVICE}")
            record["history"].append({"step": done, **val})
            print(f"step {done}: validation {val['nats_per_char']:.4f} nats per character ({val['nats_per_token']:.4f} per token)",
                  file=out, flush=True)
            if val["nats_per_char"] < best:
                best = val["nats_per_char"]
                record.update(step=done, validation=val, minutes=(time.perf_counter() - started) / 60)
                model.save_pretrained(args.out_dir, dtype=args.save_dtype, tokenizer=data.tokenizer)
                write_files(args.out_dir, {"training.json": (json.dumps(record, indent=1) + "\n").encode()})
    return record


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    data = load_data(args.data)
    check(args, data)
    try:
        record = train(args, data)
    except KeyboardInterrupt:
        kept = (Path(args.out_dir) / "config.json").exists()
        where = f"the best checkpoint so far is in {args.out_dir}" if kept else "before the first checkpoint"
        print(f"gpt2.train: interrupted; {where}", file=sys.stderr)
        return 130
    print(f"best: step {record['step']}, {record['validation']['nats_per_char']:.4f} nats per character; saved in {args.out_dir}")
    return 0


if __name__ == "__main__":
    run_command(main, "gpt2.train")
