"""The weights of a model: checkpoints, initial weights, and the paths of models."""
