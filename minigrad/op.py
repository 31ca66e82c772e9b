"""How an op is declared: a kernel, one rule per argument, and what backward keeps.

    @elementwise(a=lambda g, b: g * b, b=lambda g, a: g * a)
    def mul(xp, a, b): return a * b

A rule's signature is the list of residuals. It receives the cotangent `g` and then, by name, any of the op's arguments,
`out`, the shape of an argument (`a_shape`, which frees the data), the op's keyword-only settings, or extras that the
kernel returned in `Saved`. Nothing else is kept. Rules are written with ops and operators, so the same text runs on bare
arrays in an ordinary walk back and on Tensors when the gradient itself is differentiated.

A backend may have a faster kernel for an op, a faster rule, or one that adds to a gradient that is there already
(`Backend.kernels`). It says NotImplemented to a case that it is not for, and the op's own text is run.
"""
from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from typing import Annotated, Any

from . import axes, backend
from .backend import known
from .backend.base import FLOATS, Backend, Saved, half
from .errors import DeviceError, DTypeError, GraphError, MinigradError, ShapeError
from .graph import Node, Walk, recording, state, touch
from .plan import IMMUTABLE, Plan, Rule, unshared, versions
from .tensor import Tensor
from .widen import narrowed, widened

REGISTRY: dict[str, Op] = {}
_SCALARS = frozenset((float, int, bool, type(None)))
_INTEGER = frozenset((int, type(None)))
_NOTHING: dict[str, Any] = {}
Constant = Any                                          # annotates a kernel's argument that has no gradient: ids, a mask
Placed = Annotated[Any, "by its place"]                 # annotates a setting that may also be given by its place, as in x.sum(0)
PYTORCHS = {"dim": "axis", "keepdim": "keepdims", "dims": "axes"}      # settings that PyTorch calls otherwise


class Op:
    """An op of the registry; call it with Tensors (recorded), or with bare arrays (computed, nothing else).

    view: its result may share the memory of its first argument, so a change of that is a change of the result. check: called
    with the arguments before any kernel. A kernel that has a keyword `wants` is told which gradients will be asked for.
    narrow: floats of 16 bits need no float32 on the way, for kernel and rules compute nothing, or round each result once.
    """

    view = narrow = False

    def __init__(self, kernel: Callable[..., Any], rules: dict[str, Callable[..., Any]], *, elementwise: bool = False,
                 definition: Callable[..., Any] | None = None, joint: Callable[..., Any] | None = None,
                 check: Callable[..., None] | None = None, widens: bool = False) -> None:
        names = list(inspect.signature(kernel).parameters)
        if names[:1] != ["xp"]:
            raise TypeError(f"op {kernel.__name__}: the first parameter of a kernel is xp, the array library of the device: "
                            f"def {kernel.__name__}({', '.join(['xp', *names])})")
        self.widens = widens or "dtype" in names
        self.name, self.kernel, self.elementwise, self.definition, self.check = kernel.__name__, kernel, elementwise, definition, check
        self.shown = self.name.removesuffix("_op")      # what people call it: matmul, not matmul_op
        self.__doc__, self.__name__, self.__module__ = kernel.__doc__, kernel.__name__, kernel.__module__
        parameters = list(inspect.signature(kernel).parameters.values())[1:]
        self.asks = any(p.name == "wants" for p in parameters)
        parameters = [p for p in parameters if p.name != "wants"]
        self.signature = inspect.Signature([p.replace(kind=p.POSITIONAL_OR_KEYWORD, annotation=p.empty)
                                            if p.annotation in ("Placed", Placed) else p for p in parameters])
        self.__signature__ = self.signature
        self.variadic = any(p.kind is p.VAR_POSITIONAL for p in parameters)
        self.args = tuple(p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.VAR_POSITIONAL))
        self.required = len([p for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD and p.default is p.empty])
        self.settings = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
        self.whole = tuple(n for n in self.settings if n in axes.NAMES)
        self.loose = tuple(n for n in self.settings if n not in axes.NAMES)             # which may hold arrays or lists of the caller
        self.some = () if "ndim" in self.settings else ("axis",)        # of which one at least is meant; expand may be told none
        self.placed = tuple(p.name for p in parameters if p.annotation in ("Placed", Placed) and p.kind is p.KEYWORD_ONLY)
        self.most = len(self.args) if self.placed else sys.maxsize
        self.rules = {arg: Rule(f, f"{self.name}/{arg}") for arg, f in rules.items()}
        self.joint = Rule(joint, f"{self.name}/joint") if joint else None
        self.differentiable = tuple(i for i, a in enumerate(self.args) if a in self.rules or (joint and a in joint_args(joint, self)))
        self.partial = not self.variadic and len(self.differentiable) < len(self.args)
        self.plans: dict[tuple[bool, ...], Plan] = {}

    def source(self, name: str) -> tuple[str, Any]:
        """Where the residual `name` comes from."""
        if name in self.args:
            return ("args", None) if self.variadic else ("arg", self.args.index(name))
        if name == "out":
            return ("out", None)
        base = name.removesuffix("_shape").removesuffix("_shapes").removesuffix("_dtype")
        if base != name and base in self.args:
            kind = "dtype" if name.endswith("_dtype") else "shapes" if self.variadic else "shape"
            return (kind, None if self.variadic else self.args.index(base))
        return ("extra", name)

    # ── forward ──
    def __call__(self, *args: Any, **settings: Any) -> Any:
        if len(args) > self.most:
            args, settings = self._settings_by_place(args, settings)
        if not settings:
            settings = self.settings
        else:
            if not settings.keys() <= self.settings.keys():
                args, settings = self._bind(args, settings)
            settings = {**self.settings, **settings}
            for name in self.whole:
                value = settings[name]
                if not (type(value) in _INTEGER or (type(value) is tuple and value and _INTEGER.issuperset(map(type, value)))):
                    settings[name] = axes.whole(value, f"{self.shown}: {name}", some=name in self.some)
        arrays: list[Any] = []
        nodes: list[Node | None] = []
        here: Any = None
        dtype: Any = None
        tensors = tracked = bare = False
        alike = not self.partial                        # one backend of one device, one dtype: what nearly every call is
        for a in args:
            node = None
            if isinstance(a, Tensor):
                tensors, node, a = True, a.node, a.array
                if node is not None:
                    tracked = True
            elif type(a) not in _SCALARS:
                bare = True                             # an array that the caller may write before the backward pass
            arrays.append(a)
            nodes.append(node)
            kind = type(a)
            if kind in known:
                if here is None:
                    here, dtype = known[kind], a.dtype
                elif known[kind] is not here or a.dtype is not dtype:
                    alike = False
            elif kind not in _SCALARS:
                alike = False
        if not alike or here is None or here.devices:
            if tracked and self.partial:                # an argument without a rule is a constant
                nodes = [n if i in self.differentiable else None for i, n in enumerate(nodes)]
                tracked = any(n is not None for n in nodes)
            here, dtype = self._place(arrays, nodes)
        wide = (dtype is None or dtype.itemsize == 2) and self._widens(here, arrays)
        given = settings if not self.asks else {**settings, "wants": tuple([n is not None and state.recording for n in nodes])}
        kernel = here.kernels.get(self.name)
        try:
            if self.check is not None:
                self.check(*arrays, **settings)
            out = NotImplemented if kernel is None or (wide and not here.takes_half) else kernel(here, *arrays, **given)
            if out is NotImplemented:
                out = self._in_float32(here, kernel, arrays, given) if wide else \
                    self.kernel(here, *arrays, **given) if given else self.kernel(here, *arrays)
        except MinigradError:
            raise
        except (ValueError, TypeError, IndexError) as error:
            raise self._explain(error, arrays, settings) from error
        except Exception as error:
            if (ours := here.explained(error, f"{self.shown}: {self._describe(arrays)}")) is None:
                raise
            raise ours from None
        extra = None
        if type(out) not in here.array_types:
            if type(out) is Saved:
                out, extra = out.out, out.extra
            if type(out) is tuple:
                if wide:
                    out = tuple(narrowed(o, dtype) for o in out)
                return self._several(here, out, args if bare else None, arrays, nodes, tensors, tracked, settings)
            if known.get(type(out), here) is here:      # a scalar where an array of no axes is meant; not what `to` moved away
                out = here.adopt(out)
        made = out.dtype
        exact = out
        if wide and not self.widens and made.kind == "f":
            made = next(a.dtype for a in arrays if type(a) not in _SCALARS and half(a.dtype))
            out = narrowed(out, made)                   # rules are given the result as it was before it was rounded
        if made is not dtype and dtype is not None and dtype.kind in "iu" and made.kind in FLOATS and self.differentiable \
                and "dtype" not in settings:
            raise DTypeError(f"{self.shown}: {self._describe(arrays)} would become {made}; cast first, as in x.astype(\"float32\")")
        if not tensors:
            return out
        if not (tracked and state.recording) or made.kind not in FLOATS:
            if tracked:
                touch(nodes)
            return Tensor(out)
        return Tensor(out, self._record(arrays, nodes, exact, extra, settings, out.shape, made, args if bare else None))

    def _in_float32(self, here: Backend, kernel: Any, arrays: list[Any], given: dict[str, Any]) -> Any:
        """What the kernel, where it has not been asked yet, or else the op's own text computes from these arrays in float32."""
        ready = widened(tuple(arrays))
        out = NotImplemented if kernel is None or here.takes_half else kernel(here, *ready, **given)
        return self.kernel(here, *ready, **given) if out is NotImplemented else out

    def _widens(self, here: Backend, arrays: list[Any]) -> bool:
        """Whether these are floats of 16 bits that are computed with in float32; a Python number among them always asks for it."""
        for a in arrays:
            if type(a) not in _SCALARS and a.dtype.itemsize == 2 and half(a.dtype):
                return not (self.narrow or self.name in here.half_ops) or any(type(b) in (int, float) for b in arrays)
        return False

    def recorded(self, out: Any, *args: Any, **settings: Any) -> Any:
        """The Tensor of a call with these Tensors and all settings, whose result was computed elsewhere: `out`, as the kernel gives it."""
        arrays, nodes = [a.array for a in args], [a.node for a in args]
        out, extra = (out.out, out.extra) if type(out) is Saved else (out, None)
        if not (state.recording and any(n is not None for n in nodes)):
            touch(nodes)
            return Tensor(out)
        return Tensor(out, self._record(arrays, nodes, out, extra, settings, out.shape, out.dtype))

    def _place(self, arrays: list[Any], nodes: list[Node | None]) -> tuple[Backend, Any]:
        """The one backend of the arrays, and the one dtype of those that can have a gradient."""
        here: Backend | None = None
        dtype = place = None
        for i, a in enumerate(arrays):
            if type(a) in _SCALARS:
                continue
            try:
                b = backend.of(a)
            except TypeError:
                raise TypeError(f"{self.shown}: {self._arg(i)} is a {type(a).__name__}; give a Tensor, an array or a number") from None
            p = b.device(a)
            if here is None:
                here, place, first = b, p, i
            elif p != place:
                raise DeviceError(f"{self.shown}: {self._arg(first)} is on {place} and {self._arg(i)} is on {p}; "
                                  f"move one with .to(\"{p}\")")
            if (self.variadic or i in self.differentiable) and (d := a.dtype).kind != "b":
                if dtype is None:
                    dtype, typed = d, i
                elif d != dtype:
                    to = d if d.kind in FLOATS and dtype.kind not in FLOATS else dtype          # towards the float of the two
                    old, new, which = self._arg(typed), self._arg(i), "one"
                    if (nodes[i] is None) is not (nodes[typed] is None):    # data, to what is trained
                        which, to = (old, d) if nodes[typed] is None else (new, dtype)
                    raise DTypeError(f"{self.shown}: {old} is {dtype} and {new} is {d}; dtypes "
                                     f"never mix silently, cast {which} with .astype(\"{to}\")")
        if here is None:
            raise TypeError(f"{self.shown}: no argument is a Tensor or an array; make one with minigrad.tensor")
        if here.devices:
            here.at(arrays[first])
        return here, dtype

    def _record(self, arrays: list[Any], nodes: list[Node | None], out: Any, extra: Any, settings: Any, shape: Any, dtype: Any,
                args: Any = None) -> Node:
        """The node of this call. args: as they were given, where one is an array, which the caller may write before the backward pass."""
        wanted = (True,) * len(nodes) if None not in nodes else tuple([n is not None for n in nodes])
        plan = self.plans.get(wanted)
        if plan is None:
            plan = self.plans[wanted] = Plan(self, wanted)
        saved = []
        for kind, at in plan.sources:
            if kind == "arg":
                array = arrays[at] if at < len(arrays) else None
                saved.append(array if args is None or at >= len(args) or args[at] is not array else unshared(array))
            elif kind == "out":
                saved.append(out)
            elif kind == "shape":
                saved.append(getattr(arrays[at], "shape", ()))
            elif kind == "dtype":
                saved.append(arrays[at].dtype)
            elif kind == "args":
                saved.append(tuple(arrays if args is None else [unshared(a) if a is given else a for a, given in zip(arrays, args)]))
            elif kind == "shapes":
                saved.append(tuple(a.shape for a in arrays))
            elif extra is None or at not in extra:
                raise TypeError(f"{self.shown}: a rule names {at!r}, which is no argument of the kernel ({', '.join(self.args)}), no "
                                f"setting, not out, and nothing that the kernel saves")
            else:
                saved.append(extra[at])
        for name in self.loose:
            if type(settings[name]) not in IMMUTABLE:
                settings = {**settings, name: unshared(settings[name])}
        return Node(self, plan, tuple(nodes), tuple(saved), settings, shape, dtype, versions(plan.watched, nodes))

    def _several(self, here: Backend, outs: tuple[Any, ...], args: Any, arrays: Any, nodes: Any, tensors: bool, tracked: bool,
                 settings: Any) -> Any:
        if not tensors:
            return outs
        if not (tracked and state.recording):
            if tracked:
                touch(nodes)
            return tuple(Tensor(o) for o in outs)
        whole = self._record(arrays, nodes, None, None, settings, tuple(o.shape for o in outs), outs[0].dtype, args)
        return tuple(Tensor(o, Node(_PICK, None, (whole,), (i,), {}, o.shape, o.dtype)) for i, o in enumerate(outs))

    # ── backward ──
    def pullback(self, node: Node, saved: tuple[Any, ...], g: Any, walk: Walk) -> None:
        """Send each wanted argument's share Jᵢᵀ g to its parent   (reverse.3); g is the cotangent of the node's output."""
        plan, parents, static = node.plan, node.parents, node.static
        if plan.watched and node.version != versions(plan.watched, parents):
            raise GraphError(f"{node}: a value that its gradient needs was changed after it was used; run forward again")
        if type(g) is dict:
            g = self._gather(node, g, walk.live)
        if walk.live or type(g) is tuple:
            kernels, some = _NOTHING, g[0] if type(g) is tuple else g
            some = some.array if walk.live else some
            here = backend.of(some)
            here.at(some)
        else:
            here = backend.of(g)
            kernels = here.kernels
            if here.devices:
                here.at(g)
        wide = (node.dtype.itemsize == 2 or self.widens) and not self.narrow and self.name not in here.half_ops
        if walk.live:
            if plan.replay:
                return self._replay(node, saved, g, walk)
            saved = self._alive(node, saved)
        for i, rule, places in plan.steps:
            given = saved[places] if type(places) is slice else [saved[k] if type(k) is int else static[k] for k in places]
            if rule.wants:
                given = (*given, plan.wanted)
            cotangent = g
            if wide and not here.takes_half:
                cotangent, given = widened(g), widened(tuple(given))
            if i is not None and rule.into in kernels and (sum := walk.sum(parents[i])) is not None \
                    and kernels[rule.into](sum, cotangent, *given) is not NotImplemented:
                continue
            result = NotImplemented
            first = parents[0]
            if i is None and rule.into in kernels and first is not None and (sum := walk.sent(first)) is not None:
                result = kernels[rule.into](sum, cotangent, *given)
                if result is not NotImplemented:
                    walk.replace(first, result[0])
                    parents = (None, *parents[1:])
            kernel = kernels.get(rule.key)
            if result is NotImplemented and kernel is not None:
                result = kernel(cotangent, *given)
            if result is NotImplemented:
                if wide and here.takes_half:
                    cotangent, given = widened(g), widened(tuple(given))
                result = rule.function(cotangent, *given)
                if result is None:
                    raise TypeError(f"{self.shown}: its rule {rule.key} returned None; is a return missing?")
            if i is None:
                for k, (parent, part) in enumerate(zip(parents, result)):
                    if parent is not None:
                        self._send(node, k, parent, part, g, saved, walk)
            else:
                parent = parents[i]
                if self.elementwise and result.shape != parent.shape:
                    result = REGISTRY["sum_to"](result, shape=parent.shape)
                self._send(node, i, parent, result, g, saved, walk)

    def _alive(self, node: Node, saved: tuple[Any, ...]) -> tuple[Any, ...]:
        """The residuals with the arrays that have a place in the graph as Tensors of it again, for ∂(Jᵀ g)   (reverse.6)."""
        values = list(saved)
        for k, (kind, at) in enumerate(node.plan.sources):
            if kind == "arg" and at < len(node.parents) and node.parents[at] is not None:
                values[k] = Tensor(saved[k], node.parents[at])
            elif kind == "args":
                values[k] = tuple(Tensor(a, p) for a, p in zip(saved[k], node.parents))
            elif kind == "out":
                values[k] = Tensor(saved[k], node)
                if saved[k].dtype != node.dtype:        # it was kept as it was before it was rounded
                    rounded = Tensor(narrowed(saved[k], node.dtype), node)
                    values[k] = REGISTRY["astype"].recorded(saved[k], rounded, dtype="float32")
        return tuple(values)

    def _send(self, node: Node, i: int, parent: Node, gp: Any, g: Any, saved: tuple[Any, ...], walk: Walk) -> None:
        if type(gp) is Tensor and not walk.live:
            gp = gp.array
        if gp.dtype != parent.dtype and half(parent.dtype) and gp.dtype == "float32":
            gp = narrowed(gp, parent.dtype)
        if gp.shape != parent.shape or gp.dtype != parent.dtype:
            kind = ShapeError if gp.shape != parent.shape else DTypeError
            raise kind(f"{self.shown}: ∂{self.shown}/∂{self._arg(i)} is {gp.dtype}{list(gp.shape)} but {self._arg(i)} is "
                       f"{parent.dtype}{list(parent.shape)}; the rule is wrong")
        if walk.live:
            walk.send(parent, gp if type(gp) is Tensor else Tensor(gp))
            return
        here = backend.of(gp)
        if type(gp) not in here.array_types:
            gp = here.adopt(gp)
        fresh = gp is not g and here.owns(gp)           # nobody else holds its memory
        for k, s in enumerate(saved):
            if s is gp:
                fresh = fresh and node.saved is None and k in node.plan.given
        walk.send(parent, gp, fresh)

    def _gather(self, node: Node, slots: dict[int, Any], live: bool) -> tuple[Any, ...]:
        """The cotangents of all outputs; zeros for those nothing was computed from."""
        some = next(iter(slots.values()))
        some = some.array if isinstance(some, Tensor) else some
        here = backend.of(some)
        here.at(some)
        zeros = here.zeros
        return tuple(slots[i] if i in slots else Tensor(zeros(s, dtype=node.dtype)) if live else zeros(s, dtype=node.dtype)
                     for i, s in enumerate(node.shape))

    def _replay(self, node: Node, saved: tuple[Any, ...], g: Any, walk: Walk) -> None:
        """Run the definition again, recorded   (reverse.7), and let the walk go on through what it records: its nodes are the newest."""
        values = dict(zip(node.plan.names, saved))
        inputs = [Tensor(values[a], p) if hasattr(values[a], "dtype") else values[a] for a, p in zip(self.args, node.parents)]
        assert self.definition is not None
        with recording(True):
            out = self.definition(*inputs, **node.static)
        walk.send(out.node, g)

    # ── words ──
    def _arg(self, i: int) -> str:
        return f"{self.args[0]}[{i}]" if self.variadic else self.args[i] if i < len(self.args) else f"argument {i + 1}"

    def _settings_by_place(self, args: tuple[Any, ...], settings: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """What stands after the arguments, as the settings of these places; as they are where these are too many, or given twice."""
        more = dict(zip(self.placed, args[self.most:]))
        if len(args) - self.most > len(self.placed) or more.keys() & settings.keys():
            return args, settings
        return args[:self.most], {**more, **settings}

    def _bind(self, args: tuple[Any, ...], settings: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Arguments given by name take their places. An unknown name is refused, unless it is PyTorch's for a setting that has a place."""
        settings = {PYTORCHS[k] if PYTORCHS.get(k) in self.placed and PYTORCHS[k] not in settings else k: v for k, v in settings.items()}
        if settings.keys() <= self.settings.keys():
            return args, settings
        try:
            bound = self.signature.bind(*args, **settings)
        except TypeError as error:
            raise TypeError(f"{self.shown}: {error}; it takes {self.signature}") from None
        bound.apply_defaults()
        return tuple(bound.arguments[a] for a in self.args), {k: bound.arguments[k] for k in self.settings}

    def _describe(self, arrays: list[Any]) -> str:
        return ", ".join(f"{self._arg(i)} is {a.dtype}{list(a.shape)}" if hasattr(a, "dtype") else f"{self._arg(i)} is {a!r}"
                         for i, a in enumerate(arrays) if i < len(self.args) or self.variadic)

    def _explain(self, error: Exception, arrays: list[Any], settings: dict[str, Any]) -> Exception:
        if not self.variadic and not self.required <= len(arrays) <= len(self.args):
            return TypeError(f"{self.shown}: {len(arrays)} arguments given; it takes {self.signature}")
        said = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        given = ", ".join(f"{k}={v!r}" for k, v in settings.items())
        text = f"{self.shown}: {self._describe(arrays)}{'; ' + given if given else ''}: {said}"
        return ShapeError(text) if not isinstance(error, TypeError) else DTypeError(text)

    def __reduce__(self) -> Any:                        # a module may hold an op, and be copied or pickled
        return _named, (self.name,)

    def __repr__(self) -> str:
        return f"<op {self.shown}{self.signature}>"


class _Pick:
    """One output of an op that has several: passes its cotangent on as that slot of the whole."""

    shown, variadic, view = "pick", False, True

    def captured(self, node: Node) -> tuple[()]:
        return ()

    def pullback(self, node: Node, saved: tuple[int], g: Any, walk: Walk) -> None:
        whole = node.parents[0]
        assert whole is not None
        walk.send(whole, g, slot=saved[0])


_PICK = _Pick()


def joint_args(joint: Callable[..., Any], op: Op) -> tuple[str, ...]:
    """The arguments that a joint rule gives gradients for: all but those that the kernel annotates as `Constant`."""
    return tuple(a for a in op.args if op.signature.parameters[a].annotation != "Constant")


def _named(name: str) -> Op:
    """The op of this name, which is how an op is copied and pickled."""
    return REGISTRY[name]


def _register(made: Op) -> Op:
    if made.name in REGISTRY:
        raise ValueError(f"an op called {made.name!r} exists already")
    REGISTRY[made.name] = made
    return made


def op(joint: Callable[..., Any] | None = None, **rules: Callable[..., Any]) -> Callable[[Callable[..., Any]], Op]:
    """Declare a primitive. rules: one per differentiable argument; or `joint`, one rule that returns all gradients in a tuple."""
    return lambda kernel: _register(Op(kernel, rules, joint=joint))


def elementwise(**rules: Callable[..., Any]) -> Callable[[Callable[..., Any]], Op]:
    """Declare an op that broadcasts; the engine undoes the broadcasting   (sum_to.4), so its rules never mention shapes."""
    return lambda kernel: _register(Op(kernel, rules, elementwise=True))


def fused(definition: Callable[..., Any], joint: Callable[..., Any] | None = None, *, check: Callable[..., None] | None = None,
          widens: bool = False, **rules: Callable[..., Any]) -> Callable[[Callable[..., Any]], Op]:
    """Declare a kernel with hand-derived rules that promises to equal `definition`, its definition by parts.

    check: raises on arguments that do not fit; it is called with them before whichever kernel is run. widens: floats of 16 bits give
    float32.
    """
    return lambda kernel: _register(Op(kernel, rules, definition=definition, joint=joint, check=check, widens=widens))
