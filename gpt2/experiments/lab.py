"""What the experiments share: the model, the device and the text they are run on, how they judge, and how they train something small."""
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

BETAS, DECAY = (0.9, 0.99), 0.1                         # of every training


class Verdict(NamedTuple):
    """confirmed, contradicted or inconclusive; the claim; and the statistic that says so."""

    verdict: str
    claim: str
    because: str


def verdict(holds: bool | None, claim: str, because: str) -> Verdict:
    """None: the numbers do not tell."""
    return Verdict("inconclusive" if holds is None else "confirmed" if holds else "contradicted", claim, because)


def inside(low: float, high: float, least: float, most: float = math.inf) -> bool | None:
    """Whether a number known to be low … high is in least … most; None where the spread covers an end of it."""
    return True if least <= low and high <= most else False if high < least or low > most else None


@dataclass
class Lab:
    """What the flags say. device: a backend's name. data: a text file, or None for what the model writes itself.

    which: of the weights that weight-histograms looks at, or "all".
    """

    model_name: str = "shakespeare"
    device: str = "numpy"
    data: Path | None = None
    seed: int = 0
    which: str = "all"
    files: dict[str, bytes] = field(default_factory=dict)       # what an experiment writes besides its three

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
        """Ids of --data, or of 64 rows that the model itself writes, from the line's end on, at temperature 1: about 8,000 tokens."""
        if self.data is not None:
            try:
                return np.concatenate([part.ids for part in in_parallel(encode, pieces([self.data]), 1, "encoding", self.tokenizer)])
            except GPT2Error as error:
                raise type(error)(f"--data {error}") from None
        start = self.tokenizer.encode("\n")[-1:]
        rows = self.model.generate([start] * 64, max_new_tokens=min(127, self.model.config.n_positions - 1), seed=self.seed,
                                   eos_token_id=None)
        return np.array([i for row in rows for i in row])

    def blocks(self, n: int, length: int) -> np.ndarray:
        """The first n rows of `length` + 1 tokens of the text."""
        ids = self.text_ids[:n * (length + 1)]
        if len(ids) < length + 1:
            raise MissingError(f"the text has {len(ids)} tokens, and {length + 1} are wanted")
        return ids[:len(ids) // (length + 1) * (length + 1)].reshape(-1, length + 1)

    def apart(self, most: int, length: int) -> tuple[np.ndarray, np.ndarray]:
        """The text to train on, and rows [n, length + 1] that are no part of it: a quarter of the text, and `most` rows at most."""
        size = len(self.text_ids) // (length + 1)
        if size < 2:
            raise MissingError(f"the text has {len(self.text_ids)} tokens, and {2 * (length + 1)} are wanted: some to train on, "
                               "some held out")
        rows = self.blocks(min(most, max(1, size // 4)), length)
        return self.text_ids[rows.size:], rows

    def tensor(self, array: Any, dtype: str = "float32", **options: Any) -> mg.Tensor:
        return mg.tensor(np.asarray(array), dtype=dtype, device=self.device, **options)


class Trained(NamedTuple):
    """What became of a training: the loss of each step, and seconds a step took (median)."""

    losses: list[float]
    seconds: float


def train(model: Any, loss: Callable[[Any, Any], mg.Tensor], ids: np.ndarray, *, steps: int, rows: int, block: int, lr: float = 3e-3,
          seed: int = 0, groups: Any = None) -> Trained:
    """AdamW on random batches of the text, warm-up and cosine, as every model of an experiment is trained.

    groups: what the optimiser is given, else `decay_groups` of the model's parameters.
    """
    import time

    model.train()
    optimizer = mg.optim.AdamW(groups or mg.optim.decay_groups(model.parameters(), DECAY), lr, BETAS)
    losses, took = [], []
    for step in range(steps):
        started = time.perf_counter()
        x, y = batch(ids, rows, block, mg.random.fold_in(mg.random.key(seed), step))
        for group in optimizer.param_groups:
            group["lr"] = mg.optim.warmup_cosine(step, max_lr=lr, min_lr=lr / 10, warmup_steps=max(1, steps // 20), total_steps=steps)
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
    sizes = {"vocab_size": vocab_size, "n_positions": 64, "n_embd": 64, "n_layer": 2, "n_head": 4, "bos_token_id": None,
             "eos_token_id": None}
    return GPT2Config(**{**sizes, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, **fields})


def held_out(loss: Callable[[Any, Any], mg.Tensor], rows: np.ndarray) -> float:
    """The mean loss of rows [n, T + 1], without gradients."""
    with mg.no_grad():
        return float(np.mean([loss(part[:, :-1], part[:, 1:]).item() for part in np.array_split(rows, max(1, len(rows) // 16))]))


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """The least-squares slope of y over x."""
    a, b = np.asarray(x, float), np.asarray(y, float)
    a = a - a.mean()
    return float(a @ (b - b.mean()) / (a @ a))


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and the standard error of it."""
    a = np.asarray(values, float)
    return float(a.mean()), float(a.std(ddof=1) / math.sqrt(a.size)) if a.size > 1 else math.nan
