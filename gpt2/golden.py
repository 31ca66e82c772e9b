"""python -m gpt2.golden: what a port of GPT-2 must compute, as safetensors with a manifest: activations, loss, gradients, AdamW steps."""
from __future__ import annotations

import argparse
import contextlib
import dataclasses
import itertools
import json
import math
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import minigrad as mg
from minigrad.debug import size_of

from . import llmc
from .cli import Parser, at_least, emit_json, run_command
from .config import GPT2Config
from .errors import MissingError, UsageError
from .files import write_folder
from .footprint import footprint
from .hooks import BLOCK
from .model import GPT2
from .model_flags import add_model, add_prompt, model_of, name_of, prompt_ids
from .revealing import telling_weights, unseen
from .stored import CODES, NAMES, Loader, Stored, read_header, safetensors_pieces
from .table import number, plain, table

MANIFEST, TENSORS, MODEL = "manifest.json", "tensors.safetensors", "model"
RULES = {                                               # of gradients at points, by the end of the name
    "logits": "cross_entropy.3", "attn.v": "attention.4", "attn.pattern": "attention.5", "attn.q": "attention.6", "attn.k": "attention.7",
    "embed": "block.6", "pos_embed": "sum_to.4", "resid_pre": "block.6", "attn.out": "block.5", "resid_mid": "block.5",
    "ln_f.out": "linear.5",
}
EPS32 = float(np.finfo(np.float32).eps)


class Adam(NamedTuple):
    """Settings of the AdamW steps, those of llm.c's test: weight decay on all parameters, no clipping."""

    lr: float = 1e-4
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.01


class Entry(NamedTuple):
    """A tensor of the manifest. unit, unit_rms: what our own float32 run is off by, at most (tolerance.7) and in the mean square."""

    name: str
    equation: str
    shape: list[int]
    dtype: str
    norm: float
    unit: float
    unit_rms: float


class Golden(NamedTuple):
    """What a folder of gpt2.golden holds. manifest["tensors"] as `entries`, in order; `array(name)` reads one, in float64."""

    folder: Path
    manifest: dict[str, Any]
    entries: dict[str, Entry]
    stored: dict[str, Stored]

    def array(self, name: str) -> np.ndarray:
        return Loader(np.dtype(np.float64))(self.stored[name])


def parser() -> argparse.ArgumentParser:
    p = Parser(prog="python -m gpt2.golden", description=__doc__)
    add_model(p, ("float64", "float32"), "float64")
    add_prompt(p)
    p.add_argument("--format", choices=("safetensors", "llmc"), default="safetensors",
                   help="llmc: the files that llm.c and its ports read, gpt2_124M.bin, gpt2_124M_debug_state.bin and gpt2_tokenizer.bin "
                        "(default: safetensors)")
    p.add_argument("--batch-size", type=at_least(1), default=1, metavar="B",
                   help="rows that the ids are laid out in, one after the other (default: 1)")
    p.add_argument("--grad", action="store_true", help="the gradient of the loss at every point and parameter, too")
    p.add_argument("--steps", type=at_least(0), metavar="N",
                   help="AdamW steps on the same batch: loss and parameters after each; with --format llmc the losses alone "
                        "(default: 0, with llmc 10)")
    for name, value in Adam()._asdict().items():
        flag = {"lr": "learning-rate", "eps": "adam-eps"}.get(name, name.replace("_", "-"))
        below = 1.0 if name.startswith("beta") else math.inf
        p.add_argument(f"--{flag}", dest=name, type=from_0(below), default=value, metavar="X", help=f"of the steps (default: {value})")
    p.add_argument("--out", type=Path, default=Path("golden"), metavar="DIR", help="the folder to write (default: golden)")
    p.add_argument("--json", action="store_true", help="the manifest instead of a table")
    return p


def from_0(below: float) -> Callable[[str], float]:
    """For `add_argument(type=)`: a number from 0 on and below this one."""

    def number_of(value: str) -> float:
        if not 0.0 <= (x := float(value)) < below:
            raise argparse.ArgumentTypeError(f"{value} is not in [0, {'∞' if below == math.inf else format(below, 'g')})")
        return x

    return number_of


def batch_of(ids: list[int], rows: int, learns: bool) -> tuple[np.ndarray, np.ndarray | None]:
    """ids as inputs [B, T] and the tokens after them [B, T], or None where there is one id. UsageError where they do not fill the rows."""
    if len(ids) < 2:
        if learns or rows > 1:
            raise UsageError("one id has none after it to predict; --grad, --steps and --batch-size need more")
        return np.array([ids]), None
    if (len(ids) - 1) % rows:
        raise UsageError(f"{len(ids)} ids are B·T + 1 for no T with --batch-size {rows}; leave out {(len(ids) - 1) % rows}")
    return np.array(ids[:-1]).reshape(rows, -1), np.array(ids[1:]).reshape(rows, -1)


# ── what there is to say ──
def host(a: Any) -> np.ndarray:
    """A copy of an array of any backend."""
    return np.array(mg.backend.of(a).host(a))


def gradient_of(p: mg.Tensor) -> Any:
    """The array of a parameter's gradient, after backward."""
    assert p.grad is not None
    return p.grad.array


def permitted(name: str, a: np.ndarray) -> np.ndarray:
    """a, but 0 where the causal mask forbids: no causal kernel computes the gradient of those attention weights."""
    return np.tril(a) if name.endswith("attn.pattern.grad") else a


def backward_order(names: Iterable[str]) -> list[str]:
    """Parameters as backward gets done with them: the last block first, the tables last, each weight before its bias."""
    own = list(names)
    blocks: dict[str, list[str]] = {}
    for name in own:
        blocks.setdefault(name.rpartition(".")[0], []).append(name)
    ends = [key for key in ("lm_head", "ln_f") if key in blocks]
    inner = [key for key in blocks if key.startswith("h.")]
    return [name for key in [*ends, *reversed(inner), "wpe", "wte"] for name in blocks[key]]


def equation_of_gradient(name: str, forward: Mapping[str, str], tied: bool) -> str:
    """The label of the rule that gives the gradient of a point or a parameter; tied: wte is the head's matrix too."""
    if name in forward:
        end = name.split(".", 2)[-1] if name.startswith("blocks.") else name
        if end == "mlp.pre":
            return {"gelu.1": "gelu.3", "gelu.2": "gelu.4", "relu.1": "relu.1"}[forward[name.replace("mlp.pre", "mlp.act")]]
        if end in ("mlp.out", "resid_post"):            # what comes back from the next block, or from ln_f
            block = int(name.split(".")[1])
            return "block.6" if f"blocks.{block + 1}.resid_pre" in forward else "layer_norm.5"
        return RULES.get(end, "linear.4")
    if ".ln_" in name or name.startswith("ln_"):
        return "layer_norm.6" if name.endswith("weight") else "layer_norm.7"
    tables = {"wte.weight": "tying.2" if tied else "embedding.3", "wpe.weight": "embedding.3", "lm_head.weight": "linear.5"}
    return tables.get(name, "linear.4" if name.endswith("weight") else "linear.3")


def computed(model: GPT2, ids: np.ndarray, targets: np.ndarray | None, grad: bool, steps: int,
             adam: Adam) -> Iterator[tuple[str, str, np.ndarray]]:
    """(name, equation, array on the host) of all that a port is compared by, in the order in which it is computed.

    Points as `Hooked.points` names them; "loss"; NAME.grad of points, the last first, and of parameters; "step.K.loss" before the K-th
    AdamW step, and "step.K.PARAMETER" after it.
    """
    equations, tied = model.equations(), model.config.tie_word_embeddings
    found = model.trace(ids, targets, gradients=grad)
    yield from ((name, label, host(found[name])) for name, label in equations.items())
    if targets is None:
        return
    yield "loss", "cross_entropy.1", host(found["loss"])
    parameters = dict(model.named_parameters())
    order = backward_order(parameters)
    if grad:
        for name in reversed(equations):
            yield f"{name}.grad", equation_of_gradient(name, equations, tied), permitted(f"{name}.grad", host(found[f"{name}.grad"]))
        loss = model.loss(ids, targets)
        loss.backward()
        yield from ((f"{name}.grad", equation_of_gradient(name, equations, tied), host(gradient_of(parameters[name]))) for name in order)
    optimizer = mg.optim.AdamW(list(parameters.values()), adam.lr, (adam.beta1, adam.beta2), adam.eps, adam.weight_decay)
    for step in range(1, steps + 1):
        model.zero_grad()
        loss = model.loss(ids, targets)
        loss.backward()
        yield f"step.{step}.loss", "cross_entropy.1", host(loss.array)
        optimizer.step()
        yield from ((f"step.{step}.{name}", "adamw.4", host(parameters[name].array)) for name in order)


def entry(name: str, equation: str, wide: np.ndarray, narrow: np.ndarray, dtype: str) -> Entry:
    """The manifest's line of a tensor from its values by the definitions in float64, and by our kernels in float32   (tolerance.7)."""
    a, b = wide.astype(np.float64), narrow.astype(np.float64)
    least = 0.5 * EPS32                                 # a number that is rounded to float32 is off by that much of it
    size = float(np.abs(a).max(initial=0.0))
    rms = float(np.sqrt(np.square(a).mean())) if a.size else 0.0
    gap = np.abs(b - a)
    off = float(np.sqrt(np.square(gap).mean())) if a.size else 0.0
    return Entry(name, equation, list(a.shape), dtype, float(np.sqrt(np.square(a).sum())), max(float(gap.max(initial=0.0)), least * size),
                 max(off, least * rms))


def both(model: GPT2, device: str) -> tuple[GPT2, GPT2]:
    """The model by its definitions in float64, and with its kernels in float32, on copies of the same weights."""
    own = {name: host(p.array) for name, p in model.named_parameters()}
    wide, narrow = ({name: a.astype(dtype) for name, a in own.items()} for dtype in ("float64", "float32"))
    return (GPT2(model.config, backend=device, dtype="float64", explicit=True, parameters=wide),
            GPT2(model.config, backend=device, dtype="float32", parameters=narrow))


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    ports = args.format == "llmc"
    args.steps = (10 if ports else 0) if args.steps is None else args.steps
    given, args.dtype = args.dtype, "float32"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*NaN or infinity in")        # they are refused below
        model, tokenizer = model_of(args)
    if args.random_weights is not None:
        model = GPT2(model.config, backend=model.where["device"], parameters=telling_weights(model.config, args.random_weights))
    for name, p in model.named_parameters():
        if not np.isfinite(mg.backend.of(p.array).host(p.array)).all():
            raise MissingError(f"{name_of(args)}: {name!r} has NaN or infinity in float32; there is no ground truth of such weights")
    given_ids = prompt_ids(args, tokenizer, args.batch_size * model.config.n_positions + 1)
    model.integers(given_ids)                           # the last one is a target alone, which nobody looks at on its way
    ids, targets = batch_of(given_ids, args.batch_size, ports or args.grad or args.steps > 0)
    if ids.shape[1] > model.config.n_positions:
        raise UsageError(f"rows of {ids.shape[1]} tokens do not fit the context of {model.config.n_positions}; raise --batch-size")
    adam = Adam(*(getattr(args, name) for name in Adam._fields))
    if ports:
        return for_llmc(args, model, tokenizer, given, ids, targets, adam)
    how = (ids, targets, args.grad, args.steps, adam)
    wide, narrow = both(model, model.where["device"])
    arrays, entries = dict[str, np.ndarray](), list[Entry]()
    with np.errstate(all="ignore"):                     # what comes of it is looked at
        for (name, label, a), (_, _, b) in zip(computed(wide, *how), computed(narrow, *how)):
            if not np.isfinite(a).all() or not np.isfinite(b).all():
                where = "float32" if np.isfinite(a).all() else "float64"
                advice = "lower --learning-rate" if name.startswith("step.") else "the weights are too large"
                raise MissingError(f"{name_of(args)}: {name} has NaN or infinity in {where}; {advice}")
            arrays[name] = a if given == "float64" else b
            entries.append(entry(name, label, a, b, given))
    manifest = {
        "format": "gpt2-golden", "version": 1, "model": name_of(args), "random_weights": args.random_weights,
        "config": model.config.to_dict(), "dtype": given, "minigrad": mg.__version__,
        "ids": ids.tolist(), "targets": None if targets is None else targets.tolist(),
        "grad": args.grad, "steps": args.steps, "adamw": adam._asdict(), "tensors": [one._asdict() for one in entries],
        "unseen": unseen(model, ids, args.grad),
    }
    files: dict[str, Iterable[Any]] = {TENSORS: safetensors_pieces(arrays, dict.fromkeys(arrays, CODES[given]), {"format": "np"})}
    if args.random_weights is not None:                 # nobody else has them
        own = {name: host(p.array) for name, p in model.named_parameters()}
        keys = {name: name if name == "lm_head.weight" else f"transformer.{name}" for name in own}
        files[f"{MODEL}/model.safetensors"] = safetensors_pieces(
            {keys[n]: a for n, a in own.items()}, dict.fromkeys(keys.values(), "F32"),
            {"format": "pt", "random_weights": str(args.random_weights)})
        files[f"{MODEL}/config.json"] = [json.dumps(model.config.to_dict(), indent=2).encode()]
    files[MANIFEST] = [json.dumps(plain(manifest), indent=1).encode() + b"\n"]
    with contextlib.suppress(OSError):                  # an empty folder is no earlier run, and nothing is lost with it
        args.out.rmdir()
    write_folder(args.out, files, MANIFEST)
    if args.json:
        emit_json(plain(manifest))
    else:
        for line in table(("tensor", "equation", "shape", "norm", "unit"),
                          [(e.name, e.equation, str(e.shape), e.norm, e.unit) for e in entries], left=3):
            print(line)
        losses = [float(arrays[e.name]) for e in entries if e.name == "loss" or e.name.endswith(".loss")]
        random = f"; {name_of(args)}" if args.random_weights is not None else ""
        told = f"; losses {', '.join(map(number, losses))}" if losses else ""
        for line in manifest["unseen"]:
            print(f"\nthis truth cannot show {line}", end="")
        print(f"\n{len(entries)} tensors in {given}{random}{told}; unit: what float32 here is off by at most", flush=True)
        print(f"gpt2.golden: wrote {args.out}; compare a port with: python -m gpt2.verify --golden {args.out} --against PORT",
              file=sys.stderr)
    return 0


def for_llmc(args: argparse.Namespace, model: GPT2, tokenizer: Any, dtype: str, ids: np.ndarray, targets: Any, adam: Adam) -> int:
    """Write the files of llm.c, one after the other as they are computed, in float32 whatever the computation's dtype."""
    llmc.check_config(model.config)
    config, (rows, tokens) = model.config, ids.shape
    step = argparse.Namespace(dtype=dtype, batch_size=rows, block_size=tokens, freeze=[], recompute=False, backend=args.backend,
                              gradient_accumulation_steps=1)
    print(f"gpt2.golden: this needs about {size_of(footprint(config, step)['total'])} of memory in {dtype}", file=sys.stderr)
    model = GPT2(config, backend=model.where["device"], dtype=dtype,
                 parameters={name: host(p.array).astype(dtype) for name, p in model.named_parameters()}).eval()
    optimizer = mg.optim.AdamW(model.parameters(), adam.lr, (adam.beta1, adam.beta2), adam.eps, adam.weight_decay)
    losses: list[float] = []

    def learn() -> None:
        model.zero_grad()
        loss = model.loss(ids, targets)
        loss.backward()
        losses.append(float(loss))

    def parameters(gradients: bool = False) -> dict[str, np.ndarray]:
        return {name: host(gradient_of(p) if gradients else p.array) for name, p in model.named_parameters()}

    def state() -> Iterator[Any]:
        learn()
        with mg.no_grad():
            logits = host(model(ids).array)
        yield from llmc.state(ids, targets, logits, losses[0], parameters(gradients=True), config)

    def told() -> Iterator[bytes]:
        for t in range(args.steps):
            if t:                                       # the first loss, and its gradients, are in the debug state already
                learn()
            optimizer.step()
        document = {"format": "llm.c", "model": name_of(args), "random_weights": args.random_weights, "config": config.to_dict(),
                    "dtype": dtype, "minigrad": mg.__version__, "ids": ids.tolist(), "targets": targets.tolist(),
                    "adamw": adam._asdict(), "losses": losses, "unseen": unseen(model, ids, True)}
        yield json.dumps(plain(document), indent=1).encode() + b"\n"

    stem = f"gpt2_{llmc.SIZES.get(args.model, '124M')}"
    files = {f"{stem}.bin": llmc.checkpoint(parameters(), config), f"{stem}_bf16.bin": llmc.checkpoint(parameters(), config, "bfloat16"),
             f"{stem}_debug_state.bin": state(), **({"gpt2_tokenizer.bin": llmc.tokenizer(tokenizer)} if tokenizer is not None else {}),
             llmc.LOSSES: told()}
    with contextlib.suppress(OSError):
        args.out.rmdir()
    write_folder(args.out, files, llmc.LOSSES)
    print(f"float expected_losses[{len(losses)}] = {{{', '.join(f'{x:.9g}f' for x in losses)}}};")
    print(f"gpt2.golden: wrote {', '.join(files)} in {args.out}; the line above is for tests that have their losses compiled in",
          file=sys.stderr)
    return 0


def read_golden(folder: Path) -> Golden:
    """The ground truth in a folder. MissingError where there is none, or it is damaged."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text("utf-8"))
        if manifest.get("format") != "gpt2-golden":
            raise ValueError("it is another's manifest")
        entries = {one["name"]: Entry(**one) for one in manifest["tensors"]}
        stored = {one.key: one for one in read_header(folder / TENSORS)[0]}
        check_manifest(manifest, entries)
        for name, one in entries.items():
            if name not in stored:
                raise ValueError(f"{TENSORS} lacks {name}")
            if NAMES.get(stored[name].dtype) != one.dtype or list(stored[name].shape) != one.shape:
                raise ValueError(f"{name} is {stored[name].dtype}{list(stored[name].shape)} in {TENSORS}, and {one.dtype}{one.shape} here")
    except OSError as error:
        raise MissingError(f"{folder} is no folder of gpt2.golden ({error.filename}: {error.strerror}); "
                           "make one with: python -m gpt2.golden --grad --out DIR") from None
    except KeyError as error:
        raise MissingError(f"{folder} is no folder of gpt2.golden (its manifest lacks {error})") from None
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise MissingError(f"{folder} is no folder of gpt2.golden ({error})") from None
    return Golden(folder, manifest, entries, stored)


def check_manifest(manifest: Mapping[str, Any], entries: Mapping[str, Entry]) -> None:
    """ValueError, KeyError or TypeError for a manifest that a comparison or a diagnosis would stumble over."""
    config, ids, targets = (manifest[key] for key in ("config", "ids", "targets"))
    for field in dataclasses.fields(GPT2Config):
        config[field.name]                              # all are written, and a default would be another model
    own = GPT2Config.from_dict(config)
    Adam(*(float(manifest["adamw"][name]) for name in Adam._fields))
    if not isinstance(manifest["model"], str):
        raise ValueError("its model has no name")
    for rows in (ids, targets) if targets is not None else (ids,):
        if np.ndim(rows) != 2 or np.shape(rows) != np.shape(ids) or np.array(rows).dtype.kind != "i":
            raise ValueError("ids and targets are no rows of integers")
    if targets is None and "loss" in entries:
        raise ValueError("there is a loss, and no targets")
    for name, one in entries.items():
        if not all(isinstance(unit, float) and math.isfinite(unit) for unit in (one.unit, one.unit_rms)):
            raise ValueError(f"{name} has no finite unit; were there NaN in the weights? make it anew")
    kinds = ["", ".grad"] if any(name.endswith(".grad") for name in entries) else [""]
    points = itertools.chain(("embed", "pos_embed", "ln_f.out", "logits"),
                             (f"blocks.{i}.{point}" for i in range(own.n_layer) for point in BLOCK))
    for name in points:
        for kind in kinds:
            entries[name + kind]


if __name__ == "__main__":
    run_command(main, "gpt2.golden")
