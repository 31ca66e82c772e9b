"""python -m gpt2.golden: write the ground truth for a port of GPT-2.

The ground truth is what the port must compute: activations, loss, gradients and AdamW steps, as
safetensors with a manifest.
"""
from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import math
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypedDict

import numpy as np

import minigrad as mg
from minigrad.debug import size_of

from ..cli.command import Parser, at_least, emit_json, run_command
from ..cli.tables import number, plain, table
from ..config import GPT2Config
from ..errors import MissingError, UsageError
from ..hooks import BLOCK, ENDS, STATISTICS
from ..io.outputs import fill, whole_folder
from ..io.records import MB, Between, Count, Size, Wrong, read_json, sealed
from ..io.safetensors import (
    CODES,
    NAMES,
    Loader,
    Stored,
    as_stored,
    checksum,
    read_header,
    safetensors_header,
    safetensors_pieces,
)
from ..model import GPT2
from ..model_flags import add_model, add_prompt, model_of, name_of, prompt_ids
from ..train.memory import footprint
from ..weights import llmc
from ..weights.checkpoint import CONFIG_KEY
from .revealing import telling_weights, unseen
from .truth import (
    Adam,
    Entry,
    Spool,
    What,
    computed,
    entry,
    gradient_of,
    host,
    judged,
    longest_sum,
    needs,
)

OF_LLMC = {"lr": 1e-4, "weight_decay": 0.01}            # as in llm.c's test_gpt2.c
MANIFEST, TENSORS, MODEL = "manifest.json", "tensors.safetensors", "model"


class Golden(NamedTuple):
    """The content of a folder that gpt2.golden wrote.

    entries: manifest["tensors"] by name, in order. array(name): reads one tensor, in float64;
    MissingError if it does not have its checksum. sound: the tensors for which that was compared.
    """

    folder: Path
    manifest: dict[str, Any]
    entries: dict[str, Entry]
    stored: dict[str, Stored]
    sound: set[tuple[Path, str]]

    def array(self, name: str) -> np.ndarray:
        return judged(name, Loader(np.dtype(np.float64), self.sound)(self.stored[name]))


def parser() -> argparse.ArgumentParser:
    p = Parser(prog="python -m gpt2.golden", description=__doc__)
    add_model(p, ("float64", "float32"), "float64")
    add_prompt(p)
    p.add_argument("--format", choices=("safetensors", "llmc"), default="safetensors",
                   help="llmc: the files that llm.c and its ports read, gpt2_124M.bin, "
                        "gpt2_124M_debug_state.bin and gpt2_tokenizer.bin (default: safetensors)")
    p.add_argument("--batch-size", type=at_least(1), default=1, metavar="B",
                   help="number of rows; the ids fill one row after the other (default: 1)")
    p.add_argument("--grad", action="store_true",
                   help="also write the gradient of the loss at every point and parameter")
    p.add_argument("--steps", type=at_least(0), metavar="N",
                   help="AdamW steps on the same batch: write loss and parameters after each step; "
                        "with --format llmc, only the losses (default: 0, with llmc 10)")
    p.add_argument("--losses-only", action="store_true",
                   help="write only the loss, and with --steps the loss before each step")
    for name, value in Adam()._asdict().items():
        flag = {"lr": "learning-rate", "eps": "adam-eps"}.get(name, name.replace("_", "-"))
        below = 1.0 if name.startswith("beta") else math.inf
        of_llmc = ""
        if name in OF_LLMC:
            of_llmc = f"; with --format llmc {OF_LLMC[name]}, as in llm.c's own test"
        p.add_argument(f"--{flag}", dest=name, type=from_0(below), metavar="X",
                       help=f"for the AdamW steps (default: {value}{of_llmc})")
    p.add_argument("--out", type=Path, default=Path("golden"), metavar="DIR",
                   help="the folder to write (default: golden)")
    p.add_argument("--json", action="store_true", help="print the manifest instead of a table")
    return p


def from_0(below: float) -> Callable[[str], float]:
    """For `add_argument(type=)`: a number x with 0 ≤ x < `below`."""

    def number_of(value: str) -> float:
        if not 0.0 <= (x := float(value)) < below:
            end = "∞" if below == math.inf else format(below, "g")
            raise argparse.ArgumentTypeError(f"{value} is not in [0, {end})")
        return x

    return number_of


def batch_of(ids: list[int], rows: int, learns: bool) -> tuple[np.ndarray, np.ndarray | None]:
    """ids as inputs [B, T], and the token after each of them [B, T]; None if there is one id.

    UsageError if the ids do not fill the rows.
    """
    if len(ids) < 2:
        if learns or rows > 1:
            raise UsageError("one id has none after it to predict; --grad, --steps, --losses-only "
                             "and --batch-size need more ids")
        return np.array([ids]), None
    if (len(ids) - 1) % rows:
        raise UsageError(f"{len(ids)} ids do not fill {rows} rows (--batch-size): B·T + 1 are "
                         f"needed; leave out {(len(ids) - 1) % rows}")
    return np.array(ids[:-1]).reshape(rows, -1), np.array(ids[1:]).reshape(rows, -1)


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    ports = args.format == "llmc"
    args.steps = (10 if ports else 0) if args.steps is None else args.steps
    for name, value in {**Adam()._asdict(), **(OF_LLMC if ports else {})}.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    given, args.dtype = args.dtype, "float32"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*NaN or infinity in")       # an error is raised below
        model, tokenizer = model_of(args)
    if args.random_weights is not None:
        model = GPT2(model.config, backend=model.where["device"],
                     parameters=telling_weights(model.config, args.random_weights))
    for name, p in model.named_parameters():
        if not np.isfinite(mg.backend.of(p.array).host(p.array)).all():
            raise MissingError(f"{name_of(args)}: {name!r} has NaN or infinity in float32; "
                               "with such weights there is no ground truth")
    given_ids = prompt_ids(args, tokenizer, args.batch_size * model.config.n_positions + 1)
    model.integers(given_ids)           # the last id is a target only: no other check covers it
    ids, targets = batch_of(given_ids, args.batch_size,
                            ports or args.grad or args.steps > 0 or args.losses_only)
    if ids.shape[1] > model.config.n_positions:
        raise UsageError(f"rows of {ids.shape[1]} tokens do not fit the context of "
                         f"{model.config.n_positions}; raise --batch-size")
    adam = Adam(*(getattr(args, name) for name in Adam._fields))
    what = What(ids, targets, args.grad, args.steps, adam, args.losses_only)
    if ports:
        return for_llmc(args, model, tokenizer, given, what)
    memory, disk = needs(model.config, what)
    announce(memory, f" and {size_of(disk)} of disk")
    manifest = {
        "format": "gpt2-golden", "version": 1,
        "model": name_of(args), "random_weights": args.random_weights,
        "config": model.config.to_dict(), "dtype": given, "minigrad": mg.__version__,
        "ids": ids.tolist(), "targets": None if targets is None else targets.tolist(),
        "grad": args.grad, "steps": args.steps, "losses_only": args.losses_only,
        "adamw": what.adam._asdict(), "unseen": unseen(model, ids, args.grad, args.steps),
    }
    own = {name: host(p.array) for name, p in model.named_parameters()}
    config, device = model.config, model.where["device"]
    del model                           # `own` holds the weights until the next model takes them
    entries, losses = list[Entry](), list[float]()
    # check_finite reports what NumPy would warn of
    with (np.errstate(all="ignore"), whole_folder(args.out, "gpt2.golden") as out,
          tempfile.TemporaryDirectory(dir=out) as scratch):
        folder = Path(scratch)
        spool = Spool(folder / "float32")
        narrow = GPT2(config, backend=device, dtype="float32",
                      parameters={name: a.copy() for name, a in own.items()})
        for name, _, b in computed(narrow, what, folder):
            check_finite(args, name, b)
            spool.append(name, b)
        del narrow, b

        def tensors() -> Iterator[np.ndarray]:
            wide = GPT2(config, backend=device, dtype="float64", explicit=True,
                        parameters={name: own.pop(name).astype(np.float64) for name in list(own)})
            for (name, label, a), b in zip(computed(wide, what, folder), spool):
                check_finite(args, name, a)
                kept = as_stored(a if given == "float64" else b, CODES[given])
                one = entry(name, label, a, b, given, longest_sum(name, config, ids))
                entries.append(one._replace(crc32=checksum(name, CODES[given], a.shape, kept)))
                if name.endswith("loss"):
                    losses.append(float(a))
                yield kept
                del a, b, kept                          # free them before the next one is computed

        def written() -> Iterator[bytes]:
            manifest["tensors"] = [one._asdict() for one in entries]
            yield sealed(plain(manifest))

        shapes = {name: shape for name, _, shape in spool.kinds}
        codes = dict.fromkeys(shapes, CODES[given])
        header, _ = safetensors_header(shapes, codes, {"format": "np"})
        # the weights first: tensors() takes them out of `own`
        fill(out, {**model_files(config, own, args.random_weights),
                   TENSORS: itertools.chain([header], tensors()), MANIFEST: written()})
    if args.json:
        emit_json(plain(manifest))
    else:
        rows = [(e.name, e.equation, str(e.shape), e.norm, e.unit) for e in entries]
        for line in table(("tensor", "equation", "shape", "norm", "unit"), rows, left=3):
            print(line)
        random = f"; {name_of(args)}" if args.random_weights is not None else ""
        told = f"; losses {', '.join(map(number, losses))}" if losses else ""
        for line in manifest["unseen"]:
            print(f"\nthis truth cannot show {line}", end="")
        print(f"\n{len(entries)} tensors in {given}{random}{told}; "
              "unit: the largest error of our own float32 run", flush=True)
        print(f"gpt2.golden: wrote {args.out}, with the weights in float32 in {args.out / MODEL}; "
              f"compare a port with: python -m gpt2.verify --golden {args.out} --against PORT",
              file=sys.stderr)
    return 0


def announce(memory: int, more: str) -> None:
    """Print how much memory a large computation needs, before it starts."""
    if memory >= 1 << 28:
        print(f"gpt2.golden: this needs about {size_of(memory)} of memory{more}", file=sys.stderr)


def check_finite(args: argparse.Namespace, name: str, a: np.ndarray) -> None:
    """MissingError for a tensor with NaN or infinity."""
    if not np.isfinite(a).all():
        too_large = "the weights are too large"
        advice = "lower --learning-rate" if name.startswith("step.") else too_large
        raise MissingError(f"{name_of(args)}: {name} has NaN or infinity in {a.dtype}; {advice}")


def model_files(config: GPT2Config, own: Mapping[str, np.ndarray],
                seed: int | None) -> dict[str, Iterable[Any]]:
    """The weights in float32 as a model folder that transformers reads.

    seed: the seed of random weights, or None.
    """
    keys = {name: name if name == "lm_head.weight" else f"transformer.{name}" for name in own}
    about = {"format": "pt", CONFIG_KEY: json.dumps(config.to_dict()),
             **({} if seed is None else {"random_weights": str(seed)})}
    tensors = safetensors_pieces({keys[name]: a for name, a in own.items()},
                                 dict.fromkeys(keys.values(), "F32"), about)
    return {f"{MODEL}/model.safetensors": tensors,
            f"{MODEL}/config.json": [json.dumps(config.to_dict(), indent=2).encode()]}


def for_llmc(args: argparse.Namespace, model: GPT2, tokenizer: Any, dtype: str, what: What) -> int:
    """Write the files of llm.c, each as it is computed; they are in float32 whatever `dtype` is."""
    llmc.check_config(model.config)
    ids, targets, adam = what.ids, np.asarray(what.targets), what.adam
    config, (rows, tokens) = model.config, ids.shape
    step = argparse.Namespace(dtype=dtype, batch_size=rows, block_size=tokens, freeze=[],
                              recompute=False, backend=args.backend, gradient_accumulation_steps=1)
    announce(footprint(config, step)["total"], f" in {dtype}")
    weights = {name: host(p.array).astype(dtype) for name, p in model.named_parameters()}
    model = GPT2(config, backend=model.where["device"], dtype=dtype, parameters=weights).eval()
    del weights
    optimizer = mg.optim.AdamW(model.parameters(), adam.lr, (adam.beta1, adam.beta2), adam.eps,
                               adam.weight_decay)
    losses: list[float] = []

    def learn() -> None:
        model.zero_grad()
        loss = model.loss(ids, targets)
        loss.backward()
        losses.append(float(loss))

    def parameters(gradients: bool = False) -> dict[str, np.ndarray]:
        return {name: host(gradient_of(p) if gradients else p.array)
                for name, p in model.named_parameters()}

    def state() -> Iterator[Any]:
        learn()
        with mg.no_grad():
            logits = host(model(ids).array)
        yield from llmc.state(ids, targets, logits, losses[0], parameters(gradients=True), config)

    def summary() -> Iterator[bytes]:
        for t in range(args.steps):
            if t:                       # the debug state has the first loss and its gradients
                learn()
            optimizer.step()
        document = {"format": "llm.c", "model": name_of(args),
                    "random_weights": args.random_weights, "config": config.to_dict(),
                    "dtype": dtype, "minigrad": mg.__version__,
                    "ids": ids.tolist(), "targets": targets.tolist(), "adamw": adam._asdict(),
                    "losses": losses, "unseen": unseen(model, ids, True, args.steps)}
        yield json.dumps(plain(document), indent=1).encode() + b"\n"

    stem = f"gpt2_{llmc.SIZES.get(args.model, '124M')}"
    files = {f"{stem}.bin": llmc.checkpoint(parameters(), config),
             f"{stem}_bf16.bin": llmc.checkpoint(parameters(), config, "bfloat16"),
             f"{stem}_debug_state.bin": state()}
    if tokenizer is not None:
        files["gpt2_tokenizer.bin"] = llmc.tokenizer(tokenizer)
    files[llmc.LOSSES] = summary()
    with whole_folder(args.out, "gpt2.golden") as out:
        fill(out, files)
    print(f"float expected_losses[{len(losses)}] = {{{', '.join(f'{x:.9g}f' for x in losses)}}};")
    print(f"gpt2.golden: wrote {', '.join(files)} in {args.out}; paste the line above into a test "
          "whose expected losses are compiled in", file=sys.stderr)
    return 0


class _Adam(TypedDict):
    lr: float
    beta1: float
    beta2: float
    eps: float
    weight_decay: float


class _Sum(TypedDict, total=False):
    crc32: str | None


class _Tensor(_Sum):
    """A tensor of the manifest, with the fields of `Entry`."""

    name: Annotated[str, Size(1, 1000)]
    equation: Annotated[str, Size(0, 1000)]
    shape: list[Count]
    dtype: Literal["float64", "float32"]
    norm: Annotated[float, Between(0.0)]
    unit: Annotated[float, Between(0.0)]
    unit_rms: Annotated[float, Between(0.0)]


class _Other(TypedDict, total=False):
    losses_only: bool
    unseen: list[str]


class _Manifest(_Other):
    """What is read of manifest.json."""

    format: Literal["gpt2-golden"]
    model: str
    config: dict[str, Any]
    ids: list[Annotated[list[Count], Size(1, 2**32)]]
    targets: list[list[Count]] | None
    adamw: _Adam
    tensors: list[_Tensor]


def read_golden(folder: Path) -> Golden:
    """Read a folder that gpt2.golden wrote. MissingError if there is none, or it is damaged."""
    anew = "make one with: python -m gpt2.golden --grad --out DIR"
    if not (folder / MANIFEST).exists():
        raise MissingError(f"{folder} is no folder of gpt2.golden (it has no {MANIFEST}); {anew}")
    manifest = read_json(folder / MANIFEST, _Manifest, 64 * MB, advice=anew)
    entries = {one["name"]: Entry(**one) for one in manifest["tensors"]}
    try:
        check_manifest(manifest, entries)
        stored = {one.key: one for one in read_header(folder / TENSORS)[0]}
        for name, one in entries.items():
            if name not in stored:
                raise Wrong(f"{TENSORS} lacks {name}")
            if NAMES.get(stored[name].dtype) != one.dtype or list(stored[name].shape) != one.shape:
                raise Wrong(f"{name} is {stored[name].dtype}{list(stored[name].shape)} in "
                            f"{TENSORS}, and {one.dtype}{one.shape} in {MANIFEST}")
            stored[name] = stored[name]._replace(crc=one.crc32)
    except OSError as error:
        raise MissingError(f"cannot read {folder / TENSORS}: {error.strerror or error}; "
                           f"{anew}") from None
    except Wrong as error:
        raise MissingError(f"{folder} is damaged ({error}); {anew}") from None
    return Golden(folder, dict(manifest), entries, stored, set())


def check_manifest(manifest: _Manifest, entries: Mapping[str, Entry]) -> None:
    """Raise Wrong for a manifest that verify could not work with."""
    config, ids, targets = manifest["config"], manifest["ids"], manifest["targets"]
    for field in dataclasses.fields(GPT2Config):
        if field.name not in config:    # with a default it would be another model
            raise Wrong("is missing", "config", field.name)
    try:
        own = GPT2Config.from_dict(config)
    except UsageError as error:
        raise Wrong(str(error), "config") from None
    for rows in (ids, targets) if targets is not None else (ids,):
        if not rows or {len(row) for row in rows} != {len(ids[0])} or len(rows) != len(ids):
            raise Wrong("ids and targets must be rows of one length")
        if max(map(max, rows)) >= own.vocab_size:
            raise Wrong(f"an id is outside the vocabulary 0 … {own.vocab_size - 1}")
    if len(entries) < len(manifest["tensors"]):
        raise Wrong("a tensor is named twice")
    if targets is None and "loss" in entries:
        raise Wrong("there is a loss, but there are no targets")
    kinds = ["", ".grad"] if any(name.endswith(".grad") for name in entries) else [""]
    blocks = (f"blocks.{i}.{point}" for i in range(own.n_layer) for point in BLOCK)
    points = itertools.chain(("embed", "pos_embed", *ENDS), blocks)
    for name in () if manifest.get("losses_only") else points:
        for kind in kinds[:1] if name.endswith(STATISTICS) else kinds:
            if name + kind not in entries:
                raise Wrong(f"{MANIFEST} lacks {name + kind}")


if __name__ == "__main__":
    run_command(main, "gpt2.golden")
