"""The engine, in the order in which a reader meets its ideas.

`value`: an array and, perhaps, a node. `tensor`: a Value that can be a leaf, and that a backward
pass starts from. `graph`: nodes, recording, the backward pass. `declaration`: what an op is. `op`:
a call of an op, and its part of the backward pass. `saved`: what a call saves for it. `checks`:
what an op may be given. `hooks`: who is told when a gradient is there.

Beside these, where the case occurs: `several`: ops of several results. `live`: gradients of
gradients. `touched`: what is not recorded. `refusals`: in which words something is refused.
`copies`: copies, and what is changed in place. `making`: Tensors of numbers and arrays. `fast`: the
same in fewer steps and less memory, with equal bits.
"""
