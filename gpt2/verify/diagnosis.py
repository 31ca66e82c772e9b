"""Why a port differs: the mistakes that, planted in our own model, explain all of its numbers.

The first wrong tensor tells which mistakes are possible. Each of these is planted, and one that
explains that tensor is compared with all other tensors too. The tensors that differ while the best
mistake is planted are searched in the same way, so that two mistakes get two names.
"""
from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ..golden.__main__ import Golden
from ..hooks import STATISTICS
from ..model import GPT2
from .pictures import pictures, runs
from .places import Forced, Place, forced, places
from .planting import parameters
from .port import ALLOWED, Compared, Named, Port, aligned, name_in, rounding
from .search import ROUNDS, SHOWN, later, searched
from .suspect import Judge, Reading, Suspect, Theirs, start

MANY = 64               # so many numbers do not all agree by chance
ENOUGH = 6.0            # fewer numbers may agree by chance: at most with a probability of 10^-6
PLACES = 8              # wrong steps that are reported, at most
KEPT = 2**26            # numbers of a port that are cached in memory, at most


class Verdict(NamedTuple):
    """What explains the differences.

    causes: if `sure`, mistakes that together explain all differences; else if `named`, possible
    mistakes; else what the first wrong tensor looks like. left: the tensors that the first cause
    does not explain. places: if not all is explained, the steps that are wrong when computed from
    the port's own earlier values, each with its possible mistakes or with what it looks like.
    """

    causes: list[str]
    named: bool
    sure: bool
    left: list[str]
    places: Sequence[tuple[Place, str]] = ()


def reader(golden: Golden, port: Port, names: Mapping[str, Named]) -> Theirs:
    """A function that reads the port's dtype and array by our name, in our axes."""
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


def diagnosed(golden: Golden, model: GPT2 | None, found: Sequence[Compared],
              theirs: Theirs) -> Verdict:
    """What explains the tensors that are wrong.

    model: our model in float64, unfused, on the CPU; None if its weights are not here, so that no
    mistake can be planted.
    """
    judge = Judge(golden, theirs, [c.name for c in found if not c.trouble], golden.entries)
    wrong = [c for c in found if not c.ok]
    first = next((c for c in wrong if c.at or not c.trouble), wrong[0])     # its shape is right
    if first.trouble:
        return Verdict([], False, False, [first.name])
    if model is None:
        return Verdict(pictures(golden, first.name, theirs), False, False, [first.name])
    wrong = [c for c in wrong if not c.trouble]
    at, by_place = judge.names.index(first.name), Verdict([], False, False, [])
    by_all = in_all(judge, searched(judge, start(golden, model), at), at, telling(golden, wrong))
    if by_all.sure:
        return by_all
    read_before = any(name.startswith("blocks.") for name in judge.names[:at])
    if later("loss", first.name) or read_before:        # else the port has no earlier values
        by_place = step_by_step(forced(judge, model), telling(golden, wrong))
    if by_place.named:
        return by_place
    if not by_all.named:
        suspects = searched(judge, start(golden, model), at, general=True)
        by_all = in_all(judge, suspects, at, telling(golden, wrong))
    if by_all.sure:
        return by_all
    # evidence about one step is stronger than two mistakes, or a step of AdamW, that together
    # explain only a part of all tensors
    weak = any("; and " in cause for cause in by_all.causes) or first.name.startswith("step.")
    if by_place.places and (not by_all.named or (weak and alone(judge, model, at))):
        return by_place
    return by_all._replace(places=by_place.places)


def alone(judge: Judge, model: GPT2, at: int) -> bool:
    """Whether the port has the input of this step, so that only the step itself can be wrong."""
    points = [name for name in model.points() if not name.endswith(STATISTICS)]
    i = points.index(name) if (name := judge.names[at]) in points else 0
    return later("loss", name) or (i > 0 and points[i - 1] in judge.names)


def in_all(judge: Judge, suspects: list[tuple[Suspect, int]], at: int, telling: bool) -> Verdict:
    """What explains all tensors together.

    suspects: each with the number of names that it explains. at: the index of the first wrong name.
    """
    reached = max((held for _, held in suspects), default=at)
    stories = list(dict.fromkeys(suspect.said for suspect, _ in suspects))[:SHOWN]
    if reached == len(judge.names) and len(stories) == 1 and telling:
        return Verdict(list(stories[0]), True, True, [])
    rest = judge.names[reached] if reached < len(judge.names) else None
    if rest and not later(judge.names[at], rest):       # it fits one block only: it may be similar
        stories = [story for story in stories if reached - at >= 3
                   and not any(", in block" in says for says in story)]
    if not stories:
        looks_like = pictures(judge.golden, judge.names[at], judge.theirs)
        return Verdict(looks_like, False, False, [judge.names[at]])
    left: list[str] = []
    if rest:
        left = judge.left(next(suspect for suspect, _ in suspects if suspect.said == stories[0]))
    return Verdict(["; and ".join(story) for story in stories], True, False, left)


def step_by_step(given: Forced, telling: bool) -> Verdict:
    """What explains each step that is wrong when computed from the port's own earlier values."""
    judge, suspect, _ = given
    wrong = given.left()
    # AdamW's later steps need gradients that the port does not have, so all else must be right
    own = [name for name in wrong if not name.startswith("step.")] or wrong
    found, stories = places(own, judge.names), dict[str, list[str]]()
    unnamed = list[str]()
    for _ in range(2 * ROUNDS if wrong else 0):
        if (at := judge.held(suspect)[0]) == len(judge.names):
            break
        name = judge.names[at]
        if hits := [one for one, _ in searched(judge, suspect, at, general=True, rounds=1)]:
            stories[name] = list(dict.fromkeys(one.said[-1] for one in hits))[:SHOWN]
            suspect = hits[0]
            continue
        unnamed.append(name)
        alike = next((place.names for place in found if name in place.names), [name])
        rest_of_names = [x for x in judge.names if x not in alike and not later("step.1.", x)]
        judge = judge._replace(names=rest_of_names)
    rest = unnamed or judge.names[judge.held(suspect)[0]:]
    causes = [story for some in stories.values() for story in some]
    if stories and not rest and max(map(len, stories.values())) == 1 and telling:
        return Verdict(list(suspect.said), True, True, [])
    told, left = list[tuple[Place, str]](), given.judge.left(suspect)
    for place in found[:PLACES]:
        hits_here = [name for name in place.names if name in stories]
        if hits_here:
            said = f"perhaps {', or '.join(stories[hits_here[0]])}"
        elif place.names[0] in left:
            said = looks(given, place.names[0])[0]
        else:
            said = "the same mistake explains this step"
        if place.names[0] in given.unread:
            said += ("; the values computed from it are right, "
                     "so perhaps only the written tensor is wrong")
        told.append((place, said))
    return Verdict(causes or [look for _, look in told], bool(causes), False, rest, told)


def looks(given: Forced, name: str) -> list[str]:
    """What a wrong step's value looks like, beside our step computed from the port's values."""
    run, block = given.suspect.run, name.split(".")[1] if name.startswith(("blocks.", "h.")) else ""
    own = parameters(run.model)
    if name.startswith("step."):
        before = own.get(name.split(".", 2)[2], np.zeros(0))
        return pictures(given.judge.golden, name, given.judge.theirs, given.suspect.value(name),
                        {"its value before the step": before})
    known = {key: a for key, a in own.items() if not block or key.startswith(f"h.{block}.")}
    known |= {key: run.forced[key] for key in run.forced
              if key.startswith(f"blocks.{block}.") and not key.endswith(".grad") and key != name}
    if name.endswith(("attn.q", "attn.k", "attn.v")):
        n_head = run.model.config.n_head
        thirds = np.split(known.pop(f"h.{block}.attn.c_attn.bias"), 3)
        known |= {f"{part.upper()}'s part of c_attn's bias": third.reshape(n_head, 1, -1)
                  for part, third in zip("qkv", thirds)}
    if name.endswith(("attn.scores", "attn.z")) and (found := other_heads(given, name)):
        return [found]
    return pictures(given.judge.golden, name, given.judge.theirs, given.suspect.value(name), known)


def other_heads(given: Forced, name: str) -> str | None:
    """A sentence if the scores, or z, of each head are computed with K, or V, of another head."""
    judge, run = given.judge, given.suspect.run
    part = "k" if name.endswith("scores") else "v"
    point = f"{name.rpartition('.')[0]}.{part}"
    if point not in run.forced:
        return None
    theirs, heads = judge.theirs(name)[1], run.forced[point].shape[1]

    def alike(j: int) -> np.ndarray:
        """What our step computes if all heads of K or V are head j."""
        one = Reading(run.forced, lambda x: ("float32", run.forced[x][:, [j] * heads]
                                             if x == point else run.forced[x]))
        return given.suspect._replace(run=run._replace(forced=one)).value(name)

    def gap(j: int, i: int) -> float:
        """The largest difference of the port's head i from ours with K or V of head j."""
        return float(np.abs(made[j][:, i] - theirs[:, i]).max())

    made = [alike(j) for j in range(heads)]
    near = rounding(judge.entries[name], np.array(made), theirs, "float32")
    came = [int(np.argmin([gap(j, i) for j in range(heads)])) for i in range(heads)]
    if came == list(range(heads)) or max(gap(j, i) for i, j in enumerate(came)) > near:
        return None
    return (f"its heads {runs(list(range(heads)))} are computed with {part.upper()} of heads "
            f"{', '.join(map(str, came))}")


def telling(golden: Golden, wrong: Sequence[Compared]) -> bool:
    """Whether no other mistake is likely to explain the wrong tensors too.

    Many mistakes can explain one or two numbers that are nearly right.
    """
    sizes = [math.prod(golden.entries[c.name].shape) for c in wrong]
    zeros = sum(n * math.log10(max(1.0, c.units / (2.0 * ALLOWED))) for c, n in zip(wrong, sizes))
    return sum(sizes) >= MANY or zeros >= ENOUGH
