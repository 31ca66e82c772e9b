"""The engine, in the order in which a reader meets its ideas.

`declaration`: what an op is. `op`: a call of an op, and its part of the backward pass. `saved`:
what a call saves for it. `checks`: what is refused, and in which words. `hooks`: who is told when a
gradient is there. `fast`: the same in fewer steps and less memory, with equal bits. The graph and
its backward pass are in `minigrad.graph`.
"""
