"""Why a port differs: which mistakes, planted in our own model, give everything that it has.

The first tensor that is wrong says which mistakes are possible; each is planted, and those that give that tensor are asked for all the
others. What is left when the best one is planted is looked at in the same way, so that two mistakes get two names.
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

MANY = 64                                               # numbers that do not all agree by chance
ENOUGH = 6.0                                            # zeros of the chance that fewer do
PLACES = 8                                              # steps that are wrong by themselves
KEPT = 2**26                                            # numbers of a port that are kept in memory


class Verdict(NamedTuple):
    """What is behind the differences. causes: mistakes that together explain all of them, where `sure`; else, where `named`, what may be
    behind them; else what the first wrong tensor looks like. left: the tensors that the first of them does not explain. places: the steps
    that are wrong, given what the port has before them, where not all is explained, each with what is behind it or what it looks like.
    """

    causes: list[str]
    named: bool
    sure: bool
    left: list[str]
    places: Sequence[tuple[Place, str]] = ()


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
    judge = Judge(golden, theirs, [c.name for c in found if not c.trouble], golden.entries)
    wrong = [c for c in found if not c.ok]
    first = next((c for c in wrong if c.at or not c.trouble), wrong[0])     # one of another shape is left out
    if first.trouble:
        return Verdict([], False, False, [first.name])
    if model is None:
        return Verdict(pictures(golden, first.name, theirs), False, False, [first.name])
    wrong = [c for c in wrong if not c.trouble]
    at, by_place = judge.names.index(first.name), Verdict([], False, False, [])
    by_all = in_all(judge, searched(judge, start(golden, model), at), at, telling(golden, wrong))
    if by_all.sure:
        return by_all
    if later("loss", first.name) or any(name.startswith("blocks.") for name in judge.names[:at]):     # else nothing is given
        by_place = step_by_step(forced(judge, model), telling(golden, wrong))
    if by_place.named:
        return by_place
    if not by_all.named:
        by_all = in_all(judge, searched(judge, start(golden, model), at, general=True), at, telling(golden, wrong))
    if by_all.sure:
        return by_all
    # two mistakes, or a step of AdamW, that explain a part of all together do not stand against what is known of a step alone
    weak = any("; and " in cause for cause in by_all.causes) or first.name.startswith("step.")
    if by_place.places and (not by_all.named or (weak and alone(judge, model, at))):
        return by_place
    return by_all._replace(places=by_place.places)


def alone(judge: Judge, model: GPT2, at: int) -> bool:
    """Whether the port has what the step of this name reads, so that nothing else can be wrong there."""
    points = [name for name in model.points() if not name.endswith(STATISTICS)]
    i = points.index(name) if (name := judge.names[at]) in points else 0
    return later("loss", name) or (i > 0 and points[i - 1] in judge.names)


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
    judge, suspect, _ = given
    wrong = given.left()
    # a second step is of gradients that the port has not, so that it is judged where all before it is right
    own = [name for name in wrong if not name.startswith("step.")] or wrong
    found, stories = places(own, judge.names), dict[str, list[str]]()
    unnamed = list[str]()
    for _ in range(2 * ROUNDS if wrong else 0):
        if (at := judge.held(suspect)[0]) == len(judge.names):
            break
        name = judge.names[at]
        if hits := [one for one, _ in searched(judge, suspect, at, general=True, rounds=1)]:
            stories[name], suspect = list(dict.fromkeys(one.said[-1] for one in hits))[:SHOWN], hits[0]
            continue
        unnamed.append(name)
        alike = next((place.names for place in found if name in place.names), [name])
        judge = judge._replace(names=[x for x in judge.names if x not in alike and not later("step.1.", x)])
    rest = unnamed or judge.names[judge.held(suspect)[0]:]
    causes = [story for some in stories.values() for story in some]
    if stories and not rest and max(map(len, stories.values())) == 1 and telling:
        return Verdict(list(suspect.said), True, True, [])
    told, left = list[tuple[Place, str]](), given.judge.left(suspect)
    for place in found[:PLACES]:
        said = next((f"perhaps {', or '.join(stories[name])}" for name in place.names if name in stories), "")
        if not said:
            said = looks(given, place.names[0])[0] if place.names[0] in left else "that explains this, too"
        if place.names[0] in given.unread:
            said += "; what is computed from it is right: is it only written wrongly?"
        told.append((place, said))
    return Verdict(causes or [look for _, look in told], bool(causes), False, rest, told)


def looks(given: Forced, name: str) -> list[str]:
    """What a wrong step gives, beside what it should give from what the port has before it."""
    run, block = given.suspect.run, name.split(".")[1] if name.startswith(("blocks.", "h.")) else ""
    own = parameters(run.model)
    if name.startswith("step."):
        return pictures(given.judge.golden, name, given.judge.theirs, given.suspect.value(name),
                        {"what it was before the step": own.get(name.split(".", 2)[2], np.zeros(0))})
    known = {key: a for key, a in own.items() if not block or key.startswith(f"h.{block}.")}
    known |= {key: run.forced[key] for key in run.forced
              if key.startswith(f"blocks.{block}.") and not key.endswith(".grad") and key != name}
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

    def alike(j: int) -> np.ndarray:
        """What our step gives if all heads of K or V are head j."""
        one = Reading(run.forced, lambda x: ("float32", run.forced[x][:, [j] * heads] if x == point else run.forced[x]))
        return given.suspect._replace(run=run._replace(forced=one)).value(name)

    made = [alike(j) for j in range(heads)]
    near = rounding(judge.entries[name], np.array(made), theirs, "float32")
    came = [int(np.argmin([np.abs(one[:, i] - theirs[:, i]).max() for one in made])) for i in range(heads)]
    if came == list(range(heads)) or max(float(np.abs(made[j][:, i] - theirs[:, i]).max()) for i, j in enumerate(came)) > near:
        return None
    return f"its heads {runs(list(range(heads)))} are made with {part.upper()} of the heads {', '.join(map(str, came))}"


def telling(golden: Golden, wrong: Sequence[Compared]) -> bool:
    """Whether no other mistake is likely to give the wrong tensors too; many do where these are a number or two, and nearly right."""
    sizes = [math.prod(golden.entries[c.name].shape) for c in wrong]
    zeros = sum(n * math.log10(max(1.0, c.units / (2.0 * ALLOWED))) for c, n in zip(wrong, sizes))
    return sum(sizes) >= MANY or zeros >= ENOUGH
