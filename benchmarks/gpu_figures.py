"""python -m benchmarks.gpu_figures: what each CUDA kernel takes of a GPU, by NVRTC, without a GPU. Run it when a .cu file has changed.

Every text that the CuPy backend can ask for is compiled for every architecture. The most registers and static shared memory of each kernel
go to minigrad/testing/fake_cupy/figures.json, by which the fake CuPy refuses launches; with --table a line for each kernel and
architecture goes to stdout instead. It takes minutes.
"""
from __future__ import annotations

import argparse
import json
import sys

from gpt2.cli.command import Extend
from minigrad.testing import nvrtc
from minigrad.testing.fake_cupy import limits


def main() -> int:
    p = argparse.ArgumentParser(prog="python -m benchmarks.gpu_figures", description=__doc__.partition(":")[2], allow_abbrev=False)
    p.add_argument("--cuda", type=int, choices=(12, 13), default=12)
    p.add_argument("--only", nargs="+", action=Extend, type=int, metavar="N", help="architectures, such as 80 90")
    p.add_argument("--table", action="store_true")
    args = p.parse_args()
    if nvrtc.place(args.cuda) is None:
        p.error("NVRTC is not installed: pip install nvidia-cuda-nvrtc-cu12 nvidia-cuda-nvrtc")
    if args.only and not args.table:
        p.error("--only is for --table: figures.json is of all architectures")
    most: dict[str, dict[str, list[int]]] = {}
    wanted = [n for n, majors in nvrtc.ARCHITECTURES.items() if args.cuda in majors and n in (args.only or [n])]
    for module in nvrtc.modules():
        kernels = most.setdefault(" ".join(module.options), {})
        for n in wanted:
            made = nvrtc.compiled(module.source, nvrtc.options(module.options, n), args.cuda)
            print(f"{module}, sm_{n}: {made.seconds:.1f} s, {len(made.code) >> 10} KB", file=sys.stderr)
            for name, f in made.kernels.items():
                before = kernels.get(name, [0, 0])
                kernels[name] = [max(before[0], f.registers), max(before[1], f.shared)]
                if args.table:
                    print(f"{module}\tsm_{n}\t{name}\t{f.registers} registers\t{f.shared} shared\t{f.stack} stack\t{f.spilled} spilled")
    if not args.table:
        lines = (f'"{built}": {json.dumps(kernels)}' for built, kernels in most.items())
        limits.FILE.write_text(f'{{"CUDA": "{nvrtc.version(args.cuda)}",\n' + ",\n".join(lines) + "}\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
