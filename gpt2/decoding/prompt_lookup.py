"""Prompt lookup (Saxena 2023): guess the tokens that followed the same tokens before."""
from __future__ import annotations

from collections.abc import Iterable

# How many of the last tokens are looked up. Longer runs are rarer and hardly guess better.
LONGEST = 3


class Lookup:
    """The tokens of one row so far, and an index of their runs.

    after: for each run of one to LONGEST tokens, the index of the token that followed it last.
    """

    def __init__(self, tokens: Iterable[int]) -> None:
        self.tokens: list[int] = []
        self.after: dict[tuple[int, ...], int] = {}
        for token in tokens:
            self.push(token)

    def push(self, token: int) -> None:
        """Append `token` to the row."""
        for n in range(1, LONGEST + 1):
            if n <= len(self.tokens):
                self.after[tuple(self.tokens[-n:])] = len(self.tokens)
        self.tokens.append(token)

    def propose(self, n: int) -> list[int]:
        """n guessed tokens, or [] if the last token was never seen before.

        They are the tokens that followed the longest run with which the text ends. The copy may
        read its own tokens, as in LZ77: a b a b is continued with a b a b …   (sampling.16).
        """
        for length in range(min(LONGEST, len(self.tokens)), 0, -1):
            at = self.after.get(tuple(self.tokens[-length:]))
            if at is not None:
                period = len(self.tokens) - at
                return [self.tokens[at + i % period] for i in range(n)]
        return []
