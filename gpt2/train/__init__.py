"""Training: steps and their state, the start of a run, checkpoints, memory, and progress."""
