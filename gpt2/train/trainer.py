"""A training step, and the state that the next step depends on."""
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
    """The result of a step. norm: of the gradient before clipping.

    loss: the mean loss, a Tensor on the device; reading it makes the host wait.
    """

    loss: mg.Tensor
    norm: float
    lr: float
    changed: bool           # False if a gradient overflowed: then the scale was lowered instead


def batch(ids: Any, size: int, block: int, key: int, rank: int = 0, world_size: int = 1
          ) -> tuple[Any, Any]:
    """`size` random windows of `block` tokens [B, T], and the token after each of theirs [B, T].

    rank, world_size: return only the share of process `rank` of `world_size`.
    """
    starts = mg.random.randint(key, (size,), 0, len(ids) - block).numpy()
    share = size // world_size
    rows = np.stack([np.asarray(ids[i:i + block + 1], dtype=np.int64)
                     for i in starts[rank * share:(rank + 1) * share]])             # [B, T + 1]
    return rows[:, :-1], rows[:, 1:]


def rows_of(args: argparse.Namespace, world_size: int) -> int:
    """How many rows of a step each process reads."""
    return int(args.batch_size * args.gradient_accumulation_steps // world_size)


def rate(args: argparse.Namespace, step: int) -> float:
    """The learning rate after `step` steps under the settings `args`."""
    least = args.learning_rate / 10 if args.min_lr is None else args.min_lr
    return mg.optim.warmup_cosine(step, max_lr=args.learning_rate, min_lr=least,
                                  warmup_steps=args.warmup_iters, total_steps=args.max_iters)


def validated(args: argparse.Namespace) -> int | None:
    """How many tokens of the validation text are read; None: all.

    They are --eval-iters batches, and one token more, which is only predicted.
    """
    if args.eval_iters is None:
        return None
    return args.eval_iters * args.batch_size * args.block_size + 1


class Trainer:
    """A model, AdamW, and batches that depend only on the seed and the number of the step.

    args: the settings of `gpt2.train`. group: the processes that share each step's rows in equal
    parts. The weights after a step do not depend on the number of processes, except for rounding
    and the random numbers of dropout. After `restore` with the results of `state` and `moments`,
    the next steps are the same to the last bit.
    """

    def __init__(self, model: GPT2, ids: Any, args: argparse.Namespace,
                 group: ProcessGroup | None = None) -> None:
        self.model, self.ids, self.args, self.done = model, ids, args, 0
        self.group = group or ProcessGroup()
        self.trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.optimizer = mg.optim.AdamW(
            mg.optim.decay_groups(self.trained.values(), args.weight_decay),
            lr=args.learning_rate, betas=(args.beta1, args.beta2))
        self.scaler = mg.optim.GradScaler(enabled=args.dtype == "float16")
        self.stream = mg.random.fold_in(mg.random.key(args.seed), 1)
        mg.random.manual_seed(args.seed)
        if self.group.rank:             # other rows need other random numbers for dropout
            key = mg.random.fold_in(mg.random.key(args.seed), 2)
            mg.random.set_state((mg.random.fold_in(key, self.group.rank), 0))
        self.parallel = DataParallel(self.trained.values(), self.group)
        model.train()

    @property
    def tokens(self) -> int:
        """How many tokens a step reads."""
        a = self.args
        return int(a.batch_size * a.gradient_accumulation_steps * a.block_size)

    def lr(self) -> float:
        """The learning rate of the next step."""
        return rate(self.args, self.done)

    def step(self) -> Step:
        """Run forward and backward for each part of a batch, then change the weights once.

        The gradients of the parts are summed   (accumulate.1–2).
        """
        a, lr, losses = self.args, self.lr(), []
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        key = mg.random.fold_in(self.stream, 0 if a.overfit_one_batch else self.done)
        ids, targets = batch(self.ids, a.batch_size * a.gradient_accumulation_steps, a.block_size,
                             key, self.group.rank, self.group.world_size)           # 2 × [B, T]
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
        mean = losses[0] if len(losses) == 1 else mg.stack(losses).mean()
        return Step(mean, norm, lr, changed)

    # ── saving the state, and resuming from it ──
    def _states(self) -> Iterator[tuple[str, mg.Tensor, dict[str, Any]]]:
        """Each trained parameter with its name and AdamW's state for it."""
        names = {id(p): name for name, p in self.trained.items()}
        order = [p for group in self.optimizer.param_groups for p in group["params"]]
        for p in order:
            yield names[id(p)], p, self.optimizer.state.setdefault(p, {"step": 0})

    def moments(self) -> dict[str, np.ndarray]:
        """AdamW's running means by name, "exp_avg.wte.weight" and the like, on the host."""
        return {f"{kind}.{name}": mg.backend.of(state[kind]).host(state[kind])
                for name, _, state in self._states()
                for kind in ("exp_avg", "exp_avg_sq") if kind in state}

    def state(self) -> dict[str, Any]:
        """The rest of the state, in values that JSON can hold."""
        return {"dtype": self.model.where["dtype"], "random": list(mg.random.get_state()),
                "adamw_steps": {name: state["step"] for name, _, state in self._states()},
                "scaler": {"factor": self.scaler.factor, "good": self.scaler.good}}

    def restore(self, done: int, state: Mapping[str, Any], moments: Mapping[str, np.ndarray]
                ) -> None:
        """Continue after step `done` with the `state` and the `moments` of that time.

        KeyError if a part of them is missing.
        """
        self.done = done
        key, count = state["random"]
        mg.random.set_state((mg.random.get_state()[0] if self.group.rank else key, count))
        self.scaler.factor = float(state["scaler"]["factor"])
        self.scaler.good = int(state["scaler"]["good"])
        for name, p, mine in self._states():
            mine["step"] = int(state["adamw_steps"][name])
            if mine["step"]:
                there = mg.backend.get(p.device)
                mine.update({kind: there.array(moments[f"{kind}.{name}"])
                             for kind in ("exp_avg", "exp_avg_sq")})
