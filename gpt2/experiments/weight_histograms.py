"""How are weights distributed: token against position embeddings, by depth, and Q, K and V?"""
from __future__ import annotations

from typing import Any

from ..errors import MissingError
from ..inspect.weights import WHICH, distributions, measurable, remarks, samples
from ..inspect.weights import draw as draw_distributions
from ..weights.checkpoint import read_tensors
from .lab import Lab, Verdict, verdict

EQUATION = "KS(a, b) = max_x |F_a(x) − F_b(x)|;  ρ = Spearman's correlation of depth and standard deviation"
CLAIMS = {
    "embeddings": "token embeddings are spread wide, position embeddings sit near 0",
    "layers": "later layers have wider weights",
    "qkv": "Q and K are distributed alike, and V is narrower",
}
ALIKE = 0.05                                            # KS distances of this size are not seen in a histogram


def measure(lab: Lab) -> dict[str, Any]:
    tensors = read_tensors(lab.path)
    chosen = [which for which in WHICH if lab.which in (which, "all")]
    found = {which: distributions(tensors, which) for which in chosen if samples(tensors, which)}
    rows = [{"weights": row["name"], "std": row["std"], "kurtosis": row["kurtosis"], "1 %": row["quantiles"][0],
             "99 %": row["quantiles"][-1]}
            for one in found.values() for row in one["samples"]]
    if not rows:
        raise MissingError(f"{tensors.source} has no weights of GPT-2's names" if lab.which == "all" else
                           f"{tensors.source} has no tensors for {lab.which!r}")
    missing = tensors.missing()
    notes = [f"{name}: {value:.4f}" for one in found.values() for name, value in one["comparisons"].items() if " in h." not in name]
    notes += [line for one in found.values() for line in remarks(one)]
    notes += [f"missing: {len(missing)} tensors, {missing[0]} and others"] if missing else []
    return {"rows": rows, "which": chosen, "distributions": found, "notes": notes, "missing": missing}


def judge(found: dict[str, Any]) -> list[Verdict]:
    """Embeddings: the middle half of wpe is narrower than half of wte's. Layers: every ρ above 0.5, contradicted where none is.

    Q, K and V: KS(Q, K) below 0.05, and V's deviation below both others', pooled and in each layer; contradicted where that is so of
    the pooled weights not, or in no layer. What is so in some layers is inconclusive, and the layers are named; so is what is missing or
    has no finite number. What was not asked for is not judged.
    """
    return [_of(which, found["distributions"].get(which)) for which in found["which"]]


def _of(which: str, one: dict[str, Any] | None) -> Verdict:
    claim = CLAIMS[which]
    rows = {row["name"]: row for row in one["samples"]} if one else {}
    if broken := [name for name, row in rows.items() if not measurable(row)]:
        return verdict(None, claim, f"{broken[0]} has no finite number")
    if which == "embeddings":
        if not one or len(rows) < 2:
            return verdict(None, claim, f"{' and '.join(rows) or 'nothing'} alone is there")
        widths = {name: row["quantiles"][3] - row["quantiles"][1] for name, row in rows.items()}
        wte, wpe = widths["wte.weight"], widths["wpe.weight"]
        return verdict(wpe < 0.5 * wte, claim,
                       f"middle half: wte {wte:.4f} wide, wpe {wpe:.4f}; KS {one['comparisons']['KS wte, wpe']:.3f}")
    if not one:
        return verdict(None, claim, "these tensors are missing")
    if which == "layers":
        rho = {name.rpartition(", ")[2]: value for name, value in one["comparisons"].items() if value is not None}
        up = [value > 0.5 for value in rho.values()]
        said = ", ".join(f"{name} ρ = {value:.2f}" for name, value in rho.items())
        return verdict((True if all(up) else None if any(up) else False) if up else None, claim, said or "one layer alone")
    ks = one["comparisons"]["KS Q, K in all layers"]
    std = {part: rows[f"{part} of all layers"]["std"] for part in "QKV"}
    layers = [row["depth"] for row in one["samples"] if row["group"] == "V" and row["depth"] is not None]
    each = {i: {part: rows[f"h.{i} {part}"]["std"] for part in "QKV"} for i in layers}
    narrow = [i for i, own in each.items() if own["V"] < min(own["Q"], own["K"])]
    widest = [i for i, own in each.items() if own["V"] > max(own["Q"], own["K"])]
    apart = [i for i in layers if one["comparisons"][f"KS Q, K in h.{i}"] >= ALIKE]
    pooled = ks < ALIKE and std["V"] < min(std["Q"], std["K"])
    said = f"V the narrowest in {_some(narrow, layers)}" + f", the widest in {_some(widest, layers)}" * bool(widest)
    said += f", Q and K apart in {_some(apart, layers)}" * bool(apart)
    return verdict(False if not pooled or not narrow else True if narrow == layers and not apart else None, claim,
                   f"KS(Q, K) {ks:.4f}; std Q {std['Q']:.3f}, K {std['K']:.3f}, V {std['V']:.3f} over all layers; {said}")


def _some(some: list[int], layers: list[int]) -> str:
    """Some of the layers as words: "layers 0 … 2, 5"."""
    if not some or some == layers:
        return "every layer" if some else "no layer"
    runs: list[list[int]] = []
    for i in some:
        if runs and i == runs[-1][-1] + 1:
            runs[-1].append(i)
        else:
            runs.append([i])
    return f"layer{'s' * (len(some) > 1)} " + ", ".join(
        f"{run[0]} … {run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs)


def draw(found: dict[str, Any]) -> Any:
    return draw_distributions(list(found["distributions"].values()))
