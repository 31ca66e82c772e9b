"""`python -m gpt2.train`: the training step and its state, where a run starts, checkpoints, memory, progress."""
