"""The table of domains: for each op the examples, an independent definition and PyTorch's function.

A line is domain(op, examples, oracle, torch). The oracle is an independent definition in NumPy. It
is computed in the widest float, and on complex numbers for the complex step; where it compares
numbers, it compares their real parts. The examples keep away from kinks and ties. Only the lines
with smooth=0 lie on them; these are for the laws that need no derivative of the oracle.
"""
from . import composed, elementwise, fused, index, linalg, reduce, shape, uses
from .table import DOMAINS, Domain, domain, lines_of
