"""Mutants of a function: replacements for one piece of its source that are probably wrong.

A piece is a node of the syntax tree. `mutate` takes the `alternatives` of rules; `mutate_kernels`
takes the `alternatives`, `statements` and `blocks` of kernels; `spoiled` and `decisions` are for
other code, such as optimizers, random numbers and decoding. Each of these functions yields pairs: a
description of the change, and the new piece. `replaced` inserts the new piece into the tree.
"""
from __future__ import annotations

import ast
import copy
import textwrap
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np

from ..op import REGISTRY

Tree = TypeVar("Tree", bound=ast.AST)
Change = tuple[str, ast.AST]
COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In}
FACTORS = (("_times", "times 1.0001"), ("_plus", "plus 1e-5"))


# ── pieces of source ──
def say(node: ast.AST) -> str:
    """The source of a piece, shortened."""
    return textwrap.shorten(ast.unparse(node), 60, placeholder="…")


def call(name: str, node: ast.expr) -> ast.Call:
    """The piece `name(node)`."""
    return ast.Call(ast.Name(name, ast.Load()), [node], [])


class Replace(ast.NodeTransformer):
    """Replaces the piece `old` by `new`."""

    def __init__(self, old: ast.AST, new: ast.AST) -> None:
        self.old, self.new = old, new

    def visit(self, node: ast.AST) -> Any:
        return self.new if node is self.old else super().generic_visit(node)


def replaced(tree: Tree, old: ast.AST, new: ast.AST) -> Tree:
    """A copy of the tree, in which `new` replaces its piece `old`."""
    copies: dict[int, Any] = {}
    copied = copy.deepcopy(tree, copies)
    made: Tree = Replace(copies[id(old)], copy.deepcopy(new)).visit(copied)
    return made


def compiled(node: ast.Lambda | ast.FunctionDef, like: Callable[..., Any]) -> Callable[..., Any]:
    """The function of a syntax tree, with the globals and the closure of `like`."""
    scope: dict[str, Any] = {}
    if isinstance(node, ast.Lambda):
        made = ast.Name("made", ast.Store())
        body: Any = ast.Module([ast.Assign([made], copy.deepcopy(node))], [])
    else:
        body = ast.Module([copy.deepcopy(node)], [])
        body.body[0].name, body.body[0].decorator_list = "made", []
    cells = dict(zip(like.__code__.co_freevars, [c.cell_contents for c in like.__closure__ or ()]))
    program = compile(ast.fix_missing_locations(body), "<mutant>", "exec")
    exec(program, {**like.__globals__, **cells}, scope)
    return scope["made"]


# ── functions that a mutant calls ──
# not empty if, since it was cleared, a mutant's changed code was run and had an effect
changed: list[bool] = []


def is_float(x: Any) -> bool:
    """Whether x is a Python float or an array of floats."""
    return isinstance(x, float) or getattr(x, "dtype", np.dtype(bool)).kind == "f"


def times(x: Any) -> Any:
    """x times 1.0001; mutants call it as `_times`."""
    return _noted(x, x * 1.0001) if is_float(x) else x


def plus(x: Any) -> Any:
    """x plus 1e-5 of its largest number; mutants call it as `_plus`."""
    return _noted(x, x + 1e-5 * np.abs(x).max(initial=0.0)) if is_float(x) else x


def ran(x: Any) -> Any:
    """x itself; it records that the mutant's changed code was run. Mutants call it as `_ran`."""
    changed.append(True)
    return x


def _noted(old: Any, new: Any) -> Any:
    if not np.array_equal(old, new, equal_nan=True):
        changed.append(True)
    return new


# ── arithmetic: for rules and kernels ──
def alternatives(node: ast.AST) -> Iterator[Change]:
    """Wrong replacements for one piece of a rule.

    An operator, a constant, an axis or a comparison is changed, or a term, a factor or a function
    is left out.
    """
    if isinstance(node, ast.BinOp):
        if isinstance(node.op, ast.Add | ast.Sub):
            yield _instead(node, node.left)
            yield _instead(node, node.right)
            yield _instead(node, _other(node))
        elif isinstance(node.op, ast.Mult | ast.Div):
            yield _instead(node, node.left)
            if isinstance(node.op, ast.Mult):
                yield _instead(node, node.right)
            yield _instead(node, _other(node))
        elif isinstance(node.op, ast.Pow):
            yield _instead(node, node.left)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) \
            and not isinstance(node.operand, ast.Constant):
        yield _instead(node, node.operand)
    elif isinstance(node, ast.Compare) and len(node.ops) == 1:
        if not isinstance(node.ops[0], ast.Is | ast.IsNot | ast.In | ast.NotIn):
            turned = COMPARISONS[type(node.ops[0])]()
            yield _instead(node, ast.Compare(node.left, [turned], node.comparators))
    elif isinstance(node, ast.Constant) and isinstance(node.value, float) and node.value:
        yield _instead(node, ast.Constant(node.value * 1.01))
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and len(node.args) >= 1 \
            and node.func.id in REGISTRY:
        kept = node.func.id in ("reshape", "broadcast_to") and node.keywords
        if not kept and not isinstance(node.args[0], ast.Starred):
            yield f"no {node.func.id}: {say(node)}", node.args[0]
        for i, k in enumerate(node.keywords):
            value: ast.AST | None = None
            if k.arg in ("axis", "axis0", "axis1") and not isinstance(k.value, ast.Constant):
                value = ast.Constant(0)
            elif k.arg == "axis" or (k.arg == "keepdims" and isinstance(k.value, ast.Constant)):
                value = ast.Constant(0 if k.arg == "axis" else False)
            if value is not None:
                other = copy.deepcopy(node)
                other.keywords[i].value = value  # type: ignore[assignment]
                yield _instead(node, other)


def _instead(node: ast.AST, new: ast.AST) -> Change:
    return f"{say(new)} for {say(node)}", new


def _with(node: ast.AST, **fields: Any) -> ast.AST:
    """A copy of the piece in which these fields have other values."""
    new = copy.copy(node)
    for name, value in fields.items():
        setattr(new, name, value)
    return new


def _other(node: ast.BinOp) -> ast.BinOp:
    """The same piece with + for −, − for +, × for ÷, or ÷ for ×."""
    other = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult}
    return ast.BinOp(node.left, other[type(node.op)](), node.right)  # type: ignore[index]


# ── statements and blocks: for kernels, which write in place ──
def written(node: ast.stmt) -> ast.expr | None:
    """The array that a statement writes in place, as in x += y, x[i] = y or f(y, out=x)."""
    if isinstance(node, ast.AugAssign):
        return node.target
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        return next((k.value for k in node.value.keywords if k.arg == "out"), None)
    if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Subscript):
        return node.targets[0]
    return None


def _loaded(node: ast.expr) -> ast.expr:
    new = copy.deepcopy(node)
    for n in ast.walk(new):
        if hasattr(n, "ctx"):
            n.ctx = ast.Load()
    return new


def statements(node: ast.AST) -> Iterator[Change]:
    """Wrong replacements for a statement: it is left out, or its result is a little off."""
    if isinstance(node, ast.stmt) and (target := written(node)) is not None:
        yield f"without {say(node)}", ast.Pass()
        for how, what in FACTORS:
            stored = copy.deepcopy(target) if isinstance(target, ast.Subscript) \
                else ast.Subscript(_loaded(target), ast.Constant(...))
            stored.ctx = ast.Store()
            spoil = ast.Assign([stored], call(how, _loaded(target)))
            both = [copy.deepcopy(node), spoil]
            yield f"{what} after {say(node)}", ast.If(ast.Constant(True), both, [])
    elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        yield f"without {say(node)}", ast.Pass()
    elif isinstance(node, ast.Return) and isinstance(node.value, ast.Call | ast.BinOp) \
            and not ast.unparse(node.value).startswith("Saved("):
        for how, what in FACTORS:
            yield f"{what} in {say(node)}", ast.Return(call(how, node.value))
    elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) \
            and isinstance(node.value, ast.Call | ast.BinOp) \
            and not ast.unparse(node.value).startswith(
                ("np.empty", "memory[", "other[", "min(", "max(", "len(")):
        for how, what in FACTORS:
            yield f"{what} in {say(node)}", ast.Assign(node.targets, call(how, node.value))


def blocks(node: ast.AST) -> Iterator[Change]:
    """Wrong replacements for a root or a loop: ε outside the root, or a block left out."""
    if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("sqrt") \
            and isinstance(node.args[0], ast.BinOp) and isinstance(node.args[0].op, ast.Add):
        root = ast.Call(node.func, [node.args[0].left], [])
        yield f"outside of {say(node)}", ast.BinOp(root, ast.Add(), node.args[0].right)
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "range" and len(node.args) == 3:
        start, stop, step = node.args
        later = ast.Call(node.func, [ast.BinOp(start, ast.Add(), step), stop, step], [])
        yield f"the first block left out of {say(node)}", later
        whole = ast.BinOp(stop, ast.Sub(), ast.BinOp(step, ast.Sub(), ast.Constant(1)))
        shorter = ast.Call(node.func, [start, whole, step], [])
        yield f"a last block that is not full left out of {say(node)}", shorter


# ── decisions and settings: for all other code ──
def own_pieces(tree: ast.AST) -> Iterator[ast.AST]:
    """The pieces of a function that determine what it does.

    Docstrings, annotations, defaults and the texts of messages are left out.
    """
    if isinstance(tree, ast.FunctionDef | ast.Lambda):
        inside: Any = tree.body if isinstance(tree.body, list) else [tree.body]
        inside = inside[isinstance(tree, ast.FunctionDef) and ast.get_docstring(tree) is not None:]
    else:
        yield tree
        if isinstance(tree, ast.JoinedStr | ast.Raise | ast.Import | ast.ImportFrom):
            return
        inside = (n for name, value in ast.iter_fields(tree) if name != "annotation"
                  for n in (value if isinstance(value, list) else [value])
                  if isinstance(n, ast.AST))
    for n in inside:
        yield from own_pieces(n)


def spots(tree: ast.FunctionDef) -> list[ast.expr]:
    """The expressions that a function assigns or returns and that may be numbers."""
    kinds = ast.Assign | ast.AugAssign | ast.AnnAssign | ast.Return | ast.NamedExpr
    found = [n.value for n in own_pieces(tree) if isinstance(n, kinds) and n.value is not None]
    each = [v for value in found for v in (value.elts if isinstance(value, ast.Tuple) else [value])]
    no_number = ast.Constant | ast.Compare | ast.BoolOp | ast.Lambda | ast.JoinedStr | ast.Starred
    return [v for v in each if not isinstance(v, no_number)]


def spoiled(value: ast.expr) -> Iterator[Change]:
    """Wrong replacements for an expression: its value times 1.0001, and plus 1e-5."""
    for how, what in FACTORS:
        yield f"{what}: {say(value)}", call(how, value)


def settings(tree: ast.FunctionDef) -> Iterator[tuple[str, ast.stmt, ast.AST]]:
    """Mutants in which a setting is ignored or has another default.

    Each is a description of the change, the function's first statement, and its replacement.
    """
    first = tree.body[ast.get_docstring(tree) is not None]
    plain, named = tree.args.posonlyargs + tree.args.args, tree.args.kwonlyargs
    given = [*zip(plain[len(plain) - len(tree.args.defaults):], tree.args.defaults),
             *zip(named, tree.args.kw_defaults)]
    for arg, default in given:
        if default is not None:
            instead = ast.Assign([ast.Name(arg.arg, ast.Store())], default)
            yield f"{arg.arg} ignored", first, ast.If(ast.Constant(True), [instead, first], [])
            for n in ast.walk(default):
                for _, new in decisions(n):
                    moved = replaced(ast.Expression(default), n, new).body
                    same = ast.Compare(ast.Name(arg.arg, ast.Load()), [ast.Eq()], [default])
                    move = ast.If(same, [ast.Assign([ast.Name(arg.arg, ast.Store())], moved)], [])
                    both = ast.If(ast.Constant(True), [move, first], [])
                    yield f"{arg.arg}={say(moved)} by default", first, both


def decisions(node: ast.AST) -> Iterator[Change]:
    """Wrong replacements for one piece of a program.

    A limit, a condition, a count, an index, a number or a step is changed or left out.
    """
    if isinstance(node, ast.Compare):
        for i, op in enumerate(node.ops):
            ops = [*node.ops[:i], COMPARISONS[type(op)](), *node.ops[i + 1:]]
            yield _instead(node, ast.Compare(node.left, ops, node.comparators))
    elif isinstance(node, ast.BoolOp):
        for i, value in enumerate(node.values):
            rest = node.values[:i] + node.values[i + 1:]
            fewer = ast.BoolOp(node.op, rest) if len(rest) > 1 else rest[0]
            yield f"without {say(value)} in {say(node)}", fewer
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.Not):
        yield _instead(node, node.operand)
    elif isinstance(node, ast.If | ast.IfExp | ast.While):
        if not isinstance(node.test, ast.Compare | ast.BoolOp | ast.UnaryOp):
            yield f"not {say(node.test)}", _with(node, test=ast.UnaryOp(ast.Not(), node.test))
    elif isinstance(node, ast.BinOp):
        if isinstance(node.op, ast.Add | ast.Sub | ast.Mult | ast.Div):
            yield _instead(node, _other(node))
        if isinstance(node.op, ast.FloorDiv):
            yield _instead(node, ast.BinOp(node, ast.Add(), ast.Constant(1)))
        else:
            yield _instead(node, node.left)
    elif isinstance(node, ast.Constant):
        number = node.value
        if isinstance(number, bool):
            yield _instead(node, ast.Constant(not number))
        elif isinstance(number, int):
            yield _instead(node, ast.Constant(number + 1))
        elif isinstance(number, float):
            moved = number * (10.0 if abs(number) < 1e-3 else 1.0001) or 1e-5
            yield _instead(node, ast.Constant(moved))
    elif isinstance(node, ast.Slice):
        for name, step in (("lower", ast.Add()), ("upper", ast.Sub())):
            bound = getattr(node, name)
            if bound is not None and not isinstance(bound, ast.Constant):
                yield _instead(node, _with(node, **{name: ast.BinOp(bound, step, ast.Constant(1))}))
    elif isinstance(node, ast.Call):
        yield from _calls(node)
    elif isinstance(node, ast.comprehension) and node.ifs:
        yield f"without the condition of{ast.unparse(node)}", _with(node, ifs=[])
    elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Tuple) \
            and len(node.targets[0].elts) == 2:
        turned = ast.Tuple(node.targets[0].elts[::-1], ast.Store())
        yield f"swapped: {say(node)}", ast.Assign([turned], node.value)
    elif isinstance(node, ast.Assign) and not isinstance(node.targets[0], ast.Name | ast.Tuple):
        yield f"without {say(node)}", ast.Pass()
    elif isinstance(node, ast.AugAssign | ast.Raise | ast.Continue | ast.Break) \
            or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
                and "super()" not in ast.unparse(node)):
        yield f"without {say(node)}", ast.Pass()


def _calls(node: ast.Call) -> Iterator[Change]:
    """Wrong replacements for a call: a setting is left out, or a count or extreme is changed."""
    name = ast.unparse(node.func).rpartition(".")[2]
    for k in node.keywords:
        switch = isinstance(k.value, ast.Constant) and isinstance(k.value.value, bool)
        if k.arg is not None and not switch:
            others = [o for o in node.keywords if o is not k]
            yield f"no {k.arg} in {say(node)}", ast.Call(node.func, node.args, others)
    if name in ("min", "max") and len(node.args) == 2 and not node.keywords:
        yield _instead(node, node.args[0])
        yield _instead(node, node.args[1])
    elif name in ("all", "any") and isinstance(node.func, ast.Name):
        other = ast.Name("any" if name == "all" else "all", ast.Load())
        yield _instead(node, ast.Call(other, node.args, []))
    elif name in ("range", "islice"):
        if len(node.args) < 3:
            fewer = ast.BinOp(node.args[-1], ast.Sub(), ast.Constant(1))
            yield _instead(node, ast.Call(node.func, [*node.args[:-1], fewer], []))
    elif name == "sqrt":
        yield _instead(node, node.args[0])
    yield from blocks(node)
