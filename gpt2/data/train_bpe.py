"""Training of a byte-level BPE vocabulary (Sennrich et al. 2016; Radford et al. 2019 use bytes)."""
from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from heapq import heapify, heappop, heappush
from itertools import pairwise

from ..errors import UsageError
from .tokenizer import BYTES_IN_ORDER, GPT2_SPLIT, Tokenizer

Pair = tuple[int, int]


def count_words(texts: Iterable[str]) -> Counter[str]:
    """How often each word of GPT-2's split occurs in the texts."""
    import regex

    return Counter(word for text in texts for word in regex.findall(GPT2_SPLIT, text))


def train_bpe(text: str | Iterable[str] | Counter[str], vocab_size: int, name: str | None = None
              ) -> Tokenizer:
    """A tokenizer of `vocab_size` ids that is learned from a text.

    text: one text, several texts (no token spans two of them), or the result of `count_words`.

    The ids are the 256 bytes in GPT-2's order, vocab_size − 257 merges, and <|endoftext|> last; 257
    is plain bytes. Each step merges the pair of neighbours that occurs most often within the words
    of GPT-2's split; among equals, the pair with the lowest ids, left id first. The result depends
    only on the text, and is that of the `tokenizers` library with its byte-level alphabet.
    Raises UsageError for fewer than 257 ids, or for more than the text has pairs to merge.
    """
    if vocab_size < 257:
        raise UsageError(f"a vocabulary of {vocab_size} is too small: "
                         "256 bytes and <|endoftext|> make 257")
    if not isinstance(text, Counter):
        text = count_words([text] if isinstance(text, str) else text)
    merged = _merge(text, vocab_size - 257)
    if len(merged) < vocab_size - 257:
        raise UsageError(f"the text has pairs for a vocabulary of {257 + len(merged)} only, "
                         f"not {vocab_size}")
    return Tokenizer.from_merged(name or f"bpe-{vocab_size}", merged)


def _merge(counts: Counter[str], n_merges: int) -> list[bytes]:
    """The tokens that the first n_merges merges make; fewer if no pair is left."""
    id_of_byte = {byte[0]: i for i, byte in enumerate(BYTES_IN_ORDER)}
    tokens = list(BYTES_IN_ORDER)
    words = [[id_of_byte[byte] for byte in word.encode()] for word in counts]
    weights = list(counts.values())
    total: Counter[Pair] = Counter()
    places: defaultdict[Pair, set[int]] = defaultdict(set)      # the words that hold or held a pair
    for i, word in enumerate(words):
        for pair in pairwise(word):
            total[pair] += weights[i]
            places[pair].add(i)
    heap = [(-count, pair) for pair, count in total.items()]
    heapify(heap)
    while heap and len(tokens) - 256 < n_merges:
        count, pair = heappop(heap)
        if -count != total[pair]:               # an entry from before the count changed
            continue
        new = len(tokens)
        tokens.append(tokens[pair[0]] + tokens[pair[1]])
        changes: Counter[Pair] = Counter()
        for i in places.pop(pair):
            old = words[i]
            words[i] = word = _replace(old, pair, new)
            for gone in pairwise(old):
                changes[gone] -= weights[i]
            for made in pairwise(word):
                changes[made] += weights[i]
                places[made].add(i)
        changes.pop(pair, None)
        del total[pair]
        for other, change in changes.items():
            total[other] += change
            if change and total[other]:
                heappush(heap, (-total[other], other))
    return tokens[256:]


def _replace(word: list[int], pair: Pair, new: int) -> list[int]:
    """`word` with every `pair`, from the left and without overlap, replaced by `new`."""
    out: list[int] = []
    i = 0
    while i < len(word):
        if word[i] == pair[0] and i + 1 < len(word) and word[i + 1] == pair[1]:
            out.append(new)
            i += 2
        else:
            out.append(word[i])
            i += 1
    return out
