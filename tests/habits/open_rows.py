"""Rows that are not true yet: the line is taken silently, or gives another number."""
from __future__ import annotations

OPEN: dict[str, tuple[str, ...]] = {
    "PyTorch: functions": (
        "mg.where(x, x, y)",
        "mg.where(n, x, y)",
        "mg.cross_entropy(x, some)",
        "mg.attention(Q, K, V, mg.tensor(np.zeros((3, 3), np.float32)), causal=False)",
        "mg.attention(Q, K, V, mg.tensor(np.array([[0.0, -np.inf, -np.inf], [0, 0, -np.inf], [0, "
        "0, 0]], np.float32)), causal=False)",
        "mg.attention(Q, K, V, mg.tensor(np.tri(3, dtype=np.int64)), causal=False)",
    ),
    "PyTorch: torch.func": (
        "mg.grad(cube(w))",
        "mg.jvp(square, (w,), (o,))",
        "mg.jvp(tilt, (x, y), (b, b))",
    ),
    "transformers and nanoGPT": (
        "model.generate(ids, max_new_tokens=4)",
        "GPT2(config).training",
        "tokenizer.encode('<|endoftext|>')",
    ),
}
