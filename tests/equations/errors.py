"""The equations of docs/numerics.md, by numbers."""
from __future__ import annotations

import numpy as np

from gpt2.golden.__main__ import entry
from gpt2.verify.port import unit_of
from minigrad.testing.laws.reference import aligned
from minigrad.testing.laws.tolerance import allowed, bound, complex_step, difference

from .by_numbers import at_most, differs, is_so, same

U = 2.0**-24  # u of float32


def rounded(x):
    """Numbers that float32 holds exactly, as float64."""
    return np.asarray(x).astype(np.float32).astype(np.float64)


def one_by_one(terms):
    """The sums of rows of float32, added one number after the other."""
    return np.cumsum(terms.astype(np.float32), axis=-1, dtype=np.float32)[..., -1].astype(np.float64)


def tolerance_1(normal):
    r"""\mathrm{fl}(a \circ b) = (a \circ b)(1 + \delta), \qquad |\delta| \le u ."""
    a, b = rounded(normal(2, 5000))
    b = np.abs(b)
    for fl, exact in (
        ((np.float32(a) + np.float32(b)), a + b),
        (np.float32(a) * np.float32(b), a * b),
        (np.float32(a) / np.float32(b), a / b),
        (np.sqrt(np.float32(b)), np.sqrt(b)),
    ):
        at_most(np.abs(fl.astype(np.float64) / exact - 1), U * np.ones(5000) * (1 + 1e-6), share=0.9)


def tolerance_2(normal):
    r"""\prod_{i=1}^{m} (1 + \delta_i) = 1 + \theta_m, \qquad |\theta_m| \le m\,u ."""
    m = 10
    delta = U * np.where(normal(1000, m) > 0, 1, -1)
    at_most(np.abs(np.prod(1 + delta, axis=1) - 1), m * U * np.ones(1000) * (1 + m * U), share=0.7)


def tolerance_3(normal):
    r"""\begin{aligned} \hat s_n &= \sum_{i=1}^{n} t_i\,(1 + \theta^{(i)}), \quad |\theta^{(i)}| \le
    (n - 1)\,u, \\ |\hat s_n - s| &\le (n - 1)\,u \sum_i |t_i| . \end{aligned}"""
    n = 4
    t = rounded(normal(5000, n))
    at_most(np.abs(one_by_one(t) - t.sum(1)), (n - 1) * U * np.abs(t).sum(1), share=0.3)


def tolerance_4(normal):
    r"""|\hat s_n - s| \le (n + k)\,u \sum_i |t_i| ."""
    n, k = 4, 1  # each term is a product, one operation
    a, b = rounded(normal(2, 5000, n))
    products = (np.float32(a) * np.float32(b)).astype(np.float64)
    at_most(np.abs(one_by_one(products) - (a * b).sum(1)), (n + k) * U * np.abs(a * b).sum(1), share=0.3)


def tolerance_5(normal):
    r"""|\hat s_n - s| \le (n + k)\; n\, u\, S ."""
    n, k = 4, 1
    a, b = rounded(normal(2, 5000, n))
    S = max(1.0, np.abs(a * b).max())
    products = (np.float32(a) * np.float32(b)).astype(np.float64)
    is_so((n + k) * U * np.abs(a * b).sum(1) <= (n + k) * n * U * S)
    is_so(np.abs(one_by_one(products) - (a * b).sum(1)) <= (n + k) * n * U * S)
    same(bound("float32", n, S) / U, (n + 40) * n * S)  # the convention of the laws: k is 40


def tolerance_16(normal):
    r"""|\hat y - y| \le u \left(12 + \tfrac34 \sqrt n\right)\left(|y| + \sigma\right) + 24\,u F +
    \min\left(8 s,\; 512\,u F\right) ."""
    y, sigma, s, n, F = normal(5), np.abs(normal(5)), np.abs(normal(5)) * [1, 1, 1, 100, 1000] * U, 9, 1.5
    found = allowed("float32", y, sigma, s, n, F)
    same(
        found / U,
        (12 + 3 / 4 * np.sqrt(n)) * (np.abs(y) + sigma) + 24 * F + np.minimum(8 * s / U, 512 * F),
        within=1e-6,
    )


def tolerance_17(normal):
    r"""4 \left(u_{16}\,(|y| + \sigma) + \tfrac12 t\right) + 2\,u_{16} F ."""
    y, sigma, n, F, u16, t = normal(5), np.abs(normal(5)), 9, 1.5, 2.0**-11, 2.0**-24
    more = allowed("float16", y, sigma, 0.0, n, F) - allowed("float32", y, sigma, 0.0, n, F)
    same(more / u16, (4 * (u16 * (np.abs(y) + sigma) + 1 / 2 * t) + 2 * u16 * F) / u16, within=1e-6)
    value = allowed("float16", y, sigma, 0.0, n, F, 2, saved=False) - allowed("float32", y, sigma, 0.0, n, F)
    same(value / u16, 2 * (u16 * (np.abs(y) + sigma) + 1 / 2 * t) / u16, within=1e-6)


def tolerance_18(normal):
    r"""\Bigl|\sum_i (\hat y_i - y_i)\, y_i\Bigr| \le \sum_i |y_i| \min\left(E_i,\; 24\,u |y_i| +
    3u + \tfrac1{12} E_i\right) + 3 \Bigl(\sum_i y_i^2 E_i^2\Bigr)^{1/2} ."""
    y, E = normal(6), np.abs(normal(6)) * 100 * U
    off = U * normal(6)
    left = abs(sum(off * y))
    right = sum(np.abs(y) * np.minimum(E, 24 * U * np.abs(y) + 3 * U + E / 12)) + 3 * np.sqrt(sum(y**2 * E**2))
    same(aligned(off, y, np.dtype("float32"), E), left / right)


def tolerance_15(normal):
    r"""|\hat y - y| \le (n + rk)\, n\, u_{32}\, S + 4r \left(u_{16}\, S + \tfrac12 t\right) ."""
    n, k, S, u16, t = 9, 40, 2.5, 2.0**-11, 2.0**-24
    for r in (1, 2, 3):
        same(bound("float16", n, S, r) / u16, ((n + r * k) * n * U * S + 4 * r * (u16 * S + 1 / 2 * t)) / u16)


def tolerance_6(normal):
    r"""\text{units} = \max_i \frac{|\hat y_i - y_i|}{E_i}"""
    off, E = U * normal(5), U * np.abs(normal(5)) + U
    units = max(abs(off[i]) / E[i] for i in range(5))
    at_most(np.abs(off), units * E, share=1.0)  # all hold at that many units, and one of them no longer at less


def tolerance_7(normal):
    r"""\text{unit} = \max\bigl(1, \tfrac{1}{64}\sqrt{n}\bigr)\;
    \max\bigl(\max_i |a_{32,i} - a_i|,\; u_{32} \max_i |a_i|\bigr) ."""
    a = normal(50)
    for narrow in (a.astype(np.float32), a):  # rounded; and exact, where the second argument of max counts
        unit = max(max(abs(narrow.astype(np.float64) - a)), U * max(abs(a)))
        for n in (1, 4096, 50257):
            same(entry("x", "gelu.2", a, narrow, "float64", n).unit / U, max(1, np.sqrt(n) / 64) * unit / U)
    a[0] = 2.0**20  # exact in float32, and largest: the others' roundings are less than its
    same(entry("x", "gelu.2", a, a.astype(np.float32), "float64").unit / U, max(abs(a)))
    far = a * (1 + 1e-3)
    same(entry("x", "gelu.2", a, far, "float64").unit, max(abs(far - a)))


def tolerance_8(normal):
    r"""\text{unit of a port} = \text{unit} \cdot \frac{\max(u_\text{port}, u_\text{truth})}{u_{32}}
    ."""
    a, u = normal(50), {"float64": 2.0**-53, "float32": U, "float16": 2.0**-11}
    for truth in ("float64", "float32"):
        one = entry("x", "gelu.2", a, a.astype(np.float32), truth)
        for port in u:
            same(unit_of(one, port)[0] / one.unit, max(u[port], u[truth]) / U, within=1e-15)


def tolerance_9(normal):
    r"""\frac{\mathrm{Im}\,\phi(ih)}{h} = \phi'(0) - \frac{h^2}{6}\,\phi'''(0) + \dots"""
    f, (d1, d3) = np.exp, (1.0, 1.0)  # all derivatives of exp at 0 are 1
    for h in (0.1, 0.05):
        same(np.imag(f(1j * h)) / h, d1 - h**2 / 6 * d3, within=h**4 / 100)
    same(complex_step(np.exp), d1, within=1e-15)


def tolerance_10(normal):
    r"""\begin{aligned} D(h) &= \frac{8\,(\phi(h) - \phi(-h)) - (\phi(2h) - \phi(-2h))}{12\,h} \\ &=
    \phi' - \frac{h^4}{30}\,\phi^{(5)} - \frac{h^6}{252}\,\phi^{(7)} - \dots \end{aligned}"""
    f, h = np.exp, 0.2
    D = (8 * (f(h) - f(-h)) - (f(2 * h) - f(-2 * h))) / (12 * h)
    same(D, 1 - h**4 / 30 - h**6 / 252, within=h**8 / 1000)
    differs(10 * (D - 1) / h**4, -10 * (D - 1) / h**4)


def tolerance_11(normal):
    r"""\frac{16\,D(h) - D(2h)}{15} = \phi' + \frac{4}{315}\,h^6\,\phi^{(7)} + \dots"""
    f, h = np.exp, 0.2
    one, two = ((8 * (f(k) - f(-k)) - (f(2 * k) - f(-2 * k))) / (12 * k) for k in (h, 2 * h))
    same((16 * one - two) / 15, 1 + 4 / 315 * h**6, within=h**8 / 50)


def tolerance_12(normal):
    r"""|\text{error}| \le |\text{result} - D(h)| + 3\cdot\frac{2u}{h}\, \Phi ."""
    f, sigma, X, errors = (lambda h: np.exp(0.3 + h)), 0.5, 0.3, []
    for shorter in (1, 8, 64):
        h = (2 * 2.0**-53) ** (1 / 5) / shorter
        one, two = ((8 * (f(k) - f(-k)) - (f(2 * k) - f(-2 * k))) / (12 * k) for k in (h, 2 * h))
        result = (16 * one - two) / 15
        Phi = abs(f(0)) + sigma + (1 + abs(result)) * X
        errors.append(abs(result - one) + 3 * 2 * 2.0**-53 / h * Phi)
    found, error = difference(f, "float64", sensitivity=sigma, largest=X)
    same(float(error) / min(errors), 1, within=0.01)  # of the steps that are tried, the one with the least error
    is_so(abs(float(found) - f(0)) <= error)


def tolerance_13(normal):
    r"""\frac{\text{rms error}}{\text{rms}} \approx u\sqrt{n/6} ."""
    for n in (192, 768):
        t = rounded(normal(2000, n))
        off = one_by_one(t) - t.sum(1)
        share = np.linalg.norm(off) / np.linalg.norm(t.sum(1)) / (U * np.sqrt(n / 6))
        is_so(0.6 < share < 0.9)  # 0.74, as the page says


def tolerance_14(normal):
    r"""\frac{\text{rms error}}{\text{rms}} \approx u\sqrt{\frac{c}{6} + \frac{n}{6c}} ,"""
    n, c = 768, 48
    t = rounded(normal(2000, n))
    off = one_by_one(one_by_one(t.reshape(2000, n // c, c))) - t.sum(1)
    is_so(0.6 < np.linalg.norm(off) / np.linalg.norm(t.sum(1)) / (U * np.sqrt(c / 6 + n / (6 * c))) < 0.9)
