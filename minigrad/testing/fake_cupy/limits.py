"""What a GPU can run of a kernel at a time, by what NVRTC has said the kernel takes (figures.json).

A multiprocessor has four parts, each with 16,384 registers; a warp's are in one of them. CUDA does
not start a block that needs more than there is, and says only "too many resources requested".
"""
from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

REGISTERS, UNIT, PARTS = 16384, 256, 4                  # of a part; what a warp takes them in
SHARED = 48 << 10                                       # bytes of a block that asks for no more
FILE = Path(__file__).parent / "figures.json"


@functools.cache
def figures() -> dict[str, dict[str, list[int]]]:
    """Registers of a thread and static shared bytes of a block: by options, by kernel.

    They are the most over all architectures. `python -m benchmarks.gpu_figures` writes them.
    """
    return {options: kernels for options, kernels in _written().items() if options != "CUDA"}


def written_by() -> str:
    """The version of CUDA whose NVRTC has said so, such as "12.9"."""
    return str(_written()["CUDA"])


def _written() -> Any:
    return json.loads(FILE.read_text(encoding="utf-8"))


def warps_at_a_time(registers: int) -> int:
    """How many warps one part of a multiprocessor has registers for."""
    return REGISTERS // (-(-registers * 32 // UNIT) * UNIT)


def refusal(options: tuple[str, ...], name: str, threads: int, shared: int) -> str | None:
    """Why a GPU does not start this kernel in such a block; None where it does.

    shared: bytes that the launch asks for. Nothing is refused of kernels that are not in
    figures.json.
    """
    taken, static = figures().get(" ".join(options), {}).get(name, (0, 0))
    if shared + static > SHARED:
        return f"{shared + static:,} bytes of shared memory, where a block has {SHARED:,}"
    if taken and -(-threads // (32 * PARTS)) > warps_at_a_time(taken):
        return f"a block of {threads} threads of {taken} registers each, which are too many"
    return None
