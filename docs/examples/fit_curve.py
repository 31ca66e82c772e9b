"""Fit a curve, y = a sin(ω x + φ) + c, by gradient descent, with a sine that is declared here, in three lines, as any op of your own."""
import numpy as np

import minigrad as mg
from minigrad.op import elementwise


@elementwise(x=lambda g, x: g * sine(x + np.pi / 2))     # cos x = sin(x + π/2), so the rule can be differentiated again, and again
def sine(xp, x):
    """sin x, elementwise."""
    return xp.sin(x)


rng = np.random.default_rng(0)
true = {"a": 1.5, "ω": 2.0, "φ": 0.7, "c": -0.3}
points = np.linspace(-3.0, 3.0, 200)
noisy = true["a"] * np.sin(true["ω"] * points + true["φ"]) + true["c"] + 0.05 * rng.standard_normal(200)
x, y = mg.tensor(points), mg.tensor(noisy)

found = {name: mg.tensor(np.array(start), requires_grad=True) for name, start in {"a": 1.0, "ω": 1.8, "φ": 0.0, "c": 0.0}.items()}
optimizer = mg.optim.Adam(found.values(), lr=0.02)
for step in range(501):
    error = found["a"] * sine(found["ω"] * x + found["φ"]) + found["c"] - y
    loss = (error * error).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 100 == 0:
        print(f"step {step}: mean square error {loss.item():.5f}")

for name, value in true.items():
    print(f"{name} = {found[name].item():.3f}, was {value}")
assert all(abs(found[name].item() - value) < 0.02 for name, value in true.items())
