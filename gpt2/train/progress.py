"""What a training run tells while it goes on: lines and a bar on stderr, metrics.jsonl, and a picture of both curves."""
from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import minigrad as mg

from ..config import GPT2Config
from ..io.atomic import write_files
from ..io.plots import write_figure
from .trainer import Step, Trainer

METRICS, PICTURE = "metrics.jsonl", "loss.png"
SIZE, SECONDS = 1024, 0.2                               # of the square matrices whose product shows what the machine can do


def flop_per_token(config: GPT2Config, block: int) -> float:
    """Floating-point operations of a training step a token: 6 N + 12 L d T, N without the position table   (size.2).

    6 N as Kaplan et al. 2020 have it, attention as Chowdhery et al. 2022.
    """
    d, n = config.n_embd, config.n_inner or 4 * config.n_embd
    block_parameters = 4 * d * d + 2 * d * n + 9 * d + n
    return 6.0 * (config.vocab_size * d + config.n_layer * block_parameters + 2 * d) + 12.0 * config.n_layer * d * block


def peak_flops(device: str, dtype: str) -> float:
    """What the device makes of large products in this dtype, measured: floating-point operations a second."""
    x = mg.random.normal(0, (SIZE, SIZE), device=device).astype(dtype)
    here, best = mg.backend.get(device).backend, math.inf
    until, repeats = time.perf_counter() + SECONDS, 1
    with mg.no_grad():
        while time.perf_counter() < until:
            here.synchronize()
            started = time.perf_counter()
            for _ in range(repeats):
                x @ x
            here.synchronize()
            took = time.perf_counter() - started
            best = min(best, took / repeats)
            repeats = min(4096, repeats * 2) if took < SECONDS / 20 else repeats       # a wait must not be most of it
    return 2.0 * SIZE**3 / best


class Report:
    """Keeps count of steps since the last line, and of the numbers that were told; of several processes, the first tells them."""

    def __init__(self, out: Path, trainer: Trainer, seconds: float = 0.0, pending: list[float] | None = None) -> None:
        self.out, self.trainer, self.seconds = out, trainer, seconds
        self.pending: list[Any] = list(pending or [])   # losses since the last line, most of them on the device
        self.steps, self.spent = 0, 0.0                 # since the last line
        self.val: float | None = None
        group = trainer.group
        self.peak = sum(group.all_gather_object(peak_flops(trainer.model.where["device"], trainer.model.compute_dtype)))
        self.tells = group.rank == 0
        self.bar = self._bar() if self.tells and sys.stderr is not None and sys.stderr.isatty() else None
        if self.tells:
            self._cut()

    def _bar(self) -> Any:
        from tqdm import tqdm

        return tqdm(total=self.trainer.args.max_iters, initial=self.trainer.done, unit="step", dynamic_ncols=True, leave=False)

    def _cut(self) -> None:
        """Forget what was told of steps that come once more; a line that was cut short is none."""
        path = self.out / METRICS
        if path.exists():
            kept = [line for line in path.read_bytes().splitlines(keepends=True) if _step_of(line) <= self.trainer.done]
            write_files(self.out, {METRICS: b"".join(kept)})

    def say(self, line: str) -> None:
        """A line on stderr, above the bar if there is one."""
        if self.bar is not None:
            self.bar.write(line, file=sys.stderr)
        elif self.tells and sys.stderr is not None:
            sys.stderr.write(line + "\n")
            sys.stderr.flush()

    def note(self, **numbers: Any) -> None:
        """A line of metrics.jsonl."""
        if not self.tells:
            return
        with open(self.out / METRICS, "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": self.trainer.done, **numbers}) + "\n")

    def count(self, step: Step, seconds: float) -> None:
        """A step was taken, in so many seconds."""
        self.pending.append(step.loss)
        self.steps, self.spent, self.seconds = self.steps + 1, self.spent + seconds, self.seconds + seconds
        if self.bar is not None:
            self.bar.update()

    def losses(self) -> list[float]:
        """The losses since the last line, as numbers: means over the processes, which all ask at the same place."""
        waiting = [x for x in self.pending if isinstance(x, mg.Tensor)]
        if waiting:
            self.pending[len(self.pending) - len(waiting):] = self.trainer.group.mean(mg.stack(waiting).tolist())
        return self.pending

    def line(self, step: Step) -> float:
        """Tell of the steps since the last line; their mean loss. The pending losses are forgotten."""
        losses, t = self.losses(), self.trainer
        mean = sum(losses) / len(losses)
        rate = self.steps * t.tokens / max(self.spent, 1e-9)
        share = rate * flop_per_token(t.model.config, t.args.block_size) / self.peak
        val = "" if self.val is None else f"val loss {self.val:.4f}, "
        ms = 1e3 * self.spent / max(self.steps, 1)
        self.say(f"step {t.done}: train loss {mean:.4f}, {val}grad norm {step.norm:.2f}, lr {step.lr:.2e}, {ms:,.1f} ms, "
                 f"{rate:,.0f} tokens/s, {share:.0%} of peak, {self.seconds / 60:.1f} min")
        self.note(train_loss=mean, grad_norm=step.norm if math.isfinite(step.norm) else None, lr=step.lr, ms=ms, tokens_per_second=rate,
                  share_of_peak=share)
        self.pending, self.steps, self.spent = [], 0, 0.0
        return mean

    def close(self) -> None:
        """Take the bar away and draw what metrics.jsonl holds."""
        if self.bar is not None:
            self.bar.close()
        if self.tells and (self.out / METRICS).exists():
            draw(self.out / METRICS, self.out / PICTURE)


def _step_of(line: bytes) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf


def draw(metrics: Path, picture: Path) -> None:
    """The losses and the learning rate of a metrics.jsonl over the steps, as a PNG."""
    from matplotlib.figure import Figure

    told = [json.loads(line) for line in metrics.read_text("utf-8").splitlines()]
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    top, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    for name, label in (("train_loss", "training"), ("val_loss", "validation")):
        points = [(one["step"], one[name]) for one in told if name in one]
        if points:
            top.plot(*zip(*points), label=label, marker="." if len(points) < 40 else None)
    rates = [(one["step"], one["lr"]) for one in told if "lr" in one]
    if rates:
        below.plot(*zip(*rates), color="grey")
    top.set_ylabel("loss, nats per token")
    below.set_ylabel("learning rate")
    below.set_xlabel("step")
    if top.lines:
        top.legend()
    write_figure(figure, picture)
