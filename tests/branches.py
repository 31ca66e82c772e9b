"""python -m tests.branches: which branches of a backend the laws go through, at its own sizes and at small ones.

The modules of the backend are imported from a text in which each decision notes its outcome: a condition,
and each part of one, true and false; a loop, of one round and of several; min and max, by which of two; a
function, that it was called. Then the laws run. Each outcome that none of them reaches is printed; one that is
not in EXCUSED, and an excuse for one that is reached, end the run with 1.

    python -m tests.branches                            # --examples N for each op, law, dtype and size (default 20)
    python -m tests.branches --backend cupy             # what launches the CUDA kernels, on the fake CuPy
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
QUICK = ("value", "adjoint", "wanted", "refusal")       # a kernel is called by each of these
wanted: dict[str, None] = {}                            # the outcomes that there are, in the order of the text
seen: set[str] = set()


# What no law reaches, and why: a whole function, or one outcome.
EXCUSED: dict[str, str] = {
    # called where no op is
    "numpy.NumpyBackend.__init__": "called once, when minigrad is imported",
    "numpy.NumpyBackend.free_memory": "asks the operating system; test_memory.py",
    "numpy.NumpyBackend.settle": "sets up the process for training; test_backend.py",
    "numpy.blas.sleep_after": "sets up the process for training; test_backend.py",
    "numpy.kernels.adamw_update": "no op, but the optimizer's; test_optim.py holds it to the formula, over several blocks and threads",
    # what this machine has, or has not
    "numpy.blas.library": "looks for OpenBLAS once in a process; test_blas_not_openblas.py hides it",
    "numpy.blas.call: found is None: true": "without OpenBLAS; test_blas_not_openblas.py",
    "numpy.blas._sgemm": "looks for a function of OpenBLAS once in a process; test_blas_not_openblas.py hides it",
    "numpy.blas.matmul: gemm: false": "without OpenBLAS; test_blas_not_openblas.py",
    "numpy.blas.one_thread: was is None: true": "without OpenBLAS; test_blas_not_openblas.py",
    "numpy.blas.one_thread: was == 1": "how many threads BLAS has: one beside other processes, several in a process alone",
    "numpy.kernels.cores: hasattr(os, 'sched_getaffinity'): false": "not on Linux",
    "numpy.kernels.cores: os.cpu_count()": "not on Linux",
    # what is refused before, or is left to the op's own text
    "numpy.NumpyBackend.check_index": "the laws give indices that are in range; test_backend.py gives others",
    "numpy.packed_linear.packed_linear: panels.size == 0: true": "no numbers: the op's own text is run",
    "numpy.linear_cross_entropy.linear_cross_entropy: x.dtype.kind != 'f': true": "the op refuses integers before",
    "numpy.linear_cross_entropy.linear_cross_entropy: x.size == 0: true": "the mean over no rows is NaN, of which laws say nothing",
    "numpy.kernels.over_rows: max(1, width): the first": "rows of no numbers; the op's own text is run, or nothing",
    "numpy.kernels.as_rows: x.shape[-1]: false": "rows of no numbers, over which there is no mean and no loss",
    "numpy.attention.attention: v.size: false": "values of no numbers: the op's own text is run",
    "numpy.blas.matmul: a.shape[1] == b.shape[0]: false": "the op refuses such shapes before",
    "numpy.blas.matmul: out.dtype == np.float32: false": "kernels give products of float32 an `out` of float32",
    "numpy.blas.matmul: how_out: false": "kernels give an `out` in C order; test_blas_rounding.py gives others",
    "numpy.blas.matmul: how_out[0] == 111: false": "kernels give an `out` in C order; test_blas_rounding.py gives others",
    "numpy.blas._stored: x.strides[outer] % size == 0: false": "a field of a structured array lies so; test_blas_rounding.py",
    "numpy.NumpyBackend.take: axis == 0: false": "ops take rows; the face of a backend knows other axes, for ops of one's own",
    "numpy.kernels.column_sums: x.dtype.kind != 'f': true": "sums of integers; test_blas_rounding.py",
    "numpy.linear_cross_entropy.times: g == 1.0: true": "a law's cotangent is random; it is 1 in every training test",
    # on the border of where there is a derivative, or a number
    "numpy.kernels._one_layer_norm: square > 0.0: false": "a constant row with ε = 0; test_corners.py",
    "numpy.kernels._one_layer_norm: square == 0.0": "a constant row with ε = 0, or NaN; test_corners.py",
    "numpy.kernels.counted: max(kept.sum(), 1): the second": "no target counts: the loss is NaN; test_corners.py",
    "numpy.kernels.mean_of: scale.any(): false": "no target counts: the loss is NaN; test_corners.py",
    # ── CuPy: called where no op is ──
    "cupy.load": "looks for CuPy and a GPU; cupy/test_errors.py plays each that is missing",
    "cupy.Captured": "a step of decoding as a graph; test_gpu_step.py",
    "cupy.CupyBackend.__init__": "called once, when the backend is first asked for",
    "cupy.CupyBackend.processors": "how a step of decoding is cut up; gpt2/decoding/test_gpu_ops.py",
    "cupy.CupyBackend.communicator": "several processes; test_distributed.py",
    "cupy.CupyBackend.captured": "a step of decoding as a graph; test_gpu_step.py",
    "cupy.CupyBackend.free_memory": "asks the device; test_memory.py",
    "cupy.CupyBackend.synchronize": "for who measures time; benchmarks",
    "cupy.CupyBackend.erf": "CuPy's own function, in whose place the fake CuPy has one",
    "cupy.kernels.over_arrays": "no op, but the optimizer's; test_kernels.py",
    "cupy.kernels.sums_of_squares": "no op, but clipping's; test_kernels.py",
    "cupy.kernels.scale": "no op, but clipping's; test_kernels.py",
    "cupy.kernels.adamw_update": "no op, but the optimizer's; test_kernels.py",
    "cupy.sample": "no ops, but the choice of a token; test_gpu_sampling.py",
    "cupy.decode": "no ops, but a step of decoding; gpt2/decoding/test_gpu_ops.py holds each to its definition",
    "cupy.errors": "what went wrong on a device; cupy/test_errors.py has each complaint",
    # ── CuPy: another device, and what goes wrong ──
    "cupy.CupyBackend._look_at: device.id >= count: true": "a device that there is not; test_cupy_devices.py",
    "cupy.CupyBackend._look_at: has < wants: true": "an old GPU; cupy/test_errors.py",
    "cupy.CupyBackend.at: number != self.namespace.cuda.runtime.getDevice(): true": "laws stay on one device; test_cupy_devices.py",
    "cupy.CupyBackend._made: number not in (None, here): true": "laws stay on one device; test_cupy_devices.py",
    "cupy.CupyBackend._made: number: true": "laws stay on one device; test_cupy_devices.py",
    "cupy.CupyBackend._made: (ours := self.explained(error, 'an array')) is None": "no memory; test_cupy_devices.py",
    "cupy.CupyBackend.host: (ours := self.explained(error)) is None": "a device that has failed; test_cupy_devices.py",
    "cupy.CupyBackend.explained": "what went wrong on a device; cupy/test_errors.py",
    # ── CuPy: what is refused before, or is left to the op's own text ──
    "cupy.CupyBackend.add_at_rows: self.kernels: false": "without g++ the fake CuPy has no kernels",
    "cupy.CupyBackend.add_at_rows: rows == 0: true": "a table of no rows has no row to add to",
    "cupy.CupyBackend.add_at: array.flags.c_contiguous: false": "an op adds into an array that it has made; test_fake.py",
    "cupy.cublas.multiply: kind is None: true": "integers, whose products CuPy makes itself; test_cublas.py",
    "cupy.cublas.multiply: a.dtype != b.dtype: true": "the op refuses two dtypes before",
    "cupy.cublas.multiply: a.ndim < 2: true": "the op makes a matrix of a vector before",
    "cupy.cublas.multiply: max(n, k, m, math.prod(a.shape[:-2])) > 2 ** 31 - 1: true": "more numbers than a test has memory for",
    "cupy.cublas.multiply: dtype: true": "a result of float32 from 16 bits, which no op asks for; test_cublas.py",
    "cupy.cublas.multiply: tf32: true": "a choice of the user's; test_16_bits.py",
    "cupy.cublas.multiply: kind == 0": "a choice of the user's; test_16_bits.py",
    "cupy.attention.attended: k.size > 0: false": "no keys: the op's own text is run, and refuses",
    "cupy.attention.attended: v.size > 0: false": "values of no numbers: the op's own text is run",
    "cupy.kernels.fits: x.dtype.kind in FLOATS: false": "the laws give floats; sums of integers are CuPy's own",
    "cupy.kernels.add_layer_norm: x.ndim == 0: true": "the op refuses it; test_kernels.py",
    "cupy.kernels.add_layer_norm: x.shape != y.shape: true": "the laws refuse two shapes unfused; test_kernels.py",
    "cupy.kernels.add_layer_norm: weight.shape != x.shape[-1:]: true": "the op refuses it; test_kernels.py",
    "cupy.kernels.add_layer_norm: bias.shape != weight.shape: true": "the op refuses it; test_kernels.py",
    "cupy.kernels.add_layer_norm: any((a.dtype != x.dtype or xp.device(a) != xp.device(x) for a in (y, weight,…: true":
        "the op refuses it; test_kernels.py, test_cupy_devices.py",
    "cupy.kernels.add_layer_norm: a.dtype != x.dtype: true": "the op refuses it; test_kernels.py",
    "cupy.kernels.add: a.dtype != b.dtype: true": "the op refuses two dtypes before",
    "cupy.kernels.astype: stored.kind not in FLOATS: true": "a cast to integers of 16 bits has no gradient, and no law",
    "cupy.kernels.cross_entropy: fits(logits): false": "the mean over no rows is NaN, of which laws say nothing",
    "cupy.kernels.cross_entropy_dlogits: fits(logits): false": "the mean over no rows is NaN, of which laws say nothing",
    "cupy.kernels.linear_cross_entropy: fits(x): false": "the mean over no rows is NaN, of which laws say nothing",
    "cupy.kernels.linear_cross_entropy: dweight is not None: false": "a loss that nobody differentiates; test_kernels.py",
    "cupy.kernels.embedding_into: sum.flags.c_contiguous: false": "a gradient that is there was made in C order",
}


class Notes(ast.NodeTransformer):
    """Puts the notes into the text of a module. Code where a module is imported, outside its functions, notes nothing."""

    def __init__(self, module: str) -> None:
        self.where = [module]
        self.names = Counter[str]()

    def name(self, node: ast.AST, *outcomes: str) -> ast.Constant:
        """The decision's name, its outcomes being wanted from here on."""
        name = f"{'.'.join(self.where)}: {textwrap.shorten(ast.unparse(node), 80, placeholder='…')}"
        self.names[name] += 1
        name += f" ({self.names[name]})" if self.names[name] > 1 else ""
        wanted.update(dict.fromkeys(f"{name}: {o}" for o in outcomes))
        return ast.Constant(name)

    def call(self, helper: str, *args: Any) -> ast.Call:
        return ast.Call(ast.Name(helper, ast.Load()), list(args), [])

    def test(self, node: ast.expr) -> Any:
        """A condition, each part of it noted by itself."""
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
    """Where a module of minigrad.backend is, by its name there."""
    path = ROOT.joinpath("minigrad", "backend", *module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


class Noted(importlib.abc.MetaPathFinder):
    """Imports the modules of a backend with the notes in their text."""

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
    """The laws on every line of the table: ops that have a kernel, or multiply, at small sizes too. What breaks."""
    from minigrad.backend import cpu
    from minigrad.testing import fake_cupy
    from minigrad.testing.domains import DOMAINS
    from minigrad.testing.laws.check import examine_all
    from minigrad.testing.laws.sizes import SMALL, small_sizes

    here = cpu if backend == "numpy" else fake_cupy.install()
    small = {name: small_sizes(name) for name in SMALL} if backend == "numpy" else {f"{n} bytes of logits": logits(n) for n in (1, 600)}
    lines = [*DOMAINS, *(wide_lines() if backend == "cupy" else [])]
    seen.clear()                                        # what importing and making the backend called
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
    """Inside the block the CuPy backend has so many bytes of logits at a time: of 600, a row of float64, and two of float32."""
    from minigrad.backend.cupy import kernels

    was, kernels.LOGITS = kernels.LOGITS, size
    try:
        yield
    finally:
        kernels.LOGITS = was


def wide_lines() -> list[Any]:
    """Lines of the table at the sizes from which a GPU's kernels are others: wide heads, and rows longer or more than a block is for."""
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
    """The line of EXCUSED that an outcome falls under."""
    return next((name for name in EXCUSED if outcome == name or outcome.startswith((f"{name}: ", f"{name}."))), None)


def main(argv: list[str] | None = None) -> int:
    p = argparse.ArgumentParser(prog="python -m tests.branches", description=__doc__, allow_abbrev=False,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--backend", choices=MODULES, default="numpy", help="whose modules (default: numpy)")
    p.add_argument("--examples", type=int, metavar="N", help="for each op, law, dtype and size (default: 20)")
    args = p.parse_args(argv)
    if args.examples is not None and args.examples < 1:
        p.error(f"--examples {args.examples}: at least 1")
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
    for title, lines in (("missed", bad), ("excused, and reached", idle), ("broken", broken)):
        for line in lines:
            print(f"{title}: {line}")
    return 1 if bad or idle or broken else 0


if __name__ == "__main__":
    sys.exit(main())
