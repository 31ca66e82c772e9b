"""Text as training data: the tokenizer, its training, large text files, and shards of token ids."""
