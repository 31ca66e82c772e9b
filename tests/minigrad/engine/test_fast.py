"""The engine's fast path is its definition, to the bit: values, gradients, second derivatives, what is
saved, what is refused and in which words, in no more memory. `repeat` asks the same of every op."""
from __future__ import annotations

import ast
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import minigrad as mg
from gpt2.config import GPT2Config
from gpt2.model import GPT2
from minigrad.engine import graph
from minigrad.engine.fast import FastOp, FastWalk, explicit
from minigrad.op import REGISTRY
from minigrad.testing import fake_cupy
from tests.minigrad.engine.test_engine import ELEMENTWISE, PROGRAMS, UNARY, Programs

SHAPES = [(), (3,), (2, 3), (2, 1), (1, 3)]
ROOT = Path(mg.__file__).parent


def _outcome(f: Callable[[], Any]) -> tuple[Any, ...]:
    """The bits of the arrays that f returns, or the error that it raises."""
    mg.random.manual_seed(0)
    try:
        return tuple((str(a.dtype), a.shape, a.tobytes()) for a in f())
    except Exception as error:
        return type(error), str(error), type(error.__cause__)


def _same(f: Callable[[], Any]) -> tuple[Any, ...]:
    """What f gives, on both paths."""
    fast = _outcome(f)
    with explicit():
        slow = _outcome(f)
    assert fast == slow
    return fast


# ── numbers ──
steps = st.lists(st.tuples(st.sampled_from([*UNARY, *ELEMENTWISE, *PROGRAMS]), st.integers(0, 9), st.integers(0, 9)),
                 min_size=1, max_size=8)


@given(shapes=st.lists(st.sampled_from(SHAPES), min_size=2, max_size=3), steps=steps, seed=st.integers(0, 999),
       dtype=st.sampled_from(["float64", "float32", "float16"]), device=st.sampled_from(["numpy", "fake"]))
def test_random_programs(shapes: Any, steps: Any, seed: int, dtype: str, device: str):
    """Value, gradients, the gradient of the gradient, `.grad` of the leaves, and every residual of every node."""
    fake_cupy.install()
    if device == "fake" and dtype == "float16":      # whose kernels add to a sum with one rounding
        dtype = "float32"

    def program() -> Iterator[np.ndarray]:
        rng = np.random.default_rng(seed)
        leaves = [mg.tensor(rng.uniform(-1.0, 1.0, s), dtype=dtype, device=device).requires_grad_() for s in shapes]
        pool = [*leaves, mg.tensor(rng.uniform(-1.0, 1.0, (2, 3)), dtype=dtype, device=device)]
        for name, i, j in steps:
            a, b = pool[-1 - i % len(pool)], pool[-1 - j % len(pool)]
            f = {**UNARY, **ELEMENTWISE, **PROGRAMS}[name]
            try:
                pool.append(mg.tanh(f(mg, a) if name in UNARY else f(mg, a, b)))
            except mg.ShapeError:
                continue
        y = mg.sum(pool[-1] * pool[-1])
        yield y.numpy()
        yield from _residuals(y.node)
        if y.requires_grad:
            grads = mg.gradients(y, leaves, create_graph=True)
            yield from (g.numpy() for g in grads)
            z = sum((mg.sum(g * g) for g in grads), start=mg.sum(leaves[0]) * 0.0)
            yield from (g.numpy() for g in mg.gradients(z, leaves, retain_graph=True))
            z.backward(retain_graph=True)
            y.backward()
            yield from (x.grad.numpy() for x in leaves if x.grad is not None)

    _same(lambda: list(program()))


def _residuals(node: Any) -> Iterator[np.ndarray]:
    """All that the graph behind a node saves, in the order in which its nodes were made."""
    queue, seen = [node], set()
    while queue:
        node = queue.pop()
        if node is not None and node not in seen:
            seen.add(node)
            queue += node.parents
    for node in sorted(seen, key=lambda n: n.id):
        for s in node.saved or ():
            for a in s if isinstance(s, tuple) else [s]:
                yield mg.backend.of(a).host(a) if hasattr(a, "dtype") else np.asarray(str(a).encode())


def _small(**dtypes: str) -> GPT2:
    mg.random.manual_seed(1)
    return GPT2(GPT2Config(vocab_size=61, n_positions=16, n_embd=16, n_layer=2, n_head=2), **dtypes)


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_the_model(dtype: str):
    """Loss, gradients, and a Hessian-vector product, with dropout and tied weights."""
    ids = np.random.default_rng(0).integers(61, size=(2, 9))

    def step() -> list[np.ndarray]:
        model = _small(**{"compute_dtype" if dtype == "float16" else "dtype": dtype})
        parameters = list(model.parameters())
        loss = model.loss(ids[:, :-1], ids[:, 1:])
        grads = mg.gradients(loss, parameters, create_graph=True)
        product = mg.gradients(sum((mg.sum(g * g) for g in grads[1:]), start=mg.sum(grads[0] * grads[0])), parameters,
                               retain_graph=True)
        loss.backward()
        return [a.numpy() for a in (loss, *grads, *product, *[p.grad for p in parameters])]

    assert len(_same(step)) > 30


class OnTheDefinition(Programs):
    """The state machine of the engine, on the definition."""

    def __init__(self) -> None:
        super().__init__()
        self.path = explicit()
        self.path.__enter__()

    def teardown(self) -> None:
        self.path.__exit__(None, None, None)
        super().teardown()


TestOnTheDefinition = OnTheDefinition.TestCase
TestOnTheDefinition.settings = settings(max_examples=max(5, settings.default.max_examples // 10), stateful_step_count=30)


def test_an_argument_without_a_rule_is_a_constant():
    """Also where it is a Tensor that wants a gradient, of another dtype."""
    def scaled(xp, x, by):
        return x * by.astype(x.dtype)

    op = FastOp(scaled, {"x": lambda g, by: g * by.astype(g.dtype)})

    def program() -> list[np.ndarray]:
        x, by = mg.tensor([1.0, 2.0], requires_grad=True), mg.tensor([3.0, 4.0], dtype="float64", requires_grad=True)
        y = op(x, by)
        y.backward(mg.tensor([1.0, 1.0]))
        assert by.grad is None and x.grad is not None
        return [y.numpy(), x.grad.numpy()]

    assert len(_same(program)[0]) == 3


@pytest.mark.parametrize("first", ["given", "left out"])
def test_an_argument_may_be_left_out(first: str):
    """Whichever call comes first: None in its place and nothing are two plans."""
    REGISTRY["gelu"].plans.clear()

    def program() -> list[np.ndarray]:
        x = mg.tensor([[0.5, -1.0], [2.0, 0.1]], requires_grad=True)
        calls = [lambda: mg.gelu(x, None, approximate="tanh"), lambda: mg.gelu(x, approximate="tanh")]
        ys = [f() for f in (calls if first == "given" else calls[::-1])]
        return [g.numpy() for y in ys for g in mg.gradients(mg.sum(y * y), [x])]

    _same(program)
    one, other = _same(program)
    assert one == other


# ── refusals ──
X, Y, WHOLE = mg.tensor([1.0, 2.0]), mg.tensor([1.0, 2.0, 3.0]), mg.tensor([1, 2])
W, D = mg.tensor([1.0, 2.0], requires_grad=True), mg.tensor([1.0, 2.0], dtype="float64")
REFUSED: list[Callable[[], Any]] = [
    lambda: X + Y, lambda: mg.maximum(X, [1.0]), lambda: mg.maximum(W, [1.0, 2.0]), lambda: mg.where(X > 0.0, X, [1.0, 2.0]),
    lambda: X + "1", lambda: X * D, lambda: W * D, lambda: D * W, lambda: mg.tanh(WHOLE),
    lambda: mg.tanh(), lambda: mg.tanh(X, X), lambda: mg.tanh(X, out=1), lambda: mg.sum(X, axis=3), lambda: mg.sum(X, axis=1.5),
    lambda: mg.sum(X, 0, True, 7), lambda: mg.softmax(X, axes=0), lambda: mg.reshape(X, shape=(3,)), lambda: X @ Y,
    lambda: X @ mg.tensor([[1.0]]), lambda: mg.concat([X, D]), lambda: mg.exp(2.0), lambda: mg.exp([1.0]),
    lambda: mg.cross_entropy(X, Y), lambda: mg.where(X, X, Y), lambda: mg.layer_norm(X, Y, Y), lambda: X[5],
    lambda: mg.split(X, sections=3), lambda: mg.take(X, Y), lambda: W.backward(), lambda: mg.sum(X).backward(),
    lambda: mg.sum(W).backward(mg.tensor([1.0])), lambda: mg.maximum(X), lambda: mg.maximum(None, None),
]


@pytest.mark.parametrize("call", REFUSED)
def test_errors(call: Callable[[], Any]):
    """The same class, words and cause."""
    def refused() -> list[Any]:
        call()
        return []

    assert isinstance(_same(refused)[0], type)


def test_a_second_pass_and_a_changed_value_are_refused():
    """In the same words, but for the numbers of the nodes."""
    def words(act: Callable[[Any, Any], None]) -> str:
        x = mg.tensor([1.0, 2.0], requires_grad=True)
        y = mg.sum(x * x)
        with pytest.raises(mg.GraphError) as caught:
            act(x, y)
        return str(caught.value).partition(" #")[0] + str(caught.value).partition(">")[2]

    for act in (lambda x, y: (y.backward(), y.backward()), lambda x, y: (x.assign(mg.tensor([3.0, 4.0])), y.backward())):
        fast = words(act)
        with explicit():
            assert words(act) == fast


# ── memory ──
@pytest.mark.parametrize("recompute", [False, True])
def test_it_needs_no_more_memory(recompute: bool):
    """The peak of a training step of the model is not above that of the definition."""
    ids = np.random.default_rng(0).integers(61, size=(4, 17))
    model = _small()

    def peak() -> int:
        model.zero_grad()
        tracemalloc.start()
        model.loss(ids[:, :-1], ids[:, 1:]).backward()
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    peak()
    fast = peak()
    with explicit():
        peak()
        assert fast <= 1.02 * peak()


# ── the switch ──
def test_the_switch():
    """Inside the block the definition runs; after it, and after an error, the fast path."""
    assert graph.walk_of is FastWalk
    with pytest.raises(KeyError), explicit():
        assert graph.walk_of is not FastWalk
        with explicit():
            pass
        assert graph.walk_of is not FastWalk
        raise KeyError
    assert graph.walk_of is FastWalk


def test_two_threads_may_have_it():
    """The definition runs until the last of them has left; a pass that began on it ends on it."""
    first, second = explicit(), explicit()
    first.__enter__()
    second.__enter__()
    x = mg.tensor([1.0, 2.0], requires_grad=True)
    y = mg.sum(mg.softmax(x * x) * x)
    first.__exit__(None, None, None)
    assert graph.walk_of is not FastWalk

    def leave(g: mg.Tensor) -> None:
        second.__exit__(None, None, None)

    y.register_hook(leave)
    y.backward()
    fast = mg.gradients(mg.sum(mg.softmax(x * x) * x), [x])[0]
    assert graph.walk_of is FastWalk and x.grad is not None and x.grad.tolist() == fast.tolist()


def test_the_environment_variable():
    """MINIGRAD_EXPLICIT=1 runs a whole process on the definition."""
    code = "from minigrad.engine import graph; print(graph.walk_of.__name__)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                         env={**os.environ, "MINIGRAD_EXPLICIT": "1"})
    assert run.stdout.strip() == "Walk"


# ── what a reader reads ──
DEFINITION = ("graph", "declaration", "op", "saved", "checks", "hooks")     # the reading path, beside Tensor
SPECIAL = ("several", "live", "touched", "refusals")    # what is met where the case occurs
CALLED = """
import sys
import minigrad as mg
x, codes = mg.tensor([1.0, 2.0, 3.0], requires_grad=True), set()
sys.setprofile(lambda frame, event, _: codes.add(frame.f_code) if event == "call" else None)
(x * x).sum().backward()
sys.setprofile(None)
for code in codes:
    print(code.co_filename, code.co_firstlineno, sep="\\t")
"""


def _code_lines(file: Path, firsts: set[int]) -> set[int]:
    """The lines of the functions that begin on these, without docstrings, comments and empty lines."""
    text, found = file.read_text(encoding="utf-8"), set()
    lines = text.splitlines()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.Lambda | ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp):
            start = min(n.lineno for n in [node, *getattr(node, "decorator_list", [])])
            if start in firsts:
                found |= set(range(node.lineno, (node.end_lineno or 0) + 1))
                if isinstance(node, ast.FunctionDef) and ast.get_docstring(node) is not None:
                    found -= set(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    return {n for n in found if lines[n - 1].strip() and not lines[n - 1].strip().startswith("#")}


def test_what_a_student_reads():
    """The functions of minigrad that `(x * x).sum().backward()` calls, the first time in a process, on the definition: what must be
    read before it is understood to the end."""
    run = subprocess.run([sys.executable, "-c", CALLED], capture_output=True, text=True, check=True,
                         env={**os.environ, "MINIGRAD_EXPLICIT": "1"})
    called: dict[Path, set[int]] = {}
    for file, first in (line.split("\t") for line in run.stdout.splitlines()):
        if Path(file).is_relative_to(ROOT):
            called.setdefault(Path(file), set()).add(int(first))
    assert ROOT / "engine" / "fast.py" not in called and not {ROOT / "engine" / f"{name}.py" for name in SPECIAL} & called.keys()
    assert 200 < sum(len(_code_lines(file, firsts)) for file, firsts in called.items()) <= 250


def test_the_definition_is_short():
    """Each file of the engine has at most 250 lines, and none has a line of more than 100 columns; the definition has 700 in all."""
    lines = {file.stem: file.read_text(encoding="utf-8").splitlines() for file in (ROOT / "engine").glob("*.py")}
    for name, text in lines.items():
        assert max(map(len, text)) <= 100 and (len(text) <= 250 or name == "fast"), name
    assert sum(len(lines[name]) for name in DEFINITION) <= 700
