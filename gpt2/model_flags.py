"""Flags of the commands that read a model, and the model, tokenizer and ids that the flags name."""
from __future__ import annotations

import argparse
import contextlib
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from .cli.command import (
    PRECISIONS,
    Extend,
    add_backend,
    at_least,
    backend_of,
    floats_of,
    read_stdin,
    text,
)
from .config import PUBLISHED, GPT2Config
from .errors import MissingError, UsageError

EXAMPLE = "The way you do anything is the way you do everything"


def add_weights(p: argparse._ActionsContainer) -> None:
    """Add the flags --model and --download, for `weights_of` and `config_of`."""
    p.add_argument("--model", default="shakespeare", metavar="NAME|DIR",
                   help="shakespeare (part of the package), gpt2, gpt2-medium, gpt2-large, "
                        "gpt2-xl, a directory, or a .safetensors file")
    p.add_argument("--download", action="store_true",
                   help="download the weights of a published model if they are not here yet")


def add_model(p: argparse._ActionsContainer, dtypes: Sequence[str] = PRECISIONS,
              dtype: str = "float32") -> None:
    """Add the flags of `add_weights`, --random-weights and those of computation, for `model_of`."""
    add_weights(p)
    p.add_argument("--random-weights", type=at_least(0), metavar="SEED",
                   help="use random weights with this seed; a published size then needs only its "
                        "tokenizer to be downloaded")
    add_backend(p)
    tf32 = ("; tf32: float32, but a GPU may round the factors of matrix products"
            if "tf32" in dtypes else "")
    p.add_argument("--dtype", default=dtype, choices=dtypes,
                   help=f"dtype of weights and computation{tf32} (default: {dtype})")


def add_prompt(p: argparse.ArgumentParser, default: str = EXAMPLE,
               what: str = f"the text for the model; - reads it from stdin (default: {EXAMPLE!r})"
               ) -> None:
    """Add the flags --prompt, --ids and --allow-special, for `prompt_ids`."""
    given = p.add_mutually_exclusive_group()
    given.add_argument("--prompt", type=text, default=default, metavar="TEXT", help=what)
    given.add_argument("--ids", type=_ids, action=Extend, metavar="I,J,…",
                       help="token ids instead of a text")
    p.add_argument("--allow-special", action="store_true",
                   help="read <|endoftext|> in --prompt as that token (default: as plain text)")


def _ids(value: str) -> list[int]:
    try:
        return [int(part) for part in value.replace(",", " ").split()]
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{value!r} is not a list of ids; write ids as 15496,11,314") from None


def config_of(args: argparse.Namespace) -> GPT2Config:
    """The configuration of the model that --model names; a published size needs no weights for it.

    MissingError if the model has no config.json.
    """
    if args.model in PUBLISHED:
        return GPT2Config.from_name(args.model)
    tensors = weights_of(args)
    if tensors.config is None:
        raise MissingError(f"{tensors.source} has no configuration; put its config.json beside it")
    return tensors.config


def weights_of(args: argparse.Namespace) -> Any:
    """The `Tensors` of the checkpoint that --model names, which may be a part of a model."""
    from .weights.checkpoint import read_tensors
    from .weights.locate import locate

    return read_tensors(locate(args.model, download=args.download))


def name_of(args: argparse.Namespace) -> str:
    """The name of the model in a result: that of --model, with a note if its weights are random."""
    if args.random_weights is None:
        return args.model
    return f"{args.model} with random weights (seed {args.random_weights})"


def said_of(args: argparse.Namespace) -> dict[str, Any]:
    """The name for a JSON document: "model", and "random_weights", the seed of --random-weights."""
    if args.random_weights is None:
        return {"model": name_of(args)}
    return {"model": name_of(args), "random_weights": args.random_weights}


def model_of(args: argparse.Namespace) -> tuple[Any, Any]:
    """The model that --model names, on the backend of --backend, and its tokenizer.

    MissingError if the two do not belong together, or if there is no tokenizer; with --ids the
    tokenizer may be None.
    """
    device = backend_of(args)           # first: it reports a missing backend before a long load

    from .model import GPT2  # here, so that --help does not wait for the import
    from .weights.locate import locate

    how: dict[str, Any] = {"backend": device, "dtype": floats_of(args.dtype)}
    if args.random_weights is not None:
        model, home = GPT2(config_of(args), seed=args.random_weights, **how).eval(), args.model
        path = Path(home) if home in PUBLISHED else locate(home)
    else:
        path = locate(args.model, download=args.download)
        model, home = GPT2.from_pretrained(path, **how), None
    folder = path.parent if path.is_file() else path
    tokenizer = _tokenizer_of(args, home if home in PUBLISHED else folder)
    size = model.config.vocab_size
    if tokenizer is not None and tokenizer.n_plain > size:
        raise MissingError(f"{path}: the tokenizer has {tokenizer.n_vocab} tokens and the model "
                           f"{size}; they do not belong together")
    if tokenizer is not None and tokenizer.n_vocab > size:
        warnings.warn(f"{path}: the tokenizer adds ids up to {tokenizer.n_vocab - 1}, and the "
                      f"model's ids end at {size - 1}; it cannot read the added ids", stacklevel=2)
    return model, tokenizer


def _tokenizer_of(args: argparse.Namespace, home: Any) -> Any:
    from .data.tokenizer import load_tokenizer

    try:
        return load_tokenizer("gpt2" if home in PUBLISHED else home)
    except MissingError:
        if getattr(args, "ids", None) is None:
            raise
        return None


def prompt_ids(args: argparse.Namespace, tokenizer: Any, context: int | None = None,
               unconditional: bool = False) -> list[int]:
    """The ids [T] of --prompt or --ids. UsageError if there are none, or more than `context`.

    unconditional: an empty --prompt becomes <|endoftext|>, with which OpenAI's samples without a
    prompt begin.
    """
    if args.ids is not None and args.allow_special:
        raise UsageError("--allow-special concerns the text of --prompt, and --ids has no text; "
                         "leave out --allow-special")
    if args.ids is not None:
        ids = args.ids
    elif unconditional and args.prompt == "":
        if tokenizer.eot is None:
            raise UsageError("the prompt is empty, and this tokenizer has no <|endoftext|> to "
                             "start from; give --prompt TEXT or --ids")
        ids = [tokenizer.eot]
    else:
        prompt = read_stdin() if args.prompt == "-" else args.prompt
        ids = tokenizer.encode(prompt, allow_special=args.allow_special)
    if not ids:
        raise UsageError("the prompt is empty; give " + (
            "--prompt TEXT, or text on stdin with --prompt -" if unconditional
            else "at least one token"))
    if context is not None and len(ids) > context:
        raise UsageError(f"the prompt has {len(ids)} tokens, and the model's context is {context}")
    return list(ids)


@contextlib.contextmanager
def numbers_watched(model: Any) -> Iterator[None]:
    """Replace NumPy's warnings about single ops in the block by one warning.

    There is no warning if a weight is not finite: reading the weights has warned already.
    """
    import numpy as np  # here, so that --help does not wait for the import

    with warnings.catch_warnings(record=True) as met:
        warnings.simplefilter("always", RuntimeWarning)
        yield
    messages = [str(one.message) for one in met if issubclass(one.category, RuntimeWarning)]
    for one in met:
        if not issubclass(one.category, RuntimeWarning):
            warnings.warn(one.message, stacklevel=3)
    if messages and all(np.isfinite(p.numpy()).all() for p in model.parameters()):
        hint = "" if model.compute_dtype == "float64" else "; try --dtype float64"
        warnings.warn(f"{messages[0]} in {model.compute_dtype}, though every weight is finite"
                      f"{hint}", stacklevel=3)


def labels(tokenizer: Any, ids: list[int]) -> list[str]:
    """Each token's text for a table, with visible spaces and line ends; ids without a tokenizer."""
    return [str(i) if tokenizer is None else tokenizer.label(i) for i in ids]
