"""The jury: right and wrong functions, as other people write them, that test `check` itself.

Each entry calls `minigrad.testing.check` in the form that its author would write first. `check`
must accept a right function and reject a wrong one, for every seed. `python -m tests.jury` prints
the table, and tests/test_jury.py runs a shorter form of it.
"""
