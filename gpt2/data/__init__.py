"""Text as training data: the tokenizer and its training, large text files, and token shards."""
