"""Weights of a model: checkpoints read and written, initial weights, and where a named model is stored."""
