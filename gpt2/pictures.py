"""What a wrong tensor looks like by itself: a multiple, transposed, shifted, another one, some places alone, rounded, or with dropout."""
from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np

from .golden import Golden
from .port import ALLOWED, EPS, distance, unit_of
from .suspect import Theirs


def agrees(golden: Golden, name: str, value: np.ndarray, theirs: Theirs, grows: bool = True) -> bool:
    """Whether the port has this value, and not ours, as far as rounding tells: units grow with the numbers, unless these are partly the
    port's own."""
    dtype, array = theirs(name)
    if not np.isfinite(value).all() or value.shape != array.shape:
        return False
    size = float(np.abs(golden.array(name)).max(initial=0.0))
    grown = max(1.0, float(np.abs(value).max(initial=0.0)) / size) if size and grows else 1.0
    return distance(golden.entries[name], value, array, dtype) <= ALLOWED * grown


def pictures(golden: Golden, name: str, theirs: Theirs) -> list[str]:
    """What a wrong tensor looks like by itself, in two lines at most."""
    dtype, b = theirs(name)
    a = golden.array(name)
    found = list(itertools.islice(_pictures(golden, name, a, b, dtype, theirs), 2))
    if found:
        return found
    off, size = (float(np.sqrt(np.square(x).mean())) for x in (b - a, a))
    return [(f"it is off by {100 * off / size:.3g} % in the mean square" if size else "it should be all zero") + _alike(a, b)
            + ", with no pattern that is known here"]


def _pictures(golden: Golden, name: str, a: np.ndarray, b: np.ndarray, dtype: str, theirs: Theirs) -> Iterator[str]:
    """A multiple, transposed, shifted, another one, some places alone, or rounded."""
    if b.size and not b.any():
        yield "it is all zero"
        return
    yield from _factors(golden, name, a, b, theirs)
    apart = np.abs(np.sort(a, axis=None) - np.sort(b, axis=None)).max(initial=0.0)
    if a.size > 8 and apart <= ALLOWED * unit_of(golden.entries[name], dtype)[0] and 1e3 * apart < np.abs(a - b).max():
        yield "it has the right numbers, in another order"
    yield from _dropped(golden, name, a, b, theirs)
    for axes in itertools.permutations(range(a.ndim)):
        if axes != tuple(range(a.ndim)) and a.transpose(axes).shape == a.shape and agrees(golden, name, a.transpose(axes), theirs):
            yield f"its axes are in another order: {list(axes)} of ours"
    for other, entry in golden.entries.items():
        if other != name and entry.shape == list(a.shape) and _near(name, other):
            value = golden.array(other)
            if agrees(golden, name, value, theirs) and distance(golden.entries[name], a, value, dtype) > ALLOWED:
                yield f"it is {other}"
    if a.ndim > 1 and a.shape[-2] > 1:
        for shift in (1, -1):
            rows = slice(1, None) if shift == 1 else slice(None, -1)
            moved = np.where(np.isin(np.arange(a.shape[-2]), np.arange(a.shape[-2])[rows])[:, None], np.roll(a, shift, -2), b)
            if agrees(golden, name, moved, theirs, grows=False):
                yield f"it is shifted by one place, {'later' if shift == 1 else 'earlier'}"
        yield from _places(golden, name, a, b, dtype)
    most, _ = unit_of(golden.entries[name], dtype)
    for kind in ("float16", "bfloat16"):
        if EPS[kind] > EPS[dtype] and _held(b, kind) and (np.abs(b - a) <= 0.5 * EPS[kind] * np.abs(a) + 2.0**-25 + ALLOWED * most).all():
            yield f"it is right but for {kind}'s rounding: is it computed or stored in {kind}?"
            return


def _held(b: np.ndarray, kind: str) -> bool:
    """Whether all numbers are such as float16 or bfloat16 has."""
    with np.errstate(over="ignore"):
        if kind == "float16":
            return np.array_equal(b.astype(np.float16), b)
        narrow = b.astype(np.float32)
    return np.array_equal(narrow, b) and not (narrow.view(np.uint32) & 0xFFFF).any()     # bfloat16 is the upper half of a float32


def _alike(a: np.ndarray, b: np.ndarray) -> str:
    """How much two arrays go together, where they are more than a number."""
    spread = float(a.std() * b.std()) if a.size > 1 else 0.0
    return f", its correlation with ours {float(((a - a.mean()) * (b - b.mean())).mean()) / spread:.3f}" if spread else ""


def _near(name: str, other: str) -> bool:
    """Tensors that may be mistaken for each other: of the same block, or points of another."""
    return other.startswith(name.rpartition(".")[0].rpartition(".")[0]) or name.split(".")[-1] == other.split(".")[-1]


def _factors(golden: Golden, name: str, a: np.ndarray, b: np.ndarray, theirs: Theirs) -> Iterator[str]:
    """A constant factor, by its name where it has one."""
    size = float((a * a).sum())
    factor = float((a * b).sum()) / size if size else 0.0
    if factor == 0.0 or not agrees(golden, name, factor * a, theirs):
        return
    ids = np.array(golden.manifest["ids"])
    config = golden.manifest["config"]
    known = {"2": 2, "the number of tokens": ids.size, "the number of rows": ids.shape[0], "the tokens of a row": ids.shape[1],
             "ln 2": math.log(2), "√(d/h)": math.sqrt(config["n_embd"] / config["n_head"]), "√d": math.sqrt(config["n_embd"]),
             "the number of heads": config["n_head"], "the vocabulary": config["vocab_size"]}
    whole = math.sqrt(sum(e.norm**2 for key, e in golden.entries.items() if key.endswith((".weight.grad", ".bias.grad"))))
    if name.endswith(".grad") and whole:
        known["the norm of all gradients"] = whole
    for what, value in known.items():
        for text, number in ((what, value), (f"1 / {what}", 1 / value)):
            if value != 1 and abs(abs(factor) / number - 1.0) < 1e-4:
                yield f"it is {'minus ' * (factor < 0)}{text} times what it should be ({factor:.6g})" + _why(name, what)
                return
    yield f"it is {factor:.6g} times what it should be" + (": the wrong sign" if abs(factor + 1.0) < 1e-6 else "")


BEFORE = {"resid_mid": ("resid_pre", "attn.out"), "resid_post": ("resid_mid", "mlp.out")}


def _dropped(golden: Golden, name: str, a: np.ndarray, b: np.ndarray, theirs: Theirs) -> Iterator[str]:
    """Dropout: some numbers are 0, and all others 1/(1 − p) times what they should be; of the tensor, or of what was added last."""
    base, end = np.zeros_like(a), name.split(".", 2)[-1]
    if end in ("resid_mid", "resid_post"):
        block = name.rpartition(".")[0]
        before, added = BEFORE[end]
        base, a = golden.array(f"{block}.{before}"), golden.array(f"{block}.{added}")
    gone = np.abs(b - base) <= 1e-5 * np.abs(b).max(initial=0.0)
    there = np.abs(a) > 1e-2 * np.abs(a).max(initial=0.0)
    some, gone = there & ~gone, gone[there]             # what is 0 anyway, such as a masked weight, tells nothing
    if not 0.0 < gone.mean() < 0.95 or some.sum() < 8:
        return
    ratios = (b - base)[some] / a[some]
    middle = float(np.median(ratios))
    if middle > 1.005 and np.abs(ratios - middle).max() < 1e-2 * middle and abs(gone.mean() - (1.0 - 1.0 / middle)) < 0.2:
        yield (f"dropout is on: {100 * gone.mean():.0f} % of the numbers are 0, and the others {middle:.4g} times what they should be, "
               f"1/(1 − p) for p = {1.0 - 1.0 / middle:.2g}; call eval()")


def _why(name: str, what: str) -> str:
    if not name.endswith(".grad"):
        return ""
    return {"the number of tokens": ": the loss is a mean over all tokens, and so are gradients",
            "the number of rows": ": sum or mean over rows",
            "the norm of all gradients": ": are they clipped to a norm of 1?",
            "2": ": is it added twice, or backward run twice without zeroing?"}.get(what, "")


def _places(golden: Golden, name: str, a: np.ndarray, b: np.ndarray, dtype: str) -> Iterator[str]:
    """Which places or rows alone are wrong."""
    most, _ = unit_of(golden.entries[name], dtype)
    wrong = np.abs(b - a) > ALLOWED / 8.0 * most        # and what is said to be right is right without doubt
    for axis, one, many in ((-2, "place", "places"), (0, "row of the batch", "rows of the batch"), (-1, "column", "columns")):
        if a.shape[axis] < 2 or (axis == 0 and a.ndim < 3):
            continue
        hit = np.flatnonzero(wrong.any(tuple(i for i in range(a.ndim) if i != axis % a.ndim)))
        few = 0 < hit.size < a.shape[axis]
        if few and (axis != -1 or (2 * hit.size <= a.shape[axis] and np.ptp(hit) < hit.size)):      # of columns half at most, and together
            yield f"only {many if hit.size > 1 else one} {runs(hit.tolist())} of {a.shape[axis]} {'are' if hit.size > 1 else 'is'} wrong"
            return


def runs(numbers: Sequence[int]) -> str:
    """Rising whole numbers as text: [0, 2, 3, 4, 9] is "0, 2 … 4, 9"."""
    groups = [[n for _, n in group] for _, group in itertools.groupby(enumerate(numbers), lambda pair: pair[1] - pair[0])]
    return ", ".join(str(g[0]) if len(g) == 1 else f"{g[0]}, {g[1]}" if len(g) == 2 else f"{g[0]} … {g[-1]}" for g in groups)
