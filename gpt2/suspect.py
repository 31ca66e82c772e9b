"""A suspect: our model with mistakes planted, all that it computes, and how much of what a port has it explains."""
from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

import minigrad as mg

from .bugs_steps import Optimizer
from .config import GPT2Config
from .errors import GPT2Error
from .golden import Golden
from .model import GPT2
from .planting import Run, computed, parameters, with_parameters
from .port import ALLOWED, distance
from .truth import entry, longest_sum

Theirs = Callable[[str], tuple[str, np.ndarray]]
FAILURES = (mg.MinigradError, GPT2Error, IndexError, ValueError, ZeroDivisionError, OverflowError)  # of a mistake that cannot be computed


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
            self.kept.update(computed(self.run, ["loss", *(f"{name}.grad" for name in parameters(self.run.model))]))
        return self.kept

    def values(self, names: Sequence[str]) -> Iterator[tuple[str, np.ndarray]]:
        """What it has under these names, which are in gpt2.golden's order, each when it is asked for."""
        stages = ([name for name in names if not name.endswith(".grad") and not name.startswith("step.")],
                  [name for name in names if name.endswith(".grad")])
        for stage in stages:
            if stage:
                found = computed(self.run, stage)
                yield from ((name, found[name]) for name in stage)
        last = max((int(name.split(".")[1]) for name in names if name.startswith("step.")), default=0)
        optimizer, model = Optimizer(self.settings, self.wrong), self.run.model
        for t in range(1, last + 1):
            wanted = [name for name in names if name.startswith(f"step.{t}.")]
            if t == last and wanted == [f"step.{t}.loss"]:
                yield wanted[0], computed(self.run._replace(model=model), ["loss"])["loss"]
                return
            own = parameters(model)
            found = self.first_slopes() if t == 1 else computed(
                self.run._replace(model=model), ["loss", *(f"{name}.grad" for name in own)])
            after = dict(optimizer.step(own, {name: found[f"{name}.grad"] for name in own}))
            for name in wanted:
                what = name.split(".", 2)[2]
                yield name, found["loss"] if what == "loss" else after[what]
            if t < last:
                model = with_parameters(model, after)


class Judge(NamedTuple):
    """The truth beside a port. names: all tensors that were compared, in order."""

    golden: Golden
    theirs: Theirs
    names: list[str]

    def units(self, name: str, value: np.ndarray, narrow: np.ndarray | None = None) -> float:
        """How far the port is from this value, in units that grow with the numbers, or with what float32 makes of the same mistake."""
        dtype, array = self.theirs(name)
        own = self.golden.entries[name]
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
            return self.units(name, next(iter(suspect.values([name])))[1]) <= ALLOWED
        except FAILURES:
            return False

    def held(self, suspect: Suspect, beyond: int = -1) -> tuple[int, float]:
        """How many of the names, from the first on, a suspect explains, and by how many units it is off in them at most.

        Where that is more than `beyond`, and not all, it is asked once more with the units that its own float32 run gives.
        """
        reached, worst = self._held(suspect, None)
        if beyond < reached < len(self.names):
            again = self._held(suspect, suspect.narrow())
            reached, worst = again if again[0] > reached else (reached, worst)
        return reached, worst

    def _held(self, suspect: Suspect, narrow: Suspect | None) -> tuple[int, float]:
        worst, beside = 0.0, None if narrow is None else narrow.values(self.names)
        i = 0
        try:
            for name, value in suspect.values(self.names):
                far = self.units(name, value, None if beside is None else next(beside)[1])
                if not far <= ALLOWED:
                    break
                worst, i = max(worst, far), i + 1
        except FAILURES:
            pass
        return i, worst


def start(golden: Golden, model: GPT2) -> Suspect:
    """The model as it is, on the ids of the truth."""
    manifest = golden.manifest
    targets = None if manifest["targets"] is None else np.array(manifest["targets"])
    return Suspect(Run(model, np.array(manifest["ids"]), targets), manifest["adamw"], kept={})


def planted(suspect: Suspect, run: Run, says: str) -> Suspect:
    """With one more mistake, in the model."""
    return suspect._replace(run=run, said=(*suspect.said, says), kept={})


def stepped(suspect: Suspect, says: str, wrong: str = "", settings: Mapping[str, float] | None = None) -> Suspect:
    """With one more mistake, in the optimiser."""
    return suspect._replace(settings={**suspect.settings, **(settings or {})},
                            wrong=(*suspect.wrong, wrong) if wrong else suspect.wrong, said=(*suspect.said, says))
