"""`python -m gpt2.verify`: a port's tensors compared with the ground truth, and why they differ."""
