"""gpt2.experiments.hessian: Lanczos, and the product with the Hessian of a loss."""
from __future__ import annotations

import numpy as np
import pytest

import minigrad as mg
from gpt2.experiments import (
    hessian,
    lab,
)
from gpt2.model import GPT2


def test_lanczos_finds_the_outer_eigenvalues():
    """Of a matrix that is known, to the bound that comes with them; of a small one all."""
    rng = np.random.default_rng(0)
    q, _ = np.linalg.qr(rng.standard_normal((60, 60)))
    wanted = np.concatenate([np.linspace(-1, 1, 57), [10.0, 7.0, -8.0]])
    matrix = (q * wanted) @ q.T
    values, vectors, errors = hessian.lanczos(lambda v: matrix @ v, 60, 20, 1)
    for value in (10.0, 7.0, -8.0):
        k = int(np.abs(values - value).argmin())
        assert values[k] == pytest.approx(value, abs=errors[k] + 1e-10)
        np.testing.assert_allclose(matrix @ vectors[:, k], value * vectors[:, k], atol=1e-4)
    all_of_it, _, _ = hessian.lanczos(lambda v: matrix[:9, :9] @ v, 9, 30, 1)
    np.testing.assert_allclose(all_of_it, np.linalg.eigvalsh(matrix[:9, :9]), atol=1e-9)


def test_the_hessians_product_is_the_hessians():
    """Against the whole matrix, by differences of gradients, on a model of a few numbers."""
    model = GPT2(lab.small_config(5, n_embd=4, n_layer=1, n_head=1, n_positions=4), dtype="float64", seed=3).eval()
    x, y = np.array([[0, 1, 2, 3]]), np.array([[1, 2, 3, 4]])
    product, gradient, params = hessian.products(model, x, y)
    rng = np.random.default_rng(0)
    v = rng.standard_normal(gradient.size)
    v /= np.linalg.norm(v)
    found = product(v)
    at = [p.numpy().copy() for p in params]

    def slopes(h):
        for p, own, part in zip(params, at, hessian._split(v, params)):
            p.assign(own + h * part.array)
        return hessian._flat(mg.gradients(model.loss(x, y), params))

    np.testing.assert_allclose(found, (slopes(1e-5) - slopes(-1e-5)) / 2e-5, atol=1e-7)
