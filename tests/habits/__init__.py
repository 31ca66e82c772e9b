"""Habits: what users of PyTorch, NumPy and transformers type, what those make of it, and what we do.

`python -m tests.habits` prints the table; tests/test_habits.py runs every row of it.
"""
