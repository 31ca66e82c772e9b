"""A port of GPT-2 to PyTorch as somebody might write it, with one of many mistakes where asked for; it names tensors as ours are named.

It shares no code with the package: forward pass, loss and optimiser are spelled out, gradients are PyTorch's.
"""
from __future__ import annotations

import math

import torch

ACTIVATIONS = {
    None: lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
    "erf": torch.nn.functional.gelu,
    "relu": torch.relu,
    "quick": lambda x: x * torch.sigmoid(1.702 * x),
    "silu": torch.nn.functional.silu,
    "identity": lambda x: x * 1.0,
    "no cube": lambda x: 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * x)),
    "no root": lambda x: 0.5 * x * (1 + torch.tanh(x + 0.044715 * x**3)),
}


class Port:
    """weights: float arrays by transformers' names. bug: what is wrong, or None. only: the blocks it is in (None: all)."""

    def __init__(self, weights, config, bug=None, only=None, dtype=torch.float32):
        self.w = {name: torch.tensor(a, dtype=dtype).requires_grad_() for name, a in weights.items()}
        self.config, self.bug, self.only = config, bug, only
        self.seen: dict[str, torch.Tensor] = {}

    def has(self, bug, i=None):
        return self.bug == bug and (self.only is None or i is None or i in self.only)

    def at(self, name, x):
        if x.requires_grad:
            x.retain_grad()
        self.seen[name] = x
        return x

    def norm(self, x, name, point, i=None):
        w, b, eps = self.w[f"{name}.weight"], self.w[f"{name}.bias"], self.config.layer_norm_epsilon
        axis = -2 if self.has("norm over places", i) else -1
        mean = 0.0 if self.has("rmsnorm", i) else x.mean(axis, keepdim=True)
        centred = x - mean
        var = centred.square().mean(axis, keepdim=True)
        if self.has("sample variance", i):
            var = x.var(-1, keepdim=True)
        eps = {"eps 1e-6": 1e-6, "eps 1e-12": 1e-12, "no eps": 0.0}.get(self.bug, eps) if self.only is None or i in self.only else eps
        rstd = 1 / (var.sqrt() + eps) if self.has("eps outside", i) else 1 / (var + eps).sqrt()
        if axis == -1 and not self.has("rmsnorm", i):
            self.seen[f"{point}.mean"] = mean.detach()
        if axis == -1:
            self.seen[f"{point}.rstd"] = rstd.detach()
        normal = centred * rstd
        if not self.has("no norm weight", i):
            normal = normal * w
        return normal if self.has("no norm bias", i) else normal + b

    def linear(self, x, name, i):
        w, b = self.w[f"{name}.weight"], self.w[f"{name}.bias"]
        short = name.split(".", 2)[2]
        if self.has(f"{short} transposed", i):
            w = w.reshape(w.shape[1], w.shape[0]).T
        y = x @ w
        return y if self.has(f"no {short} bias", i) else y + b

    def heads(self, y, i):
        B, T, _ = y.shape
        h, k = self.config.n_head, self.config.n_embd // self.config.n_head
        if self.has("heads of q, k, v", i):
            return [p.transpose(1, 2) for p in y.reshape(B, T, h, 3, k).unbind(3)]
        if self.has("heads inside", i):
            return [p.reshape(B, T, k, h).permute(0, 3, 1, 2) for p in y.split(h * k, -1)]
        q, k_, v = (p.reshape(B, T, h, k).transpose(1, 2) for p in y.split(h * k, -1))
        orders = {"q and k swapped": (k_, q, v), "k and v swapped": (q, v, k_), "q and v swapped": (v, k_, q), "k, v, q": (v, q, k_),
                  "v, q, k": (k_, v, q)}
        return orders[self.bug] if self.bug in orders and self.has(self.bug, i) else (q, k_, v)

    def attention(self, q, k, v, i):
        T, size = q.shape[-2], q.shape[-1]
        scores = q @ k.transpose(-1, -2)
        scale = {"no scale": 1.0, "scale d": 1 / math.sqrt(self.config.n_embd), "scale h": 1 / math.sqrt(self.config.n_head),
                 "scale d_head": 1 / size, "scale times": math.sqrt(size)}
        scores = scores * (scale[self.bug] if self.bug in scale and self.has(self.bug, i) else 1 / math.sqrt(size))
        scores = self.at(f"blocks.{i}.attn.scores", scores)
        diagonal = {"mask hides itself": -1, "mask shows next": 1}
        seen = torch.tril(torch.ones(T, T, dtype=torch.bool), diagonal[self.bug] if self.bug in diagonal and self.has(self.bug, i) else 0)
        if self.has("mask upside down", i):
            seen = seen.T
        if self.has("mask after softmax", i):
            p = torch.softmax(scores, -1) * seen
        elif self.has("mask by zeros", i):
            p = torch.softmax(scores * seen, -1)
        elif self.has("no mask", i):
            p = torch.softmax(scores, -1)
        else:
            p = torch.softmax(scores.masked_fill(~seen, -1e10), -2 if self.has("softmax over queries", i) else -1)
        p = self.at(f"blocks.{i}.attn.pattern", p)
        return (p.transpose(-1, -2) if self.has("pattern transposed", i) else p) @ v

    def block(self, x, i):
        name, at = f"blocks.{i}.", self.at
        x = at(name + "resid_pre", x * 1.0)
        first, second = "ln_2" if self.has("ln_2 in ln_1", i) else "ln_1", "ln_1" if self.has("ln_1 in ln_2", i) else "ln_2"
        n1 = at(name + "ln_1.out", self.norm(x, f"h.{i}.{first}", name + "ln_1", i))
        q, k, v = self.heads(self.linear(n1, f"h.{i}.attn.c_attn", i), i)
        q, k, v = at(name + "attn.q", q), at(name + "attn.k", k), at(name + "attn.v", v)
        z = at(name + "attn.z", self.attention(q, k, v, i))
        merged = z.reshape(x.shape) if self.has("no transpose", i) else z.transpose(1, 2).reshape(x.shape)
        a = at(name + "attn.out", merged * 1.0 if self.has("no c_proj", i) else self.linear(merged, f"h.{i}.attn.c_proj", i))
        m = a * 1.0 if self.has("no residual 1", i) else (n1 if self.has("post-norm 1", i) else x) + a
        m = at(name + "resid_mid", m)
        n2 = self.norm(x if self.has("ln_2 too early", i) else m, f"h.{i}.{second}", name + "ln_2", i)
        n2 = at(name + "ln_2.out", n1 * 1.0 if self.has("mlp after ln_1", i) else n2)
        pre = at(name + "mlp.pre", self.linear(n2, f"h.{i}.mlp.c_fc", i))
        f = ACTIVATIONS[self.bug if self.bug in ACTIVATIONS and self.has(self.bug, i) else None]
        o = at(name + "mlp.out", self.linear(at(name + "mlp.act", f(pre)), f"h.{i}.mlp.c_proj", i))
        y = o * 1.0 if self.has("no residual 2", i) else (n2 if self.has("post-norm 2", i) else x if self.has("parallel", i) else m) + o
        return at(name + "resid_post", y)

    def forward(self, ids):
        T, table = ids.shape[1], self.w["wpe.weight"]
        x = self.w["wte.weight"][ids]
        if self.bug == "times sqrt d":
            x = x * math.sqrt(self.config.n_embd)
        places = torch.arange(T) + (self.bug == "positions from 1")
        p = table[places] * (0.0 if self.bug == "no positions" else 1.0)
        x = self.at("embed", x) + self.at("pos_embed", p)
        for i in range(self.config.n_layer):
            x = self.block(x, i)
        if self.bug != "no ln_f":
            x = self.norm(x, "ln_f", "ln_f")
        head = self.w.get("lm_head.weight", self.w["wte.weight"])
        return self.at("logits", self.at("ln_f.out", x * 1.0) @ head.T)

    def loss(self, ids, targets):
        logp = torch.log_softmax(self.forward(ids), -1)
        if self.bug == "not shifted":
            targets = ids
        each = -logp.gather(-1, targets[..., None])[..., 0]
        wrong = {"sum": lambda: each.sum(), "rows": lambda: each.sum(-1).mean(), "bits": lambda: each.mean() / math.log(2),
                 "perplexity": lambda: each.mean().exp(), "last": lambda: each[:, -1].mean(), "sign": lambda: -each.mean()}
        return wrong.get(self.bug, each.mean)()

    def run(self, ids, targets, grad=False, steps=0, adam=None):
        """Everything, by our names, as torch tensors."""
        ids, targets = torch.tensor(ids), torch.tensor(targets)
        loss = self.loss(ids, targets)
        out = {name: x.detach() for name, x in self.seen.items()} | {"loss": loss.detach()}
        if grad:
            loss.backward()
            out |= {f"{name}.grad": x.grad for name, x in self.seen.items() if x.grad is not None}
            out |= {f"{name}.grad": p.grad.clone() for name, p in self.w.items()}
        m, v, total = ({name: torch.zeros_like(p) for name, p in self.w.items()} for _ in range(3))
        for t in range(1, steps + 1):
            for p in self.w.values():
                p.grad = None
            loss = self.loss(ids, targets)
            loss.backward()
            out[f"step.{t}.loss"] = loss.detach()
            norm = math.sqrt(sum(float(p.grad.square().sum()) for p in self.w.values()))
            with torch.no_grad():
                for name, p in self.w.items():
                    self.update(name, p, m, v, total, t, norm, *adam)
                    out[f"step.{t}.{name}"] = p.detach().clone()
        return out

    def update(self, name, p, m, v, total, t, norm, lr, b1, b2, eps, decay):
        g, bug = p.grad, self.bug
        if bug == "summed":
            g = total[name] = total[name] + g
        if bug == "clipped":
            g = g / max(1.0, norm)
        if bug == "coupled":
            g = g + decay * p
        if bug == "moments kept not":
            m[name], v[name] = m[name] * 0, v[name] * 0
        m[name] = b1 * m[name] + (1 - b1) * g
        v[name] = b2 * v[name] + (1 - b2) * g * g
        t = 1 if bug == "t stays 1" else t
        c1, c2 = (1, 1) if bug == "no correction" else (1 - b1**t, 1 - b2**t)
        under = (v[name] / c2 + eps).sqrt() if bug == "eps inside" else (v[name].sqrt() + eps) / math.sqrt(c2) if bug == "eps early" else \
            (v[name] / c2).sqrt() + eps
        if not (bug in ("no decay", "coupled") or (bug == "matrices" and p.ndim < 2)):
            p.mul_(1 - lr * decay)
        p.sub_((-1 if bug == "plus" else 1) * lr * (g if bug == "sgd" else m[name] / c1 / under))
