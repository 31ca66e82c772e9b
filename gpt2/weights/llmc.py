"""The files of llm.c, which its ports read too: a checkpoint, a debug state and a tokenizer, written and read.

Each begins with 256 numbers of int32: a magic number, a version and sizes. Parameters follow kind by kind, each for all blocks
one after the other, matrices as [out, in], and the rows of the vocabulary are padded with zeros to a multiple of 128
(train_gpt2.py of karpathy/llm.c: write_model, write_state, write_tokenizer).
"""
from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..config import GPT2Config, parameter_shapes
from ..errors import MissingError, UsageError
from ..io.safetensors import as_stored

CHECKPOINT, STATE, TOKENIZER = 20240326, 20240327, 20240328
VERSIONS = {"float32": 3, "bfloat16": 5}                # of a checkpoint
HEADER, PADDED_TO = 256, 128
LOSSES = "losses.json"                                  # ours: what a test that reads these files has compiled in
SIZES = {"gpt2": "124M", "gpt2-medium": "355M", "gpt2-large": "774M", "gpt2-xl": "1558M"}
IN_BLOCKS = ("ln_1.weight", "ln_1.bias", "attn.c_attn.weight", "attn.c_attn.bias", "attn.c_proj.weight", "attn.c_proj.bias",
             "ln_2.weight", "ln_2.bias", "mlp.c_fc.weight", "mlp.c_fc.bias", "mlp.c_proj.weight", "mlp.c_proj.bias")


def names(config: GPT2Config) -> list[str]:
    """The parameters in the order of the files."""
    return ["wte.weight", "wpe.weight", *(f"h.{i}.{kind}" for kind in IN_BLOCKS for i in range(config.n_layer)), "ln_f.weight", "ln_f.bias"]


def padded(vocab_size: int) -> int:
    """The rows of the vocabulary that the files have."""
    return -(-vocab_size // PADDED_TO) * PADDED_TO


def check_config(config: GPT2Config) -> None:
    """UsageError for a model that llm.c cannot compute: it has no switch for what GPT-2 does not vary."""
    for field, wanted in (("activation_function", "gelu_new"), ("tie_word_embeddings", True), ("layer_norm_epsilon", 1e-5),
                          ("scale_attn_weights", True), ("scale_attn_by_inverse_layer_idx", False)):
        if (found := getattr(config, field)) != wanted:
            raise UsageError(f"--format llmc: llm.c computes {field}={wanted!r} alone, and this model has {found!r}")
    if config.n_inner not in (None, 4 * config.n_embd):
        raise UsageError(f"--format llmc: llm.c has n_inner = 4·n_embd alone, and this model has {config.n_inner}")


# ── written ──
def header(*numbers: int) -> np.ndarray:
    out = np.zeros(HEADER, "<i4")
    out[:len(numbers)] = numbers
    return out


def in_order(arrays: Mapping[str, np.ndarray], config: GPT2Config, dtype: str) -> Iterator[np.ndarray]:
    """Parameters, or their gradients, as the files have them: in float32, or the bits of bfloat16."""
    code = {"float32": "F32", "bfloat16": "BF16"}[dtype]
    for name in names(config):
        a = arrays[name]
        if name == "wte.weight":                        # [V, d] -> [Vp, d]
            a = np.concatenate([a, np.zeros((padded(len(a)) - len(a), a.shape[1]), a.dtype)])
        elif name.startswith("h.") and a.ndim == 2:     # [in, out] -> [out, in]
            a = a.T
        yield as_stored(a, code)


def checkpoint(parameters: Mapping[str, np.ndarray], config: GPT2Config, dtype: str = "float32") -> Iterator[Any]:
    """The pieces of gpt2_124M.bin, or with bfloat16 of gpt2_124M_bf16.bin."""
    yield header(CHECKPOINT, VERSIONS[dtype], config.n_positions, config.vocab_size, config.n_layer, config.n_head, config.n_embd,
                 padded(config.vocab_size))
    yield from in_order(parameters, config, dtype)


def state(ids: np.ndarray, targets: np.ndarray, logits: np.ndarray, loss: float, gradients: Mapping[str, np.ndarray],
          config: GPT2Config) -> Iterator[Any]:
    """The pieces of gpt2_124M_debug_state.bin: ids and targets [B, T], logits [B, T, V], the loss, and the gradient of each parameter."""
    yield header(STATE, 2, *ids.shape)
    yield from (np.ascontiguousarray(a, "<i4") for a in (ids, targets))
    yield from (np.ascontiguousarray(a, "<f4") for a in (logits, np.asarray(loss)))
    yield from in_order(gradients, config, "float32")


def tokenizer(own: Any) -> Iterator[Any]:
    """The pieces of gpt2_tokenizer.bin: the bytes of each token, after their number in one byte. UsageError where that is above 255."""
    yield header(TOKENIZER, 2, own.n_vocab, 0 if own.eot is None else own.eot)
    for i in range(own.n_vocab):
        text = own.decode_bytes([i])
        if len(text) > 255:
            raise UsageError(f"--format llmc: token {i} has {len(text)} bytes, and llm.c's tokenizer file has room for 255")
        yield bytes([len(text)]) + text


# ── read ──
def read_state(path: Path, config: GPT2Config) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Ids and targets [B, T] of a debug state, and by our names its logits, loss and gradients, in float32 and without the padding.

    Logits may be padded too. MissingError for what is no whole debug state of this configuration, OSError where it cannot be opened.
    """
    with open(path, "rb") as file:
        head = np.fromfile(file, "<i4", HEADER)
        if len(head) < HEADER or head[0] != STATE:
            raise MissingError(f"{path} is no debug state of llm.c: it begins with {head[0] if len(head) else 'nothing'}, not {STATE}")
        if head[1] != 2:
            raise MissingError(f"{path} is a debug state of version {head[1]}, and version 2 is read here")
        rows, tokens = (int(n) for n in head[2:4])
        inputs, targets = (np.fromfile(file, "<i4", rows * tokens) for _ in range(2))
        rest = np.fromfile(file, "<f4")
    shapes = parameter_shapes(config) | {"wte.weight": (padded(config.vocab_size), config.n_embd)}
    gradients = sum(math.prod(shape) for shape in shapes.values())
    for width in (config.vocab_size, padded(config.vocab_size)):
        if rest.size == rows * tokens * width + 1 + gradients:
            break
    else:
        raise MissingError(f"{path} has {rest.size:,} numbers after its ids, and a debug state of {rows} × {tokens} tokens of this model "
                           f"has {rows * tokens * config.vocab_size + 1 + gradients:,}; is it of another model, or truncated?")
    logits, loss, rest = np.split(rest, [rows * tokens * width, rows * tokens * width + 1])
    out = {"logits": logits.reshape(rows, tokens, width)[..., :config.vocab_size], "loss": loss[0]}
    for name in names(config):
        own, rest = np.split(rest, [math.prod(shapes[name])])
        if name.startswith("h."):
            own = own.reshape(shapes[name][::-1]).T     # [out, in] -> [in, out]; a bias is as it is
        else:
            own = own.reshape(shapes[name])
        out[f"{name}.grad"] = own[:config.vocab_size] if name == "wte.weight" else own
    return inputs.reshape(rows, tokens), targets.reshape(rows, tokens), out
