"""Where tests lie: in the folder of the module that they are about, and under its name.

The tests of minigrad/engine/copies.py are tests/minigrad/engine/test_copies.py, and further ones
test_copies_ASPECT.py beside it. A package's own module and its command (__init__.py, __main__.py)
are tested in its folder under the folder's name: gpt2/train/__main__.py in
tests/gpt2/train/test_train.py. Tests about a whole package lie at the top of its folder, and those
about the whole project, as these do, in tests.
"""
from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from data import ROOT

SHORT, LONGEST = 60, 500                                # lines: of a module, of a file of tests
TESTS = sorted(p.relative_to(ROOT).as_posix() for p in (ROOT / "tests").rglob("test_*.py"))
MODULES = sorted(p.relative_to(ROOT).as_posix() for top in ("minigrad", "gpt2")
                 for p in (ROOT / top).rglob("*.py"))

# Modules, and folders of them (with a slash at the end), that have no file of tests of their own:
# where their tests are, and why there.
ELSEWHERE = {
    # every op, whatever file it stands in, is held to all laws
    "minigrad/fused/": "beside unfused definitions: test_fused.py; the laws: test_laws.py",
    "minigrad/ops/": "kinks and refusals: test_ops.py; the laws: test_laws.py",
    "minigrad/backend/numpy/": "the laws at small sizes: test_kernels_sizes.py; large arrays: "
                               "test_large.py; every kernel is broken by test_kernel_mutants.py",
    # the kit: each law is seen to break, and the jury judges the whole
    "minigrad/testing/laws/": "each law is seen to break: test_check.py; all: test_jury.py",
    "minigrad/testing/domains/": "tables that test_laws.py goes through, op by op",
    "minigrad/testing/fake_cupy/": "test_fake.py; the kernels: fake_cupy/test_cuda.py",
    "minigrad/testing/foreign.py": "what it says of programs: test_program.py",
    "minigrad/testing/mutate.py": "test_rules.py runs it",
    "minigrad/testing/mutate_kernels.py": "test_kernel_mutants.py runs it",
    "minigrad/testing/mutate_text.py": "test_function_mutants.py uses it",
    # the engine: random programs go through all of it, and each decision is undone
    "minigrad/engine/checks.py": "what ops refuse: test_ops.py, test_axes.py",
    "minigrad/engine/declaration.py": "ops are declared in test_extend.py",
    "minigrad/engine/live.py": "gradients of gradients: test_engine.py, test_transforms.py",
    "minigrad/engine/making.py": "test_tensor.py makes Tensors of all kinds",
    "minigrad/engine/refusals.py": "each where a check has failed: test_ops.py, test_saved.py",
    "minigrad/engine/several.py": "ops of several results: test_graph.py",
    "minigrad/engine/value.py": "its numbers leave a Tensor in test_tensor.py",
    # the rest of minigrad
    "minigrad/__init__.py": "its names: test_creation.py; what it imports: test_packaging.py",
    "minigrad/errors.py": "each error is raised where it is meant; its exit code: test_command.py",
    "minigrad/hints.py": "names of other libraries: test_creation.py",
    "minigrad/moved.py": "every old name is imported: test_commands.py",
    "minigrad/op.py": "ops outside the package: test_extend.py",
    "minigrad/widen.py": "test_16_bits.py, test_every_16_bit_number.py",
    "minigrad/backend/base.py": "test_backend.py; what an op asks of a backend: test_op_kernels.py",
    "minigrad/backend/fallbacks.py": "what a library lacks: test_backend.py",
    "minigrad/backend/cupy/nccl.py": "with the groups of processes: test_distributed.py",
    "minigrad/backend/cupy/decode.py": "each kernel beside its definition: test_gpu_ops.py",
    # gpt2
    "gpt2/data/vocabulary.py": "with what is made of it: test_tokenizer.py, data/"
                               "test_tokenizer_added_tokens.py",
    "gpt2/decoding/kv_cache.py": "with it and without: decoding/test_decode.py, gpt2/test_model.py",
    "gpt2/evaluate/likelihood.py": "with its command: test_evaluate.py",
    "gpt2/evaluate/tasks.py": "with its command: test_evaluate.py",
    "gpt2/experiments/": "each runs in test_experiments.py, where its verdicts must flip",
    "gpt2/golden/truth.py": "with what writes it: test_golden.py",
    "gpt2/inspect/": "each is a subcommand, and runs in test_inspect.py",
    "gpt2/io/atomic.py": "a crash and a full disk: test_checkpoint_writing.py, test_golden.py",
    "gpt2/io/plots.py": "pictures of the experiments: test_experiments.py",
    "gpt2/train/trainer.py": "a run: test_train.py; of the whole GPT-2: test_full_size.py",
    "gpt2/verify/mistakes/": "tables: test_planting.py plants them, test_mistakes.py names them",
    "gpt2/verify/diagnosis.py": "what is said of wrong ports: test_golden.py, test_mistakes.py",
    "gpt2/verify/formula_parts.py": "parts of what test_planting.py plants",
    "gpt2/verify/port.py": "names and files of ports: test_verify.py",
    "gpt2/verify/search.py": "mistakes of ports, and pairs of them: test_mistakes.py",
    "gpt2/verify/suspect.py": "with the places of mistakes: test_places.py",
    "gpt2/weights/pretrained.py": "there and back: test_model.py, test_against_transformers.py",
}


def listed(module: str, keys: Iterable[str] = ELSEWHERE) -> bool:
    """Whether the module, or a folder above it, is among the keys."""
    return any(module.startswith(key) if key.endswith("/") else module == key for key in keys)


def mirror_of(module: str, tests: list[str] = TESTS, modules: list[str] = MODULES) -> list[str]:
    """The files of tests whose paths mirror the module's; NAME_MORE.py has its own."""
    *folders, name = module.removesuffix(".py").split("/")
    if name in ("__init__", "__main__"):
        name = folders[-1]
    folder = "/".join(folders)
    longer = [m[len(folder) + 1:-3] for m in modules if m.startswith(f"{folder}/{name}_")]
    not_theirs = f"(?!(?:{'|'.join(longer)})[_.])" if longer else ""
    mirror = re.compile(rf"tests/{folder}/test_{not_theirs}{name}(_\w+)?\.py")
    return [test for test in tests if mirror.fullmatch(test)]


def untested(lines: dict[str, int], tests: list[str] = TESTS) -> list[str]:
    """Modules of more than SHORT lines that have neither a file of tests nor a reason."""
    return [module for module, n in lines.items()
            if n > SHORT and not mirror_of(module, tests, list(lines)) and not listed(module)]


def length(path: str) -> int:
    return len((ROOT / path).read_text("utf-8").splitlines())


def is_one(mention: str) -> bool:
    """Whether one file of tests has this name, or this end of its path."""
    return sum(f"/{test}".endswith(f"/{mention}") for test in TESTS) == 1


LINES = {module: length(module) for module in MODULES}


def test_every_module_has_its_tests():
    assert untested(LINES) == []


@pytest.mark.parametrize("made", [
    "minigrad/engine/made.py", "gpt2/made/__main__.py",
    "gpt2/data/token.py",                               # test_tokenizer.py is not its own
    "gpt2/data/corpus_made.py",                         # nor is test_corpus.py
    "gpt2/train/model.py",                              # nor one in another folder
])
def test_a_module_without_tests_is_noticed(made):
    assert untested({**LINES, made: SHORT + 1}) == [made] and untested({**LINES, made: SHORT}) == []


def test_tests_that_go_away_are_missed():
    """Or that go into another folder."""
    own = "tests/gpt2/data/test_shards.py"
    rest = [test for test in TESTS if test != own]
    for elsewhere in ([], ["tests/gpt2/test_shards.py"], ["tests/gpt2/io/test_shards.py"]):
        assert untested(LINES, [*rest, *elsewhere]) == ["gpt2/data/shards.py"]


def test_whose_tests_they_are():
    devices = ["tests/minigrad/backend/cupy/test_cupy_devices.py"]
    assert mirror_of("minigrad/backend/cupy/__init__.py") == devices
    both = ["a/b.py", "a/b_c.py"]
    tests = [f"tests/a/test_{name}.py" for name in ("b", "b_cd", "b_c", "b_c_d")]
    assert [mirror_of(module, tests, both) for module in both] == [tests[:2], tests[2:]]


def test_a_reason_is_needed_and_names_tests():
    """Each is for a long module without tests of its own, or for a folder with one."""
    without = [module for module, n in LINES.items() if n > SHORT and not mirror_of(module)]
    for key, reason in ELSEWHERE.items():
        assert any(listed(module, [key]) for module in without), f"{key} needs no reason"
        named = re.findall(r"[\w/]*test_\w+\.py", reason)
        assert named and all(map(is_one, named)), (key, named)


def test_files_of_tests_are_short():
    folder = ROOT / "tests"
    files = [path.relative_to(ROOT).as_posix() for path in folder.rglob("*.py")]
    assert [path for path in files if length(path) > LONGEST] == []


def mentions(folder: Path) -> Iterator[tuple[str, str]]:
    """The files of tests that texts in this tree name, each by the end of its path: text, name."""
    kinds = {".py", ".md", ".toml", ".in", ".yml", ".c", ".cu", ".h", ""}
    tops = (".ci", ".github", "benchmarks", "docs", "gpt2", "minigrad", "tests")
    texts = [*folder.glob("*"), *(path for top in tops for path in (folder / top).rglob("*"))]
    for path in sorted(texts):
        inside = path.relative_to(folder)
        left_out = {"_build", "__pycache__"} & {*inside.parts}
        if path.is_file() and path.suffix in kinds and not left_out:
            text = path.read_text("utf-8", errors="ignore")
            for said in re.findall(r"\b(?:\w+/)*test_[a-z_0-9]+\.py\b", text):
                yield inside.as_posix(), said


def test_who_names_a_file_of_tests_names_one_that_exists():
    """By its whole path, or by as much of its end as tells it from the others."""
    made_up = {"tests/test_mirror.py", "tests/test_machines.py"}   # these name some that are not
    assert [(text, said) for text, said in mentions(ROOT)
            if text not in made_up and not is_one(said)] == []


def test_a_name_of_no_file_is_noticed(tmp_path):
    (tmp_path / "docs").mkdir()
    told = ["`tests/gpt2/test_shards.py`", "../tests/gpt2/data/test_shards.py", "test_moved.py",
            "test_hooks.py"]                            # of the engine and of the model
    (tmp_path / "docs" / "page.md").write_text(", ".join(told))
    assert [is_one(said) for _, said in mentions(tmp_path)] == [False, True, False, False]
