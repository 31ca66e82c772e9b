"""The floor of a benchmark: the time of its matrix products alone, or of reading its weights, with NumPy's BLAS at these shapes."""
from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from .peers import Work
from .rows import Row, config_of, decode_bytes, linear_flop, product_flop

REPEATS = 3                                             # the floor is the shortest of these times


def seconds(work: Callable[[], Any], repeats: int = 1) -> float:
    """The shortest time of several runs, in seconds."""
    best = float("inf")
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - started)
    return best


def products(config: Any, positions: int, train: bool) -> list[tuple[int, Callable[[], Any]]]:
    """The products with weights of a pass: the number of times of each, and a call that computes it into memory of its own.

    Forward Y = X W; backward, if the row trains, also ∂X = ∂Y Wᵀ and ∂W = Xᵀ ∂Y. The head's weight is [V, d].
    """
    import numpy as np

    rng = np.random.default_rng(0)
    d, n, layers = config.n_embd, config.n_inner or 4 * config.n_embd, config.n_layer
    calls: list[tuple[int, Callable[[], Any]]] = []

    def add(times: int, k: int, m: int, flipped: bool = False) -> None:
        w = rng.standard_normal((m, k) if flipped else (k, m), np.float32)
        x, y = rng.standard_normal((positions, k), np.float32), np.empty((positions, m), np.float32)
        calls.append((times, lambda: np.matmul(x, w.T if flipped else w, out=y)))
        if train:
            dx, dw = np.empty_like(x), np.empty_like(w)
            calls.append((times, lambda: np.matmul(y, w if flipped else w.T, out=dx)))
            calls.append((times, lambda: np.matmul(y.T, x, out=dw) if flipped else np.matmul(x.T, y, out=dw)))

    for k, m in ((d, 3 * d), (d, d), (d, n), (n, d)):
        add(layers, k, m)
    add(1, d, config.vocab_size, flipped=True)
    return calls


def reading(config: Any) -> tuple[float, Callable[[], Any]]:
    """The bytes of the token table, and a call that reads it once: gemv with [V, d]."""
    import numpy as np

    w = np.ones((config.vocab_size, config.n_embd), np.float32)
    x, y = np.ones(config.n_embd, np.float32), np.empty(config.vocab_size, np.float32)
    return float(w.nbytes), lambda: np.matmul(w, x, out=y)


def build(task: Mapping[str, Any]) -> Work:
    """A workload whose run() returns the row's floor in seconds: its FLOP at the rate of the products, or its bytes at that of gemv."""
    from .engines import about

    row = Row.from_dict(task["row"])
    config = config_of(row.size)
    if row.kind == "decode":
        size, read = reading(config)
        times = max(1, round(1e9 / size))               # about a gigabyte in a round

        def by_bytes() -> float:
            took = seconds(lambda: [read() for _ in range(times)], REPEATS) / (times * size)
            return decode_bytes(row, config) * took

        return Work(by_bytes, dict, about(), clocked=True)
    positions, training = row.batch * row.tokens, row.kind == "train"
    calls = products(config, positions, training)
    flop = linear_flop(config, positions) * (3 if training else 1)

    def by_flop() -> float:
        return sum(times * seconds(call, REPEATS) for times, call in calls) * product_flop(row, config) / flop

    return Work(by_flop, dict, about(), clocked=True)


def rates(task: Mapping[str, Any]) -> Work:
    """The machine's rates at the shapes of a size, in the answer: sgemm at 256 and 1024 positions in FLOP/s, gemv and copy in B/s."""
    from .engines import about

    def measure() -> dict[str, Any]:
        import numpy as np

        config = config_of(task["size"])
        found: dict[str, Any] = {"size": task["size"]}
        for positions in (256, 1024):
            total = sum(times * seconds(call, 4) for times, call in products(config, positions, train=False))
            found[f"sgemm {positions}"] = linear_flop(config, positions) / total
        size, read = reading(config)
        found["gemv"] = size / seconds(read, 20)
        a = np.ones(1 << 26, np.float32)
        b = a.copy()
        found["copy"] = 2.0 * a.nbytes / seconds(lambda: np.copyto(b, a), 5)
        return found

    return Work(lambda: None, measure, about())
