"""python -m benchmarks.counts: the work of a training step and of a decoded token of GPT-2, in counts that do not vary from run to run.

It counts ops and kernels by name, nodes, bytes saved for backward, the peak of array memory, page faults and newly allocated memory. A
training step is forward, backward, AdamW and zero_grad, without dropout. Everything is counted after some steps, in new processes.
"""
from __future__ import annotations

import contextlib
import ctypes
import functools
import json
import subprocess
import sys
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

TINY = {"vocab_size": 512, "n_positions": 64, "n_embd": 128, "n_layer": 2, "n_head": 4, "bos_token_id": None, "eos_token_id": None}
WARMUP, STEPS = 3, 4                                    # the steps before the counts begin, and the steps that are counted
LARGE = 64 * 1024                                       # for `count_fresh`: the allocator keeps no block of this size or larger (bytes)
MEASURES = ("calls", "arrays", "faults", "fresh")


# ── the work ──
class Work:
    """A model on random weights and ids, and the phases of its training step; `token` decodes one more token of one row."""

    def __init__(self, config: Any, batch: int, length: int, *, recompute: bool = False) -> None:
        import numpy as np

        import minigrad as mg
        from gpt2 import GPT2
        from gpt2.decoding.decode import steps
        from gpt2.decoding.sampling import SamplingOptions

        self.model = GPT2(config, seed=0, recompute=recompute).eval()
        self.optimizer = mg.optim.AdamW(mg.optim.decay_groups(self.model.parameters(), 0.1), lr=1e-4)
        ids = np.random.default_rng(0).integers(0, config.vocab_size, (batch, length + 1))
        self.ids, self.targets = ids[:, :-1].copy(), ids[:, 1:].copy()
        room = WARMUP + 2 * STEPS
        prompt = ids[:1, :max(1, min(length, config.n_positions - room))].tolist()
        self._tokens = steps(self.model, prompt, max_new_tokens=min(room, config.n_positions), options=SamplingOptions(greedy=True))
        self.loss: Any = None

    def forward(self) -> None:
        self.loss = self.model.loss(self.ids, self.targets)

    def backward(self) -> None:
        self.loss.backward()
        self.loss = None

    def update(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad()

    def step(self) -> None:
        self.forward()
        self.backward()
        self.update()

    def token(self) -> None:
        next(self._tokens)


def warm(work: Callable[[], None]) -> None:
    for _ in range(WARMUP):
        work()


# ── the measures ──
class Calls:
    """How often ops and kernels were run, by name.

    ops: all ops, including those inside rules. kernels: the CPU's own kernels, for ops or for rules ("op/argument"; a + means that the
    gradient was accumulated into an existing array).
    """

    def __init__(self) -> None:
        self.ops: Counter[str] = Counter()
        self.kernels: Counter[str] = Counter()


@contextlib.contextmanager
def counting() -> Iterator[Calls]:
    """Count what runs inside the block. A kernel that declines (NotImplemented) does not count."""
    from minigrad import backend
    from minigrad.op import REGISTRY

    calls, ops, table = Calls(), list(REGISTRY.values()), backend.cpu.kernels
    plain = [op.kernel for op in ops]

    def noting(run: Callable[..., Any], kernel: str | None, op: str | None) -> Callable[..., Any]:
        @functools.wraps(run)
        def noted(*args: Any, **settings: Any) -> Any:
            out = run(*args, **settings)
            if out is not NotImplemented:
                calls.kernels.update([kernel] if kernel else [])
                calls.ops.update([op] if op else [])
            return out

        return noted

    backend.cpu.kernels = {name: noting(run, name, REGISTRY[name].shown if name in REGISTRY else None) for name, run in table.items()}
    for op, run in zip(ops, plain):
        op.kernel = noting(run, None, op.shown)
    try:
        yield calls
    finally:
        backend.cpu.kernels = table
        for op, run in zip(ops, plain):
            op.kernel = run


def count_calls(make: Callable[[], Work]) -> dict[str, Any]:
    """{"train", "decode"}: {"calls": {phase: {"ops", "kernels"}}}, and for training the table of `minigrad.debug.explain` for the loss."""
    from minigrad.debug import explain

    def counted(phase: Callable[[], None]) -> dict[str, Any]:
        with counting() as calls:
            phase()
        return {"ops": dict(calls.ops), "kernels": dict(calls.kernels)}

    work = make()
    warm(work.step)
    train = {"forward": counted(work.forward)}
    graph = explain(work.loss)
    train |= {"backward": counted(work.backward), "update": counted(work.update)}
    warm(work.token)
    kept = {"nodes": graph.nodes, "kept": graph.kept, "leaves": graph.leaves, "shared": graph.shared, "ops": dict(graph.ops),
            "kept_by_op": {row.op: row.kept for row in graph.rows if row.kept}, "table": str(graph)}
    return {"train": {"calls": train, "graph": kept}, "decode": {"calls": {"decode": counted(work.token)}}}


def count_arrays(make: Callable[[], Work]) -> dict[str, Any]:
    """For each of STEPS steps two numbers of bytes: of all arrays that exist after it, including those of the model and the optimiser,
    and of the peak of memory in the step above what was in use before."""
    import numpy as np

    def traced(name: str) -> dict[str, Any]:
        only = [tracemalloc.DomainFilter(True, np.lib.tracemalloc_domain)]
        live, peaks = [], []
        tracemalloc.start()
        try:
            step = getattr(make(), name)
            warm(step)
            for _ in range(STEPS):
                tracemalloc.reset_peak()
                before = tracemalloc.get_traced_memory()[0]
                step()
                peaks.append(tracemalloc.get_traced_memory()[1] - before)
                time.sleep(0.01)                        # a thread drops its last job a moment after the result is ready
                live.append(sum(t.size for t in tracemalloc.take_snapshot().filter_traces(only).traces))
        finally:
            tracemalloc.stop()
        return {"live": live, "peak": peaks}

    return {"train": traced("step"), "decode": traced("token")}


def count_faults(make: Callable[[], Work]) -> dict[str, Any]:
    """The minor page faults in each of STEPS steps, and the peak memory of the process while it trained, in bytes."""
    import resource

    def faults(step: Callable[[], None]) -> list[int]:
        warm(step)
        found = []
        for _ in range(STEPS):
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            step()
            found.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
        return found

    work = make()
    train = faults(work.step)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"train": {"faults": train, "peak_rss": peak}, "decode": {"faults": faults(work.token)}}


def count_fresh(make: Callable[[], Work]) -> dict[str, Any]:
    """The bytes newly allocated in each of STEPS steps, from page faults; the allocator must keep no block of LARGE bytes or more."""
    import resource

    found, page = count_faults(make), resource.getpagesize()
    return {name: {"fresh": [n * page for n in found[name]["faults"]]} for name in found}


# ── a process for each measure ──
def child(measure: str, config: Any, batch: int, length: int, recompute: bool) -> dict[str, Any]:
    """Compute one of MEASURES in this process, which has done nothing else."""
    import minigrad as mg

    if measure != "fresh":
        mg.backend.cpu.settle()                    # as gpt2.train does
    take = {"calls": count_calls, "arrays": count_arrays, "faults": count_faults, "fresh": count_fresh}[measure]
    return take(lambda: Work(config, batch, length, recompute=recompute))


def measured(measure: str, flags: list[str]) -> dict[str, Any]:
    """The result of `child` in a new process. GPT2Error with the last line of its output if it fails."""
    from gpt2.errors import GPT2Error

    from .processes import environment

    env = environment()
    if measure == "fresh":
        env |= {"MALLOC_MMAP_THRESHOLD_": str(LARGE), "NUMPY_MADVISE_HUGEPAGE": "0"}
    command = [sys.executable, "-m", "benchmarks.counts", "--child", measure, *flags]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise GPT2Error((done.stderr.strip().splitlines() or [f"exit code {done.returncode}, no message"])[-1])
    return json.loads(done.stdout.splitlines()[-1])


def merged(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """The results of all MEASURES in one document, {"train": …, "decode": …}."""
    return {name: {key: value for part in parts for key, value in part[name].items()} for name in ("train", "decode")}


# ── in words ──
def table(found: dict[str, Any]) -> list[str]:
    """The document as lines of text."""
    from minigrad.debug import size_of

    train, decode = found["train"], found["decode"]
    phases = {**train["calls"], **decode["calls"]}
    rows: list[tuple[str, ...]] = [("", *phases)]
    for what, title in (("ops", "ops"), ("kernels", "kernels of the CPU")):
        names = sorted({name for phase in phases.values() for name in phase[what]})
        rows.append((title, *(str(sum(phase[what].values())) for phase in phases.values())))
        rows += [(f"  {name}", *(str(phase[what].get(name, "")) for phase in phases.values())) for name in names]
    width = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join([row[0].ljust(width[0]), *(x.rjust(w) for x, w in zip(row[1:], width[1:]))]).rstrip() for row in rows]
    lines += ["", *train["graph"]["table"].splitlines(), ""]
    memory: list[tuple[str, Callable[[dict[str, Any]], str]]] = [
        ("arrays live after a step", lambda part: size_of(part["live"][-1])),
        ("and how many more than a step before", lambda part: size_of(part["live"][-1] - part["live"][-2])),
        ("peak in a step, above that", lambda part: size_of(max(part["peak"]))),
        ("page faults, step by step", lambda part: " ".join(map(str, part["faults"])) if "faults" in part else "not known here"),
        ("taken anew where none is kept", lambda part: size_of(max(part["fresh"])) if "fresh" in part else "not known here"),
    ]
    both = [("", "training", "decoding"), *((title, say(train), say(decode)) for title, say in memory)]
    lines += [f"{title:36}  {a:>16}  {b:>16}" for title, a, b in both]
    if "peak_rss" in train:
        lines.append(f"{'most memory of the process, training':36}  {size_of(train['peak_rss']):>16}")
    return lines


def main(argv: list[str] | None = None) -> int:
    from gpt2.cli.command import Parser, at_least, emit_json
    from gpt2.config import PUBLISHED, GPT2Config
    from gpt2.errors import UsageError

    p = Parser(prog="python -m benchmarks.counts", description=__doc__)
    p.add_argument("--size", choices=["tiny", *PUBLISHED], default="gpt2", help="tiny: two layers of width 128")
    p.add_argument("--batch", type=at_least(1), metavar="B", help="rows in a batch (default 4)")
    p.add_argument("--block-size", type=at_least(2), metavar="T", help="tokens in a row (default 256; 64 for tiny)")
    p.add_argument("--recompute", action="store_true", help="save only the input of each block, and run the block again in backward")
    p.add_argument("--json", action="store_true", help="print one JSON document as the last line of stdout")
    p.add_argument("--child", choices=MEASURES, help="compute only this count, in this process, and print it as JSON")
    args = p.parse_args(argv)
    if args.child == "fresh" and hasattr(libc := ctypes.CDLL(None), "prctl"):
        libc.prctl(41, 1, 0, 0, 0)                      # PR_SET_THP_DISABLE: each fault is one page, and not a huge page
    config = GPT2Config(**TINY) if args.size == "tiny" else GPT2Config.from_name(args.size)
    batch, length = args.batch or 4, args.block_size or min(256, config.n_positions)
    if length > config.n_positions:
        raise UsageError(f"--block-size {length} does not fit the context of {config.n_positions}")
    if args.child:
        emit_json(child(args.child, config, batch, length, args.recompute))
        return 0
    flags = ["--size", args.size, "--batch", str(batch), "--block-size", str(length), *(["--recompute"] if args.recompute else [])]
    parts = []
    for measure in MEASURES:
        if measure in ("calls", "arrays") or sys.platform == "linux":
            print(f"benchmarks.counts: {measure} …", file=sys.stderr)
            parts.append(measured(measure, flags))
    found = merged(parts)
    print(f"{args.size}, B{batch} T{length}, float32{', recompute' if args.recompute else ''}: a training step, and a token decoded")
    print("\n".join(table(found)))
    if args.json:
        emit_json({"size": args.size, "batch": batch, "block_size": length, "recompute": args.recompute, **found})
    return 0


if __name__ == "__main__":
    from gpt2.cli.command import run_command

    run_command(main, "benchmarks.counts")
