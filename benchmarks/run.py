"""python -m benchmarks.run: GPT-2 124M with random weights, forward, training step and decoding, beside PyTorch.

Each peer runs in a process of its own, with OPENBLAS_CORETYPE and OPENBLAS_L2_SIZE unset as on a user's machine. Peers take
turns, round after round; medians and spreads are printed, and ratios of medians. The first round checks that the losses agree.
"""
from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

PEERS = ("minigrad", "torch")
ROWS = {"forward B4 T256": (4, 256), "train step B4 T64": (4, 64), "train step B4 T256": (4, 256), "decode B1, 32 tokens": (1, 32)}


def timed(work: Callable[[], Any], repeats: int) -> list[float]:
    """Seconds of each repetition, after one that is not counted."""
    work()
    out = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        out.append(time.perf_counter() - started)
    return out


def minigrad_work(row: str, ids: Any) -> tuple[Callable[[], Any], float]:
    """One repetition of a row on this engine, and the loss on the batch."""
    import minigrad as mg
    from gpt2 import GPT2, GPT2Config

    model = GPT2(GPT2Config.from_name("gpt2"), seed=0)
    mg.backend.cpu.keep_memory()
    optimizer = mg.optim.AdamW(mg.optim.decay_groups(model.parameters(), 0.1), lr=1e-4)

    def forward() -> Any:
        with mg.no_grad():
            return model.loss(ids[:, :-1], ids[:, 1:])

    def step() -> None:
        model.loss(ids[:, :-1], ids[:, 1:]).backward()
        optimizer.step()
        optimizer.zero_grad()

    if row.startswith("decode"):
        return (lambda: model.generate(ids[:, :4], max_new_tokens=ids.shape[1] - 1, greedy=True)), float(forward())
    return (step if row.startswith("train") else forward), float(forward())


def torch_work(row: str, ids: Any) -> tuple[Callable[[], Any], float]:
    """The same on transformers' GPT-2, with the same weights."""
    import torch
    import transformers

    import minigrad as mg
    from gpt2 import GPT2, GPT2Config

    transformers.logging.set_verbosity_error()
    theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)).eval()
    ours = GPT2(GPT2Config.from_name("gpt2"), seed=0)
    state = {f"transformer.{name}": torch.from_numpy(mg.backend.cpu.host(p.array)) for name, p in ours.named_parameters()}
    theirs.load_state_dict(state, strict=False)
    x, y = torch.from_numpy(ids[:, :-1].copy()), torch.from_numpy(ids[:, 1:].copy())
    decay = [p for p in theirs.parameters() if p.ndim >= 2]
    rest = [p for p in theirs.parameters() if p.ndim < 2]
    groups = [{"params": decay, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-4, fused=True)

    def loss() -> Any:
        return torch.nn.functional.cross_entropy(theirs(x).logits.flatten(0, 1), y.flatten())

    def forward() -> Any:
        with torch.no_grad():
            return loss()

    def step() -> None:
        loss().backward()
        optimizer.step()
        optimizer.zero_grad()

    def decode() -> Any:
        return theirs.generate(x[:, :4], max_new_tokens=ids.shape[1] - 1, do_sample=False, eos_token_id=None, pad_token_id=0)

    return (decode if row.startswith("decode") else step if row.startswith("train") else forward), float(forward())


def child(peer: str, row: str, repeats: int) -> None:
    """Measure one row for one peer and print it as JSON."""
    import numpy as np

    rows, tokens = ROWS[row]
    ids = np.random.default_rng(0).integers(0, 50257, (rows, tokens + 1))
    work, loss = {"minigrad": minigrad_work, "torch": torch_work}[peer](row, ids)
    print(json.dumps({"seconds": timed(work, repeats), "loss": loss}))


def measure(peer: str, row: str, repeats: int) -> dict[str, Any] | None:
    """Run `child` in a process of its own; None, with a line on stderr, where the peer is not installed."""
    env = {k: v for k, v in os.environ.items() if k not in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")}
    command = [sys.executable, "-m", "benchmarks.run", "--child", peer, row, "--repeats", str(repeats)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["no message"]
        print(f"{peer}: left out: {last[0]}", file=sys.stderr)
        return None
    return json.loads(done.stdout.splitlines()[-1])


def main() -> int:
    p = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--repeats", type=int, default=3, help="of the work, in each round")
    p.add_argument("--row", choices=list(ROWS), action="append", help="only this row (repeatable)")
    p.add_argument("--child", nargs=2, metavar=("PEER", "ROW"), help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.child:
        child(*args.child, args.repeats)
        return 0
    subprocess.run([sys.executable, "-m", "minigrad.info"], check=True)
    for row in args.row or ROWS:
        took: dict[str, list[float]] = {}
        losses: dict[str, float] = {}
        for _ in range(args.rounds):
            for peer in PEERS:
                if (found := measure(peer, row, args.repeats)) is not None:
                    took.setdefault(peer, []).extend(found["seconds"])
                    losses[peer] = found["loss"]
        if len(losses) == 2 and abs(losses["minigrad"] - losses["torch"]) > 1e-4:
            print(f"{row}: the losses differ ({losses}); a wrong answer is not timed", file=sys.stderr)
            return 1
        medians = {peer: statistics.median(t) for peer, t in took.items()}
        for peer, t in took.items():
            ratio = f", {medians[peer] / medians['minigrad']:.2f} × minigrad's" if "minigrad" in medians else ""
            print(f"{row}, fp32, {peer}: {1e3 * medians[peer]:.0f} ms (from {1e3 * min(t):.0f} to {1e3 * max(t):.0f}){ratio}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
