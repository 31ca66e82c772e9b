"""Functions that the commands share: how they end, flags and settings, and tables of text."""
