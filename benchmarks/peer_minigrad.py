"""The workloads of minigrad for every row, with public names only, as a user of gpt2 and minigrad would write them."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import agreement, engines
from .peers import Work
from .rows import Row


def build(task: Mapping[str, Any]) -> Work:
    row = Row.from_dict(task["row"])
    if row.kind == "chain":
        return engines.minigrad_chain(task)
    if not row.model:
        return engines.minigrad_op(task)
    from gpt2 import GPT2

    return work(GPT2.from_pretrained(task["checkpoint"]), row)


def work(model: Any, row: Row) -> Work:
    """The row's work for a model, on the model's device."""
    import numpy as np

    import minigrad as mg

    here = mg.backend.get(model.where["device"]).backend
    ids, targets = agreement.batch_of(row, model.config)
    peak = here.namespace.get_default_memory_pool().total_bytes if here.devices else None

    def logits() -> Any:
        with mg.no_grad():
            out = model(ids)
        here.synchronize()
        return out

    if row.kind == "forward":
        here.settle()                              # as in any loop of equal passes
        return Work(logits, lambda: {"values": {"logits": agreement.sketch("logits", here.host(logits().array))}}, engines.about(), peak)
    if row.kind == "decode":
        def generate() -> list[list[int]]:
            out: list[list[int]] = model.generate(ids, max_new_tokens=row.new, greedy=True, eos_token_id=None)
            return out

        def answer() -> dict[str, Any]:
            """The new ids, their log-probabilities, the distance of each from the second best logit, and the size of the logits."""
            whole = generate()
            with mg.no_grad():
                z = here.host(model([each[:-1] for each in whole]).array)[:, row.tokens - 1:].astype(np.float64)     # [B, new, V]
            new = [each[row.tokens:] for each in whole]
            best = np.sort(z, axis=-1)[..., -2:]
            top = z.max(-1, keepdims=True)
            logs = z - top - np.log(np.exp(z - top).sum(-1, keepdims=True))
            scores = np.take_along_axis(logs, np.array(new)[..., None], -1)[..., 0].sum(-1)
            margins = np.stack([best[..., 1] - best[..., 0], np.abs(z).max(-1)], -1)
            return {"ids": new, "scores": scores.tolist(), "margins": margins.tolist()}

        return Work(generate, answer, engines.about(), peak)

    model.train()
    here.settle()
    optimizer = mg.optim.AdamW(mg.optim.decay_groups(model.parameters(), agreement.DECAY), lr=agreement.RATE)

    def step() -> Any:
        loss = model.loss(ids, targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        here.synchronize()
        return loss

    def first() -> dict[str, Any]:
        loss = model.loss(ids, targets)
        loss.backward()
        gradients = {name: agreement.sketch(name, here.host(p.grad.array)) for name, p in model.named_parameters()}
        optimizer.step()
        optimizer.zero_grad()
        return {"loss": float(loss), "gradients": gradients, "next_loss": float(step()), "size": model.num_parameters()}

    return Work(step, first, engines.about(), peak)


START = """
import json, sys
from gpt2 import GPT2
model = GPT2.from_pretrained(sys.argv[1])
ids = json.loads(sys.argv[2])
print(model.generate([ids], max_new_tokens=1, greedy=True, eos_token_id=None)[0][-1], flush=True)
"""
