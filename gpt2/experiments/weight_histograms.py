"""How are the weights distributed: both embeddings, each layer, and Q, K and V?"""
from __future__ import annotations

from typing import Any

from ..errors import MissingError
from ..inspect.weights import WHICH, distributions, measurable, remarks, samples
from ..inspect.weights import draw as draw_distributions
from ..weights.checkpoint import read_tensors
from .lab import Lab, Verdict, verdict

EQUATION = ("KS(a, b) = max_x |F_a(x) − F_b(x)|;  "
            "ρ = Spearman's correlation of depth and standard deviation")
CLAIMS = {
    "embeddings": "token embeddings are spread wide, position embeddings are near 0",
    "layers": "later layers have wider weights",
    "qkv": "Q and K have similar distributions, and V's is narrower",
}
ALIKE = 0.05                                            # a histogram does not show this KS distance


def measure(lab: Lab) -> dict[str, Any]:
    tensors = read_tensors(lab.path)
    chosen = [which for which in WHICH if lab.which in (which, "all")]
    found = {which: distributions(tensors, which) for which in chosen if samples(tensors, which)}
    rows = [{"weights": row["name"], "std": row["std"], "kurtosis": row["kurtosis"],
             "1 %": row["quantiles"][0], "99 %": row["quantiles"][-1]}
            for one in found.values() for row in one["samples"]]
    if not rows:
        raise MissingError(f"{tensors.source} has no weights of GPT-2's names"
                           if lab.which == "all" else
                           f"{tensors.source} has no tensors for {lab.which!r}")
    missing = tensors.missing()
    notes = [f"{name}: {value:.4f}" for one in found.values()
             for name, value in one["comparisons"].items() if " in h." not in name]
    notes += [line for one in found.values() for line in remarks(one)]
    notes += [f"missing: {len(missing)} tensors, {missing[0]} and others"] if missing else []
    return {"rows": rows, "which": chosen, "distributions": found, "notes": notes,
            "missing": missing}


def judge(found: dict[str, Any]) -> list[Verdict]:
    """Embeddings: the middle half of wpe's values is less than half as wide as wte's.

    Layers: ρ is above 0.5 for every kind of weight; contradicted if for none.

    Q, K and V: KS(Q, K) is below 0.05, and V's deviation is below Q's and K's, for all layers
    together and in each layer; contradicted if this does not hold for all layers together, or if V
    is the narrowest in no layer. If it holds in some layers only, the verdict is inconclusive and
    names them. Weights that are missing, or that have no finite number, are inconclusive.
    """
    return [_of(which, found["distributions"].get(which)) for which in found["which"]]


def _of(which: str, one: dict[str, Any] | None) -> Verdict:
    claim = CLAIMS[which]
    rows = {row["name"]: row for row in one["samples"]} if one else {}
    if broken := [name for name, row in rows.items() if not measurable(row)]:
        return verdict(None, claim, f"{broken[0]} has no finite number")
    if which == "embeddings":
        if not one or len(rows) < 2:
            there = " and ".join(rows)
            return verdict(None, claim, f"only {there} is there" if there else "both are missing")
        widths = {name: row["quantiles"][3] - row["quantiles"][1] for name, row in rows.items()}
        wte, wpe = widths["wte.weight"], widths["wpe.weight"]
        return verdict(wpe < 0.5 * wte, claim,
                       f"the middle half of the values is {wte:.4f} wide in wte, {wpe:.4f} in wpe; "
                       f"their KS distance is {one['comparisons']['KS wte, wpe']:.3f}")
    if not one:
        return verdict(None, claim, "these tensors are missing")
    if which == "layers":
        rho = {name.rpartition(", ")[2]: value
               for name, value in one["comparisons"].items() if value is not None}
        up = [value > 0.5 for value in rho.values()]
        said = ", ".join(f"{name} ρ = {value:.2f}" for name, value in rho.items())
        holds = (True if all(up) else None if any(up) else False) if up else None
        return verdict(holds, claim, said or "there is only one layer")
    ks = one["comparisons"]["KS Q, K in all layers"]
    std = {part: rows[f"{part} of all layers"]["std"] for part in "QKV"}
    layers = [row["depth"] for row in one["samples"]
              if row["group"] == "V" and row["depth"] is not None]
    each = {i: {part: rows[f"h.{i} {part}"]["std"] for part in "QKV"} for i in layers}
    narrow = [i for i, own in each.items() if own["V"] < min(own["Q"], own["K"])]
    widest = [i for i, own in each.items() if own["V"] > max(own["Q"], own["K"])]
    apart = [i for i in layers if one["comparisons"][f"KS Q, K in h.{i}"] >= ALIKE]
    pooled = ks < ALIKE and std["V"] < min(std["Q"], std["K"])
    said = f"V is the narrowest in {_some(narrow, layers)}"
    said += f", the widest in {_some(widest, layers)}" * bool(widest)
    said += f"; KS(Q, K) is {ALIKE} or more in {_some(apart, layers)}" * bool(apart)
    holds = True if narrow == layers and not apart else None
    return verdict(False if not pooled or not narrow else holds, claim,
                   f"in all layers together, KS(Q, K) is {ks:.4f} and the standard deviations are "
                   f"Q {std['Q']:.3f}, K {std['K']:.3f}, V {std['V']:.3f}; {said}")


def _some(some: list[int], layers: list[int]) -> str:
    """Layer numbers as text: "layers 0 … 2, 5"."""
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
