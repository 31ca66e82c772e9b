"""Mistakes that ports of GPT-2 make, as tables: each is planted in our own model to explain a port's numbers."""
