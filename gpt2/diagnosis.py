"""Why a port differs: which mistakes, planted in our own model, give everything that it has.

The first tensor that is wrong says which mistakes are possible; each is planted, and those that give that tensor are asked for all the
others. What is left when the best one is planted is looked at in the same way, so that two mistakes get two names.
"""
from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from .bugs import FORWARD
from .bugs_backward import BACKWARD
from .bugs_general import FACTORS, GENERAL, Factor
from .bugs_general_back import FACTORS_BACK, GENERAL_BACK
from .bugs_steps import SETTINGS, STEPS
from .golden import Golden
from .hooks import BLOCK, STATISTICS
from .model import GPT2
from .pictures import pictures, runs
from .places import Forced, forced, groups
from .planting import BOTH, DERIVATIVE, VALUE, Bug, parameters
from .port import ALLOWED, Compared, Named, Port, aligned, name_in
from .suspect import FAILURES, Judge, Suspect, Theirs, planted, start, stepped

Some = TypeVar("Some", bound=Bug | Factor)
NEWTON = 6                                              # steps in which a number is fitted
MORE: tuple[tuple[Sequence[Bug | Factor], Sequence[Bug | Factor]], ...] = ((GENERAL, GENERAL_BACK), (FACTORS, FACTORS_BACK))
ROUNDS = 3                                              # mistakes that are looked for one after the other
MANY = 64                                               # numbers that do not all agree by chance
ENOUGH = 6.0                                            # zeros of the chance that fewer do
PLACES = 8                                              # kinds of steps that are looked at
SHOWN = 3                                               # things that may be behind it
KEPT = 2**26                                            # numbers of a port that are kept in memory
BACK = ("resid_post", "mlp.out", "mlp.c_proj.weight", "mlp.c_proj.bias", "mlp.act", "mlp.pre", "mlp.c_fc.weight", "mlp.c_fc.bias",
        "ln_2.out", "ln_2.weight", "ln_2.bias", "resid_mid", "attn.out", "attn.c_proj.weight", "attn.c_proj.bias", "attn.z", "attn.v",
        "attn.pattern", "attn.scores", "attn.k", "attn.q", "attn.c_attn.weight", "attn.c_attn.bias", "ln_1.out", "ln_1.weight",
        "ln_1.bias", "resid_pre")


class Place(NamedTuple):
    """Wrong steps of a kind. where: their names in one; first: the name of the first; looks: what it looks like beside ours."""

    where: str
    first: str
    looks: list[str]


class Verdict(NamedTuple):
    """What is behind the differences. causes: mistakes that together explain all of them, where `sure`; else, where `named`, what may be
    behind them; else what the first wrong tensor looks like. left: the tensors that the first of them does not explain. places: the steps
    that are wrong, given what the port has before them, where not all is explained.
    """

    causes: list[str]
    named: bool
    sure: bool
    left: list[str]
    places: Sequence[Place] = ()


def reader(golden: Golden, port: Port, names: Mapping[str, Named]) -> Theirs:
    """The port's dtype and array of our name, in our axes."""
    kept: dict[str, tuple[str, np.ndarray]] = {}

    def read(name: str) -> tuple[str, np.ndarray]:
        if name in kept:
            return kept[name]
        named = name_in(port, name, names)
        assert named is not None
        dtype, raw = port[named.name]()
        array = aligned(raw, named, golden.entries[name])
        assert array is not None
        if sum(a.size for _, a in kept.values()) + array.size <= KEPT:
            kept[name] = dtype, array
        return dtype, array

    return read


def diagnosed(golden: Golden, model: GPT2 | None, found: Sequence[Compared], theirs: Theirs) -> Verdict:
    """What is behind the tensors that are wrong.

    model: ours in float64, by definition, on the CPU; None where its weights are not here, so that mistakes cannot be planted.
    """
    first = next(c for c in found if not c.ok)
    if first.trouble:
        return Verdict([], False, False, [first.name])
    judge = Judge(golden, theirs, [c.name for c in found if not c.trouble], golden.entries)
    if model is None:
        return Verdict(pictures(golden, first.name, theirs), False, False, [first.name])
    at, wrong = judge.names.index(first.name), [c for c in found if not c.ok]
    by_all = in_all(judge, searched(judge, start(golden, model), at), at, telling(golden, wrong))
    if by_all.sure:
        return by_all
    by_place = Verdict([], False, False, [])
    if later("loss", first.name) or any(name.startswith("blocks.") for name in judge.names[:at]):     # else nothing is given
        by_place = step_by_step(forced(judge, model), telling(golden, wrong))
    if by_place.named:
        return by_place
    if not by_all.named:
        by_all = in_all(judge, searched(judge, start(golden, model), at, general=True), at, telling(golden, wrong))
    if by_all.sure or (by_all.named and not alone(judge, model, at)):
        return by_all._replace(places=[] if by_all.sure else by_place.places)
    return by_place if by_place.places else by_all


def alone(judge: Judge, model: GPT2, at: int) -> bool:
    """Whether the port has what the step of this name reads, so that nothing else can be wrong there."""
    points = [name for name in model.points() if not name.endswith(STATISTICS)]
    i = points.index(name) if (name := judge.names[at]) in points else 0
    return i > 0 and points[i - 1] in judge.names


def in_all(judge: Judge, suspects: list[tuple[Suspect, int]], at: int, telling: bool) -> Verdict:
    """What is behind everything together. suspects: with how many of the names each explains; at: the first that is wrong."""
    reached = max((held for _, held in suspects), default=at)
    stories = list(dict.fromkeys(suspect.said for suspect, _ in suspects))[:SHOWN]
    if reached == len(judge.names) and len(stories) == 1 and telling:
        return Verdict(list(stories[0]), True, True, [])
    rest = judge.names[reached] if reached < len(judge.names) else None
    if rest and not later(judge.names[at], rest):       # one block that fits, and the next does not: it is something that is like it
        stories = [story for story in stories if reached - at >= 3 and not any(", in block" in says for says in story)]
    if not stories:
        return Verdict(pictures(judge.golden, judge.names[at], judge.theirs), False, False, [judge.names[at]])
    left = judge.left(next(suspect for suspect, _ in suspects if suspect.said == stories[0])) if rest else []
    return Verdict(["; and ".join(story) for story in stories], True, False, left)


def step_by_step(given: Forced, telling: bool) -> Verdict:
    """What is behind each step that is wrong, given what the port has before it."""
    judge, suspect = given
    wrong = given.left()
    # what follows a wrong gradient in the second step is not forced
    own = [name for name in wrong if not name.startswith("step.")] or [name for name in wrong if name.startswith("step.1.")] or wrong
    kinds, stories, unnamed = groups(own), list[list[str]](), list[str]()
    for _ in range(2 * ROUNDS if wrong else 0):
        if (at := judge.held(suspect)[0]) == len(judge.names):
            break
        if found := [one for one, _ in searched(judge, suspect, at, general=True, rounds=1)]:
            stories.append(list(dict.fromkeys(one.said[-1] for one in found)))
            suspect = found[0]
            continue
        unnamed.append(judge.names[at])
        alike = next((names for names in kinds.values() if judge.names[at] in names), [judge.names[at]])
        judge = judge._replace(names=[name for name in judge.names if name not in alike and not name.startswith("step.2.")])
    rest = unnamed or judge.names[judge.held(suspect)[0]:]
    if stories and not rest and max(map(len, stories)) == 1 and telling:
        return Verdict(list(suspect.said), True, True, [])
    places = [Place(where, names[0], [] if stories and names[0] not in rest else looks(given, names[0]))
              for where, names in list(kinds.items())[:PLACES]]
    return Verdict([", or ".join(some[:SHOWN]) for some in stories], bool(stories), False, rest, places)


def looks(given: Forced, name: str) -> list[str]:
    """What a wrong step gives, beside what it should give from what the port has before it."""
    run, block = given.suspect.run, name.split(".")[1] if name.startswith(("blocks.", "h.")) else ""
    own = parameters(run.model)
    if name.startswith("step."):
        return pictures(given.judge.golden, name, given.judge.theirs, given.suspect.value(name),
                        {"what it was before the step": own[name.split(".", 2)[2]]})
    known = {key: a for key, a in own.items() if not block or key.startswith(f"h.{block}.")}
    known |= {key: a for key, a in run.forced.items() if key.startswith(f"blocks.{block}.") and not key.endswith(".grad") and key != name}
    if name.endswith(("attn.q", "attn.k", "attn.v")):
        thirds = np.split(known.pop(f"h.{block}.attn.c_attn.bias"), 3)
        known |= {f"{part.upper()}'s part of c_attn's bias": third.reshape(run.model.config.n_head, 1, -1)
                  for part, third in zip("qkv", thirds)}
    if name.endswith(("attn.scores", "attn.z")) and (found := other_heads(given, name)):
        return [found]
    return pictures(given.judge.golden, name, given.judge.theirs, given.suspect.value(name), known)


def other_heads(given: Forced, name: str) -> str | None:
    """Which heads of K or V the scores, or what is read from V, are made with, where these are not each head's own."""
    judge, run = given.judge, given.suspect.run
    part = "k" if name.endswith("scores") else "v"
    point = f"{name.rpartition('.')[0]}.{part}"
    if point not in run.forced:
        return None
    theirs, heads = judge.theirs(name)[1], run.forced[point].shape[1]
    made = [given.suspect._replace(run=run._replace(forced={**run.forced, point: run.forced[point][:, [j] * heads]})).value(name)
            for j in range(heads)]
    near = ALLOWED * judge.entries[name].unit * max(1.0, float(np.abs(theirs).max()) / max(float(np.abs(made).max()), 1e-300))
    came = [int(np.argmin([np.abs(one[:, i] - theirs[:, i]).max() for one in made])) for i in range(heads)]
    if came == list(range(heads)) or max(float(np.abs(made[j][:, i] - theirs[:, i]).max()) for i, j in enumerate(came)) > near:
        return None
    return f"its heads {runs(list(range(heads)))} are made with {part.upper()} of the heads {', '.join(map(str, came))}"


def telling(golden: Golden, wrong: Sequence[Compared]) -> bool:
    """Whether no other mistake is likely to give the wrong tensors too; many do where these are a number or two, and nearly right."""
    sizes = [math.prod(golden.entries[c.name].shape) for c in wrong]
    zeros = sum(n * math.log10(max(1.0, c.units / (2.0 * ALLOWED))) for c, n in zip(wrong, sizes))
    return sum(sizes) >= MANY or zeros >= ENOUGH


def later(name: str, other: str) -> bool:
    """Whether `other` is of a later part of the computation: gradients after values, and steps after both."""
    def part(x: str) -> int:
        return 2 if x.startswith("step.") else 1 if x.endswith(".grad") else 0

    return part(other) > part(name)


# ── the search ──
def searched(judge: Judge, suspect: Suspect, at: int, general: bool = False, rounds: int = ROUNDS) -> list[tuple[Suspect, int]]:
    """Suspects that explain the names at `at` and before, and as many after it as possible; with as few mistakes as possible.

    general: with those mistakes that any step can have.
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


def explaining(judge: Judge, suspect: Suspect, at: int, general: bool) -> list[tuple[Suspect, int, float]]:
    """The suspect with one more mistake that explains the name at `at`, how far each reaches, and how many units it is off until there."""
    hits, whole = list[tuple[Suspect, int, float]](), len(judge.names)
    wrong = set(judge.left(suspect)) if suspect.run.forced else None
    if (name := judge.names[at]).startswith("step."):
        suspect.first_slopes()                          # which all of these share
        for kind in (mistaken, set_otherwise):          # a setting that is fitted says less than a mistake
            hits += [(tried, *reach(judge, tried, at, wrong)) for tried in kind(judge, suspect, name)]
            if any(reached == whole for _, reached, _ in hits):
                break
    options = possible(judge, suspect, at, FORWARD, BACKWARD)
    if any(reached == whole for _, reached, _ in hits):  # AdamW hides a factor of all gradients, and nothing else
        options = (option for option in options if option[0].at == "loss")
    hits = among(judge, suspect, at, options, wrong) + hits
    furthest = max((reached for _, reached, _ in hits), default=at)
    # what is more general says less: it is looked for where values or gradients are wrong, and not beside another mistake that hides some
    for forward, backward in MORE if general and not (suspect.said and not suspect.run.forced) and not name.startswith("step.") else ():
        if furthest == whole:
            break
        found = among(judge, suspect, at, possible(judge, suspect, at, forward, backward, True), wrong)
        hits += [hit for hit in found if hit[1] > furthest]
        furthest = max((reached for _, reached, _ in hits), default=at)
    return unique([hit for hit in hits if hit[1] > at])


def among(judge: Judge, suspect: Suspect, at: int, options: Iterable[tuple[Bug | Factor, str, list[int], str]],
          wrong: set[str] | None) -> list[tuple[Suspect, int, float]]:
    """The same, of some mistakes."""
    hits: list[tuple[Suspect, int, float]] = []
    seen, near, edge = set[str](), set[str](), suspect.run.model.config.n_layer - 1
    name, gradient = judge.names[at], next((i for i, n in enumerate(judge.names) if later("loss", n)), len(judge.names))
    for option, where, layers, what in options:
        if where and seen:
            break                                       # a mistake in all blocks explains everything
        if option.says in seen:
            continue                                    # the same one planted in another way
        if where and layers == [edge if what == DERIVATIVE else 0] and option.says not in near:
            continue                                    # in the first block that is come to, all blocks are as one alone
        try:
            bug = fitted(judge, suspect, option, layers, what, name) if isinstance(option, Factor) else option
            tried = planted(suspect, bug.plant(suspect.run, layers, what), bug.says + where)
        except FAILURES:
            continue
        if not judge.explains(tried, name):
            continue
        near.add(option.says)
        reached, far = reach(judge, tried, at, wrong)
        # the backward pass may be that of the right function
        if what == BOTH and (suspect.run.forced or gradient <= reached) and reached < len(judge.names):
            alone = planted(suspect, bug.plant(suspect.run, layers, VALUE), f"{bug.says}{where}, in the forward pass alone")
            further = reach(judge, alone, at, wrong)
            if further[0] > reached:
                tried, (reached, far) = alone, further
        hits.append((tried, reached, far))
        if reached == len(judge.names):
            seen.add(option.says)
    return hits


def reach(judge: Judge, tried: Suspect, at: int, wrong: set[str] | None) -> tuple[int, float]:
    """How far a suspect with one more mistake reaches, and by how many units it is off until there.

    wrong: what was before, where all that the port has is given. Then it is how many names the suspect explains; none if it is wrong where
    that was right, or explains a part of AdamW's steps alone.
    """
    if wrong is None:
        return judge.held(tried, at)
    (left, worst), step = judge.cleared(tried), judge.names[at].startswith("step.")
    broken = {name for name in left if step or not name.startswith("step.") or name.startswith("step.1.")}
    if not broken < wrong or (step and broken):
        return at, math.inf
    return len(judge.names) - len(left), worst


def fitted(judge: Judge, suspect: Suspect, factor: Factor, layers: list[int], what: str, name: str) -> Bug:
    """The mistake with the number that gives what the port has under this name, or else with one that does not."""
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
    for digits in (1, 2, 3):                            # a round number before one that nobody would type
        if judge.units(name, value(float(f"{c:.{digits}g}"))) <= ALLOWED:
            c = float(f"{c:.{digits}g}")
            break
    if f"{c:.4g}" == "1":
        raise ValueError("it is no mistake")
    return Bug(factor.at, factor.says.format(f"{c:.4g}"), factor.plant(c))


def unique(hits: list[tuple[Suspect, int, float]]) -> list[tuple[Suspect, int, float]]:
    """Of the same mistake, where it reaches furthest: in all blocks before those that are in some."""
    out: dict[str, tuple[Suspect, int, float]] = {}
    for hit in hits:
        says = hit[0].said[-1].split(", in block")[0].split(", from block")[0].removesuffix(", in the forward pass alone")
        if says not in out or hit[1] > out[says][1]:
            out[says] = hit
    return list(out.values())


def possible(judge: Judge, suspect: Suspect, at: int, forward: Sequence[Some], backward: Sequence[Some], general: bool = False
             ) -> Iterator[tuple[Some, str, list[int], str]]:
    """(mistake, what to say of its blocks, the blocks, what it changes), of those that may show first under the name at `at`.

    A mistake changes everything that comes after it, so nothing that is right may lie between. general: the gradient of its own point may
    be right, and what is handed on from there is wrong.
    """
    name, right, n = judge.names[at], judge.names[:at], suspect.run.model.config.n_layer
    if name == "step.1.loss" and "loss" not in right:
        name = "loss"
    if name.endswith(".grad") or (name.startswith("step.") and not any(x.endswith(".grad") for x in right)):
        order = backward_positions(n)
        here = order.get(name.removesuffix(".grad"), len(order))
        agreed = {order[x.removesuffix(".grad")] for x in right if x.endswith(".grad")}
        for where, layers in spans(name, n, back=True):
            for bug in backward:
                place = order[qualified(bug.at, max(layers), True)]
                between = place <= here and not any(place + general <= one < here for one in agreed)
                # the gradients of parameters come after those of all points, so what is wrong in a point may begin in a parameter
                leaves = bug.at.endswith((".weight", ".bias")) and name.endswith((".weight.grad", ".bias.grad"))
                fits = place == here if leaves else between or name.startswith("step.")
                if fits and (not where or bug.at in BACK):
                    yield bug, where, layers, DERIVATIVE
        if name.endswith(".grad") and not general:      # of values that are off by less than rounding, such as another constant of GELU
            yield from ((bug, "", list(range(n)), BOTH) for bug in forward if bug.at.startswith(("ln_1.", "mlp.act")))
    elif not name.startswith("step."):
        order = {x: i for i, x in enumerate([*suspect.run.model.points(), "loss"])}
        here, agreed = order[name], {order[x] for x in right if x in order and x not in ("embed", "pos_embed")}
        for where, layers in spans(name, n, back=False):
            for bug in forward:
                place = order[qualified(bug.at, min(layers), False)] if bug.at else here
                if place <= here and not any(place <= one < here for one in agreed) and (not where or bug.at in BLOCK):
                    yield bug, where, layers, BOTH


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


def spans(name: str, n: int, back: bool) -> list[tuple[str, list[int]]]:
    """(what to say, the blocks) where a mistake that shows under a name first may be: in all, from its own block on, or in it alone."""
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
    """AdamW with one mistake each, where it gives what the port has under this name."""
    for wrong, says in STEPS.items():
        if wrong not in suspect.wrong and judge.explains(tried := stepped(suspect, says, wrong), name):
            yield tried


def set_otherwise(judge: Judge, suspect: Suspect, name: str) -> Iterator[Suspect]:
    """AdamW with one setting each that is another, where it gives what the port has under this name."""
    b = judge.theirs(name)[1]
    right = judge.golden.array(name)
    for key, (says, usual) in SETTINGS.items():
        own, values = judge.golden.manifest["adamw"][key], set(usual)
        if suspect.settings[key] != own:
            continue
        fitted = set[float]()
        if key in ("lr", "weight_decay"):
            values |= {own * factor for factor in (0.01, 0.1, 0.5, 2.0, 10.0, 100.0)}
            if not name.endswith(".loss"):              # a step is nearly linear in them: where the line meets the port's numbers
                probe = 2.0 * own or 0.1
                base = right if not suspect.said else suspect.value(name)
                slope = (stepped(suspect, "", settings={key: probe}).value(name) - base) / (probe - own)
                met = own + float(((b - base) * slope).sum()) / max(float(np.square(slope).sum()), 1e-300)
                values |= {float(f"{met:.{digits}g}") for digits in (1, 2) if met > 0.0}
                fitted = {float(f"{met:.{digits}g}") for digits in (3, 17) if met > 0.0}
            values -= {0.0}
        for group in (values, fitted):                  # a round number before one that nobody would type
            far = {value: judge.units(name, stepped(suspect, "", settings={key: value}).value(name)) for value in group - {own}}
            if far and far[value := min(far, key=lambda value: far[value])] <= ALLOWED:
                times = f", {value / own:.4g} times as much" if own else ""
                yield stepped(suspect, f"{says} is {value:.4g}{times}; here it is {own:g}", settings={key: value})
                break
