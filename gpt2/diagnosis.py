"""Why a port differs: what the first tensor that is wrong looks like, and which planted bug gives the same."""
from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from .bugs import candidates, softmax
from .golden import Golden
from .model import GPT2
from .port import ALLOWED, EPS, Compared, Named, Port, aligned, distance, name_in, unit_of

Theirs = Callable[[str], tuple[str, np.ndarray]]


def reader(golden: Golden, port: Port, names: Mapping[str, Named]) -> Theirs:
    """The port's dtype and array of our name, in our axes."""
    def read(name: str) -> tuple[str, np.ndarray]:
        named = name_in(port, name, names)
        assert named is not None
        dtype, raw = port[named.name]()
        array = aligned(raw, named, tuple(golden.entries[name].shape))
        assert array is not None
        return dtype, array

    return read


def agrees(golden: Golden, name: str, value: np.ndarray, theirs: Theirs) -> bool:
    """Whether the port has this value, and not ours, as far as rounding tells: units grow with the numbers."""
    dtype, array = theirs(name)
    entry = golden.entries[name]
    if not np.isfinite(value).all() or value.shape != array.shape:
        return False
    size = float(np.abs(golden.array(name)).max(initial=0.0))
    grown = max(1.0, float(np.abs(value).max(initial=0.0)) / size) if size else 1.0
    return distance(entry, value, array, dtype) <= ALLOWED * grown


def causes(golden: Golden, model: GPT2 | None, found: Sequence[Compared], theirs: Theirs) -> list[str]:
    """What may be behind the first tensor that is wrong, the likeliest first; empty where nothing is known.

    model: ours in float64, by definition, on the CPU; None where its weights are not here, so that bugs cannot be planted.
    """
    first = next(c for c in found if not c.ok)
    if first.trouble:
        return []
    name = first.name
    if name in ("loss", "step.1.loss"):
        tried: Iterator[str] = losses(golden, name, theirs)
    elif name.startswith("step."):
        tried = steps(golden, model, name, theirs) if model else iter(())
    elif name.endswith(".grad"):
        tried = gradients(golden, name, theirs)
    else:
        tried = forward(golden, model, name, theirs) if model else iter(())
    said = list(itertools.islice(dict.fromkeys(tried), 3))
    return said or list(itertools.islice(pictures(golden, name, theirs), 2))


# ── the forward pass ──
def forward(golden: Golden, model: GPT2, name: str, theirs: Theirs) -> Iterator[str]:
    """Bugs that, planted in our model, give what the port has at this point; those of all blocks where there are any."""
    ids = np.array(golden.manifest["ids"])
    hits = 0
    for says, planted, hooks in candidates(model, name):
        if hits and (", from block" in says or ", in block" in says):
            return
        with planted.hooks(hooks):
            arrays = planted.trace(ids, only=name)
        if agrees(golden, name, arrays[name], theirs):
            hits += 1
            yield says


# ── the loss ──
def losses(golden: Golden, name: str, theirs: Theirs) -> Iterator[str]:
    """Other losses of the same logits."""
    logits, ids, targets = (np.array(golden.array("logits")), np.array(golden.manifest["ids"]), np.array(golden.manifest["targets"]))
    nll = -np.log(np.maximum(softmax(logits), 1e-300))

    def at(wanted: np.ndarray) -> np.ndarray:
        return np.take_along_axis(nll, wanted[..., None], -1)[..., 0]

    for value, says in ((at(targets).sum(), "the loss is the sum over the tokens; it is their mean"),
                        (at(targets).sum(-1).mean(), "the loss is the mean over rows of sums; it is the mean over all tokens"),
                        (at(targets).mean() / math.log(2), "the loss is in bits; it is in nats"),
                        (np.exp(at(targets).mean()), "that is the perplexity, exp(loss)"),
                        (at(ids).mean(), "the targets are not shifted: each place is to predict the next token, not its own"),
                        (at(targets)[:, -1].mean(), "the loss is that of the last place alone"),
                        (-at(targets).mean(), "the loss has the wrong sign")):
        if agrees(golden, name, np.asarray(value), theirs):
            yield says


# ── gradients ──
def gradients(golden: Golden, name: str, theirs: Theirs) -> Iterator[str]:
    """Other gradients, from ours of what comes after."""
    bare = name.removesuffix(".grad")
    prefix = bare.rsplit(".", 2)[0] if bare.count(".") > 2 else bare.rpartition(".")[0]

    def own(point: str) -> np.ndarray:
        return golden.array(f"{prefix}.{point}")

    made: list[tuple[np.ndarray, str]] = []
    if bare == "logits":
        p = softmax(golden.array("logits"))
        made.append((p / p[..., 0].size, "the gradient of the logits is softmax alone; the one-hot target is to be taken away"))
    elif bare == "wte.weight" and golden.manifest["config"]["tie_word_embeddings"]:
        rows = np.zeros_like(golden.array(name))
        np.add.at(rows, np.array(golden.manifest["ids"]), golden.array("embed.grad"))
        made += [(rows, "the tied weight's gradient lacks the head's part; it is the sum of both uses"),
                 (golden.array(name) - rows, "the tied weight's gradient lacks the embedding's part; it is the sum of both uses")]
        last = np.zeros_like(rows)
        last[np.array(golden.manifest["ids"])] = golden.array("embed.grad")
        made.append((golden.array(name) - rows + last, "rows of a token that is there twice are set, not added (scatter-add)"))
    elif bare.endswith("mlp.pre"):
        x, g = own("mlp.pre"), own("mlp.act.grad")
        inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
        t, cdf = np.tanh(inner), np.vectorize(lambda z: 0.5 * math.erfc(-z / math.sqrt(2)))(x)
        made += [(g, "the activation's derivative is left out"),
                 (g * (cdf + x * np.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)), "the derivative is that of GELU by erf"),
                 (g * (x > 0), "the derivative is that of ReLU"),
                 (g * 0.5 * (1 + t), "GELU's derivative lacks its second term, x Φ′(x): it is a product"),
                 (g * (0.5 * (1 + t) + 0.5 * x * (1 - t * t) * math.sqrt(2 / math.pi)),
                  "GELU's derivative lacks the inner one, 1 + 3·0.044715 x²")]
    elif bare.endswith(("attn.q", "attn.k")):
        p, dp = own("attn.pattern"), own("attn.pattern.grad")
        scale = 1.0 / math.sqrt(own("attn.q").shape[-1]) if golden.manifest["config"]["scale_attn_weights"] else 1.0

        def back(ds: np.ndarray) -> np.ndarray:
            return ds @ own("attn.k") if bare.endswith("q") else np.swapaxes(ds, -1, -2) @ own("attn.q")

        ds = p * (dp - (p * dp).sum(-1, keepdims=True))
        made += [(back(ds), "the scale 1/√(d/h) is left out on the way back"),
                 (scale * back(p * dp), "softmax's derivative lacks −⟨p, g⟩: it is p ⊙ (g − ⟨p, g⟩)"),
                 (scale * back(dp), "softmax's derivative is left out")]
    elif bare.endswith(("resid_mid", "resid_pre", "resid_post")):
        made += list(_residual(golden, bare))
    yield from (says for value, says in made if agrees(golden, name, value, theirs))


def _residual(golden: Golden, bare: str) -> Iterator[tuple[np.ndarray, str]]:
    """The gradient of the residual stream without one of its two ways, or with a LayerNorm that is differentiated wrongly."""
    n = golden.manifest["config"]["n_layer"]
    layer, point = int(bare.split(".")[1]), bare.split(".")[2]
    if point == "resid_post":
        layer, point = layer + 1, "resid_pre"
    if layer == n:
        return
    above, norm = ("resid_mid", "ln_1") if point == "resid_pre" else ("resid_post", "ln_2")
    skip, total = golden.array(f"blocks.{layer}.{above}.grad"), golden.array(f"{bare}.grad")
    yield skip, f"what comes back through {norm} is left out; the gradient is the sum of both ways"
    yield total - skip, f"the gradient that goes past {norm} is left out; it is the sum of both ways"
    # LayerNorm's own part: ∂x = rstd (ĝ − mean(ĝ) − x̂ mean(ĝ ⊙ x̂)), so ĝ·rstd is total − skip but for what the means take away
    x, y, g = (golden.array(f"blocks.{layer}.{name}") for name in (point, f"{norm}.out", f"{norm}.out.grad"))
    centred = x - x.mean(-1, keepdims=True)
    rstd = 1.0 / np.sqrt(np.square(centred).mean(-1, keepdims=True) + golden.manifest["config"]["layer_norm_epsilon"])
    flat, hat = y.reshape(-1, y.shape[-1]), (centred * rstd).reshape(-1, y.shape[-1])
    if len(flat) > 1:                                   # y = x̂ ⊙ weight + bias: a line through the places gives each weight
        spread = hat - hat.mean(0)
        weight = (spread * flat).sum(0) / np.maximum(np.square(spread).sum(0), 1e-300)
        yield skip + rstd * g * weight, f"{norm}'s derivative lacks its two means: x is in μ and σ, too"
        h = g * weight
        normal = centred * rstd
        yield (skip + rstd * (h - h.mean(-1, keepdims=True)), f"{norm}'s derivative lacks −x̂ mean(ĝ ⊙ x̂): σ depends on x")
        yield (skip + rstd * (h - normal * (h * normal).mean(-1, keepdims=True)), f"{norm}'s derivative lacks −mean(ĝ): μ depends on x")


# ── AdamW ──
STEPS = {
    "no decay": "weight decay is left out",
    "coupled": "weight decay is added to the gradient (Adam with L2); AdamW takes it off the parameter itself",
    "no correction": "the moments are not divided by 1 − βᵗ (bias correction)",
    "t stays 1": "the step count of the bias correction does not grow",
    "eps inside": "ε is inside the root; it is added to it: √v̂ + ε",
    "eps early": "ε is added before the bias correction of v; it is added after: √(v/(1 − β₂ᵗ)) + ε",
    "matrices": "only matrices decay; here all parameters do",
    "moments kept not": "the moments start from zero at every step",
    "summed": "gradients are not zeroed between steps",
    "clipped": "gradients are clipped to a norm of 1",
    "sgd": "that is a step of gradient descent, not of AdamW",
    "plus": "the step has the wrong sign",
}


def steps(golden: Golden, model: GPT2, name: str, theirs: Theirs) -> Iterator[str]:
    """Optimisers with one mistake each, run on our model up to the step."""
    last, parameter = int(name.split(".")[1]), name.split(".", 2)[2]
    if parameter == "loss":
        return
    for wrong, says in STEPS.items():
        value = stepped(golden, model, wrong, last)[parameter]
        if agrees(golden, name, value, theirs):
            yield says


def stepped(golden: Golden, model: GPT2, wrong: str, count: int) -> dict[str, np.ndarray]:
    """The parameters after `count` steps of AdamW with this mistake, one of STEPS."""
    lr, beta1, beta2, eps, decay = (golden.manifest["adamw"][key] for key in ("lr", "beta1", "beta2", "eps", "weight_decay"))
    copy = GPT2(model.config, dtype="float64", explicit=True, parameters={k: p.array.copy() for k, p in model.named_parameters()})
    own = dict(copy.named_parameters())
    m, v, sums = ({k: np.zeros_like(p.array) for k, p in own.items()} for _ in range(3))
    for t in range(1, count + 1):
        copy.zero_grad()
        copy.loss(np.array(golden.manifest["ids"]), np.array(golden.manifest["targets"])).backward()
        gs = {k: p.grad.array for k, p in own.items() if p.grad is not None}
        norm = math.sqrt(sum(float(np.square(g).sum()) for g in gs.values()))
        for k, p in own.items():
            g, x = gs[k], p.array.copy()
            if wrong == "summed":
                g = sums[k] = sums[k] + g
            if wrong == "clipped" and norm > 1.0:
                g = g / norm
            if wrong == "coupled":
                g = g + decay * x
            keep = 0.0 if wrong == "moments kept not" else 1.0
            m[k] = keep * beta1 * m[k] + (1 - beta1) * g
            v[k] = keep * beta2 * v[k] + (1 - beta2) * g * g
            at = 1 if wrong == "t stays 1" else t
            c1, c2 = (1.0, 1.0) if wrong == "no correction" else (1 - beta1**at, 1 - beta2**at)
            root = np.sqrt(v[k] / c2) + eps
            root = {"eps inside": np.sqrt(v[k] / c2 + eps), "eps early": (np.sqrt(v[k]) + eps) / math.sqrt(c2)}.get(wrong, root)
            if wrong not in ("no decay", "coupled") and not (wrong == "matrices" and x.ndim < 2):
                x *= 1 - lr * decay
            move = lr * g if wrong == "sgd" else lr * (m[k] / c1) / root
            p.assign(x + move if wrong == "plus" else x - move)
    return {k: p.array for k, p in own.items()}


# ── what it looks like ──
def pictures(golden: Golden, name: str, theirs: Theirs) -> Iterator[str]:
    """What a wrong tensor looks like by itself: a multiple, transposed, shifted, another one, some places alone, or rounded."""
    dtype, b = theirs(name)
    a = golden.array(name)
    if b.size and not b.any():
        yield "it is all zero"
        return
    yield from _factors(golden, name, a, b, theirs)
    for axes in itertools.permutations(range(a.ndim)):
        if axes != tuple(range(a.ndim)) and a.transpose(axes).shape == a.shape and agrees(golden, name, a.transpose(axes), theirs):
            yield f"its axes are in another order: {list(axes)} of ours"
    for other, entry in golden.entries.items():
        if other != name and entry.shape == list(a.shape) and _near(name, other):
            value = golden.array(other)
            if agrees(golden, name, value, theirs) and distance(golden.entries[name], a, value, dtype) > ALLOWED:
                yield f"it is {other}"
    if a.ndim > 1 and a.shape[-2] > 1:
        for shift in (1, -1):
            rows = slice(1, None) if shift == 1 else slice(None, -1)
            moved = np.where(np.isin(np.arange(a.shape[-2]), np.arange(a.shape[-2])[rows])[:, None], np.roll(a, shift, -2), b)
            if agrees(golden, name, moved, theirs):
                yield f"it is shifted by one place, {'later' if shift == 1 else 'earlier'}"
        yield from _places(golden, name, a, b, dtype)
    off = float(np.sqrt(np.square(b - a).mean()))
    gap = off / max(float(np.sqrt(np.square(a).mean())), 1e-300)
    for kind, or_that in (("float16", "float16 or tf32"), ("bfloat16", "bfloat16")):
        most, mean = unit_of(golden.entries[name], kind)
        if EPS[kind] > EPS[dtype] and off <= 2 * mean and float(np.abs(b - a).max()) <= ALLOWED * most:
            yield f"the error is the size of {kind}'s rounding: is something computed or stored in {or_that}?"
            return
    if gap < 0.5:
        yield f"{100 * gap:.3g} % off in the mean square, with no pattern that is known here"


def _near(name: str, other: str) -> bool:
    """Tensors that may be mistaken for each other: of the same block, or points of another."""
    return other.startswith(name.rpartition(".")[0].rpartition(".")[0]) or name.split(".")[-1] == other.split(".")[-1]


def _factors(golden: Golden, name: str, a: np.ndarray, b: np.ndarray, theirs: Theirs) -> Iterator[str]:
    """A constant factor, by its name where it has one."""
    size = float((a * a).sum())
    factor = float((a * b).sum()) / size if size else 0.0
    if factor == 0.0 or not agrees(golden, name, factor * a, theirs):
        return
    ids = np.array(golden.manifest["ids"])
    config = golden.manifest["config"]
    known = {"2": 2, "the number of tokens": ids.size, "the number of rows": ids.shape[0], "the tokens of a row": ids.shape[1],
             "ln 2": math.log(2), "√(d/h)": math.sqrt(config["n_embd"] / config["n_head"]), "√d": math.sqrt(config["n_embd"]),
             "the number of heads": config["n_head"]}
    for what, value in known.items():
        for text, number in ((what, value), (f"1 / {what}", 1 / value)):
            if value != 1 and abs(abs(factor) / number - 1.0) < 1e-4:
                yield f"it is {'minus ' * (factor < 0)}{text} times what it should be ({factor:.6g})" + _why(name, what)
                return
    yield f"it is {factor:.6g} times what it should be" + (": the wrong sign" if abs(factor + 1.0) < 1e-6 else "")


def _why(name: str, what: str) -> str:
    if not name.endswith(".grad"):
        return ""
    return {"the number of tokens": ": the loss is a mean over all tokens, and so are gradients",
            "the number of rows": ": sum or mean over rows",
            "2": ": is it added twice, or backward run twice without zeroing?"}.get(what, "")


def _places(golden: Golden, name: str, a: np.ndarray, b: np.ndarray, dtype: str) -> Iterator[str]:
    """Which places or rows alone are wrong."""
    most, _ = unit_of(golden.entries[name], dtype)
    wrong = np.abs(b - a) > ALLOWED * most
    for axis, what in ((-2, "place"), (0, "row of the batch")):
        if a.shape[axis] < 2 or (axis == 0 and a.ndim < 3):
            continue
        hit = np.flatnonzero(wrong.any(tuple(i for i in range(a.ndim) if i != axis % a.ndim)))
        if 0 < hit.size < a.shape[axis]:
            run = f"{hit[0]}" if hit.size == 1 else f"{hit[0]} … {hit[-1]}"
            yield f"only {what}{'s' * (hit.size > 1)} {run} of {a.shape[axis]} {'are' if hit.size > 1 else 'is'} wrong"
            return
