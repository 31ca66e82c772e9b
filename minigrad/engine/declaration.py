"""How an op is declared: its name, arguments and settings, read from the kernel's signature, and
the residuals that its rules name."""
from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from .. import axes

if TYPE_CHECKING:
    from .op import Op

REGISTRY: dict[str, Op] = {}

# Annotations of settings that may be given by their places, as in x.sum(0).
Placed = Annotated[Any, "by its place"]
Axis = Annotated[int | Sequence[int] | None, "by its place"]
Sizes = Annotated[int | Sequence[int], "by its place"]
Flag = Annotated[bool, "by its place"]
BY_PLACE = (Placed, Axis, Sizes, Flag, "Placed", "Axis", "Sizes", "Flag")
SCALARS = frozenset((float, int, bool, type(None)))     # what may stand in the place of an array


class Rule:
    """∂op/∂argument as a function of the cotangent g and of residuals, by their names.

    key: what a backend calls its faster version; into: one that adds the gradient in place to a
    sum that it is given first (of a joint rule, the first argument's gradient to its sum). wants:
    whether it asks which gradients are wanted.
    """

    __slots__ = ("function", "key", "into", "needs", "wants")

    def __init__(self, function: Callable[..., Any], key: str) -> None:
        names = tuple(inspect.signature(function).parameters)[1:]
        self.function, self.key, self.into = function, key, f"{key}+"
        self.wants = "wants" in names
        self.needs = tuple(n for n in names if n != "wants")


class Declaration:
    """What an op is, before it is called.

    view: its result may share the memory of its first argument. narrow: floats of 16 bits need no
    float32 on the way. check: called with the arguments before any kernel; it raises where they do
    not fit. A kernel with a keyword `wants` is told which gradients will be asked for.
    """

    view = narrow = False
    hooks: Any = ()

    def __init__(self, kernel: Callable[..., Any], rules: dict[str, Callable[..., Any]], *,
                 elementwise: bool = False, definition: Callable[..., Any] | None = None,
                 joint: Callable[..., Any] | None = None, check: Callable[..., None] | None = None,
                 widens: bool = False) -> None:
        every = list(inspect.signature(kernel).parameters.values())
        if [p.name for p in every[:1]] != ["xp"]:
            names = ", ".join(["xp", *(p.name for p in every)])
            raise TypeError(f"op {kernel.__name__}: the first parameter of a kernel is xp, the "
                            f"array library of the device: def {kernel.__name__}({names})")
        self.name, self.kernel, self.elementwise = kernel.__name__, kernel, elementwise
        self.definition, self.check = definition, check
        self.shown = self.name.removesuffix("_op")      # what people call it: matmul, not matmul_op
        self.__doc__, self.__name__ = kernel.__doc__, kernel.__name__
        self.__module__ = kernel.__module__
        self.__wrapped__ = kernel                       # whose text inspect.getsource shows
        self.asks = any(p.name == "wants" for p in every)
        parameters = [p for p in every[1:] if p.name != "wants"]
        self.variadic = any(p.kind is p.VAR_POSITIONAL for p in parameters)
        self.placed = tuple(p.name for p in parameters if p.annotation in BY_PLACE)
        own = [p for p in parameters if p.kind is not p.KEYWORD_ONLY and p.name not in self.placed]
        self.args = tuple(p.name for p in own)
        needed = [p for p in own if p.kind is not p.VAR_POSITIONAL and p.default is p.empty]
        self.required = len(needed)
        self.settings = {p.name: p.default for p in parameters if p not in own}
        self.most = len(self.args) if self.placed else sys.maxsize
        self.signature = self.__signature__ = inspect.Signature([
            p.replace(annotation=p.empty) if p.name in self.placed else p for p in parameters])
        self.whole = tuple(n for n in self.settings if n in axes.NAMES)     # axes, shapes, counts
        self.loose = tuple(n for n in self.settings if n not in axes.NAMES)     # may hold arrays
        self.some = () if "ndim" in self.settings else ("axis",)            # may not be ()
        self.widens = widens or "dtype" in self.settings
        self.rules = {arg: Rule(f, f"{self.name}/{arg}") for arg, f in rules.items()}
        self.joint = Rule(joint, f"{self.name}/joint") if joint else None
        ruled = [p.name for p in own if p.annotation != "Constant"] if joint else list(self.rules)
        self.differentiable = tuple(i for i, a in enumerate(self.args) if a in ruled)
        # the arguments that share one dtype
        self.typed = range(sys.maxsize) if self.variadic else self.differentiable
        # what a rule may name, but for settings and by-products
        self.named: dict[str, tuple[str, Any]] = {"out": ("out", None)}
        for i, a in enumerate(self.args):
            array, shape, at = ("args", "shapes", None) if self.variadic else ("arg", "shape", i)
            self.named |= {a: (array, at), f"{a}_shape": (shape, at), f"{a}_shapes": (shape, at),
                           f"{a}_dtype": ("dtype", at)}

    def source(self, name: str) -> tuple[str, Any]:
        """Where the residual `name` comes from, and its place there."""
        return self.named.get(name, ("extra", name))

    def __reduce__(self) -> Any:                        # a module that is copied may hold an op
        return _named, (self.name,)

    def __repr__(self) -> str:
        return f"<op {self.shown}{self.signature}>"


def _named(name: str) -> Op:
    """The op of this name, which is how an op is copied and pickled."""
    return REGISTRY[name]
