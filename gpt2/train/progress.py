"""The progress of a training run: lines and a bar on stderr, metrics.jsonl, and a plot."""
from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypedDict

import minigrad as mg

from ..config import training_flop_per_token
from ..errors import MissingError
from ..io.atomic import write_files
from ..io.plots import write_figure
from ..io.records import MB, Count, Wrong, checked, open_file, parsed, read_lines
from .trainer import Step, Trainer

METRICS, PICTURE = "metrics.jsonl", "loss.png"
# size of the square matrices whose product measures the speed of the machine, and for how long
SIZE, SECONDS = 1024, 0.2


LARGEST = 4 << 30                                       # bytes of a metrics.jsonl


class _Numbers(TypedDict, total=False):
    train_loss: float
    val_loss: float
    val_nats_per_char: float
    grad_norm: float | None
    lr: float
    ms: float
    tokens_per_second: float
    share_of_peak: float
    sample: str


class Line(_Numbers):
    """A line of metrics.jsonl."""

    step: Count


def peak_flops(device: str, dtype: str) -> float:
    """Floating-point operations a second that the device reaches in large products, measured."""
    x = mg.random.normal(0, (SIZE, SIZE), device=device).astype(dtype)
    here, best = mg.backend.get(device).backend, math.inf
    until, repeats = time.perf_counter() + SECONDS, 1
    with mg.no_grad():
        while best == math.inf or time.perf_counter() < until:
            here.synchronize()
            started = time.perf_counter()
            for _ in range(repeats):
                x @ x
            here.synchronize()
            took = time.perf_counter() - started
            best = min(best, max(took, 1e-9) / repeats)
            if took < SECONDS / 20:         # more products, so that waiting takes a small part
                repeats = min(4096, repeats * 2)
    return 2.0 * SIZE**3 / best


class Report:
    """Collects the losses and times of steps, and reports them.

    Of several processes, only the first reports. seconds: time that earlier parts of the run took.
    pending: losses that they did not report.
    """

    def __init__(self, out: Path, trainer: Trainer, seconds: float = 0.0,
                 pending: list[float] | None = None) -> None:
        self.out, self.trainer, self.seconds = out, trainer, seconds
        # losses since the last line; those of this run are on the device until `losses` reads them
        self.pending: list[Any] = list(pending or [])
        self.steps, self.spent = 0, 0.0                 # steps and seconds since the last line
        self.val: float | None = None
        group = trainer.group
        peak = peak_flops(trainer.model.where["device"], trainer.model.compute_dtype)
        self.peak = sum(group.all_gather_object(peak))
        self.tells = group.rank == 0
        terminal = sys.stderr is not None and sys.stderr.isatty()
        self.bar = self._bar() if self.tells and terminal else None
        if self.tells:
            self._cut()

    def _bar(self) -> Any:
        from tqdm import tqdm

        return tqdm(total=self.trainer.args.max_iters, initial=self.trainer.done, unit="step",
                    dynamic_ncols=True, leave=False)

    def _cut(self) -> None:
        """Remove incomplete lines from metrics.jsonl, and those of steps that are taken again."""
        path = self.out / METRICS
        if path.exists():
            kept = [line for line, found in lines_of(path) if found["step"] <= self.trainer.done]
            write_files(self.out, {METRICS: b"".join(kept)})

    def say(self, line: str) -> None:
        """Print a line on stderr, above the bar if there is one."""
        if self.bar is not None:
            self.bar.write(line, file=sys.stderr)
        elif self.tells and sys.stderr is not None:
            sys.stderr.write(line + "\n")
            sys.stderr.flush()

    def note(self, **numbers: Any) -> None:
        """Append a line with these numbers to metrics.jsonl."""
        if not self.tells:
            return
        with open(self.out / METRICS, "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": self.trainer.done, **numbers}) + "\n")

    def count(self, step: Step, seconds: float) -> None:
        """Count a step that took so many seconds."""
        self.pending.append(step.loss)
        self.steps += 1
        self.spent += seconds
        self.seconds += seconds
        if self.bar is not None:
            self.bar.update()

    def losses(self) -> list[float]:
        """The losses since the last line, each the mean over the processes; all of them call it."""
        waiting = [x for x in self.pending if isinstance(x, mg.Tensor)]
        if waiting:
            means = self.trainer.group.mean(mg.stack(waiting).tolist())
            self.pending[len(self.pending) - len(waiting):] = means
        return self.pending

    def line(self, step: Step) -> float:
        """Report the steps since the last line, start counting anew, and return their mean loss."""
        losses, t = self.losses(), self.trainer
        mean = sum(losses) / len(losses)
        rate = self.steps * t.tokens / max(self.spent, 1e-9)
        share = rate * training_flop_per_token(t.model.config, t.args.block_size) / self.peak
        val = "" if self.val is None else f"val loss {self.val:.4f}, "
        ms = 1e3 * self.spent / max(self.steps, 1)
        self.say(f"step {t.done}: train loss {mean:.4f}, {val}grad norm {step.norm:.2f}, "
                 f"lr {step.lr:.2e}, {ms:,.1f} ms, {rate:,.0f} tokens/s, {share:.0%} of peak, "
                 f"{self.seconds / 60:.1f} min")
        norm = step.norm if math.isfinite(step.norm) else None
        self.note(train_loss=mean, grad_norm=norm, lr=step.lr, ms=ms, tokens_per_second=rate,
                  share_of_peak=share)
        self.pending, self.steps, self.spent = [], 0, 0.0
        return mean

    def close(self) -> None:
        """Remove the bar, and plot the numbers in metrics.jsonl."""
        if self.bar is not None:
            self.bar.close()
        if self.tells and (self.out / METRICS).exists():
            draw(self.out / METRICS, self.out / PICTURE)


def lines_of(metrics: Path) -> Iterator[tuple[bytes, Line]]:
    """Each whole line of a metrics.jsonl with its end, and what it says.

    A kill or a full disk leaves an incomplete line, which is left out. MissingError if the file
    cannot be read, or is larger than that of any run.
    """
    try:
        with open_file(metrics) as file:
            if (size := os.fstat(file.fileno()).st_size) > LARGEST:
                raise MissingError(f"{metrics} has {size:,} bytes, more than any run writes; "
                                   "move it away")
            for line in read_lines(file, MB):
                with contextlib.suppress(Wrong):
                    yield line.rstrip(b"\n") + b"\n", checked(parsed(line), Line)
    except OSError as error:
        raise MissingError(f"{metrics} cannot be read: {error.strerror or error}") from None


def draw(metrics: Path, picture: Path) -> None:
    """Plot the losses and the learning rate of a metrics.jsonl over the steps, as a PNG."""
    from matplotlib.figure import Figure

    lines: list[dict[str, Any]] = [dict(found) for _, found in lines_of(metrics)]
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    top, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    for name, label in (("train_loss", "training"), ("val_loss", "validation")):
        points = [(line["step"], line[name]) for line in lines if name in line]
        if points:
            top.plot(*zip(*points), label=label, marker="." if len(points) < 40 else None)
    rates = [(line["step"], line["lr"]) for line in lines if "lr" in line]
    if rates:
        below.plot(*zip(*rates), color="grey")
    top.set_ylabel("loss, nats per token")
    below.set_ylabel("learning rate")
    below.set_xlabel("step")
    if top.lines:
        top.legend()
    write_figure(figure, picture)
