"""The first tokens that a device generates, and their logits, beside NumPy's.

NumPy computes in the same dtype, and a model on NumPy itself is compared with its unfused
definitions. A logit may be off by what is allowed of a port, 32 units, where a unit is the error of
our own float32 run against float64 (tolerance.7–8): they leave room for sums in another order. In
16 bits every stored number is rounded, whatever the order of sums. How much that is, the error of
NumPy's runs in 16 bits shows. Two such runs are √2 of it apart if their roundings are independent;
4 of it are allowed, as the largest of many numbers varies.
"""
from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

import minigrad as mg

from ..decoding.decode import logits_of
from ..decoding.sampling import SamplingOptions, choose, process_logits
from ..errors import UsageError
from ..golden.truth import entry, longest_sum
from .port import ALLOWED, EPS, unit_of

TOKENS = 8                                              # of each sample
APART = 4.0                                             # times the error of a run in 16 bits
HALVES = ("float16", "bfloat16")


class Checked(NamedTuple):
    """What a comparison found.

    against: "NumPy's", or "those of the unfused definitions". tokens: how many of each sample.
    largest: the largest difference of two logits, and allowed: how large it may be. ties: tokens
    that NumPy would have chosen otherwise, where rounding decides. wrong: what is wrong, or "".
    """

    against: str
    tokens: int
    largest: float
    allowed: float
    ties: Sequence[str] = ()
    wrong: str = ""

    def __str__(self) -> str:
        return self.wrong or "; ".join((
            f"the first {self.tokens} tokens and their logits are {self.against}",
            f"the largest difference is {self.largest:.2g}, rounding allows {self.allowed:.2g}",
            *self.ties))

    def as_json(self) -> dict[str, Any]:
        """The fields as plain data; a difference that is not finite is None."""
        return {**self._asdict(), "largest": self.largest if np.isfinite(self.largest) else None}


def check_generation(model: Any, prompt: Sequence[int], samples: Sequence[Sequence[int]],
                     options: SamplingOptions, seed: int, *, vocab: int | None = None,
                     passes: int = 1, lookup: int = 0) -> Checked:
    """Compare the first tokens of samples of one prompt, and their logits, with NumPy's.

    samples: the new tokens of each, which were drawn with these options and this seed, in `passes`
    passes after the first, with `lookup`, and below `vocab`. Without samples only logits are
    compared, of the tokens that NumPy finds most likely. The model reads as it generates, with the
    KV cache, and NumPy reads all in one pass. UsageError if the prompt fills the context, or if
    NumPy's numbers overflow the dtype.
    """
    room = model.config.n_positions + 1 - len(prompt)
    if room < 1:
        raise UsageError(f"--check needs a prompt that fits the context of "
                         f"{model.config.n_positions}, and this one has {len(prompt)} tokens")
    dtype, on_numpy = model.compute_dtype, model.where["device"] == "numpy"
    arrays = {name: p.numpy() for name, p in model.named_parameters()}

    def on_the_host(compute: str, explicit: bool = False) -> Any:
        return type(model)(model.config, dtype=model.where["dtype"], compute_dtype=compute,
                           explicit=explicit, parameters=arrays)

    plain = on_the_host(dtype, explicit=on_numpy)
    n = min(TOKENS, room, *map(len, samples))
    new = [list(row[:n]) for row in samples] or [
        plain.generate(list(prompt), n, greedy=True, eos_token_id=None)[0][len(prompt):]]

    def logits(of: Any) -> np.ndarray:                  # [B, n, V]
        with mg.no_grad(), np.errstate(all="ignore"):   # an overflow is seen in the numbers
            return of([[*prompt, *row[:-1]] for row in new], last=n).numpy().astype(np.float64)

    found = logits_of(model, prompt, new, passes=passes, lookup=lookup).astype(np.float64)
    wanted, wide = logits(plain), logits(on_the_host("float64", explicit=True))
    if not np.isfinite(wanted).all():
        raise UsageError(f"--check: NumPy's logits are not finite in {dtype}; choose another "
                         "--dtype")
    allowed = _allowed(lambda kind: logits(on_the_host(kind)), wanted, wide, dtype,
                       longest_sum("logits", model.config, np.empty((len(new), room))),
                       mg.get_float32_matmul_precision() == "high" and not on_numpy)
    gap = np.abs(found - wanted)
    checked = Checked("those of the unfused definitions" if on_numpy else "NumPy's", n,
                      float(gap.max()), allowed)
    if (far := np.argwhere(~(gap <= allowed))).size:    # NaN is apart from everything
        b, i, v = map(int, far[0])
        return checked._replace(wrong=(
            f"the logits are not {checked.against}: before new token {i + 1} that of id {v} is "
            f"{found[b, i, v]:.6g}, not {wanted[b, i, v]:.6g}, and rounding allows {allowed:.2g}"))
    if not samples:
        return checked
    return _with_tokens(checked, wanted, prompt, new, options, seed, vocab)


def _allowed(logits: Callable[[str], np.ndarray], wanted: np.ndarray, wide: np.ndarray, dtype: str,
             longest: int, tf32: bool) -> float:
    """How far a logit may be from NumPy's in this dtype.

    logits(dtype): those of NumPy in another dtype. Both dtypes of 16 bits are runs of their own, so
    the error of each, in proportion to its eps, tells of the other: a model in which roundings grow
    shows it in one of them. TF32 rounds the factors of products to 11 bits, as float16 does with
    all numbers. A run that overflows tells nothing.
    """
    single = wanted if dtype == "float32" else logits("float32")
    unit = entry("logits", "linear.1", wide, single, "float64", longest)
    allowed = ALLOWED * unit_of(unit, "float64" if dtype == "float64" else "float32")[0]
    half = "float16" if dtype == "float32" and tf32 else dtype
    if half not in HALVES:
        return allowed
    errors = []
    for kind in HALVES:
        with contextlib.suppress(UsageError):           # bfloat16 needs a package of its own
            run = wanted if kind == dtype else logits(kind)
            errors.append(EPS[half] / EPS[kind] * float(np.abs(run - wide).max()))
    return allowed + APART * max(filter(np.isfinite, errors), default=0.0)


def _with_tokens(checked: Checked, wanted: np.ndarray, prompt: Sequence[int],
                 new: list[list[int]], options: SamplingOptions, seed: int,
                 vocab: int | None) -> Checked:
    """The comparison of new tokens [B, n] with those that NumPy chooses before the same ids."""
    draw, ties = np.random.Generator(np.random.PCG64(seed)), []
    for i in range(checked.tokens):
        for b, uniform in enumerate(draw.random((len(new), 1))):
            x, seen, token = wanted[b, i, None, :vocab], [[*prompt, *new[b][:i]]], new[b][i]
            if token == (ours := int(choose(x, options, seen, uniform)[0])):
                continue
            what = (f"new token {i + 1}" + (f" of sample {b + 1}" if len(new) > 1 else "")
                    + f" is {token}, and NumPy chooses {ours}: ")
            if not _tie(x, token, checked.allowed, options, seen, uniform):
                return checked._replace(wrong=what + "no tie that rounding decides")
            ties.append(what + "a tie that rounding decides")
    return checked._replace(ties=ties)


def _tie(x: np.ndarray, token: int, room: float, options: SamplingOptions,
         seen: Sequence[Sequence[int]], uniform: np.ndarray) -> bool:
    """Whether logits within `room` of x [1, V] choose `token`.

    Its own may rise while all others fall, and the filters must then keep it. If the logits before
    it fall and the others rise, its part of the cumulative sum begins as early as it can. If those
    up to it rise and the others fall, it ends as late as it can. It moves continuously from the one
    place to the other, so it comes past the number that was drawn unless that lies before or behind
    both.
    """
    ids = np.arange(x.shape[-1])
    own, early, late = (x + np.where(rise, room, -room)
                        for rise in (ids == token, ids >= token, ids <= token))
    kept = np.isfinite(process_logits(own, options, seen)[0, token])
    return bool(kept and choose(late, options, seen, uniform)[0] <= token
                <= choose(early, options, seen, uniform)[0])
