"""The table of minigrad and its peers: for each name the function that builds its workload, and the packages that it needs."""
from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

US, FLOOR = "minigrad", "floor"


class Work(NamedTuple):
    """A workload that is ready to run.

    run: does it once, and returns when it is done. answer: what it computes, for `benchmarks.agreement`; called once, before anything is
    timed. about: threads, kernels and settings in one line. peak: the largest number of bytes of the device's memory, if that is not the
    process's memory. clocked: run returns the seconds to count.
    """

    run: Callable[[], Any]
    answer: Callable[[], dict[str, Any]]
    about: str = ""
    peak: Callable[[], int] | None = None
    clocked: bool = False


@dataclass(frozen=True)
class Peer:
    """A program that does the work of some rows.

    builder: "module:function", which makes a Work from a task (row, checkpoint, …) in a process of its own. needs: modules that must be
    installed. kinds: the kinds of rows that it can do; "op" stands for all ops. tells: the keys of the answer that it can give; None: all;
    an empty tuple is for different work, which is only reported. option: the flag of the runner that it needs. prepare: like builder; it
    runs first, in a process of its own.
    """

    builder: str
    needs: tuple[str, ...]
    kinds: tuple[str, ...]
    tells: tuple[str, ...] | None = None
    option: str = ""
    prepare: str = ""


PEERS: dict[str, Peer] = {
    US: Peer("benchmarks.peer_minigrad:build", (), ("train", "forward", "decode", "start", "chain", "op")),
    "torch": Peer("benchmarks.peer_torch:build", ("torch", "transformers"), ("train", "forward", "chain", "op")),
    "torch-compile": Peer("benchmarks.peer_torch:build_compiled", ("torch", "transformers"), ("train", "forward")),
    "jax": Peer("benchmarks.peer_jax:build", ("jax",), ("train", "forward")),
    "transformers": Peer("benchmarks.peer_torch:build", ("torch", "transformers"), ("decode", "start")),
    "ctranslate2": Peer("benchmarks.peer_ctranslate2:build", ("ctranslate2", "torch", "transformers", "tokenizers"), ("decode", "start"),
                        prepare="benchmarks.peer_ctranslate2:prepare"),
    "ctranslate2-int8": Peer("benchmarks.peer_ctranslate2:build_int8", ("ctranslate2", "torch", "transformers", "tokenizers"), ("decode",),
                             tells=(), prepare="benchmarks.peer_ctranslate2:prepare"),
    "llm.c": Peer("benchmarks.peer_llmc:build", (), ("train",), tells=("loss",), option="--llmc"),
    "mygrad": Peer("benchmarks.engines:mygrad_chain", ("mygrad",), ("chain",)),
    "autograd": Peer("benchmarks.engines:autograd_chain", ("autograd",), ("chain",)),
}
# not a peer, but measured between the peers: the products alone, or reading the weights alone
FLOOR_PEER = Peer("benchmarks.floor:build", (), ("train", "forward", "decode"))


def peer(name: str) -> Peer:
    return FLOOR_PEER if name == FLOOR else PEERS[name]


def does(name: str, kind: str) -> bool:
    return kind.partition(" ")[0] in peer(name).kinds


def missing(name: str, options: Mapping[str, Any]) -> str | None:
    """Why a peer cannot run here and how to install it, in one line; None if it can run."""
    entry = peer(name)
    absent = [module for module in entry.needs if importlib.util.find_spec(module) is None]
    if absent:
        is_are = "is" if len(absent) == 1 else "are"
        return f"{name} is left out: {' and '.join(absent)} {is_are} not installed; install it with: pip install {' '.join(entry.needs)}"
    if entry.option and not options.get(entry.option.lstrip("-")):
        return f"{name} is left out: it is not a package; build it and pass {entry.option} DIR (benchmarks/README.md)"
    return None


def build(task: Mapping[str, Any]) -> Work:
    """Call task["builder"], and return the Work that it makes."""
    module, _, function = task["builder"].partition(":")
    made: Work = getattr(importlib.import_module(module), function)(task)
    return made


def script(name: str) -> str:
    """The program of the peer's "start" row: it gets a checkpoint and a prompt of ids in JSON, and prints the first new id."""
    text: str = importlib.import_module(peer(name).builder.partition(":")[0]).START
    return text
