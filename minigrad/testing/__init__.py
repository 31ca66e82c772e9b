"""The laws of differentiable array code, which are tested on every op here and on your own.

    from minigrad.testing import arrays, check
    check(my_op, arrays())          # LawsBroken, with the smallest example, if one breaks
    check(my_softmax, arrays((4, 8)), vjp=my_softmax_vjp)   # plain arrays in, plain arrays out
    check(mg.softmax, arrays((4, 8)), axis=-1)

`python -m minigrad.testing` tests every law on every op and prints a table;
`python -m minigrad.testing.mutate` breaks every rule on purpose and counts the laws that fail.
Everything except the fake GPU needs hypothesis.
"""
import sys
from typing import Any

_MISSING = "minigrad.testing needs hypothesis, which is not installed: pip install hypothesis"
__all__ = ["LAWS", "Example", "LawsBroken", "Report", "Verdict", "arrays", "bound", "broadcastable",
           "check", "shapes", "small_sizes", "values"]

try:
    from .laws.check import LawsBroken, Report, Verdict, check
    from .laws.laws import LAWS
    from .laws.sizes import small_sizes
    from .laws.strategies import Example, arrays, broadcastable, shapes, values
    from .laws.tolerance import bound
except ModuleNotFoundError as error:
    if error.name != "hypothesis":
        raise
    if sys.argv[0] == "-m":                 # it runs as a command: one line, no traceback
        sys.exit(_MISSING)

    def __getattr__(name: str) -> Any:
        if name in __all__:
            raise ImportError(_MISSING)
        raise AttributeError(f"module 'minigrad.testing' has no attribute {name!r}")
