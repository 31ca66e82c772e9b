"""The files of llm.c, which its ports read too: a checkpoint, a debug state and a tokenizer.

Each file begins with 256 numbers of int32: a magic number, a version and sizes. The parameters
follow kind by kind, each kind for all blocks (`names`). Matrices are [out, in], and the rows of the
vocabulary are padded with zeros to a multiple of 128 (train_gpt2.py of karpathy/llm.c: write_model,
write_state, write_tokenizer).
"""
from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..config import GPT2Config, parameter_shapes
from ..errors import MissingError, UsageError
from ..io.records import open_file
from ..io.safetensors import as_stored

CHECKPOINT, STATE, TOKENIZER = 20240326, 20240327, 20240328
VERSIONS = {"float32": 3, "bfloat16": 5}                # of a checkpoint
HEADER, PADDED_TO = 256, 128
LOSSES = "losses.json"              # our own file: the losses that llm.c's test has in its source
SIZES = {"gpt2": "124M", "gpt2-medium": "355M", "gpt2-large": "774M", "gpt2-xl": "1558M"}
IN_BLOCKS = ("ln_1.weight", "ln_1.bias", "attn.c_attn.weight", "attn.c_attn.bias",
             "attn.c_proj.weight", "attn.c_proj.bias", "ln_2.weight", "ln_2.bias",
             "mlp.c_fc.weight", "mlp.c_fc.bias", "mlp.c_proj.weight", "mlp.c_proj.bias")
# llm.c has no setting for these fields of a configuration
FIXED = {"activation_function": "gelu_new", "tie_word_embeddings": True, "layer_norm_epsilon": 1e-5,
         "scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False}


def names(config: GPT2Config) -> list[str]:
    """The parameters in the order of the files."""
    in_blocks = [f"h.{i}.{kind}" for kind in IN_BLOCKS for i in range(config.n_layer)]
    return ["wte.weight", "wpe.weight", *in_blocks, "ln_f.weight", "ln_f.bias"]


def padded(vocab_size: int) -> int:
    """The number of rows of the embedding table in the files."""
    return -(-vocab_size // PADDED_TO) * PADDED_TO


def check_config(config: GPT2Config) -> None:
    """UsageError for a model that llm.c cannot compute."""
    for field, wanted in FIXED.items():
        if (found := getattr(config, field)) != wanted:
            raise UsageError(f"--format llmc: llm.c supports only {field}={wanted!r}, "
                             f"and this model has {found!r}")
    if config.n_inner not in (None, 4 * config.n_embd):
        raise UsageError("--format llmc: llm.c supports only n_inner = 4·n_embd, "
                         f"and this model has {config.n_inner}")


# ── writing ──
def header(*numbers: int) -> np.ndarray:
    """The header of a file: these numbers, and zeros after them."""
    out = np.zeros(HEADER, "<i4")
    out[:len(numbers)] = numbers
    return out


def in_order(arrays: Mapping[str, np.ndarray], config: GPT2Config,
             dtype: str) -> Iterator[np.ndarray]:
    """Parameters, or their gradients, as the files store them, in float32 or bits of bfloat16."""
    code = {"float32": "F32", "bfloat16": "BF16"}[dtype]
    for name in names(config):
        a = arrays[name]
        if name == "wte.weight":                        # [V, d] -> [Vp, d]
            a = np.concatenate([a, np.zeros((padded(len(a)) - len(a), a.shape[1]), a.dtype)])
        elif name.startswith("h.") and a.ndim == 2:     # [in, out] -> [out, in]
            a = a.T
        yield as_stored(a, code)


def checkpoint(parameters: Mapping[str, np.ndarray], config: GPT2Config,
               dtype: str = "float32") -> Iterator[Any]:
    """The pieces of gpt2_124M.bin, or with bfloat16 of gpt2_124M_bf16.bin."""
    yield header(CHECKPOINT, VERSIONS[dtype], config.n_positions, config.vocab_size,
                 config.n_layer, config.n_head, config.n_embd, padded(config.vocab_size))
    yield from in_order(parameters, config, dtype)


def state(ids: np.ndarray, targets: np.ndarray, logits: np.ndarray, loss: float,
          gradients: Mapping[str, np.ndarray], config: GPT2Config) -> Iterator[Any]:
    """The pieces of gpt2_124M_debug_state.bin.

    They are ids and targets [B, T], logits [B, T, V], the loss, and each parameter's gradient.
    """
    yield header(STATE, 2, *ids.shape)
    yield from (np.ascontiguousarray(a, "<i4") for a in (ids, targets))
    yield from (np.ascontiguousarray(a, "<f4") for a in (logits, np.asarray(loss)))
    yield from in_order(gradients, config, "float32")


def tokenizer(own: Any) -> Iterator[Any]:
    """The pieces of gpt2_tokenizer.bin: for each token its length in one byte, and then its bytes.

    UsageError for a token of more than 255 bytes.
    """
    yield header(TOKENIZER, 2, own.n_vocab, 0 if own.eot is None else own.eot)
    for i in range(own.n_vocab):
        text = own.decode_bytes([i])
        if len(text) > 255:
            raise UsageError(f"--format llmc: token {i} has {len(text)} bytes, "
                             "and a token in llm.c's tokenizer file can have 255")
        yield bytes([len(text)]) + text


# ── reading ──
def read_state(path: Path, config: GPT2Config) -> tuple[np.ndarray, np.ndarray,
                                                        dict[str, np.ndarray]]:
    """Ids and targets [B, T] of a debug state, and its other arrays by name.

    They are "logits", "loss" and "NAME.grad" of each parameter, in float32 and without padding. The
    logits of the file may be padded too. MissingError if the file is not a complete debug state of
    this configuration, OSError if it cannot be opened.
    """
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        head = np.fromfile(file, "<i4", HEADER)
        if len(head) < HEADER or head[0] != STATE:
            raise MissingError(f"{path} is not a debug state of llm.c: it begins with "
                               f"{head[0] if len(head) else 'nothing'}, not {STATE}")
        if head[1] != 2:
            raise MissingError(f"{path} is a debug state of version {head[1]}; "
                               "only version 2 can be read")
        rows, tokens = (int(n) for n in head[2:4])
        shapes = parameter_shapes(config)
        shapes["wte.weight"] = (padded(config.vocab_size), config.n_embd)
        gradients = sum(math.prod(shape) for shape in shapes.values())
        found = size // 4 - HEADER - 2 * rows * tokens  # numbers after the ids
        for width in (padded(config.vocab_size), config.vocab_size):
            wanted = rows * tokens * width + 1 + gradients
            if found == wanted and size % 4 == 0 and rows > 0 and tokens > 0:
                break
        else:
            raise MissingError(f"{path} has {found:,} numbers after its ids, but a debug state of "
                               f"{rows} × {tokens} tokens of this model has {wanted:,}; "
                               "is it of another model, or truncated?")
        inputs, targets = (np.fromfile(file, "<i4", rows * tokens) for _ in range(2))
        rest = np.fromfile(file, "<f4", wanted)
    logits, loss, rest = np.split(rest, [rows * tokens * width, rows * tokens * width + 1])
    out = {"logits": logits.reshape(rows, tokens, width)[..., :config.vocab_size], "loss": loss[0]}
    for name in names(config):
        own, rest = np.split(rest, [math.prod(shapes[name])])
        if name.startswith("h."):
            own = own.reshape(shapes[name][::-1]).T     # [out, in] -> [in, out]; a bias [n] -> [n]
        else:
            own = own.reshape(shapes[name])
        out[f"{name}.grad"] = own[:config.vocab_size] if name == "wte.weight" else own
    return inputs.reshape(rows, tokens), targets.reshape(rows, tokens), out
