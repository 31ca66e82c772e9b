"""What commands that read a model share: its flags, and the model and the tokenizer that they name."""
from __future__ import annotations

import argparse
from typing import Any

from .cli import PRECISIONS, add_backend, backend_of, floats_of
from .errors import MissingError


def add_model(p: argparse._ActionsContainer) -> None:
    """The flags --model, --download, --backend, --device and --dtype, for `model_of`."""
    p.add_argument("--model", default="shakespeare", metavar="NAME|DIR",
                   help="shakespeare (ships with the package), gpt2, gpt2-medium, gpt2-large, gpt2-xl, a directory, or a .safetensors file")
    p.add_argument("--download", action="store_true", help="fetch the weights of a published model that is not here yet")
    add_backend(p)
    p.add_argument("--dtype", default="float32", choices=PRECISIONS,
                   help="of weights and computation; tf32: products of float32 that a GPU may round (default: float32)")


def model_of(args: argparse.Namespace) -> tuple[Any, Any]:
    """The model that --model names, where --backend says, and its tokenizer. MissingError where the two do not belong together."""
    device = backend_of(args)                           # says what is missing before anything is loaded

    from .locate import locate  # not before --help has been answered
    from .model import GPT2
    from .tokenizer import load_tokenizer

    path = locate(args.model, download=args.download)
    model = GPT2.from_pretrained(path, backend=device, dtype=floats_of(args.dtype))
    tokenizer = load_tokenizer(path.parent if path.is_file() else path)
    if tokenizer.n_vocab > model.config.vocab_size:
        raise MissingError(f"{path}: the tokenizer has {tokenizer.n_vocab} tokens and the model {model.config.vocab_size}; "
                           "they do not belong together")
    return model, tokenizer
