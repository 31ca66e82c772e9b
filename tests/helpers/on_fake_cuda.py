"""What minigrad and GPT-2 ask of the real CuPy, in a process of its own: python on_fake_cuda.py EXAMPLES CAPABILITY.

Prints JSON: how often each of our kernels was launched, what was compiled, and every fault: a call that CuPy refuses, and an argument
that reaches the driver as something else than the backend passed.
"""
from __future__ import annotations

import json
import os
import sys
import traceback
from collections import Counter
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from minigrad.testing.fake_cuda import Launch, stand_in

cuda = stand_in(int(sys.argv[2]))

import cupy  # noqa: E402
import numpy as np  # noqa: E402

import minigrad as mg  # noqa: E402
from gpt2.config import GPT2Config  # noqa: E402
from gpt2.model import GPT2  # noqa: E402
from minigrad.testing.domains import DOMAINS  # noqa: E402
from minigrad.testing.laws.run import Run  # noqa: E402
from minigrad.testing.laws.subject import flat  # noqa: E402

cupy.cuda.set_allocator(None)                           # memory is zero each time, and so is what is counted
HERE: Any = mg.backend.get("cupy").backend
faults: list[str] = []
launches: Counter[str] = Counter()
passed: list[tuple[Any, ...]] = []                      # arguments of launches that have not reached the driver


def watched(name: str, dtype: Any, blocks: Any, threads: Any, *args: Any, **options: Any) -> None:
    passed.append((name, args, (*blocks, 1, 1)[:3], (*threads, 1, 1)[:3], options.get("shared", 0)))
    launch(name, dtype, blocks, threads, *args, **options)
    if passed:
        faults.append(f"{passed.pop()[0]} has not been launched")


def reached(one: Launch) -> None:
    if one.arguments is None:
        return                                          # a kernel of CuPy's
    launches[one.name] += 1
    name, args, grid, block, shared = passed.pop()
    wanted = [0 if a is None else a.data.ptr if isinstance(a, cupy.ndarray) else a for a in args]
    if (one.name, one.grid, one.block, one.shared) != (name, grid, block, shared) or one.arguments != wanted:
        faults.append(f"{name}{args}: {one}")


launch, HERE.launch, cuda.launched = HERE.launch, watched, reached


def trying(what: str, f: Any) -> None:
    try:
        f()
    except Exception as error:
        places = [f"{frame.filename}:{frame.lineno}" for frame in traceback.extract_tb(error.__traceback__)]
        place = next((place for place in reversed(places) if "/minigrad/" in place), "")
        faults.append(f"{what}: {type(error).__name__}: {str(error)[:300]} ({place})")


def an_op(name: str, examples: int, dtype: str) -> None:
    """Value, gradients and gradients of gradients, as the laws have them."""
    @settings(max_examples=examples, database=None, derandomize=True, deadline=None, phases=[Phase.generate],
              suppress_health_check=list(HealthCheck))
    @given(data=st.data())
    def run(data: Any) -> None:
        domain = data.draw(st.sampled_from([d for d in DOMAINS if d.subject.name == name]))
        run = Run(domain.subject, data.draw(domain.examples), dtype, "cupy")
        xs = run.leaves()
        y = flat(domain.subject.function(*xs, **run.settings))
        if y.requires_grad:
            first = [g for g in mg.gradients(y, xs, mg.Tensor(HERE.ones_like(y.array)), create_graph=True) if g.requires_grad]
            for g in first:
                mg.gradients(g, xs, mg.Tensor(HERE.ones_like(g.array)), retain_graph=True)

    with np.errstate(all="ignore"):
        trying(f"{name} in {dtype}", run)


def a_model(dtype: str, width: int) -> None:
    """Prefill and steps of one to eight rows, greedy and sampled; and training."""
    config = GPT2Config(vocab_size=50, n_positions=32, n_embd=width, n_layer=2, n_head=2, attn_pdrop=0.0)
    model = GPT2(config, seed=0, backend="cupy", dtype=dtype).eval()
    for rows in (1, 2, 4, 8):
        for options in ({"greedy": True}, {"top_k": 5, "top_p": 0.9, "repetition_penalty": 1.2}):
            trying(f"generate {rows} rows in {dtype}",
                   lambda rows=rows, options=options: model.generate([[1, 2, 3]] * rows, 6, **options))
    trained = GPT2(config, seed=0, backend="cupy", compute_dtype=dtype).train()
    optimizer = mg.optim.AdamW(trained.parameters(), lr=1e-3)

    def step() -> None:
        ids = mg.tensor(np.arange(24).reshape(2, 12), device="cupy")
        trained.loss(ids, ids).backward()
        grads = [p.grad.array for p in trained.parameters()]
        HERE.run("sums_of_squares", None, grads)        # clip_grad_norm_ would take the root of what nobody has computed
        HERE.run("scale", None, grads, 0.5)
        optimizer.step()

    trying(f"a step of training in {dtype}", step)


def main() -> None:
    examples = int(sys.argv[1])
    for name in dict.fromkeys(d.subject.name for d in DOMAINS):
        an_op(name, examples, "float32")
    for dtype in ("float32", "float16", "bfloat16", "float64"):
        a_model(dtype, 16)
    a_model("bfloat16", 6)                              # rows that do not begin on 16 bytes
    a_model("float32", 200)                             # heads of 100
    ours = [one for one in cuda.compiled if "typedef STORE Store;" in one.source]
    print(json.dumps({"launches": launches, "faults": faults, "compiled": [one.options for one in ours]}), flush=True)
    os._exit(0)                                         # CuPy's last calls would find nobody to take them


main()
