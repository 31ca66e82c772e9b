"""python -m tests.cuda_branches: which branches of the CUDA kernels their tests take.

The kernels are compiled for a CPU (`minigrad.testing.fake_cupy.cuda`) with g++'s --coverage and without optimization, for each dtype
that a test needs. Then the tests run that compare them with NumPy, and gcov reports which branches were taken. A branch counts as taken
if it was taken in at least one dtype. Each line with a branch that was never taken is printed. The exit code is 1 if such a line is not
in EXCUSED, or if all branches of a line in EXCUSED were taken.
"""
from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "minigrad" / "backend" / "cupy" / "cuda"
SOURCES = ("kernels.cu", "attention.cu", "decode.cu", "choose.cu")
TESTS = ("minigrad/backend/cupy/test_kernels.py", "minigrad/backend/cupy/test_attention.py",
         "gpt2/decoding/test_gpu_ops.py", "gpt2/decoding/test_gpu_sampling.py")
OWN = "the wrapper allocates the array that is written, so it is aligned to 16 bytes"
ROUNDED = "only if a group's sum is rounded to more than the running sum of its weights; then its last id is taken"
# The lines with a branch that no test takes, each with the reason.
EXCUSED: dict[str, str] = {
    "kernels.cu: bool wide = d % WIDE == 0 && aligned(x) && aligned(more) && aligned(both) && aligned(weight) && aligned(bias) "
    "&& aligned(y);":
        OWN,
    "kernels.cu: bool wide = d % WIDE == 0 && aligned(g) && aligned(x) && aligned(weight) && aligned(more) && aligned(dx);": OWN,
    "kernels.cu: if (i + WIDE <= n && aligned(a) && aligned(b) && aligned(y)) {": OWN,
    "kernels.cu: if (i + WIDE <= n && aligned(y)) {": OWN,
    "kernels.cu: if (i + WIDE <= n && aligned(x) && aligned(y) && (!bias || (d % WIDE == 0 && aligned(bias)))) {": OWN,
    "kernels.cu: if (i + WIDE <= n && aligned(g) && aligned(x) && aligned(dx) && (!bias || (d % WIDE == 0 && aligned(bias)))) {": OWN,
    "kernels.cu: bool wide = aligned(p) && aligned(g) && aligned(m) && aligned(v);":
        "parameters and moments are separate, aligned arrays; only a gradient may be unaligned",
    "attention.cu: if (place < size && query < queries) {":
        "the grid has no thread too many, because the size of `stats` is a multiple of 64",
    "attention.cu: stat.along = a.wide && b.wide ? part_of_product<WIDE>(x, y, a.width) : part_of_product<1>(x, y, a.width);":
        "the result has the layout that the forward pass gave it, which is as wide as that of the gradient",
    "attention.cu: if (place < size && lane() % 8 == 0) reinterpret_cast<Statistics*>(stats)[place] = stat;":
        "the grid has no thread too many, because the size of `stats` is a multiple of 64",
    "decode.cu: bool there = at < end && at * 32 + lane < chunks && row < here;":
        "a thread that has one row at a time never has a row too many",
    "choose.cu: double gone = equal[1] > 0.0 ? floor((spare - below) * equal[0] / equal[1]) : 0.0, most = equal[0] - 1.0;":
        "the sum of the weights passes the limit at the edge, so the weights at the edge are not 0",
    "choose.cu: if (none || gone > most) gone = most;":
        "the sum of the weights passes the limit at the edge, so only rounding can remove all tokens at the edge",
    "choose.cu: if (chosen < 0)                                     // rounding left all of it short of what is wanted: then it "
    "is the last of them":
        ROUNDED,
    "choose.cu: for (Count i = filled * size; i < (filled + 1) * size && i < n; ++i)": ROUNDED,
    "choose.cu: if (weights[i] > Real(0)) chosen = i;": ROUNDED,
}


def run_tests(folder: Path) -> int:
    """Run the tests with kernels that count their branches; the counts are written to the folder when this process ends."""
    import pytest

    from minigrad.testing.fake_cupy import cuda

    tempfile.tempdir = str(folder)                      # compiled files are written there too
    cuda.JUDGED = ("-O0", "--coverage")                 # the code that judges accesses has branches of its own
    built, sources = cuda.library, list[str]()

    def counted(source: str, flags: tuple[str, ...]) -> Any:
        if source not in sources:
            sources.append(source)
            (folder / "sources.json").write_text(json.dumps(sources))
        kind = "-".join(f.partition("=")[2] for f in flags if f.startswith("-D"))
        return built(source, (*flags, "--coverage", "-dumpdir", f"{folder}/{sources.index(source)}-{kind}-"))

    cuda.library = counted  # type: ignore[assignment]
    sys.path.insert(0, str(ROOT / "tests" / "helpers"))
    options = ["-q", "-n", "0", "-p", "no:cacheprovider", "-k", "not missing"]         # a missing wait is seen by what judges
    return int(pytest.main([*options, *(str(ROOT / "tests" / name) for name in TESTS)]))


# For each line of each file, by the number of its branches: how often each branch was taken.
Counts = dict[tuple[str, int], dict[int, list[int]]]


def counted(folder: Path) -> Counts:
    """The counts that gcov reports for all compiled sources."""
    found: Counts = defaultdict(dict)
    texts = {name: (FOLDER / name).read_text("utf-8") for name in SOURCES}
    shared = texts["kernels.cu"].partition("// ── what is above is for all")[0]
    for data in folder.glob("*.gcda"):
        source = json.loads((folder / "sources.json").read_text())[int(data.name.partition("-")[0])]
        file = next((n for n in SOURCES if source in (texts[n], shared + texts[n])), None)
        if file is None:                                # a test's own source, with a mistake on purpose
            continue
        lead = 0 if file == "kernels.cu" else shared.count("\n")
        said = subprocess.run(["gcov", "--json-format", "--branch-probabilities", "--stdout", str(data)], capture_output=True, text=True,
                              cwd=folder, check=True).stdout
        for whole in map(json.loads, said.splitlines()):
            for line in (n for f in whole["files"] if f["file"].endswith("kernels.cpp") for n in f["lines"]):
                at = line["line_number"]
                if at > source.count("\n") + 1:         # the code that starts the kernels on a CPU
                    continue
                taken = [b["count"] for b in line["branches"] if not b["throw"]]
                where = ("kernels.cu", at) if at <= lead else (file, at - lead)
                before = found[where].get(len(taken), [0] * len(taken))
                found[where][len(taken)] = [a + b for a, b in zip(before, taken)]
    return found


def main() -> int:
    p = argparse.ArgumentParser(prog="python -m tests.cuda_branches", description=__doc__.partition(":")[2], allow_abbrev=False)
    p.add_argument("--run", metavar="FOLDER", help=argparse.SUPPRESS)      # for the process that this command starts
    args = p.parse_args()
    if args.run:
        return run_tests(Path(args.run))
    for tool in ("g++", "gcov"):
        if shutil.which(tool) is None:
            p.error(f"{tool} is not installed: apt-get install g++")
    with tempfile.TemporaryDirectory() as folder:
        same = {"HYPOTHESIS_PROFILE": "ci", "LD_PRELOAD": ""}          # the same examples each time
        ran = subprocess.run([sys.executable, "-m", "tests.cuda_branches", "--run", folder], cwd=ROOT, env={**os.environ, **same})
        if ran.returncode:
            return ran.returncode
        found = counted(Path(folder))
    missed = {}
    for name in SOURCES:
        lines = (FOLDER / name).read_text("utf-8").splitlines()
        mine = {at: counts for (file, at), counts in found.items() if file == name}
        every = [n for counts in mine.values() for taken in counts.values() for n in taken]
        print(f"{name:14} {sum(n > 0 for n in every):>4} of {len(every)} branches taken, in {len(mine)} lines")
        for at, counts in sorted(mine.items()):
            if any(0 in taken for taken in counts.values()):
                missed[f"{name}: {lines[at - 1].strip()}"] = ", ".join("/".join(map(str, taken)) for taken in counts.values())
    bad = {line: taken for line, taken in missed.items() if line not in EXCUSED}
    print("\nexcused:", *(f"  {line}\n      {reason}" for line, reason in EXCUSED.items()), sep="\n")
    for line, taken in bad.items():
        print(f"missed: {line}   ({taken})")
    idle = [line for line in EXCUSED if line not in missed]
    for line in idle:
        print(f"taken, though EXCUSED lists it: {line}")
    return 1 if bad or idle else 0


if __name__ == "__main__":
    sys.exit(main())
