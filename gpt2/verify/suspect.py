"""A suspect: our model with planted mistakes, and how many of a port's tensors it explains."""
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
from .formula_parts import stop
from .mistakes.adamw import Optimizer
from .planting import BOTH, Run, at_point, computed, in_loss, parameters, with_parameters, zeroed
from .port import ALLOWED, distance

Theirs = Callable[[str], tuple[str, np.ndarray]]
# errors of a planted mistake that cannot be computed
FAILURES = (mg.MinigradError, GPT2Error, IndexError, ValueError, ZeroDivisionError, OverflowError)


class Reading(Mapping[str, np.ndarray]):
    """A port's arrays by name, each read when it is needed: all may not fit into memory."""

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
    """A run with mistakes, a sentence about each, AdamW's settings, and AdamW's mistakes, of STEPS.

    kept: a cache of the gradients before the first step.
    """

    run: Run
    settings: Mapping[str, float]
    wrong: tuple[str, ...] = ()
    said: tuple[str, ...] = ()
    kept: dict[str, Any] = {}

    def narrow(self) -> Suspect:
        """The same suspect in float32."""
        own = {name: a.astype(np.float32) for name, a in parameters(self.run.model).items()}
        model = with_parameters(self.run.model, own)
        return self._replace(run=self.run._replace(model=model), kept={})

    def first_slopes(self) -> dict[str, np.ndarray]:
        """The loss and all gradients before the first step; they are computed once."""
        if not self.kept:
            names = [f"{name}.grad" for name in parameters(self.run.model)]
            self.kept.update(computed(self.run, ["loss", *names]))
            forced = self.run.forced
            self.kept.update((name, forced[name]) for name in names if name in forced)
        return self.kept

    def values(self, names: Sequence[str]) -> Iterator[tuple[str, np.ndarray]]:
        """The suspect's values of these names, each computed when it is needed.

        The names are in gpt2.golden's order.
        """
        stages = (
            [name for name in names if not name.endswith(".grad") and not name.startswith("step.")],
            [name for name in names if name.endswith(".grad")],
        )
        for stage in stages:
            if stage:
                found = self.hidden(computed(self.run, stage))
                yield from ((name, found[name]) for name in stage)
        steps = [int(name.split(".")[1]) for name in names if name.startswith("step.")]
        last = max(steps, default=0)
        optimizer, model = Optimizer(self.settings, self.wrong), self.run.model
        piled, table, wrong = dict[str, np.ndarray](), None, set(self.wrong)
        if {"head stays", "own head"} & wrong:
            table = parameters(model)["wte.weight"]
        for t in range(1, last + 1):
            wanted = [name for name in names if name.startswith(f"step.{t}.")]
            if t == last and wanted == [f"step.{t}.loss"]:
                yield wanted[0], computed(self.later(model, {}, table), ["loss"])["loss"]
                return
            own = parameters(model)
            points = stored(model) if {"all summed", "points summed"} & wrong else []
            # the gradient of one parameter is enough
            if len(names) == 1 and last == 1 and not (self.kept or self.wrong or self.run.forced):
                name = names[0].split(".", 2)[2]
                slopes = computed(self.run, [f"{name}.grad"])
                yield names[0], dict(optimizer.step(own, {name: slopes[f"{name}.grad"]}))[name]
                return
            head = ["ln_f.out", "logits.grad"] if "own head" in wrong else []
            if t == 1 and not points and not head:
                found = self.first_slopes()
            else:
                slopes_of = [f"{name}.grad" for name in [*own, *points]]
                found = computed(self.later(model, piled, table), ["loss", *slopes_of, *head])
            piled = {name: found[f"{name}.grad"] for name in points}
            after = dict(optimizer.step(own, {name: found[f"{name}.grad"] for name in own}))
            if head and table is not None:
                g, x = (found[name].reshape(-1, found[name].shape[-1])
                        for name in ("logits.grad", "ln_f.out"))        # [B T, V], [B T, d]
                table = optimizer.updated("lm_head.weight", table, g.T @ x)
            for name in wanted:
                what = name.split(".", 2)[2]
                yield name, found["loss"] if what == "loss" else after[what]
            if t < last:
                # K's part of c_attn's bias is not compared, because softmax cancels it
                changed = {}
                for name, ours in after.items():
                    a = self.run.forced.get(f"step.{t}.{name}", ours)
                    kept = judged(f"step.{t}.{name}", np.ones_like(a)) > 0.0
                    changed[name] = np.where(kept, a, ours)
                model = with_parameters(model, changed)

    def value(self, name: str) -> np.ndarray:
        """The suspect's value of one name."""
        return next(iter(self.values([name])))[1]

    def hidden(self, found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """`found`, with NaN as the gradient of attention weights that the mistake sets to 0.

        Such a gradient may be anything.
        """
        slopes = []
        if self.said:
            slopes = [name for name in found if name.endswith("attn.pattern.grad")]
        if not slopes:
            return found | {}
        weights = computed(self.run, [name.removesuffix(".grad") for name in slopes])
        return found | {name: np.where(weights[name.removesuffix(".grad")] == 0.0, np.nan,
                                       found[name]) for name in slopes}

    def later(self, model: GPT2, piled: Mapping[str, np.ndarray], table: np.ndarray | None) -> Run:
        """The run with the parameters of a later step.

        piled: gradients of points, to which the gradients of this step are added. table: the head's
        own table, if it is not the embedding's.
        """
        run, seen = self.run._replace(model=model, forced={}), list[dict[str, Any]]()
        if table is not None:
            def own_head(here: Any, x: Any) -> Any:
                return x + here["ln_f.out"] @ (table - stop(here.model.lm_head.weight)).mT

            run = at_point("logits", own_head)(run, [0], BOTH)
        if not piled:
            return run

        def watch(model: GPT2, points: dict[str, Any], ids: np.ndarray) -> dict[str, Any]:
            seen.append(points)
            return {}

        def added(loss: Any, logits: Any, targets: Any) -> Any:
            return loss + zeroed(sum((seen[0][name] * g).sum() for name, g in piled.items()))

        return in_loss(added)(run._replace(taps=(*run.taps, watch)), [0], BOTH)


def stored(model: GPT2) -> list[str]:
    """The points whose gradients a port in C stores.

    A block reads the memory to which the block before it writes, so only the first has its own.
    """
    return [name for name in model.points()
            if not name.endswith(STATISTICS) and name not in ("embed", "pos_embed")
            and (not name.endswith("resid_pre") or name.startswith("blocks.0."))]


class Judge(NamedTuple):
    """The truth beside a port.

    names: all tensors that were compared, in order. entries: their units.
    """

    golden: Golden
    theirs: Theirs
    names: list[str]
    entries: Mapping[str, Entry]

    def units(self, name: str, value: np.ndarray, narrow: np.ndarray | None = None,
              slack: np.ndarray | float = 0.0) -> float:
        """The difference of the port's values and these, in units.

        The units grow with the size of the numbers, or with the error of the same mistake in
        float32 (narrow). slack: how much each number may differ in addition.
        """
        dtype, array = self.theirs(name)
        value = judged(name, value)
        narrow = None if narrow is None else judged(name, narrow)
        own = self.entries[name]
        if name.startswith("step.") and value.shape == array.shape:
            value = value + np.clip(array - value, -slack, slack)
        if name.endswith("attn.pattern.grad") and value.shape == array.shape:
            hidden = np.isnan(value)
            value = np.where(hidden, array, value)
            narrow = None if narrow is None else np.where(hidden, array, narrow)
        if value.shape != array.shape or not np.isfinite(value).all():
            return float("inf")
        size = float(np.abs(self.golden.array(name)).max(initial=0.0))
        grown = max(1.0, float(np.abs(value).max(initial=0.0)) / size) if size else 1.0
        far = distance(own, value, array, dtype) / grown
        if far > ALLOWED and narrow is not None and np.isfinite(narrow).all():
            manifest = self.golden.manifest
            config, ids = GPT2Config.from_dict(manifest["config"]), np.array(manifest["ids"])
            longest = longest_sum(name, config, ids)
            wider = entry(name, "", value, narrow, own.dtype, longest)
            far = min(far, distance(wider, value, array, dtype))
        return far

    def explains(self, suspect: Suspect, name: str) -> bool:
        """Whether a suspect's values of one name are the port's."""
        try:
            value = suspect.value(name)
            if self.units(name, value) <= ALLOWED:
                return True
            if not name.startswith("step.") or len(suspect.said) < 2:
                return False
            # AdamW amplifies the rounding of small gradients
            narrow = suspect.narrow().value(name)
            return self.units(name, value, narrow, self.slack(suspect, name)) <= ALLOWED
        except FAILURES:
            return False

    def slack(self, suspect: Suspect, name: str) -> np.ndarray | float:
        """How much the rounding of a parameter's gradient may have changed it in the steps so far.

        AdamW turns rounding noise into steps of full size.
        """
        slope, entries = f"{name.split('.', 2)[-1]}.grad", self.entries
        if not name.startswith("step.") or slope not in entries:
            return 0.0
        g, own = suspect.first_slopes()[slope], self.golden.array(slope)
        grown = float(np.abs(g).max()) / max(float(np.abs(own).max()), 1e-300)
        unit = entries[slope].unit * max(1.0, grown)
        with np.errstate(divide="ignore", invalid="ignore"):
            share = np.where(g == 0.0, 0.0, np.minimum(2.0, ALLOWED * unit / np.abs(g)))
        return judged(name, share * suspect.settings["lr"] * int(name.split(".")[1]))

    def distances(self, suspect: Suspect, narrow: Suspect | None) -> Iterator[tuple[str, float]]:
        """Each name with the difference of the suspect and the port in units, in order.

        It ends early at a name that cannot be computed.
        """
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
        """The names that a suspect does not explain, and the largest error of the others."""
        distances = self.distances(suspect, suspect.narrow())
        explained = {name: far for name, far in distances if far <= ALLOWED}
        left = [name for name in self.names if name not in explained]
        return left, max(explained.values(), default=0.0)

    def held(self, suspect: Suspect, beyond: int = -1) -> tuple[int, float]:
        """How many names, from the first on, a suspect explains, and the largest error in units.

        If the number is more than `beyond`, and not all, the names are compared again, with the
        units of the suspect's own float32 run. Two mistakes are always compared again, because the
        first of them may have needed these units.
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


def start(golden: Golden, model: GPT2, forced: Mapping[str, np.ndarray] | None = None,
          whole: bool = False) -> Suspect:
    """The model without mistakes, on the ids of the truth. forced, whole: as in `Run`."""
    manifest = golden.manifest
    targets = None if manifest["targets"] is None else np.array(manifest["targets"])
    run = Run(model, np.array(manifest["ids"]), targets, forced=forced or {}, whole=whole)
    return Suspect(run, manifest["adamw"], kept={})


def planted(suspect: Suspect, run: Run, says: str) -> Suspect:
    """The suspect with one more mistake in the model."""
    return suspect._replace(run=run, said=(*suspect.said, says), kept={})


def stepped(suspect: Suspect, says: str, wrong: str = "",
            settings: Mapping[str, float] | None = None) -> Suspect:
    """The suspect with one more mistake in the optimiser."""
    return suspect._replace(settings={**suspect.settings, **(settings or {})},
                            wrong=(*suspect.wrong, wrong) if wrong else suspect.wrong,
                            said=(*suspect.said, says))
