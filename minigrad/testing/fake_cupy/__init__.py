"""A fake CuPy on a CPU: the CuPy backend's own code over arrays that behave as CuPy's (`fake`)."""
from .arrays import ndarray
from .device import Counts, Device, counting, only_blocks, short_of_memory
from .fake import install
