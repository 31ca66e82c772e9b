"""A fake CuPy on a CPU: the CuPy backend's own code over arrays that behave as CuPy's (`fake`)."""
from .fake import Counts, Device, counting, install, ndarray, short_of_memory
