"""Tools that show what a graph saves, where NaN comes from, and which saved array was changed.

    from minigrad.debug import detect_anomaly, detect_writes, explain
    print(explain(loss))                # a line for each kind of op; nodes=True: for each node
    with detect_anomaly():              # a GraphError names the op that produces NaN
        model.loss(ids, targets).backward()
    with detect_writes():               # a GraphError names the saved array that was changed
        model.loss(ids, targets).backward()
"""
from __future__ import annotations

import contextlib
import math
import threading
import weakref
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
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
from .locks import lock
from .transforms import Checkpoint


class Row(NamedTuple):
    """One row of the table: all nodes of an op, or one node.

    nodes: the number of nodes. shape: the shape of the node's output; None for an op. keeps: the
    names of the residuals whose memory is counted in this row. shares: the names of the residuals
    whose memory is counted elsewhere (as a leaf's, or in the row of an older node). kept: bytes.
    """

    op: str
    nodes: int
    shape: Any
    keeps: tuple[str, ...]
    shares: tuple[str, ...]
    kept: int


class Residual(NamedTuple):
    """An array that a node saves for backward.

    nbytes: the bytes that it keeps from being freed; for a view these are those of the whole array.
    """

    op: str
    name: str
    shape: tuple[int, ...]
    dtype: str
    nbytes: int


@dataclass
class Explanation:
    """The graph of a Tensor in numbers and names; it holds no node and no array.

    ops: the number of nodes of each op. kept: the bytes that only the backward pass needs; shared
    memory counts once. leaves: the bytes of all leaves. shared: the bytes of leaves that are
    residuals too; `kept` does not contain these. leaf_count: the number of leaves. largest: the
    largest residuals. gone: the number of nodes whose residuals a backward pass has freed. str() of
    it is a table.
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
        """The number of recorded calls of ops; leaves do not count."""
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
            text.append("(…): memory of a leaf, or memory that an older node keeps; "
                        "it is not counted again")
        text.append(f"{self.nodes} nodes keep {size_of(self.kept)}; {self.leaf_count} leaves hold "
                    f"{size_of(self.leaves)}, and {size_of(self.shared)} of that is kept as well")
        text += [f"{'largest:' if i == 0 else '':8} {size_of(r.nbytes):>8}  {r.op}, {r.name} "
                 f"{r.dtype}{list(r.shape)}" for i, r in enumerate(self.largest)]
        if self.gone:
            text.append(f"{self.gone} nodes have had their backward pass already, "
                        "and their residuals were freed")
        return "\n".join(text)


def explain(tensor: Tensor, *, nodes: bool = False) -> Explanation:
    """The graph of `tensor`: its ops, and how many bytes they save for backward.

    nodes=True: the table has a row for each node, in the order of their creation; otherwise it has
    a row for each op. An array counts once, at the oldest node that saves it, with all the memory
    that it keeps from being freed. The memory of a leaf does not count, but that of a constant
    does. (A view of a copy of a leaf, such as w.T.reshape(-1), may wrongly be counted as the
    leaf's.) TypeError for a value that is not a Tensor.
    """
    if not isinstance(tensor, Tensor):
        raise TypeError(f"explain: this is a {type(tensor).__name__}; pass the last Tensor of the "
                        "graph, such as the loss")
    out = Explanation()
    order, leaves = _graph(tensor.node)
    held = [(node, list(_residuals(node, node.saved))) for node in order]
    owned, shared = set(), set()            # memory of leaves, and the leaves that are residuals
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
    """Inside the block a GraphError names the op that produced NaN or +∞, and its module.

    It is the first recorded op whose result holds NaN or +∞, or whose rule computes NaN. −∞ is
    allowed, because masks use it. Gradients in float16 are not checked, because loss scaling
    handles their overflow. For a checkpointed function only the result is checked. Other threads
    are not checked. This is slow: on a GPU the host waits for every result. PyTorch has
    torch.autograd.detect_anomaly.
    """
    _watching.anomalies += 1
    try:
        with _replaced(*_ANOMALIES):
            yield
    finally:
        _watching.anomalies -= 1


@contextlib.contextmanager
def detect_writes() -> Iterator[None]:
    """Inside the block a GraphError names the op whose saved array was changed before backward.

    A plain array is copied when it is saved for backward, and a leaf counts the changes by an
    optimiser or `assign`. But a program can also change an array whose memory a Tensor shares: the
    array of `Tensor(array)`, `from_dlpack` or `x.array`, or the detached view of a leaf. The engine
    does not see this; here a checksum of every saved array is computed and compared. It is slow:
    each array is read twice, and copied from the GPU first.
    """
    own: _Sums = weakref.WeakKeyDictionary()
    _watching.sums = (*_watching.sums, own)
    try:
        with _replaced(*_WRITES):
            yield
    finally:
        _watching.sums = tuple(sums for sums in _watching.sums if sums is not own)


_Sums = weakref.WeakKeyDictionary[Node, list[int]]


class _Watching(threading.local):
    """For the open blocks of this thread: how many look for anomalies, and checksums by node."""

    anomalies = 0
    sums: tuple[_Sums, ...] = ()


_watching = _Watching()
_patching = lock()
_open = Counter[Any]()                                  # blocks that are open, in all threads
_Method = tuple[type, str, Callable[..., Any], Callable[..., Any]]


@contextlib.contextmanager
def _replaced(*methods: _Method) -> Iterator[None]:
    """Inside the block methods of the engine are replaced, in all threads.

    methods: for each its class, its name, the method itself, and what replaces it.
    """
    with _patching:
        _open[methods] += 1
        for owner, name, _, ours in methods:
            setattr(owner, name, ours)
    try:
        with explicit():                                # the fast path does not call these methods
            yield
    finally:
        with _patching:
            _open[methods] -= 1
            if not _open[methods]:
                for owner, name, own, _ in methods:
                    setattr(owner, name, own)


_record, _send, _init, _pullback, _replay = (
    Op._record, Op._send, Node.__init__, Op.pullback, Checkpoint.pullback)


def _checked_record(op: Op, args: Any, nodes: Any, out: Any, *rest: Any) -> Node:
    """`Op._record`; GraphError for a result that holds NaN or +∞."""
    if _watching.anomalies and out is not None and (bad := _anomaly(out, infinity=True)):
        arrays = [a.array if isinstance(a, Tensor) else a for a in args]
        before = [f"{refusals.arg(op, i)} holds {b}" for i, a in enumerate(arrays)
                  if hasattr(a, "dtype") and (b := _anomaly(a, infinity=True))]
        cause = f"because {' and '.join(before)}" if before else "but no input does"
        raise GraphError(f"{op.shown}: {refusals.described(op, arrays)}: the result holds "
                         f"{bad}, {cause}")
    return _record(op, args, nodes, out, *rest)


def _checked_send(op: Op, node: Node, i: int, part: Any, g: Any, walk: Walk) -> None:
    """`Op._send`; GraphError for a gradient that holds NaN."""
    if _watching.anomalies:
        array = part.array if isinstance(part, Tensor) else part
        parent = node.parents[i]
        assert parent is not None
        if str(parent.dtype) != "float16" and (bad := _anomaly(array, infinity=False)):
            raise GraphError(f"backward of {node}: ∂{op.shown}/∂{refusals.arg(op, i)} holds {bad}")
    _send(op, node, i, part, g, walk)


_ANOMALIES: tuple[_Method, ...] = ((Op, "_record", _record, _checked_record),
                                   (Op, "_send", _send, _checked_send))


def _summed(node: Node, saved: Any) -> list[int]:
    return [zlib.crc32(backend.of(x).host(x).tobytes()) for _, x, _ in _residuals(node, saved)]


def _summed_init(node: Node, *args: Any, **named: Any) -> None:
    """`Node.__init__`, and the checksums of what the node has saved."""
    _init(node, *args, **named)
    if _watching.sums:
        _watching.sums[-1][node] = _summed(node, node.saved)


def _compared_pullback(op: Any, node: Node, saved: Any, *rest: Any) -> None:
    """The op's `pullback`; GraphError if a saved array is not what it was."""
    for sums in _watching.sums:
        if node in sums:                                # nodes made before the block have no sums
            residuals = _residuals(node, saved)
            for (name, x, _), then, now in zip(residuals, sums[node], _summed(node, saved)):
                if then != now:
                    raise GraphError(f"backward of {node}: {name}, {x.dtype}{list(x.shape)}, was "
                                     "saved for backward and has been changed since then; pass a "
                                     "copy to the op, or change the array after backward()")
    (_replay if isinstance(op, Checkpoint) else _pullback)(op, node, saved, *rest)


_WRITES: tuple[_Method, ...] = ((Node, "__init__", _init, _summed_init),
                                (Op, "pullback", _pullback, _compared_pullback),
                                (Checkpoint, "pullback", _replay, _compared_pullback))


def _anomaly(array: Any, infinity: bool) -> str:
    """"NaN" or "+∞" if the array holds one; "" if not."""
    if array.dtype.kind not in FLOATS or array.size == 0:
        return ""
    xp = backend.of(array)
    xp.at(array)
    top = float(xp.host(xp.max(array)))                 # NaN if the array holds one
    return "NaN" if math.isnan(top) else "+∞" if infinity and top == math.inf else ""


def size_of(nbytes: float) -> str:
    """A number of bytes as text: 999 B, 1.2 kB, 34.5 MB, 1.2 GB; a kB is 1000 B."""
    for unit in ("B", "kB", "MB"):
        if nbytes < 999.95:
            return f"{nbytes:.{0 if unit == 'B' else 1}f} {unit}"
        nbytes /= 1000
    return f"{nbytes:.1f} GB"


def _graph(root: Node | None) -> tuple[list[Node], set[Leaf]]:
    """The nodes from which `root` was computed, the oldest first, and the leaves.

    The leaves that a checkpoint captured are included.
    """
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
    """Every array that a node has saved: its name, the array, and the leaf whose memory it is."""
    if saved is None:
        return
    plan = node.plan                                    # a checkpoint has none; it saves its inputs
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
    """The leaf whose memory holds this residual, which is the value of `parent`."""
    leaf, memory = leaf_under(parent), _owner(array)
    if leaf is None or leaf is parent:
        return leaf
    copied = memory is array or memory.nbytes < _nbytes(leaf)          # the view's op made a copy
    return None if copied else leaf


def _nbytes(leaf: Leaf) -> int:
    return math.prod(leaf.shape) * leaf.dtype.itemsize


def _by_op(rows: list[Row]) -> list[Row]:
    """The rows of each op merged into one; the op that saves most comes first."""
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
    """A shape as text: [4, 64]; for several outputs 2 × [4, 64], or a list if they differ."""
    if not (shape and isinstance(shape[0], tuple)):
        return str(list(shape))
    if len(set(shape)) == 1:
        return f"{len(shape)} × {list(shape[0])}"
    return " ".join(str(list(s)) for s in shape)
