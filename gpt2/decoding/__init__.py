"""Generation of text: the KV cache, decoding one token after the other, and sampling."""
