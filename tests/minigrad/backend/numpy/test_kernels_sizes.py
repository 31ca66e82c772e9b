"""The NumPy kernels at sizes so small that the laws' examples go through every block, tile and chunk of them."""
from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest

import minigrad as mg
from minigrad.backend import cpu
from minigrad.backend.numpy.sizes import SIZES, Sizes
from minigrad.op import REGISTRY
from minigrad.testing.domains import DOMAINS, Domain
from minigrad.testing.laws.check import examine
from minigrad.testing.laws.laws import LAWS
from minigrad.testing.laws.sizes import SMALL, small_sizes

pytestmark = pytest.mark.rounding
# adamw_update is no op: test_optim.py holds it to the formula. The other three multiply with backend.blas
NAMES = ({name.partition("/")[0] for name in cpu.kernels} & REGISTRY.keys()) | {"linear", "matmul_op", "einsum_op"}
LINES = [pytest.param(d, id=d.label) for d in DOMAINS if d.subject.name in NAMES]

# the laws that judge what a kernel computes; derivatives of a rule are those of the op's own text, whatever the sizes
QUICK = ("value", "adjoint", "linear", "wanted", "pure", "parts", "repeat")


def _broken(line: Domain, dtype: str, laws: Iterable[str], examples: int) -> list[str]:
    verdicts = [examine(law, line.subject, line.examples, dtype, examples=examples, shrink=False) for law in laws if line.asks(law)]
    return [str(v) for v in verdicts if v.status == "broken"]


@pytest.mark.parametrize("dtype, sizes", [("float64", "twos"), ("float32", "ones"), ("float32", "fours")])
@pytest.mark.parametrize("line", LINES)
def test_every_law_holds_at_small_sizes(line: Domain, dtype: str, sizes: str):
    """Several blocks, a last one that is not full, several threads: a kernel is right as it is in one block."""
    with small_sizes(sizes):
        assert _broken(line, dtype, QUICK, 3) == []


@pytest.mark.slow
@pytest.mark.parametrize("sizes", SMALL)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("line", LINES)
def test_every_law_holds_at_small_sizes_on_many_examples(line: Domain, dtype: str, sizes: str):
    """All laws, asked longer."""
    with small_sizes(sizes):
        assert _broken(line, dtype, LAWS, 25) == []


def test_small_sizes_are_all_sizes_and_leave_no_trace():
    """Each set names every size there is; after the block, and after an error in it, the sizes are what they were."""
    for name, small in SMALL.items():
        assert list(small) == list(Sizes.__dataclass_fields__)
        with pytest.raises(ZeroDivisionError), small_sizes(name):
            assert SIZES == Sizes(**small) != Sizes()
            1 / 0  # noqa: B018
        assert SIZES == Sizes()
    with pytest.raises(AttributeError, match="no_such_size"), small_sizes(block=3, no_such_size=1):
        pass
    assert SIZES == Sizes()


@pytest.mark.parametrize("sizes", SMALL)
def test_the_number_of_threads_changes_no_bit(sizes: str):
    """At each set of sizes one thread, two and three give the same numbers."""
    rng = np.random.default_rng(0)
    arrays: Any = [rng.standard_normal(s).astype("float32") for s in ((7, 5), (5,), (5,))]
    found = []
    for threads in (1, 2, 3):
        with small_sizes(**{**SMALL[sizes], "threads": threads}):
            x, w, b = (mg.Tensor(a).requires_grad_() for a in arrays)
            y = mg.layer_norm(x, w, b)
            z = mg.gelu(x, b, approximate="tanh")
            a = mg.attention(x, x, x, causal=True, p=0.2, key=3)
            found.append([o.numpy().tobytes() for o in (y, z, a, *mg.gradients((y * z * a).sum(), [x, w, b]))])
    assert found[0] == found[1] == found[2]
