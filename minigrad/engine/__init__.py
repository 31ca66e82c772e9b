"""The engine, in the order in which a reader meets its ideas.

`value`: an array and, perhaps, a node. `tensor`: a Value that can be a leaf, and that a backward
pass starts from. `graph`: nodes, recording, the backward pass. `declaration`: what an op is. `op`:
a call of an op, and its part of the backward pass. `saved`: what a call saves for it. `checks`:
what is refused, and in which words. `hooks`: who is told when a gradient is there. `copies`:
copies, and what is changed in place. `making`: Tensors of numbers and arrays. `fast`: the same in
fewer steps and less memory, with equal bits.
"""
