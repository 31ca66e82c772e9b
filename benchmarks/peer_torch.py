"""The workloads of PyTorch: transformers' GPT-2 with scaled_dot_product_attention, eager or compiled, fused AdamW, and `generate`."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import agreement, engines
from .peers import Work
from .rows import Row


def about(compiled: bool = False) -> str:
    import torch
    import transformers

    backend = "oneDNN and MKL" if torch.backends.mkl.is_available() else "no MKL"
    return (f"PyTorch {torch.__version__}{', compiled' if compiled else ''}, transformers {transformers.__version__}, {backend}, "
            f"kernels {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads")


def load(checkpoint: str) -> Any:
    import transformers

    transformers.logging.set_verbosity_error()
    return transformers.GPT2LMHeadModel.from_pretrained(checkpoint, attn_implementation="sdpa")


def build_compiled(task: Mapping[str, Any]) -> Work:
    return build(task, compiled=True)


def build(task: Mapping[str, Any], compiled: bool = False) -> Work:
    row = Row.from_dict(task["row"])
    if row.kind == "chain":
        return engines.torch_chain(task)
    if not row.model:
        return engines.torch_op(task)
    import torch
    from torch.nn.functional import cross_entropy

    model = load(task["checkpoint"])
    ids, targets = (torch.from_numpy(a.copy()) for a in agreement.batch_of(row, model.config))
    described = about(compiled)

    if row.kind == "forward":
        model.eval()
        compute = (torch.compile if compiled else lambda f: f)(lambda: model(ids, use_cache=False).logits)

        def logits() -> Any:
            with torch.inference_mode():
                return compute()

        return Work(logits, lambda: {"values": {"logits": agreement.sketch("logits", logits().cpu().numpy())}}, described)

    if row.kind == "decode":
        model.eval()
        seen = torch.ones_like(ids)

        def generate() -> Any:
            return model.generate(ids, attention_mask=seen, max_new_tokens=row.new, min_new_tokens=row.new, do_sample=False,
                                  eos_token_id=None, pad_token_id=0)

        def decoded() -> dict[str, Any]:
            whole = generate()
            new = whole[:, row.tokens:]
            with torch.inference_mode():
                logs = model(whole[:, :-1], use_cache=False).logits[:, row.tokens - 1:].double().log_softmax(-1)
            return {"ids": new.tolist(), "scores": logs.gather(-1, new[..., None])[..., 0].sum(-1).tolist()}

        return Work(generate, decoded, described)

    model.train()                                       # the checkpoint has a dropout of 0
    parameters = list(model.parameters())
    groups = [{"params": [p for p in parameters if p.ndim >= 2], "weight_decay": agreement.DECAY},
              {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=agreement.RATE, fused=True)

    def loss_of() -> Any:
        return cross_entropy(model(ids, use_cache=False).logits.flatten(0, 1), targets.flatten())

    loss_of = torch.compile(loss_of) if compiled else loss_of

    def step() -> Any:
        loss = loss_of()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss

    def first() -> dict[str, Any]:
        loss = loss_of()
        loss.backward()
        gradients = {}
        for name, p in model.named_parameters():
            short = name.removeprefix("transformer.")
            gradients[short] = agreement.sketch(short, p.grad.cpu().numpy())
        optimizer.step()
        optimizer.zero_grad()
        return {"loss": loss.item(), "gradients": gradients, "next_loss": step().item()}

    return Work(step, first, described)


START = """
import json, sys
import torch
from transformers import GPT2LMHeadModel
model = GPT2LMHeadModel.from_pretrained(sys.argv[1]).eval()
ids = torch.tensor([json.loads(sys.argv[2])])
out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=1, do_sample=False, eos_token_id=None, pad_token_id=0)
print(int(out[0, -1]), flush=True)
"""
