"""`python -m gpt2.golden`: the ground truth for a port, and weights on which mistakes show."""
