"""A GPT over characters in some forty lines: embeddings, pre-norm blocks of attention and MLP, a tied head, and its training."""
import numpy as np

import minigrad as mg
from minigrad.nn import GELU, Embedding, LayerNorm, Linear, Module, Sequential

PARTS = ["the house that Jack built", "the malt that lay in", "the rat that ate", "the cat that killed", "the dog that worried",
         "the cow with the crumpled horn that tossed", "the maiden all forlorn that milked", "the man all tattered and torn that kissed",
         "the priest all shaven and shorn that married", "the cock that crowed in the morn that woke"]
TEXT = "".join(f"This is {' '.join(reversed(PARTS[:n]))}.\n" for n in range(1, 11))
CHARS = sorted(set(TEXT))
ids, T, d, heads = np.array([CHARS.index(c) for c in TEXT]), 64, 64, 4


class Block(Module):
    def __init__(self):
        self.ln_1, self.qkv, self.proj, self.ln_2 = LayerNorm(d), Linear(d, 3 * d), Linear(d, d), LayerNorm(d)
        self.mlp = Sequential(Linear(d, 4 * d), GELU(), Linear(4 * d, d))

    def forward(self, x):                                              # [B, T, d]
        q, k, v = mg.split_heads(self.qkv(self.ln_1(x)), heads=heads, parts=3)     # 3 × [B, h, T, d/h]
        x = x + self.proj(mg.join_heads(mg.attention(q, k, v, causal=True)))      # [B, T, d]
        return x + self.mlp(self.ln_2(x))                              # [B, T, d]


class GPT(Module):
    def __init__(self):
        self.wte, self.wpe, self.h, self.ln_f = Embedding(len(CHARS), d), Embedding(T, d), [Block(), Block()], LayerNorm(d)

    def forward(self, ids):                                            # [B, T]
        x = self.wte(ids) * 0.1 + self.wpe(np.arange(ids.shape[1])) * 0.1          # [B, T, d]
        for block in self.h:
            x = block(x)                                               # [B, T, d]
        return mg.linear(self.ln_f(x), self.wte.weight) * d**-0.5      # [B, T, d] @ [V, d]ᵀ -> [B, T, V]


model, rng = GPT(), np.random.default_rng(0)
optimizer = mg.optim.AdamW(mg.optim.decay_groups(model.parameters(), 0.1), lr=3e-3)
for step in range(301):
    rows = np.stack([ids[i:i + T + 1] for i in rng.integers(0, len(ids) - T, 12)])
    loss = mg.cross_entropy(model(rows[:, :-1]), mg.tensor(rows[:, 1:]))
    for group in optimizer.param_groups:
        group["lr"] = mg.optim.warmup_cosine(step, max_lr=5e-3, min_lr=0.0, warmup_steps=20, total_steps=300)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 100 == 0:
        print(f"step {step}: {loss.item():.3f} nats per character")

said = [CHARS.index(c) for c in "This is the man"]
with mg.no_grad():
    while len(said) < 160:
        said.append(int(model(np.array([said[-T:]])).numpy()[0, -1].argmax()))
print("".join(CHARS[i] for i in said))
assert loss.item() < 0.5
