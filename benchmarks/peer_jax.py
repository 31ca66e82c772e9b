"""The workloads of JAX: GPT-2 as a function of its parameters; the whole training step with AdamW is one jit with donated buffers."""
from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from . import agreement
from .peers import Work
from .rows import Row


def build(task: Mapping[str, Any]) -> Work:
    import jax
    import jax.numpy as jnp
    import numpy as np

    from gpt2.weights.checkpoint import read_checkpoint
    from minigrad.backend.numpy.kernels import cores

    row = Row.from_dict(task["row"])
    found = read_checkpoint(task["checkpoint"])
    config, eps = found.config, found.config.layer_norm_epsilon
    assert config.activation_function == "gelu_new" and config.tie_word_embeddings
    d, heads = config.n_embd, config.n_head
    size = d // heads
    w0 = {name: jnp.array(array) for name, array in found.parameters.items()}
    ids, targets = (jnp.asarray(a) for a in agreement.batch_of(row, config))

    def norm(x: Any, weight: Any, bias: Any) -> Any:
        mean = jnp.mean(x, -1, keepdims=True)
        return (x - mean) * jax.lax.rsqrt(jnp.var(x, -1, keepdims=True) + eps) * weight + bias

    def attention(q: Any, k: Any, v: Any, seen: Any) -> Any:           # 3 × [B, h, T, d/h], [T, T]
        scores = jnp.where(seen, jnp.einsum("bhqe,bhke->bhqk", q, k) / math.sqrt(size), -jnp.inf)
        return jnp.einsum("bhqk,bhke->bhqe", jax.nn.softmax(scores), v)

    def logits_of(w: Any, ids: Any) -> Any:                            # [B, T]
        B, T = ids.shape
        seen = jnp.tri(T, dtype=bool)
        x = w["wte.weight"][ids] + w["wpe.weight"][:T]                 # [B, T, d]
        for i in range(config.n_layer):
            p = {name.removeprefix(f"h.{i}."): array for name, array in w.items() if name.startswith(f"h.{i}.")}
            y = norm(x, p["ln_1.weight"], p["ln_1.bias"]) @ p["attn.c_attn.weight"] + p["attn.c_attn.bias"]
            q, k, v = (part.reshape(B, T, heads, size).swapaxes(1, 2) for part in jnp.split(y, 3, -1))
            y = attention(q, k, v, seen).swapaxes(1, 2).reshape(B, T, d)
            x = x + y @ p["attn.c_proj.weight"] + p["attn.c_proj.bias"]
            y = norm(x, p["ln_2.weight"], p["ln_2.bias"]) @ p["mlp.c_fc.weight"] + p["mlp.c_fc.bias"]
            x = x + jax.nn.gelu(y, approximate=True) @ p["mlp.c_proj.weight"] + p["mlp.c_proj.bias"]
        return norm(x, w["ln_f.weight"], w["ln_f.bias"]) @ w["wte.weight"].T         # [B, T, V]

    def loss_of(w: Any, ids: Any, targets: Any) -> Any:
        z = logits_of(w, ids)
        picked = jnp.take_along_axis(z, targets[..., None], -1)[..., 0]
        return jnp.mean(jax.nn.logsumexp(z, -1) - picked)

    def update(w: Any, m: Any, v: Any, t: Any, ids: Any, targets: Any) -> Any:
        b1, b2, small = 0.9, 0.999, 1e-8
        loss, g = jax.value_and_grad(loss_of)(w, ids, targets)
        t = t + 1
        m = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, m, g)
        v = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g * g, v, g)

        def moved(w: Any, m: Any, v: Any) -> Any:
            decay = agreement.DECAY if w.ndim >= 2 else 0.0
            return w * (1 - agreement.RATE * decay) - agreement.RATE * (m / (1 - b1 ** t)) / (jnp.sqrt(v / (1 - b2 ** t)) + small)

        return jax.tree.map(moved, w, m, v), m, v, t, loss

    described = f"JAX {jax.__version__} jit on XLA's CPU, {cores()} cores"
    if row.kind == "forward":
        forward = jax.jit(logits_of)

        def values() -> dict[str, Any]:
            return {"values": {"logits": agreement.sketch("logits", np.asarray(forward(w0, ids)))}}

        return Work(lambda: forward(w0, ids).block_until_ready(), values, described)

    step = jax.jit(update, donate_argnums=(0, 1, 2))
    first_gradient = jax.jit(jax.grad(loss_of))
    state: list[Any] = []

    def run() -> Any:
        w, m, v, t, loss = step(*state, ids, targets)
        jax.block_until_ready(w)
        state[:] = w, m, v, t
        return loss

    def answer() -> dict[str, Any]:
        gradients = {name: agreement.sketch(name, np.asarray(g)) for name, g in first_gradient(w0, ids, targets).items()}
        zeros = [{name: jnp.zeros_like(array) for name, array in w0.items()} for _ in range(2)]
        state[:] = dict(w0), *zeros, jnp.float32(0)
        w0.clear()                                      # the step reuses these buffers
        return {"loss": float(run()), "gradients": gradients, "next_loss": float(run())}

    return Work(run, answer, described)
