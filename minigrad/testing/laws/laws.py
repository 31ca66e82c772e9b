"""The laws of differentiable array code, each a function of one Run.

A Run is a subject with an example, a dtype and a device. A law returns the share of its bound that
the error uses (0 … 1; 0 for a law without a bound). It raises Broken if it does not hold, and
NotApplicable, with the reason, if it does not apply to the subject. `LAWS` lists all laws.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import numpy as np

from ... import backend
from ...backend.base import half
from ...engine.fast import explicit
from ...engine.tensor import Tensor
from ...errors import DeviceError, DTypeError
from ...transforms import gradients, jvp
from .quotient import quotient
from .reference import Reference, rms
from .run import Run
from .subject import Broken, NotApplicable, NotSettled, Subject, host, pulled
from .tolerance import WIDE, complex_step, eps

LAWS: dict[str, Callable[[Run], float]] = {}
# the number of derivatives of the oracle or the function that a law needs
DERIVATIVES = {"adjoint": 1, "second_adjoint": 2, "third_adjoint": 3}
F = TypeVar("F", bound=Callable[..., float])


def law(f: F) -> F:
    """Add f to LAWS under its name."""
    LAWS[f.__name__] = f
    return f


# ── what an op computes ──
@law
def value(run: Run) -> float:
    """The value equals that of an independent definition, computed in the widest float.
    Its dtype, device and array type are those of the inputs."""
    if (oracle := run.subject.oracle) is None:
        raise NotApplicable("no oracle was given")
    run.differentiable()
    y = run.y
    run.kind(y, run.result_dtype(), "the value")
    wide = oracle(*run.wide, **run.example.settings)
    margins = run.margins()
    return run.compare("the value", y, wide, scale=run.scale(wide),
                       allowed=margins[0] if margins else None)


@law
def rounded(run: Run) -> float:
    """Value and VJP equal those of a wider float at the same numbers, apart from rounding.
    Each number is judged by itself, and all of them together."""
    run.differentiable()
    reference = run.reference() if run.widest(run.subject) != run.dtype else None
    if reference is None:
        raise NotApplicable("it does not compute in a wider float")
    if not reference.fits:
        raise NotApplicable("the results do not fit into the dtype")
    used = 0.0
    for i, r in enumerate(_found(run, reference)):
        what = "the value" if i == 0 else f"gradient {i - 1}"
        numbers = host(r).astype(WIDE)
        if reference.elementwise[i] and np.isinf(numbers).any() and not np.isnan(numbers).any() \
                and run.subject.definition is None:
            raise NotApplicable("an intermediate value overflows, and without a definition it is "
                                "unknown whether it may")
        used = max(used, run.beside(reference, i, f"{what} in {run.dtype}", r))
    return used


def _found(run: Run, reference: Reference) -> list[Any]:
    """The value, and the gradients if both the run and the reference have them."""
    found = [run.y]
    if len(reference.results) > 1 and run.finite:
        run.walked()
        found += run.grads
    return found[:len(reference.results)]


@law
def adjoint(run: Run, order: int = 1) -> float:
    """⟨u, J v⟩ = ⟨Jᵀ u, v⟩: the VJP is the transpose of the derivative.

    J v is computed in the widest float: from the oracle by complex step, or without an oracle from
    the function itself by a difference of order 6.
    """
    run = run.of_order(order)
    y, grads, u = run.walked()
    oracle = run.subject.oracle
    if oracle is None:
        run.needs_finite()
    directions = [run.draw.uniform(-1.0, 1.0, a.shape).astype(run.dtype) for a in run.arrays]
    moves = [d.astype(WIDE) for d in directions]
    margins = run.margins() if order == 1 else None
    error: Any = 0.0
    if oracle is not None:
        settings = run.example.settings
        along = complex_step(
            lambda h: oracle(*[x + h * v for x, v in zip(run.wide, moves)], **settings))
    else:
        along, error, unclear = quotient(run, moves)
        if 2 * np.count_nonzero(unclear) > along.size:
            # a function of 16 bits may compute in float32 even if its arguments are wider
            raise (NotApplicable if half(run.dtype) else NotSettled)(
                "a difference quotient does not settle: a kink is near, or the value rounds more "
                "coarsely than its dtype")
        if unclear.any():                           # a cotangent of 0 leaves these results out
            u = np.where(unclear, 0, u).astype(u.dtype)
            along, error = np.where(unclear, 0.0, along), np.where(unclear, 0.0, error)
            grads = run.pull(u)
    w = u.astype(WIDE)
    left = np.sum(w * along)
    right = sum((np.sum(host(g).astype(WIDE) * v) for g, v in zip(grads, moves)), WIDE(0))
    noise, what = float(np.sum(np.abs(w) * error)), "⟨Jᵀu, v⟩ against ⟨u, Jv⟩"
    if margins is not None and len(margins) > 1 and all(np.isfinite(m).all() for m in margins):
        allowed = float(np.sum(np.abs(w * along))) * eps(run.coarse)
        allowed += sum(float(np.sum(np.abs(v) * m)) for v, m in zip(moves, margins[1:]))
        return run.compare(what, right, left, allowed=allowed + np.finfo(WIDE).tiny, noise=noise)
    # an inner product adds up the errors of all its terms
    scale = max([1, *(v.size for v in moves)]) * run.scale(y, along, *grads)
    try:
        return run.compare(what, right, left, scale=scale, noise=noise)
    except Broken:                  # perhaps the terms cancel, which makes rounding errors larger
        noise += 8.0 * run.erratic(u, moves)
        return run.compare(what, right, left, scale=scale, noise=noise)


@law
def linear(run: Run, order: int = 1) -> float:
    """Jᵀ(αu + βw) = α Jᵀu + β Jᵀw: the VJP is linear in its cotangent."""
    run = run.of_order(order)
    run.needs_gradient()
    y, first, u = run.walked()
    run.needs_finite()
    w = run.cotangent(y)
    a, b = 0.75, -1.5
    both = (run.dtype.type(a) * u + run.dtype.type(b) * w).astype(u.dtype)
    second, mixed = run.pull(w), run.pull(both)
    margins = run.margins() if order == 1 else None
    used = 0.0
    for i, (g, h, s) in enumerate(zip(first, second, mixed)):
        expected = a * host(g).astype(WIDE) + b * host(h).astype(WIDE)
        noise: Any = 0.0
        if margins is not None:
            # all three gradients are rounded, and the bound of w's may be larger than that of u's
            noise = 6.0 * np.maximum(margins[i + 1], rms(margins[i + 1]))
        share = run.compare(f"Jᵀ(αu + βw), argument {i}", s, expected, scale=run.scale(y, g, h),
                            noise=noise)
        used = max(used, share)
    return used


@law
def second_adjoint(run: Run) -> float:
    """The VJP is a function of the arguments and the cotangent; its own VJP is the transpose of its
    derivative."""
    return adjoint(run, 2)


@law
def second_linear(run: Run) -> float:
    """The VJP of the VJP is linear in its cotangent."""
    return linear(run, 2)


@law
def third_adjoint(run: Run) -> float:
    """The third derivative is right in one direction."""
    return adjoint(run, 3)


# ── what a gradient is ──
@law
def kind(run: Run) -> float:
    """The value has the dtype of the arguments, and each gradient has the shape, dtype, device and
    array type of its argument. So has a gradient computed with `create_graph=True`, and it equals
    the one computed without."""
    y, grads, _ = run.walked()
    run.kind(y, run.result_dtype(), "the value")
    live = run.pull(create_graph=True) if run.subject.function else ()
    for many in (grads, live):
        for i, g in enumerate(many):
            run.kind(g, run.dtype, f"gradient {i}", run.arrays[i].shape)
    used = 0.0
    for i, (g, h) in enumerate(zip(grads, live)):
        share = run.compare(f"gradient {i} with create_graph=True", h, g, scale=run.scale(*grads))
        used = max(used, share)
    return used


@law
def wanted(run: Run) -> float:
    """A gradient does not depend on which other gradients are computed."""
    run.needs_function()
    _, grads, u = run.walked()
    if len(grads) < 2:
        raise NotApplicable("it has one argument")
    used = 0.0
    for i, g in enumerate(grads):
        xs = run.leaves(only=i)
        y = run.call(xs)
        if y.node is None:
            continue                                # the function has no gradient in this argument
        (alone,) = gradients(y, [xs[i]], run.on_device(u))
        share = run.compare(f"gradient {i}, computed alone,", alone, g, scale=run.scale(*grads))
        used = max(used, share)
    return used


@law
def pure(run: Run) -> float:
    """The forward pass and the backward pass write to no input, constant or cotangent."""
    given = run.given()
    before = [host(a).copy() for a in given]
    _, _, u = run.walked()
    kept = u.copy()
    if run.subject.function and run.differentiable():
        run.pull(create_graph=True)
    for i, (a, b) in enumerate(zip([*map(host, given), u], [*before, kept])):
        if not np.array_equal(a, b, equal_nan=a.dtype.kind in "fc"):
            what = f"array {i}" if i < len(given) else "the cotangent"
            raise Broken(f"{what} was written to: {b.tolist()} became {a.tolist()}")
    return 0.0


@law
def alias(run: Run) -> float:
    """An op's value shares memory with no input, unless the op is declared as a view.
    No gradient shares memory with another array."""
    subject = run.subject
    if subject.function is None:
        raise NotApplicable("its arguments are plain arrays")
    xs = run.leaves()
    y = subject.function(*xs, **run.settings)
    outs = list(y) if isinstance(y, tuple) else [y]
    here, own = backend.of(xs[0].array), subject.op is not None and not subject.op.view
    inputs = [x.array for x in xs]

    def apart(what: str, array: Any, others: Sequence[Any]) -> None:
        if any(here.shares_memory(array, other) for other in others):
            raise Broken(f"{what} shares memory with another array")

    for i, out in enumerate(outs):
        if own:
            apart(f"result {i}", out.array, inputs)
        apart(f"result {i}", out.array, [o.array for o in outs[:i]])
    if not run.differentiable():
        return 0.0
    y = run.call(xs)
    seed = run.on_device(run.cotangent(y))
    seen = [*inputs, seed.array, *([y.array] if own else [])]
    for _ in range(2):
        for i, g in enumerate(gradients(y, xs, seed, retain_graph=True)):
            apart(f"gradient {i}", g.array, seen)
            seen.append(g.array)
    return 0.0


@law
def residuals(run: Run) -> float:
    """A node saves only those arguments, outputs and by-products that the rules of the wanted
    gradients name."""
    op = run.needs_op()
    run.needs_gradient()
    xs = run.leaves()
    y = op(*xs, **run.settings) if run.subject.function is op else run.call(xs)
    y = y[0] if isinstance(y, tuple) else y
    nodes, queue = [], [y.node]
    while queue:                                        # a case may call other ops as well
        node = queue.pop()
        if node is None or node.op is None:
            continue
        if node.op is op:
            nodes.append(node)
        queue += node.parents
    if not nodes:
        raise NotApplicable("the example records no node of this op")
    for node in nodes:
        asked = [i for i, p in enumerate(node.parents) if p is not None and not op.variadic]
        rules = [op.joint] if op.joint else [op.rules[op.args[i]] for i in asked]
        named = {n for r in rules for n in r.needs} - op.settings.keys()
        if op.definition is not None and any(op.source(n)[0] == "extra" for n in named):
            named |= set(op.args)                   # the op is run again for a second derivative
        held = {n for n, a in zip(node.plan.names, node.saved) if a is not None}
        if not held <= named or len(node.plan.names) != len(node.saved):
            raise Broken(f"{op.name} saves {sorted(held)}; its rules name {sorted(named)}")
        for name, saved in zip(node.plan.names, node.saved):
            if name.endswith(("_shape", "_shapes", "_dtype")) and hasattr(saved, "nbytes"):
                raise Broken(f"{op.name} saves an array as {name}")
        if stray := [k for k in node.static if k not in op.settings]:
            raise Broken(f"{op.name} saves settings that it does not have: {stray}")
    return 0.0


# ── what must be equal ──
@law
def parts(run: Run) -> float:
    """A fused op equals its unfused definition in value, VJP, Hessian-vector product and JVP."""
    definition = run.subject.definition
    if definition is None:
        raise NotApplicable("it has no unfused definition")
    unfused = Subject(run.subject.name, definition)
    used = 0.0
    run.differentiable()
    if (truth := run.reference(unfused)) is None or not truth.fits:
        raise NotApplicable("the results do not fit into the dtype")
    for i, found in enumerate(_found(run, truth)):
        what = "the value" if i == 0 else f"VJP, argument {i - 1}"
        used = max(used, run.beside(truth, i, what, found))
    if run.subject.function and run.y.requires_grad and run.ordinary():
        a, b = run.of_order(2), Run(unfused, run.example, run.dtype, run.device)
        b.cotangents = list(run.cotangents)
        b = b.of_order(2)
        _, grads, u = a.walked()
        b.cotangents = [u]
        _, wants, _ = b.walked()
        for i, (g, h) in enumerate(zip(grads, wants)):
            used = max(used, a.compare(f"HVP, argument {i}", g, h, scale=a.scale(*wants)))
    if run.subject.function is None:                    # plain arrays have no JVP
        return used
    xs = [run.on_device(a) for a in run.arrays]
    moves = [run.draw.uniform(-1.0, 1.0, a.shape).astype(run.dtype) for a in run.arrays]
    vs = [run.on_device(v) for v in moves]
    (_, one), (_, two) = (jvp(lambda *t, f=f: f(*t, **run.settings), xs, vs)
                          for f in (run.subject.function, definition))
    return max(used, run.of_order(2).compare("the JVP", one, two, scale=run.scale(two)))


def _elsewhere(run: Run, how: str, u: Any) -> None:
    """Broken if a function of plain arrays gives other numbers for arrays in another memory layout.

    The function may refuse such arrays with an error.
    """
    if not any(sum(n > 1 for n in a.shape) >= (2 if how == "F" else 1) for a in run.arrays):
        return
    assert run.subject.pull is not None
    try:
        found = [run.call(run.laid(how)), *pulled(run.subject.pull, u, run.laid(how), run.settings)]
    except Exception:
        return
    margins = run.margins()
    for i, (a, b) in enumerate(zip(found, [run.y, *run.grads])):
        what = f"{'the value' if i == 0 else f'gradient {i - 1}'} of arrays with another memory"
        run.compare(f"{what} layout ({how})", a, b, scale=run.scale(b),
                    allowed=2.0 * margins[i] if margins else None)


@law
def repeat(run: Run) -> float:
    """Two runs give the same bits, whatever is computed between them. Arrays with another memory
    layout give the same numbers. The engine's definition gives the same bits as its fast path."""
    def bits() -> list[bytes]:
        run.forget()
        y, grads, _ = run.walked()
        return [host(a).tobytes() for a in (y, *grads)]

    first = bits()
    if run.subject.function is None:
        assert run.subject.value is not None and run.subject.pull is not None
        u = run.cotangents[0]
        other = [np.array(a.reshape(-1)[::-1].reshape(a.shape)) for a in run.arrays]
        try:
            run.subject.value(*[a.copy() for a in other], **run.settings)
        except Exception:                           # it may refuse the reversed numbers
            other = run.arrays
        if first[1:] != [host(g).tobytes() for g in run.pull(u)]:
            raise Broken("the VJP depends on what was computed before it")
        buffers = [a.copy() for a in other]         # next: other numbers in the same memory
        run.subject.value(*buffers, **run.settings)
        run.subject.pull(u.copy(), *buffers, **run.settings)
        for buffer, a in zip(buffers, run.arrays):
            buffer[...] = a
        margins = run.margins()
        run.compare("the value of new numbers in the arrays of the last call",
                    run.call(buffers), run.y, scale=run.scale(run.y),
                    allowed=margins[0] if margins else None)
        for how in ("F", ("reversed", "strided")[run.example.seed % 2]):
            _elsewhere(run, how, u)
    if first != bits():
        raise Broken("a second run gave other bits")
    if run.subject.function is not None and not (half(run.dtype) and run.there.backend.takes_half):
        # a GPU kernel that accumulates in 16 bits rounds once; the definition rounds twice
        with explicit():
            if first != bits():
                raise Broken("the engine's definition gives other bits than its fast path")
    return 0.0


@law
def bare(run: Run) -> float:
    """Called with plain arrays, an op computes the same bits and returns plain arrays."""
    run.needs_op()
    f, xs = run.subject.function, run.leaves()
    assert f is not None
    out, same = f(*[x.array for x in xs], **run.settings), f(*xs, **run.settings)
    outs, sames = (y if isinstance(y, tuple) else [y] for y in (out, same))
    for a, b in zip(outs, sames):
        if type(a) is not type(b.array) or host(a).tobytes() != host(b).tobytes():
            raise Broken(f"plain arrays gave {a!r}, but Tensors gave {b!r}")
    return 0.0


@law
def torch(run: Run) -> float:
    """PyTorch has the same value, gradients, double gradients and dtypes for the same arrays."""
    theirs = run.subject.torch
    if theirs is None:
        raise NotApplicable("no function of PyTorch was given")
    try:
        import torch as library
    except ImportError:
        raise NotApplicable("PyTorch is not installed: pip install torch") from None
    return _torch(run, library, theirs)


def _torch(run: Run, torch: Any, theirs: Any) -> float:
    op = run.subject.op
    if half(run.dtype) and op is not None and op.widens and "dtype" not in run.example.settings:
        raise NotApplicable("the loss of 16-bit numbers is float32 here, and 16 bits in PyTorch")

    def given(a: Any) -> Any:
        if half(a.dtype):                               # PyTorch does not know ml_dtypes' bfloat16
            return torch.tensor(a.astype("float32")).to(getattr(torch, str(a.dtype)))
        return torch.tensor(np.array(a))

    def numbers(t: Any) -> Any:
        return (t.float() if t.dtype == torch.bfloat16 else t).numpy(force=True)

    ts = [given(a).requires_grad_() for a in run.arrays]
    t = theirs(torch, *ts, **run.example.settings)
    y = run.call(run.leaves())
    t = torch.cat([s.reshape(-1) for s in t]) if isinstance(t, tuple) else t
    if str(t.dtype).removeprefix("torch.") != str(y.dtype):
        raise Broken(f"the dtype is {y.dtype}, and PyTorch's is {t.dtype}")
    found = numbers(t)
    used = run.compare("the value against PyTorch's", y, found, scale=run.scale(found))
    if y.requires_grad != t.requires_grad:
        raise Broken(f"requires_grad is {y.requires_grad}, and PyTorch's is {t.requires_grad}")
    if not t.requires_grad:
        return used

    def slopes(of: Any, at: Any, seed: Any) -> Any:
        if not of.requires_grad:
            return [torch.zeros_like(x) for x in at]
        grads = torch.autograd.grad(of, at, seed, create_graph=True, allow_unused=True)
        return [torch.zeros_like(x) if g is None else g for x, g in zip(at, grads)]

    for order in range(1, run.subject.torch_orders + 1 if run.ordinary() else 2):
        here = run.of_order(order)
        _, grads, u = here.walked()
        seed = given(u).requires_grad_()
        wants = slopes(t, ts, seed)
        ts, t = [*ts, seed], torch.cat([s.reshape(-1) for s in wants])     # for the next order
        what, found = "gradient" if order == 1 else "double gradient", list(map(numbers, wants))
        for i, (g, w) in enumerate(zip(grads, found)):
            name = f"{what} {i} against PyTorch's"
            used = max(used, here.compare(name, g, w, scale=here.scale(*found)))
    return used


@law
def refusal(run: Run) -> float:
    """Wrong input is refused with an error of one line, whose type is the same on every device."""
    op = run.needs_op()
    xs = run.leaves()
    if not op.variadic:
        more = [1.0] * (len(op.args) + len(op.placed) + 1)
        run.expect(TypeError, lambda: op(*xs, *more), "too many arguments")
    run.expect(TypeError, lambda: op(*xs, no_such_setting=1), "an unknown setting")
    run.expect(TypeError, lambda: op("three", *xs[1:], **run.settings), "a string")
    if run.subject.function is not op:
        return 0.0
    other = "float32" if run.dtype == "float64" else "float64"
    floats = [i for i in range(len(xs)) if op.variadic or i in op.differentiable]
    for i in floats if len(floats) > 1 else ():
        mixed = [Tensor(x.array.astype(other)) if j == i else x for j, x in enumerate(xs)]
        run.expect(DTypeError, partial(op, *mixed, **run.settings), f"argument {i} as {other}")
    if run.device != "numpy" and len(xs) > 1:
        apart = [Tensor(a.astype(run.dtype)) if i else x
                 for i, (a, x) in enumerate(zip(run.arrays, xs))]
        run.expect(DeviceError, lambda: op(*apart, **run.settings), "arguments on two devices")
    for i in range(len(xs)):                        # one axis too many, whose length 7 is unique
        shape = (*run.arrays[i].shape, 7)
        ours = run.outcome(partial(op, *run.grown(i, shape, run.device), **run.settings))
        if run.device != "numpy":
            theirs = run.outcome(partial(op, *run.grown(i, shape, "numpy"), **run.example.settings))
            if ours is not theirs:
                raise Broken(f"argument {i} of shape {list(shape)}: {ours} on {run.device} "
                             f"but {theirs} on numpy")
    return 0.0
