"""Read digits: an MLP on pictures that are made here, 3 × 5 dots moved about in 8 × 8 and in noise."""
import numpy as np

import minigrad as mg
from minigrad import nn

# five rows of three dots in octal, 0 to 9
GLYPHS = ["75557", "26222", "71747", "71717", "55711", "74717", "44757", "71122", "75757", "75711"]
rng = np.random.default_rng(0)


def pictures(n):
    """n pictures [n, 64] float32 and what they show [n]."""
    shown = rng.integers(0, 10, n)
    made = rng.normal(0.0, 0.25, (n, 8, 8))
    for picture, digit in zip(made, shown):
        dots = np.array([[int(row) >> bit & 1 for bit in (2, 1, 0)] for row in GLYPHS[digit]])
        down, right = rng.integers(0, 3), rng.integers(0, 3)
        picture[down:down + 5, right:right + 3] += dots
    return made.reshape(n, 64).astype("float32"), shown


model = nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 128), nn.GELU(), nn.Linear(128, 10))
optimizer = mg.optim.AdamW(mg.optim.decay_groups(model.parameters(), 0.01), lr=2e-3)
for step in range(801):
    x, y = pictures(128)
    loss = mg.cross_entropy(model(mg.tensor(x)), mg.tensor(y))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 200 == 0:
        print(f"step {step}: loss {loss.item():.3f}")            # at first about ln 10 = 2.303

x, y = pictures(2000)
with mg.no_grad():
    right = float((model(mg.tensor(x)).numpy().argmax(-1) == y).mean())
print(f"{100 * right:.1f} % of 2,000 new pictures are read rightly")
assert right > 0.95
