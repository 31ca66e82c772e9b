"""What every part of `benchmarks.gpu` gets: the device, its time limit, the device's clock, and a function that takes its rows."""
from __future__ import annotations

import contextlib
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from . import agreement
from .rows import config_of

UNITS = {"float32": 2.0**-24, "tf32": 2.0**-11, "float16": 2.0**-11, "bfloat16": 2.0**-8}         # half of eps
SIZES = {"float32": 4, "tf32": 4, "float16": 2, "bfloat16": 2}                                     # bytes
ROUNDS = 7
ROUND = 0.02                                            # the shortest duration of a round, in seconds


class TimeIsUp(Exception):
    """The part's share of the time is over; its results so far are kept."""


class DeviceDied(Exception):
    """This process cannot use the device any more; the part's results so far are kept."""


@dataclass
class Setting:
    """What a part is told. backend: see `--backend`. tiny: use toy sizes. seconds: the part's share. given: the rows of earlier parts."""

    backend: str = "cupy"
    tiny: bool = False
    seconds: float = 600.0
    given: list[dict[str, Any]] = field(default_factory=list)


class Bench:
    """The tools of one part. `emit` gets each row, a dict of plain data, as soon as it is measured; `begin` gets its name before that.

    A row has: what, who, dtype; value with its unit, and low and high over the rounds; perhaps share (of the device's highest rate),
    ratio (the peer's time divided by ours), peak (bytes), note; or error, one line, perhaps with example, the smallest one that was found,
    and repeat, the command that repeats it.
    """

    def __init__(self, setting: Setting, emit: Callable[[dict[str, Any]], Any], begin: Callable[[str], Any] = lambda what: None) -> None:
        import minigrad as mg

        if setting.backend.startswith("fake"):
            from minigrad.testing import fake_cupy

            fake_cupy.install()
        self.setting, self.emit, self.begin, self.mg = setting, emit, begin, mg
        self.there = mg.backend.get(setting.backend)
        self.here = self.there.backend
        self.tiny, self.until = setting.tiny, time.monotonic() + setting.seconds

    # ── time ──
    def left(self) -> float:
        """The seconds that this part has left."""
        return self.until - time.monotonic()

    def times(self, run: Callable[[], Any], clock: Any = None, rounds: int = ROUNDS, alone: bool = False) -> list[float]:
        """The seconds of one run in each round, on the device's clock, after a warm-up. alone: a round is a single run."""
        clock = clock or self.clock()
        run()
        count = 1
        while not alone and clock(run, count) * count < (ROUND if not self.tiny else 0.0):
            count *= 2
        out = []
        for _ in range(rounds if not self.tiny else 2):
            out.append(clock(run, count))
            if self.left() < 0:
                break
        return out

    def clock(self) -> Callable[[Callable[[], Any], int], float]:
        """The seconds of a run: the mean over several runs in a row, between two events in the device's stream."""
        here, cuda = self.here, self.here.namespace.cuda
        if not hasattr(cuda, "get_elapsed_time"):       # the fake CuPy measures no time
            return lambda run, count: wall(run, count, here.synchronize)

        def by_events(run: Callable[[], Any], count: int) -> float:
            first, last = cuda.Event(), cuda.Event()
            here.synchronize()
            first.record()
            for _ in range(count):
                run()
            last.record()
            last.synchronize()
            return float(cuda.get_elapsed_time(first, last)) / 1e3 / count

        return by_events

    # ── rows ──
    def row(self, what: str, seconds: list[float] | None = None, *, who: str = "minigrad", unit: str = "µs", work: float = 1.0,
            **fields: Any) -> float | None:
        """Emit a row: the time in µs or ms, or `work` per second in another unit (tok/s, TFLOP/s, GB/s); return the median in seconds."""
        if seconds is None:
            self.emit({"what": what, "who": who, "unit": unit, **fields})
            return None
        sizes = {"µs": 1e6, "ms": 1e3, "s": 1.0, "TFLOP/s": 1e-12, "GB/s": 1e-9}
        values = [t * sizes[unit] if unit in ("µs", "ms", "s") else work / t * sizes.get(unit, 1.0) for t in seconds]
        middle = statistics.median(seconds)
        self.emit({"what": what, "who": who, "value": statistics.median(values), "unit": unit, "low": min(values), "high": max(values),
                   "rounds": len(values), **{k: v for k, v in fields.items() if v is not None}})
        return middle

    @contextlib.contextmanager
    def attempt(self, what: str, **fields: Any) -> Iterator[None]:
        """An error inside the block becomes a row with an error, and the part continues, unless its time is over or the device has died."""
        if self.left() < 0:
            raise TimeIsUp(f"before {what}")
        self.begin(" ".join((what, *map(str, fields.values()))))
        try:
            yield
        except (TimeIsUp, DeviceDied, KeyboardInterrupt):
            raise
        except Exception as error:
            self.emit({"what": what, "error": line_of(error), **fields})
            if not self.mg.backend.alive(self.setting.backend):
                raise DeviceDied(f"the device died in {what}, and the rest of this part with it") from None
        finally:
            self.release()

    def release(self) -> None:
        """Free the memory that is not in use, so that the next row can use it."""
        import gc

        gc.collect()
        with contextlib.suppress(Exception):
            self.here.namespace.get_default_memory_pool().free_all_blocks()
        import sys

        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_available():
            torch.cuda.empty_cache()

    def best(self, what: str, dtype: str | None = None) -> float | None:
        """The best value that an earlier part measured in rows whose names begin with these words."""
        rows = [r["value"] for r in self.setting.given if r["what"].startswith(what) and "value" in r and dtype in (None, r.get("dtype"))]
        return max(rows, default=None)

    # ── numbers ──
    def config(self, size: str) -> Any:
        return config_of("tiny" if self.tiny else size)

    def array(self, *shape: int, dtype: str = "float32", seed: int = 0) -> Any:
        """Normally distributed numbers on the device; for "tf32" the dtype is float32."""
        kind = "float32" if dtype == "tf32" else self.mg.backend.dtype(dtype)
        return self.mg.random.normal(self.mg.random.key(seed), shape, device=str(self.there)).array.astype(kind, copy=False)

    @contextlib.contextmanager
    def precision(self, dtype: str) -> Iterator[None]:
        """Inside the block minigrad and PyTorch compute float32 products in TF32, if dtype is "tf32"."""
        import sys

        torch, level = sys.modules.get("torch"), "high" if dtype == "tf32" else "highest"
        self.mg.set_float32_matmul_precision(level)
        if torch is not None:
            torch.set_float32_matmul_precision(level)
            torch.backends.cudnn.allow_tf32 = level == "high"
        try:
            yield
        finally:
            self.mg.set_float32_matmul_precision("highest")
            if torch is not None:
                torch.set_float32_matmul_precision("highest")


def near(dtype: str, config: Any, row: Any) -> float:
    """The largest relative difference of two results of a pass: float32's bound, plus 4 u √K for K roundings to fewer bits.

    In each block about 12 results are rounded to 16 bits, or the factors of 6 products to TF32, whatever the length of a sum is.
    """
    wide = agreement.bound(row, config)
    return wide if dtype == "float32" else wide + 4.0 * UNITS[dtype] * math.sqrt(12 * config.n_layer + 3)


def wall(run: Callable[[], Any], count: int, wait: Callable[[], Any]) -> float:
    """The seconds of a run on the host's clock, with the device idle before and after it."""
    wait()
    started = time.perf_counter()
    for _ in range(count):
        run()
    wait()
    return (time.perf_counter() - started) / count


def line_of(error: BaseException) -> str:
    """An error as one line."""
    said = " ".join(str(error).split())
    ours = type(error).__module__.split(".")[0] in ("minigrad", "gpt2", "benchmarks")
    return said[:400] if ours and said else f"{type(error).__name__}: {said}"[:400]


def torch_device(bench: Bench) -> Any:
    """PyTorch, and its name for our device; RuntimeError if PyTorch has no such device."""
    import torch

    if bench.setting.backend.startswith("fake"):
        return torch, "cpu"
    if not torch.cuda.is_available():
        raise RuntimeError(f"PyTorch {torch.__version__} sees no GPU; its wheels for CUDA are at pytorch.org")
    return torch, f"cuda:{bench.there.number}"


def torch_clock(bench: Bench) -> Callable[[Callable[[], Any], int], float]:
    """Like Bench.clock, on PyTorch's stream."""
    torch, device = torch_device(bench)
    if device == "cpu":
        return lambda run, count: wall(run, count, lambda: None)

    def by_events(run: Callable[[], Any], count: int) -> float:
        first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        first.record()
        for _ in range(count):
            run()
        last.record()
        last.synchronize()
        return float(first.elapsed_time(last)) / 1e3 / count

    return by_events


Part = Callable[[Bench], Any]
Rows = list[Mapping[str, Any]]
