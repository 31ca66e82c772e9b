"""What a wrong tensor looks like by itself, in a sentence.

It may be a multiple of the right one, transposed, shifted, another tensor, wrong in some positions
only, rounded, or with dropout.
"""
from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from ..golden.__main__ import Golden
from .port import ALLOWED, EPS, distance, rounding, unit_of
from .suspect import Theirs

AXES, HEADS = ("row", "position", "column"), ("row", "head", "position", "column")
MOST, WORK = 4096, 10**8        # indices, and numbers to compare, in the search for moved parts


def agrees(golden: Golden, name: str, value: np.ndarray, theirs: Theirs,
           grows: bool = True) -> bool:
    """True if the port's numbers equal this value within rounding.

    grows: the units grow with the size of the numbers. It is False if the value contains the
    port's own numbers.
    """
    dtype, array = theirs(name)
    if not np.isfinite(value).all() or value.shape != array.shape:
        return False
    size = float(np.abs(golden.array(name)).max(initial=0.0))
    grown = max(1.0, float(np.abs(value).max(initial=0.0)) / size) if size and grows else 1.0
    return distance(golden.entries[name], value, array, dtype) <= ALLOWED * grown


def pictures(golden: Golden, name: str, theirs: Theirs, ours: np.ndarray | None = None,
             known: Mapping[str, np.ndarray] | None = None) -> list[str]:
    """What a wrong tensor looks like beside `ours`, or else beside the truth: one or two sentences.

    known: arrays, by name, that it may be computed from.
    """
    dtype, b = theirs(name)
    a = golden.array(name) if ours is None else ours
    found = list(itertools.islice(_pictures(golden, name, a, b, dtype, theirs, known or {}), 2))
    if found:
        return found
    off, size = (float(np.sqrt(np.square(x).mean())) for x in (b - a, a))
    if not size:
        return ["it should be all zero" + _alike(a, b) + ", with no known pattern"]
    much = f"{100 * off / size:.3g} %" if off < 10.0 * size else f"{off / size:.3g} times"
    return [f"it is off by {much} in the root mean square{_alike(a, b)}, with no known pattern"]


def _pictures(golden: Golden, name: str, a: np.ndarray, b: np.ndarray, dtype: str, theirs: Theirs,
              known: Mapping[str, np.ndarray]) -> Iterator[str]:
    """All sentences that describe the port's array b beside a, the surest first."""
    if b.size and not b.any():
        yield "it is all zero"
        return
    yield from _factors(golden, name, a, b, theirs)
    if a.ndim > 1 and a.shape[-2] > 1:
        for shift in (1, -1):
            rows = slice(1, None) if shift == 1 else slice(None, -1)
            index = np.arange(a.shape[-2])
            moved = np.where(np.isin(index, index[rows])[:, None], np.roll(a, shift, -2), b)
            if agrees(golden, name, moved, theirs, grows=False):
                yield f"it is shifted by one position, {'later' if shift == 1 else 'earlier'}"
        if others := list(_moved(golden, name, a, b, dtype)):
            yield from others
            return
    apart = np.abs(np.sort(a, axis=None) - np.sort(b, axis=None)).max(initial=0.0)
    most, _ = unit_of(golden.entries[name], dtype)
    if a.size > 8 and apart <= ALLOWED * most and 1e3 * apart < np.abs(a - b).max():
        yield "it has the right numbers, in another order"
    yield from _dropped(golden, name, a, b, theirs)
    for axes in itertools.permutations(range(a.ndim)):
        if axes == tuple(range(a.ndim)) or a.transpose(axes).shape != a.shape:
            continue
        if agrees(golden, name, a.transpose(axes), theirs):
            yield f"its axes are in another order: {list(axes)} of ours"
    for other, entry in golden.entries.items():
        if other != name and entry.shape == list(a.shape) and _near(name, other):
            value = golden.array(other)
            apart = distance(golden.entries[name], a, value, dtype)
            if agrees(golden, name, value, theirs) and apart > ALLOWED:
                yield f"it is {other}"
    yield from _with(golden, name, a, b, dtype, known)
    if a.ndim > 1 and a.shape[-2] > 1:
        yield from _places(golden, name, a, b, dtype)
    for kind in ("float16", "bfloat16"):
        near = 0.5 * EPS[kind] * np.abs(a) + 2.0**-25 + ALLOWED * most
        if EPS[kind] > EPS[dtype] and _held(b, kind) and (np.abs(b - a) <= near).all():
            yield f"it is right within {kind}'s rounding: is it computed or stored in {kind}?"
            return


def _held(b: np.ndarray, kind: str) -> bool:
    """Whether float16 or bfloat16 can represent all numbers exactly."""
    with np.errstate(over="ignore"):
        if kind == "float16":
            return np.array_equal(b.astype(np.float16), b)
        narrow = b.astype(np.float32)
    # bfloat16 is the upper half of a float32
    return np.array_equal(narrow, b) and not (narrow.view(np.uint32) & 0xFFFF).any()


def _alike(a: np.ndarray, b: np.ndarray) -> str:
    """The correlation of two arrays as text, if they have more than one number."""
    spread = float(a.std() * b.std()) if a.size > 1 else 0.0
    if not spread:
        return ""
    covariance = float(((a - a.mean()) * (b - b.mean())).mean())
    return f", its correlation with ours is {covariance / spread:.3f}"


def _near(name: str, other: str) -> bool:
    """Whether two tensors may be confused: in the same block, or the same point of two blocks."""
    block = name.rpartition(".")[0].rpartition(".")[0]
    return other.startswith(block) or name.split(".")[-1] == other.split(".")[-1]


def _factors(golden: Golden, name: str, a: np.ndarray, b: np.ndarray,
             theirs: Theirs) -> Iterator[str]:
    """A sentence if the tensor is a constant multiple of ours; a known factor is named."""
    size = float((a * a).sum())
    factor = float((a * b).sum()) / size if size else 0.0
    if factor == 0.0 or not agrees(golden, name, factor * a, theirs):
        return
    ids = np.array(golden.manifest["ids"])
    config = golden.manifest["config"]
    known = {"2": 2, "the number of tokens": ids.size, "the number of rows": ids.shape[0],
             "the tokens of a row": ids.shape[1], "ln 2": math.log(2),
             "√(d/h)": math.sqrt(config["n_embd"] / config["n_head"]),
             "√d": math.sqrt(config["n_embd"]), "the number of heads": config["n_head"],
             "the vocabulary": config["vocab_size"]}
    whole = math.sqrt(sum(e.norm**2 for key, e in golden.entries.items()
                          if key.endswith((".weight.grad", ".bias.grad"))))
    if name.endswith(".grad") and whole:
        known["the norm of all gradients"] = whole
    for what, value in known.items():
        for text, number in ((what, value), (f"1 / {what}", 1 / value)):
            if value != 1 and abs(abs(factor) / number - 1.0) < 1e-4:
                sign = "minus " * (factor < 0)
                yield (f"it is {sign}{text} times what it should be ({factor:.6g})"
                       + _why(name, what))
                return
    if a.size > 1:                                      # each number is a multiple of any other
        sign = ": the wrong sign" if abs(factor + 1.0) < 1e-6 else ""
        yield f"it is {factor:.6g} times what it should be{sign}"


BEFORE = {"resid_mid": ("resid_pre", "attn.out"), "resid_post": ("resid_mid", "mlp.out")}


def _dropped(golden: Golden, name: str, a: np.ndarray, b: np.ndarray,
             theirs: Theirs) -> Iterator[str]:
    """A sentence if some numbers are 0, and all others are 1/(1 − p) times what they should be.

    The numbers are those of the tensor, or of what was added last in the residual stream.
    """
    base, end = np.zeros_like(a), name.split(".", 2)[-1]
    if end in ("resid_mid", "resid_post"):
        block = name.rpartition(".")[0]
        before, added = BEFORE[end]
        base, a = golden.array(f"{block}.{before}"), golden.array(f"{block}.{added}")
    gone = np.abs(b - base) <= 1e-5 * np.abs(b).max(initial=0.0)
    there = np.abs(a) > 1e-2 * np.abs(a).max(initial=0.0)
    some, gone = there & ~gone, gone[there]             # without zeros of ours, as of the mask
    if not 0.0 < gone.mean() < 0.95 or some.sum() < 8:
        return
    ratios = (b - base)[some] / a[some]
    middle = float(np.median(ratios))
    zero = np.abs(b - base) <= 1e-5 * np.abs(b).max(initial=0.0)
    whole = zero.all(axis=-1) if b.ndim > 1 else np.zeros(1, bool)
    even = np.abs(ratios - middle).max() < 1e-2 * middle
    # all numbers of some tokens
    if whole.any() and gone.sum() == np.broadcast_to(whole[..., None], there.shape)[there].sum():
        if even:
            yield (f"it is 0 for {whole.sum()} of {whole.size} tokens, and {middle:.4g} times what "
                   "it should be for the others: are some tokens left out?")
        return
    if middle > 1.005 and even and abs(gone.mean() - (1.0 - 1.0 / middle)) < 0.2:
        yield (f"dropout is on: {100 * gone.mean():.0f} % of the numbers are 0, and the others "
               f"{middle:.4g} times what they should be, 1/(1 − p) for "
               f"p = {1.0 - 1.0 / middle:.2g}; call eval()")


def _why(name: str, what: str) -> str:
    """What may cause this factor of a gradient."""
    if not name.endswith(".grad"):
        return ""
    return {"the number of tokens": ": the loss is a mean over all tokens, and so are gradients",
            "the number of rows": ": sum or mean over rows",
            "the norm of all gradients": ": are they clipped to a norm of 1?",
            "2": ": is it added twice, or backward run twice without zeroing?"}.get(what, "")


def _moved(golden: Golden, name: str, a: np.ndarray, b: np.ndarray, dtype: str) -> Iterator[str]:
    """A sentence if most rows, heads, positions or columns equal ours at other indices."""
    near = rounding(golden.entries[name], a, b, dtype)
    for axis, what in enumerate(AXES[-a.ndim:] if a.ndim < 4 else HEADS):
        n = a.shape[axis]
        if not 1 < n <= MOST or n * a.size > WORK:
            continue
        x, y = (np.moveaxis(z, axis, 0).reshape(n, -1) for z in (a, b))
        if x.shape[1] < 4 or not x.any(axis=1).all():   # they may be equal by chance
            continue
        gaps = np.array([np.abs(x - one).max(axis=1) for one in y])
        came = [int(row.argmin()) if row.min() <= near and (row <= near).sum() == 1 else -1
                for row in gaps]
        sure = [i for i, j in enumerate(came) if j >= 0]
        if 4 * len(sure) < 3 * n or all(came[i] == i for i in sure):
            continue
        steps = {came[i] - i for i in sure}
        if len(steps) == 1:
            sign = "+" if max(steps) > 0 else "−"
            yield f"its {what} i is ours at i {sign} {abs(max(steps))}"
        else:
            indices = ", ".join(str(came[i]) for i in sure[:12]) + " …" * (len(sure) > 12)
            yield f"its {what}s {runs(sure)} are ours at {indices}"
        return


def _with(golden: Golden, name: str, a: np.ndarray, b: np.ndarray, dtype: str,
          known: Mapping[str, np.ndarray]) -> Iterator[str]:
    """A sentence if one of the known arrays is added, left out, multiplied with it, or confused."""
    near = rounding(golden.entries[name], a, b, dtype)
    wrong, fit = np.abs(b - a) > near, dict[str, np.ndarray]()
    few = "" if wrong.mean() > 0.9 else "where it is wrong, "
    if wrong.any() and not b[wrong].any():
        yield f"{few}it is 0"
        return
    for what, x in known.items():
        with contextlib.suppress(ValueError):
            fit[what] = np.broadcast_to(x, a.shape)
    for what, x in fit.items():
        own, gap = x[wrong], (b - a)[wrong]
        if own.size < 8 or np.ptp(own) <= 1e-3 * np.abs(own).max():
            continue
        times = float((own * gap).sum()) / float((own * own).sum())
        often = "" if round(abs(times), 5) == 1.0 else f"{abs(times):.4g} times "
        if x.shape == known[what].shape and np.abs(b - x).max() <= near:
            yield f"it is {what}"
        elif abs(times) > 1e-3 and np.abs(gap - times * own).max() <= near * max(1.0, abs(times)):
            yield f"{few}{'it lacks' if times < 0.0 else 'it has in addition'} {often}{what}"
        elif np.abs((a * x - b)[wrong]).max() <= near * max(1.0, np.abs(own).max()):
            yield f"{few}it is multiplied with {what}"
        elif other := next((other for other, y in fit.items() if x is not y
                            and np.abs(gap - (x - y)[wrong]).max() <= near), None):
            yield f"{few}it has {what} in place of {other}"
        else:
            continue
        return


def _places(golden: Golden, name: str, a: np.ndarray, b: np.ndarray, dtype: str) -> Iterator[str]:
    """A sentence if only some positions, rows or columns are wrong."""
    most, _ = unit_of(golden.entries[name], dtype)
    wrong = np.abs(b - a) > ALLOWED / 8.0 * most        # strict: the others are right without doubt
    rows = np.unique(np.array(golden.manifest["ids"]))
    tokens = np.array_equal(np.flatnonzero(wrong.any(axis=1)), rows) if a.ndim == 2 else False
    if name == "wte.weight.grad" and tokens and 2 * len(rows) < len(a):
        yield ("only the rows of tokens that are in the batch are wrong: "
               "these have the embedding's part of the gradient")
        return
    kinds = ((-2, "position", "positions"), (0, "row of the batch", "rows of the batch"),
             (-1, "column", "columns"))
    for axis, one, many in kinds:
        if a.shape[axis] < 2 or (axis == 0 and a.ndim < 3):
            continue
        others = tuple(i for i in range(a.ndim) if i != axis % a.ndim)
        hit = np.flatnonzero(wrong.any(others))
        there = (a.any(others) | b.any(others)).sum()   # without those that are 0 in both
        few = 0 < hit.size < there
        # half of the columns at most, side by side
        beside = 2 * hit.size <= a.shape[axis] and np.ptp(hit) < hit.size if few else False
        if few and (axis != -1 or beside):
            what, verb = (many, "are") if hit.size > 1 else (one, "is")
            yield f"only {what} {runs(hit.tolist())} of {a.shape[axis]} {verb} wrong"
            return


def runs(numbers: Sequence[int]) -> str:
    """Rising whole numbers as text: [0, 2, 3, 4, 9] is "0, 2 … 4, 9"."""
    out = []
    for _, group in itertools.groupby(enumerate(numbers), lambda pair: pair[1] - pair[0]):
        run = [n for _, n in group]
        out.append(f"{run[0]} … {run[-1]}" if len(run) > 2 else ", ".join(map(str, run)))
    return ", ".join(out)
