"""The house as a whole: which way imports point, how light they are, how long files get, what is packaged."""
from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from data import ROOT

from tests import smoke

HEAVY = {"tiktoken", "matplotlib", "torch", "cupy", "huggingface_hub", "tqdm", "safetensors", "gpt2"}
LONGEST = 500
SOURCES = sorted(p for top in ("minigrad", "gpt2") for p in (ROOT / top).rglob("*.py"))


def name_of(path: Path) -> str:
    """The dotted name under which the file at `path` is imported."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in SOURCES}


def at_import(body):
    """The statements that run when a module is imported: not those of functions or for type checkers."""
    for statement in body:
        if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        if isinstance(statement, ast.If) and "TYPE_CHECKING" in ast.dump(statement.test):
            continue
        yield statement
        for block in ("body", "orelse", "finalbody"):
            yield from at_import(getattr(statement, block, []))
        for handler in getattr(statement, "handlers", []):
            yield from at_import(handler.body)


def imports(path, everywhere=True):
    """The absolute names that the file imports; `from a import b` gives a.b if that is a module here."""
    tree = ast.parse(path.read_text("utf-8"))
    package = name_of(path).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    for node in ast.walk(tree) if everywhere else at_import(tree.body):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*base, *(node.module or "").split(".")]).strip(".")
            names = {f"{base}.{alias.name}" for alias in node.names}
            yield from {name if name in MODULES else base for name in names}


def test_imports_are_read_rightly():
    """The reader of imports sees relative and nested ones; else every law below would hold for nothing."""
    assert "minigrad.errors" in set(imports(MODULES["minigrad.backend"], everywhere=False))
    assert "minigrad.backend.base" in set(imports(MODULES["minigrad.backend"], everywhere=False))
    assert "minigrad.backend" in set(imports(MODULES["minigrad.engine.tensor"], everywhere=False))
    assert "cupy" in set(imports(MODULES["minigrad.backend.cupy"]))
    assert "cupy" not in set(imports(MODULES["minigrad.backend.cupy"], everywhere=False))


def test_minigrad_never_imports_gpt2():
    """Arrows point down: gpt2 stands on minigrad, never the other way, not even inside a function."""
    wrong = [name for name, path in MODULES.items() if name.split(".")[0] == "minigrad"
             and any(i.split(".")[0] == "gpt2" for i in imports(path))]
    assert wrong == []


def test_only_the_backends_import_cupy():
    """Nothing outside minigrad/backend imports cupy, but what puts the real one over a stand-in for CUDA."""
    wrong = [name for name, path in MODULES.items() if not name.startswith("minigrad.backend") and name != "minigrad.testing.fake_cuda"
             and any(i.split(".")[0] in ("cupy", "cupyx") for i in imports(path))]
    assert wrong == []


@pytest.mark.parametrize("top", ["minigrad", "gpt2"])
def test_imports_go_in_no_circle(top):
    """What runs at import is a graph without circles; a package's own __init__ may gather its modules."""
    gathers = {name for name, path in MODULES.items() if path.name == "__init__.py"}
    edges = {name: {i for i in imports(path, everywhere=False) if i in MODULES and i.split(".")[0] == top}
             for name, path in MODULES.items() if name.split(".")[0] == top}
    edges = {name: {t for t in targets if not (t in gathers and name.startswith(f"{t}."))}
             for name, targets in edges.items()}
    done: set[str] = set()
    for start in edges:
        path, stack = [], [(start, iter(sorted(edges[start])))]
        while stack:
            name, targets = stack[-1]
            path = [n for n, _ in stack]
            target = next((t for t in targets if t not in done), None)
            if target is None:
                done.add(name)
                stack.pop()
                continue
            assert target not in path, " → ".join([*path[path.index(target):], target])
            stack.append((target, iter(sorted(edges[target]))))


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_a_file_is_short_and_says_what_it_is_for(path):
    """No file is over 500 lines, and each begins with a docstring."""
    source = path.read_text("utf-8")
    assert len(source.splitlines()) <= LONGEST
    assert ast.get_docstring(ast.parse(source)), "no docstring"


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_every_statement_can_be_reached(path):
    """None stands after a return, raise, continue or break of its block."""
    ends = (ast.Return, ast.Raise, ast.Continue, ast.Break)
    blocks = [block for node in ast.walk(ast.parse(path.read_text("utf-8"))) for field in ("body", "orelse", "finalbody")
              if isinstance(block := getattr(node, field, None), list)]
    assert [after.lineno for block in blocks for before, after in pairwise(block) if isinstance(before, ends)] == []


def run(source, **environment):
    env = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"} | environment
    return subprocess.run([sys.executable, "-c", source], cwd=ROOT, env=env, capture_output=True, text=True,
                          timeout=60, check=True)


def test_importing_minigrad_pulls_nothing_heavy():
    """`import minigrad` brings NumPy and the standard library, and no more."""
    brought = run("import sys, minigrad; print(*{m.split('.')[0] for m in sys.modules})").stdout.split()
    assert HEAVY & set(brought) == set()


def test_importing_gpt2_or_its_sizes_computes_nothing():
    """`import gpt2`, and a configuration out of it, bring neither NumPy nor minigrad: those come with a model."""
    brought = run("import sys, gpt2; gpt2.GPT2Config(); print(*{m.split('.')[0] for m in sys.modules})").stdout.split()
    assert {"numpy", "minigrad"} & set(brought) == set()


def test_importing_minigrad_is_quick(tmp_path):
    """`import minigrad` costs less than 50 ms over `import numpy`, once its bytecode is kept.

    The least processor time of seven processes is compared: another program's load only ever adds.
    """
    clock = "time.process_time()"
    source = f"import time, numpy\nt = {clock}\nimport minigrad\nprint(1e3 * ({clock} - t))"
    cost = [float(run(source, PYTHONPYCACHEPREFIX=str(tmp_path)).stdout) for _ in range(8)][1:]
    assert min(cost) < 50, f"{sorted(cost)} ms"


@pytest.mark.parametrize("package", ["minigrad", "gpt2"])
def test_a_package_is_whole(package):
    """Every folder of Python files is a package, else setuptools leaves it out; the types are announced."""
    folders = {path.parent for path in SOURCES if path.is_relative_to(ROOT / package)}
    assert [str(f) for f in folders if not (f / "__init__.py").exists()] == []
    assert (ROOT / package / "py.typed").exists()


def build(kind, source, out):
    """The sdist or the wheel of a source, by the setuptools of this environment: what `python -m build` makes in a fresh one."""
    out.mkdir(parents=True, exist_ok=True)
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    program = f"import sys; from setuptools import build_meta; build_meta.build_{kind}(sys.argv[1])"
    done = subprocess.run([sys.executable, "-c", program, out], cwd=source, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    (made,) = out.glob("*.tar.gz" if kind == "sdist" else "*.whl")
    return made


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    """The sdist of this tree, the folder that it unpacks to, and the tree that it was built of."""
    folder = tmp_path_factory.mktemp("packed")
    made = build("sdist", smoke.copied(folder / "source"), folder / "dist")
    with tarfile.open(made) as tar:
        tar.extractall(folder / "unpacked", **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    return made, next((folder / "unpacked").iterdir()), folder / "source"


def test_sdist_and_wheel_hold_the_tree(sdist, tmp_path):
    """The wheel is built from the sdist. Both hold every file that they should; what these are is read off the tree."""
    made, unpacked, _ = sdist
    wheel = build("wheel", unpacked, tmp_path)
    assert list(smoke.defects(made, wheel)) == []
    kinds = {Path(name).suffix for name in zipfile.ZipFile(wheel).namelist()}
    assert kinds >= {".py", ".cu", ".h", ".html", ".typed", ".safetensors", ".json", ".txt"}


def test_a_source_without_git_has_the_same_files(sdist):
    """The files of an sdist that was unpacked, which are found without git, are those of the tree."""
    assert smoke.tree(sdist[1]) == smoke.tree(sdist[2]) == smoke.tree()


def test_data_that_moves_is_still_packed(sdist, tmp_path):
    """Kernels and headers in another folder, be it a package or not, and a model deeper down."""
    source = smoke.copied(tmp_path / "source", sdist[2])
    for old, new in (("*.cu", "minigrad/backend/moved"), ("*.h", "minigrad/newer/package"), ("*.html", "gpt2/pages/deep/down")):
        (source / new).mkdir(parents=True)
        for file in sorted((source / new.split("/")[0]).rglob(old)):
            file.rename(source / new / file.name)
    for package in ("minigrad/newer", "minigrad/newer/package", "gpt2/pages"):
        (source / package / "__init__.py").touch()
    (source / "gpt2" / "models" / "one" / "more").mkdir(parents=True)
    (source / "gpt2" / "models" / "one" / "more" / "vocab.bpe").write_text("a b")
    made = build("sdist", source, tmp_path / "dist")
    assert list(smoke.defects(made, build("wheel", source, tmp_path / "dist"), source)) == []


PATTERNS = re.findall(r'"([^"]*)"', next(line for line in (ROOT / "setup.py").read_text("utf-8").splitlines() if "package_data=" in line))


@pytest.mark.parametrize("pattern", [pattern for pattern in PATTERNS if pattern])
def test_a_kind_of_data_that_is_forgotten_is_noticed(sdist, tmp_path, pattern):
    """Each pattern of setup.py is needed: without it the wheel lacks something, and that is said."""
    made, unpacked, _ = sdist
    source = smoke.copied(tmp_path / "source", unpacked)
    text = (source / "setup.py").read_text("utf-8")
    (source / "setup.py").write_text(text.replace(f'"{pattern}"', '"nothing"', 1), "utf-8")
    said = list(smoke.defects(made, build("wheel", source, tmp_path / "dist"), source))
    assert said and all(re.search(r"\.whl lacks (minigrad|gpt2)/", line) for line in said)


@pytest.mark.parametrize(("words", "missing"), [
    ("graft tests\n", "tests/smoke.py"), ("graft .ci\n", ".ci/run"), (" *.cff", "CITATION.cff")])
def test_a_folder_that_the_sdist_forgets_is_noticed(sdist, tmp_path, words, missing):
    source = smoke.copied(tmp_path / "source", sdist[2])
    text = (source / "MANIFEST.in").read_text("utf-8")
    assert words in text
    (source / "MANIFEST.in").write_text(text.replace(words, ""), "utf-8")
    made = build("sdist", source, tmp_path / "dist")
    assert f"{made.name} lacks {missing}" in list(smoke.defects(made, build("wheel", sdist[1], tmp_path / "dist"), source))


def test_the_readme_has_its_two_commands():
    """.ci/run takes its commands from the README: one block each, marked, and on one line."""
    readme = (ROOT / "README.md").read_text("utf-8")
    found = re.findall(r"<!-- ci: (\w+) -->\n```\w*\n(.*)\n```\n", readme)
    assert [name for name, _ in found] == ["generate", "test"]
    assert all(command.startswith("pip install ") for _, command in found)


def test_the_readme_example_runs():
    """The first Python block of the README runs as printed and gives the gradient it promises, 2x."""
    example = re.findall(r"```python\n(.*?)```\n", (ROOT / "README.md").read_text("utf-8"), re.S)[0]
    names: dict[str, Any] = {}
    exec(compile(example, "README.md", "exec"), names)
    assert names["x"].grad.numpy().tolist() == [2.0, 4.0, 6.0]
