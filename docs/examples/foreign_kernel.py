"""Check somebody else's kernel: a LayerNorm in C, forward and backward, against the laws; and one with a bug that many ports have."""
import ctypes
import subprocess
import tempfile
from pathlib import Path

import numpy as np

import minigrad as mg
from minigrad.testing import LawsBroken, arrays, check

SOURCE = r"""
#include <math.h>
void forward(const double *x, double *y, long rows, long d) {
    for (long i = 0; i < rows; i++, x += d, y += d) {
        double mean = 0, var = 0;
        for (long j = 0; j < d; j++) mean += x[j] / d;
        for (long j = 0; j < d; j++) var += (x[j] - mean) * (x[j] - mean) / d;
        for (long j = 0; j < d; j++) y[j] = (x[j] - mean) / sqrt(var + 1e-5);
    }
}
void backward(const double *g, const double *x, double *dx, long rows, long d) {
    for (long i = 0; i < rows; i++, g += d, x += d, dx += d) {
        double mean = 0, var = 0, g_mean = 0, along = 0;
        for (long j = 0; j < d; j++) { mean += x[j] / d; g_mean += g[j] / d; }
        for (long j = 0; j < d; j++) var += (x[j] - mean) * (x[j] - mean) / d;
        double rstd = 1 / sqrt(var + 1e-5);
        for (long j = 0; j < d; j++) along += g[j] * (x[j] - mean) * rstd / d;
        for (long j = 0; j < d; j++) dx[j] = (g[j] - g_mean - ALONG) * rstd;
    }
}
"""


def compiled(along):
    """The two functions on NumPy arrays, with the last term of backward as it is given."""
    folder = Path(tempfile.mkdtemp())
    (folder / "kernel.c").write_text(SOURCE.replace("ALONG", along))
    subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", folder / "kernel.so", folder / "kernel.c", "-lm"], check=True)
    library = ctypes.CDLL(str(folder / "kernel.so"))

    def call(name, *inputs):
        inputs = [np.ascontiguousarray(a) for a in inputs]
        out = np.empty_like(inputs[0])
        rows, d = ctypes.c_long(out.size // out.shape[-1]), ctypes.c_long(out.shape[-1])
        getattr(library, name)(*(a.ctypes.data_as(ctypes.c_void_p) for a in (*inputs, out)), rows, d)
        return out

    return lambda x: call("forward", x), lambda g, x: call("backward", g, x)


def ours(x):
    """The same by minigrad: what it must equal."""
    return mg.layer_norm(x, mg.tensor(np.ones(x.shape[-1])), mg.tensor(np.zeros(x.shape[-1])))


layer_norm, vjp = compiled("(x[j] - mean) * rstd * along")
print(check(layer_norm, arrays((3, 5)), vjp=vjp, definition=ours, dtypes=["float64"]))

layer_norm, vjp = compiled("0")                         # the statistics taken for constants, but for the mean
try:
    check(layer_norm, arrays((3, 5)), vjp=vjp, definition=ours, dtypes=["float64"])
except LawsBroken as broken:
    print("\nand with the last term forgotten:")
    print("\n".join(str(verdict) for verdict in broken.report.broken))
else:
    raise SystemExit("the bug was not noticed")
