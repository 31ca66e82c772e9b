"""Where a port differs: the steps that are wrong when computed from the port's earlier values.

Each tensor of ours is computed from the port's earlier tensors, and is then replaced by the port's
(teacher forcing), in the forward pass and in the backward pass. So a wrong step shows in its own
tensor alone, and a tensor that is wrong only because of an earlier one counts as right.

Most ports write no gradients of activations, but the gradient of a matrix determines them:
∂L/∂W = Xᵀ G can be solved for G if X has no more rows than columns.
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

# a matrix's input, and its outputs
MATRICES = {"attn.c_attn": ("ln_1.out", ("attn.q", "attn.k", "attn.v")),
            **{part: (x, (y,)) for part, (x, y) in LINEAR.items()}}
# points and parameters of a block, in the order of the backward pass
BACK = (
    "resid_post", "mlp.out", "mlp.c_proj.weight", "mlp.c_proj.bias", "mlp.act", "mlp.pre",
    "mlp.c_fc.weight", "mlp.c_fc.bias", "ln_2.out", "ln_2.weight", "ln_2.bias",
    "resid_mid", "attn.out", "attn.c_proj.weight", "attn.c_proj.bias", "attn.z", "attn.v",
    "attn.pattern", "attn.scores", "attn.k", "attn.q", "attn.c_attn.weight", "attn.c_attn.bias",
    "ln_1.out", "ln_1.weight", "ln_1.bias", "resid_pre",
)
# a branch's output matrix, and the point of the residual stream with the same gradient
STREAM = {"attn.c_proj": "resid_mid", "mlp.c_proj": "resid_post"}
MOST = 8                        # tensors that are tried as wrong only in the port's file, at most
WIDEST = 1e3                    # largest factor by which rounding may grow from ∂L/∂W to G


class Found(NamedTuple):
    """Gradients of points, solved from the gradients of one matrix: values and entries by name."""

    values: dict[str, np.ndarray]
    entries: dict[str, Entry]


def solved(judge: Judge, x: np.ndarray, part: str, layer: int, heads: int) -> Found | None:
    """The gradient G of a matrix's output, from the port's gradients of its weight and bias.

    x [B, T, in]: the matrix's input. None if the equations have many solutions, and if the two
    gradients do not fit the same G.
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
    sizes = [float(np.abs(a).max() / max(np.abs(judge.golden.array(name)).max(), 1e-300))
             for name, a in zip(names, (w, b))]         # relative to the truth's
    unit = of_w.unit_rms * math.sqrt(len(w)) / float(s[-1])
    allowed = ALLOWED * max(1.0, *sizes)
    if np.abs(x.T @ g - w).max() > allowed * of_w.unit:
        return None
    if np.abs(g.sum(0) - b).max() > allowed * (of_b.unit + math.sqrt(len(g)) * unit):
        return None
    points, values = MATRICES[part][1], dict[str, np.ndarray]()
    for point, own in zip(points, np.split(g, len(points), axis=-1)):
        own = own.reshape(rows, tokens, -1)             # [B, T, out]
        if len(points) > 1:                             # [B, h, T, d/h]
            own = own.reshape(rows, tokens, heads, -1).swapaxes(1, 2)
        values[point] = own
    if part in STREAM:
        values[STREAM[part]] = values[points[0]]
    values = {f"blocks.{layer}.{point}.grad": a for point, a in values.items()}
    entries = {name: judge.golden.entries[name]._replace(unit=unit, unit_rms=unit)
               for name in values if name in judge.golden.entries}
    return Found(values, entries) if len(entries) == len(values) else None


class Forced(NamedTuple):
    """A comparison in which each step of ours reads the port's tensors instead of ours.

    unread: the tensors that are not used so, because all later tensors are right without them.
    """

    judge: Judge
    suspect: Suspect
    unread: frozenset[str] = frozenset()

    def left(self) -> list[str]:
        """The names of the steps that are wrong when computed from the port's earlier values."""
        return self.judge.left(self.suspect)


def forced(judge: Judge, model: Any) -> Forced:
    """The comparison with all of the port's tensors, and with the gradients solved from matrices.

    It is the one in which the fewest steps are wrong.
    """
    own = Reading(judge.names, judge.theirs)
    found = in_matrices(judge, own, with_these(judge, model, own, {}).suspect.run)
    ways = [False]
    if any(np.triu(own[name], 1).any() for name in own if name.endswith("attn.pattern")):
        ways = [False, True]                            # no mask: the sum may be over all keys
    tried = [_fewest(judge, model, own, found, whole) for whole in ways]
    return without_unread(min(tried, key=lambda one: len(one.left())))


def without_unread(given: Forced) -> Forced:
    """The comparison without the port's tensors that only its file has wrong.

    If nothing in the port is computed from such a tensor, then ours in its place makes all later
    tensors right.
    """
    left, points = given.left(), given.suspect.run.model.points()
    for name in [name for name in left if name in points][:MOST]:
        run = given.suspect.run
        theirs = Reading([x for x in run.forced if x != name], given.judge.theirs)
        others = given.suspect._replace(run=run._replace(forced=theirs), kept={})
        tried = given._replace(suspect=others, unread=given.unread | {name})
        if len(rest := tried.left()) < len(left):
            given, left = tried, rest
    return given


def in_matrices(judge: Judge, own: Mapping[str, np.ndarray], run: Run) -> dict[str, Found]:
    """The gradients that are solved from each matrix, by the matrix's block and name.

    own: the port's tensors. run: computes ours.
    """
    config, out = run.model.config, dict[str, Found]()
    layers = reversed(range(config.n_layer))
    blocks = [(layer, part) for layer in layers for part in reversed(MATRICES)]
    inputs = computed(run, [f"blocks.{layer}.{MATRICES[part][0]}" for layer, part in blocks])
    for layer, part in blocks:
        name = f"blocks.{layer}.{MATRICES[part][0]}"
        x = own.get(name, inputs[name])                 # [B, T, d], or [B, h, T, d/h]
        if x.ndim == 4:
            x = x.swapaxes(1, 2).reshape(*np.array(x.shape)[[0, 2]], -1)
        if made := solved(judge, x, part, layer, config.n_head):
            out[f"{layer}.{part}"] = made
    return out


def _fewest(judge: Judge, model: Any, own: Mapping[str, np.ndarray], found: Mapping[str, Found],
            whole: bool) -> Forced:
    """The comparison with those of the found gradients that leave the fewest steps wrong.

    A mistake in the gradient of a parameter alone is not a mistake of the backward pass: then the
    gradients solved from it are wrong, and are left out.
    """
    ends = tuple(f"{x}.grad" for x in STREAM.values())
    kept = min(({}, found), key=lambda kept: len(with_these(judge, model, own, kept, whole).left()))
    best = with_these(judge, model, own, kept, whole)
    left = best.left()
    for key, one in found.items():
        if not (set(one.values) if key in kept else {f"h.{key}.weight.grad"}) & set(left):
            continue
        inner = {name: a for name, a in one.values.items() if not name.endswith(ends)}
        others = ({**kept, key: one}, {**kept, key: Found(inner, one.entries)},
                  {k: v for k, v in kept.items() if k != key})
        for other in others:
            tried = with_these(judge, model, own, other, whole)
            if len(rest := tried.left()) < len(left):
                best, left, kept = tried, rest, other
    return best


def with_these(judge: Judge, model: Any, own: Mapping[str, np.ndarray], found: Mapping[str, Found],
               whole: bool = False) -> Forced:
    """The comparison with the port's tensors and these gradients. whole: as in `Run`."""
    more = {name: a for one in found.values() for name, a in one.values.items() if name not in own}
    solved_entries = {name: one.entries[name]
                      for one in found.values() for name in one.values if name in more}
    entries = {**judge.entries, **solved_entries}
    names = [name for name in judge.golden.entries if name in judge.names or name in more]

    def theirs(name: str) -> tuple[str, np.ndarray]:
        return ("float32", more[name]) if name in more else judge.theirs(name)

    suspect = start(judge.golden, model, Reading(names, theirs), whole)
    return Forced(judge._replace(names=names, theirs=theirs, entries=entries), suspect)


class Place(NamedTuple):
    """Wrong steps that are one place in a port's code.

    where: their names, abbreviated. origin: the port's gradient that they are computed from.
    """

    where: str
    names: list[str]
    origin: str | None


def places(wrong: Sequence[str], given: Sequence[str]) -> list[Place]:
    """Group wrong names into places. given: all names that the port has.

    The same step in several blocks is one place, blocks.0, 2.mlp.act. The gradient of a parameter
    belongs to the place of an earlier gradient that is computed from the same gradient of the
    port, because the port has no tensor between them.
    """
    kinds, out = groups(wrong), list[list[str]]()
    blocks = [int(name.split(".")[1]) for name in given if name.startswith(("blocks.", "h."))]
    n = 1 + max(blocks, default=0)
    starts = {where: origin(names[-1], given, n) for where, names in kinds.items()}
    if "loss" in starts.values() and "wte.weight.grad" in starts:       # by the head, if tied
        starts["wte.weight.grad"] = "loss"

    def layers(where: str) -> list[str]:
        return [name.split(".")[1] for name in kinds[where] if name.startswith(("blocks.", "h."))]

    def together(group: list[str], where: str) -> bool:
        """Whether a parameter's gradient belongs to the place of this group."""
        same = layers(group[0]) == layers(where) or not (layers(where) and layers(group[0]))
        return starts[group[0]] == starts[where] and same

    for where in kinds:
        leaf = where.endswith((".weight.grad", ".bias.grad"))
        mates = [group for group in out if leaf and together(group, where)]
        if mates:
            mates[0].append(where)
        else:
            out.append([where])
    return [Place(", ".join(group), [name for where in group for name in kinds[where]],
                  beside(kinds[group[0]][-1], starts[group[0]]))
            for group in out]


def beside(name: str, start: str | None) -> str | None:
    """How `start` is written beside `name`: without the block's number, if it is the same."""
    if start is None or not start.startswith("blocks.") or not name.startswith(("blocks.", "h.")):
        return "the loss" if start == "loss" else start
    _, block, end = start.split(".", 2)
    apart = int(block) - int(name.split(".")[1])
    return end if apart == 0 else f"{end} of the block after it" if apart == 1 else start


def origin(name: str, given: Sequence[str], n: int) -> str | None:
    """The port's last gradient before the gradient `name`; "loss" if there is none before it.

    None if `name` is not a gradient.
    """
    if not name.endswith(".grad"):
        return None
    order = backward_positions(n)
    inner = ("attn.v", "attn.pattern", "attn.scores", "attn.k", "attn.q")
    here = order[name.removesuffix(".grad")]
    before = {order[x]: x for x in (y.removesuffix(".grad") for y in given if y.endswith(".grad"))
              if order.get(x, here) < here and not x.endswith((".weight", ".bias"))
              and not (x.endswith(inner) and name.removesuffix(".grad").endswith(inner))}
    return f"{before[max(before)]}.grad" if before else "loss"


def groups(names: Sequence[str]) -> dict[str, list[str]]:
    """Group names of several blocks, as blocks.0, 2.mlp.act, and parameters of an AdamW step."""
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
        if end:
            told[f"{head}.{layers}.{end}"] = own
        else:
            told[own[0] if head == own[0] else _of_step(head, own)] = own
    return told


def _of_step(step: str, names: list[str]) -> str:
    """The wrong parameters after an AdamW step; in a later step its gradients may be wrong."""
    own = [name.split(".", 2)[2] for name in names]
    blocks = sorted({int(name.split(".")[1]) for name in own if name.startswith("h.")})
    several = f"{len(own)} parameters, such as {own[0]}" if len(own) > 1 else own[0]
    if len(own) > 1 and all(name.startswith("h.") for name in own):
        several += f", all in block{'s' * (len(blocks) > 1)} {', '.join(map(str, blocks))}"
    doubt = "" if step == "step.1" else " (the gradients of this step, or AdamW)"
    return f"{step}: {several}{doubt}"


def qualified(at: str, layer: int, back: bool) -> str:
    """The full name of a point, or a parameter, in this block."""
    if back and at in BACK:
        return f"h.{layer}.{at}" if at.endswith((".weight", ".bias")) else f"blocks.{layer}.{at}"
    return f"blocks.{layer}.{at}" if at in BLOCK else at


def backward_positions(n: int) -> dict[str, int]:
    """The position of each gradient in the backward pass of n blocks."""
    names = ["loss", "logits", "lm_head.weight", "ln_f.out", "ln_f.weight", "ln_f.bias"]
    names += [qualified(at, i, True) for i in reversed(range(n)) for at in BACK]
    names += ["pos_embed", "wpe.weight", "embed", "wte.weight"]
    return {name: i for i, name in enumerate(names)}
