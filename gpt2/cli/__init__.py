"""What the commands share: how they end, how flags and settings are read, and tables of text."""
