"""The pages say what is so; and where a label, a name, a link, a sample, a number or a command is broken, somebody notices."""
from __future__ import annotations

import ast
import importlib
import re
import shutil
import subprocess
import sys

import pytest
from data import ROOT
from planted import planted

from docs import check, facts, laboratory, pages, statements
from gpt2.experiments import experiment
from gpt2.hooks import EQUATIONS
from minigrad.op import REGISTRY

PAGES = pages.pages()
EXAMPLES = sorted((ROOT / "docs" / "examples").glob("*.py"))


def ids(page):
    return pages.name_of(page)


# ── what is so ──
def test_labels_match_both_ways():
    """What code names is derived on a page, what a page derives is named by code, and no label is there twice."""
    assert list(check.labels()) == []


def test_a_docstring_begins_with_a_whole_sentence():
    """Tools show what stands before its first empty line, which must not cut a sentence."""
    cut = [f"{path.relative_to(pages.ROOT)}: {getattr(node, 'name', 'the module')}"
           for top in ("minigrad", "gpt2", "benchmarks", "docs", "tests") for path in sorted((pages.ROOT / top).rglob("*.py"))
           for node in ast.walk(ast.parse(path.read_text("utf-8")))
           if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module)
           and "\n\n" in (text := ast.get_docstring(node) or "") and not re.search(r"[.:?!)`…\]]$", text.split("\n\n")[0].strip())]
    assert cut == []


@pytest.mark.parametrize("what", check.QUICK, ids=lambda f: f.__name__)
def test_a_page_says_what_is_so(what):
    """Sources, names, commands and flags, links, numbers that were measured, numbers that the code has, shapes, outputs."""
    assert [defect for page in PAGES for defect in what(page)] == []


def test_facts_are_of_pages():
    """Each page of which docs/facts.py demands something is there."""
    assert facts.everything().keys() <= set(map(pages.name_of, PAGES))


@pytest.mark.rounding
@pytest.mark.parametrize("page", [p for p in PAGES if any(pages.blocks(p, "python", "pycon"))], ids=ids)
def test_samples_run_and_print_what_is_shown(page):
    assert list(check.samples(page)) == []


@pytest.mark.slow
@pytest.mark.parametrize("page", [p for p in PAGES if any(pages.commands(p))], ids=ids)
def test_commands_run(page):
    assert list(check.commands(page)) == []


@pytest.mark.parametrize("path", [pytest.param(p, id=p.stem, marks=[pytest.mark.slow] if p.stem == "char_gpt" else []) for p in EXAMPLES])
def test_an_example_does_what_it_says(path):
    """Each ends with an assertion of its own."""
    if path.stem == "foreign_kernel" and shutil.which("cc") is None:
        pytest.skip("cc is not installed; get a C compiler, as in apt-get install gcc")
    done = subprocess.run([sys.executable, str(path)], cwd=ROOT, env=check.environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "assert " in path.read_text("utf-8") or "SystemExit" in path.read_text("utf-8")


def test_every_fused_op_carries_its_label():
    """Definition, kernel and rules of each name an equation, and all of one family or one that it is made of."""
    known = pages.labels_of_pages()
    for name, op in REGISTRY.items():
        if op.definition is not None and op.__module__.startswith("minigrad."):
            rules = [r.function for r in (*op.rules.values(), op.joint) if r is not None and r.function.__name__ != "<lambda>"]
            for f in (op, op.definition, *rules):
                labels = pages.labels_in(f.__doc__ or "")
                assert labels and labels <= known.keys(), f"{name}: {getattr(f, '__name__', f)} names {labels or 'no equation'}"


def test_every_point_of_the_model_has_an_equation():
    assert set(EQUATIONS.values()) <= pages.labels_of_pages().keys()


def test_every_chapter_is_in_the_table_of_contents():
    """index.md, and experiments/index.md for those, lead to every page."""
    found = {(page.parent / link).resolve() for name in ("index.md", "experiments/index.md") for page in [pages.DOCS / name]
             for link in pages.links(page)}
    assert [pages.name_of(p) for p in pages.DOCS.rglob("*.md") if p.resolve() not in found and p.name != "index.md"] == []


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(tmp_path):
    pytest.importorskip("sphinx", reason="Sphinx is not installed; pip install -e '.[docs]'")
    done = subprocess.run([sys.executable, "-m", "docs.build", "--out", str(tmp_path / "site")], cwd=ROOT, capture_output=True, text=True,
                          timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    page = (tmp_path / "site" / "softmax.html").read_text("utf-8")
    assert 'id="eq-softmax-4"' in page and "_softmax_dx" in page and "https://cdn" not in page and 'class="beside' in page
    assert (tmp_path / "site" / "_static" / "tex-svg.js").stat().st_size > 1_000_000


# ── what is broken is noticed ──
@pytest.fixture
def page(tmp_path, monkeypatch):
    """A page of docs/ that a test writes, alone; its folder stands for the repository's docs/."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "minigrad").mkdir()
    monkeypatch.setattr(pages, "ROOT", tmp_path)
    monkeypatch.setattr(pages, "DOCS", tmp_path / "docs")
    path = tmp_path / "docs" / "page.md"

    def write(text, code=""):
        path.write_text(text, "utf-8")
        (tmp_path / "minigrad" / "it.py").write_text(code, "utf-8")
        return path

    return write


TRUE = "# Page\n\n$$ a = b \\tag{thing.1} $$\n\nBy (thing.1).\n\nCode: [`minigrad.it.f`](../minigrad/it.py)\n"
CODE = 'def f():\n    """a = b   (thing.1)"""\n'


def test_a_page_that_is_right_has_no_defects(page):
    at = page(TRUE, CODE)
    assert [*check.labels(), *check.names(at), *check.links(at)] == []


@pytest.mark.parametrize(("text", "code", "said"), [
    (TRUE, CODE.replace("thing.1", "thing.2"), "names (thing.2), which no page derives"),
    (TRUE, CODE.replace("thing.1", "think.1"), "names (think.1), which no page derives"),
    (TRUE, CODE.replace("thing.1", "thing.1–3"), "names (thing.3), which no page derives"),
    (TRUE, CODE.replace("(thing.1)", ""), "derives (thing.1), which no docstring or comment names"),
    (TRUE + "\n$$ c \\tag{thing.2} $$\n", CODE, "derives (thing.2), which no docstring or comment names"),
    (TRUE + "\n$$ c \\tag{thing.1} $$\n", CODE, "the label (thing.1) is there twice"),
], ids=["another number", "another family", "a range too long", "code without", "page alone", "twice"])
def test_a_label_that_is_broken_is_noticed(page, text, code, said):
    page(text, code)
    assert any(said in defect for defect in check.labels())


@pytest.mark.parametrize(("text", "said"), [
    (TRUE.replace("it.f`", "it.g`"), "there is no minigrad.it.g"),
    (TRUE.replace("minigrad.it.f`", "minigrad.at.f`"), "is not a name of minigrad/it.py"),
    (TRUE.replace("/it.py", "/at.py"), "No such file"),
], ids=["name", "module", "file"])
def test_a_name_that_is_broken_is_noticed(page, text, said):
    assert any(said in defect for defect in check.names(page(text, CODE)))


@pytest.mark.parametrize(("more", "said"), [
    ("[x](other.md)", "the link other.md leads nowhere"), ("[x](#nothing)", "has no heading #nothing"),
    ("![x](plots/none.png)", "the link plots/none.png leads nowhere"), ("By (thing.7).", "names (thing.7), which no page derives"),
], ids=["page", "heading", "picture", "label"])
def test_a_link_that_is_broken_is_noticed(page, more, said):
    assert any(said in defect for defect in check.links(page(f"{TRUE}\n{more}\n", CODE)))


def test_a_number_out_of_nowhere_is_noticed(page):
    """A section that names a time says what measured it; that another section does is not enough."""
    assert list(check.measured(page("# A\n\nIt takes 3 ms.\n\n# B\n\n`python -m timeit`\n"))) == [
        "docs/page.md: 'A' says '3 ms', and not which file of results or command it is from"]
    assert list(check.measured(page("# A\n\nIt takes 3 ms (`python -m timeit`).\n"))) == []


@pytest.mark.parametrize(("old", "new", "said"), [
    ("0.97", "0.96", "'train' says 0.96 of torch.compile, which its results do not"),
    ("| 1.5 | **0.97** |", "| **0.97** | 1.5 |", "'train' says 0.97 of PyTorch eager, which its results do not"),
    ("Other 2.2", "Other 2.3", "'train' says 2.3 of Other, which its results do not"),
    ("| train |", "| trains |", "the results have no row 'trains'"),
], ids=["number", "column", "others", "row"])
def test_a_number_that_is_not_that_of_its_results_is_noticed(page, tmp_path, old, new, said):
    """As it is rounded; of that row and that peer, in the file that the section links."""
    (tmp_path / "benchmarks" / "results").mkdir(parents=True)
    (tmp_path / "benchmarks" / "results" / "r.md").write_text(
        "| row | peer |\n|---|---|\n| train | minigrad | 13.23 ms |\n|  | torch | 1.5 |\n|  | torch-compile | 0.97 |\n|  | Other | 2.2 |\n")
    text = ("# A\n\n[r](../benchmarks/results/r.md)\n\n| a | minigrad | PyTorch eager | torch.compile | others |\n|---|---|---|---|---|\n"
            "| train | 13.2 | 1.5 | **0.97** | Other 2.2 |\n")
    assert list(check.tables(page(text))) == []
    assert old in text and f"docs/page.md: {said}" in list(check.tables(page(text.replace(old, new))))


@pytest.mark.parametrize("text", ["`python -m gpt2.generat --prompt x`", "`python -m gpt2.generate --no-such-flag`",
                                  "`python -m gpt2.inspect trace --no-such`", "`python -m gpt2.generate --overflow roll`",
                                  "```bash\npython -m gpt2.generate --no-such\n```",
                                  "<!-- not run: hours -->\n```bash\npython -m gpt2.train --max-itres 5\n```"])
def test_a_command_in_a_sentence_that_is_none_is_noticed(page, text):
    assert len(list(statements.spelled(page(f"# Page\n\n{text}\n")))) == 1
    right = "`python -m gpt2.inspect trace --out x.html` and `python -m gpt2.generate --prompt x`"
    assert list(statements.spelled(page(f"# Page\n\n{right}\n"))) == []


@pytest.mark.parametrize(("name", "old", "new"), [
    # flags, values of flags, defaults
    ("README.md", "`--tokenizer train:N`", "`--tokeniser train:N`"), ("README.md", "`--top-k`,", "`--topk`,"),
    ("docs/kv-cache.md", "`--overflow slide` drops", "`--overflow roll` drops"),
    ("docs/mixed-precision.md", "`--dtype tf32` |", "`--dtype tf16` |"),
    ("docs/training.md", "| `hellaswag` |", "| `hella-swag` |"), ("docs/gpu.md", "| `rates` | products", "| `speeds` | products"),
    ("docs/kv-cache.md", "`--overflow error`, the default", "`--overflow slide`, the default"),
    ("docs/any-language.md", "`--timeout` seconds (10)", "`--timeout` seconds (30)"),
    # exit codes
    ("README.md", "3 for missing or broken weights", "4 for missing or broken weights"),
    ("docs/any-language.md", "| 3 | the program cannot", "| 4 | the program cannot"),
    ("docs/training.md", "130 or 143", "130 or 141"), ("docs/porting.md", "0 where all agree and 1 where", "1 where all agree and 0 where"),
    # counts and sizes
    ("README.md", "[seventeen laws]", "[sixteen laws]"), ("README.md", "twenty claims", "nineteen claims"),
    ("docs/gpt2.md", "| 354,823,168 |", "| 354,832,168 |"), ("docs/kv-cache.md", "75 MB beside 498 MB", "57 MB beside 498 MB"),
    ("docs/performance.md", "190 GFLOP for B4 T64", "390 GFLOP for B4 T64"),
    ("docs/porting.md", "some eight hundred mistakes", "some four hundred mistakes"),
    # laws, names, files
    ("docs/testing.md", "α Jᵀu + β Jᵀw:", "α Jᵀu − β Jᵀw:"),
    ("docs/testing.md", "gradient does not depend on which", "gradient depends on which"),
    ("docs/performance.md", "`split_heads`", "`cut_heads`"), ("docs/gpu.md", "| `layer_norm_sums` |", "| `layer_norm_totals` |"),
    ("docs/tensors.md", '`"embedding_op/weight+"`', '`"embedding/weight+"`'),
    ("docs/tensors.md", "`DTypeError` is a `TypeError`", "`DTypeError` is a `ValueError`"),
    ("docs/testing.md", "`minigrad.testing.array_api_strict` does", "`minigrad.testing.exact` does"),
    ("docs/training.md", "| `meta.json` |", "| `info.json` |"),
    ("docs/architecture.md", "`EQUATIONS` in `gpt2/hooks.py`", "`LABELS` in `gpt2/hooks.py`"),
    ("docs/architecture.md", "`gpt2/decoding/sampling.py` |", "`gpt2/sample.py` |"),
    ("docs/architecture.md", "cli/ ─ io/ ─", "cli/ ─ input/ ─"),
    ("README.md", "    benchmarks/               how", "    bench/                    how"),
    # shapes, equations of a table, outputs
    ("docs/gpt2.md", "what a cache holds | $[B, h, T, d/h]$", "what a cache holds | $[B, T, h, d/h]$"),
    ("docs/gpt2.md", "$[B, h, T, S]$ | (attention.2) |\n| `attn.z`", "$[B, h, T, S]$ | (attention.3) |\n| `attn.z`"),
    ("docs/porting.md", "attention.8      [1, 4, 6, 64]", "attention.8      [1, 6, 4, 64]"),
    ("docs/porting.md", "all 18 before it", "all 12 before it"), ("docs/data-parallel.md", "max |B−A|  cosine ", "max |B−A|  cosinus "),
], ids=lambda value: "" if value.startswith(("README", "docs/")) else value[:24])
def test_a_statement_that_is_broken_is_noticed(name, old, new):
    """One mistake in the page, and somebody says so of that page."""
    with planted(name, old, new) as page:
        assert any(f"{name}: " in defect for what in check.QUICK for defect in what(page))


@pytest.mark.parametrize(("line", "wrong", "right", "said"), [
    ("y = np.sum(x)", "[B, T] -> [B]", "[B, T] -> []", "[B] is []"), ("y = x.T", "[B, B]", "[T, B]", "[B, B] is [3, 2]"),
    ("y = {'a': x}", 'y["a"] [T], and more', 'y["a"] [B, T], and more', "[T] is [2, 3]"),
    ("y = f(x)", "[B] -> [B]", "[B, T] -> [T, B]", "[B] is [2, 3]"),
], ids=["result", "one letter", "expression", "return"])
def test_a_shape_that_is_broken_is_noticed(page, line, wrong, right, said):
    """Of a result, of an argument, of an expression, and of what a function takes and returns."""
    for claim in (right, wrong):
        code = f"x = np.ones((2, 3))      # [B, T]\n{line}                # {claim}"
        if line == "y = f(x)":
            code = f"def f(x):\n    return x.T          # {claim}\ny = f(np.ones((2, 3)))"
        found = check.samples_here(page(f"# Page\n\n```python\nimport numpy as np\n{code}\n```\n"))
        assert found == [] if claim == right else said in "".join(found)


@pytest.mark.parametrize(("shown", "right"), [
    ("a 1.25 b\n3 c", True), ("a 9.5e-07 b\n3 c", True), ("a 1.25 b\n4 c", False), ("a 1.25 d\n3 c", False), ("…\n3 c", True),
    ("…\n2 c", False), ("a 1.25 b", False),
], ids=["same", "another number", "another count", "another word", "the end of it", "another end", "a part"])
def test_an_output_that_is_another_is_noticed(page, shown, right):
    """Words and whole numbers of the block of text below a command."""
    at = page(f"# Page\n\n```bash\ntrue\nprintf 'a 1.50   b\\n3 c\\n'\n```\n\n```text\n{shown}\n```\n")
    assert [("does not print" in defect) for defect in check.commands(at)] == [True] * (not right)


def test_a_block_of_text_says_who_prints_it(page):
    """The command above it, or a reason; what is not run prints nothing."""
    command, text = "```bash\necho name\n```\n", "```text\nname\n```\n"
    assert len(list(statements.outputs(page(text)))) == 1
    assert len(list(statements.outputs(page(f"<!-- not run: hours -->\n{command}\n{text}")))) == 1
    assert list(statements.outputs(page(f"{command}\n{text}\n<!-- not run: it is an example -->\n{text}"))) == []


def test_an_alternative_that_selects_nothing_is_noticed(page):
    at = page("```bash\npytest -n 0 tests/test_packaging.py -k \"readme or no_such_law\"\n```\n")
    assert ["no test is called 'no_such_law'" in defect for defect in check.commands(at, collect=True)] == [True]


@pytest.mark.parametrize(("block", "said"), [
    ("```pycon\n>>> 1 + 1\n3\n```", "Expected:\n    3\nGot:\n    2"), ("```python\nx = 1 / 0\n```", "ZeroDivisionError"),
    ("```python\nx = 1\n```\n\n```pycon\n>>> x\n1\n>>> y\n2\n```", "NameError"), ("```python\nimport sys; sys.exit(0)\n```", "SystemExit"),
], ids=["output", "error", "name", "exit"])
def test_a_sample_that_is_broken_is_noticed(page, block, said):
    assert said in "".join(check.samples_here(page(f"# Page\n\n{block}\n")))


def test_samples_of_a_page_share_a_namespace_and_what_is_not_run_is_not(page):
    at = page("```python\nx = 1\n```\n\n<!-- not run: needs a GPU -->\n```python\nx = 2\n```\n\n```pycon\n>>> x\n1\n```\n")
    assert check.samples_here(at) == []


@pytest.mark.parametrize("command", ["python -m gpt2.generate --no-such-flag", "pytest no_such_file.py", "no-such-program", "true && false",
                                     "pip install -e '.[nosuch]'", "pytest -n 0 tests/test_packaging.py -k no_such_law"])
def test_a_command_that_is_broken_is_noticed(page, command):
    assert len(list(check.commands(page(f"# Page\n\n```bash\n{command}\n```\n")))) == 1


def test_commands_that_are_right_run_one_after_the_other(page):
    """In a folder of the page's, which is gone afterwards; what is said not to run does not."""
    at = page("# Page\n\n```bash\necho a > x      # a comment\ntest -f \\\n  x\n```\n\n<!-- not run: takes hours -->\n```bash\nfalse\n```\n"
              "\n```bash\ntest -f x\npip install -e '.[docs]'\n```\n")
    assert list(check.commands(at)) == [] and not (ROOT / "x").exists()


def test_labels_are_read_as_they_are_written():
    """One, several, ranges, the family left out, and what is cited beside them; no versions, no decimals, no names of files."""
    text = "a (softmax.1). b (layer_norm.5–7), (attention.1, .4–5; Dao 2023) (GPT-2's, gelu.2) (v 0.1) (h.0.mlp) (about 3.5) (see x.py)"
    assert pages.labels_in(text) == {"softmax.1", "layer_norm.5", "layer_norm.6", "layer_norm.7", "attention.1", "attention.4",
                                     "attention.5", "gelu.2"}


def test_source_is_found_by_name():
    """Decorators and all; of a class's method; of a .cu file."""
    text, line = pages.source_of("minigrad.fused.softmax.softmax", ROOT / "minigrad/fused/softmax.py")
    lines = (ROOT / "minigrad/fused/softmax.py").read_text("utf-8").splitlines()
    assert text.splitlines()[0] == lines[line - 1] == "@fused(softmax_unfused, x=_softmax_dx)" and text.endswith("return out")
    text, _ = pages.source_of("gpt2.model.GPT2.forward", ROOT / "gpt2/model.py")
    assert text.startswith("def forward(")


# ── the experiments' pages ──
def test_the_pages_of_experiments_are_their_results():
    """What python -m docs.laboratory makes of the JSON is what lies there, and the verdicts are those of the numbers."""
    assert [pages.name_of(path) for path, text in laboratory.files().items() if path.read_text("utf-8") != text] == []
    for stem in laboratory.stems():
        found = laboratory.of_file(stem)
        assert [v._asdict() for v in experiment(found["experiment"]).judge(found)] == found["verdicts"], stem


def test_a_result_that_changes_changes_its_page(monkeypatch):
    """Other numbers, another page: it is not written by hand."""
    before, found = laboratory.page("layer-norm"), laboratory.of_file("layer-norm")
    found["rows"][0]["std"] = 123.456
    monkeypatch.setattr(laboratory, "of_file", lambda name: found)
    assert "123.4560" in laboratory.page("layer-norm") and laboratory.page("layer-norm") != before


def test_the_modules_of_the_reference_are_there():
    """Each that docs/api.md lists can be imported, and has the names that it lists: the site's builder ends where one has not."""
    listed = re.findall(r"^```\{api\} (.+)$", (ROOT / "docs" / "api.md").read_text("utf-8"), re.M)
    assert len(listed) > 30
    for module, *names in map(str.split, listed):
        found = importlib.import_module(module)
        assert [name for name in names if not hasattr(found, name)] == [], module
