"""Guesses at the tokens to come: what followed the last time that the text was where it is now (Saxena 2023, prompt lookup)."""
from __future__ import annotations

from collections.abc import Iterable

LONGEST = 3                                             # tokens that a place is known by; longer runs are rarer and guess hardly better


class Lookup:
    """The tokens of one row so far, and where each run of one to LONGEST of them was last followed by another."""

    def __init__(self, tokens: Iterable[int]) -> None:
        self.tokens: list[int] = []
        self.after: dict[tuple[int, ...], int] = {}
        for token in tokens:
            self.push(token)

    def push(self, token: int) -> None:
        """The text goes on with `token`."""
        for n in range(1, LONGEST + 1):
            if n <= len(self.tokens):
                self.after[tuple(self.tokens[-n:])] = len(self.tokens)
        self.tokens.append(token)

    def propose(self, n: int) -> list[int]:
        """Up to n tokens, copied from where the longest run that the text ends with was seen before; [] where none was.

        The copy may run into itself, as in LZ77: after a b a b it goes on with a b a b for as long as wanted   (sampling.16).
        """
        for length in range(min(LONGEST, len(self.tokens)), 0, -1):
            at = self.after.get(tuple(self.tokens[-length:]))
            if at is not None:
                period = len(self.tokens) - at
                return [self.tokens[at + i % period] for i in range(n)]
        return []
