"""mpiexec for the tests of several processes: the one of the MPI that mpi4py was installed with."""
from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest


def mpiexec(n: int) -> list[str]:
    """The beginning of a command line that starts n processes; skips where there is no mpi4py or no mpiexec.

    A wheel of MPICH puts mpiexec beside Python's own executable, which is on PATH only where the environment is activated.
    """
    pytest.importorskip("mpi4py", reason="mpi4py is not installed; pip install '.[mpi]'")
    places = [str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]
    found = shutil.which("mpiexec", path=os.pathsep.join(places))
    if found is None:
        pytest.skip("mpiexec is not there; pip install '.[mpi]'")
    return [found, "-n", str(n)]
