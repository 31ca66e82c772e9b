"""GPT-2 in plain PyTorch with scaled_dot_product_attention: a peer that needs no transformers, with our names for the weights."""
from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from . import agreement


def gpt2(config: Any, arrays: Mapping[str, Any], device: str) -> Any:
    """An nn.Module from ids [B, T] to logits [B, T, V], with copies of the weights in float32 on `device`."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    d, h, eps = config.n_embd, config.n_head, config.layer_norm_epsilon

    class Affine(nn.Module):
        def __init__(self, d_in: int, d_out: int) -> None:
            super().__init__()
            self.weight, self.bias = nn.Parameter(torch.empty(d_in, d_out)), nn.Parameter(torch.empty(d_out))

        def forward(self, x: Any) -> Any:
            return F.linear(x, self.weight.t(), self.bias)

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.c_attn, self.c_proj = Affine(d, 3 * d), Affine(d, d)

        def forward(self, x: Any) -> Any:
            q, k, v = (y.unflatten(-1, (h, d // h)).transpose(1, 2) for y in self.c_attn(x).split(d, -1))
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            return self.c_proj(y.transpose(1, 2).flatten(-2))

    class MLP(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            n = config.n_inner or 4 * d
            self.c_fc, self.c_proj = Affine(d, n), Affine(n, d)

        def forward(self, x: Any) -> Any:
            return self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.ln_1, self.attn, self.ln_2, self.mlp = nn.LayerNorm(d, eps), Attention(), nn.LayerNorm(d, eps), MLP()

        def forward(self, x: Any) -> Any:
            x = x + self.attn(self.ln_1(x))
            return x + self.mlp(self.ln_2(x))

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wte, self.wpe = nn.Embedding(config.vocab_size, d), nn.Embedding(config.n_positions, d)
            self.h = nn.ModuleList(Block() for _ in range(config.n_layer))
            self.ln_f = nn.LayerNorm(d, eps)

        def forward(self, ids: Any) -> Any:
            x = self.wte(ids) + self.wpe.weight[:ids.shape[1]]
            for block in self.h:
                x = block(x)
            return F.linear(self.ln_f(x), self.wte.weight)

    with torch.device(device):
        model = Model()
    model.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()})
    return model


class Step:
    """A training step of PyTorch in a dtype, with fused AdamW; bfloat16 is autocast over float32 weights. run() does one step."""

    def __init__(self, config: Any, arrays: Mapping[str, Any], batch: Any, dtype: str, device: str, compiled: str = "") -> None:
        import torch
        from torch.nn.functional import cross_entropy

        self.torch, self.device, model = torch, device, gpt2(config, arrays, device)
        self.names = [(name, p) for name, p in model.named_parameters()]
        ids, targets = (torch.from_numpy(a.copy()).to(device) for a in batch)
        kind, half = device.partition(":")[0], dtype in ("float16", "bfloat16")

        def loss_of() -> Any:
            with torch.autocast(kind, getattr(torch, dtype) if half else torch.bfloat16, enabled=half):
                return cross_entropy(model(ids).float().flatten(0, 1), targets.flatten())

        self.loss_of: Callable[[], Any] = torch.compile(loss_of, backend=compiled) if compiled else loss_of
        parameters = [p for _, p in self.names]
        groups = [{"params": [p for p in parameters if p.ndim >= 2], "weight_decay": agreement.DECAY},
                  {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=agreement.RATE, fused=True)

    def run(self) -> Any:
        loss = self.loss_of()
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss

    def answer(self) -> dict[str, Any]:
        """The losses before and after a step, and a sketch of every gradient (see `benchmarks.agreement`)."""
        loss = self.loss_of()
        loss.backward()
        gradients = {name: agreement.sketch(name, p.grad.cpu().numpy()) for name, p in self.names}
        self.optimizer.step()
        self.optimizer.zero_grad()
        return {"loss": loss.item(), "gradients": gradients, "next_loss": self.run().item()}

    def peak(self) -> int:
        """The largest number of bytes of the device's memory that PyTorch has used."""
        return int(self.torch.cuda.max_memory_reserved(self.device)) if self.device != "cpu" else 0
