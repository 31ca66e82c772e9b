"""The workload of llm.c: the CPU program `train_gpt2` of a checkout, on our weights and batch in its own file formats.

Its batch and length are compiled in (B = 4 and T = 64 by default). It is stopped (SIGSTOP) between its turns; the tenth of a millisecond
that it runs before it is stopped is not counted.
"""
from __future__ import annotations

import contextlib
import os
import pty
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import agreement
from .peers import Work
from .rows import Row

PADDED = 50304                                          # the size of its vocabulary
STEP = re.compile(r"step (\d+): train loss ([\d.]+|nan|-nan|inf) ")


def write_inputs(folder: Path, checkpoint: str, row: Row) -> None:
    """Write gpt2_124M.bin (a header of 256 int32, then the parameters, weights [out, in]) and two files with the tokens of the batch."""
    import numpy as np

    from gpt2.weights.checkpoint import read_checkpoint

    found = read_checkpoint(checkpoint)
    c, w = found.config, found.parameters
    header = np.zeros(256, np.int32)
    padded = PADDED if c.vocab_size == 50257 else -(-c.vocab_size // 128) * 128
    header[:8] = 20240326, 3, c.n_positions, c.vocab_size, c.n_layer, c.n_head, c.n_embd, padded
    with open(folder / "gpt2_124M.bin", "wb") as file:
        file.write(header.tobytes())
        file.write(w["wte.weight"].tobytes() + bytes(4 * c.n_embd * (padded - c.vocab_size)))
        file.write(w["wpe.weight"].tobytes())
        for part in ("ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj"):
            for which in ("weight", "bias"):
                for layer in range(c.n_layer):
                    file.write(np.ascontiguousarray(w[f"h.{layer}.{part}.{which}"].T).tobytes())
        file.write(w["ln_f.weight"].tobytes() + w["ln_f.bias"].tobytes())
    ids, targets = agreement.batch_of(row, c)
    tokens = np.append(ids.ravel(), targets[-1, -1]).astype(np.uint16)
    header = np.zeros(256, np.int32)
    header[:3] = 20240520, 1, len(tokens)
    data = folder / "dev/data/tinyshakespeare"
    data.mkdir(parents=True)
    for split in ("train", "val"):
        (data / f"tiny_shakespeare_{split}.bin").write_bytes(header.tobytes() + tokens.tobytes())


def build(task: Mapping[str, Any]) -> Work:
    from minigrad.backend.numpy.kernels import cores

    row = Row.from_dict(task["row"])
    program = Path(task["llmc"]).resolve() / "train_gpt2"
    if not program.is_file():
        raise FileNotFoundError(f"{program} does not exist; build it with: make train_gpt2")
    folder = tempfile.mkdtemp(dir=task["checkpoint"])  # it is removed with the checkpoint
    write_inputs(Path(folder), task["checkpoint"], row)
    master, slave = pty.openpty()                       # into a pipe it would write whole blocks instead of lines
    env = {**os.environ, "OMP_NUM_THREADS": str(cores())}
    process = subprocess.Popen([str(program)], cwd=folder, env=env, stdin=subprocess.DEVNULL, stdout=slave, stderr=slave)
    os.close(slave)
    output = os.fdopen(master, "r", errors="replace")

    def next_step() -> tuple[int, float]:
        last = "no message"
        with contextlib.suppress(OSError):              # it raises one after the other end of the terminal is closed
            for line in output:
                if shown := STEP.match(line):
                    return int(shown[1]), float(shown[2])
                if line.startswith("train dataset num_batches:") and int(line.split(":")[1]) != 1:
                    raise RuntimeError(f"it was compiled for a smaller batch than B {row.batch} T {row.tokens}; set these in train_gpt2.c")
                last = line.strip() or last
        raise RuntimeError(f"train_gpt2 ended: {last}")

    def run() -> float:
        started = time.perf_counter()
        process.send_signal(signal.SIGCONT)
        step, _ = next_step()
        took = time.perf_counter() - started
        if (step + 1) % 10 == 0:                        # the next step also validates, and at 20 writes text: do not count this time
            next_step()
        process.send_signal(signal.SIGSTOP)
        return took

    def answer() -> dict[str, Any]:
        _, loss = next_step()
        process.send_signal(signal.SIGSTOP)
        return {"loss": loss}

    def peak() -> int:
        status = Path(f"/proc/{process.pid}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024

    return Work(run, answer, f"llm.c train_gpt2, {env['OMP_NUM_THREADS']} threads", peak, clocked=True)
