"""What a graph keeps, where NaN comes from, and which saved array was written.

    from minigrad.debug import detect_anomaly, detect_writes, explain
    print(explain(loss))                # a line for each kind of op; nodes=True: for each node
    with detect_anomaly():              # a GraphError names the op that makes NaN
        model.loss(ids, targets).backward()
    with detect_writes():               # a GraphError names the saved array that was written
        model.loss(ids, targets).backward()
"""
from __future__ import annotations

import contextlib
import math
import weakref
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from . import backend
from .backend.base import FLOATS
from .engine import refusals
from .engine.fast import explicit
from .engine.graph import Leaf, Node, Walk, leaf_under
from .engine.hooks import sources
from .engine.op import Op
from .engine.tensor import Tensor
from .errors import GraphError
from .transforms import Checkpoint


class Row(NamedTuple):
    """A kind of op, or one node.

    nodes: how many there are. shape: of a node's output; a kind of op has none. keeps: the names of
    the residuals whose memory is counted here; shares: of those whose memory is counted elsewhere
    (a leaf's, or what an older node keeps). kept: bytes.
    """

    op: str
    nodes: int
    shape: Any
    keeps: tuple[str, ...]
    shares: tuple[str, ...]
    kept: int


class Residual(NamedTuple):
    """An array that a node keeps.

    nbytes: of the memory that stays for it, all of it where the array is a view of a part.
    """

    op: str
    name: str
    shape: tuple[int, ...]
    dtype: str
    nbytes: int


@dataclass
class Explanation:
    """What is behind a Tensor, as numbers and names; nothing of the graph is held.

    ops: how many nodes of each op. kept: bytes that are there for the backward pass alone, each
    memory once. leaves: bytes of all leaves; shared: of those that are residuals as well, and so
    not in `kept`. largest: residuals by size. gone: nodes that were used, and keep nothing any
    more. str() of it is a table.
    """

    rows: list[Row] = field(default_factory=list)
    ops: Counter[str] = field(default_factory=Counter)
    kept: int = 0
    leaves: int = 0
    shared: int = 0
    leaf_count: int = 0
    gone: int = 0
    largest: list[Residual] = field(default_factory=list)

    @property
    def nodes(self) -> int:
        """How many ops were recorded; leaves are none."""
        return self.ops.total()

    def __str__(self) -> str:
        if not self.nodes:
            return "no graph: " + (
                "a leaf" if self.leaf_count else
                "nothing that this was computed from requires a gradient")
        each = any(row.shape is not None for row in self.rows)
        lines = [("node" if each else "op", "output" if each else "nodes", "kept", "keeps")]
        for row in self.rows:
            names = ", ".join([*row.keeps, *(f"({name})" for name in row.shares)])
            second = _brackets(row.shape) if each else str(row.nodes)
            lines.append((row.op, second, size_of(row.kept), names))
        a, b, c = (max(len(line[i]) for line in lines) for i in range(3))
        text = [f"{w:{a}}  {x:>{b}}  {y:>{c}}  {z}".rstrip() for w, x, y, z in lines]
        if any(row.shares for row in self.rows):
            text.append("(…): the memory of a leaf, or of what an older node keeps; "
                        "not counted again")
        text.append(f"{self.nodes} nodes keep {size_of(self.kept)}; {self.leaf_count} leaves hold "
                    f"{size_of(self.leaves)}, and {size_of(self.shared)} of that is kept as well")
        text += [f"{'largest:' if i == 0 else '':8} {size_of(r.nbytes):>8}  {r.op}, {r.name} "
                 f"{r.dtype}{list(r.shape)}" for i, r in enumerate(self.largest)]
        if self.gone:
            text.append(f"{self.gone} nodes have had their backward pass already: "
                        "what they saved is gone")
        return "\n".join(text)


def explain(tensor: Tensor, *, nodes: bool = False) -> Explanation:
    """The graph behind `tensor`: its ops, and what they keep for the backward pass, in bytes.

    nodes: a row for each node in the order of their birth, not for each kind of op. An array counts
    with all the memory that it keeps from being freed, once, at the oldest node that keeps it;
    memory of a leaf is not counted, that of a constant is. (A view of a copy of a leaf, such as
    w.T.reshape(-1), may pass for the leaf's.) TypeError for what is no Tensor.
    """
    if not isinstance(tensor, Tensor):
        raise TypeError(f"explain: this is a {type(tensor).__name__}; give the Tensor that the "
                        "graph ends in, such as the loss")
    out = Explanation()
    order, leaves = _graph(tensor.node)
    held = [(node, list(_residuals(node, node.saved))) for node in order]
    owned, shared = set(), set()                        # leaves' memory; leaves that are residuals
    for _, residuals in held:
        for _, array, leaf in residuals:
            if leaf is not None:
                owned.add(id(_owner(array)))
                shared.add(leaf)
    counted: set[int] = set(owned)
    rows: list[Row] = []
    for node, residuals in held:
        name, kept = node.op.shown, 0
        keeps: dict[str, None] = {}
        shares: dict[str, None] = {}
        for what, array, _ in residuals:
            memory = _owner(array)
            if id(memory) in counted:
                shares[what] = None
                continue
            counted.add(id(memory))
            keeps[what] = None
            kept += memory.nbytes
            out.largest.append(Residual(name, what, array.shape, str(array.dtype), memory.nbytes))
        out.ops[name] += 1
        out.gone += node.saved is None
        label = f"{name} #{node.id}" if nodes else name
        elsewhere = tuple(n for n in shares if n not in keeps)
        rows.append(Row(label, 1, node.shape, tuple(keeps), elsewhere, kept))
    out.rows = rows if nodes else _by_op(rows)
    out.kept = sum(row.kept for row in rows)
    out.leaf_count, out.leaves = len(leaves), sum(map(_nbytes, leaves))
    out.shared = sum(map(_nbytes, shared))
    out.largest = sorted(out.largest, key=lambda r: -r.nbytes)[:5]
    return out


@contextlib.contextmanager
def detect_anomaly() -> Iterator[None]:
    """Inside the block a GraphError names the op that NaN or +∞ comes from, and its module.

    It is the first recorded op whose result holds NaN or +∞, or whose rule sends NaN back. −∞ is no
    anomaly, for masks are made of it; nor is what float16 does on the way back, which loss scaling
    is for. Of a checkpointed function only the result is looked at. Slow: on a GPU every result is
    waited for. PyTorch's torch.autograd.detect_anomaly.
    """
    record, send = Op._record, Op._send

    def checked_record(op: Op, args: Any, nodes: Any, out: Any, *rest: Any) -> Node:
        if out is not None and (bad := _anomaly(out, infinity=True)):
            arrays = [a.array if isinstance(a, Tensor) else a for a in args]
            before = [f"{refusals.arg(op, i)} holds {b}" for i, a in enumerate(arrays)
                      if hasattr(a, "dtype") and (b := _anomaly(a, infinity=True))]
            cause = f"for {' and '.join(before)}" if before else "of finite numbers"
            raise GraphError(f"{op.shown}: {refusals.described(op, arrays)}: the result holds "
                             f"{bad}, {cause}")
        return record(op, args, nodes, out, *rest)

    def checked_send(op: Op, node: Node, i: int, part: Any, g: Any, walk: Walk) -> None:
        array = part.array if isinstance(part, Tensor) else part
        parent = node.parents[i]
        assert parent is not None
        if str(parent.dtype) != "float16" and (bad := _anomaly(array, infinity=False)):
            raise GraphError(f"backward of {node}: ∂{op.shown}/∂{refusals.arg(op, i)} holds {bad}")
        send(op, node, i, part, g, walk)

    Op._record = checked_record                         # type: ignore[method-assign,assignment]
    Op._send = checked_send                             # type: ignore[method-assign,assignment]
    try:
        with explicit():                                # the fast path has no such steps
            yield
    finally:
        Op._record, Op._send = record, send             # type: ignore[method-assign]


@contextlib.contextmanager
def detect_writes() -> Iterator[None]:
    """Inside the block a GraphError names the op whose saved array was written before backward.

    A plain array that an op is given is copied when it is saved for backward, and a leaf that an
    optimiser or `assign` changes counts its versions. What neither can see is an array that
    somebody still holds while a Tensor shares its memory: behind `Tensor(array)`, `from_dlpack` or
    `x.array`, or the detached view of a leaf that is changed later. Here a checksum of every saved
    array is taken and compared. Slow: each is read twice, and copied from a GPU for it.
    """
    made, pullbacks = Node.__init__, {kind: kind.pullback for kind in (Op, Checkpoint)}
    sums: weakref.WeakKeyDictionary[Node, list[int]] = weakref.WeakKeyDictionary()

    def summed(node: Node, saved: Any) -> list[int]:
        return [zlib.crc32(backend.of(x).host(x).tobytes()) for _, x, _ in _residuals(node, saved)]

    def init(node: Node, *args: Any, **named: Any) -> None:
        made(node, *args, **named)
        sums[node] = summed(node, node.saved)

    def pullback(op: Any, node: Node, saved: Any, *rest: Any) -> None:
        if node in sums:                                # else it was made before the block
            residuals = _residuals(node, saved)
            for (name, x, _), then, now in zip(residuals, sums[node], summed(node, saved)):
                if then != now:
                    raise GraphError(f"backward of {node}: {name}, {x.dtype}{list(x.shape)}, was "
                                     "saved for backward and has been written since; give the op "
                                     "a copy, or write after backward()")
        pullbacks[Checkpoint if isinstance(op, Checkpoint) else Op](op, node, saved, *rest)

    Node.__init__ = init                                 # type: ignore[method-assign,assignment]
    for kind in pullbacks:
        kind.pullback = pullback                         # type: ignore[method-assign,assignment]
    try:
        with explicit():
            yield
    finally:
        Node.__init__ = made                             # type: ignore[method-assign]
        for kind, f in pullbacks.items():
            kind.pullback = f                            # type: ignore[method-assign,assignment]


def _anomaly(array: Any, infinity: bool) -> str:
    """"NaN" or "+∞" where the array holds one; else nothing."""
    if array.dtype.kind not in FLOATS or array.size == 0:
        return ""
    xp = backend.of(array)
    xp.at(array)
    top = float(xp.host(xp.max(array)))                 # the highest number; NaN where there is one
    return "NaN" if math.isnan(top) else "+∞" if infinity and top == math.inf else ""


def size_of(nbytes: float) -> str:
    """Bytes as people read them: 999 B, 1.2 kB, 34.5 MB, 1.2 GB; a kB is 1000 B."""
    for unit in ("B", "kB", "MB"):
        if nbytes < 999.95:
            return f"{nbytes:.{0 if unit == 'B' else 1}f} {unit}"
        nbytes /= 1000
    return f"{nbytes:.1f} GB"


def _graph(root: Node | None) -> tuple[list[Node], set[Leaf]]:
    """The nodes behind `root` by age, and the leaves, with those that a checkpoint captured."""
    seen: set[Node] = set()
    leaves: set[Leaf] = set()
    queue: list[Any] = [root]
    while queue:
        node = queue.pop()
        if isinstance(node, Leaf):
            leaves.add(node)
        elif isinstance(node, Node) and node not in seen:
            seen.add(node)
            queue += sources(node)
    return sorted(seen, key=lambda node: node.id), leaves


def _residuals(node: Node, saved: Any) -> Iterator[tuple[str, Any, Leaf | None]]:
    """Every array that a node has saved: its name, itself, and the leaf that it is or views."""
    if saved is None:
        return
    plan = node.plan                                    # a checkpoint has none; it keeps its inputs
    named: Iterable[Any] = (zip(plan.names, plan.sources, saved) if plan else
                            (("inputs", ("args", None), x) for x in saved))
    static = ((name, ("static", None), x) for name, x in node.static.items())
    for name, (kind, at), value in [*named, *static]:
        if kind == "args" and isinstance(value, tuple):
            pairs = list(zip(value, node.parents))
        else:
            parent = node.parents[at] if kind == "arg" and at < len(node.parents) else None
            pairs = [(x, parent) for x in _flat(value)]
        for x, parent in pairs:
            if _is_array(x):
                yield name, x, _leaf_of(x, parent)


def _flat(value: Any) -> Iterator[Any]:
    if isinstance(value, tuple | list):
        for x in value:
            yield from _flat(x)
    else:
        yield value


def _is_array(x: Any) -> bool:
    try:
        return not isinstance(x, backend.of(x).scalar_types)
    except TypeError:
        return False


def _owner(array: Any) -> Any:
    return backend.of(array).owner(array)


def _leaf_of(array: Any, parent: Node | None) -> Leaf | None:
    """The leaf whose memory this residual, parent's value, lies in."""
    leaf, memory = leaf_under(parent), _owner(array)
    if leaf is None or leaf is parent:
        return leaf
    copied = memory is array or memory.nbytes < _nbytes(leaf)          # the op of the view had to
    return None if copied else leaf


def _nbytes(leaf: Leaf) -> int:
    return math.prod(leaf.shape) * leaf.dtype.itemsize


def _by_op(rows: list[Row]) -> list[Row]:
    """The rows of each op as one, the op that keeps most first."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.op, []).append(row)
    merged = []
    for op, group in groups.items():
        keeps = dict.fromkeys(name for row in group for name in row.keeps)
        shares = dict.fromkeys(name for row in group for name in row.shares if name not in keeps)
        kept = sum(row.kept for row in group)
        merged.append(Row(op, len(group), None, tuple(keeps), tuple(shares), kept))
    return sorted(merged, key=lambda row: (-row.kept, row.op))


def _brackets(shape: Any) -> str:
    """[4, 64]; of several outputs 2 × [4, 64], or one after the other where they differ."""
    if not (shape and isinstance(shape[0], tuple)):
        return str(list(shape))
    if len(set(shape)) == 1:
        return f"{len(shape)} × {list(shape[0])}"
    return " ".join(str(list(s)) for s in shape)
