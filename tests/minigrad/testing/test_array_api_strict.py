"""minigrad on the array API standard: every op but those that say why not, and GPT-2, on devices that are not the host's."""
from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

import minigrad as mg
from minigrad.testing import array_api_strict as strict
from minigrad.testing.domains import DOMAINS
from minigrad.testing.laws.laws import adjoint
from minigrad.testing.laws.run import Run
from minigrad.testing.laws.subject import Broken, NotApplicable

pytest.importorskip("array_api_strict", reason="array-api-strict is not installed; pip install array-api-strict")

HERE = {device: strict.install(device) for device in ("device1", "no_float64")}
NAMES = list(dict.fromkeys(d.subject.name for d in DOMAINS))
REFUSED = (TypeError, AttributeError, mg.errors.MinigradError)
# which examples are refused must not change from run to run
SAME = settings(derandomize=True, max_examples=max(10, settings.default.max_examples // 2))


def _agrees(domain: Any, example: Any, device: str, dtype: str) -> None:
    """The value is the oracle's, in the inputs' dtype and on their device; the VJP is its derivative's transpose."""
    run = Run(domain.subject, replace(example, layouts=()), dtype, f"strict-{device}")
    run.differentiable()
    assert type(run.y.array) is HERE[device].kept and run.y.dtype == run.result_dtype()
    if domain.subject.oracle is not None:
        wide = domain.subject.oracle(*run.wide, **example.settings)
        run.compare("the value", run.y, wide, scale=run.scale(wide))
    if domain.smooth:
        adjoint(run)


@pytest.mark.parametrize("device, dtype", [pytest.param("device1", "float64", marks=pytest.mark.slow), ("no_float64", "float32")])
@pytest.mark.parametrize("name", NAMES)
def test_the_standard_is_enough(name: str, device: str, dtype: str):
    """Value and gradient need no more than the standard; what OUTSIDE names is refused, in some example at least, and never wrong."""
    refused = [_refusals(domain, device, dtype) for domain in DOMAINS if domain.subject.name == name]
    assert any(refused) == (name in strict.OUTSIDE)


def _refusals(domain: Any, device: str, dtype: str) -> int:
    """How many examples of the domain are refused; the others agree."""
    refused = 0

    @SAME
    @given(example=domain.examples)
    def examine(example: Any) -> None:
        nonlocal refused
        if device == "no_float64" and example.settings.get("dtype") == "float64":
            with pytest.raises(mg.errors.MinigradError, match="does not support dtype"):
                _agrees(domain, example, device, dtype)
            return
        try:
            with np.errstate(all="ignore"):
                _agrees(domain, example, device, dtype)
        except NotApplicable:
            pass
        except Broken:
            raise
        except REFUSED:
            if domain.subject.name not in strict.OUTSIDE:
                raise
            refused += 1

    examine()
    return refused


def test_outside_names_what_there_is():
    """The table of exceptions names ops and functions that exist, and no more than a fifth of them."""
    assert strict.OUTSIDE.keys() <= set(NAMES) and len(strict.OUTSIDE) <= len(NAMES) / 5


def test_a_device_without_float64_has_none():
    """float64 is refused there, and arrays of two devices do not mix."""
    with pytest.raises(ValueError, match="does not support"):
        mg.tensor(np.ones(2), device="strict-no_float64")
    a, b = (mg.tensor([1.0], device=f"strict-{device}") for device in HERE)
    with pytest.raises(mg.DeviceError, match="move one"):
        a + b
