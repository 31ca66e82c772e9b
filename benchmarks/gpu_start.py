"""python -m benchmarks.gpu_start: what a user of `gpt2.generate --backend cupy` waits for NVRTC, measured on a machine without a GPU.

The real CuPy runs over a stand-in for CUDA's driver (`minigrad.testing.fake_cuda`), and the real NVRTC compiles for --architecture what
CuPy asks for: of minigrad's kernels and of its own. Twice, each in a process of its own: with an empty cache of CuPy's, and with what
the first start has left there. Arguments after -- are gpt2.generate's. Needs cupy-cuda12x, nvidia-cuda-nvrtc-cu12 and g++.
"""
from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from typing import Any

GENERATE = ("--max-new-tokens", "8")


def start(architecture: int, arguments: list[str]) -> dict[str, Any]:
    """One start in this process, which has not imported CuPy: what NVRTC compiled, and its seconds."""
    from minigrad.testing import nvrtc
    from minigrad.testing.fake_cuda import Compilation, stand_in

    cuda, seconds = stand_in(architecture), dict[str, float]()

    def machine_code(one: Compilation) -> bytes:
        began = time.process_time()                     # of the processor: others may use it too
        made = nvrtc.compiled(one.source, one.options, 12)
        ours = [option for option in one.options if option.startswith("-D")]
        name = " ".join([*ours, next(iter(made.kernels), "nothing, to see which NVRTC this is")])
        seconds[name] = seconds.get(name, 0.0) + time.process_time() - began
        return made.code

    cuda.machine_code = machine_code
    nvrtc.compiled("", nvrtc.options((), architecture), 12)             # the library itself is loaded
    from gpt2 import generate

    said = sys.stdout
    sys.stdout = sys.stderr                             # its text is not ours
    try:
        code = generate.main(["--backend", "cupy", *arguments])
    finally:
        sys.stdout = said
    return {"code": code, "texts": sum(one.source != "" for one in cuda.compiled), "seconds": sum(seconds.values()), "each": seconds}


def both(architecture: int, arguments: list[str]) -> list[dict[str, Any]]:
    """The first start and the second, each in a process of its own."""
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "CUPY_CACHE_DIR": cache}
        environment.pop("CUPY_CACHE_IN_MEMORY", None)
        command = [sys.executable, "-m", "benchmarks.gpu_start", "--once", "--architecture", str(architecture), "--", *arguments]
        return [json.loads(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
                for _ in range(2)]


def main() -> int:
    p = argparse.ArgumentParser(prog="python -m benchmarks.gpu_start", description=__doc__.partition(":")[2], allow_abbrev=False)
    p.add_argument("--architecture", type=int, default=90, help="compute capability (default: 90)")
    p.add_argument("--once", action="store_true", help=argparse.SUPPRESS)
    p.add_argument("generate", nargs="*", metavar="ARGUMENT", help=f"of gpt2.generate (default: {' '.join(GENERATE)})")
    args = p.parse_args()
    arguments = args.generate or list(GENERATE)
    if args.once:
        print(json.dumps(start(args.architecture, arguments)), flush=True)
        os._exit(0)                                     # CuPy's last calls would find nobody to take them
    for which, found in zip(("first", "second"), both(args.architecture, arguments)):
        print(f"{which} start: {found['seconds']:.2f} s of NVRTC for {found['texts']} texts")
        for name, seconds in sorted(found["each"].items(), key=lambda item: -item[1]):
            print(f"    {seconds:5.2f} s  {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
