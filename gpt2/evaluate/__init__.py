"""`python -m gpt2.evaluate`: how well a model predicts a text, and benchmark tasks."""
