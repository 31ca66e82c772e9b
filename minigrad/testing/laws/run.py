"""One Run of a Subject: its value, its gradients, and the bounds of their errors."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from ... import backend
from ...backend.base import FLOATS, half
from ...engine.graph import no_grad
from ...engine.tensor import Tensor
from ...op import Op
from ...transforms import gradients
from .reference import Reference, aligned
from .strategies import LIES, Example, lay, numbers_of
from .subject import Broken, NotApplicable, Subject, derivative, flat, host, plain, pulled
from .tolerance import WIDE, bound, eps, magnitude


class Run:
    """One example of a subject, in a dtype, on a device.

    Values that several laws need are computed once.
    """

    def __init__(self, subject: Subject, example: Example, dtype: Any,
                 device: str = "numpy") -> None:
        self.subject, self.example, self.device, self.order = subject, example, device, 1
        self.dtype = np.dtype(backend.dtype(dtype))
        self.arrays = [np.asarray(a, self.dtype) for a in example.arrays]
        self.wide = [a.astype(WIDE) for a in self.arrays]   # as rounded to dtype, in the wide float
        self.finite = all(bool(np.isfinite(a).all()) for a in self.wide)
        self.draw = numbers_of(example, "cotangents")
        self.there = backend.get(device)
        self.settings = _settled(example.settings, self.there)
        self.cotangents: list[Any] = []
        self.coarse = self.dtype                # the dtype that rounds most in the computation
        self.forget()

    def forget(self) -> None:
        """Drop the computed values, so that they are computed again when they are needed."""
        self.inputs: list[Any] | None = None
        self.y: Any = None
        self.grads: Any = None

    def of_order(self, order: int) -> Run:
        """The run of a higher derivative: the VJP is taken `order` − 1 times.

        Each time the cotangent becomes an argument.
        """
        run = self
        while run.order < order:
            run = run._derivative()
        return run

    def _derivative(self) -> Run:
        if self.subject.function is None:
            raise NotApplicable("plain arrays have no second derivative")
        if not self.ordinary():
            raise NotApplicable("higher derivatives are tested only at numbers of ordinary size")
        self.needs_gradient()
        _, _, u = self.walked()
        lies = (*self.example.layouts, "C") if self.example.layouts else ()
        example = Example((*self.arrays, u), self.example.settings, lies, self.example.seed)
        subject = Subject(self.subject.name, derivative(self.subject.function))
        more = Run(subject, example, self.dtype, self.device)
        # the cotangent has the dtype of the value; after a cast this is not the arguments' dtype
        more.arrays = [*self.arrays, u]
        more.settings, more.order = self.settings, self.order + 1
        more.draw, more.coarse = self.draw, self.coarse
        return more

    def ordinary(self) -> bool:
        """Whether the arguments are of a size at which higher derivatives can be tested.

        At larger or smaller numbers they vanish or cancel.
        """
        return all(0.5 <= magnitude(a, least=0.0) <= 64.0 for a in self.arrays if a.size)

    # ── inputs ──
    def on_device(self, array: Any, how: str = "C") -> Tensor:
        """A Tensor on the device with these numbers, in memory layout `how`; it has no graph."""
        return Tensor(lay(self.there.backend, self.there.array(array), how))

    def leaves(self, only: int | None = None) -> list[Tensor]:
        """The arguments on the device, in the example's layouts, as leaves.

        All require gradients, or only argument number `only`.
        """
        xs = [self.on_device(a, how) for a, how in zip(self.arrays, self.example.lies)]
        return [x.requires_grad_() if only in (None, i) else x for i, x in enumerate(xs)]

    def given(self) -> list[Any]:
        """Every array that the next call will get: the arguments, and arrays among the settings."""
        self.forget()
        self.inputs = self.leaves() if self.subject.function else self.laid()
        inputs = [x.array if isinstance(x, Tensor) else x for x in self.inputs]
        return [*inputs, *_arrays(self.settings)]

    def laid(self, how: str = "") -> list[Any]:
        """The arguments for another library's function, as new NumPy arrays.

        how: the memory layout of all arrays; by default they have those of the example.
        """
        return [lay(backend.cpu, np.array(a, order="C"), how or lies)
                for a, lies in zip(self.arrays, self.example.lies)]

    def grown(self, i: int, shape: tuple[int, ...], device: str) -> list[Tensor]:
        """The arguments as constants on `device`, of which argument i has another shape."""
        here = device == self.device
        other = self if here else Run(self.subject, self.example, self.dtype, device)
        return [other.on_device(np.ones(shape, self.dtype) if j == i else a)
                for j, a in enumerate(self.arrays)]

    def cotangent(self, y: Any) -> Any:
        """A random cotangent of y, as a NumPy array."""
        u = np.asarray(self.draw.standard_normal(y.shape), y.dtype)
        if self.subject.function is None and self.example.seed % 8 == 7 and not half(u.dtype):
            # some kernels clip, or support only cotangents of order 1
            u = np.asarray(u * 1024.0, u.dtype)
        self.cotangents.append(u)
        return u

    # ── calls ──
    def call(self, xs: Sequence[Any]) -> Tensor:
        """The subject's value; several outputs are flattened into one Tensor."""
        if self.subject.function is None:
            assert self.subject.value is not None
            y = self.subject.value(*xs, **self.settings)
            return Tensor(plain(y, self.dtype, "the function"))
        return flat(self.subject.function(*xs, **self.settings))

    def evaluate(self, wide: Sequence[Any], dtype: Any = WIDE,
                 subject: Subject | None = None) -> Any:
        """The value at other points, computed on the host in another float.

        subject: by default the run's own.
        """
        with no_grad():
            arrays = [np.asarray(a, dtype) for a in wide]
            return self.results(subject or self.subject, arrays, None)[0]

    def results(self, subject: Subject, arrays: Sequence[Any], u: Any) -> list[Any]:
        """[value, *gradients] of a subject on the host, in the dtype of these arrays.

        u: the cotangent; if it is None, only the value is computed.
        """
        # a copy of the settings, because the subject might write to them; `pure` finds that
        settings = _settled(self.example.settings, backend.get("numpy"))
        if subject.function is None:
            assert subject.value is not None
            y = plain(subject.value(*arrays, **settings), arrays[0].dtype, "the function")
            if u is None or subject.pull is None:
                return [y]
            return [y, *pulled(subject.pull, u, arrays, settings)]
        xs = [Tensor(a).requires_grad_() if u is not None else Tensor(a) for a in arrays]
        settings = {k: v.astype(xs[0].dtype)
                    if isinstance(v, np.ndarray) and v.dtype.kind == "f" else v
                    for k, v in settings.items()}
        value = flat(subject.function(*xs, **settings))
        if u is None or not value.requires_grad:
            return [host(value)]
        return [host(value), *map(host, gradients(value, xs, Tensor(np.asarray(u, value.dtype))))]

    def widest(self, subject: Subject) -> np.dtype | None:
        """The widest float in which a subject computes, if it is wider than the run's own.

        If there is no such float, the result is None for a function of plain arrays, and the run's
        own dtype for a function of Tensors, which may contain constants of this dtype.
        """
        key = ("widest", subject, self.dtype)
        if key not in self.example.known:
            self.example.known[key] = self._widest(subject)
        return self.example.known[key]

    def _widest(self, subject: Subject) -> np.dtype | None:
        foreign = subject.function is None
        if foreign and not subject.wider:
            return None
        rng = numbers_of(self.example, "tame arguments")
        # numbers that lie in the domain of almost every function
        tame = [rng.uniform(0.5, 1.5, a.shape) for a in self.arrays]
        for dtype in map(np.dtype, (WIDE, np.float64)):
            if eps(dtype) < eps(self.dtype):
                try:
                    if not foreign:
                        self.evaluate(self.wide, dtype, subject)
                    elif not self._agrees(subject, tame, dtype):
                        continue
                except Exception:
                    continue
                return dtype
        return None if foreign else self.dtype

    def _agrees(self, subject: Subject, arrays: Sequence[Any], dtype: np.dtype) -> bool:
        """Whether a function of plain arrays gives about the same results in another float.

        A function in C may misread the bytes of the other float as numbers of its own float.
        """
        u, found = None, []
        for kind in (self.dtype, dtype):
            cast = [np.asarray(a, kind) for a in arrays]
            if subject.pull is not None:
                y = self.results(subject, cast, None)[0]
                u = np.linspace(1.0, 2.0, y.size).reshape(y.shape).astype(kind)
            found.append(self.results(subject, cast, u))
        near = 1e-3 + 64.0 * eps(self.dtype)

        def close(a: Any, b: Any) -> bool:
            return bool((np.abs(a.astype(WIDE) - b) <= near * (1.0 + np.abs(b))).all())

        return all(b.dtype == dtype and a.shape == b.shape and close(a, b) for a, b in zip(*found))

    def reference(self, subject: Subject | None = None) -> Reference | None:
        """The results of this run in a wider float; None if there is no wider float.

        subject: the subject that computes them, such as a definition; by default the run's own.
        """
        subject = subject or self.subject
        has_vjp = self.subject.function or self.subject.pull
        if not self.cotangents and self.differentiable() and has_vjp:
            self.cotangent(self.y)
        u = self.cotangents[0] if self.cotangents else None
        known = self.example.known.get(key := (subject, self.dtype, self.coarse, self.order))
        if known is None or (u is not None and not np.array_equal(known[1], u)):
            wide = self.widest(subject)
            narrow = None if half(self.dtype) and self.subject.op else self._narrow
            made = wide and Reference(
                partial(self.results, subject), narrow, self.arrays, u, self.dtype,
                np.dtype(self.coarse), numbers_of(self.example, "probes"), wide, self.degree())
            self.example.known[key] = known = (made, u)
        return known[0]

    def _narrow(self, arrays: Sequence[Any], u: Any) -> list[Any]:
        """`results` of the subject for arrays in the example's memory layouts.

        The layout may change the order in which a sum adds, and so its rounding.
        """
        laid = [lay(backend.cpu, np.array(a, order="C"), how)
                for a, how in zip(arrays, self.example.lies)]
        return self.results(self.subject, laid, u if u is None else self._laid_cotangent(u))

    def _laid_cotangent(self, u: Any) -> Any:
        """A cotangent in C order.

        For a function of plain arrays it is in another layout, if the example has layouts.
        """
        any_order = self.example.layouts and self.subject.function is None
        return lay(backend.cpu, u, LIES[self.example.seed % len(LIES)] if any_order else "C")

    def degree(self) -> int:
        """How often an argument may be a factor of an intermediate value: twice in composed ops."""
        return 2 if self.subject.function is not None and self.subject.op is None else 1

    def erratic(self, u: Any, moves: Sequence[Any]) -> float:
        """An estimate of the effect of rounding on ⟨Jᵀu, moves⟩ in this run's float.

        It is scaled from the difference between two other floats; a mistake is the same in both and
        does not count. It is 0 if the function does not compute in these floats.
        """
        coarse, fine = (np.float32, np.float64) if self.dtype == np.float64 else (np.float64, WIDE)
        if half(self.dtype) or self.subject.function is None:
            return 0.0
        xs = [np.asarray(a, coarse) for a in self.arrays]
        try:
            found, exact = (self.results(self.subject, [x.astype(kind) for x in xs],
                                         u.astype(kind))[1:] for kind in (coarse, fine))
        except Exception:                               # e.g. it contains constants of one dtype
            return 0.0
        far = sum(float(np.sum(np.abs(v) * np.abs(g.astype(WIDE) - h)))
                  for g, h, v in zip(found, exact, moves))
        return far * eps(self.dtype) / eps(coarse)

    def margins(self) -> list[Any] | None:
        """The allowed error of each number of the value and the gradients; None if unknown."""
        found = self.reference()
        return found.allowed if found else None

    def walked(self) -> tuple[Any, Any, Any]:
        """The value, the gradients for a random cotangent, and that cotangent (a NumPy array)."""
        self.needs_gradient()
        if self.grads is None:
            if not self.cotangents:
                self.cotangent(self.y)
            self.grads = self.pull(self.cotangents[0])
        return self.y, self.grads, self.cotangents[0]

    def pull(self, u: Any = None, create_graph: bool = False) -> Any:
        """The gradients of all arguments for the cotangent u, by default the first one drawn."""
        u = self.cotangents[0] if u is None else u
        if self.subject.function is None:
            if self.subject.pull is None:
                raise NotApplicable("no VJP was given")
            return pulled(self.subject.pull, self._laid_cotangent(u), self.inputs or self.laid(),
                          self.settings)
        assert self.inputs is not None
        return gradients(self.y, self.inputs, self.on_device(u), retain_graph=True,
                         create_graph=create_graph)

    def differentiable(self) -> bool:
        """Whether the value requires a gradient; it is computed first if necessary."""
        if self.y is None:
            if self.inputs is None:
                self.inputs = self.leaves() if self.subject.function else self.laid()
            self.y = self.call(self.inputs)
            if self.y.dtype.kind in FLOATS and eps(self.y.dtype) > eps(self.coarse):
                self.coarse = self.y.dtype
        return self.subject.function is None or self.y.requires_grad

    # ── what a law needs ──
    def needs_gradient(self) -> None:
        if not self.differentiable():
            raise NotApplicable("its value requires no gradient")

    def needs_finite(self) -> None:
        if not np.isfinite(host(self.y).astype(WIDE)).all():
            raise NotApplicable("the value is not finite")

    def needs_function(self) -> None:
        if self.subject.function is None:
            raise NotApplicable("its arguments are plain arrays")

    def needs_op(self) -> Op:
        if self.subject.op is None:
            raise NotApplicable("it is a function, not an op")
        return self.subject.op

    # ── comparisons ──
    def result_dtype(self) -> np.dtype:
        """The dtype that the value must have.

        It is that of the arguments, or of a setting `dtype`, or that of the oracle if this is not a
        float, such as bool. A loss of 16-bit numbers is float32.
        """
        asked = self.example.settings.get("dtype")
        if asked is not None:
            return np.dtype(asked)
        if half(self.dtype) and self.subject.op is not None and self.subject.op.widens:
            return np.dtype("float32")
        if self.subject.oracle is None:
            return self.dtype
        wide = np.asarray(self.subject.oracle(*self.wide, **self.example.settings))
        return self.dtype if wide.dtype.kind == "f" else wide.dtype

    def kind(self, x: Any, dtype: Any, what: str, shape: Any = None) -> None:
        """Broken unless x has the dtype, device and array type (and the shape) of the arguments."""
        if self.subject.function is not None and not isinstance(x, Tensor):
            raise Broken(f"{what} is a {type(x).__name__}, not a Tensor")
        if x.dtype != dtype:
            raise Broken(f"{what} is {x.dtype}, not {np.dtype(dtype)}")
        if shape is not None and tuple(x.shape) != tuple(shape):
            raise Broken(f"{what} has shape {list(x.shape)}, not {list(shape)}")
        if self.subject.function is not None:
            array, library = x.array, self.there.backend
            if not isinstance(array, library.array_types) or type(array) in library.scalar_types:
                raise Broken(f"{what} holds a {type(x.array).__name__}, which is not an array of "
                             f"{self.device}")
            if x.device != self.on_device(np.zeros((), self.dtype)).device:
                raise Broken(f"{what} is on {x.device}, not on {self.device}")

    def scale(self, *results: Any) -> float:
        """An estimate of the largest intermediate value.

        It is the largest product of two numbers among the arguments, cotangents and results, or of
        one number of each argument and of the cotangent.
        """
        each = float(np.prod([magnitude(a) for a in self.wide])) * magnitude(*self.cotangents)
        return max(magnitude(*self.wide, *self.cotangents, *map(host, results)) ** 2, each)

    def compare(self, what: str, found: Any, truth: Any, *, scale: float = 1.0, noise: Any = 0.0,
                allowed: Any = None, roundings: Sequence[Any] = ()) -> float:
        """|found − truth| in units of its bound   (tolerance.6).

        Broken above 1, and if the shapes or the positions of inf and NaN differ. allowed: the bound
        of each number; the numbers are then also judged together (tolerance.18). Without it the
        bound is (tolerance.5) for the size `scale`. noise: is added to the bound. roundings: see
        `aligned`.
        """
        a, b = host(found), host(truth)
        if a.shape != b.shape:
            raise Broken(f"{what} has shape {list(a.shape)}, not {list(b.shape)}")
        if a.dtype.kind not in FLOATS + "c":
            if not np.array_equal(a, b):
                raise Broken(f"{what} is {a.tolist()}, not {b.tolist()}")
            return 0.0
        a, b = a.astype(WIDE), b.astype(WIDE)
        finite = np.isfinite(b)
        same = np.array_equal(np.isfinite(a), finite)
        if not same or not np.array_equal(a[~finite], b[~finite], equal_nan=True):
            raise Broken(f"{what} is {_short(a)}, not {_short(b)}")
        given = allowed is not None
        if allowed is None:
            length = max([1, a.size, *(x.size for x in self.arrays)])
            several = 8 if self.order > 1 and self.subject.op is None else 1    # a chain of ops
            allowed = bound(self.coarse, length, scale, several * self.order)
        if not finite.any():
            return 0.0
        allowed = np.broadcast_to(np.asarray(allowed + noise, WIDE), a.shape)
        error, truth = np.where(finite, a - b, 0.0), np.where(finite, b, 0.0)
        shares = np.where(finite, np.abs(error) / allowed, 0.0)
        worst = np.unravel_index(np.argmax(shares), a.shape)
        if shares[worst] > 1.0:
            where = f", worst at {[int(i) for i in worst]}" if a.size > 20 else ""
            off = f"{where}: off by {float(abs(error[worst])):.3g}"
            raise Broken(f"{what} is {_short(a)}, not {_short(b)}{off}", float(shares[worst]))
        together = 0.0
        if a.size > 1 and given:
            bounds = np.where(finite, allowed, 0.0)
            together = aligned(error, truth, self.coarse, bounds, roundings)
        if together > 1.0:
            size, factor = float(np.sum(truth * truth)), ""
            if size > 0.0:
                times = 1.0 + float(np.sum(error * truth)) / size
                factor = f"; all numbers together are {times:.9g} times the right ones"
            raise Broken(f"{what} is {_short(a)}, not {_short(b)}: the errors of a row, or of all "
                         f"numbers, add up to more than rounding explains{factor}", together)
        return max(float(shares[worst]), together)

    def beside(self, reference: Reference, i: int, what: str, found: Any) -> float:
        """|found − the reference's result i| in units of its bound; Broken above 1.

        The bound is measured by a few probes. If an array has only a few numbers, these probes may
        all meet the same roundings. So a result that seems wrong is judged again with more probes.
        """
        def judged() -> float:
            return self.compare(what, found, reference.results[i], allowed=reference.allowed[i],
                                roundings=reference.roundings[i])
        try:
            return judged()
        except Broken:
            if not reference.again():
                raise
        return judged()

    def expect(self, kind: type[Exception], f: Callable[[], Any], what: str) -> None:
        """Broken unless f raises `kind`, in one line."""
        try:
            f()
        except kind as error:
            if "\n" in str(error):
                raise Broken(f"{what}: the message has several lines: {error}") from None
        except Exception as error:
            instead = type(error).__name__
            raise Broken(f"{what}: {instead} instead of {kind.__name__}: {error}") from None
        else:
            raise Broken(f"{what} is accepted")

    def outcome(self, f: Callable[[], Any]) -> type:
        """The type of the error that f raises, or the type of its result."""
        try:
            return type(f())
        except Exception as error:
            return type(error)


def _short(a: Any) -> str:
    text = np.array2string(a.astype(float), precision=9, separator=", ", threshold=20)
    text = text.replace("\n", "")
    return text if len(text) < 400 else text[:400] + " …"


def _settled(value: Any, there: backend.Device) -> Any:
    """Settings with their NumPy arrays moved to the device."""
    if isinstance(value, dict):
        return {k: _settled(v, there) for k, v in value.items()}
    if isinstance(value, tuple):
        return tuple(_settled(v, there) for v in value)
    return there.array(value) if isinstance(value, np.ndarray) else value


def _arrays(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [a for v in value.values() for a in _arrays(v)]
    if isinstance(value, tuple):
        return [a for v in value for a in _arrays(v)]
    return [value] if hasattr(value, "nbytes") and hasattr(value, "shape") else []
