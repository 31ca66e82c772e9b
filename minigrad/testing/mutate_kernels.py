"""python -m minigrad.testing.mutate_kernels: break every NumPy kernel on purpose, in each dtype.

It demands that each is noticed. A mutant of a kernel, or of a function that kernels share, is its
text with one thing changed: what a statement computes times 1.0001, or off by 1e-5 of its largest
number; a statement left out; a term, a factor, a sign or a comparison; ε outside the root; a
setting ignored; the first block left out, or a last one that is not full. Float64 is judged by the
laws at small sizes, float32 by the definitions at real sizes (`minigrad.testing.large`) and by the
laws. A mutant that survives in one of them fails the run, unless EQUIVALENT says why it is no
mistake.
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
# no arithmetic of theirs is in a result: who shares the work, and what BLAS is asked for
APART = {"cores", "pool", "library", "call", "sleep_after", "one_thread",
         "_sgemm", "_stored", "spread", "over_panels"}
JUDGES = {"float64": (("twos", "float64"), ("fours", "float64")),
          "float32": (("fours", "float32"), ("ones", "float32"))}
# names of whole numbers, by which the work is cut
WHOLE = {"i", "j", "k", "T", "tile", "row", "h", "some", "lead", "whole", "rows", "d", "c", "w",
         "P", "len", "part", "step", "shape", "heads", "size", "share", "spans", "min", "max",
         "range", "cores", "group", "_tile", "width", "columns", "m"}
LAWS = ("value", "adjoint", "wanted", "parts", "pure")
NOTHING = "nothing: it is not run in this dtype, or changes no number"
SHIFT = "a number that is added to all scores of a row, or taken from them, cancels in the softmax"
NORMAL = "the weights are divided by their sum afterwards"
OVERFLOW = "numbers that only float32 cannot hold; there the cases are judged that need it"
LSE = ("the backward pass divides by the sum of the weights that it finds, so a factor in lse "
       "cancels; float32's is judged by itself")
CUT = "the same sum, cut elsewhere"
TEXT = "the kernel declines, and the op's own text is run"
EQUIVALENT: dict[str, str] = {
    "sum_to: x.ndim for x.ndim - len(shape)": TEXT,
    "sum_to: len(shape) for x.ndim - len(shape)": TEXT,
    "sum_to: x.ndim + len(shape) for x.ndim - len(shape)": TEXT,
    "cross_entropy: times 1.0001 in top = rows[i:j].max(axis=1, keepdims=True)": SHIFT,
    "cross_entropy: plus 1e-5 in top = rows[i:j].max(axis=1, keepdims=True)": SHIFT,
    "linear_cross_entropy: plus 1e-5 in "
    "logits = matmul(rows[here], weight.T, out=memory[:here.stop…": SHIFT,
    "linear_cross_entropy: 1.01 for 1.0":
        "boost is 1 in the residuals, and read by the rule of 16 bits alone",
    "attention: plus 1e-5 after np.matmul(qs[:, i:j] * s, ks[:, :, :j], out=scores) [float64]":
        SHIFT + "; lse is off, and " + LSE,
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
        "they add up to 1 but for the rounding of lse, which bounds allow; "
        "without it gradients round more",
    "attention_joint: plus 1e-5 after ds *= keep":
        "a number added to a whole row is taken away again with its weighted mean",
    "_plain: q.shape[-2] >= 1 for q.shape[-2] > 1":
        "one query of one key: the tiles are right for it too",
    "as_rows: x.ndim >= 1 for x.ndim > 1": "a vector is one row either way",
    "counted: without xp.check_index(ids, classes, f'{what}: targets')":
        "it changes no number, but refuses; tests/gpt2/test_model.py",
    "counted: no max: max(kept.sum(), 1)":
        "no target counts, and the loss is NaN; tests/minigrad/test_corners.py",
    "times: 1.01 for 1.0": "a product with 1 is the same number",
    "column_sums: part for n // part * part": CUT,
    "column_sums: whole <= n for whole < n": "a sum of no rows more",
    "_one_layer_norm: (1,) for (1,) * x.ndim":
        "the rule reads mean and rstd as a column, whatever their shape",
    "_one_layer_norm: square >= 0.0 for square > 0.0":
        "a constant row with ε = 0; tests/minigrad/test_corners.py",
    "_over_heads: rows <= n for rows < n": "which thread takes which heads",
    "_over_heads: n <= 2 for n < 2": "which thread takes which heads",
    "_one_query: times 1.0001 in top = scores.max(axis=-1, keepdims=True)": SHIFT,
    "_one_query: plus 1e-5 in top = scores.max(axis=-1, keepdims=True)": SHIFT,
    "_new: times 1.0001 in return fill((B, T, h, size), like.dtype).swapaxes(1, 2)":
        "zeros, or memory that is written afterwards",
    "_new: plus 1e-5 in return fill((B, T, h, size), like.dtype).swapaxes(1, 2)":
        "zeros, or memory that is written afterwards",
    "_to_gradient: times 1.0001 in top = e.max(axis=1, keepdims=True)": SHIFT,
    "_to_gradient: plus 1e-5 in top = e.max(axis=1, keepdims=True)": SHIFT,
    "_to_gradient: plus 1e-5 after e -= top": SHIFT,
    "_to_gradient: without e -= top [float64]": OVERFLOW,
    "pack: without panel[:, columns.shape[1]:] = 0.0":
        "columns that are cut off again; tests/minigrad/fused/test_fused.py asks for the zeros",
    "matmul: plus 1e-5 in return np.matmul(a, b, out=out)": "logits alone come here: " + SHIFT,
    "matmul: without step += -step % SIZES.lanes": CUT,
    "_plain: q.dtype.kind != 'f' for q.dtype.kind == 'f' [float64]": TEXT,
    "terms: the first block left out of range(min(k, SIZES.chunk), SIZES.chunk // 4, -1)": CUT,
    "terms: a last block that is not full left out of "
    "range(min(k, SIZES.chunk), SIZES.chunk // 4, -1)": CUT,
    "_plain: q.size >= 0 for q.size > 0": "no numbers in, none out",
    "gelu_joint: without np.minimum(u, 80.0, out=u) [float64]": OVERFLOW,
    "gelu_joint: 80.8 for 80.0":
        "every float holds e^80.8 too, and 1 − s is 0 to rounding from there on",
    "layer_norm_joint: plus 1e-5 after np.multiply(gs[i:j], weight, out=dx)":
        "a number added to a whole row is taken away with its mean",
}


@dataclass(frozen=True)
class Mutant:
    """A function of the backend; made() is its text with one thing changed."""

    function: types.FunctionType
    what: str
    made: Callable[[], ast.FunctionDef]

    def __str__(self) -> str:
        return f"{self.function.__name__}: {self.what}"

    @contextlib.contextmanager
    def install(self) -> Iterator[None]:
        """Inside the block the backend has the mutant wherever it had the function."""
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


# ── which functions, and who calls them ──
def functions() -> list[types.FunctionType]:
    """The kernels, and what they share."""
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
    """The names of the kernels that are `function`, or call it, or call what calls it.

    Products and packing have none.
    """
    callers = {function.__name__}
    for _ in range(4):
        callers |= {f.__name__ for f in functions() if callers & _names(f.__code__)}
    return [key for key, f in backend.cpu.kernels.items() if f is function or f.__name__ in callers]


# ── texts ──
def _ways(node: ast.AST) -> bool:
    """Whether this is an `if` that ends the function another way, such as the op's own text.

    Either way must be right.
    """
    return isinstance(node, ast.If) and len(node.body) == 1 and isinstance(node.body[0], ast.Return)


def _about_sizes(node: ast.AST) -> bool:
    """Whether a piece of text is about how the work is cut, where every way is right."""
    names = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
    return "SIZES" in names or "itemsize" in ast.unparse(node) or (bool(names) and names <= WHOLE)


Text = tuple[str, Callable[[], ast.FunctionDef]]         # what is changed, and what makes the text


def _settings(function: Callable[..., Any], tree: ast.FunctionDef) -> Iterator[Text]:
    """The text with a setting ignored: its default in its place."""
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
    """Every way to break a function that this file knows, each with a name of its own."""
    seen = Counter[str]()
    for what, made in _texts(function):
        seen[what] += 1
        yield Mutant(function, what if seen[what] == 1 else f"{what} ({seen[what]})", made)


def _texts(function: types.FunctionType) -> Iterator[Text]:
    (tree,) = ast.parse(inspect.getsource(function)).body
    assert isinstance(tree, ast.FunctionDef)

    every = [n for statement in tree.body for n in ast.walk(statement)]

    def inside(names: set[str]) -> set[int]:
        """Which pieces are arguments of a call to one of these."""
        calls = [n for n in every if isinstance(n, ast.Call)
                 and ast.unparse(n.func).rpartition(".")[2] in names]
        given = [a for call in calls for a in (*call.args, *call.keywords)]
        within = {id(n) for a in given for n in ast.walk(a)}
        return {i for i, n in enumerate(every) if id(n) in within}

    # another size is no number; another pointer, no mistake of arithmetic; a way that is left is
    # judged as a whole
    apart = inside({"empty", "reshape", "gemm"})
    ways_out = [n for n in every if isinstance(n, ast.If) and _ways(n)]
    tests = {id(n) for node in ways_out for n in ast.walk(node.test)}
    tests |= {id(n) for node in every if isinstance(node, ast.Compare) and _about_sizes(node)
              for n in ast.walk(node)}
    apart |= {i for i, n in enumerate(every) if id(n) in tests}

    yield from _settings(function, tree)
    for place, node in enumerate(every):
        ways = [*statements(node), *blocks(node)]
        # blas.matmul gives pointers to BLAS
        if not _about_sizes(node) and place not in apart and function is not blas.matmul:
            ways += alternatives(node)
        for what, new in ways:
            if isinstance(new, ast.expr):
                new = call("_ran", new)
            elif "1.0001" not in what and "1e-5" not in what:       # those note their own changes
                assert isinstance(new, ast.stmt)
                new = ast.If(call("_ran", ast.Constant(True)), [new], [])
            yield what, partial(replaced, tree, node, new)


# ── judging ──
def killer(mutant: Mutant, dtype: str, examples: int = 10) -> str | None:
    """The first case or law that notices the mutant in a dtype, or None."""
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
    """Inside the block new memory holds NaN, and not what lay there before.

    That may be the right numbers.
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
        p.error(f"--every {args.every}: at least 1")
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
          f"{counts['idle']} not run or changing no number, "
          f"{counts['equivalent']} equivalent, {len(survivors)} survived")
    for line in survivors:
        print(f"survived: {line}")
    for line in wrong:
        print(f"was said to be equivalent, and is not: {line}")
    return 1 if survivors or wrong else 0


def excuse(mutant: str) -> str | None:
    """Why a mutant, with its dtype, is no mistake: by its name in that dtype, or in any."""
    return EQUIVALENT.get(mutant) or EQUIVALENT.get(mutant.rpartition(" [")[0])


if __name__ == "__main__":
    sys.exit(main())
