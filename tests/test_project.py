"""What surrounds the code is right: workflow, hooks, forms, citation, changelog, security policy."""
from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from data import ROOT

from tests import smoke

WORKFLOW = ROOT / ".github" / "workflows" / "ci.yml"
TEMPLATES = ROOT / ".github" / "ISSUE_TEMPLATE"
FORMS = sorted(path for path in TEMPLATES.glob("*.yml") if path.name != "config.yml")
SETUP = (ROOT / "setup.py").read_text("utf-8")
CHECKS = re.findall(r'^run "(.+)"$', (ROOT / ".ci" / "run").read_text("utf-8"), re.M)


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text("utf-8"))


def jobs() -> dict[str, Any]:
    return read(WORKFLOW)["jobs"]


def parts(command: str) -> list[str]:
    """The commands of one line of shell; in which folder, and how much pip says, is left out."""
    found = [part.strip().replace("\\$", "$") for part in command.split("&&")]
    return [part.replace("install -q ", "install ") for part in found if not part.startswith("cd ")]


# ── the workflow ──
def test_the_workflow_runs_what_the_checks_run():
    """Each command of .ci/run, and each of the README's two, is in a step of some job."""
    readme = (ROOT / "README.md").read_text("utf-8")
    marked = re.findall(r"<!-- ci: \w+ -->\n```\w*\n(.*)\n```\n", readme)
    assert {"$generate", "$tests", "mypy"} <= set(CHECKS) and len(marked) == 2
    wanted = {part for command in [*CHECKS, *marked] for part in parts(command)}
    steps = [step.get("run", "") for job in jobs().values() for step in job["steps"]]
    found = {part for command in steps for part in parts(command)}
    assert wanted - found == {"$generate", "$tests"}    # which are the README's two


def test_the_workflow_tries_the_pythons_that_setup_admits():
    """The matrix has the Pythons of the classifiers, and begins with the least that is admitted."""
    tried = jobs()["test"]["strategy"]["matrix"]["python"]
    assert tried == re.findall(r"Python :: (3\.\d+)", SETUP)
    assert re.findall(r'python_requires=">=([\d.]+)"', SETUP) == tried[:1]
    assert set(tried) <= set(smoke.PYTHONS)


def test_the_workflow_trusts_only_the_forge():
    """It has no action of anybody else, no address, only the right to read; and no job can hang."""
    used = {step["uses"] for job in jobs().values() for step in job["steps"] if "uses" in step}
    assert used and all(re.fullmatch(r"actions/(checkout|setup-python)@v\d+", a) for a in used)
    assert read(WORKFLOW)["permissions"] == {"contents": "read"}
    assert "://" not in WORKFLOW.read_text("utf-8")
    assert all(job["timeout-minutes"] <= 120 for job in jobs().values())


# ── the hooks ──
def hooks() -> dict[str, Any]:
    repositories = read(ROOT / ".pre-commit-config.yaml")["repos"]
    assert [repository["repo"] for repository in repositories] == ["local"]
    return {hook["id"]: hook for hook in repositories[0]["hooks"]}


def test_the_hooks_run_what_the_checks_run():
    """A tool that a hook runs is installed by the extra `test`, and .ci/run runs it too."""
    tools = {h["entry"].split()[0] for h in hooks().values() if h["language"] == "system"}
    extra = re.findall(r'^ {12}"([\w-]+)', SETUP[SETUP.index('"test": ['):], re.M)
    assert tools == {"ruff", "mypy"} and tools <= set(extra)
    assert tools <= {command.split()[0] for command in CHECKS}


@pytest.mark.parametrize(("hook", "bad", "good"), [
    ("trailing-blanks", [b"x = 1 \n", b"x\t\r\n", b" "], [b"x = 1\n", b"  x\r\n", b"\n"]),
    ("merge-markers",
     [b"<<<<<<< HEAD\n", b"=======\n", b"=======\r\n", b">>>>>>> one\n", b"||||||| base\n"],
     [b"a <<<<<<< b\n", b"========\n", b"======= x\n", b">>> 1\n"]),
])
def test_no_file_holds_what_a_hook_refuses(hook, bad, good):
    """The pattern finds what it is for, line by line as in pre-commit, and no file holds it."""
    refuses = re.compile(hooks()[hook]["entry"].encode())
    assert all(map(refuses.search, bad)) and not any(map(refuses.search, good))
    files = {name: (ROOT / name).read_bytes() for name in smoke.tree()}
    texts = {name: data for name, data in files.items() if b"\0" not in data[:1024]}
    assert len(texts) > 400
    found = [f"{name}:{i}" for name, data in texts.items()
             for i, line in enumerate(data.splitlines(keepends=True), 1) if refuses.search(line)]
    assert found == []


# ── the forms ──
def is_command(name: str) -> bool:
    place = ROOT.joinpath(*name.split("."))
    file = place / "__main__.py" if place.is_dir() else place.with_suffix(".py")
    return file.is_file() and 'if __name__ == "__main__":' in file.read_text("utf-8")


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_a_form_can_be_filled_in(path):
    """Each field has an id of its own and a question, and what the form names is there."""
    form, text = read(path), path.read_text("utf-8")
    fields = [field for field in form["body"] if field["type"] != "markdown"]
    ids = [field["id"] for field in fields]
    assert form["name"] and form["description"] and len(ids) == len(set(ids))
    assert all(field["attributes"]["label"] for field in fields)
    commands = re.findall(r"`python -m ([\w.]+)", text)
    assert "minigrad.info" in commands and all(map(is_command, commands))
    code = "\n".join(p.read_text("utf-8") for p in (ROOT / "minigrad").rglob("*.py"))
    for name in re.findall(r"`minigrad\.[\w.]*?(\w+)[`(]", text):
        assert re.search(rf"def {name}\b", code), name


def test_a_wrong_number_is_asked_for_in_full():
    """Op, shapes, dtype, machine, what came out and what the definition gives are all required."""
    fields = read(TEMPLATES / "wrong_number.yml")["body"]
    needed = {f["id"] for f in fields if f.get("validations", {}).get("required")}
    assert needed == {"op", "shapes", "dtype", "program", "found", "definition", "info"}


# ── versions ──
def test_the_release_is_the_same_everywhere():
    """The newest release of the changelog is that of the code, and that of the citation."""
    heads = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.M)
    releases = [re.fullmatch(r"(\d+\.\d+\.\d+) \((\d{4}-\d\d-\d\d)\)", h) for h in heads[1:]]
    assert heads[0] == "Unreleased" and releases and all(releases)
    cited = read(ROOT / "CITATION.cff")
    assert releases[0] is not None
    assert releases[0].groups() == (cited["version"], str(cited["date-released"]))
    code = (ROOT / "minigrad" / "__init__.py").read_text("utf-8")
    assert re.findall(r'^__version__ = "(.+)"$', code, re.M) == [cited["version"]]
    assert f'license="{cited["license"]}"' in SETUP


# ── the security policy ──
LOADERS = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}


def unpickles(tree: ast.AST) -> list[int]:
    """The lines that could load a pickle."""
    found = []
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module or ""]
        elif isinstance(node, ast.Call):
            # NumPy refuses pickles unless it is told to take them
            told = [ast.unparse(k.value) for k in node.keywords if k.arg == "allow_pickle"]
            if ast.unparse(node.func) == "torch.load" or told not in ([], ["False"]):
                found.append(node.lineno)
        if {name.split(".")[0] for name in names} & LOADERS:
            found.append(node.lineno)
    return found


@pytest.mark.parametrize("line", [
    "import pickle", "from pickle import load", "import joblib.memory", "torch.load(f)",
    "np.load(f, allow_pickle=True)", "np.load(f, allow_pickle=given)"])
def test_what_unpickles_is_seen(line):
    harmless = "np.load(f); np.load(f, allow_pickle=False); json.load(f); from . import pickle"
    assert unpickles(ast.parse(line)) == [1] and unpickles(ast.parse(harmless)) == []


def test_no_file_is_ever_unpickled():
    """SECURITY.md says so of both packages; the endings that it names are those refused."""
    files = sorted(p for package in smoke.PACKAGES for p in (ROOT / package).rglob("*.py"))
    sources = {path: path.read_text("utf-8") for path in files}
    assert [path for path, text in sources.items() if unpickles(ast.parse(text))] == []
    refused = re.findall(r"^_PICKLES = \{(.+)\}$", "\n".join(sources.values()), re.M)
    policy = (ROOT / "SECURITY.md").read_text("utf-8")
    named = re.findall(r"A pickle\s+\(([^)]+)\)", policy)
    assert len(refused) == len(named) == 1
    assert set(re.findall(r"\.\w+", named[0])) == set(re.findall(r"\.\w+", refused[0]))
    assert all(flag in policy for flag in ("--exec", "--definition"))
