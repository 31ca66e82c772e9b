"""Generation: the KV cache, one token after the other, sampling, and the text of the tokens."""
