"""gpt2.golden --format llmc: the files that llm.c and its ports read, and llm.c itself, where it is there, as their reader."""
from __future__ import annotations

import json
import os
import re
import shutil
import struct
import subprocess
from pathlib import Path

import numpy as np
import ported as fixtures
import pytest
from safetensors.numpy import save_file
from tiny_gpt2 import tiny_config, tiny_tokenizer

from gpt2.errors import MissingError, UsageError
from gpt2.golden import __main__ as golden
from gpt2.golden.revealing import telling_weights
from gpt2.model import GPT2
from gpt2.verify import __main__ as verify
from gpt2.weights import llmc

pytestmark = pytest.mark.rounding

run = fixtures.run
IDS = [5, 17, 5, 99, 201, 7, 7, 42, 12, 250, 3, 3, 88, 9, 130, 61, 277]         # 2 rows of 8, and the last target


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A small model, saved with its tokenizer."""
    folder = tmp_path_factory.mktemp("llmc") / "model"
    GPT2(tiny_config(vocab_size=300, n_layer=3), seed=0).save_pretrained(folder, tokenizer=tiny_tokenizer())
    return folder


def flags_of(model: Path, out: Path, *more: object) -> list[object]:
    return ["--model", model, "--random-weights", 0, "--ids", ",".join(map(str, IDS)), "--batch-size", 2, "--out", out, *more]


@pytest.fixture
def files(run, model, tmp_path):
    """The folder of files, and what was printed."""
    code, out, err = run(golden, *flags_of(model, tmp_path / "files", "--format", "llmc"))
    assert code == 0, err
    return tmp_path / "files", out, err


def numbers(path: Path, code: str = "f") -> tuple[list[int], np.ndarray]:
    """The header of a file, and what follows, read without the package."""
    data = path.read_bytes()
    return list(struct.unpack("<256i", data[:1024])), np.frombuffer(data[1024:], {"f": "<f4", "i": "<i4", "h": "<u2"}[code])


def test_the_files_are_llm_cs(files, model):
    """Headers and layout, by hand: [out, in] matrices, kinds before blocks, a vocabulary of 384 rows for 300."""
    folder, out, _ = files
    config = tiny_config(vocab_size=300, n_layer=3)
    d, n, t = config.n_embd, config.n_layer, config.n_positions
    head, w = numbers(folder / "gpt2_124M.bin")
    assert head[:8] == [20240326, 3, t, 300, n, config.n_head, d, 384] and not any(head[8:])
    assert w.size == 384 * d + t * d + n * (12 * d * d + 13 * d) + 2 * d
    own = telling_weights(GPT2.from_pretrained(model).config, 0)
    np.testing.assert_array_equal(w[:300 * d].reshape(300, d), own["wte.weight"])
    assert not w[300 * d:384 * d].any()
    at = 384 * d + t * d + 2 * n * d                    # after wte, wpe, ln_1's weights and biases: c_attn's matrices
    for i in range(n):
        found = w[at + i * 3 * d * d:at + (i + 1) * 3 * d * d].reshape(3 * d, d)
        np.testing.assert_array_equal(found, own[f"h.{i}.attn.c_attn.weight"].T)
    np.testing.assert_array_equal(w[-d:], own["ln_f.bias"])
    head, bits = numbers(folder / "gpt2_124M_bf16.bin", "h")
    assert head[1] == 5 and bits.size == w.size
    near = (bits.astype(np.uint32) << 16).view(np.float32)
    assert (np.abs(near - w) <= 2.0**-8 * np.abs(w)).all()
    head, state = numbers(folder / "gpt2_124M_debug_state.bin")
    ids, targets = state.view(np.int32)[:32].reshape(2, 16).tolist()
    assert head[:4] == [20240327, 2, 2, 8] and ids == IDS[:-1] and targets == IDS[1:]
    assert state.size == 32 + 16 * 300 + 1 + w.size
    losses = json.loads((folder / "losses.json").read_text())["losses"]
    assert len(losses) == 10 and state[32 + 16 * 300] == np.float32(losses[0]) and losses[9] < losses[0]
    assert re.fullmatch(r"float expected_losses\[10\] = \{([\d.]+f, ){9}[\d.]+f\};\n", out)
    tokens, data = tiny_tokenizer(), (folder / "gpt2_tokenizer.bin").read_bytes()
    assert struct.unpack("<4i", data[:16]) == (20240328, 2, tokens.n_vocab, tokens.eot)
    rest, found = data[1024:], []
    while rest:
        found.append(rest[1:1 + rest[0]])
        rest = rest[1 + rest[0]:]
    assert found == [tokens.decode_bytes([i]) for i in range(tokens.n_vocab)]


def test_they_are_the_same_truth(run, files, model, tmp_path):
    """The debug state agrees with the tensors of the same model and ids, is refused for others, and a wrong number in it is found."""
    folder, _, _ = files
    assert run(golden, *flags_of(model, tmp_path / "g", "--grad"))[0] == 0
    state = folder / "gpt2_124M_debug_state.bin"
    code, out, err = run(verify, "--golden", tmp_path / "g", "--against", state)
    assert code == 0 and "42 tensors compared, 42 agree" in out, (out, err)
    data = bytearray(state.read_bytes())
    data[-8:-4] = struct.pack("<f", 3.0)                # in ln_f's bias
    (folder / "wrong.bin").write_bytes(data)
    code, out, _ = run(verify, "--golden", tmp_path / "g", "--against", folder / "wrong.bin")
    assert code == 1 and "the first to differ: ln_f.bias.grad" in out
    data[1024:1028] = struct.pack("<i", 6)
    (folder / "other.bin").write_bytes(data)
    for name, told, says in (("other.bin", 2, "has other ids than the truth"), ("gpt2_124M.bin", 3, "is not a debug state of llm.c"),
                             ("losses.json", 3, "must end in")):
        code, out, err = run(verify, "--golden", tmp_path / "g", "--against", folder / name)
        assert (code, out, err.count("\n")) == (told, "", 1) and says in err
    (folder / "short.bin").write_bytes(state.read_bytes()[:-4])
    code, out, err = run(verify, "--golden", tmp_path / "g", "--against", folder / "short.bin")
    assert code == 3 and "is it of another model, or truncated?" in err


def test_a_padded_vocabulary_is_compared_without_its_padding(run, model, tmp_path):
    """Logits and the table's gradient with up to 127 columns or rows more; with more it is another shape."""
    assert run(golden, *flags_of(model, tmp_path / "g", "--grad"))[0] == 0
    truth = golden.read_golden(tmp_path / "g")
    arrays = {"logits": np.pad(truth.array("logits"), ((0, 0), (0, 0), (0, 84)), constant_values=7.0),
              "wte.weight.grad": np.pad(truth.array("wte.weight.grad"), ((0, 84), (0, 0)))}
    save_file(arrays, tmp_path / "port.safetensors")
    assert run(verify, "--golden", tmp_path / "g", "--against", tmp_path / "port.safetensors")[0] == 0
    save_file({"logits": np.pad(truth.array("logits"), ((0, 0), (0, 0), (0, 128)))}, tmp_path / "port.safetensors")
    code, out, _ = run(verify, "--golden", tmp_path / "g", "--against", tmp_path / "port.safetensors")
    assert code == 1 and "has shape [2, 8, 428]; the truth has [2, 8, 300]" in out


@pytest.mark.parametrize("fields", [{"activation_function": "gelu"}, {"tie_word_embeddings": False}, {"layer_norm_epsilon": 1e-6},
                                    {"n_inner": 64}, {"scale_attn_by_inverse_layer_idx": True}], ids=lambda f: next(iter(f)))
def test_what_llm_c_cannot_compute_is_refused(run, fields, tmp_path):
    GPT2(tiny_config(**fields), seed=0).save_pretrained(tmp_path / "m")
    code, out, err = run(golden, "--model", tmp_path / "m", "--ids", "1,2,3", "--format", "llmc", "--out", tmp_path / "out")
    assert (code, out, err.count("\n")) == (2, "", 1) and next(iter(fields)) in err and not (tmp_path / "out").exists()


def test_a_token_that_is_too_long_is_refused():
    class Long:
        n_vocab, eot = 1, None

        def decode_bytes(self, ids):
            return b"x" * 256

    with pytest.raises(UsageError, match="token 0 has 256 bytes"):
        list(llmc.tokenizer(Long()))


def test_an_empty_file_is_no_state(tmp_path):
    (tmp_path / "x.bin").write_bytes(b"")
    with pytest.raises(MissingError, match="begins with nothing"):
        llmc.read_state(tmp_path / "x.bin", tiny_config())


DUMP = r"""
#define TESTING
#include "train_gpt2.c"
int main(void) {
    GPT2 model;
    gpt2_build_from_checkpoint(&model, "gpt2_124M.bin");
    FILE *f = fopenCheck("gpt2_124M_debug_state.bin", "rb");
    int header[256];
    freadCheck(header, sizeof(int), 256, f);
    int B = header[2], T = header[3], V = model.config.vocab_size, Vp = model.config.padded_vocab_size;
    int *ids = mallocCheck(2 * B * T * sizeof(int));
    freadCheck(ids, sizeof(int), 2 * B * T, f);
    fcloseCheck(f);
    gpt2_forward(&model, ids, ids + B * T, B, T);
    gpt2_zero_grad(&model);
    gpt2_backward(&model);
    f = fopenCheck("port.bin", "wb");
    fwrite(header, sizeof(int), 256, f);
    fwrite(ids, sizeof(int), 2 * B * T, f);
    for (int i = 0; i < B * T; i++) fwrite(model.acts.logits + (size_t)i * Vp, sizeof(float), V, f);
    fwrite(&model.mean_loss, sizeof(float), 1, f);
    fwrite(model.grads_memory, sizeof(float), model.num_parameters, f);
    return fclose(f);
}
"""


@pytest.mark.slow
@pytest.mark.parametrize("size", ["tiny", "gpt2"])
def test_llm_c_itself(run, size, model, tmp_path):
    """Its own test accepts every tensor and, with our losses compiled in, every step; what it computes agrees by gpt2.verify."""
    home = os.environ.get("LLMC")
    if home is None or shutil.which("cc") is None:
        pytest.skip("LLMC does not name a clone of karpathy/llm.c" if home is None else "there is no C compiler")
    ids = np.random.default_rng(0).integers(0, 300, 4 * 16 + 1)
    flags = ["--model", model if size == "tiny" else "gpt2", "--random-weights", 0, "--ids", ",".join(map(str, ids)), "--batch-size", 4]
    code, line, err = run(golden, *flags, "--format", "llmc", "--dtype", "float32", "--out", tmp_path / "files")
    assert code == 0, err
    test = Path(home, "test_gpt2.c").read_text()
    (tmp_path / "test.c").write_text(re.sub(r"float expected_losses\[10\] = \{.*?\};", line, test, flags=re.S))
    (tmp_path / "dump.c").write_text(DUMP)
    for name in ("test", "dump"):
        subprocess.run(["cc", "-O3", "-march=native", f"-I{home}", "-o", tmp_path / name, tmp_path / f"{name}.c", "-lm"], check=True,
                       capture_output=True)
    said = subprocess.run([tmp_path / "test"], cwd=tmp_path / "files", check=True, capture_output=True, text=True).stdout
    assert said.count("TENSOR OK") == 16 and "overall okay: 1" in said and "OK (LOGITS)" in said
    assert max(float(x) for x in re.findall(r"maxdiff = (\S+)", said)) < 1e-5
    subprocess.run([tmp_path / "dump"], cwd=tmp_path / "files", check=True, capture_output=True)
    assert run(golden, *flags, "--grad", "--out", tmp_path / "g")[0] == 0
    code, out, _ = run(verify, "--golden", tmp_path / "g", "--against", tmp_path / "files" / "port.bin")
    assert code == 0, out
