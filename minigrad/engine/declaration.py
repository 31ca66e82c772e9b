"""The declaration of an op, which is read from the signatures of its kernel and its rules.

The kernel's signature has the arguments and settings; a rule's signature names its residuals.
"""
from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from .. import axes

if TYPE_CHECKING:
    from .op import Op

REGISTRY: dict[str, Op] = {}

# Annotations of settings that may be passed by position, as in x.sum(0).
Placed = Annotated[Any, "by its place"]
Axis = Annotated[int | Sequence[int] | None, "by its place"]
Sizes = Annotated[int | Sequence[int], "by its place"]
Flag = Annotated[bool, "by its place"]
BY_PLACE = (Placed, Axis, Sizes, Flag, "Placed", "Axis", "Sizes", "Flag")
SCALARS = frozenset((float, int, bool, type(None)))     # arguments that need not be arrays


class Rule:
    """∂op/∂argument as a function of the cotangent g and of residuals, by their names.

    key: name of a backend's faster kernel for this rule. into: name of a kernel that accumulates:
    its first argument is the gradient summed so far, and it adds this rule's share to it in place
    (a joint rule's kernel does so for the op's first argument). wants: whether the rule has a
    parameter `wants`, which says for each argument whether its gradient is wanted.
    """

    __slots__ = ("function", "key", "into", "needs", "wants")

    def __init__(self, function: Callable[..., Any], key: str) -> None:
        names = tuple(inspect.signature(function).parameters)[1:]
        self.function, self.key, self.into = function, key, f"{key}+"
        self.wants = "wants" in names
        self.needs = tuple(n for n in names if n != "wants")


class Declaration:
    """What is known of an op before it is called.

    view: the result may share the memory of the first argument. narrow: floats of 16 bits are not
    converted to float32 for the computation. check: is called with the arguments before any kernel;
    it raises an error if they do not fit. A kernel with a keyword `wants` is called with a tuple
    that says for each argument whether its gradient is wanted.
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
        self.shown = self.name.removesuffix("_op")      # for messages: matmul, not matmul_op
        self.__doc__, self.__name__ = kernel.__doc__, kernel.__name__
        self.__module__ = kernel.__module__
        self.__wrapped__ = kernel                       # inspect.getsource shows the kernel's text
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
        # what a rule may name, besides settings and by-products
        self.named: dict[str, tuple[str, Any]] = {"out": ("out", None)}
        for i, a in enumerate(self.args):
            array, shape, at = ("args", "shapes", None) if self.variadic else ("arg", "shape", i)
            self.named |= {a: (array, at), f"{a}_shape": (shape, at), f"{a}_shapes": (shape, at),
                           f"{a}_dtype": ("dtype", at)}

    def source(self, name: str) -> tuple[str, Any]:
        """Where the residual `name` comes from, and its index or name there."""
        return self.named.get(name, ("extra", name))

    def __reduce__(self) -> Any:                        # a module with an op can be copied
        return _named, (self.name,)

    def __repr__(self) -> str:
        return f"<op {self.shown}{self.signature}>"


def _named(name: str) -> Op:
    """The op with this name: a copied or pickled op is only its name."""
    return REGISTRY[name]
