"""Why a port differs: what the first tensor that is wrong looks like, and which planted bug gives the same."""
from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from .bugs import Bug, possible, softmax, spans
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
        array = aligned(raw, named, golden.entries[name])
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
        tried: Iterator[str] = losses(golden, name, theirs) if "logits" in golden.entries else iter(())
    elif name.startswith("step."):
        tried = steps(golden, model, name, theirs) if model else iter(())
    elif name.endswith(".grad"):
        tried = gradients(golden, name, theirs)
    else:
        tried = forward(golden, model, found, theirs) if model else iter(())
    said = list(itertools.islice(dict.fromkeys(tried), 3))
    return said or list(itertools.islice(pictures(golden, name, theirs), 2))


# ── the forward pass ──
def forward(golden: Golden, model: GPT2, found: Sequence[Compared], theirs: Theirs) -> Iterator[str]:
    """Bugs that, planted in our model, give what the port has at the first point that is wrong; of several, those that hold for longest."""
    ids, points = np.array(golden.manifest["ids"]), model.points()
    wrong = next(i for i, c in enumerate(found) if not c.ok)
    names = [c.name for c in found[wrong:] if c.name in points and not c.trouble]
    hits: list[tuple[int, Bug, str]] = []
    for where, layers in spans(model, names[0]):
        for bug in dict.fromkeys(bug for _, bug, _ in hits) or possible(names[0], where):
            planted, hooks = bug.plant(model, layers)
            with planted.hooks(hooks):
                if not agrees(golden, names[0], planted.trace(ids, only=names[0])[names[0]], theirs):
                    continue
                arrays = planted.trace(ids)
            held = next((i for i, name in enumerate(names) if not agrees(golden, name, arrays[name], theirs)), len(names))
            hits.append((held, bug, where))
    best = max((held for held, _, _ in hits), default=0)
    said = set[str]()
    for held, bug, where in hits:                       # what is in all blocks is said before what may be in one alone
        if held == best and bug.says not in said:
            said.add(bug.says)
            yield bug.says + where


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
                 *((scale * back(d), "softmax's derivative is left out")         # of what may be seen, or of all
                   for d in (dp, own("attn.z.grad") @ np.swapaxes(own("attn.v"), -1, -2)))]
    elif bare.endswith(("resid_mid", "resid_pre", "resid_post")):
        made += list(_residual(golden, bare))
    elif bare.endswith(".bias"):
        g = _added_to(golden, bare)
        made += [(row.sum(0), f"row {i} of the batch alone is in it; a bias is added at all places of all rows, and its gradient their sum")
                 for i, row in enumerate(g)]
        made.append((g[:, -1].sum(0), "the last place alone is in it; a bias is added at all places, and its gradient is their sum"))
    yield from (says for value, says in made if agrees(golden, name, value, theirs))


def _added_to(golden: Golden, bias: str) -> np.ndarray:
    """The gradient [B, T, n] of what a bias is added to."""
    module = bias.removesuffix(".bias")
    if not module.startswith("h."):
        return golden.array(f"{module}.out.grad")
    block, end = f"blocks.{module.split('.')[1]}", module.split(".", 2)[2]
    if end == "attn.c_attn":                                           # 3 × [B, h, T, d/h] -> [B, T, 3d]
        parts = [golden.array(f"{block}.attn.{part}.grad").transpose(0, 2, 1, 3) for part in "qkv"]
        return np.concatenate([part.reshape(*part.shape[:2], -1) for part in parts], axis=-1)
    point = {"attn.c_proj": "attn.out", "mlp.c_fc": "mlp.pre", "mlp.c_proj": "mlp.out"}.get(end, f"{end}.out")
    return golden.array(f"{block}.{point}.grad")


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


SETTINGS: dict[str, tuple[str, tuple[float, ...]]] = {                 # of AdamW, and what others have them at
    "lr": ("the learning rate", ()),
    "beta1": ("β₁", (0.0, 0.5, 0.8, 0.85, 0.9, 0.95, 0.98, 0.99)),
    "beta2": ("β₂", (0.9, 0.95, 0.98, 0.99, 0.995, 0.999, 0.9999)),
    "eps": ("ε", (0.0, 1e-12, 1e-10, 1e-9, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3)),
    "weight_decay": ("weight decay", (1e-4, 1e-3, 0.01, 0.05, 0.1, 0.2, 1.0)),
}


def steps(golden: Golden, model: GPT2, name: str, theirs: Theirs) -> Iterator[str]:
    """Optimisers with one mistake each, then with one setting each that is another, run on our model up to the step."""
    last, what = int(name.split(".")[1]), name.split(".", 2)[2]
    start = slopes(golden, model)
    if what != "loss" and what not in start[1]:
        return

    def ended(wrong: str = "", **settings: float) -> np.ndarray:
        return stepped(golden, model, start, last, what, wrong, **settings)

    for wrong, says in STEPS.items():
        if agrees(golden, name, ended(wrong), theirs):
            yield says
    dtype, b = theirs(name)
    for key, (says, usual) in SETTINGS.items():
        own, values = golden.manifest["adamw"][key], set(usual)
        if key in ("lr", "weight_decay"):
            values |= {own * factor for factor in (0.01, 0.1, 0.5, 2.0, 10.0, 100.0)}
            if what != "loss":                          # a step is nearly linear in them: where the line meets the port's numbers
                probe = 2.0 * own or 0.1
                slope = (ended("", **{key: probe}) - golden.array(name)) / (probe - own)
                met = own + float(((b - golden.array(name)) * slope).sum()) / max(float(np.square(slope).sum()), 1e-300)
                values |= {float(f"{met:.{digits}g}") for digits in (1, 2, 3, 17) if met > 0.0}
            values -= {0.0}
        tried = {value: ended("", **{key: value}) for value in values - {own}}
        far = {value: distance(golden.entries[name], array, b, dtype) for value, array in tried.items() if np.isfinite(array).all()}
        if far and agrees(golden, name, tried[value := min(far, key=lambda value: far[value])], theirs):
            times = f", {value / own:.4g} times as much" if own else ""
            yield f"{says} is {value:.4g}{times}; here it is {own:g}"


def slopes(golden: Golden, model: GPT2) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The loss of a model, and its gradients by parameter."""
    model.zero_grad()
    loss = model.loss(np.array(golden.manifest["ids"]), np.array(golden.manifest["targets"]))
    loss.backward()
    return loss.array, {name: p.grad.array for name, p in model.named_parameters() if p.grad is not None}


def stepped(golden: Golden, model: GPT2, start: tuple[np.ndarray, dict[str, np.ndarray]], last: int, what: str, wrong: str = "",
            **settings: float) -> np.ndarray:
    """A parameter after the last step of AdamW, or the loss before it, with a mistake, one of STEPS, or other settings.

    start: the `slopes` of the model as it is, the same for all.
    """
    lr, beta1, beta2, eps, decay = ((golden.manifest["adamw"] | settings)[key] for key in ("lr", "beta1", "beta2", "eps", "weight_decay"))
    own = {k: p.array for k, p in model.named_parameters()}
    m, v, sums = ({k: np.zeros_like(p) for k, p in own.items() if last > 1 or k == what} for _ in range(3))
    for t in range(1, last + 1):
        loss, gs = start if t == 1 else slopes(golden, GPT2(model.config, dtype="float64", explicit=True, parameters=own))
        if t == last and what == "loss":
            return loss
        norm = math.sqrt(sum(float(np.square(g).sum()) for g in gs.values())) if wrong == "clipped" else 0.0
        for k in own if t < last else [what]:
            g, x = gs[k], own[k]
            if wrong == "summed":
                g = sums[k] = sums[k] + g
            if norm > 1.0:
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
                x = x * (1 - lr * decay)
            move = lr * g if wrong == "sgd" else lr * (m[k] / c1) / root
            own[k] = x + move if wrong == "plus" else x - move
    return own[what]


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
    most, _ = unit_of(golden.entries[name], dtype)
    for kind in ("float16", "bfloat16"):
        if EPS[kind] > EPS[dtype] and _held(b, kind) and (np.abs(b - a) <= 0.5 * EPS[kind] * np.abs(a) + 2.0**-25 + ALLOWED * most).all():
            yield f"it is right but for {kind}'s rounding: is it computed or stored in {kind}?"
            return
    off, size = (float(np.sqrt(np.square(x).mean())) for x in (b - a, a))
    yield (f"it is off by {100 * off / size:.3g} % in the mean square" if size else "it should be all zero") + _alike(a, b) \
        + ", with no pattern that is known here"


def _held(b: np.ndarray, kind: str) -> bool:
    """Whether all numbers are such as float16 or bfloat16 has."""
    with np.errstate(over="ignore"):
        if kind == "float16":
            return np.array_equal(b.astype(np.float16), b)
        narrow = b.astype(np.float32)
    return np.array_equal(narrow, b) and not (narrow.view(np.uint32) & 0xFFFF).any()     # bfloat16 is the upper half of a float32


def _alike(a: np.ndarray, b: np.ndarray) -> str:
    """How much two arrays go together, where they are more than a number."""
    spread = float(a.std() * b.std()) if a.size > 1 else 0.0
    return f", its correlation with ours {float(((a - a.mean()) * (b - b.mean())).mean()) / spread:.3f}" if spread else ""


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
            yield f"only {what}{'s' * (hit.size > 1)} {runs(hit.tolist())} of {a.shape[axis]} {'are' if hit.size > 1 else 'is'} wrong"
            return


def runs(numbers: Sequence[int]) -> str:
    """Rising whole numbers as text: [0, 2, 3, 4, 9] is "0, 2 … 4, 9"."""
    groups = [[n for _, n in group] for _, group in itertools.groupby(enumerate(numbers), lambda pair: pair[1] - pair[0])]
    return ", ".join(str(g[0]) if len(g) == 1 else f"{g[0]}, {g[1]}" if len(g) == 2 else f"{g[0]} … {g[-1]}" for g in groups)
