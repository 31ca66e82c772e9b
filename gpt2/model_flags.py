"""What commands that read a model share: its flags, and the model, the tokenizer and the ids that they name."""
from __future__ import annotations

import argparse
import contextlib
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from .cli.command import PRECISIONS, Extend, add_backend, at_least, backend_of, floats_of, read_stdin, text
from .config import PUBLISHED, GPT2Config
from .errors import MissingError, UsageError

EXAMPLE = "The way you do anything is the way you do everything"


def add_weights(p: argparse._ActionsContainer) -> None:
    """The flags --model and --download, for `weights_of` and `config_of`."""
    p.add_argument("--model", default="shakespeare", metavar="NAME|DIR",
                   help="shakespeare (ships with the package), gpt2, gpt2-medium, gpt2-large, gpt2-xl, a directory, or a .safetensors file")
    p.add_argument("--download", action="store_true", help="fetch the weights of a published model that is not here yet")


def add_model(p: argparse._ActionsContainer, dtypes: Sequence[str] = PRECISIONS, dtype: str = "float32") -> None:
    """The flags of `add_weights`, --random-weights, --backend, --device and --dtype, for `model_of`."""
    add_weights(p)
    p.add_argument("--random-weights", type=at_least(0), metavar="SEED",
                   help="draw the weights from SEED; a published size then needs nothing that must be downloaded but its tokenizer")
    add_backend(p)
    tf32 = "; tf32: products of float32 that a GPU may round" if "tf32" in dtypes else ""
    p.add_argument("--dtype", default=dtype, choices=dtypes, help=f"of weights and computation{tf32} (default: {dtype})")


def add_prompt(p: argparse.ArgumentParser, default: str = EXAMPLE,
               what: str = f"what the model reads; - reads stdin (default: {EXAMPLE!r})") -> None:
    """The flags --prompt, --ids and --allow-special, for `prompt_ids`."""
    given = p.add_mutually_exclusive_group()
    given.add_argument("--prompt", type=text, default=default, metavar="TEXT", help=what)
    given.add_argument("--ids", type=_ids, action=Extend, metavar="I,J,…", help="token ids instead of a text")
    p.add_argument("--allow-special", action="store_true", help="<|endoftext|> in --prompt is that token (default: it is plain text)")


def _ids(value: str) -> list[int]:
    try:
        return [int(part) for part in value.replace(",", " ").split()]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{value!r} are no ids; write them as 15496,11,314") from None


def config_of(args: argparse.Namespace) -> GPT2Config:
    """The configuration of what --model names; a published size needs no weights for that. MissingError where nothing tells it."""
    if args.model in PUBLISHED:
        return GPT2Config.from_name(args.model)
    tensors = weights_of(args)
    if tensors.config is None:
        raise MissingError(f"{tensors.source} does not tell its configuration; put its config.json beside it")
    return tensors.config


def weights_of(args: argparse.Namespace) -> Any:
    """The `Tensors` of what --model names, whole or partial."""
    from .weights.checkpoint import read_tensors
    from .weights.locate import locate

    return read_tensors(locate(args.model, download=args.download))


def name_of(args: argparse.Namespace) -> str:
    """What a result calls the model: what --model says, and that its weights are random where they are."""
    return args.model if args.random_weights is None else f"{args.model} with random weights (seed {args.random_weights})"


def said_of(args: argparse.Namespace) -> dict[str, Any]:
    """The same for a JSON document: "model", and with --random-weights "random_weights", their seed."""
    return {"model": name_of(args)} | ({} if args.random_weights is None else {"random_weights": args.random_weights})


def model_of(args: argparse.Namespace) -> tuple[Any, Any]:
    """The model that --model names, where --backend says, and its tokenizer. MissingError where the two do not belong together.

    With --ids the tokenizer is None where there is none.
    """
    device = backend_of(args)                           # says what is missing before anything is loaded

    from .model import GPT2
    from .weights.locate import locate  # not before --help has been answered

    how: dict[str, Any] = {"backend": device, "dtype": floats_of(args.dtype)}
    if args.random_weights is not None:
        model, home = GPT2(config_of(args), seed=args.random_weights, **how).eval(), args.model
        path = Path(home) if home in PUBLISHED else locate(home)
    else:
        path = locate(args.model, download=args.download)
        model, home = GPT2.from_pretrained(path, **how), None
    tokenizer = _tokenizer_of(args, home if home in PUBLISHED else path.parent if path.is_file() else path)
    if tokenizer is not None and tokenizer.n_plain > model.config.vocab_size:
        raise MissingError(f"{path}: the tokenizer has {tokenizer.n_vocab} tokens and the model {model.config.vocab_size}; "
                           "they do not belong together")
    if tokenizer is not None and tokenizer.n_vocab > model.config.vocab_size:
        warnings.warn(f"{path}: the tokenizer adds ids up to {tokenizer.n_vocab - 1}, and the model has none from "
                      f"{model.config.vocab_size} on; it cannot read those", stacklevel=2)
    return model, tokenizer


def _tokenizer_of(args: argparse.Namespace, home: Any) -> Any:
    from .data.tokenizer import load_tokenizer

    try:
        return load_tokenizer("gpt2" if home in PUBLISHED else home)
    except MissingError:
        if getattr(args, "ids", None) is None:
            raise
        return None


def prompt_ids(args: argparse.Namespace, tokenizer: Any, context: int | None = None, unconditional: bool = False) -> list[int]:
    """The ids [T] that --prompt or --ids names. UsageError where there are none, or more than the context has room for.

    unconditional: an empty --prompt is <|endoftext|>, what OpenAI's samples without a prompt begin with.
    """
    if args.ids is not None and args.allow_special:
        raise UsageError("--allow-special is about the text of --prompt, and --ids are ids already; leave it out")
    if args.ids is not None:
        ids = args.ids
    elif unconditional and args.prompt == "":
        if tokenizer.eot is None:
            raise UsageError("the prompt is empty, and this tokenizer has no <|endoftext|> to start from; give --prompt TEXT or --ids")
        ids = [tokenizer.eot]
    else:
        ids = tokenizer.encode(read_stdin() if args.prompt == "-" else args.prompt, allow_special=args.allow_special)
    if not ids:
        raise UsageError("the prompt is empty; give " + ("--prompt TEXT, or text on stdin with --prompt -" if unconditional
                                                         else "it a token at least"))
    if context is not None and len(ids) > context:
        raise UsageError(f"the prompt has {len(ids)} tokens, and the model's context is {context}")
    return list(ids)


@contextlib.contextmanager
def numbers_watched(model: Any) -> Iterator[None]:
    """One warning in place of those that NumPy has for each op in the block. None where weights are not finite: reading them warned."""
    import numpy as np  # not before --help has been answered

    with warnings.catch_warnings(record=True) as met:
        warnings.simplefilter("always", RuntimeWarning)
        yield
    said = [str(one.message) for one in met if issubclass(one.category, RuntimeWarning)]
    for one in met:
        if not issubclass(one.category, RuntimeWarning):
            warnings.warn(one.message, stacklevel=3)
    if said and all(np.isfinite(p.numpy()).all() for p in model.parameters()):
        hint = "" if model.compute_dtype == "float64" else "; try --dtype float64"
        warnings.warn(f"{said[0]} in {model.compute_dtype}, though every weight is finite{hint}", stacklevel=3)


def labels(tokenizer: Any, ids: list[int]) -> list[str]:
    """What each token looks like in a table, spaces and line ends to be seen; its id where there is no tokenizer."""
    return [str(i) if tokenizer is None else tokenizer.label(i) for i in ids]
