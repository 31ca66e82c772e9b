"""The engine; this list of its files is a good order for reading them.

`value`: an array and, perhaps, a node. `tensor`: a Value that can be a leaf, and from which a
backward pass can start. `graph`: nodes, recording, the backward pass. `declaration`: what an op is.
`op`: a call of an op, and its part of the backward pass. `saved`: what a call saves for backward.
`checks`: which arguments an op accepts. `hooks`: functions that are called with gradients.

These files are for special cases. `several`: ops with several results. `live`: gradients of
gradients. `touched`: leaves that are used without recording. `refusals`: the error messages.
`copies`: copies and in-place operators. `making`: Tensors made of numbers and arrays. `fast`: the
same engine in fewer steps and less memory, with equal bits.
"""
