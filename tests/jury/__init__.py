"""The jury: functions of other people, right and wrong, that judge `minigrad.testing.check` itself.

Each entry calls `check` in the form that its author would type first. A right function must pass
for every seed, a wrong one must fall for every seed. `python -m tests.jury` prints the table, and
tests/test_jury.py runs a short form of it.
"""
