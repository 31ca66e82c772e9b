"""Models small enough for a test: of random weights, and one that says what it is told to."""
from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import numpy as np

from gpt2.config import GPT2Config
from gpt2.data.tokenizer import Tokenizer
from gpt2.data.train_bpe import train_bpe
from gpt2.model import GPT2
from gpt2.prepare import prepare

TEXT = """Once upon a midnight dreary, while I pondered, weak and weary,
Over many a quaint and curious volume of forgotten lore,
While I nodded, nearly napping, suddenly there came a tapping,
As of some one gently rapping, rapping at my chamber door.
"""
CONTEXT = 64
SAYS = "Tap 🤗 on, tap 🤗🤗 off"                          # for models that say what they are told to


@functools.cache
def tiny_tokenizer() -> Tokenizer:
    """300 ids; the four bytes of an emoji are four tokens."""
    return train_bpe(TEXT, 300)


def tiny_config(**fields) -> GPT2Config:
    """2 layers, 2 heads, width 32, a context of 64 and the tiny tokenizer's vocabulary, but for `fields`."""
    tokenizer = tiny_tokenizer()
    sizes = {"vocab_size": tokenizer.n_vocab, "n_positions": CONTEXT, "n_embd": 32, "n_layer": 2, "n_head": 2}
    return GPT2Config(**{**sizes, "bos_token_id": tokenizer.eot, "eos_token_id": tokenizer.eot, **fields})


def tiny_model(seed=0, **fields) -> GPT2:
    """Random weights, wide enough that every token before and its place have a say in what comes next, in evaluation mode."""
    return GPT2(tiny_config(**{"initializer_range": 0.3, **fields}), seed=seed).eval()


def scripted_model(says, **fields) -> GPT2:
    """After a prompt of one token it says the tokens `says`, whatever was there before, then the first of them again and again.

    The blocks add nothing, and the embedding of place p is a multiple of that of the token to be said there. A prompt of n
    tokens leaves out the first n − 1. With logits hundreds apart, no temperature up to 10 makes it say anything else.
    """
    config = tiny_config(**fields)
    model = GPT2(config).eval()
    for block in model.h:
        for part in (block.attn.c_proj, block.mlp.c_proj):
            part.weight.assign(np.zeros_like(part.weight.array))
    wte = np.random.default_rng(0).standard_normal((config.vocab_size, config.n_embd))
    wte -= wte.mean(axis=1, keepdims=True)              # LayerNorm takes the mean away
    wte *= 1000.0 / np.linalg.norm(wte, axis=1, keepdims=True)
    script = np.resize(list(says), config.n_positions)
    script[len(says):] = says[0]
    model.wte.weight.assign(wte.astype(np.float32))
    model.wpe.weight.assign((1000.0 * wte[script]).astype(np.float32))
    return model


def prepare_texts(texts, out, tokenizer="gpt2", **options):
    """`gpt2.prepare.prepare` for texts, each in a file of its own."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, f"{i}.txt") for i in range(len(texts))]
        for path, text in zip(paths, texts):
            path.write_bytes(text.encode())
        return prepare(paths, out, tokenizer, **options)
