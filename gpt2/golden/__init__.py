"""`python -m gpt2.golden`: ground truth for ports of GPT-2, and weights that show mistakes."""
