"""Training data: the tokenizer and its training, large text files, and shards of token ids."""
