"""python -m benchmarks.accuracy: the error of float32 in GPT-2's logits, loss and gradients, compared with PyTorch and JAX.

The truth is the same model with the same weights in float64; it is used only if PyTorch's float64 agrees to 1e-10. The error of a tensor
is the root mean square of (float32 − truth) divided by that of the truth. Rounding depends on the numbers, so each repetition uses another
batch, and each ratio has its standard error. OPENBLAS_CORETYPE and OPENBLAS_L2_SIZE are unset, as on a user's machine.
"""
from __future__ import annotations

import dataclasses
import math
import os
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

Tensors = dict[str, Any]                                # "logits", "loss", and gradients by parameter name; NumPy arrays
Pass = Callable[[Any, Any], Tensors]                    # ids, targets [B, T] -> Tensors

US, PEER = "minigrad", "torch eager"                    # the ratio compares these two
TRUE = 1e-10                                            # the largest difference of two float64 passes, in RMS over RMS


# ── the programs that are compared ──
def minigrad_pass(config: Any, weights: Mapping[str, Any], explicit: bool = False) -> Pass:
    from gpt2 import GPT2

    model = GPT2(config, dtype=str(weights["wte.weight"].dtype), explicit=explicit, parameters=weights)

    def run(ids: Any, targets: Any) -> Tensors:
        logits = model(ids)
        loss = model.F.cross_entropy(logits, targets)
        loss.backward()
        grads = {name: p.grad.numpy() for name, p in model.named_parameters()}
        model.zero_grad()
        return {"logits": logits.numpy(), "loss": loss.numpy(), **grads}

    return run


def torch_pass(config: Any, weights: Mapping[str, Any], attention: str = "eager") -> Pass:
    """transformers' GPT-2, which shares the memory of `weights`. ImportError if PyTorch or transformers is missing."""
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    fields: dict[str, Any] = {**dataclasses.asdict(config), "attn_implementation": attention}
    with torch.device("meta"):
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**fields)).eval()
    state = {name if name == "lm_head.weight" else f"transformer.{name}": torch.from_numpy(array) for name, array in weights.items()}
    missing = model.load_state_dict(state, strict=False, assign=True).missing_keys
    model.tie_weights()
    assert set(missing) <= {"lm_head.weight"} and not any(t.is_meta for t in (*model.parameters(), *model.buffers())), missing

    def run(ids: Any, targets: Any) -> Tensors:
        logits = model(torch.from_numpy(ids)).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.from_numpy(targets).flatten())
        loss.backward()
        grads = {name.removeprefix("transformer."): p.grad.numpy() for name, p in model.named_parameters()}
        model.zero_grad()
        return {"logits": logits.detach().numpy(), "loss": loss.detach().numpy(), **grads}

    return run


def jax_pass(config: Any, weights: Mapping[str, Any]) -> Pass:
    """GPT-2 as a function of its parameters, compiled by jax.jit. ImportError if JAX is missing."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    act = {"gelu_new": lambda x: jax.nn.gelu(x, approximate=True), "gelu": lambda x: jax.nn.gelu(x, approximate=False),
           "relu": jax.nn.relu}[config.activation_function]
    heads = config.n_head

    def norm(w: Any, name: str, x: Any) -> Any:
        centred = x - x.mean(-1, keepdims=True)
        variance = (centred * centred).mean(-1, keepdims=True)
        return centred * jax.lax.rsqrt(variance + config.layer_norm_epsilon) * w[f"{name}.weight"] + w[f"{name}.bias"]

    def affine(w: Any, name: str, x: Any) -> Any:
        return x @ w[f"{name}.weight"] + w[f"{name}.bias"]

    def attention(w: Any, layer: int, x: Any) -> Any:                  # [B, T, d]
        B, T, d = x.shape
        q, k, v = jnp.split(affine(w, f"h.{layer}.attn.c_attn", x).reshape(B, T, 3 * heads, d // heads), 3, axis=2)
        scale = 1.0 / math.sqrt(d // heads) if config.scale_attn_weights else 1.0
        scale = scale / (layer + 1) if config.scale_attn_by_inverse_layer_idx else scale
        scores = jnp.einsum("bqhe,bkhe->bhqk", q, k) * scale
        p = jax.nn.softmax(jnp.where(jnp.tri(T, dtype=bool), scores, -jnp.inf))
        return affine(w, f"h.{layer}.attn.c_proj", jnp.einsum("bhqk,bkhe->bqhe", p, v).reshape(B, T, d))

    def loss(w: Any, ids: Any, targets: Any) -> tuple[Any, Any]:
        x = w["wte.weight"][ids] + w["wpe.weight"][:ids.shape[1]]
        for layer in range(config.n_layer):
            h = f"h.{layer}"
            x = x + attention(w, layer, norm(w, f"{h}.ln_1", x))
            x = x + affine(w, f"{h}.mlp.c_proj", act(affine(w, f"{h}.mlp.c_fc", norm(w, f"{h}.ln_2", x))))
        logits = norm(w, "ln_f", x) @ w["wte.weight" if config.tie_word_embeddings else "lm_head.weight"].T
        picked = jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], axis=-1)
        return -picked.mean(), logits

    walk = jax.jit(jax.value_and_grad(loss, has_aux=True))
    on_device = {name: jnp.asarray(array) for name, array in weights.items()}

    def run(ids: Any, targets: Any) -> Tensors:
        (value, logits), grads = walk(on_device, ids, targets)
        return {"logits": np.asarray(logits), "loss": np.asarray(value), **{name: np.asarray(g) for name, g in grads.items()}}

    return run


# Each program: a function from a configuration and weights by name to a Pass in the dtype of the weights.
PARTIES: dict[str, Callable[[Any, Mapping[str, Any]], Pass]] = {
    "minigrad": minigrad_pass, "unfused": partial(minigrad_pass, explicit=True),
    "torch eager": torch_pass, "torch sdpa": partial(torch_pass, attention="sdpa"), "jax": jax_pass,
}


# ── errors ──
def error(found: Any, truth: Any) -> float:
    """‖found − truth‖ / ‖truth‖, summed in float64; 0 for two zeros. ValueError if the shapes differ, which broadcasting would hide."""
    import numpy as np

    if found.shape != truth.shape:
        raise ValueError(f"error: the shape is {list(found.shape)}, but that of the truth is {list(truth.shape)}")
    apart, size = np.ravel(np.subtract(found, truth, dtype=np.float64)), np.ravel(np.asarray(truth, np.float64))
    # a number that is not finite has an infinite error
    far = math.sqrt(apart @ apart) if np.isfinite(apart).all() else math.inf
    return far / math.sqrt(size @ size) if far else 0.0


def errors(found: Tensors, truth: Tensors) -> dict[str, float]:
    """The `error` of each tensor. ValueError if one side has tensors that the other does not have."""
    if found.keys() != truth.keys():
        raise ValueError(f"errors: only one side has {sorted(found.keys() ^ truth.keys())}")
    return {name: error(found[name], truth[name]) for name in truth}


def kind(name: str) -> str:
    """A tensor's name with * instead of the number of the layer."""
    return re.sub(r"^h\.\d+\.", "h.*.", name)


class Ratio(NamedTuple):
    """Our mean error divided by the peer's, and the standard error of this ratio (NaN if there is only one repetition)."""

    value: float
    spread: float

    @property
    def verdict(self) -> str:
        """"less" or "more" if the ratio differs from 1 by more than two standard errors, else "level"."""
        room = 0.0 if math.isnan(self.spread) else 2.0 * self.spread
        return "more" if self.value > 1.0 + room else "less" if self.value < 1.0 - room else "level"


def ratio(ours: list[float], theirs: list[float]) -> Ratio:
    """The ratio of two lists of errors, with one error for each repetition.

    The standard error is that of a quotient of means of pairs (Cochran 1977, §2.11).
    """
    n, bottom = len(ours), statistics.fmean(theirs)
    if not bottom:
        return Ratio(1.0 if not any(ours) else math.inf, math.nan)
    value = statistics.fmean(ours) / bottom
    rest = sum((a - value * b) ** 2 for a, b in zip(ours, theirs))
    return Ratio(value, math.sqrt(rest / (n * (n - 1))) / bottom if n > 1 else math.nan)


class Line(NamedTuple):
    """One line of the table, for a tensor or for all tensors of a kind. errors: by program, one for each repetition."""

    name: str
    errors: dict[str, list[float]]

    def mean(self, who: str) -> float:
        return statistics.fmean(self.errors[who])

    def ratio(self) -> Ratio | None:
        return ratio(self.errors[US], self.errors[PEER]) if {US, PEER} <= self.errors.keys() else None


def by_kind(lines: Iterable[Line]) -> list[Line]:
    """One line for each kind of tensor: the root mean square of the layers' errors, repetition by repetition."""
    groups: dict[str, list[Line]] = {}
    for line in lines:
        groups.setdefault(kind(line.name), []).append(line)

    def together(group: list[Line], who: str) -> list[float]:
        return [math.sqrt(statistics.fmean(e * e for e in each)) for each in zip(*(line.errors[who] for line in group))]

    return [Line(name, {who: together(group, who) for who in group[0].errors}) for name, group in groups.items()]


# ── the run ──
def random_weights(config: Any, seed: int = 0) -> Tensors:
    """GPT-2's initial weights from a seed, with N(0, 0.1²) added to biases and LayerNorm parameters, because × 1 and + 0 do not round."""
    import minigrad as mg
    from gpt2 import GPT2

    weights = GPT2(config, seed=seed).state_dict()
    for i, (name, array) in enumerate(weights.items()):
        if array.ndim == 1:
            weights[name] = array + mg.random.normal(mg.random.fold_in(mg.random.key(seed + 1), i), array.shape, std=0.1).numpy()
    return weights


def present(names: Iterable[str], config: Any, weights: Mapping[str, Any]) -> dict[str, Pass]:
    """The programs that are installed; for each other one a line on stderr says how to install it."""
    found = {}
    for name in names:
        try:
            found[name] = PARTIES[name](config, weights)
        except ImportError as missing:
            how = "pip install jax" if name == "jax" else "pip install torch transformers"
            print(f"{name} is left out: {missing}; install it with: {how}", file=sys.stderr)
    return found


def truth_of(config: Any, weights: Mapping[str, Any], ids: Any, targets: Any) -> tuple[Tensors, dict[str, float] | None]:
    """The float64 pass, and the distance of PyTorch's float64 pass, or None if PyTorch is not installed."""
    wide = {name: array.astype("float64") for name, array in weights.items()}
    truth = minigrad_pass(config, wide)(ids, targets)
    try:
        return truth, errors(torch_pass(config, wide)(ids, targets), truth)
    except ImportError:
        return truth, None


def measure(config: Any, weights: Mapping[str, Any], rows: int, length: int, repeats: int, names: list[str],
            say: Callable[[str], Any]) -> tuple[list[Line], tuple[float, str] | None]:
    """A line for each tensor, and the largest disagreement about the truth with the tensor's name. It stops if that is too large."""
    import numpy as np

    lines: dict[str, Line] = {}
    checked: tuple[float, str] | None = None
    parties = present(names, config, weights)
    for i in range(repeats):
        started = time.perf_counter()
        ids = np.random.default_rng(i).integers(0, config.vocab_size, (rows, length + 1))
        ids, targets = ids[:, :-1].copy(), ids[:, 1:].copy()
        truth, apart = truth_of(config, weights, ids, targets)
        if apart is not None:
            checked = max(checked or (0.0, ""), max((e, name) for name, e in apart.items()))
            if not checked[0] <= TRUE:
                break
        for who, run in parties.items():
            for name, e in errors(run(ids, targets), truth).items():
                lines.setdefault(name, Line(name, {p: [] for p in parties})).errors[who].append(e)
        say(f"batch {i + 1} of {repeats}: {time.perf_counter() - started:.0f} s")
    return list(lines.values()), checked


def table(lines: list[Line]) -> list[str]:
    """The lines as text: the mean error of each program in units of 1e-7, and the ratio with its standard error and verdict."""
    parties = list(lines[0].errors) if lines else []
    wide = max([len(line.name) for line in lines], default=0)
    out = [f"{'RMS error / RMS, in 1e-7':<{wide}}" + "".join(f"{who:>13}" for who in parties) + f"   {US} / {PEER}"]
    for line in lines:
        r = line.ratio()
        tail = "" if r is None else f"   {r.value:.2f}" + ("" if math.isnan(r.spread) else f" ± {r.spread:.2f}") + f" {r.verdict}"
        out.append(f"{line.name:<{wide}}" + "".join(f"{1e7 * line.mean(who):13.3f}" for who in parties) + tail)
    return out


def summary(lines: list[Line]) -> str:
    """The numbers of lines with a smaller error than the peer, with as large an error and with a larger one, and the names of the last."""
    verdicts = {line.name: r.verdict for line in lines if (r := line.ratio()) is not None}
    if not verdicts:
        return f"no {PEER} to compare with"
    count = list(verdicts.values()).count
    more = [name for name, v in verdicts.items() if v == "more"]
    return (f"{US} beside {PEER}: less error on {count('less')} lines, level on {count('level')}, more on {count('more')}"
            + (f": {', '.join(more)}" if more else ""))


def document(lines: list[Line], checked: tuple[float, str] | None, context: str) -> dict[str, Any]:
    """What --json prints: every tensor's errors, repetition by repetition."""
    return {"context": context, "truth": None if checked is None else {"apart": checked[0], "tensor": checked[1], "bound": TRUE},
            "tensors": {line.name: line.errors for line in lines}, "summary": summary(by_kind(lines))}


def main(argv: list[str] | None = None) -> int:
    import importlib.metadata
    import importlib.util
    import platform

    from gpt2 import GPT2, GPT2Config
    from gpt2.cli.command import Extend, Parser, at_least, comma_separated, emit_json
    from gpt2.errors import UsageError

    p = Parser(prog="python -m benchmarks.accuracy", description=__doc__)
    p.add_argument("--model", metavar="NAME|DIR", help="the weights to use (default: random weights of the 124M)")
    p.add_argument("--rows", type=at_least(1), default=2, metavar="B")
    p.add_argument("--length", type=at_least(1), default=64, metavar="T", help="tokens in a row")
    p.add_argument("--repeats", type=at_least(1), default=5, metavar="N", help="repetitions, each with another batch")
    p.add_argument("--peers", type=comma_separated, action=Extend, default="torch,jax", metavar="A,B",
                   help="a comma-separated list of torch and jax; a peer that is not installed is left out")
    p.add_argument("--all", action="store_true", help="print a line for each tensor, not for each kind")
    p.add_argument("--json", action="store_true", help="print one JSON document as the last line of stdout")
    args = p.parse_args(argv)
    peers = args.peers
    if other := sorted(set(peers) - {"torch", "jax"}):
        p.error(f"argument --peers: {other[0]!r} is neither torch nor jax")
    if args.model is None:
        config = GPT2Config.from_name("gpt2")
        weights = random_weights(config)
    else:
        model = GPT2.from_pretrained(args.model)
        config, weights = model.config, model.state_dict()
    if args.length > config.n_positions:
        raise UsageError(f"--length {args.length} does not fit the context of {config.n_positions}")
    versions = [f"{name} {importlib.metadata.version(name)}" for name in ("numpy", *peers) if importlib.util.find_spec(name)]
    context = (f"{args.model or 'GPT-2 124M, random weights'}, B{args.rows} T{args.length}, {args.repeats} batches; "
               f"{', '.join(versions)}, {platform.machine()}")
    print(context)
    names = [name for name in PARTIES if name.partition(" ")[0] in ("minigrad", "unfused", *peers)]
    lines, checked = measure(config, weights, args.rows, args.length, args.repeats, names, lambda line: print(line, file=sys.stderr))
    if checked is None:
        print("truth: float64, not checked, because PyTorch is not installed: pip install torch transformers")
    elif not checked[0] <= TRUE:
        print(f"no truth to compare with: PyTorch's float64 is {checked[0]:.1e} from ours at {checked[1]}, more than {TRUE:.0e}")
        return 1
    else:
        print(f"truth: float64; PyTorch's is within {checked[0]:.1e} of ours (at {checked[1]})")
    print("\n".join(table(lines if args.all else by_kind(lines))))
    print(summary(by_kind(lines)))
    if args.json:
        emit_json(document(lines, checked, context))
    return 0


if __name__ == "__main__":
    from .processes import UNSET

    for setting in UNSET:
        os.environ.pop(setting, None)                   # this must happen before NumPy loads its BLAS
    from gpt2.cli.command import run_command

    run_command(main, "benchmarks.accuracy")
