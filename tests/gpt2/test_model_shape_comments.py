"""The shape comments of the model are claims: each is held to the shapes of a batch, of a cached pass, and under hooks."""
from __future__ import annotations

import ast
import re
import sys
import tokenize
import types
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gpt2
import minigrad as mg
from gpt2.config import GPT2Config
from gpt2.decoding.kv_cache import KVCache

FILES = ("functions", "weights.pretrained", "hooks", "model")          # each imports those before it
# no two are equal, nor products or multiples of others, so that none passes for another
SIZES = {"B": 2, "T": 5, "h": 3, "d": 33, "n": 23, "V": 17}
PAST = 7                                                # tokens of the cache before the pass
SHAPE = re.compile(r"(?:(\d+) × )?\[([^\]]*)\]")
Seen = list[tuple[tuple[str, int], dict[str, int], tuple[Any, ...]]]


def text_of(name: str) -> str:
    return (Path(gpt2.__file__).parent / f"{name.replace('.', '/')}.py").read_text("utf-8")


# ── what a comment says ──
def comments(text: str) -> dict[int, str]:
    """The comment of each line that begins with a shape: on a def its arguments, else the line's result."""
    found = {}
    for token in tokenize.generate_tokens(StringIO(text).readline):
        said = token.string.lstrip("# ")
        if token.type == tokenize.COMMENT and SHAPE.match(said):
            found[token.start[0]] = said
    return found


def shapes_of(said: str) -> list[list[str]]:
    """For each value its possible shapes, of the last step where there are several: "3 × [B, T]", "[T] or [B, T]"."""
    last = said.rpartition("->")[2]
    out: list[list[str]] = []
    end = 0
    for m in SHAPE.finditer(last):
        if last[end:m.start()].strip() == "or":
            out[-1].append(m[2])
        else:
            out += [[m[2]] for _ in range(int(m[1] or 1))]
        end = m.end()
    return out


def fits(shape: tuple[int, ...], claim: str, sizes: dict[str, int]) -> bool:
    """Whether a shape is what "B, T, 3d" says. "…" stands for any axes in front, "·" for any size."""
    axes = [a.strip() for a in claim.split(",") if a.strip()]
    if axes[:1] == ["..."]:
        axes = axes[1:]
        shape = shape[max(0, len(shape) - len(axes)):]
    # sizes of any matrix, where the module has no weight of its own
    free = {"·", "k", "m", *({"in", "out"} - sizes.keys())}
    return len(axes) == len(shape) and all(axis in free or size_of(axis, sizes) == n for axis, n in zip(axes, shape))


def size_of(axis: str, sizes: dict[str, int]) -> int:
    """The size that "3d", "d/h" or "1" stands for."""
    factor, name, divisor = re.fullmatch(r"(\d*)([A-Za-z]*)(?:/([a-z]))?", axis).groups()       # type: ignore[union-attr]
    return int(factor or 1) * (sizes[name] if name else 1) // (sizes[divisor] if divisor else 1)


# ── what a pass has ──
class Watch(ast.NodeTransformer):
    """Calls `_saw` with the arguments of functions, and with what lines assign, return or yield, where they have a shape comment."""

    def __init__(self, lines: dict[int, str]) -> None:
        self.lines = lines

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        self.generic_visit(node)
        if node.lineno in self.lines:
            names = [a.arg for a in node.args.args if a.arg not in ("self", "F")]
            first = 1 if ast.get_docstring(node) else 0
            node.body.insert(first, self.call(node.lineno, [ast.Name(name, ast.Load()) for name in names]))
        return node

    def visit_Assign(self, node: ast.Assign) -> Any:
        line = node.end_lineno or 0
        if line not in self.lines:
            return node
        target = node.targets[0]
        names = target.elts if isinstance(target, ast.Tuple) else [target]
        return [node, self.call(line, [ast.parse(ast.unparse(name), mode="eval").body for name in names])]

    def visit_Return(self, node: ast.Return) -> Any:
        line = node.end_lineno or 0
        if line not in self.lines or node.value is None:
            return node
        made = ast.Assign([ast.Name("_made", ast.Store())], node.value)
        values = ast.Starred(ast.parse("(_made if isinstance(_made, tuple) else (_made,))", mode="eval").body, ast.Load())
        return [made, self.call(line, [values]), ast.Return(ast.Name("_made", ast.Load()))]

    def visit_Expr(self, node: ast.Expr) -> Any:
        line = node.end_lineno or 0
        if line not in self.lines or not isinstance(node.value, ast.Yield):
            return node
        made = ast.Assign([ast.Name("_made", ast.Store())], node.value.value)           # the shape is that of the last
        last = ast.parse("_made[-1]", mode="eval").body
        return [made, self.call(line, [last]), ast.Expr(ast.Yield(ast.Name("_made", ast.Load())))]

    def call(self, line: int, values: list[Any]) -> ast.Expr:
        own = ast.parse("_owner(locals().get('self'))", mode="eval").body
        return ast.Expr(ast.Call(ast.Name("_saw", ast.Load()), [ast.Constant(line), own, *values], []))


def watched(texts: dict[str, str]) -> tuple[Any, Seen]:
    """The model's module made from these texts of FILES, and a list that fills with what their lines have."""
    seen: Seen = []

    def owner(of: Any) -> dict[str, int]:
        weight = vars(of).get("weight") if of is not None else None
        return {} if weight is None or weight.ndim != 2 else {"in": weight.shape[0], "out": weight.shape[1]}

    with pytest.MonkeyPatch.context() as patch:
        for name, text in texts.items():
            def saw(line: int, own: dict[str, int], *values: Any, name: str = name) -> None:
                seen.append(((name, line), own, values))

            module = types.ModuleType(f"gpt2.{name}")
            module.__dict__.update(_saw=saw, _owner=owner, __package__=module.__name__.rpartition(".")[0], __file__=f"{name}.py")
            patch.setitem(sys.modules, f"gpt2.{name}", module)
            tree = ast.fix_missing_locations(Watch(comments(text)).visit(ast.parse(text)))
            exec(compile(tree, f"{name}.py", "exec"), module.__dict__)
    return module, seen


def wrong(texts: dict[str, str]) -> Iterator[str]:
    """Each shape comment of the texts that a pass contradicts, or that no pass comes by."""
    (module, seen), s, reached = watched(texts), SIZES, set()
    lines = {(name, line): said for name, text in texts.items() for line, said in comments(text).items()}
    defs = {(name, i) for name, text in texts.items() for i, line in enumerate(text.splitlines(), 1) if line.lstrip().startswith("def ")}
    for activation in module.ACTIVATIONS:
        config = GPT2Config(vocab_size=s["V"], n_positions=16, n_embd=s["d"], n_layer=2, n_head=s["h"], n_inner=s["n"],
                            activation_function=activation, tie_word_embeddings=activation != "relu")
        for name, sizes in passes(module.GPT2(config, seed=0), seen):
            for line, own, values in seen:
                reached.add(line)
                claims = shapes_of(lines[line])
                given = values[:len(claims)] if line in defs else values        # of arguments, the first ones
                for value, claim in zip(given, claims, strict=True):
                    if value is None:                   # an argument may be left out
                        if line not in defs and "None" not in lines[line]:
                            yield f"{line}: nothing, and not {lines[line]}, in {name}"
                    elif not any(fits(np.shape(value), one, {**sizes, **own}) for one in claim):
                        yield f"{line}: {list(np.shape(value))}, and not {' or '.join(f'[{one}]' for one in claim)}, in {name}"
            seen.clear()
    for line in sorted(lines.keys() - reached):
        yield f"{line}: no pass comes by {lines[line]}"


def passes(model: Any, seen: Seen) -> Iterator[tuple[str, dict[str, int]]]:
    """The passes that come by every line, each with what the letters stand for in it."""
    s, rng = SIZES, np.random.default_rng(0)
    ids = rng.integers(0, s["V"], (s["B"], s["T"]))
    batch = {**s, "S": s["T"]}
    model.eval()
    model(ids)
    yield "a batch", batch
    model.loss(ids, ids)
    yield "a loss", batch
    with model.hooks({"*": lambda x, name: x * 1.0}):       # each point is replaced, by the same numbers
        model.loss(ids, ids)
        yield "a loss with hooks", batch
    with model.hooks({"*": lambda x, name: None}):
        model(ids)
        yield "a batch with hooks that only read", batch
    with model.hooks({"*.mean": lambda x, name: x * 1.0}):
        model(ids)
        yield "a batch with other means", batch
    model.trace(ids, ids, gradients=True)
    yield "gradients at all points", batch
    with mg.no_grad():
        cache = KVCache(model.config, s["B"], 16, pad=[0, 3])
        model(rng.integers(0, s["V"], (s["B"], PAST)), cache=cache)
        seen.clear()
        model(ids, cache=cache)
        yield "a cached pass", {**s, "S": PAST + s["T"]}
        with model.packed():
            model(ids[:, :1])
            yield "a pass with panels", {**s, "T": 1, "S": 1}
    mixed = type(model)(model.config, seed=0, compute_dtype="float16")
    mixed(ids)
    yield "mixed precision", batch


def test_each_comment_is_the_shape_of_a_real_pass():
    """All shape comments of the model, in batches, with a cache, under hooks, with panels, in mixed precision."""
    texts = {name: text_of(name) for name in FILES}
    assert sum(len(comments(text)) for text in texts.values()) > 80
    assert list(wrong(texts)) == []


@pytest.mark.parametrize(("old", "new"), [
    ("# [B, T, in] @ [in, out] -> [B, T, out]", "# [B, T, in] @ [in, out] -> [B, T, in]"),
    ("# 2 × [B, h, S, d/h]", "# 2 × [B, h, T, d/h]"),
    ("-> 3 × [B, h, T, d/h]", "-> 2 × [B, h, T, d/h]"),
    ("# [B, T, 1]", "# [B, T, d]"),
    ("# [..., n], [n]", "# [..., n], [d]"),
])
def test_a_wrong_comment_is_noticed(old: str, new: str):
    texts = {name: text_of(name) for name in FILES}
    name = next(name for name, text in texts.items() if old in text)
    try:
        found = list(wrong(texts | {name: texts[name].replace(old, new)}))
    except ValueError as error:                         # another number of values
        found = [str(error)]
    assert found
