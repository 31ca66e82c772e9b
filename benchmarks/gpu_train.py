"""The parts of `benchmarks.gpu` that compare answers with NumPy's and PyTorch's, and that train."""
from __future__ import annotations

import statistics
from typing import Any

from . import agreement, peer_minigrad
from .gpu_bench import Bench, line_of, near, torch_clock, torch_device
from .gpu_torch import Step
from .rows import Row, product_flop

PLAN = ((8, "bfloat16"), (32, "bfloat16"), (8, "float32"), (8, "tf32"), (32, "tf32"), (32, "float32"))


# ── answers ──
def answers(bench: Bench) -> None:
    """Compare GPT-2's logits, loss, gradients, a training step and greedy ids with those of NumPy and PyTorch."""
    from gpt2 import GPT2

    config, size = bench.config("gpt2"), "tiny" if bench.tiny else "gpt2"
    rows = [Row("training step B2 T64", "train", (), size=size, batch=2, tokens=64), Row("logits B2 T64", "forward", (), size, 2, 64),
            Row("16 tokens, greedy", "decode", (), size, 2, 16, new=16 if not bench.tiny else 4)]
    arrays = _weights(config)
    for row in rows:
        with bench.attempt(f"{row.name} against NumPy", dtype="float32"):
            wanted = peer_minigrad.work(GPT2(config, parameters=_copies(arrays)), row).answer()
            found = peer_minigrad.work(GPT2(config, backend=bench.setting.backend, parameters=_copies(arrays)), row).answer()
            _told(bench, f"{row.name} against NumPy", "float32", agreement.complaints(found, wanted, row, config),
                  agreement.bound(row, config))
            if row.kind == "train":
                with bench.attempt(f"{row.name} against PyTorch", dtype="float32"):
                    theirs = Step(config, arrays, agreement.batch_of(row, config), "float32", torch_device(bench)[1]).answer()
                    _told(bench, f"{row.name} against PyTorch", "float32", agreement.complaints(theirs, found, row, config),
                          agreement.bound(row, config))
                for dtype in ("bfloat16", "float16"):
                    with bench.attempt(f"{row.name} against NumPy", dtype=dtype):
                        model = GPT2(config, backend=bench.setting.backend, compute_dtype=dtype, parameters=_copies(arrays))
                        loss = float(model.loss(*agreement.batch_of(row, config)))
                        room = near(dtype, config, row)
                        wrong = [] if abs(loss - wanted["loss"]) <= room * wanted["loss"] else [f"loss {loss!r}, not {wanted['loss']!r}"]
                        _told(bench, f"loss of {row.name} against NumPy's in float32", dtype, wrong, room)


def _told(bench: Bench, what: str, dtype: str, wrong: list[str], room: float) -> None:
    if wrong:
        bench.row(what, dtype=dtype, error=f"WRONG: {wrong[0]}" + (f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""))
    else:
        bench.row(what, dtype=dtype, note=f"the same, within {room:.1e} of its size")


def _weights(config: Any) -> dict[str, Any]:
    from gpt2 import GPT2

    return {name: p.numpy() for name, p in GPT2(config, seed=0).named_parameters()}


def _copies(arrays: dict[str, Any]) -> dict[str, Any]:
    """Copies of the arrays, because a model trains in the arrays that it gets if it can."""
    return {name: array.copy() for name, array in arrays.items()}


# ── training ──
def train(bench: Bench) -> None:
    """Steps of the 124M at T 1024: forward, backward, AdamW; compared with PyTorch, eager and compiled, if the losses agree."""
    arrays = _weights(bench.config("gpt2"))
    plan = PLAN if not bench.tiny else PLAN[:4]
    middles: dict[tuple[int, str], float] = {}
    for B, dtype in plan:
        what = f"train step 124M B{B} T1024"
        with bench.attempt(what, dtype=dtype), bench.precision(dtype):
            middles[B, dtype] = _step(bench, what, B, dtype, arrays)
    compiled(bench, plan, arrays, middles)              # compiling takes a minute each, so these come last


def compiled(bench: Bench, plan: Any, arrays: dict[str, Any], middles: dict[tuple[int, str], float]) -> None:
    """The same steps, compiled by torch.compile."""
    for B, dtype in plan:
        what = f"train step 124M B{B} T1024"
        with bench.attempt(what, who="torch compile", dtype=dtype), bench.precision(dtype):
            _peer(bench, what, _row(bench, what, B), dtype, arrays, compiled="inductor" if not bench.tiny else "eager",
                  ours=middles.get((B, dtype)))


def _row(bench: Bench, what: str, B: int) -> Row:
    return Row(what, "train", (), "tiny", 2, 8) if bench.tiny else Row(what, "train", (), "gpt2", B, 1024)


def _peer(bench: Bench, what: str, row: Row, dtype: str, arrays: Any, compiled: str = "", ours: float | None = None) -> tuple[Any, float]:
    """PyTorch's answer and the seconds of its step; a row is emitted."""
    torch, device = torch_device(bench)
    config, who = bench.config("gpt2"), "torch compile" if compiled else "torch eager"
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats(device)
    step = Step(config, arrays, agreement.batch_of(row, config), dtype, device, compiled)
    answer = step.answer() if not compiled else {}
    seconds = bench.times(step.run, torch_clock(bench), alone=row.batch > 8)
    middle = bench.row(what, seconds, who=who, unit="tok/s", work=row.batch * row.tokens, dtype=dtype, peak=step.peak() or None,
                       share=_share(bench, row, config, dtype, seconds), ratio=statistics.median(seconds) / ours if ours else None)
    return answer, middle or 0.0


def _share(bench: Bench, row: Row, config: Any, dtype: str, seconds: list[float]) -> float | None:
    """The share of the rate that the same products reached alone."""
    best = bench.best("products of GPT-2", dtype)
    return product_flop(row, config) / statistics.median(seconds) / (best * 1e12) if best else None


def _step(bench: Bench, what: str, B: int, dtype: str, arrays: Any) -> float:
    """The seconds of our step; a row is emitted, with the ratio to PyTorch if that was measured. RuntimeError if the losses differ."""
    from gpt2 import GPT2

    row, config = _row(bench, what, B), bench.config("gpt2")
    wanted: dict[str, Any] = {}
    theirs = 0.0
    try:
        wanted, theirs = _peer(bench, what, row, dtype, arrays)
    except Exception as error:                          # our step is measured without PyTorch's
        bench.row(what, who="torch eager", dtype=dtype, error=line_of(error))
    bench.release()
    half = dtype in ("float16", "bfloat16")
    model = GPT2(config, backend=bench.setting.backend, compute_dtype=dtype if half else None, parameters=_copies(arrays))
    work = peer_minigrad.work(model, row)
    if wanted:
        tells = ("loss",) if dtype != "float32" else ("loss", "next_loss", "gradients")
        found = work.answer()
        if wrong := agreement.complaints(wanted, found, row, config, tells, near(dtype, config, row)):
            raise RuntimeError(f"NOT TIMED, the answer is not PyTorch's: {wrong[0]}")
    seconds = bench.times(work.run, alone=row.batch > 8)
    loss = f"loss {found['loss']:.5f}, PyTorch's {wanted['loss']:.5f}" if wanted else "not compared: no PyTorch"
    middle = bench.row(what, seconds, unit="tok/s", work=row.batch * row.tokens, dtype=dtype, peak=work.peak() if work.peak else None,
                       share=_share(bench, row, config, dtype, seconds),
                       ratio=theirs / statistics.median(seconds) if theirs else None, note=loss)
    return middle or 0.0


