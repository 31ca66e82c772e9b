"""`python -m gpt2.golden`: the ground truth for a port of GPT-2, and random weights on which mistakes show."""
