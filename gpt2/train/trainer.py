"""A step of training, and all that the next one depends on."""
from __future__ import annotations

import argparse
import contextlib
import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

import minigrad as mg
from minigrad.distributed import DataParallel, ProcessGroup

from ..model import GPT2


class Step(NamedTuple):
    """What a step tells: its mean loss (on the device: asking for it is a wait), the gradient's norm before clipping, and the rate."""

    loss: mg.Tensor
    norm: float
    lr: float
    changed: bool                                       # False where a gradient overflowed, and the scale was lowered instead


def batch(ids: Any, size: int, block: int, key: int, rank: int = 0, world_size: int = 1) -> tuple[Any, Any]:
    """`size` random windows of `block` tokens [B, T] and the tokens that follow each of theirs [B, T]; or a process's share of them."""
    starts = mg.random.randint(key, (size,), 0, len(ids) - block).numpy()
    share = size // world_size
    rows = np.stack([np.asarray(ids[i:i + block + 1], dtype=np.int64) for i in starts[rank * share:(rank + 1) * share]])
    return rows[:, :-1], rows[:, 1:]


def rows_of(args: argparse.Namespace, world_size: int) -> int:
    """How many rows of a step are each process's."""
    return int(args.batch_size * args.gradient_accumulation_steps // world_size)


def rate(args: argparse.Namespace, step: int) -> float:
    """The learning rate of the step after `step` others under the settings `args`."""
    least = args.learning_rate / 10 if args.min_lr is None else args.min_lr
    return mg.optim.warmup_cosine(step, max_lr=args.learning_rate, min_lr=least, warmup_steps=args.warmup_iters, total_steps=args.max_iters)


def validated(args: argparse.Namespace) -> int | None:
    """How many tokens of the validation text a loss is of: --eval-iters batches and the one after them; None: all."""
    return None if args.eval_iters is None else args.eval_iters * args.batch_size * args.block_size + 1


class Trainer:
    """A model, AdamW, and batches that a seed and the number of the step decide. args: the settings of `gpt2.train`.

    group: the processes that share each step's rows, in equal parts: the weights after a step do not depend on how many there are, but
    for rounding and the draws of dropout. The state that `state` and `moments` give, taken over by `restore`, makes the next steps the
    same to the last bit.
    """

    def __init__(self, model: GPT2, ids: Any, args: argparse.Namespace, group: ProcessGroup | None = None) -> None:
        self.model, self.ids, self.args, self.done, self.group = model, ids, args, 0, group or ProcessGroup()
        self.trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.optimizer = mg.optim.AdamW(mg.optim.decay_groups(self.trained.values(), args.weight_decay), lr=args.learning_rate,
                                        betas=(args.beta1, args.beta2))
        self.scaler = mg.optim.GradScaler(enabled=args.dtype == "float16")
        self.stream = mg.random.fold_in(mg.random.key(args.seed), 1)
        mg.random.manual_seed(args.seed)
        if self.group.rank:                             # dropout of other rows is drawn from another stream
            mg.random.set_state((mg.random.fold_in(mg.random.fold_in(mg.random.key(args.seed), 2), self.group.rank), 0))
        self.parallel = DataParallel(self.trained.values(), self.group)
        model.train()

    @property
    def tokens(self) -> int:
        """How many tokens a step reads."""
        return int(self.args.batch_size * self.args.gradient_accumulation_steps * self.args.block_size)

    def lr(self) -> float:
        """The learning rate of the next step."""
        return rate(self.args, self.done)

    def step(self) -> Step:
        """Forward and backward over each part of a batch, whose gradients add up   (accumulate.1–2), then one change of the weights."""
        a, lr, losses = self.args, self.lr(), []
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        key = mg.random.fold_in(self.stream, 0 if a.overfit_one_batch else self.done)
        ids, targets = batch(self.ids, a.batch_size * a.gradient_accumulation_steps, a.block_size, key, self.group.rank,
                             self.group.world_size)
        parts = [slice(at, at + a.batch_size) for at in range(0, len(ids), a.batch_size)]
        for part in parts:
            loss = self.model.loss(ids[part], targets[part])
            losses.append(loss.detach())
            with contextlib.nullcontext() if part is parts[-1] else self.parallel.no_sync():
                self.scaler.scale(loss / len(parts) if len(parts) > 1 else loss).backward()
        self.parallel.finish()
        self.scaler.unscale_(self.optimizer)
        norm = mg.optim.clip_grad_norm_(self.trained.values(), a.grad_clip or math.inf)
        changed = self.scaler.step(self.optimizer, norm)
        self.scaler.update()
        self.optimizer.zero_grad()
        self.done += 1
        return Step(losses[0] if len(losses) == 1 else mg.stack(losses).mean(), norm, lr, changed)

    # ── stopped and taken up again ──
    def _states(self) -> Iterator[tuple[str, mg.Tensor, dict[str, Any]]]:
        """Each trained parameter with what AdamW knows of it."""
        names = {id(p): name for name, p in self.trained.items()}
        order = [p for group in self.optimizer.param_groups for p in group["params"]]
        for p in order:
            yield names[id(p)], p, self.optimizer.state.setdefault(p, {"step": 0})

    def moments(self) -> dict[str, np.ndarray]:
        """AdamW's running means by name, "exp_avg.wte.weight" and the like, on the host."""
        return {f"{kind}.{name}": mg.backend.of(state[kind]).host(state[kind]) for name, _, state in self._states()
                for kind in ("exp_avg", "exp_avg_sq") if kind in state}

    def state(self) -> dict[str, Any]:
        """All else, as JSON can hold it."""
        return {"dtype": self.model.where["dtype"], "random": list(mg.random.get_state()),
                "adamw_steps": {name: state["step"] for name, _, state in self._states()},
                "scaler": {"factor": self.scaler.factor, "good": self.scaler.good}}

    def restore(self, done: int, state: Mapping[str, Any], moments: Mapping[str, np.ndarray]) -> None:
        """Go on after step `done` from what `state` and `moments` gave then. KeyError where something of it is missing."""
        self.done = done
        key, count = state["random"]
        mg.random.set_state((mg.random.get_state()[0] if self.group.rank else key, count))
        self.scaler.factor, self.scaler.good = float(state["scaler"]["factor"]), int(state["scaler"]["good"])
        for name, p, mine in self._states():
            mine["step"] = int(state["adamw_steps"][name])
            if mine["step"]:
                mine.update({kind: mg.backend.get(p.device).array(moments[f"{kind}.{name}"]) for kind in ("exp_avg", "exp_avg_sq")})
