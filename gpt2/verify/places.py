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

from ..golden.truth import Entry
from ..hooks import BLOCK
from .planting import LINEAR, Run, computed
from .port import ALLOWED
from .suspect import Judge, Reading, Suspect, start

MATRICES = {"attn.c_attn": ("ln_1.out", ("attn.q", "attn.k", "attn.v")), **{part: (x, (y,)) for part, (x, y) in LINEAR.items()}}
BACK = ("resid_post", "mlp.out", "mlp.c_proj.weight", "mlp.c_proj.bias", "mlp.act", "mlp.pre", "mlp.c_fc.weight", "mlp.c_fc.bias",
        "ln_2.out", "ln_2.weight", "ln_2.bias", "resid_mid", "attn.out", "attn.c_proj.weight", "attn.c_proj.bias", "attn.z", "attn.v",
        "attn.pattern", "attn.scores", "attn.k", "attn.q", "attn.c_attn.weight", "attn.c_attn.bias", "ln_1.out", "ln_1.weight",
        "ln_1.bias", "resid_pre")
STREAM = {"attn.c_proj": "resid_mid", "mlp.c_proj": "resid_post"}      # what has the gradient of a branch, too
MOST = 8                                                # tensors that may be written wrongly
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
    grown = max(1.0, *(float(np.abs(a).max() / max(np.abs(judge.golden.array(name)).max(), 1e-300)) for name, a in zip(names, (w, b))))
    unit = of_w.unit_rms * math.sqrt(len(w)) / float(s[-1])
    allowed = ALLOWED * grown
    if np.abs(x.T @ g - w).max() > allowed * of_w.unit or np.abs(g.sum(0) - b).max() > allowed * (of_b.unit + math.sqrt(len(g)) * unit):
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
    """The truth beside a port whose own tensors take the place of ours. unread: all but these, after which all is right as ours is."""

    judge: Judge
    suspect: Suspect
    unread: frozenset[str] = frozenset()

    def left(self) -> list[str]:
        """The names of what is wrong, given what the port has before it."""
        return self.judge.left(self.suspect)


def forced(judge: Judge, model: Any) -> Forced:
    """With all that the port has, and the gradients that those of its matrices hold."""
    own = Reading(judge.names, judge.theirs)
    found = in_matrices(judge, own, with_these(judge, model, own, {}).suspect.run)
    ways = [False]
    if any(np.triu(own[name], 1).any() for name in own if name.endswith("attn.pattern")):
        ways = [False, True]                            # without a mask a softmax's rule goes through all keys, or leaves some out
    return without_unread(min((_fewest(judge, model, own, found, whole) for whole in ways), key=lambda one: len(one.left())))


def without_unread(given: Forced) -> Forced:
    """A tensor that nothing is computed from, for it is only written wrongly, is not forced: then what comes after it is right."""
    left, points = given.left(), given.suspect.run.model.points()
    for name in [name for name in left if name in points][:MOST]:
        run = given.suspect.run
        others = run._replace(forced=Reading([x for x in run.forced if x != name], given.judge.theirs))
        tried = given._replace(suspect=given.suspect._replace(run=others, kept={}), unread=given.unread | {name})
        if len(rest := tried.left()) < len(left):
            given, left = tried, rest
    return given


def in_matrices(judge: Judge, own: Mapping[str, np.ndarray], run: Run) -> dict[str, Found]:
    """What the gradients of each matrix hold, by the number of its block and its name; own: what the port has, run: by which ours is."""
    config, out = run.model.config, dict[str, Found]()
    blocks = [(layer, part) for layer in reversed(range(config.n_layer)) for part in reversed(MATRICES)]
    inputs = computed(run, [f"blocks.{layer}.{MATRICES[part][0]}" for layer, part in blocks])
    for layer, part in blocks:
        name = f"blocks.{layer}.{MATRICES[part][0]}"
        x = own.get(name, inputs[name])
        x = x.swapaxes(1, 2).reshape(*np.array(x.shape)[[0, 2]], -1) if x.ndim == 4 else x
        if made := solved(judge, x, part, layer, config.n_head):
            out[f"{layer}.{part}"] = made
    return out


def _fewest(judge: Judge, model: Any, own: Mapping[str, np.ndarray], found: Mapping[str, Found], whole: bool) -> Forced:
    """With those of the gradients found by which the fewest names are wrong: a mistake in the gradient of a parameter alone is none of
    the way back.
    """
    kept = min(({}, found), key=lambda kept: len(with_these(judge, model, own, kept, whole).left()))
    best = with_these(judge, model, own, kept, whole)
    left = best.left()
    for key, one in found.items():
        if not (set(one.values) if key in kept else {f"h.{key}.weight.grad"}) & set(left):
            continue
        inner = Found({name: a for name, a in one.values.items() if not name.endswith(tuple(f"{x}.grad" for x in STREAM.values()))},
                      one.entries)
        for other in ({**kept, key: one}, {**kept, key: inner}, {k: v for k, v in kept.items() if k != key}):
            tried = with_these(judge, model, own, other, whole)
            if len(rest := tried.left()) < len(left):
                best, left, kept = tried, rest, other
    return best


def with_these(judge: Judge, model: Any, own: Mapping[str, np.ndarray], found: Mapping[str, Found], whole: bool = False) -> Forced:
    """With what the port has, and these gradients beside it; whole: as `Run` has it."""
    more = {name: a for one in found.values() for name, a in one.values.items() if name not in own}
    entries = {**judge.entries, **{name: one.entries[name] for one in found.values() for name in one.values if name in more}}
    names = [name for name in judge.golden.entries if name in judge.names or name in more]

    def theirs(name: str) -> tuple[str, np.ndarray]:
        return ("float32", more[name]) if name in more else judge.theirs(name)

    return Forced(judge._replace(names=names, theirs=theirs, entries=entries), start(judge.golden, model, Reading(names, theirs), whole))


class Place(NamedTuple):
    """Wrong steps that are one place to look at. where: their names in few words; origin: what of the port's they are computed from."""

    where: str
    names: list[str]
    origin: str | None


def places(wrong: Sequence[str], given: Sequence[str]) -> list[Place]:
    """The places of these names; given: all names that the port has.

    The same step in several blocks is one place, blocks.0, 2.mlp.act. The gradient of a parameter is at the place of one before it that is
    computed from the same gradient of the port's, for the port has none between them.
    """
    kinds, out = groups(wrong), list[list[str]]()
    n = 1 + max([int(name.split(".")[1]) for name in given if name.startswith(("blocks.", "h."))], default=0)
    starts = {where: origin(names[-1], given, n) for where, names in kinds.items()}
    if "loss" in starts.values() and "wte.weight.grad" in starts:       # the head's part of a tied table
        starts["wte.weight.grad"] = "loss"

    def layers(where: str) -> list[str]:
        return [name.split(".")[1] for name in kinds[where] if name.startswith(("blocks.", "h."))]

    for where in kinds:
        leaf = where.endswith((".weight.grad", ".bias.grad"))
        mates = [group for group in out if leaf and starts[group[0]] == starts[where]
                 and (layers(group[0]) == layers(where) or not (layers(where) and layers(group[0])))]
        if mates:
            mates[0].append(where)
        else:
            out.append([where])
    return [Place(", ".join(group), [name for where in group for name in kinds[where]], beside(kinds[group[0]][-1], starts[group[0]]))
            for group in out]


def beside(name: str, start: str | None) -> str | None:
    """What is computed from `start`, as it is said of `name`: without the number of a block that is the same."""
    if start is None or not start.startswith("blocks.") or not name.startswith(("blocks.", "h.")):
        return "the loss" if start == "loss" else start
    _, block, end = start.split(".", 2)
    apart = int(block) - int(name.split(".")[1])
    return end if apart == 0 else f"{end} of the block after it" if apart == 1 else start


def origin(name: str, given: Sequence[str], n: int) -> str | None:
    """The port's gradient that is the last one before a gradient; "loss" where there is none before it. None for what is no gradient."""
    if not name.endswith(".grad"):
        return None
    order, inner = backward_positions(n), ("attn.v", "attn.pattern", "attn.scores", "attn.k", "attn.q")
    here = order[name.removesuffix(".grad")]
    before = {order[x]: x for x in (y.removesuffix(".grad") for y in given if y.endswith(".grad"))
              if order.get(x, here) < here and not x.endswith((".weight", ".bias"))
              and not (x.endswith(inner) and name.removesuffix(".grad").endswith(inner))}
    return f"{before[max(before)]}.grad" if before else "loss"


def groups(names: Sequence[str]) -> dict[str, list[str]]:
    """Names by one for those of several blocks, blocks.0, 2.mlp.act, and one for all parameters of a step of AdamW."""
    out = dict[tuple[str, str], list[str]]()
    for name in names:
        parts = name.split(".")
        key = (name, "")
        if parts[0] == "step" and parts[2] != "loss":
            key = (".".join(parts[:2]), "")
        elif parts[0] in ("blocks", "h"):
            key = (parts[0], ".".join(parts[2:]))
        out.setdefault(key, []).append(name)
    told = dict[str, list[str]]()
    for (head, end), own in out.items():
        layers = ", ".join(sorted((name.split(".")[1] for name in own), key=int)) if end else ""
        told[f"{head}.{layers}.{end}" if end else own[0] if head == own[0] else _of_step(head, own)] = own
    return told


def _of_step(step: str, names: list[str]) -> str:
    """The parameters that are wrong after a step of AdamW; of a later one its gradients may be, too."""
    own = [name.split(".", 2)[2] for name in names]
    blocks = sorted({int(name.split(".")[1]) for name in own if name.startswith("h.")})
    several = f"{len(own)} parameters, such as {own[0]}" if len(own) > 1 else own[0]
    if len(own) > 1 and all(name.startswith("h.") for name in own):
        several += f", all in block{'s' * (len(blocks) > 1)} {', '.join(map(str, blocks))}"
    return f"{step}: {several}{'' if step == 'step.1' else ' (the gradients of this step, or AdamW)'}"


def qualified(at: str, layer: int, back: bool) -> str:
    """The whole name of a point, or a parameter, in this block."""
    if back and at in BACK:
        return f"h.{layer}.{at}" if at.endswith((".weight", ".bias")) else f"blocks.{layer}.{at}"
    return f"blocks.{layer}.{at}" if at in BLOCK else at


def backward_positions(n: int) -> dict[str, int]:
    """Where on the way back each gradient is done."""
    names = ["loss", "logits", "lm_head.weight", "ln_f.out", "ln_f.weight", "ln_f.bias"]
    names += [qualified(at, i, True) for i in reversed(range(n)) for at in BACK]
    return {name: i for i, name in enumerate([*names, "pos_embed", "wpe.weight", "embed", "wte.weight"])}
