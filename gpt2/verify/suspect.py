"""A suspect: our model with mistakes planted, all that it computes, and how much of what a port has it explains."""
from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

import minigrad as mg

from ..config import GPT2Config
from ..errors import GPT2Error
from ..golden.__main__ import Golden
from ..golden.truth import Entry, entry, judged, longest_sum
from ..hooks import STATISTICS
from ..model import GPT2
from .mistakes.adamw import Optimizer
from .planting import BOTH, Run, at_point, computed, in_loss, parameters, stop, with_parameters, zeroed
from .port import ALLOWED, distance

Theirs = Callable[[str], tuple[str, np.ndarray]]
FAILURES = (mg.MinigradError, GPT2Error, IndexError, ValueError, ZeroDivisionError, OverflowError)  # of a mistake that cannot be computed


class Reading(Mapping[str, np.ndarray]):
    """A port's arrays by name, each read when it is asked for: all of a large model's would not fit into memory."""

    def __init__(self, names: Iterable[str], theirs: Theirs) -> None:
        self.names, self.theirs = dict.fromkeys(names), theirs

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self.names:
            raise KeyError(name)
        return self.theirs(name)[1]

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


class Suspect(NamedTuple):
    """A run with mistakes and what is said of each; AdamW's settings and its mistakes, of STEPS. kept: slopes of its first step."""

    run: Run
    settings: Mapping[str, float]
    wrong: tuple[str, ...] = ()
    said: tuple[str, ...] = ()
    kept: dict[str, Any] = {}

    def narrow(self) -> Suspect:
        """The same in float32."""
        own = {name: a.astype(np.float32) for name, a in parameters(self.run.model).items()}
        return self._replace(run=self.run._replace(model=with_parameters(self.run.model, own)), kept={})

    def first_slopes(self) -> dict[str, np.ndarray]:
        """The loss and all gradients before the first step; computed once."""
        if not self.kept:
            names = [f"{name}.grad" for name in parameters(self.run.model)]
            self.kept.update(computed(self.run, ["loss", *names]))
            self.kept.update((name, self.run.forced[name]) for name in names if name in self.run.forced)
        return self.kept

    def values(self, names: Sequence[str]) -> Iterator[tuple[str, np.ndarray]]:
        """What it has under these names, which are in gpt2.golden's order, each when it is asked for."""
        stages = ([name for name in names if not name.endswith(".grad") and not name.startswith("step.")],
                  [name for name in names if name.endswith(".grad")])
        for stage in stages:
            if stage:
                found = self.hidden(computed(self.run, stage))
                yield from ((name, found[name]) for name in stage)
        last = max((int(name.split(".")[1]) for name in names if name.startswith("step.")), default=0)
        optimizer, model, piled = Optimizer(self.settings, self.wrong), self.run.model, dict[str, np.ndarray]()
        table = parameters(model)["wte.weight"] if {"head stays", "own head"} & set(self.wrong) else None
        for t in range(1, last + 1):
            wanted = [name for name in names if name.startswith(f"step.{t}.")]
            if t == last and wanted == [f"step.{t}.loss"]:
                yield wanted[0], computed(self.later(model, {}, table), ["loss"])["loss"]
                return
            own, points = parameters(model), stored(model) if {"all summed", "points summed"} & set(self.wrong) else []
            # the gradient of one parameter is enough
            if len(names) == 1 and last == 1 and not (self.kept or self.wrong or self.run.forced):
                name = names[0].split(".", 2)[2]
                slopes = computed(self.run, [f"{name}.grad"])
                yield names[0], dict(optimizer.step(own, {name: slopes[f"{name}.grad"]}))[name]
                return
            head = ["ln_f.out", "logits.grad"] if "own head" in self.wrong else []
            found = self.first_slopes() if t == 1 and not points and not head else computed(
                self.later(model, piled, table), ["loss", *(f"{name}.grad" for name in [*own, *points]), *head])
            piled = {name: found[f"{name}.grad"] for name in points}
            after = dict(optimizer.step(own, {name: found[f"{name}.grad"] for name in own}))
            if head and table is not None:
                g, x = (found[name].reshape(-1, found[name].shape[-1]) for name in ("logits.grad", "ln_f.out"))
                table = optimizer.updated("lm_head.weight", table, g.T @ x)
            for name in wanted:
                what = name.split(".", 2)[2]
                yield name, found["loss"] if what == "loss" else after[what]
            if t < last:
                own = {name: self.run.forced.get(f"step.{t}.{name}", a) for name, a in after.items()}
                # K's part of c_attn's bias is not compared, and softmax cancels it
                model = with_parameters(model, {name: np.where(judged(f"step.{t}.{name}", np.ones_like(a)) > 0.0, a, after[name])
                                                for name, a in own.items()})

    def value(self, name: str) -> np.ndarray:
        """What it has under one name."""
        return next(iter(self.values([name])))[1]

    def hidden(self, found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """found, with NaN where its mistake leaves an attention weight at 0: the gradient of that weight may be anything."""
        slopes = [name for name in found if name.endswith("attn.pattern.grad")] if self.said else []
        weights = computed(self.run, [name.removesuffix(".grad") for name in slopes]) if slopes else {}
        return found | {name: np.where(weights[name.removesuffix(".grad")] == 0.0, np.nan, found[name]) for name in slopes}

    def later(self, model: GPT2, piled: Mapping[str, np.ndarray], table: np.ndarray | None) -> Run:
        """The run with the parameters of a later step. piled: gradients of points, to which those of this step are added. table: the head's
        own."""
        run, seen = self.run._replace(model=model, forced={}), list[dict[str, Any]]()
        if table is not None:
            run = at_point("logits", lambda here, x: x + here["ln_f.out"] @ (table - stop(here.model.lm_head.weight)).mT)(run, [0], BOTH)
        if not piled:
            return run

        def watch(model: GPT2, points: dict[str, Any], ids: np.ndarray) -> dict[str, Any]:
            seen.append(points)
            return {}

        add = in_loss(lambda loss, logits, targets: loss + zeroed(sum((seen[0][name] * g).sum() for name, g in piled.items())))
        return add(run._replace(taps=(*run.taps, watch)), [0], BOTH)


def stored(model: GPT2) -> list[str]:
    """The points whose gradients a port in C keeps; a block reads where the one before it has written."""
    return [name for name in model.points() if not name.endswith(STATISTICS) and name not in ("embed", "pos_embed")
            and (not name.endswith("resid_pre") or name.startswith("blocks.0."))]


class Judge(NamedTuple):
    """The truth beside a port. names: all tensors that were compared, in order; entries: how far each may be off."""

    golden: Golden
    theirs: Theirs
    names: list[str]
    entries: Mapping[str, Entry]

    def units(self, name: str, value: np.ndarray, narrow: np.ndarray | None = None, slack: np.ndarray | float = 0.0) -> float:
        """How far the port is from this value, in units that grow with the numbers, or with what float32 makes of the same mistake.

        slack: how far from it each number may be besides.
        """
        dtype, array = self.theirs(name)
        value, narrow = judged(name, value), None if narrow is None else judged(name, narrow)
        own = self.entries[name]
        if name.startswith("step.") and value.shape == array.shape:
            value = value + np.clip(array - value, -slack, slack)
        if name.endswith("attn.pattern.grad") and value.shape == array.shape:
            hidden = np.isnan(value)
            value, narrow = np.where(hidden, array, value), narrow if narrow is None else np.where(hidden, array, narrow)
        if value.shape != array.shape or not np.isfinite(value).all():
            return float("inf")
        size = float(np.abs(self.golden.array(name)).max(initial=0.0))
        grown = max(1.0, float(np.abs(value).max(initial=0.0)) / size) if size else 1.0
        far = distance(own, value, array, dtype) / grown
        if far > ALLOWED and narrow is not None and np.isfinite(narrow).all():
            manifest = self.golden.manifest
            longest = longest_sum(name, GPT2Config.from_dict(manifest["config"]), np.array(manifest["ids"]))
            far = min(far, distance(entry(name, "", value, narrow, own.dtype, longest), value, array, dtype))
        return far

    def explains(self, suspect: Suspect, name: str) -> bool:
        """Whether a suspect has what the port has under one name."""
        try:
            value = suspect.value(name)
            if self.units(name, value) <= ALLOWED:
                return True
            if not name.startswith("step.") or len(suspect.said) < 2:
                return False
            narrow = suspect.narrow().value(name)       # AdamW makes much of the rounding of small gradients
            return self.units(name, value, narrow, self.slack(suspect, name)) <= ALLOWED
        except FAILURES:
            return False

    def slack(self, suspect: Suspect, name: str) -> np.ndarray | float:
        """What the rounding of a parameter's gradient does to it in the steps so far: AdamW makes a whole step of noise."""
        slope, entries = f"{name.split('.', 2)[-1]}.grad", self.entries
        if not name.startswith("step.") or slope not in entries:
            return 0.0
        g, own = suspect.first_slopes()[slope], self.golden.array(slope)
        unit = entries[slope].unit * max(1.0, float(np.abs(g).max()) / max(float(np.abs(own).max()), 1e-300))
        with np.errstate(divide="ignore", invalid="ignore"):
            share = np.where(g == 0.0, 0.0, np.minimum(2.0, ALLOWED * unit / np.abs(g)))
        return judged(name, share * suspect.settings["lr"] * int(name.split(".")[1]))

    def distances(self, suspect: Suspect, narrow: Suspect | None) -> Iterator[tuple[str, float]]:
        """Each name, in order, with how many units the port is from a suspect there, to the end or to what cannot be computed."""
        beside = None if narrow is None else narrow.values(self.names)
        with contextlib.suppress(*FAILURES):
            for name, value in suspect.values(self.names):
                if beside is None:
                    yield name, self.units(name, value)
                else:
                    yield name, self.units(name, value, next(beside)[1], self.slack(suspect, name))

    def left(self, suspect: Suspect) -> list[str]:
        """The names that a suspect does not explain."""
        return self.cleared(suspect)[0]

    def cleared(self, suspect: Suspect) -> tuple[list[str], float]:
        """The names that a suspect does not explain, and by how many units it is off in the others at most."""
        explained = {name: far for name, far in self.distances(suspect, suspect.narrow()) if far <= ALLOWED}
        return [name for name in self.names if name not in explained], max(explained.values(), default=0.0)

    def held(self, suspect: Suspect, beyond: int = -1) -> tuple[int, float]:
        """How many of the names, from the first on, a suspect explains, and by how many units it is off in them at most.

        Where that is more than `beyond`, and not all, it is asked once more with the units that its own float32 run gives; of two mistakes
        always, for what the first one explains may have needed these.
        """
        reached, worst = self._held(suspect, None)
        if (beyond < reached or len(suspect.said) > 1) and reached < len(self.names):
            again = self._held(suspect, suspect.narrow())
            reached, worst = again if again[0] > reached else (reached, worst)
        return reached, worst

    def _held(self, suspect: Suspect, narrow: Suspect | None) -> tuple[int, float]:
        worst, i = 0.0, 0
        for _, far in self.distances(suspect, narrow):
            if not far <= ALLOWED:
                break
            worst, i = max(worst, far), i + 1
        return i, worst


def start(golden: Golden, model: GPT2, forced: Mapping[str, np.ndarray] | None = None, whole: bool = False) -> Suspect:
    """The model as it is, on the ids of the truth. forced, whole: what is put in the place of what it computes, as `Run` has it."""
    manifest = golden.manifest
    targets = None if manifest["targets"] is None else np.array(manifest["targets"])
    return Suspect(Run(model, np.array(manifest["ids"]), targets, forced=forced or {}, whole=whole), manifest["adamw"], kept={})


def planted(suspect: Suspect, run: Run, says: str) -> Suspect:
    """With one more mistake, in the model."""
    return suspect._replace(run=run, said=(*suspect.said, says), kept={})


def stepped(suspect: Suspect, says: str, wrong: str = "", settings: Mapping[str, float] | None = None) -> Suspect:
    """With one more mistake, in the optimiser."""
    return suspect._replace(settings={**suspect.settings, **(settings or {})},
                            wrong=(*suspect.wrong, wrong) if wrong else suspect.wrong, said=(*suspect.said, says))
