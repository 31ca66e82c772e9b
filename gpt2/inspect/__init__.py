"""What is inside a model: `python -m gpt2.inspect {arch,params,tensors,weights,attention,logit-lens,trace,diff}`.

Each file has one or two of the commands: `flags(p)` and `run(args)`, which gives what there is to say, print and draw as a `Found`.
"""
