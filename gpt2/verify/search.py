"""Search for mistakes that, planted in our own model, explain a port's tensors.

Only mistakes that may show first in the port's first wrong tensor are tried.
"""
from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np

from ..hooks import BLOCK
from .mistakes.adamw import SETTINGS, STEPS
from .mistakes.any_step import FACTORS, GENERAL, Factor
from .mistakes.any_step_backward import FACTORS_BACK, GENERAL_BACK
from .mistakes.backward import BACKWARD
from .mistakes.forward import FORWARD
from .places import BACK, backward_positions, qualified
from .planting import BOTH, DERIVATIVE, VALUE, Bug
from .port import ALLOWED
from .suspect import FAILURES, Judge, Suspect, planted, stepped

Some = TypeVar("Some", bound=Bug | Factor)
NEWTON = 6                                              # steps of Newton's method to fit a number
MORE: tuple[tuple[Sequence[Bug | Factor], Sequence[Bug | Factor]], ...] = (
    (GENERAL, GENERAL_BACK), (FACTORS, FACTORS_BACK))
ROUNDS = 3                                              # mistakes in one port, at most
SHOWN = 3                                               # alternatives that are reported, at most


def later(name: str, other: str) -> bool:
    """Whether `other` belongs to a later stage than `name`.

    The stages are values, gradients, and then AdamW's steps, each step a stage of its own.
    """
    def part(x: str) -> int:
        return 1 + int(x.split(".")[1]) if x.startswith("step.") else int(x.endswith(".grad"))

    return part(other) > part(name)


def searched(judge: Judge, suspect: Suspect, at: int, general: bool = False,
             rounds: int = ROUNDS) -> list[tuple[Suspect, int]]:
    """Suspects that explain all names up to `at`, and as many later ones as possible.

    Fewer mistakes are preferred. general: also try the mistakes that any step can have.
    """
    frontier, best = [(suspect, at)], list[tuple[Suspect, int]]()
    for _ in range(rounds):
        hits: list[tuple[Suspect, int, float]] = []
        for one, reached in frontier:
            hits += explaining(judge, one, reached, general)
        if not hits:
            break
        furthest = max(reached for _, reached, _ in hits)
        nearest = min(far for _, reached, far in hits if reached == furthest)
        hits = [hit for hit in hits if hit[1] == furthest and hit[2] <= 4.0 * max(nearest, 1.0)]
        best = [(one, reached) for one, reached, _ in hits]
        if furthest == len(judge.names):
            break
        frontier = best[:SHOWN]
    return best


def explaining(judge: Judge, suspect: Suspect, at: int,
               general: bool) -> list[tuple[Suspect, int, float]]:
    """Suspects with one more mistake, which explain the name at `at`.

    Each comes with the number of names that it explains, and with its largest error in them, in
    units.
    """
    hits, whole = list[tuple[Suspect, int, float]](), len(judge.names)
    wrong = set(judge.left(suspect)) if suspect.run.forced else None
    if (name := judge.names[at]).startswith("step."):
        suspect.first_slopes()                          # all of these share them
        for kind in (mistaken, set_otherwise):          # a mistake tells more than a fitted setting
            hits += [(tried, *reach(judge, tried, at, wrong))
                     for tried in kind(judge, suspect, name)]
            if any(reached == whole for _, reached, _ in hits):
                break
    options = possible(judge, suspect, at, FORWARD, BACKWARD)
    if any(reached == whole for _, reached, _ in hits):
        # AdamW can hide a factor of all gradients, and no other mistake
        options = (option for option in options if option[0].at == "loss")
    hits = among(judge, suspect, at, options, wrong) + hits
    furthest = max((reached for _, reached, _ in hits), default=at)
    # a general mistake tells less, so it is tried last, and only where values or gradients are
    # wrong; not beside another mistake that may hide part of it
    alone = not suspect.said or bool(suspect.run.forced)
    for forward, backward in MORE if general and alone and not name.startswith("step.") else ():
        if furthest == whole:
            break
        more = possible(judge, suspect, at, forward, backward, True)
        found = among(judge, suspect, at, more, wrong)
        hits += [hit for hit in found if hit[1] > furthest]
        furthest = max((reached for _, reached, _ in hits), default=at)
    return unique([hit for hit in hits if hit[1] > at])


def among(judge: Judge, suspect: Suspect, at: int,
          options: Iterable[tuple[Bug | Factor, str, list[int], str]],
          wrong: set[str] | None) -> list[tuple[Suspect, int, float]]:
    """As `explaining`, but only with these options."""
    hits: list[tuple[Suspect, int, float]] = []
    seen, near, edge = set[str](), set[str](), suspect.run.model.config.n_layer - 1
    name, whole = judge.names[at], len(judge.names)
    gradient = next((i for i, n in enumerate(judge.names) if later("loss", n)), whole)
    for option, where, layers, what in options:
        if where and seen:
            break                                       # a mistake in all blocks explains all
        if option.says in seen:
            continue                                    # the same mistake, planted in another way
        if where and layers == [edge if what == DERIVATIVE else 0] and option.says not in near:
            continue                # if it fails in all blocks, it also fails in the first one met
        try:
            bug: Any = option
            if isinstance(option, Factor):
                bug = fitted(judge, suspect, option, layers, what, name)
            tried = planted(suspect, bug.plant(suspect.run, layers, what), bug.says + where)
        except FAILURES:
            continue
        if not judge.explains(tried, name):
            continue
        near.add(option.says)
        reached, far = reach(judge, tried, at, wrong)
        # perhaps the port's backward pass is that of the right function
        if what == BOTH and (suspect.run.forced or gradient <= reached) and reached < whole:
            alone = planted(suspect, bug.plant(suspect.run, layers, VALUE),
                            f"{bug.says}{where}, in the forward pass alone")
            further = reach(judge, alone, at, wrong)
            if further[0] > reached:
                tried, (reached, far) = alone, further
        hits.append((tried, reached, far))
        if reached == whole:
            seen.add(option.says)
    return hits


def reach(judge: Judge, tried: Suspect, at: int, wrong: set[str] | None) -> tuple[int, float]:
    """The number of names that a suspect explains, and its largest error in them, in units.

    wrong: the names that were wrong before, if all of the port's tensors are given; else None, and
    the names are counted up to the first wrong one. With `wrong`, the number is `at` if the suspect
    makes a right name wrong, or explains only a part of AdamW's steps.
    """
    if wrong is None:
        return judge.held(tried, at)
    (left, worst), step = judge.cleared(tried), judge.names[at].startswith("step.")
    broken = {name for name in left if step or not later("step.1.", name)}
    if not broken < wrong or (step and broken):
        return at, math.inf
    return len(judge.names) - len(left), worst


def fitted(judge: Judge, suspect: Suspect, factor: Factor, layers: list[int], what: str,
           name: str) -> Bug:
    """The mistake with the number c that fits the port's values under this name best.

    c is rounded if the rounded number explains these values too.
    """
    theirs, c = judge.theirs(name)[1], 1.0

    def value(c: float) -> np.ndarray:
        return planted(suspect, factor.plant(c)(suspect.run, layers, what), "").value(name)

    y = value(c)
    for _ in range(NEWTON):
        step = 1e-3 * max(1.0, abs(c))
        slope = (value(c + step) - y) / step
        c += float(np.nansum((theirs - y) * slope)) / max(float(np.nansum(slope * slope)), 1e-300)
        last, y = np.nansum(np.square(theirs - y)), value(c)
        if not np.nansum(np.square(theirs - y)) < 0.5 * last:
            break
    for digits in (1, 2, 3):                            # people type round numbers
        if judge.units(name, value(float(f"{c:.{digits}g}"))) <= ALLOWED:
            c = float(f"{c:.{digits}g}")
            break
    if f"{c:.4g}" == "1":
        raise ValueError("a factor of 1 is not a mistake")
    return Bug(factor.at, factor.says.format(f"{c:.4g}"), factor.plant(c))


def unique(hits: list[tuple[Suspect, int, float]]) -> list[tuple[Suspect, int, float]]:
    """Of the same mistake in different blocks, the one that explains most; the first if equal."""
    out: dict[str, tuple[Suspect, int, float]] = {}
    for hit in hits:
        says = hit[0].said[-1].split(", in block")[0].split(", from block")[0]
        says = says.removesuffix(", in the forward pass alone")
        if says not in out or hit[1] > out[says][1]:
            out[says] = hit
    return list(out.values())


def possible(judge: Judge, suspect: Suspect, at: int, forward: Sequence[Some],
             backward: Sequence[Some], general: bool = False,
             ) -> Iterator[tuple[Some, str, list[int], str]]:
    """The mistakes that may show first under the name at `at`.

    Each comes with a text about its blocks, the blocks, and what it changes. A mistake changes
    everything after it, so no right name may lie between the mistake and `at`. general: the
    gradient of the mistake's own point may be right, if the gradient that it passes on is wrong.
    """
    name, right, n = judge.names[at], judge.names[:at], suspect.run.model.config.n_layer
    if name == "step.1.loss" and "loss" not in right:
        name = "loss"
    without_gradients = not any(x.endswith(".grad") for x in right)
    if name.endswith(".grad") or (name.startswith("step.") and without_gradients):
        order = backward_positions(n)
        here = order.get(name.removesuffix(".grad"), len(order))
        agreed = {order[x.removesuffix(".grad")] for x in right if x.endswith(".grad")}
        for where, layers in spans(name, n, back=True):
            for bug in backward:
                start = order[qualified(bug.at, max(layers), True)]
                between = start <= here and not any(start + general <= one < here for one in agreed)
                # gradients of parameters come after those of all points, so a gradient of a point
                # may be wrong because of a parameter's
                leaves = (bug.at.endswith((".weight", ".bias"))
                          and name.endswith((".weight.grad", ".bias.grad")))
                fits = start == here if leaves else between or name.startswith("step.")
                if fits and (not where or bug.at in BACK):
                    yield bug, where, layers, DERIVATIVE
        if name.endswith(".grad") and not general:
            # mistakes whose values differ by less than rounding, such as GELU's other constant
            yield from ((bug, "", list(range(n)), BOTH)
                        for bug in forward if bug.at.startswith(("ln_1.", "mlp.act")))
    elif not name.startswith("step."):
        order = {x: i for i, x in enumerate([*suspect.run.model.points(), "loss"])}
        here = order[name]
        agreed = {order[x] for x in right if x in order and x not in ("embed", "pos_embed")}
        for where, layers in spans(name, n, back=False):
            for bug in forward:
                start = order[qualified(bug.at, min(layers), False)] if bug.at else here
                between = start <= here and not any(start <= one < here for one in agreed)
                if between and (not where or bug.at in BLOCK):
                    yield bug, where, layers, BOTH


def spans(name: str, n: int, back: bool) -> list[tuple[str, list[int]]]:
    """Where a mistake may be that shows first under `name`: all blocks, some, or the name's own.

    Each comes with a text about the blocks.
    """
    out = [("", list(range(n)))]
    if name.startswith(("blocks.", "h.")) and n > 1:
        layer = int(name.split(".")[1])
        if back:
            out += [(f", in blocks 0 to {layer}", list(range(layer + 1)))] * (0 < layer < n - 1)
        else:
            out += [(f", from block {layer} on", list(range(layer, n)))] * (layer > 0)
        out += [(f", in block {layer} alone", [layer])]
    return out


# ── AdamW ──
def mistaken(judge: Judge, suspect: Suspect, name: str) -> Iterator[Suspect]:
    """AdamW with one mistake of STEPS, if it explains the port's values under this name."""
    for wrong, says in STEPS.items():
        tried = stepped(suspect, says, wrong)
        if wrong not in suspect.wrong and judge.explains(tried, name):
            yield tried


def set_otherwise(judge: Judge, suspect: Suspect, name: str) -> Iterator[Suspect]:
    """AdamW with another value of one setting, if it explains the port's values under this name."""
    b = judge.theirs(name)[1]
    right = judge.golden.array(name)
    for key, (says, usual) in SETTINGS.items():
        own, values = judge.golden.manifest["adamw"][key], set(usual)
        if suspect.settings[key] != own:
            continue
        fitted = set[float]()
        if key in ("lr", "weight_decay"):
            values |= {own * factor for factor in (0.01, 0.1, 0.5, 2.0, 10.0, 100.0)}
            if not name.endswith(".loss"):              # fit it: a step is nearly linear in it
                probe = 2.0 * own or 0.1
                base = right if not suspect.said else suspect.value(name)
                probed = stepped(suspect, "", settings={key: probe}).value(name)
                slope = (probed - base) / (probe - own)
                square = max(float(np.square(slope).sum()), 1e-300)
                met = own + float(((b - base) * slope).sum()) / square
                values |= {float(f"{met:.{digits}g}") for digits in (1, 2) if met > 0.0}
                fitted = {float(f"{met:.{digits}g}") for digits in (3, 17) if met > 0.0}
            values -= {0.0}
        for group in (values, fitted):                  # people type round numbers
            far = {}
            for value in group - {own}:
                tried = stepped(suspect, "", settings={key: value})
                far[value] = judge.units(name, tried.value(name))
            if far and far[value := min(far, key=lambda value: far[value])] <= ALLOWED:
                times = f", {value / own:.4g} times as much" if own else ""
                yield stepped(suspect, f"{says} is {value:.4g}{times}; here it is {own:g}",
                              settings={key: value})
                break
