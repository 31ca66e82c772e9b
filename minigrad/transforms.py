"""Functions that transform functions; their names and meaning are those of JAX.

They are grad, value_and_grad, vjp, jvp, hvp, jacobian, hessian and checkpoint; `gradients` is
PyTorch's torch.autograd.grad. Arguments are Tensors, arrays or numbers; results are Tensors. Calls
can be nested: inside a function that is being differentiated every result is differentiable, also
with respect to values that the function captured.
"""
from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from numbers import Real
from typing import Any

from . import backend, random
from .axes import whole
from .engine.graph import Leaf, Node, Walk, backprop, no_grad, recording, state
from .engine.live import differentiating
from .engine.making import asarray
from .engine.saved import unshared
from .engine.tensor import Tensor
from .engine.touched import touching
from .errors import DTypeError, GraphError, ShapeError
from .hints import instead
from .ops.reduce import sum
from .ops.shape import concat, identity, reshape


def _constant(x: Any) -> Tensor:
    return x if isinstance(x, Tensor) else Tensor(asarray(x))


def _has_node(x: Any) -> bool:
    return isinstance(x, Tensor) and x.node is not None


def _zeros(like: Tensor) -> Tensor:
    here = backend.of(like.array)
    here.at(like.array)
    return Tensor(here.zeros_like(like.array))


@instead
def gradients(output: Tensor, inputs: Tensor | Iterable[Tensor], cotangent: Any = None, *,
              create_graph: bool = False, retain_graph: bool = False) -> tuple[Tensor, ...]:
    """The gradients of `output` with respect to `inputs`, leaves or results; no `.grad` changes.

    This is torch.autograd.grad. inputs: one Tensor or several; the result is a tuple in either
    case, with zeros for inputs that output does not depend on. cotangent: has output's shape; it
    may be left out for a scalar. create_graph: the gradients can be differentiated again.
    retain_graph: the graph is kept, so that it can be used for another backward pass. GraphError if
    output or an input requires no gradient, or if there are no inputs; TypeError for an argument
    that is not a Tensor.
    """
    if not isinstance(output, Tensor):
        raise TypeError(f"gradients: output is a {type(output).__name__}; one Tensor is needed")
    if not isinstance(inputs, (Tensor, Iterable)):
        raise TypeError(f"gradients: inputs is a {type(inputs).__name__}; pass one Tensor or a "
                        "list, such as list(model.parameters())")
    wanted = (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)
    for i, x in enumerate(wanted):
        if not isinstance(x, Tensor):
            raise TypeError(f"gradients: inputs[{i}] is a {type(x).__name__}; pass Tensors, such "
                            "as list(model.parameters())")
        if x.node is None:
            raise GraphError(f"gradients: inputs[{i}] requires no gradient")
    if not wanted:
        raise GraphError("gradients: there are no inputs; a generator can be read only once: "
                         "pass list(model.parameters())")
    if output.node is None:
        raise GraphError("gradients: nothing that output was computed from requires a gradient")
    return _gradients(output, wanted, cotangent, create_graph, retain_graph)


def _gradients(output: Tensor, inputs: Sequence[Tensor], cotangent: Any, create_graph: bool,
               retain_graph: bool) -> tuple[Tensor, ...]:
    """`gradients` without its checks; the output may be a constant."""
    if output.node is None:
        return tuple(_zeros(x) for x in inputs)
    seed = output.seed(cotangent)
    wanted = [x.node for x in inputs if x.node]
    found = backprop(output.node, seed if create_graph else seed.array, wanted,
                     create_graph=create_graph, retain_graph=retain_graph)
    return tuple(_result(found, x, create_graph) for x in inputs)


def _result(found: dict[Node, Any], x: Tensor, live: bool) -> Tensor:
    assert x.node is not None
    if x.node not in found:
        return _zeros(x)
    g, fresh = found[x.node]
    found[x.node] = (g, False)                          # if x occurs twice, copy it the next time
    return g if live else Tensor(g if fresh else backend.of(g).array(g))


def vjp(f: Callable[..., Any], *primals: Any, has_aux: bool = False) -> Any:
    """f(*primals) and its pullback: cotangent of the value -> cotangents of the primals.

    The pullback may be called many times. If a primal is a tree of Tensors (see `value_and_grad`),
    its cotangent is such a tree too. has_aux: f returns (value, anything), and the result is
    (value, pullback, anything).
    """
    leaves, rebuilt = _flat(primals, True)
    aux: list[Any] = []
    y, pull = _vjp(_of_leaves(f, rebuilt, aux if has_aux else None), list(map(unshared, leaves)))
    if y.node is None:
        aux = list(map(_detached, aux))
    return y, lambda g: rebuilt(pull(g, True)), *aux


def _of_leaves(f: Callable[..., Any], rebuilt: Callable[..., Any],
               aux: list[Any] | None = None) -> Callable[..., Tensor]:
    """f as a function of the leaves of its arguments.

    aux: a list that receives the second part of f's result.
    """
    def of_leaves(*leaves: Any) -> Tensor:
        made = f(*rebuilt(leaves))
        if aux is None:
            return made
        if not isinstance(made, tuple) or len(made) != 2:
            raise TypeError("has_aux: the function must return (value, anything); it returned a "
                            f"{type(made).__name__}")
        aux[:] = made[1:]
        return made[0]

    return of_leaves


def _vjp(f: Callable[..., Tensor],
         primals: Sequence[Any]) -> tuple[Tensor, Callable[[Any, bool], tuple[Tensor, ...]]]:
    nested = state.recording and (state.depth > 0 or any(map(_has_node, primals)))
    roots = []
    with differentiating():
        for x in map(_constant, primals):               # new nodes: one Tensor may be passed twice
            roots.append(Tensor(x.array).requires_grad_() if x.node is None else identity(x))
        y = f(*roots)
    if not isinstance(y, Tensor):
        raise TypeError(f"the function must return a Tensor; it returned a {type(y).__name__}")

    def pull(g: Any, again: bool) -> tuple[Tensor, ...]:
        live = state.recording and (nested or state.depth > 0 or _has_node(g))
        return _gradients(y, roots, g, live, again)

    return (y if nested else y.detach()), pull


def _check_function(name: str, f: Any) -> None:
    """Raise TypeError if f, the argument of the transform `name`, cannot be called."""
    if not callable(f):
        raise TypeError(f"{name} takes a function, not a {type(f).__name__}; for the gradient of a "
                        "value that is already computed call mg.gradients(value, inputs)")


def _positions(argnums: int | Sequence[int]) -> tuple[int, ...]:
    """The numbers of the arguments with respect to which f is differentiated, as a tuple of ints.

    ShapeError for a Tensor: PyTorch's functions take the argument itself here.
    """
    if isinstance(argnums, Tensor):
        raise ShapeError("argnums must be an integer, or a tuple of integers, not a Tensor; the "
                         "arguments come in a second call: mg.grad(f)(x)")
    given = whole(argnums, "argnums")
    return (given,) if isinstance(given, int) else given


def _partial(f: Callable[..., Tensor], args: Sequence[Any],
             at: tuple[int, ...]) -> Callable[..., Tensor]:
    """f as a function of the arguments at the given positions."""

    def g(*chosen: Any) -> Tensor:
        full = list(args)
        for i, x in zip(at, chosen):
            full[i] = x
        return f(*full)

    return g


def _is_array(x: Any) -> bool:
    """Whether a list or tuple holds only numbers, nested or not; it is then one array."""
    return isinstance(x, list | tuple) and all(isinstance(y, Real) or _is_array(y) for y in x)


def _flat(tree: Any, arguments: bool = False) -> tuple[list[Any], Callable[[Iterable[Any]], Any]]:
    """The leaves of nested dicts, lists and tuples, and a function from leaves to such a tree.

    arguments: the tree is a tuple of arguments, which is never one array, even if it holds only
    numbers.
    """
    if not arguments and (not isinstance(tree, dict | list | tuple) or _is_array(tree)):
        return [tree], lambda leaves: next(iter(leaves))
    parts = [_flat(x) for x in (tree.values() if isinstance(tree, dict) else tree)]

    def rebuilt(leaves: Iterable[Any]) -> Any:
        them = iter(leaves)
        made = [again(them) for _, again in parts]
        if isinstance(tree, dict):
            return dict(zip(tree, made))
        return type(tree)(*made) if hasattr(tree, "_fields") else type(tree)(made)

    return [leaf for some, _ in parts for leaf in some], rebuilt


def _detached(tree: Any) -> Any:
    """The same tree, in which each Tensor is detached."""
    leaves, rebuilt = _flat(tree)
    return rebuilt(x.detach() if isinstance(x, Tensor) else x for x in leaves)


def value_and_grad(f: Callable[..., Any], argnums: int | Sequence[int] = 0, *,
                   has_aux: bool = False) -> Callable[..., Any]:
    """x -> (f(x), ∇f(x)) for a scalar f; a tuple of gradients when argnums is a sequence.

    An argument may be a tree: a dict, a list or a tuple of Tensors, also nested. Its gradient is
    then such a tree too. Keyword arguments are passed to f. has_aux: f returns (value, anything),
    and the new function returns ((f(x), anything), ∇f(x)). ShapeError if f's value is not a scalar.
    """
    _check_function("grad", f)
    at, alone = _positions(argnums), isinstance(whole(argnums, "argnums"), int)

    def df(*args: Any, **settings: Any) -> Any:
        leaves, rebuilt = _flat(tuple(args[i] for i in at), True)
        aux: list[Any] = []
        chosen = _partial(partial(f, **settings), args, at)
        y, pull = _vjp(_of_leaves(chosen, rebuilt, aux if has_aux else None), leaves)
        if y.shape != ():
            raise ShapeError(f"grad needs a function that returns a scalar; this one returned "
                             f"{y.dtype}{list(y.shape)}: use vjp or jacobian, or sum()")
        grads = rebuilt(pull(None, False))
        if has_aux and y.node is None:                  # nothing differentiates this call
            aux = [_detached(x) for x in aux]
        return (y, *aux) if has_aux else y, grads[0] if alone else grads

    return df


def grad(f: Callable[..., Any], argnums: int | Sequence[int] = 0, *,
         has_aux: bool = False) -> Callable[..., Any]:
    """x -> ∇f(x) for a scalar f; it can be nested, as in grad(grad(f)).

    The arguments are those of `value_and_grad`. has_aux: f returns (value, anything), and the new
    function returns (∇f(x), anything). ShapeError if f's value is not a scalar.
    """
    both = value_and_grad(f, argnums, has_aux=has_aux)

    def df(*args: Any, **settings: Any) -> Any:
        made, grads = both(*args, **settings)
        return (grads, made[1]) if has_aux else grads

    return df


def _like(what: str, primals: Sequence[Any], tangents: Sequence[Any]) -> list[Tensor]:
    """The tangents as Tensors; a number gets the dtype of its primal.

    TypeError, ShapeError or DTypeError unless each has the shape and dtype of its primal.
    """
    for name, given in (("primals", primals), ("tangents", tangents)):
        if not isinstance(given, list | tuple):
            raise TypeError(f"{what}: {name} must be a tuple or a list with one element for each "
                            f"argument of f, as in mg.{what}(f, (x,), (t,)), not a "
                            f"{type(given).__name__}")
    if len(primals) != len(tangents):
        raise ShapeError(f"{what}: there are {len(primals)} primals and {len(tangents)} tangents; "
                         "each primal needs one tangent")
    primals, tangents = (_flat(tuple(given), True)[0] for given in (primals, tangents))
    if len(primals) != len(tangents):
        raise ShapeError(f"{what}: there are {len(primals)} Tensors among the primals, and "
                         f"{len(tangents)} among the tangents")
    out = []
    for i, (x, t) in enumerate(zip(map(_constant, primals), tangents)):
        if not isinstance(t, Tensor) and not hasattr(t, "dtype"):
            here = backend.of(x.array)
            t = Tensor(here.adopt(t, dtype=x.dtype))
        t = _constant(t)
        if t.shape != x.shape or t.dtype != x.dtype:
            kind = ShapeError if t.shape != x.shape else DTypeError
            raise kind(f"{what}: tangents[{i}] is {t.dtype}{list(t.shape)}, but primals[{i}] is "
                       f"{x.dtype}{list(x.shape)}")
        out.append(t)
    return out


def _inner(some: Sequence[Tensor], others: Sequence[Tensor]) -> Any:
    """⟨some, others⟩: the sum of all products of elements, over all pairs of Tensors."""
    total: Any = None
    for a, b in zip(some, others):
        term = sum(a * b)
        total = term if total is None else total + term
    return total


def jvp(f: Callable[..., Tensor], primals: Sequence[Any],
        tangents: Sequence[Any]) -> tuple[Tensor, Tensor]:
    """f(primals) and J·tangents, by transposing twice   (reverse.8).

    u ↦ Jᵀu is linear, and its transpose is J. primals, tangents: tuples or lists with one element
    for each argument of f. ShapeError or DTypeError for a tangent whose shape or dtype differs from
    its primal's.
    """
    directions = _like("jvp", primals, tangents)
    y, pull = vjp(f, *primals)
    zero = _zeros(y)

    def transposed(u: Tensor) -> Tensor:                # ⟨Jᵀu, tangents⟩: a scalar, linear in u
        return _inner(_flat(pull(u), True)[0], directions)

    if y.node is None:
        return y, grad(transposed)(zero)
    with differentiating():                             # the tangent depends on the primals as well
        return y, grad(transposed)(zero)


def hvp(f: Callable[..., Tensor], primals: Sequence[Any],
        tangents: Sequence[Any]) -> tuple[Tensor, ...]:
    """H·tangents for a scalar f, without building H: ∇⟨∇f, tangents⟩   (reverse.9).

    H is f's Hessian with respect to all primals together. primals, tangents: tuples or lists with
    one element for each argument of f; if an argument is a tree (see `value_and_grad`), so is its
    part of the result. ShapeError or DTypeError for a tangent whose shape or dtype differs from its
    primal's.
    """
    fixed = _like("hvp", primals, tangents)
    leaves, rebuilt = _flat(tuple(primals), True)
    at, f = tuple(range(len(leaves))), _of_leaves(f, rebuilt)

    def slope(*xs: Any) -> Tensor:                      # ⟨∇f(x), tangents⟩
        return _inner(grad(f, at)(*xs), fixed)

    return rebuilt(grad(slope, at)(*leaves))


def jacobian(f: Callable[..., Tensor], argnums: int = 0) -> Callable[..., Tensor]:
    """x -> ∂f/∂x of shape (*f(x).shape, *x.shape), by reverse mode   (reverse.10).

    Row i of the Jacobian is Jᵀeᵢ, so each element of f(x) costs one backward pass.
    """
    _check_function("jacobian", f)
    (argnums,) = _positions(argnums)

    def df(*args: Any) -> Tensor:
        x = _constant(args[argnums])
        y, pull = vjp(_partial(f, args, (argnums,)), x)
        n = y.numel()
        here = backend.of(y.array)
        here.at(y.array)
        rows = [reshape(pull(Tensor(here.reshape(row, y.shape)))[0], shape=(1, *x.shape))
                for row in here.eye(n, dtype=y.dtype)]
        if not rows:
            return Tensor(here.zeros((*y.shape, *x.shape), dtype=x.dtype))
        return reshape(concat(rows, axis=0), shape=(*y.shape, *x.shape))

    return df


def hessian(f: Callable[..., Tensor], argnums: int = 0) -> Callable[..., Tensor]:
    """x -> the matrix of second derivatives of a scalar f, the Jacobian of ∇f   (reverse.10).

    Its shape is (*x.shape, *x.shape).
    """
    return jacobian(grad(f, argnums), argnums)


class Checkpoint:
    """A function as one node, which saves only its inputs for backward   (reverse.7).

    The values inside are not saved; the backward pass computes them again when it reaches the node.
    """

    variadic = view = False
    hooks = ()

    def __init__(self, f: Callable[..., Tensor]) -> None:
        _check_function("checkpoint", f)
        self.f, self.shown = f, f"checkpoint({getattr(f, '__name__', type(f).__name__)})"

    def __call__(self, *args: Any) -> Tensor:
        drawn = random.get_state()
        with no_grad(), touching() as leaves:           # which leaves f reads, for `pullback`
            out = self.f(*args)
        if not isinstance(out, Tensor):
            raise TypeError(f"{self.shown}: the function must return one Tensor; it returned a "
                            f"{type(out).__name__}")
        if not state.recording:
            return out
        nodes = tuple(a.node if isinstance(a, Tensor) else None for a in args)
        were_tensors = tuple(isinstance(a, Tensor) for a in args)
        arrays = tuple(a.array if isinstance(a, Tensor) else unshared(a) for a in args)
        saved = (arrays, were_tensors, drawn, [(leaf, leaf.version) for leaf in leaves])
        return Tensor(out.array, Node(self, None, nodes, saved, {}, out.shape, out.dtype))

    def captured(self, node: Node) -> list[Leaf]:
        """The leaves that the function read."""
        return [leaf for leaf, _ in node.saved[-1]] if node.saved else []

    def pullback(self, node: Node, saved: Any, g: Any, walk: Walk) -> None:
        arrays, were_tensors, drawn, leaves = saved
        if any(leaf.version != then for leaf, then in leaves):
            raise GraphError(f"{node}: an argument or a captured value was changed after it was "
                             "used; run forward again")
        args = [Tensor(a, p) if t else a for a, t, p in zip(arrays, were_tensors, node.parents)]
        with recording(True), random.replaying(drawn):
            out = self.f(*args)
        if out.node is not None:
            walk.send(out.node, g)                      # backward goes on through the new nodes


def checkpoint(f: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """f, but only its inputs are saved: the backward pass computes the values inside f again.

    This is gradient checkpointing (Chen et al. 2016). Parameters that f captured get their
    gradients as well, and dropout draws the same masks again. f returns one Tensor. GraphError if a
    leaf, an argument of f or captured, was changed between the forward and the backward pass.
    """
    return Checkpoint(f)
