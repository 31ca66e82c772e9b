"""What each op is tried on: its domain, an independent definition, and PyTorch's name for it.

A line is domain(op, examples, oracle, torch). The oracle is the definition, in NumPy. It is
computed in the widest float, and on complex numbers for the complex step, so it chooses by the real
part where it must choose. Domains keep away from kinks and ties; the lines with smooth=0 lie on
them, for the laws that need no derivative of the oracle.
"""
from . import composed, elementwise, fused, index, linalg, reduce, shape, uses
from .table import DOMAINS, Domain, domain, lines_of
