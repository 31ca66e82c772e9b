"""`python -m gpt2.train`: the training step, starts of a run, checkpoints, memory, progress."""
