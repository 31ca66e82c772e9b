"""transformers as a peer: what its lines and ours run on."""
from __future__ import annotations

import ast
import atexit
import contextlib
import functools
import io
import json
import logging
import os
import re
import shlex
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

import gpt2.generate
import gpt2.train.__main__
import minigrad as mg
from gpt2.config import GPT2Config
from gpt2.data.tokenizer import Tokenizer, load_tokenizer
from gpt2.model import GPT2

from . import judge
from .row import Made, Row, execute

if str(Path(__file__).parents[1] / "helpers") not in sys.path:
    sys.path.append(str(Path(__file__).parents[1] / "helpers"))
from tiny_gpt2 import tiny_model, tiny_tokenizer

IDS = np.array([[7, 31, 4, 250, 9]])
PROMPT = "Once upon a midnight"
SIZES = {"vocab_size": 300, "n_positions": 8, "n_embd": 32, "n_layer": 2, "n_head": 2}


@functools.cache
def folder() -> Path:
    """A tiny model and its tokenizer, in files that both read."""
    made = Path(tempfile.mkdtemp(prefix="habits-"))
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    tiny_model(seed=3, n_positions=24).save_pretrained(made / "model", tokenizer=tiny_tokenizer())
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    return made


@functools.cache
def _theirs() -> Any:
    return transformers.GPT2LMHeadModel.from_pretrained(folder() / "model").eval()


@functools.cache
def _ours() -> Any:
    return GPT2.from_pretrained(folder() / "model")


@functools.cache
def _their_tokenizer() -> Any:
    return transformers.GPT2Tokenizer.from_pretrained(folder() / "model")


def inputs(used: set[str], ours: bool) -> dict[str, Any]:
    """model, tokenizer, path, out (a new directory), ids (a tensor [1, 5]), rows (the same as a list), config."""
    made: dict[str, Any] = {}
    if "path" in used:
        made["path"] = str(folder() / "model")
    if "out" in used:
        made["out"] = tempfile.mkdtemp(dir=folder())
    if "ids" in used:
        made["ids"] = mg.tensor(IDS) if ours else torch.tensor(IDS)
    if "rows" in used:
        made["rows"] = IDS.tolist()
    if "prompt" in used:
        made["prompt"] = PROMPT
    if "config" in used:
        made["config"] = GPT2Config(**SIZES) if ours else transformers.GPT2Config(**SIZES)
    if "tokenizer" in used:
        made["tokenizer"] = load_tokenizer(folder() / "model") if ours else _their_tokenizer()
    if "model" in used:
        made["model"] = (_ours if ours else _theirs)().eval()          # no line changes its weights
        made["model"].zero_grad()
    return made


def command(parser: Any) -> Any:
    """What a command reads from a line of flags; ValueError with what it says where it refuses."""

    def read(line: str) -> dict[str, Any]:
        with contextlib.redirect_stderr(io.StringIO()) as said:
            try:
                return vars(parser().parse_args(shlex.split(line)))
            except SystemExit:
                raise ValueError(said.getvalue().strip()) from None

    return read


def nanogpt(line: str) -> dict[str, Any]:
    """What nanoGPT's configurator makes of --key=value."""
    made = {}
    for flag in shlex.split(line):
        key, value = flag.removeprefix("--").split("=")
        try:
            made[key] = ast.literal_eval(value)
        except (SyntaxError, ValueError):
            made[key] = value
    return made


def plain(made: Made) -> Made:
    """Without the names of folders, which differ."""
    for name in ("out", "path"):
        made.names.pop(name, None)
        made.before.pop(name, None)
    return made


class Transformers(judge.Peer):
    """transformers: its GPT2LMHeadModel and GPT2Tokenizer; nanoGPT's flags as nanoGPT reads them."""

    name = "transformers"
    ours_space = {**judge.OURS, "GPT2": GPT2, "GPT2Config": GPT2Config, "load_tokenizer": load_tokenizer, "Tokenizer": Tokenizer,
                  "os": os, "json": json, "train": command(gpt2.train.__main__.parser), "sample": command(gpt2.generate.parser)}
    space = {**judge.TORCH, "GPT2LMHeadModel": transformers.GPT2LMHeadModel, "GPT2Config": transformers.GPT2Config,
             "GPT2Tokenizer": transformers.GPT2Tokenizer, "os": os, "json": json, "train": nanogpt, "sample": nanogpt}

    def line(self, row: Row) -> str:
        line = row.line("torch")
        return re.sub(r"\bGPT2([(.])", r"GPT2LMHeadModel\1", line) if row.theirs.startswith("=") else line

    def ours(self, row: Row) -> Made:
        return plain(execute(row.typed, self.ours_space, inputs(self.used(row), True), judge.ours_as_data))

    def theirs(self, row: Row) -> Made:
        return plain(execute(self.line(row), self.space, inputs(self.used(row), False), judge.theirs_as_data))

    def gradients(self, row: Row, made: Made, ours: dict[str, Any]) -> dict[str, np.ndarray] | None:
        """By the names of our parameters."""
        found = super().gradients(row, made, ours)
        return found and {name.replace("model.transformer.", "model."): g for name, g in found.items() if "lm_head" not in name}
