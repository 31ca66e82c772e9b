"""Show the inside of a model: the commands of `python -m gpt2.inspect`.

Each file has one or two of the commands: `flags(p)` adds its flags, and `run(args)` returns a
`Found` with the result as a document, as lines of text and as a picture.
"""
