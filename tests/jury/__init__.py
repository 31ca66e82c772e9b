"""The jury: functions of other people, right and wrong, by which `minigrad.testing.check` itself is judged.

Each entry calls `check` in the form that its author would type first. A right function must pass for every seed, a wrong one must
fall for every seed. `python -m tests.jury` prints the table; tests/test_jury.py runs a short form of it.
"""
