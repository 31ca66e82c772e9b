"""Where a port differs: the steps that give something else than ours, each asked with what the port itself has before it.

Every tensor of the port takes the place of ours once ours is computed from those before it (teacher forcing), on the way forward and on
the way back. So a wrong step shows in its own tensor alone, and all that merely follows from it is right. Most ports write no gradients
of activations, but the gradient of a matrix holds them: ∂L/∂W = Xᵀ G, and G is found from it where X has no more rows than columns.
"""
from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from .planting import LINEAR, computed
from .port import ALLOWED
from .suspect import Judge, Suspect, start
from .truth import Entry

MATRICES = {"attn.c_attn": ("ln_1.out", ("attn.q", "attn.k", "attn.v")), **{part: (x, (y,)) for part, (x, y) in LINEAR.items()}}
STREAM = {"attn.c_proj": "resid_mid", "mlp.c_proj": "resid_post"}      # what has the gradient of a branch, too
WIDEST = 1e3                                            # how much of the rounding of ∂L/∂W may become that of G


class Found(NamedTuple):
    """Gradients of points by the parameters of one matrix: by name, and by name their entries."""

    values: dict[str, np.ndarray]
    entries: dict[str, Entry]


def solved(judge: Judge, x: np.ndarray, part: str, layer: int, heads: int) -> Found | None:
    """The gradient of what a matrix gave, from the port's gradients of its weight and its bias. x [B, T, in]: what it was given.

    None where many gradients would do, and where these are no gradients of one and the same.
    """
    names = [f"h.{layer}.{part}.{kind}.grad" for kind in ("weight", "bias")]
    if not set(names) <= set(judge.names):
        return None
    x, (rows, tokens) = x.reshape(-1, x.shape[-1]), x.shape[:2]
    w, b = (judge.theirs(name)[1] for name in names)
    of_w, of_b = (judge.entries[name] for name in names)
    if len(x) > x.shape[1]:
        return None
    u, s, vt = np.linalg.svd(x.T, full_matrices=False)
    if not s[-1] * WIDEST > s[0]:
        return None
    g = (vt.T / s) @ (u.T @ w)                          # [B T, out]
    unit = of_w.unit_rms * math.sqrt(len(w)) / float(s[-1])
    if (np.abs(x.T @ g - w).max() > ALLOWED * of_w.unit or np.abs(g.sum(0) - b).max() > ALLOWED * (of_b.unit + math.sqrt(len(g)) * unit)):
        return None
    points, values = MATRICES[part][1], dict[str, np.ndarray]()
    for point, own in zip(points, np.split(g, len(points), axis=-1)):
        own = own.reshape(rows, tokens, -1)
        values[point] = own.reshape(rows, tokens, heads, -1).swapaxes(1, 2) if len(points) > 1 else own
    if part in STREAM:
        values[STREAM[part]] = values[points[0]]
    values = {f"blocks.{layer}.{point}.grad": a for point, a in values.items()}
    entries = {name: judge.golden.entries[name]._replace(unit=unit, unit_rms=unit) for name in values if name in judge.golden.entries}
    return Found(values, entries) if len(entries) == len(values) else None


class Forced(NamedTuple):
    """The truth beside a port whose own tensors take the place of ours."""

    judge: Judge
    suspect: Suspect

    def left(self) -> list[str]:
        """The names of what is wrong, given what the port has before it."""
        return self.judge.left(self.suspect)


def forced(judge: Judge, model: Any) -> Forced:
    """With all that the port has, and the gradients that those of its matrices hold."""
    own = {name: judge.theirs(name)[1] for name in judge.names}
    best, config, found = with_these(judge, model, own, {}), model.config, dict[str, Found]()
    blocks = [(layer, part) for layer in reversed(range(config.n_layer)) for part in reversed(MATRICES)]
    inputs = computed(best.suspect.run, [f"blocks.{layer}.{MATRICES[part][0]}" for layer, part in blocks])
    for layer, part in blocks:
        name = f"blocks.{layer}.{MATRICES[part][0]}"
        x = own.get(name, inputs[name])
        x = x.swapaxes(1, 2).reshape(*np.array(x.shape)[[0, 2]], -1) if x.ndim == 4 else x
        if made := solved(judge, x, part, layer, config.n_head):
            found[f"{layer}.{part}"] = made
    if not found:
        return best
    # a mistake in the gradient of a parameter alone is none of the way back, so what leaves the fewest wrong is taken
    kept = min(({}, found), key=lambda kept: len(with_these(judge, model, own, kept).left()))
    best = with_these(judge, model, own, kept)
    left = best.left()
    for key, one in found.items():
        if not (set(one.values) if key in kept else {f"h.{key}.weight.grad"}) & set(left):
            continue
        inner = Found({name: a for name, a in one.values.items() if not name.endswith(tuple(f"{x}.grad" for x in STREAM.values()))},
                      one.entries)
        for other in ({**kept, key: one}, {**kept, key: inner}, {k: v for k, v in kept.items() if k != key}):
            tried = with_these(judge, model, own, other)
            if len(rest := tried.left()) < len(left):
                best, left, kept = tried, rest, other
    return best


def with_these(judge: Judge, model: Any, own: Mapping[str, np.ndarray], found: Mapping[str, Found]) -> Forced:
    more = {name: a for one in found.values() for name, a in one.values.items() if name not in own}
    entries = {**judge.entries, **{name: one.entries[name] for one in found.values() for name in one.values if name in more}}
    names = [name for name in judge.golden.entries if name in judge.names or name in more]

    def theirs(name: str) -> tuple[str, np.ndarray]:
        return ("float32", more[name]) if name in more else judge.theirs(name)

    return Forced(judge._replace(names=names, theirs=theirs, entries=entries), start(judge.golden, model, {**own, **more}))


def groups(names: Sequence[str]) -> dict[str, list[str]]:
    """Names by one for those of several blocks, blocks.0, 2.mlp.act, and one for all parameters of a step of AdamW."""
    out = dict[tuple[str, str], list[str]]()
    for name in names:
        parts = name.split(".")
        key = (name, "")
        if parts[0] == "step":
            key = (".".join(parts[:2]), "")
        elif parts[0] in ("blocks", "h"):
            key = (parts[0], ".".join(parts[2:]))
        out.setdefault(key, []).append(name)
    told = dict[str, list[str]]()
    for (head, end), own in out.items():
        layers = ", ".join(sorted((name.split(".")[1] for name in own), key=int)) if end else ""
        several = f"{head} of {len(own)} parameters, such as {own[0].split('.', 2)[-1]}" if len(own) > 1 else own[0]
        told[f"{head}.{layers}.{end}" if end else several] = own
    return told
