"""Who does the work: minigrad and its peers, a table from a name to what builds its workload and to what must be installed."""
from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

US, FLOOR = "minigrad", "floor"


class Work(NamedTuple):
    """A workload that is ready. run: does it once, and returns when it is done.

    answer: what it computes, for `benchmarks.agreement`; asked for once, before anything is timed. about: threads, kernels, settings,
    in a line. peak: bytes of the device's memory at their highest, where that is not the process's. clocked: run returns the seconds
    that count.
    """

    run: Callable[[], Any]
    answer: Callable[[], dict[str, Any]]
    about: str = ""
    peak: Callable[[], int] | None = None
    clocked: bool = False


@dataclass(frozen=True)
class Peer:
    """builder: "module:function" from a task (row, checkpoint, …) to a Work; run in a process of its own.

    needs: modules that must be there. kinds: of rows; "op" stands for all ops. tells: keys of the answer that it can give; all where
    left out, none for work that is not the same and is reported only. option: a flag of the runner without which it does not run.
    prepare: as builder, run before and in a process of its own.
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
# the products alone, or the weights read alone: no peer, but measured between them
FLOOR_PEER = Peer("benchmarks.floor:build", (), ("train", "forward", "decode"))


def peer(name: str) -> Peer:
    return FLOOR_PEER if name == FLOOR else PEERS[name]


def does(name: str, kind: str) -> bool:
    return kind.partition(" ")[0] in peer(name).kinds


def missing(name: str, options: Mapping[str, Any]) -> str | None:
    """Why a peer cannot run here and how to get it, in a line; None: it can."""
    entry = peer(name)
    absent = [module for module in entry.needs if importlib.util.find_spec(module) is None]
    if absent:
        is_are = "is" if len(absent) == 1 else "are"
        return f"{name}: left out: {' and '.join(absent)} {is_are} not installed; get it with: pip install {' '.join(entry.needs)}"
    if entry.option and not options.get(entry.option.lstrip("-")):
        return f"{name}: left out: it is not a package; build it and name its directory with {entry.option} DIR (benchmarks/README.md)"
    return None


def build(task: Mapping[str, Any]) -> Work:
    """The Work of task["builder"]."""
    module, _, function = task["builder"].partition(":")
    made: Work = getattr(importlib.import_module(module), function)(task)
    return made


def script(name: str) -> str:
    """What the peer's "start" row runs: a program of a checkpoint and a prompt of ids in JSON that prints the first new id."""
    text: str = importlib.import_module(peer(name).builder.partition(":")[0]).START
    return text
