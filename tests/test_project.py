"""What surrounds the code says what is so: the workflow, hooks, forms, citation, changelog, and the security policy."""
from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest
from data import ROOT

from tests import smoke

yaml = pytest.importorskip("yaml")
WORKFLOW = ROOT / ".github" / "workflows" / "ci.yml"
FORMS = sorted(path for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml") if path.name != "config.yml")
SETUP = (ROOT / "setup.py").read_text("utf-8")


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text("utf-8"))


def jobs() -> dict[str, Any]:
    return read(WORKFLOW)["jobs"]


def parts(command: str) -> list[str]:
    """What a line of a shell runs one after the other; where it is run, and how much pip says, is left out."""
    found = [part.strip().replace("pip install -q ", "pip install ").replace("\\$", "$") for part in command.split("&&")]
    return [part for part in found if not part.startswith("cd ")]


# ── the workflow ──
def test_the_workflow_runs_what_the_checks_run():
    """Each command of .ci/run, and each of the README's two, is a step of some job."""
    here = re.findall(r'^run "(.+)"$', (ROOT / ".ci" / "run").read_text("utf-8"), re.M)
    readme = re.findall(r"<!-- ci: \w+ -->\n```\w*\n(.*)\n```\n", (ROOT / "README.md").read_text("utf-8"))
    assert {"$generate", "$tests", "mypy"} <= set(here) and len(readme) == 2
    wanted = {part for command in [*here, *readme] for part in parts(command)} - {"$generate", "$tests"}
    steps = {part for job in jobs().values() for step in job["steps"] for part in parts(step.get("run", ""))}
    assert wanted - steps == set()


def test_the_workflow_tries_the_pythons_that_setup_admits():
    """Those of the matrix are those of the classifiers; the first is the least that setup.py admits, and tests.smoke knows each."""
    tried = jobs()["test"]["strategy"]["matrix"]["python"]
    assert tried == re.findall(r"Python :: (3\.\d+)", SETUP)
    assert re.findall(r'python_requires=">=([\d.]+)"', SETUP) == tried[:1] and set(tried) <= set(smoke.PYTHONS)


def test_the_workflow_trusts_only_the_forge():
    """No action of somebody else, no address, no more rights than reading; and no job can hang."""
    used = {step["uses"] for job in jobs().values() for step in job["steps"] if "uses" in step}
    assert used and all(re.fullmatch(r"actions/(checkout|setup-python)@v\d+", action) for action in used)
    assert read(WORKFLOW)["permissions"] == {"contents": "read"} and "://" not in WORKFLOW.read_text("utf-8")
    assert all(job["timeout-minutes"] <= 120 for job in jobs().values())


# ── the hooks ──
def hooks() -> dict[str, Any]:
    repositories = read(ROOT / ".pre-commit-config.yaml")["repos"]
    assert [repository["repo"] for repository in repositories] == ["local"]
    return {hook["id"]: hook for hook in repositories[0]["hooks"]}


def test_the_hooks_run_what_the_checks_run():
    """A hook that runs a tool runs one that the extra `test` installs, and that .ci/run runs too."""
    tools = {hook["entry"].split()[0] for hook in hooks().values() if hook["language"] == "system"}
    extra = re.findall(r'^ {12}"([\w-]+)', SETUP[SETUP.index('"test": ['):], re.M)
    checks = {command.split()[0] for command in re.findall(r'^run "(.+)"$', (ROOT / ".ci" / "run").read_text("utf-8"), re.M)}
    assert tools == {"ruff", "mypy"} and tools <= set(extra) and tools <= checks


@pytest.mark.parametrize(("hook", "bad", "good"), [
    ("trailing-blanks", [b"x = 1 \n", b"x\t\r\n", b" "], [b"x = 1\n", b"  x\r\n", b"\n"]),
    ("merge-markers", [b"<<<<<<< HEAD\n", b"=======\n", b"=======\r\n", b">>>>>>> one\n", b"||||||| base\n"],
     [b"a <<<<<<< b\n", b"========\n", b"======= x\n", b">>> 1\n"])])
def test_no_file_holds_what_a_hook_refuses(hook, bad, good):
    """The patterns find what they are for, as pre-commit applies them: to each line of each text; and find nothing here."""
    refuses = re.compile(hooks()[hook]["entry"].encode())
    assert all(map(refuses.search, bad)) and not any(map(refuses.search, good))
    texts = {name: data for name in smoke.tree() if b"\0" not in (data := (ROOT / name).read_bytes())[:1024]}
    assert len(texts) > 400
    found = [f"{name}:{i}" for name, data in texts.items() for i, line in enumerate(data.splitlines(keepends=True), 1)
             if refuses.search(line)]
    assert found == []


# ── the forms ──
@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_a_form_can_be_filled_in(path):
    """Each field has an id of its own and a question; what it names is there."""
    form = read(path)
    fields = [field for field in form["body"] if field["type"] != "markdown"]
    ids = [field["id"] for field in fields]
    assert form["name"] and form["description"] and len(ids) == len(set(ids)) and all(field["attributes"]["label"] for field in fields)
    text = path.read_text("utf-8")
    assert "python -m minigrad.info" in text
    for name in re.findall(r"`python -m ([\w.]+)", text):
        assert 'if __name__ == "__main__":' in next(file.read_text("utf-8") for file in (
            ROOT.joinpath(*name.split("."), "__main__.py"), ROOT.joinpath(*name.split(".")).with_suffix(".py")) if file.is_file())
    for name in re.findall(r"`(minigrad\.[\w.]+\.)(\w+)[`(]", text):
        assert re.search(rf"def {name[1]}\b", "\n".join(p.read_text("utf-8") for p in (ROOT / "minigrad").rglob("*.py"))), name


def test_a_wrong_number_is_asked_for_in_full():
    """Which op, shapes, dtype and machine, what came out, and what the definition gives: none may be left out."""
    fields = {field["id"]: field for field in read(ROOT / ".github" / "ISSUE_TEMPLATE" / "wrong_number.yml")["body"]}
    needed = {name for name, field in fields.items() if field.get("validations", {}).get("required")}
    assert needed == {"op", "shapes", "dtype", "program", "found", "definition", "info"}


# ── versions ──
def test_the_release_is_the_same_everywhere():
    """The changelog begins with what is to come; its first release has the version of the code, and that of the citation with its date."""
    heads = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.M)
    releases = [re.fullmatch(r"(\d+\.\d+\.\d+) \((\d{4}-\d\d-\d\d)\)", head) for head in heads[1:]]
    assert heads[0] == "Unreleased" and releases and all(releases)
    cited = read(ROOT / "CITATION.cff")
    assert releases[0] is not None and releases[0].groups() == (cited["version"], str(cited["date-released"]))
    (version,) = re.findall(r'^__version__ = "(.+)"$', (ROOT / "minigrad" / "__init__.py").read_text("utf-8"), re.M)
    assert version == cited["version"] and f'license="{cited["license"]}"' in SETUP


# ── the security policy ──
def unpickles(tree: ast.AST) -> list[int]:
    """The lines that could load a pickle: by a module that does, or by a load that is not told to refuse one."""
    found = []
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else \
            [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
        if {name.split(".")[0] for name in names} & {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}:
            found.append(node.lineno)
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("torch.load", "pd.read_pickle"):
            found.append(node.lineno)
        if isinstance(node, ast.Call) and any(word.arg == "allow_pickle" and ast.unparse(word.value) != "False" for word in node.keywords):
            found.append(node.lineno)
    return found


@pytest.mark.parametrize("line", ["import pickle", "from pickle import load", "import joblib.memory", "torch.load(f)",
                                  "np.load(f, allow_pickle=True)", "np.load(f, allow_pickle=given)"])
def test_what_unpickles_is_seen(line):
    assert unpickles(ast.parse(line)) == [1] and unpickles(ast.parse("np.load(f); np.load(f, allow_pickle=False); json.load(f)")) == []


def test_no_file_is_ever_unpickled():
    """SECURITY.md says so of both packages; and the endings that it names are those that are refused."""
    for path in sorted(path for package in smoke.PACKAGES for path in (ROOT / package).rglob("*.py")):
        assert unpickles(ast.parse(path.read_text("utf-8"))) == [], path
    policy = (ROOT / "SECURITY.md").read_text("utf-8")
    from gpt2 import checkpoint

    named = re.search(r"A pickle\s+\(([^)]+)\)", policy)
    assert named is not None and set(re.findall(r"\.\w+", named[1])) == checkpoint._PICKLES
    assert all(flag in policy for flag in ("--exec", "--definition"))
