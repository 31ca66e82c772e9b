"""Tables of mistakes that ports of GPT-2 make; each can be planted in our own model."""
