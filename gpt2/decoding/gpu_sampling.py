"""Choose the next token on the device that has the logits.

The result is that of `sampling.choose`. If the backend has a kernel for it, nothing waits for the
host.
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from minigrad.backend import Device

from ..errors import MissingError
from .sampling import SamplingOptions, choose


class Chooser:
    """Chooses a token for each of `rows` rows, step after step.

    there: the device of the logits. dtype: the dtype of the logits. vocab: only ids below this
    number are chosen. uniforms: random numbers [steps, rows] in [0, 1), float64. seen: the ids of
    each row so far, for the repetition penalty. All that a call reads is on the device.
    """

    def __init__(self, there: Device, options: SamplingOptions, rows: int, vocab: int,
                 uniforms: np.ndarray, seen: Sequence[Sequence[int]], *,
                 dtype: str = "float32") -> None:
        self.xp, self.vocab = there.backend, vocab
        self.settings = {
            "temperature": 0.0 if options.is_greedy else float(options.temperature),
            "top_k": min(vocab, options.top_k or vocab),
            "top_p": float(options.top_p or 1.0),
            "min_p": float(options.min_p or 0.0),
            "penalty": float(options.repetition_penalty),
        }
        self.uniforms = there.array(uniforms, dtype="float64")
        self.weights = there.empty((rows, vocab), dtype=dtype)
        self.seen = None
        if options.repetition_penalty != 1.0:
            mask = np.zeros((rows, vocab), np.int64)
            for row, ids in zip(mask, seen):
                row[[i for i in ids if i < vocab]] = 1
            self.seen = there.array(mask)

    def __call__(self, logits: Any, ids: Any, step: Any) -> None:
        """Choose a token for each row of logits [rows, V], and write it to ids [rows], int64.

        step [1]: the row of `uniforms` to use. The id is −1 if logits are NaN or infinite.
        """
        self.xp.run("step_choose", _choose, logits, self.uniforms, step, self.seen, self.weights,
                    ids, vocab=self.vocab, **self.settings)


def _choose(xp: Any, logits: Any, uniforms: Any, step: Any, seen: Any, weights: Any, ids: Any, *,
            vocab: int, temperature: float, top_k: int, top_p: float, min_p: float,
            penalty: float) -> None:
    """The definition of the kernel `step_choose`: `sampling.choose` on the host."""
    options = SamplingOptions(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p,
                              repetition_penalty=penalty)
    draws = xp.host(uniforms)[int(xp.host(step)[0])]
    mask = None if seen is None else xp.host(seen)
    for row, x in enumerate(xp.host(logits)[:, :vocab]):
        before: list[list[int]] = [[] if mask is None else np.flatnonzero(mask[row]).tolist()]
        try:
            chosen = int(choose(x[None], options, before, draws[row:row + 1])[0])
        except MissingError:
            chosen = -1
        ids[row] = chosen
        if seen is not None and chosen >= 0:
            seen[row, chosen] = 1
