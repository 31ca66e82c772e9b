"""Rows that are not true yet, and why: each gives another number than its peer without a word."""
from __future__ import annotations

OPEN: dict[str, str] = {
    "model.generate(ids, max_new_tokens=4)": "samples, where transformers' generate is greedy unless do_sample=True",
    "tokenizer.encode('<|endoftext|>')": "is ordinary text, and a special token in transformers",
}
