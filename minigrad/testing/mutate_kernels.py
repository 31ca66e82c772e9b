"""python -m minigrad.testing.mutate_kernels: break every NumPy kernel on purpose, in each dtype.

It checks that each mutant is noticed. A mutant of a kernel, or of a function that kernels share,
has one change in its source: the result of a statement is multiplied by 1.0001 or changed by 1e-5
of its largest number; a statement is left out; a term, a factor, a sign or a comparison is changed;
ε is outside the root; a setting is ignored; the first block is left out, or a last block that is
not full. In float64 the laws are tested with small block sizes; in float32 the laws are tested, and
the kernels are compared with definitions at real sizes (`minigrad.testing.large`). If a mutant
survives in one dtype, the run fails, unless EQUIVALENT says why the change is not a mistake.
"""
from __future__ import annotations

import argparse
import ast
import contextlib
import inspect
import sys
import time
import types
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from .. import backend
from ..backend.numpy import attention, blas, kernels, linear_cross_entropy, packed_linear
from ..op import REGISTRY
from . import mutate_text
from .domains import lines_of
from .large import CASES, judge
from .laws.check import examine
from .laws.sizes import small_sizes
from .mutate import _set
from .mutate_text import alternatives, blocks, call, changed, compiled, replaced, statements

MODULES = (kernels, attention, linear_cross_entropy, packed_linear, blas)
# These functions do no arithmetic on results: they divide work among threads and call BLAS.
APART = {"cores", "pool", "library", "call", "sleep_after", "one_thread",
         "_sgemm", "_stored", "spread", "over_panels"}
JUDGES = {"float64": (("twos", "float64"), ("fours", "float64")),
          "float32": (("fours", "float32"), ("ones", "float32"))}
# names of integers that say how the work is divided
WHOLE = {"i", "j", "k", "T", "tile", "row", "h", "some", "lead", "whole", "rows", "d", "c", "w",
         "P", "len", "part", "step", "shape", "heads", "size", "share", "spans", "min", "max",
         "range", "cores", "group", "_tile", "width", "columns", "m"}
LAWS = ("value", "adjoint", "wanted", "parts", "pure")
NOTHING = "the changed code is not run in this dtype, or changes no number"
SHIFT = "a number that is added to all scores of a row cancels in the softmax"
NORMAL = "the weights are divided by their sum afterwards"
OVERFLOW = "this prevents an overflow that occurs only in float32, where it is tested"
LSE = ("the backward pass divides by the sum of the weights, so a factor in lse cancels; lse is "
       "tested in float32")
CUT = "the same sum, divided at another index"
TEXT = "the kernel declines, and the op's own definition is run"
EQUIVALENT: dict[str, str] = {
    "sum_to: x.ndim for x.ndim - len(shape)": TEXT,
    "sum_to: len(shape) for x.ndim - len(shape)": TEXT,
    "sum_to: x.ndim + len(shape) for x.ndim - len(shape)": TEXT,
    "cross_entropy: times 1.0001 in top = rows[i:j].max(axis=1, keepdims=True)": SHIFT,
    "cross_entropy: plus 1e-5 in top = rows[i:j].max(axis=1, keepdims=True)": SHIFT,
    "linear_cross_entropy: plus 1e-5 in "
    "logits = matmul(rows[here], weight.T, out=memory[:here.stop…": SHIFT,
    "linear_cross_entropy: 1.01 for 1.0":
        "this is the residual boost, which only the rule of 16 bits reads",
    "attention: plus 1e-5 after np.matmul(qs[:, i:j] * s, ks[:, :, :j], out=scores) [float64]":
        SHIFT + "; lse is wrong, but " + LSE,
    "attention: times 1.0001 in top = scores.max(axis=2, keepdims=True)": SHIFT,
    "attention: plus 1e-5 in top = scores.max(axis=2, keepdims=True)": SHIFT,
    "attention: without scores -= top [float64]": OVERFLOW,
    "attention: times 1.0001 after np.exp(scores, out=scores) [float64]": LSE,
    "attention: without np.log(total, out=total) [float64]": LSE,
    "attention: times 1.0001 after np.log(total, out=total) [float64]": LSE,
    "attention: plus 1e-5 after np.log(total, out=total) [float64]": LSE,
    "attention: times 1.0001 after np.add(top, total, out=lse[row, some, i:j]) [float64]": LSE,
    "attention: plus 1e-5 after np.add(top, total, out=lse[row, some, i:j]) [float64]": LSE,
    "attention: p >= 0.0 for p > 0.0": "dropout with p = 0 drops nothing",
    "attention_joint: p >= 0.0 for p > 0.0": "dropout with p = 0 drops nothing",
    "attention_joint: plus 1e-5 after np.matmul(scaled, ks[:, :j].swapaxes(1, 2), out=weights)":
        SHIFT,
    "attention_joint: times 1.0001 after np.exp(weights, out=weights)": NORMAL,
    "attention_joint: without weights -= ls[:, i:j] [float64]": OVERFLOW,
    "attention_joint: without weights /= weights.sum(axis=2, keepdims=True)":
        "the sum is 1 except for the rounding of lse, which is within the bounds; "
        "without the division gradients round more",
    "attention_joint: plus 1e-5 after ds *= keep":
        "a number that is added to a whole row is subtracted again with its weighted mean",
    "_plain: q.shape[-2] >= 1 for q.shape[-2] > 1":
        "the tiles also give the right result for one query of one key",
    "as_rows: x.ndim >= 1 for x.ndim > 1": "a vector is one row either way",
    "counted: without xp.check_index(ids, classes, f'{what}: targets')":
        "it only raises an error, which tests/gpt2/test_model.py tests",
    "counted: no max: max(kept.sum(), 1)":
        "it matters only if all targets are ignored; tests/minigrad/test_corners.py tests this",
    "times: 1.01 for 1.0": "it only skips a product with 1, which does not change the number",
    "column_sums: part for n // part * part": CUT,
    "column_sums: whole <= n for whole < n": "it adds a sum of zero rows",
    "_one_layer_norm: (1,) for (1,) * x.ndim":
        "the rule reads mean and rstd as a column, whatever their shape",
    "_one_layer_norm: square >= 0.0 for square > 0.0":
        "it matters only for a constant row with ε = 0; tests/minigrad/test_corners.py tests this",
    "_over_heads: rows <= n for rows < n": "it only changes which thread computes which heads",
    "_over_heads: n <= 2 for n < 2": "it only changes which thread computes which heads",
    "_one_query: times 1.0001 in top = scores.max(axis=-1, keepdims=True)": SHIFT,
    "_one_query: plus 1e-5 in top = scores.max(axis=-1, keepdims=True)": SHIFT,
    "_new: times 1.0001 in return fill((B, T, h, size), like.dtype).swapaxes(1, 2)":
        "the array holds zeros, or is overwritten afterwards",
    "_new: plus 1e-5 in return fill((B, T, h, size), like.dtype).swapaxes(1, 2)":
        "the array holds zeros, or is overwritten afterwards",
    "_to_gradient: times 1.0001 in top = e.max(axis=1, keepdims=True)": SHIFT,
    "_to_gradient: plus 1e-5 in top = e.max(axis=1, keepdims=True)": SHIFT,
    "_to_gradient: plus 1e-5 after e -= top": SHIFT,
    "_to_gradient: without e -= top [float64]": OVERFLOW,
    "pack: without panel[:, columns.shape[1]:] = 0.0":
        "these columns are cut off again; tests/minigrad/fused/test_fused.py tests the zeros",
    "matmul: plus 1e-5 in return np.matmul(a, b, out=out)": "these are logits; " + SHIFT,
    "matmul: without step += -step % SIZES.lanes": CUT,
    "_plain: q.dtype.kind != 'f' for q.dtype.kind == 'f' [float64]": TEXT,
    "terms: the first block left out of range(min(k, SIZES.chunk), SIZES.chunk // 4, -1)": CUT,
    "terms: a last block that is not full left out of "
    "range(min(k, SIZES.chunk), SIZES.chunk // 4, -1)": CUT,
    "_plain: q.size >= 0 for q.size > 0": "the result has no numbers either way",
    "gelu_joint: without np.minimum(u, 80.0, out=u) [float64]": OVERFLOW,
    "gelu_joint: 80.8 for 80.0":
        "e^80.8 does not overflow either, and 1 − s is already 0 to rounding",
    "layer_norm_joint: plus 1e-5 after np.multiply(gs[i:j], weight, out=dx)":
        "a number that is added to a whole row is subtracted again with its mean",
}


@dataclass(frozen=True)
class Mutant:
    """A function of the backend; made() is its syntax tree with one change."""

    function: types.FunctionType
    what: str
    made: Callable[[], ast.FunctionDef]

    def __str__(self) -> str:
        return f"{self.function.__name__}: {self.what}"

    @contextlib.contextmanager
    def install(self) -> Iterator[None]:
        """Inside the block the mutant replaces the function everywhere in the backend."""
        made = compiled(self.made(), self.function)
        changed.clear()
        made.__globals__.update(_times=mutate_text.times, _plus=mutate_text.plus,
                                _ran=mutate_text.ran)
        kernels = {key: made if f is self.function else f for key, f in backend.cpu.kernels.items()}
        with contextlib.ExitStack() as stack:
            stack.enter_context(_set(backend.cpu, "kernels", kernels))
            for module in (*MODULES, sys.modules["minigrad.backend.numpy"]):
                for name, value in list(vars(module).items()):
                    if value is self.function:
                        stack.enter_context(_set(module, name, made))
            yield


# ── which functions, and which kernels call them ──
def functions() -> list[types.FunctionType]:
    """The kernels, and the functions that they share."""
    found = {f: None for f in backend.cpu.kernels.values() if isinstance(f, types.FunctionType)}
    for module in MODULES:
        for name, f in vars(module).items():
            own = isinstance(f, types.FunctionType) and f.__module__ == module.__name__
            if own and name not in APART:
                found.setdefault(f)
    return list(found)


def _names(code: types.CodeType) -> set[str]:
    inner = [c for c in code.co_consts if isinstance(c, types.CodeType)]
    return {*code.co_names}.union(*map(_names, inner))


def kernels_with(function: types.FunctionType) -> list[str]:
    """The names of the kernels that are `function`, or call it directly or through other functions.

    For the functions of matrix products and of packing the list is empty.
    """
    callers = {function.__name__}
    for _ in range(4):
        callers |= {f.__name__ for f in functions() if callers & _names(f.__code__)}
    return [key for key, f in backend.cpu.kernels.items() if f is function or f.__name__ in callers]


# ── source texts ──
def _ways(node: ast.AST) -> bool:
    """Whether this is an `if` that only returns, for example the result of the op's own definition.

    Both ways must give the right result, so changing the condition is not a mistake.
    """
    return isinstance(node, ast.If) and len(node.body) == 1 and isinstance(node.body[0], ast.Return)


def _about_sizes(node: ast.AST) -> bool:
    """Whether this code only decides how the work is divided; every division is right."""
    names = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
    return "SIZES" in names or "itemsize" in ast.unparse(node) or (bool(names) and names <= WHOLE)


Text = tuple[str, Callable[[], ast.FunctionDef]]        # what was changed, and the changed function


def _settings(function: Callable[..., Any], tree: ast.FunctionDef) -> Iterator[Text]:
    """The function with one setting ignored: the setting always has its default value."""
    key = next((k for k, f in backend.cpu.kernels.items() if f is function), "")
    op = REGISTRY.get(key.partition("/")[0])
    parameters = inspect.signature(op.kernel).parameters if op else {}
    defaults = {n: p.default for n, p in parameters.items() if p.kind is p.KEYWORD_ONLY}
    for name, default in defaults.items():
        if name in inspect.signature(function).parameters and name != "wants" \
                and default is not inspect.Parameter.empty:
            first = ast.Assign([ast.Name(name, ast.Store())], ast.Constant(default))
            instead = ast.If(ast.Constant(True), [first, tree.body[0]], [])
            yield f"{name} ignored", partial(replaced, tree, tree.body[0], instead)


def mutants(function: types.FunctionType) -> Iterator[Mutant]:
    """All mutants of a function; no two have the same name."""
    seen = Counter[str]()
    for what, made in _texts(function):
        seen[what] += 1
        yield Mutant(function, what if seen[what] == 1 else f"{what} ({seen[what]})", made)


def _texts(function: types.FunctionType) -> Iterator[Text]:
    (tree,) = ast.parse(inspect.getsource(function)).body
    assert isinstance(tree, ast.FunctionDef)

    every = [n for statement in tree.body for n in ast.walk(statement)]

    def inside(names: set[str]) -> set[int]:
        """The indices of the pieces that are arguments of calls to one of these functions."""
        calls = [n for n in every if isinstance(n, ast.Call)
                 and ast.unparse(n.func).rpartition(".")[2] in names]
        given = [a for call in calls for a in (*call.args, *call.keywords)]
        within = {id(n) for a in given for n in ast.walk(a)}
        return {i for i, n in enumerate(every) if id(n) in within}

    # Not mutated are sizes of new arrays and pointers, because these are not arithmetic, and the
    # conditions of `_ways` and `_about_sizes`.
    apart = inside({"empty", "reshape", "gemm"})
    ways_out = [n for n in every if isinstance(n, ast.If) and _ways(n)]
    tests = {id(n) for node in ways_out for n in ast.walk(node.test)}
    tests |= {id(n) for node in every if isinstance(node, ast.Compare) and _about_sizes(node)
              for n in ast.walk(node)}
    apart |= {i for i, n in enumerate(every) if id(n) in tests}

    yield from _settings(function, tree)
    for i, node in enumerate(every):
        ways = [*statements(node), *blocks(node)]
        # blas.matmul gives pointers to BLAS
        if not _about_sizes(node) and i not in apart and function is not blas.matmul:
            ways += alternatives(node)
        for what, new in ways:
            if isinstance(new, ast.expr):
                new = call("_ran", new)
            elif "1.0001" not in what and "1e-5" not in what:   # these record their own changes
                assert isinstance(new, ast.stmt)
                new = ast.If(call("_ran", ast.Constant(True)), [new], [])
            yield what, partial(replaced, tree, node, new)


# ── tests ──
def killer(mutant: Mutant, dtype: str, examples: int = 10) -> str | None:
    """The first case or law that notices the mutant in this dtype, or None.

    NOTHING if no law notices it because the change had no effect.
    """
    keys = kernels_with(mutant.function)
    names = {"matmul_op", "linear", "packed_linear"}
    if keys:
        names = {key.partition("/")[0] for key in keys} & REGISTRY.keys()
    with mutant.install(), unwritten_is_nan(), np.errstate(all="ignore"):
        for name, (kernels, _) in CASES.items():
            of_it = set(kernels) & set(keys) or not keys
            if of_it and name.endswith("float64") == (dtype == "float64"):
                try:
                    judge(name)
                except Exception:
                    return f"large {name}"
        for law in LAWS:
            for sizes, kind in JUDGES[dtype]:
                with small_sizes(sizes):
                    for name in sorted(names):
                        for line in lines_of(name):
                            if line.asks(law):
                                verdict = examine(law, line.subject, line.examples, kind,
                                                  examples=examples, shrink=False)
                                if verdict.status == "broken":
                                    return f"{law}, {sizes}"
        return None if changed else NOTHING


@contextlib.contextmanager
def unwritten_is_nan() -> Iterator[None]:
    """Inside the block np.empty returns arrays of NaN.

    Otherwise an array that a mutant does not write might hold the right numbers by chance.
    """
    made = {name: getattr(np, name) for name in ("empty", "empty_like")}

    def filled(make: Callable[..., Any], *args: Any, **how: Any) -> Any:
        out = make(*args, **how)
        if out.dtype.kind == "f":
            out.fill(np.nan)
        return out

    for name, make in made.items():
        setattr(np, name, partial(filled, make))
    try:
        yield
    finally:
        for name, make in made.items():
            setattr(np, name, make)


def main() -> int:
    p = argparse.ArgumentParser(prog="python -m minigrad.testing.mutate_kernels",
                                description=__doc__.partition(":")[2].strip())
    known = {f.__name__: f for f in functions()}
    p.add_argument("--function", action="append", choices=list(known), metavar="NAME",
                   help="only this kernel or helper (repeatable)")
    p.add_argument("--dtype", choices=list(JUDGES), help="only this dtype")
    p.add_argument("--every", type=int, default=1, metavar="N", help="only every Nth mutant")
    args = p.parse_args()
    if args.every < 1:
        p.error(f"--every must be at least 1, not {args.every}")
    survivors, wrong, counts = [], [], Counter[str]()
    for name in args.function or known:
        for dtype in [args.dtype] if args.dtype else JUDGES:
            started, chosen = time.perf_counter(), list(mutants(known[name]))[::args.every]
            found = {f"{m} [{dtype}]": killer(m, dtype) for m in chosen}
            alive = [m for m, law in found.items() if law is None]
            survivors += [m for m in alive if not excuse(m)]
            wrong += [m for m, law in found.items() if law not in (None, NOTHING) and excuse(m)]
            idle = sum(law == NOTHING for law in found.values())
            killed = len(chosen) - len(alive) - idle
            equivalent = sum(map(bool, map(excuse, alive)))
            counts += Counter({"killed": killed, "idle": idle, "equivalent": equivalent})
            if chosen:
                print(f"{name:<24} {dtype} {len(chosen):>4} mutants, {killed} killed"
                      f"   ({time.perf_counter() - started:.1f} s)", flush=True)
    print(f"\n{counts.total() + len(survivors)} mutants: {counts['killed']} killed, "
          f"{counts['idle']} had no effect in their dtype, "
          f"{counts['equivalent']} equivalent, {len(survivors)} survived")
    for line in survivors:
        print(f"survived: {line}")
    for line in wrong:
        print(f"EQUIVALENT lists it, but it was noticed: {line}")
    return 1 if survivors or wrong else 0


def excuse(mutant: str) -> str | None:
    """Why a mutant is not a mistake in its dtype; None if EQUIVALENT does not list it."""
    return EQUIVALENT.get(mutant) or EQUIVALENT.get(mutant.rpartition(" [")[0])


if __name__ == "__main__":
    sys.exit(main())
