"""python -m tests.branches: which branches of a backend the laws take, at real sizes and at small ones.

The modules of the backend are imported with changed source, in which each decision records its outcome:
each condition, and each part of a condition, whether it was true or false; each loop, whether it had one
round or several; each min and max, which of two numbers it chose; and each function, that it was called. Then
the laws run, and each outcome that they never reach is printed. The exit code is 1 if such an outcome is not
in EXCUSED, if EXCUSED has an entry for an outcome that they reach, or if a law is broken.

    python -m tests.branches                            # --examples N for each op, law, dtype and size (default 20)
    python -m tests.branches --backend cupy             # the code that launches the CUDA kernels, on the fake CuPy
"""
from __future__ import annotations

import argparse
import ast
import contextlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
import textwrap
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
MODULES = {
    "numpy": ("numpy", "numpy.kernels", "numpy.attention", "numpy.linear_cross_entropy", "numpy.packed_linear", "numpy.blas"),
    "cupy": ("cupy", "cupy.kernels", "cupy.attention", "cupy.sample", "cupy.decode", "cupy.cublas", "cupy.errors", "cupy.nccl"),
}
QUICK = ("value", "adjoint", "wanted", "refusal")       # these laws call every kernel
wanted: dict[str, None] = {}                            # all possible outcomes, in the order of the source
seen: set[str] = set()                                  # the outcomes that were reached


# The functions and outcomes that no law reaches, each with the reason.
EXCUSED: dict[str, str] = {
    # code that no op calls
    "numpy.NumpyBackend.__init__": "called once, when minigrad is imported",
    "numpy.NumpyBackend.free_memory": "asks the operating system; tested in test_memory.py",
    "numpy.NumpyBackend.settle": "prepares the process for training; tested in test_backend.py",
    "numpy.blas.sleep_after": "prepares the process for training; tested in test_backend.py",
    "numpy.kernels.adamw_update": "belongs to the optimizer; test_optim.py compares it with the formula, over several blocks and threads",
    # code that depends on the machine
    "numpy.blas.library": "looks for OpenBLAS once in a process; test_blas_not_openblas.py hides OpenBLAS",
    "numpy.blas.call: found is None: true": "only without OpenBLAS; tested in test_blas_not_openblas.py",
    "numpy.blas._sgemm": "looks for a function of OpenBLAS once in a process; test_blas_not_openblas.py hides OpenBLAS",
    "numpy.blas.matmul: gemm: false": "only without OpenBLAS; tested in test_blas_not_openblas.py",
    "numpy.blas.one_thread: was is None: true": "only without OpenBLAS; tested in test_blas_not_openblas.py",
    "numpy.blas.one_thread: was == 1": "depends on how many threads BLAS has: one if other processes run beside it, several if not",
    "numpy.kernels._forget_pool": "runs in a forked child; tested in test_locks.py",
    "numpy.kernels.cores: hasattr(os, 'sched_getaffinity'): false": "not reached on Linux",
    "numpy.kernels.cores: os.cpu_count()": "not reached on Linux",
    # inputs that are refused before, or for which the kernel declines
    "numpy.NumpyBackend.check_index": "the laws use only indices in range; test_backend.py uses others",
    "numpy.packed_linear.packed_linear: panels.size == 0: true": "empty arrays: the op's own definition is run",
    "numpy.linear_cross_entropy.linear_cross_entropy: x.dtype.kind != 'f': true": "the op refuses integers before",
    "numpy.linear_cross_entropy.linear_cross_entropy: x.size == 0: true": "the mean over no rows is NaN, which no law tests",
    "numpy.kernels.over_rows: max(1, width): the first": "rows without numbers: the op's own definition is run, or nothing",
    "numpy.kernels.as_rows: x.shape[-1]: false": "rows without numbers have no mean and no loss",
    "numpy.attention.attention: v.size: false": "empty values: the op's own definition is run",
    "numpy.blas.matmul: a.shape[1] == b.shape[0]: false": "the op refuses such shapes before",
    "numpy.blas.matmul: out.dtype == np.float32: false": "kernels pass an `out` of float32 for products of float32",
    "numpy.blas.matmul: how_out: false": "kernels pass an `out` in C order; test_blas_rounding.py passes others",
    "numpy.blas.matmul: how_out[0] == 111: false": "kernels pass an `out` in C order; test_blas_rounding.py passes others",
    "numpy.blas._stored: x.strides[outer] % size == 0: false": "only a field of a structured array has such strides; test_blas_rounding.py",
    "numpy.NumpyBackend.take: axis == 0: false": "our ops take rows; the backend's interface allows other axes, for other ops",
    "numpy.kernels.column_sums: x.dtype.kind != 'f': true": "sums of integers; tested in test_blas_rounding.py",
    "numpy.linear_cross_entropy.times: g == 1.0: true": "a law's cotangent is random; it is 1 in every training test",
    # inputs where there is no derivative, or no number
    "numpy.kernels._one_layer_norm: square > 0.0: false": "a constant row with ε = 0; tested in test_corners.py",
    "numpy.kernels._one_layer_norm: square == 0.0": "a constant row with ε = 0, or NaN; tested in test_corners.py",
    "numpy.kernels.counted: max(kept.sum(), 1): the second": "all targets are ignored, and the loss is NaN; tested in test_corners.py",
    "numpy.kernels.mean_of: scale.any(): false": "all targets are ignored, and the loss is NaN; tested in test_corners.py",
    # ── CuPy: code that no op calls ──
    "cupy.load": "looks for CuPy and a GPU; cupy/test_errors.py simulates each case in which something is missing",
    "cupy.Captured": "a decoding step as a graph; tested in test_gpu_step.py",
    "cupy.CupyBackend.__init__": "called once, when the backend is used for the first time",
    "cupy.CupyBackend.processors": "used to divide a decoding step; tested in gpt2/decoding/test_gpu_ops.py",
    "cupy.CupyBackend.communicator": "used with several processes; tested in test_distributed.py",
    "cupy.CupyBackend.captured": "a decoding step as a graph; tested in test_gpu_step.py",
    "cupy.CupyBackend.free_memory": "asks the device; tested in test_memory.py",
    "cupy.CupyBackend.synchronize": "used to measure times, in the benchmarks",
    "cupy.CupyBackend.erf": "CuPy's own function, which the fake CuPy replaces",
    "cupy.kernels.over_arrays": "belongs to the optimizer; tested in test_kernels.py",
    "cupy.kernels.sums_of_squares": "belongs to gradient clipping; tested in test_kernels.py",
    "cupy.kernels.scale": "belongs to gradient clipping; tested in test_kernels.py",
    "cupy.kernels.adamw_update": "belongs to the optimizer; tested in test_kernels.py",
    "cupy.sample": "chooses tokens and is not an op; tested in test_gpu_sampling.py",
    "cupy.decode": "a decoding step and not an op; gpt2/decoding/test_gpu_ops.py compares each function with its definition",
    "cupy.errors": "explains a device's errors; cupy/test_errors.py tests each of them",
    # ── CuPy: another device, and errors ──
    "cupy.CupyBackend._look_at: device.id >= count: true": "a device that does not exist; tested in test_cupy_devices.py",
    "cupy.CupyBackend._look_at: has < wants: true": "an old GPU; tested in cupy/test_errors.py",
    "cupy.CupyBackend.at: number != self.namespace.cuda.runtime.getDevice(): true": "laws use one device; tested in test_cupy_devices.py",
    "cupy.CupyBackend._made: number not in (None, here): true": "laws use one device; tested in test_cupy_devices.py",
    "cupy.CupyBackend._made: number: true": "laws use one device; tested in test_cupy_devices.py",
    "cupy.CupyBackend._made: (ours := self.explained(error, 'an array')) is None": "out of memory; tested in test_cupy_devices.py",
    "cupy.CupyBackend.host: (ours := self.explained(error)) is None": "a device that has failed; tested in test_cupy_devices.py",
    "cupy.CupyBackend.explained": "explains a device's errors; tested in cupy/test_errors.py",
    # ── CuPy: inputs that are refused before, or for which the kernel declines ──
    "cupy.CupyBackend.add_at_rows: self.kernels: false": "without g++ the fake CuPy has no kernels",
    "cupy.CupyBackend.add_at_rows: rows == 0: true": "a table without rows has no row to add to",
    "cupy.CupyBackend.add_at: array.flags.c_contiguous: false": "an op adds into an array that it has made itself; tested in test_fake.py",
    "cupy.cublas.multiply: kind is None: true": "products of integers, which CuPy computes; tested in test_cublas.py",
    "cupy.cublas.multiply: a.dtype != b.dtype: true": "the op refuses two dtypes before",
    "cupy.cublas.multiply: a.ndim < 2: true": "the op turns a vector into a matrix before",
    "cupy.cublas.multiply: max(n, k, m, math.prod(a.shape[:-2])) > 2 ** 31 - 1: true": "needs more memory than a test has",
    "cupy.cublas.multiply: dtype: true": "a float32 result from 16 bits, which no op asks for; tested in test_cublas.py",
    "cupy.cublas.multiply: tf32: true": "only if the user switches TF32 on; tested in test_16_bits.py",
    "cupy.cublas.multiply: kind == 0": "only if the user switches TF32 on; tested in test_16_bits.py",
    "cupy.attention.attended: k.size > 0: false": "no keys: the op's own definition is run, and refuses them",
    "cupy.attention.attended: v.size > 0: false": "empty values: the op's own definition is run",
    "cupy.kernels.fits: x.dtype.kind in FLOATS: false": "the laws use floats; CuPy computes sums of integers",
    "cupy.kernels.add_layer_norm: x.ndim == 0: true": "the op refuses it; tested in test_kernels.py",
    "cupy.kernels.add_layer_norm: x.shape != y.shape: true": "the laws' examples have one shape; tested in test_kernels.py",
    "cupy.kernels.add_layer_norm: weight.shape != x.shape[-1:]: true": "the op refuses it; tested in test_kernels.py",
    "cupy.kernels.add_layer_norm: bias.shape != weight.shape: true": "the op refuses it; tested in test_kernels.py",
    "cupy.kernels.add_layer_norm: any((a.dtype != x.dtype or xp.device(a) != xp.device(x) for a in (y, weight,…: true":
        "the op refuses it; tested in test_kernels.py and test_cupy_devices.py",
    "cupy.kernels.add_layer_norm: a.dtype != x.dtype: true": "the op refuses it; tested in test_kernels.py",
    "cupy.kernels.add: a.dtype != b.dtype: true": "the op refuses two dtypes before",
    "cupy.kernels.astype: stored.kind not in FLOATS: true": "a cast to 16-bit integers has no gradient, and no law tests it",
    "cupy.kernels.cross_entropy: fits(logits): false": "the mean over no rows is NaN, which no law tests",
    "cupy.kernels.cross_entropy_dlogits: fits(logits): false": "the mean over no rows is NaN, which no law tests",
    "cupy.kernels.linear_cross_entropy: fits(x): false": "the mean over no rows is NaN, which no law tests",
    "cupy.kernels.linear_cross_entropy: dweight is not None: false": "a loss without a backward pass; tested in test_kernels.py",
    "cupy.kernels.embedding_into: sum.flags.c_contiguous: false": "a gradient that exists already was made in C order",
}


class Notes(ast.NodeTransformer):
    """Adds the notes to the source of a module: calls that record outcomes. Code outside functions gets no notes."""

    def __init__(self, module: str) -> None:
        self.where = [module]
        self.names = Counter[str]()

    def name(self, node: ast.AST, *outcomes: str) -> ast.Constant:
        """A name for the decision; its possible outcomes are added to `wanted`."""
        name = f"{'.'.join(self.where)}: {textwrap.shorten(ast.unparse(node), 80, placeholder='…')}"
        self.names[name] += 1
        name += f" ({self.names[name]})" if self.names[name] > 1 else ""
        wanted.update(dict.fromkeys(f"{name}: {o}" for o in outcomes))
        return ast.Constant(name)

    def call(self, helper: str, *args: Any) -> ast.Call:
        return ast.Call(ast.Name(helper, ast.Load()), list(args), [])

    def test(self, node: ast.expr) -> Any:
        """A condition, in which each part records its own outcome."""
        if isinstance(node, ast.BoolOp):
            node.values = [self.test(v) for v in node.values]
            return node
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            node.operand = self.test(node.operand)
            return node
        if len(self.where) == 1:
            return self.generic_visit(node)
        name = self.name(node, "true", "false")
        return self.call("_note_truth", name, self.visit(node))

    def visit_FunctionDef(self, node: ast.FunctionDef) -> Any:
        self.where.append(node.name)
        wanted[f"{'.'.join(self.where)}: called"] = None
        note = ast.Expr(self.call("_note", ast.Constant(f"{'.'.join(self.where)}: called")))
        node.body = [self.visit(n) for n in node.body]
        node.body.insert(int(ast.get_docstring(node) is not None), note)
        self.where.pop()
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> Any:
        self.where.append(node.name)
        node.body = [self.visit(n) if isinstance(n, ast.FunctionDef) else n for n in node.body]
        self.where.pop()
        return node

    def visit_If(self, node: Any) -> Any:
        node.test = self.test(node.test)
        for part in ("body", "orelse"):
            new = getattr(node, part)
            setattr(node, part, [self.visit(n) for n in new] if isinstance(new, list) else self.visit(new))
        return node

    visit_IfExp = visit_While = visit_If

    def visit_BoolOp(self, node: ast.BoolOp) -> Any:
        node.values = [*map(self.test, node.values[:-1]), self.visit(node.values[-1])]
        return node

    def visit_comprehension(self, node: ast.comprehension) -> Any:
        node.iter, node.ifs = self.visit(node.iter), [self.test(n) for n in node.ifs]
        return node

    def visit_For(self, node: ast.For) -> Any:
        if len(self.where) > 1 and not isinstance(node.iter, ast.Tuple):
            name = self.name(ast.Name(f"for {ast.unparse(node.target)} in {ast.unparse(node.iter)}"), "one round", "several rounds")
            node.iter = self.call("_note_rounds", name, self.visit(node.iter))
        node.body = [self.visit(n) for n in node.body]
        return node

    def visit_Call(self, node: ast.Call) -> Any:
        picks = isinstance(node.func, ast.Name) and node.func.id in ("min", "max") and len(node.args) == 2 and len(self.where) > 1
        name = self.name(node, "the first", "the second") if picks else None
        self.generic_visit(node)
        return self.call("_note_pick", name, node.func, *node.args) if picks else node


def _note_truth(name: str, value: Any) -> Any:
    seen.add(f"{name}: {'true' if value else 'false'}")
    return value


def _note_rounds(name: str, values: Any) -> Any:
    n = 0
    try:
        for n, value in enumerate(values, 1):  # noqa: B007
            yield value
    finally:
        seen.add(f"{name}: {'one round' if n == 1 else 'several rounds' if n else 'no round'}")


def _note_pick(name: str, pick: Any, a: Any, b: Any) -> Any:
    if a != b:
        seen.add(f"{name}: the {'first' if pick(a, b) == a else 'second'}")
    return pick(a, b)


def file_of(module: str) -> Path:
    """The file of a module of minigrad.backend."""
    path = ROOT.joinpath("minigrad", "backend", *module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


class Noted(importlib.abc.MetaPathFinder):
    """An import hook that adds the notes to the modules of a backend."""

    def __init__(self, backend: str) -> None:
        self.modules = MODULES[backend]

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        module = name.removeprefix("minigrad.backend.")
        if module == name or module not in self.modules:
            return None
        file = file_of(module)

        class Loader(importlib.machinery.SourceFileLoader):
            def get_code(self, fullname: str) -> Any:
                tree = Notes(module).visit(ast.parse(file.read_text("utf-8")))
                return compile(ast.fix_missing_locations(tree), str(file), "exec")

            def exec_module(self, made: Any) -> None:
                made.__dict__.update(_note=seen.add, _note_truth=_note_truth, _note_rounds=_note_rounds, _note_pick=_note_pick)
                super().exec_module(made)

        inside = [str(file.parent)] if file.name == "__init__.py" else None
        return importlib.util.spec_from_file_location(name, str(file), loader=Loader(name, str(file)), submodule_search_locations=inside)


def run_laws(backend: str, examples: int) -> list[str]:
    """Test the laws on every line of the table, and return the verdicts on broken ones.

    Ops that have a kernel, and products, are also tested with small block sizes.
    """
    from minigrad.backend import cpu
    from minigrad.testing import fake_cupy
    from minigrad.testing.domains import DOMAINS
    from minigrad.testing.laws.check import examine_all
    from minigrad.testing.laws.sizes import SMALL, small_sizes

    here = cpu if backend == "numpy" else fake_cupy.install()
    small = {name: small_sizes(name) for name in SMALL} if backend == "numpy" else {f"{n} bytes of logits": logits(n) for n in (1, 600)}
    lines = [*DOMAINS, *(wide_lines() if backend == "cupy" else [])]
    seen.clear()                                        # outcomes of the import do not count
    kernels = {name.partition("/")[0] for name in here.kernels} | {"linear", "matmul_op", "einsum_op", "getitem"}
    broken, seeds = [], count()                         # other examples at each size and dtype
    for sizes in (None, *small):
        with small[sizes] if sizes else contextlib.nullcontext():
            for line in lines:
                for dtype in ("float64", "float32", "float16") if sizes is None else ("float64", "float32"):
                    fast = line.subject.name in kernels
                    asked = [law for law in QUICK if line.asks(law)] if fast or sizes is None else []
                    found = examine_all(asked, line.subject, line.examples, dtype, here.name, examples=examples if fast else 2,
                                        shrink=False, seed=next(seeds)) if asked else []
                    broken += [f"{line.label}, sizes {sizes}: {verdict}" for verdict in found if verdict.status == "broken"]
    return broken


@contextlib.contextmanager
def logits(size: int) -> Iterator[None]:
    """Inside the block the CuPy backend computes at most `size` bytes of logits at a time.

    600 bytes are one row of float64, or two of float32.
    """
    from minigrad.backend.cupy import kernels

    was, kernels.LOGITS = kernels.LOGITS, size
    try:
        yield
    finally:
        kernels.LOGITS = was


def wide_lines() -> list[Any]:
    """Lines of the table with sizes that need other GPU kernels: wide heads, and long or many rows."""
    from hypothesis import strategies as st

    from minigrad.testing.domains import lines_of
    from minigrad.testing.domains.fused import _targets
    from minigrad.testing.laws.strategies import examples

    def plain(draw: Any, sizes: Any, rng: Any) -> Any:
        return {"mask": None, "causal": draw(st.booleans()), "scale": None, "p": 0.0, "key": 0}

    heads = [[(3, d), (n, d), (n, e)] for d, n, e in ((65, 4, 70), (130, 3, 2), (2, 2, 3))]
    more: dict[str, tuple[Any, ...]] = {"attention": (heads, plain), "cross_entropy": ([[(2, 300)]], _targets),
                                        "add": ([[(600, 2), (2,)]],)}
    return [replace(lines_of(name)[0], label=f"{name}-wide", examples=examples(st.sampled_from(shapes), "any", *settings))
            for name, (shapes, *settings) in more.items()]


def excuse(outcome: str) -> str | None:
    """The entry of EXCUSED for an outcome, or None."""
    return next((name for name in EXCUSED if outcome == name or outcome.startswith((f"{name}: ", f"{name}."))), None)


def main(argv: list[str] | None = None) -> int:
    p = argparse.ArgumentParser(prog="python -m tests.branches", description=__doc__, allow_abbrev=False,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--backend", choices=MODULES, default="numpy", help="the backend to examine (default: numpy)")
    p.add_argument("--examples", type=int, metavar="N", help="examples for each op, law, dtype and size (default: 20)")
    args = p.parse_args(argv)
    if args.examples is not None and args.examples < 1:
        p.error(f"--examples must be at least 1, not {args.examples}")
    if "minigrad" in sys.modules:
        p.error("minigrad is imported already; run this in a process of its own")
    sys.meta_path.insert(0, Noted(args.backend))
    broken = run_laws(args.backend, args.examples or 20)
    missed = [o for o in wanted if o not in seen]
    bad = [o for o in missed if not excuse(o)]
    excused = {name: reason for name, reason in EXCUSED.items() if name.partition(".")[0] in MODULES[args.backend]}
    idle = [name for name in excused if name not in {excuse(o) for o in missed}]
    for module in MODULES[args.backend]:
        mine = [o for o in wanted if o.startswith((f"{module}.", f"{module}:"))]
        print(f"{module:18} {sum(o in seen for o in mine):>4} of {len(mine)} outcomes reached, "
              f"{sum(o not in seen and excuse(o) is not None for o in mine)} excused, {sum(o in bad for o in mine)} missed")
    print("\nexcused:")
    for name, reason in excused.items():
        print(f"  {name}\n      {reason}")
    for title, lines in (("missed", bad), ("reached, though EXCUSED lists it", idle), ("broken", broken)):
        for line in lines:
            print(f"{title}: {line}")
    return 1 if bad or idle or broken else 0


if __name__ == "__main__":
    sys.exit(main())
