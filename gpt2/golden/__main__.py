"""python -m gpt2.golden: what a port of GPT-2 must compute, as safetensors with a manifest: activations, loss, gradients, AdamW steps."""
from __future__ import annotations

import argparse
import contextlib
import dataclasses
import itertools
import json
import math
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import minigrad as mg
from minigrad.debug import size_of

from ..cli.command import Parser, at_least, emit_json, run_command
from ..cli.tables import number, plain, table
from ..config import GPT2Config
from ..errors import MissingError, UsageError
from ..hooks import BLOCK, ENDS, STATISTICS
from ..io.atomic import write_folder
from ..io.safetensors import CODES, NAMES, Loader, Stored, as_stored, read_header, safetensors_header, safetensors_pieces
from ..model import GPT2
from ..model_flags import add_model, add_prompt, model_of, name_of, prompt_ids
from ..train.memory import footprint
from ..weights import llmc
from .revealing import telling_weights, unseen
from .truth import Adam, Entry, Spool, What, computed, entry, gradient_of, host, judged, longest_sum, needs

OF_LLMC = {"lr": 1e-4, "weight_decay": 0.01}            # its test_gpt2.c, whose losses are compiled in
MANIFEST, TENSORS, MODEL = "manifest.json", "tensors.safetensors", "model"


class Golden(NamedTuple):
    """What a folder of gpt2.golden holds. manifest["tensors"] as `entries`, in order; `array(name)` reads one, in float64."""

    folder: Path
    manifest: dict[str, Any]
    entries: dict[str, Entry]
    stored: dict[str, Stored]

    def array(self, name: str) -> np.ndarray:
        return judged(name, Loader(np.dtype(np.float64))(self.stored[name]))


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
    p.add_argument("--losses-only", action="store_true", help="the loss, and with --steps those before each step, and no other tensor")
    for name, value in Adam()._asdict().items():
        flag = {"lr": "learning-rate", "eps": "adam-eps"}.get(name, name.replace("_", "-"))
        below = 1.0 if name.startswith("beta") else math.inf
        of_llmc = f"; with --format llmc {OF_LLMC[name]}, as llm.c's own test has it" if name in OF_LLMC else ""
        p.add_argument(f"--{flag}", dest=name, type=from_0(below), metavar="X", help=f"of the steps (default: {value}{of_llmc})")
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
            raise UsageError("one id has none after it to predict; --grad, --steps, --losses-only and --batch-size need more")
        return np.array([ids]), None
    if (len(ids) - 1) % rows:
        raise UsageError(f"{len(ids)} ids are B·T + 1 for no T with --batch-size {rows}; leave out {(len(ids) - 1) % rows}")
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
        warnings.filterwarnings("ignore", ".*NaN or infinity in")        # they are refused below
        model, tokenizer = model_of(args)
    if args.random_weights is not None:
        model = GPT2(model.config, backend=model.where["device"], parameters=telling_weights(model.config, args.random_weights))
    for name, p in model.named_parameters():
        if not np.isfinite(mg.backend.of(p.array).host(p.array)).all():
            raise MissingError(f"{name_of(args)}: {name!r} has NaN or infinity in float32; there is no ground truth of such weights")
    given_ids = prompt_ids(args, tokenizer, args.batch_size * model.config.n_positions + 1)
    model.integers(given_ids)                           # the last one is a target alone, which nobody looks at on its way
    ids, targets = batch_of(given_ids, args.batch_size, ports or args.grad or args.steps > 0 or args.losses_only)
    if ids.shape[1] > model.config.n_positions:
        raise UsageError(f"rows of {ids.shape[1]} tokens do not fit the context of {model.config.n_positions}; raise --batch-size")
    what = What(ids, targets, args.grad, args.steps, Adam(*(getattr(args, name) for name in Adam._fields)), args.losses_only)
    if ports:
        return for_llmc(args, model, tokenizer, given, what)
    memory, disk = needs(model.config, what)
    announce(memory, f" and {size_of(disk)} of disk")
    manifest = {
        "format": "gpt2-golden", "version": 1, "model": name_of(args), "random_weights": args.random_weights,
        "config": model.config.to_dict(), "dtype": given, "minigrad": mg.__version__,
        "ids": ids.tolist(), "targets": None if targets is None else targets.tolist(), "grad": args.grad, "steps": args.steps,
        "losses_only": args.losses_only, "adamw": what.adam._asdict(), "unseen": unseen(model, ids, args.grad, args.steps),
    }
    own, config, device = {name: host(p.array) for name, p in model.named_parameters()}, model.config, model.where["device"]
    del model                                           # its weights are in `own`, until they are those of the next
    entries, losses = list[Entry](), list[float]()
    with np.errstate(all="ignore"), scratch(args.out) as folder:       # what comes of it is looked at
        spool = Spool(folder / "float32")
        narrow = GPT2(config, backend=device, dtype="float32", parameters={name: a.copy() for name, a in own.items()})
        for name, _, b in computed(narrow, what, folder):
            check_finite(args, name, b)
            spool.append(name, b)
        del narrow, b

        def tensors() -> Iterator[np.ndarray]:
            wide = GPT2(config, backend=device, dtype="float64", explicit=True,
                        parameters={name: own.pop(name).astype(np.float64) for name in list(own)})
            for (name, label, a), b in zip(computed(wide, what, folder), spool):
                check_finite(args, name, a)
                entries.append(entry(name, label, a, b, given, longest_sum(name, config, ids)))
                if name.endswith("loss"):
                    losses.append(float(a))
                yield as_stored(a if given == "float64" else b, CODES[given])
                del a, b                                # not while the next one is computed

        def written() -> Iterator[bytes]:
            manifest["tensors"] = [one._asdict() for one in entries]
            yield json.dumps(plain(manifest), indent=1).encode() + b"\n"

        shapes = {name: shape for name, _, shape in spool.kinds}
        header, _ = safetensors_header(shapes, dict.fromkeys(shapes, CODES[given]), {"format": "np"})
        # the weights first: they are used up when the tensors are made
        files = {**model_files(config, own, args.random_weights), TENSORS: itertools.chain([header], tensors()), MANIFEST: written()}
        with contextlib.suppress(OSError):              # an empty folder is no earlier run, and nothing is lost with it
            args.out.rmdir()
        write_folder(args.out, files, MANIFEST)
    if args.json:
        emit_json(plain(manifest))
    else:
        for line in table(("tensor", "equation", "shape", "norm", "unit"),
                          [(e.name, e.equation, str(e.shape), e.norm, e.unit) for e in entries], left=3):
            print(line)
        random = f"; {name_of(args)}" if args.random_weights is not None else ""
        told = f"; losses {', '.join(map(number, losses))}" if losses else ""
        for line in manifest["unseen"]:
            print(f"\nthis truth cannot show {line}", end="")
        print(f"\n{len(entries)} tensors in {given}{random}{told}; unit: what float32 here is off by at most", flush=True)
        print(f"gpt2.golden: wrote {args.out}, its weights in float32 under {args.out / MODEL}; compare a port with: "
              f"python -m gpt2.verify --golden {args.out} --against PORT", file=sys.stderr)
    return 0


def announce(memory: int, more: str) -> None:
    """Say what a large computation needs before it starts."""
    if memory >= 1 << 28:
        print(f"gpt2.golden: this needs about {size_of(memory)} of memory{more}", file=sys.stderr)


@contextlib.contextmanager
def scratch(out: Path) -> Iterator[Path]:
    """A folder beside `out` for what lies on the disk for a while. UsageError where there can be none."""
    try:
        out.absolute().parent.mkdir(parents=True, exist_ok=True)
        made = tempfile.TemporaryDirectory(prefix=f".{out.absolute().name}.", dir=out.absolute().parent)
    except OSError as error:
        raise UsageError(f"cannot write {out}: {error.strerror}") from None
    with made as folder:
        yield Path(folder)


def check_finite(args: argparse.Namespace, name: str, a: np.ndarray) -> None:
    """MissingError for a tensor with NaN or infinity."""
    if not np.isfinite(a).all():
        advice = "lower --learning-rate" if name.startswith("step.") else "the weights are too large"
        raise MissingError(f"{name_of(args)}: {name} has NaN or infinity in {a.dtype}; {advice}")


def model_files(config: GPT2Config, own: Mapping[str, np.ndarray], seed: int | None) -> dict[str, Iterable[Any]]:
    """The weights in float32 as a model that transformers reads; seed: where they are drawn."""
    keys = {name: name if name == "lm_head.weight" else f"transformer.{name}" for name in own}
    tensors = safetensors_pieces({keys[name]: a for name, a in own.items()}, dict.fromkeys(keys.values(), "F32"),
                                 {"format": "pt"} | ({} if seed is None else {"random_weights": str(seed)}))
    return {f"{MODEL}/model.safetensors": tensors, f"{MODEL}/config.json": [json.dumps(config.to_dict(), indent=2).encode()]}


def for_llmc(args: argparse.Namespace, model: GPT2, tokenizer: Any, dtype: str, what: What) -> int:
    """Write the files of llm.c, one after the other as they are computed, in float32 whatever the computation's dtype."""
    llmc.check_config(model.config)
    ids, targets, adam = what.ids, np.asarray(what.targets), what.adam
    config, (rows, tokens) = model.config, ids.shape
    step = argparse.Namespace(dtype=dtype, batch_size=rows, block_size=tokens, freeze=[], recompute=False, backend=args.backend,
                              gradient_accumulation_steps=1)
    announce(footprint(config, step)["total"], f" in {dtype}")
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
                    "adamw": adam._asdict(), "losses": losses, "unseen": unseen(model, ids, True, args.steps)}
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
    points = itertools.chain(("embed", "pos_embed", *ENDS), (f"blocks.{i}.{point}" for i in range(own.n_layer) for point in BLOCK))
    for name in () if manifest.get("losses_only") else points:
        for kind in kinds[:1] if name.endswith(STATISTICS) else kinds:
            entries[name + kind]


if __name__ == "__main__":
    run_command(main, "gpt2.golden")
