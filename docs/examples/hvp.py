"""Higher derivatives at work: Newton's method on Rosenbrock's valley in 30 dimensions, by Hessian-vector products alone."""
import numpy as np

import minigrad as mg


def valley(x):
    """Σ 100 (x_{i+1} − x_i²)² + (1 − x_i)², whose least value is 0, at 1, 1, …, 1. x [n] -> []."""
    a, b = x[:-1], x[1:]
    return (100.0 * (b - a * a) * (b - a * a) + (1.0 - a) * (1.0 - a)).sum()


def solve(multiply, right, steps=200):
    """Conjugate gradients for H s = right, from H v alone; stops where the curvature is not positive or little is left."""
    s, r = np.zeros_like(right), right.copy()
    p = r
    for _ in range(steps):
        Hp = multiply(p)
        if p @ Hp <= 0.0:
            return s if s.any() else right
        a = (r @ r) / (p @ Hp)
        s, left = s + a * p, r - a * Hp
        if left @ left < 1e-20 * (right @ right):
            break
        r, p = left, left + (left @ left) / (r @ r) * p
    return s


x = np.random.default_rng(0).uniform(-1.0, 1.0, 30)
value_and_grad = mg.value_and_grad(valley)
for iteration in range(200):
    at = mg.tensor(x)
    value, slope = (t.numpy() for t in value_and_grad(at))
    if iteration % 10 == 0 or abs(slope).max() < 1e-9:
        print(f"iteration {iteration}: value {float(value):.3e}, largest slope {abs(slope).max():.1e}")
    if abs(slope).max() < 1e-9:
        break
    step = solve(lambda v, at=at: mg.hvp(valley, [at], [mg.tensor(v)])[0].numpy(), -slope)     # a gradient of a gradient: no n × n matrix
    rate = 1.0
    while valley(mg.tensor(x + rate * step)).item() > value and rate > 1e-8:
        rate /= 2
    x = x + rate * step

H = mg.hessian(valley)(mg.tensor(x)).numpy()
v = np.random.default_rng(1).standard_normal(30)
print(f"H v by hvp and by the whole Hessian differ by {abs(H @ v - mg.hvp(valley, [mg.tensor(x)], [mg.tensor(v)])[0].numpy()).max():.1e}")
assert abs(slope).max() < 1e-9
