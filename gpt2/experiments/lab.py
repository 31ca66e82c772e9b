"""What the experiments share: the model, the device, the text, verdicts, and a training loop."""
from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import minigrad as mg

from ..config import GPT2Config
from ..data.corpus import encode, in_parallel, pieces
from ..data.tokenizer import load_tokenizer
from ..errors import GPT2Error, MissingError
from ..model import GPT2
from ..train.trainer import batch
from ..weights.locate import locate

BETAS, DECAY = (0.9, 0.99), 0.1                         # AdamW's, in every training


class Verdict(NamedTuple):
    """A verdict: confirmed, contradicted or inconclusive; the claim; and the numbers behind it."""

    verdict: str
    claim: str
    because: str


def verdict(holds: bool | None, claim: str, because: str) -> Verdict:
    """A verdict on a claim; holds=None: the numbers do not decide it."""
    word = "inconclusive" if holds is None else "confirmed" if holds else "contradicted"
    return Verdict(word, claim, because)


def inside(low: float, high: float, least: float, most: float = math.inf) -> bool | None:
    """Whether a number, known to be in low … high, is in least … most; None if it may be either."""
    if least <= low and high <= most:
        return True
    return False if high < least or low > most else None


@dataclass
class Lab:
    """The settings from the flags, with the model and the text.

    device: a backend's name. data: a text file, or None for text that the model generates. which:
    the weights that weight-histograms measures, or "all".
    """

    model_name: str = "shakespeare"
    device: str = "numpy"
    data: Path | None = None
    seed: int = 0
    which: str = "all"
    files: dict[str, bytes] = field(default_factory=dict)       # an experiment's other files

    @cached_property
    def path(self) -> Path:
        return locate(self.model_name)

    @cached_property
    def model(self) -> GPT2:
        return GPT2.from_pretrained(self.path, backend=self.device)

    @cached_property
    def tokenizer(self) -> Any:
        return load_tokenizer(self.path.parent if self.path.is_file() else self.path)

    @cached_property
    def text_ids(self) -> np.ndarray:
        """The ids of --data, or of 64 rows, about 8,000 tokens, that the model generates.

        It generates them after an end of line, at temperature 1.
        """
        if self.data is not None:
            try:
                parts = in_parallel(encode, pieces([self.data]), 1, "encoding", self.tokenizer)
                return np.concatenate([part.ids for part in parts])
            except GPT2Error as error:
                raise type(error)(f"--data {error}") from None
        start = self.tokenizer.encode("\n")[-1:]
        rows = self.model.generate([start] * 64, seed=self.seed, eos_token_id=None,
                                   max_new_tokens=min(127, self.model.config.n_positions - 1))
        return np.array([i for row in rows for i in row])

    def blocks(self, n: int, length: int) -> np.ndarray:
        """The first n rows of `length` + 1 tokens of the text."""
        ids = self.text_ids[:n * (length + 1)]
        if len(ids) < length + 1:
            raise MissingError(f"the text has {len(ids)} tokens; {length + 1} are needed")
        return ids[:len(ids) // (length + 1) * (length + 1)].reshape(-1, length + 1)

    def apart(self, most: int, length: int) -> tuple[np.ndarray, np.ndarray]:
        """The ids to train on, and held-out rows [n, length + 1].

        A quarter of the text is held out, but at most `most` rows.
        """
        size = len(self.text_ids) // (length + 1)
        if size < 2:
            raise MissingError(f"the text has {len(self.text_ids)} tokens; {2 * (length + 1)} are "
                               "needed, to train on and to hold out")
        rows = self.blocks(min(most, max(1, size // 4)), length)
        return self.text_ids[rows.size:], rows

    def tensor(self, array: Any, dtype: str = "float32", **options: Any) -> mg.Tensor:
        return mg.tensor(np.asarray(array), dtype=dtype, device=self.device, **options)


class Trained(NamedTuple):
    """The result of a training: the loss of each step, and the median time of a step in seconds."""

    losses: list[float]
    seconds: float


def train(model: Any, loss: Callable[[Any, Any], mg.Tensor], ids: np.ndarray, *, steps: int,
          rows: int, block: int, lr: float = 3e-3, seed: int = 0, groups: Any = None) -> Trained:
    """Train with AdamW on random batches of the text, with warm-up and a cosine schedule.

    groups: parameter groups for AdamW; by default `decay_groups` of the model's parameters.
    """
    import time

    model.train()
    groups = groups or mg.optim.decay_groups(model.parameters(), DECAY)
    optimizer = mg.optim.AdamW(groups, lr, BETAS)
    losses, took = [], []
    for step in range(steps):
        started = time.perf_counter()
        x, y = batch(ids, rows, block, mg.random.fold_in(mg.random.key(seed), step))
        for group in optimizer.param_groups:
            group["lr"] = mg.optim.warmup_cosine(step, max_lr=lr, min_lr=lr / 10, total_steps=steps,
                                                 warmup_steps=max(1, steps // 20))
        optimizer.zero_grad()
        value = loss(x, y)
        value.backward()
        mg.optim.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(value.item())
        took.append(time.perf_counter() - started)
    model.eval()
    return Trained(losses, float(np.median(took)))


def small_config(vocab_size: int, **fields: Any) -> GPT2Config:
    """A GPT-2 that trains in seconds: 2 layers, 4 heads, width 64, context 64, no dropout."""
    sizes = {"vocab_size": vocab_size, "n_positions": 64, "n_embd": 64, "n_layer": 2, "n_head": 4,
             "bos_token_id": None, "eos_token_id": None}
    dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    return GPT2Config(**{**sizes, **dropout, **fields})


def held_out(loss: Callable[[Any, Any], mg.Tensor], rows: np.ndarray) -> float:
    """The mean loss of rows [n, T + 1], without gradients."""
    parts = np.array_split(rows, max(1, len(rows) // 16))
    with mg.no_grad():
        return float(np.mean([loss(part[:, :-1], part[:, 1:]).item() for part in parts]))


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """The least-squares slope of y over x."""
    a, b = np.asarray(x, float), np.asarray(y, float)
    a = a - a.mean()
    return float(a @ (b - b.mean()) / (a @ a))


def spread(values: Sequence[float]) -> tuple[float, float]:
    """The mean, and its standard error."""
    a = np.asarray(values, float)
    return float(a.mean()), float(a.std(ddof=1) / math.sqrt(a.size)) if a.size > 1 else math.nan
