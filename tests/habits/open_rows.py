"""Rows that are not true yet: the line is taken silently, or gives another number."""
from __future__ import annotations

OPEN: dict[str, tuple[str, ...]] = {
    "PyTorch: tensors": (
        "x.var()",
        "x.var(axis=-1)",
        "z.T",
        "z.split(1, axis=1)",
    ),
    "PyTorch: functions": (
        "mg.var(x, axis=0)",
        "mg.power(0.0, v)",
        "mg.where(x > 0, 1.0, 0.0)",
        "mg.where(x, x, y)",
        "mg.where(n, x, y)",
        "mg.split(x, 1)",
        "mg.split(m, 2)",
        "mg.split(m, [1, 3])",
        "mg.gelu(x)",
        "mg.cross_entropy(x, mg.tensor([-100, -100]))",
        "mg.cross_entropy(x, some)",
        "mg.attention(Q, K, V)",
        "mg.attention(Q, K, V, mg.tensor(np.zeros((3, 3), np.float32)), causal=False)",
        "mg.attention(Q, K, V, mg.tensor(np.array([[0.0, -np.inf, -np.inf], [0, 0, -np.inf], [0, "
        "0, 0]], np.float32)), causal=False)",
        "mg.attention(Q, K, V, mg.tensor(np.tri(3, dtype=np.int64)), causal=False)",
    ),
    "PyTorch: edges": (
        "mg.maximum(w, mg.tensor([np.nan, 1.0, 2.0]))",
    ),
    "PyTorch: torch.func": (
        "mg.grad(cube, w)",
        "mg.grad(cube(w))",
        "mg.jvp(square, (w,), (o,))",
        "mg.jvp(square, (w,), (o[:1],))",
        "mg.jvp(square, (w,), (mg.tensor(1.0),))",
        "mg.jvp(square, (x,), (o,))",
        "mg.jvp(square, (w,), (1.0,))",
        "mg.jvp(tilt, (x, y), (b, b))",
        "mg.jacobian(square, w)",
        "mg.hessian(cube, w)",
        "mg.hvp(cube, (w,), (o[:1],))",
    ),
    "NumPy: arrays": (
        "z.T",
        "z.transpose()",
        "x.take(ia)",
    ),
    "transformers and nanoGPT": (
        "model.loss(ids, ids * 0 - 100)",
        "model.generate(ids, max_new_tokens=4)",
        "GPT2(config).training",
        "tokenizer.encode('<|endoftext|>')",
    ),
}
