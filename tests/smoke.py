"""python -m tests.smoke: build sdist and wheel, and try the wheel with the oldest and the newest versions that setup.py allows.

The sdist is built from a copy of the tree, and the wheel from the sdist; both must contain the files of the tree. For each Python from 3.10
to 3.14 that is on PATH or installed by pyenv, pip installs the wheel twice, in fresh environments outside the repository: once with the
oldest version of each dependency that setup.py allows, and once with the newest. Then a program computes gradients, lets the packaged model
write text, and trains, saves, loads and draws a model. This needs the network or an index of packages. What cannot be installed is skipped,
and the reason is printed.

    python -m tests.smoke                               # all environments, a minute each
    python -m tests.smoke --python 3.10 --python 3.13 --only oldest
    python -m tests.smoke --out dist                    # also keep the sdist and the wheel, which a release uploads

The exit code is 0 if every environment that ran passed, 1 if one failed, and 3 if none could be run.
"""
from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
ENDS = ("oldest", "newest")
PACKAGES = ("minigrad", "gpt2")
SETTINGS = {"ruff.toml"}                                # files in the packages that only tools read; a wheel does not contain them
MADE = re.compile(r"PKG-INFO|setup\.cfg|[^/]+\.egg-info/.+")       # files that setuptools adds to an sdist
# the files that .gitignore names, for a source tree without git
CACHES = re.compile(r"(.*/)?(__pycache__|[^/]+\.egg-info|\.git|\.venv|\.\w+_cache|\.hypothesis|build|dist)/.*|(out|data|docs/_build)/.*")

PROGRAM = """
import json, math, subprocess, sys
from pathlib import Path
import numpy as np
import minigrad as mg
from gpt2 import GPT2

def command(module, *words):
    done = subprocess.run([sys.executable, "-W", "error::DeprecationWarning:gpt2", "-m", module, *words], capture_output=True, text=True)
    assert done.returncode == 0, (module, words, done.stderr)
    return done.stdout

# values and gradients, to the rounding of float32: a sum of 64 terms
x = np.linspace(-2, 2, 64, dtype=np.float32).reshape(8, 8)
a = mg.tensor(x, requires_grad=True)
wide = x.astype(np.float64)
for ours, theirs in ((mg.exp(a), np.exp(wide)), (a @ a.T, wide @ wide.T), (mg.tanh(a), np.tanh(wide)),
                     (mg.softmax(a), np.exp(wide) / np.exp(wide).sum(-1, keepdims=True)), (a.mean(axis=0), wide.mean(axis=0))):
    assert ours.dtype == "float32" and np.abs(ours.numpy() - theirs).max() <= 64 * 2.0**-23 * np.abs(theirs).max()
(mg.tanh(a) * a).sum().backward()
wanted = np.tanh(wide) + wide * (1 - np.tanh(wide)**2)
assert np.abs(a.grad.numpy() - wanted).max() <= 64 * 2.0**-23 * np.abs(wanted).max()
h = mg.hvp(lambda t: (t * t * t).sum(), (mg.tensor(wide),), (mg.tensor(np.ones_like(wide)),))
assert np.allclose((h[0] if isinstance(h, tuple) else h).numpy(), 6 * wide)

# the packaged model, its tokenizer and its text
assert GPT2.from_pretrained("shakespeare").num_parameters() > 1e6
told = json.loads(command("gpt2.generate", "--prompt", "ROMEO:", "--max-new-tokens", "12", "--temperature", "0", "--json"))
assert told
assert "wte.weight" in command("gpt2.inspect", "tensors", "--model", "shakespeare")
command("gpt2.inspect", "attention", "--model", "shakespeare", "--prompt", "ROMEO: But soft", "--out", "heads.png")
assert Path("heads.png").read_bytes().startswith(b"\\x89PNG")

# text to a model: a vocabulary, shards, steps with a settings file, checkpoints, and the model again
Path("text.txt").write_text("Once upon a midnight dreary, while I pondered, weak and weary,\\n" * 200)
command("gpt2.prepare", "text.txt", "--out", "data", "--tokenizer", "train:280")
Path("run.toml").write_text("n-layer = 1\\nn-head = 2\\nn-embd = 16\\nblock-size = 16\\nbatch-size = 4\\nmax-iters = 6\\n")
assert command("gpt2.train", "--config", "run.toml", "--data", "data", "--out-dir", "out").startswith("best: ")
command("gpt2.train", "--init-from", "resume", "--out-dir", "out", "--max-iters", "8")
assert math.isfinite(GPT2.from_pretrained("out").loss([[1, 2, 3]], [[2, 3, 4]]).item())
assert json.loads(command("gpt2.evaluate", "--model", "out", "--task", "perplexity", "--data", "text.txt", "--json"))
from gpt2 import download                               # huggingface_hub has the names that it imports; nothing is downloaded
from huggingface_hub import HfApi, constants, hf_hub_download
print("numpy", np.__version__)
"""


class Skip(Exception):
    """An environment cannot be made; the message is the reason."""


def python_of(version: str) -> str | None:
    """An interpreter of this version that starts: the one that runs this, or one of pyenv or on PATH. None if there is none."""
    pyenv = os.environ.get("PYENV_ROOT") or (subprocess.run(["pyenv", "root"], capture_output=True, text=True).stdout.strip()
                                             if shutil.which("pyenv") else "")
    installed = sorted(Path(pyenv, "versions").glob(f"{version}.*/bin/python")) if pyenv else []
    here = [sys.executable] if version == f"{sys.version_info.major}.{sys.version_info.minor}" else []
    for path in [*here, *map(str, reversed(installed)), shutil.which(f"python{version}")]:
        if path and version in subprocess.run([path, "-c", "import sys, ensurepip; print('%d.%d' % sys.version_info[:2])"],
                                              capture_output=True, text=True).stdout.split():
            return path
    return None


def least() -> list[str]:
    """The oldest version of each dependency that setup.py allows, as constraints for pip."""
    named = re.search(r"install_requires=\[(.*?)\]", (ROOT / "setup.py").read_text("utf-8"), re.S)
    assert named is not None
    found = re.findall(r'"([\w-]+)>=([\d.]+)', named[1])
    assert len(found) == len(re.findall(r'^\s+"', named[1], re.M)), "a dependency of setup.py has no least version"
    return [f"{name}=={version}" for name, version in found]


def said(done: subprocess.CompletedProcess[str]) -> str:
    """The line of the output that says what went wrong: the last one that names an error, or the last line."""
    lines = (done.stderr.strip() or done.stdout.strip()).splitlines() or [f"exit code {done.returncode}"]
    return next((line for line in reversed(lines) if "rror" in line), lines[-1]).strip()[:300]


def tree(root: Path = ROOT) -> list[str]:
    """The files of the source as paths below `root`: those that git does not ignore, or without git all except caches."""
    asked = ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    if (root / ".git").exists() and shutil.which("git"):
        names = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.split("\0")
    else:                                               # an sdist that was unpacked
        names = [path.relative_to(root).as_posix() for path in root.rglob("*")]
        names = [name for name in names if not CACHES.fullmatch(name) and not MADE.fullmatch(name)]
    return sorted(name for name in names if (root / name).is_file())


def copied(to: Path, root: Path = ROOT) -> Path:
    """A copy of the source tree, so that an earlier build folder does not get into the packages."""
    for name in tree(root):
        (to / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root / name, to / name)
    return to


def defects(sdist: Path, wheel: Path, root: Path = ROOT) -> Iterator[str]:
    """The files of the source that the sdist or the wheel lacks, and the files that they should not contain."""
    source = set(tree(root))
    with tarfile.open(sdist) as tar:
        inside = {member.name.partition("/")[2] for member in tar.getmembers() if member.isfile()}
    with zipfile.ZipFile(wheel) as archive:
        installed = {name for name in archive.namelist() if not name.endswith("/") and ".dist-info/" not in name}
    wanted = {name for name in source if name.split("/")[0] in PACKAGES and Path(name).name not in SETTINGS}
    for file, has, should in ((sdist, {name for name in inside if not MADE.fullmatch(name)}, source), (wheel, installed, wanted)):
        yield from (f"{file.name} lacks {name}" for name in sorted(should - has))
        yield from (f"{file.name} has {name}, which it should not" for name in sorted(has - should))


def packed(folder: Path, python: str) -> Path:
    """Build the sdist, and the wheel from it, in one folder; return the wheel's path.

    Skip if they cannot be built; AssertionError if one of them lacks files.
    """
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    subprocess.run([python, "-m", "venv", folder / "builder"], check=True)
    python = python_in(folder / "builder")
    for words in (["pip", "install", "-q", "--disable-pip-version-check", "build"],
                  ["build", "--outdir", folder / "dist", copied(folder / "source")]):
        done = subprocess.run([python, "-m", *words], cwd=folder, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise Skip(f"the package cannot be built: {said(done)}")
    sdist, wheel = next((folder / "dist").glob("*.tar.gz")), next((folder / "dist").glob("*.whl"))
    wrong = list(defects(sdist, wheel, folder / "source"))
    assert not wrong, "; ".join(wrong)
    return wheel


def python_in(environment: Path) -> str:
    """The interpreter of a virtual environment."""
    return str(environment / ("Scripts/python.exe" if os.name == "nt" else "bin/python"))


def row(version: str, end: str, wheel: Path, folder: Path) -> str:
    """Install the wheel in one environment and run the program; return its last line.

    Skip if there is no such Python, or no wheel of a dependency for it; AssertionError if something fails.
    """
    python = python_of(version)
    if python is None:
        raise Skip(f"there is no Python {version}; pyenv install {version}")
    folder.mkdir(parents=True)
    subprocess.run([python, "-m", "venv", folder / "venv"], check=True)
    python = python_in(folder / "venv")
    constraints = folder / "constraints.txt"
    constraints.write_text("\n".join(least() if end == "oldest" else []))
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")} | {"MPLBACKEND": "Agg"}
    # only wheels: without a wheel pip would compile the package, or install another version than the one to be tested
    pip = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--only-binary", ":all:"]
    done = subprocess.run([*pip, "-c", constraints, wheel], env=environment, capture_output=True, text=True)
    for pinned in constraints.read_text().split() if done.returncode else []:       # pip does not say which wheel is missing
        alone = subprocess.run([*pip, "--dry-run", "--no-deps", pinned], env=environment, capture_output=True, text=True)
        if "No matching distribution found" in alone.stderr:
            raise Skip(f"there is no wheel of {pinned} for Python {version}")
    assert done.returncode == 0, f"pip: {said(done)}"
    where = subprocess.run([python, "-c", "import gpt2, minigrad; print(minigrad.__file__, gpt2.__file__, sep='\\n')"],
                           cwd=folder, env=environment, capture_output=True, text=True)
    assert where.returncode == 0, said(where)
    assert all(Path(file).is_relative_to(folder.resolve()) for file in where.stdout.splitlines()), f"it runs {where.stdout}, not the wheel"
    done = subprocess.run([python, "-c", PROGRAM], cwd=folder, env=environment | {"HF_HUB_OFFLINE": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, said(done)
    return done.stdout.strip().splitlines()[-1]


def main(argv: list[str] | None = None) -> int:
    p = argparse.ArgumentParser(prog="python -m tests.smoke", description=__doc__, allow_abbrev=False,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--python", action="append", choices=PYTHONS, metavar="VERSION",
                   help=f"only this Python: {', '.join(PYTHONS)} (repeatable; default: all)")
    p.add_argument("--only", choices=ENDS, help="only these versions of the dependencies (default: both)")
    p.add_argument("--out", type=Path, metavar="DIR", help="copy the sdist and the wheel there if no environment failed")
    args = p.parse_args(argv)
    ended: list[tuple[str, str, str, str]] = []
    with tempfile.TemporaryDirectory(prefix="smoke-") as scratch:
        try:
            wheel = packed(Path(scratch), sys.executable)
        except (Skip, AssertionError) as reason:
            p.exit(1, f"tests.smoke: {reason}\n")
        built = sorted(wheel.parent.glob("minigrad_gpt2-*"))
        print("built", *(f"{file.name} ({file.stat().st_size / 1e6:.1f} MB)" for file in built), flush=True)
        for version in args.python or PYTHONS:
            for end in [args.only] if args.only else ENDS:
                started = time.perf_counter()
                try:
                    result, told = "passed", row(version, end, wheel, Path(scratch, f"{version}-{end}"))
                except Skip as reason:
                    result, told = "skipped", str(reason)
                except AssertionError as error:
                    result, told = "FAILED", str(error)
                shutil.rmtree(Path(scratch, f"{version}-{end}"), ignore_errors=True)
                ended.append((version, end, result, told))
                print(f"Python {version:5} {end:7} {result:8} {told} [{time.perf_counter() - started:.0f} s]", flush=True)
        results = [result for _, _, result, _ in ended]
        code = 1 if "FAILED" in results else 0 if "passed" in results else 3
        if args.out and code == 0:
            args.out.mkdir(parents=True, exist_ok=True)
            for file in built:
                print(shutil.copy(file, args.out))
    return code


if __name__ == "__main__":
    sys.exit(main())
