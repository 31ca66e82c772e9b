"""python -m gpt2.train: the loss falls, the best is kept, the same seed gives the same bits, and bad settings end at once."""
from __future__ import annotations

import errno
import json
import math
import os

import numpy as np
import pytest
from in_process import end_of
from safetensors.numpy import load_file
from tiny_gpt2 import tiny_model

import gpt2.train.__main__ as training
import minigrad as mg
from gpt2.data.shards import load_data
from gpt2.data.tokenizer import load_tokenizer
from gpt2.evaluate.likelihood import total_nll
from gpt2.io.outputs import MARK
from gpt2.model import GPT2
from gpt2.train import trainer
from minigrad import backend
from minigrad.distributed import ProcessGroup
from minigrad.errors import BackendUnavailable

SMALL = ["--n-layer", "1", "--n-head", "2", "--n-embd", "16", "--block-size", "16", "--batch-size", "4", "--warmup-iters", "3",
         "--learning-rate", "0.01", "--backend", "numpy"]
BEST = {"config.json", "merges.txt", "model.safetensors", "training.json", "vocab.json"}
WRITTEN = BEST | {"metrics.jsonl", "loss.png"}          # and directories checkpoint-N


def held(folder):
    """The names in a directory but for checkpoint-N and the marker, and the steps of those."""
    names = {path.name for path in folder.iterdir()} - {MARK}
    steps = sorted(int(name.removeprefix("checkpoint-")) for name in names if name.startswith("checkpoint-"))
    return {name for name in names if not name.startswith("checkpoint-")}, steps


@pytest.fixture
def run(data, capsys):
    """Run the command in this process: run(out, *flags) gives exit code, stdout and stderr."""

    def call(out, *flags, data=data):
        argv = ["--data", str(data), "--out-dir", str(out), *SMALL, *map(str, flags)]
        return end_of(lambda: training.main(argv), capsys, "gpt2.train")

    return call


@pytest.fixture
def diverging(monkeypatch):
    """Weights become NaN in the given step."""
    real = training.mg.optim.AdamW.step

    def at(step):
        def stepped(optimizer):
            real(optimizer)
            if optimizer.steps == step + 1:
                for group in optimizer.param_groups:
                    for p in group["params"]:
                        p.array.fill(math.nan)

        monkeypatch.setattr(training.mg.optim.AdamW, "step", stepped)

    return at


# ── what it makes ──
def test_the_loss_falls(run, data, tmp_path):
    """Training on a short text takes the loss from that of chance, ln V, to far below; stdout is one line that says so."""
    code, out, err = run(tmp_path / "out", "--max-iters", 120, "--eval-interval", 40, "--log-interval", 30)
    assert code == 0 and out.count("\n") == 1
    record = json.loads((tmp_path / "out" / "training.json").read_text())
    assert out.startswith(f"best: step {record['step']}, {record['validation']['nats_per_char']:.4f} nats per character; saved in")
    losses = [float(line.split("train loss ")[1].split(",")[0]) for line in err.splitlines() if "train loss" in line]
    assert len(losses) == 4 and losses == sorted(losses, reverse=True)
    assert losses[0] < math.log(300) and losses[-1] < 0.5 * math.log(300)
    assert [entry["step"] for entry in record["history"]] == [40, 80, 120][:len(record["history"])]
    assert held(tmp_path / "out") == (WRITTEN, [80, 120])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_checkpoint_has_the_recorded_loss(dtype, run, data, tmp_path):
    """What was saved, loaded again, has the recorded validation loss to the last bit when stored in the training's dtype."""
    assert run(tmp_path / "out", "--max-iters", 20, "--eval-interval", 10, "--dtype", dtype, "--save-dtype", dtype)[0] == 0
    record = json.loads((tmp_path / "out" / "training.json").read_text())
    model = GPT2.from_pretrained(tmp_path / "out", dtype=dtype)
    assert training.validate(model, load_data(data), ProcessGroup()) == record["validation"]
    assert record["parameters"] == model.num_parameters() and record["settings"]["n_embd"] == model.config.n_embd == 16
    tokenizer = load_tokenizer(tmp_path / "out")
    assert tokenizer.sha256 == load_tokenizer(data).sha256 and model.config.eos_token_id == tokenizer.eot


def test_nats_per_character_are_of_the_whole_text(data):
    """The loss is that of the tokens after the first; it is shared out over all characters of the text, or of the part that is read."""
    made = load_data(data)
    model = tiny_model(seed=1, vocab_size=made.meta["vocab_size"])
    text = made.tokenizer.decode(made.val[:].tolist())
    for limit in (None, 30):
        nll, tokens = total_nll(model.eval(), made.val[:limit])
        share = len(text) * (tokens + 1) / len(made.val)
        assert training.validate(model, made, ProcessGroup(), limit) == {
            "nats_per_token": pytest.approx(nll / tokens, rel=1e-12), "nats_per_char": pytest.approx(nll / share, rel=1e-12)}


def test_every_window_may_be_drawn():
    """A batch reads from the first token and is asked for the last: of n tokens each of the n − T windows comes, with its targets."""
    for n in (17, 18, 40):
        ids = np.arange(n, dtype=np.uint16)
        reads, targets = trainer.batch(ids, 1000, 16, mg.random.key(n))
        assert reads.shape == targets.shape == (1000, 16) and (targets == reads + 1).all()
        # a window of at most 24 is missed by 1000 draws once in e⁴¹ keys
        assert (np.unique(reads[:, 0]) == np.arange(n - 16)).all() and targets.max() == n - 1


def test_transformers_reads_the_checkpoint(run, data, tmp_path):
    """transformers loads the directory, model and vocabulary, and gives the recorded loss from the stored fp16 weights."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    assert run(tmp_path / "out", "--max-iters", 20, "--eval-interval", 10)[0] == 0
    theirs = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    ours = GPT2.from_pretrained(tmp_path / "out")
    ids = np.array(load_data(data).val[:16], np.int64)[None]
    with torch.no_grad():
        loss = float(theirs(torch.from_numpy(ids), labels=torch.from_numpy(ids)).loss)
    # both are float32: 16·4 terms in the longest sum of a layer, losses near ln 300
    assert abs(loss - float(ours.loss(ids[:, :-1], ids[:, 1:]))) < 64 * np.finfo(np.float32).eps * math.log(300)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.encode("Once upon a midnight") == load_tokenizer(data).encode("Once upon a midnight")


def test_the_same_seed_gives_the_same_bits(run, tmp_path):
    """Two runs with one seed end in the same bytes of weights, dropout and all; another seed ends in others."""
    flags = ("--max-iters", 12, "--eval-interval", 6, "--dropout", 0.1, "--attn-dropout", 0.1, "--save-dtype", "float32")
    for name, seed in (("a", 4), ("b", 4), ("c", 5)):
        assert run(tmp_path / name, *flags, "--seed", seed)[0] == 0
    a, b, c = ((tmp_path / name / "model.safetensors").read_bytes() for name in "abc")
    assert a == b != c


def test_the_seed_decides_weights_and_batches(run, tmp_path, monkeypatch):
    """Another seed draws other first weights and other batches; every step has a batch of its own."""
    real, batches, first = trainer.batch, [], []
    monkeypatch.setattr(trainer, "batch", lambda *args: batches.append(real(*args)) or batches[-1])
    for seed in (1, 2):
        out = tmp_path / str(seed)
        assert run(out, "--seed", seed, "--max-iters", 3, "--learning-rate", 0, "--save-dtype", "float32")[0] == 0
        first.append(load_file(out / "model.safetensors")["transformer.wte.weight"])
    assert not (first[0] == first[1]).any()
    assert len({ids.tobytes() for ids, _ in batches}) == 6
    assert all(ids.shape == (4, 16) and (ids[:, 1:] == targets[:, :-1]).all() for ids, targets in batches)


def test_training_follows_pytorch(run, data, tmp_path, monkeypatch):
    """Step by step the losses are those of PyTorch: AdamW on matrices with decay, on vectors without, clipping, warm-up, cosine."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    iters, top, low, warmup, clip = 12, 0.01, 0.002, 3, 0.5
    flags = ("--seed", 3, "--dtype", "float64", "--save-dtype", "float64")
    assert run(tmp_path / "first", *flags, "--max-iters", 1, "--learning-rate", 0)[0] == 0           # the weights as drawn
    batch, loss, batches, losses = trainer.batch, GPT2.loss, [], []
    monkeypatch.setattr(trainer, "batch", lambda *args: batches.append(batch(*args)) or batches[-1])
    monkeypatch.setattr(GPT2, "loss", lambda self, *args, **options: losses.append(loss(self, *args, **options)) or losses[-1])
    monkeypatch.setattr(training, "validate", lambda model, data, group, limit=None: {"nats_per_token": 1.0, "nats_per_char": 1.0})
    assert run(tmp_path / "out", *flags, "--max-iters", iters, "--learning-rate", top, "--min-lr", low, "--warmup-iters", warmup,
               "--grad-clip", clip, "--weight-decay", 0.5, "--beta1", 0.8, "--beta2", 0.9)[0] == 0

    theirs = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "first", dtype=torch.float64).eval()
    parameters = list(theirs.parameters())
    optimizer = torch.optim.AdamW([{"params": [p for p in parameters if p.ndim > 1], "weight_decay": 0.5},
                                   {"params": [p for p in parameters if p.ndim == 1], "weight_decay": 0.0}], betas=(0.8, 0.9))
    clipped = 0
    for step, (ids, targets) in enumerate(batches):
        done = (step - warmup) / (iters - warmup)
        for group in optimizer.param_groups:
            group["lr"] = top * (step + 1) / (warmup + 1) if step < warmup else low + (top - low) * (1 + math.cos(math.pi * done)) / 2
        logits = theirs(torch.from_numpy(ids)).logits
        found = torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.from_numpy(np.ascontiguousarray(targets)).flatten())
        # 64 terms in the longest sum; AdamW divides a gradient and its rounding by 1e-8 or more, and moves a weight by lr times that
        assert abs(losses[step].item() - found.item()) < 64 * np.finfo(np.float64).eps * (found.item() + step * top / 1e-8), step
        optimizer.zero_grad()
        found.backward()
        clipped += float(torch.nn.utils.clip_grad_norm_(parameters, clip)) > clip
        optimizer.step()
    assert len(batches) == iters and clipped


def test_how_often_it_reports_changes_nothing(run, tmp_path):
    """Logging and evaluation draw no random numbers and leave the model in training mode: the weights are the same."""
    flags = ("--max-iters", 12, "--dropout", 0.1, "--save-dtype", "float32")
    assert run(tmp_path / "a", *flags, "--eval-interval", 2, "--log-interval", 1)[0] == 0
    assert run(tmp_path / "b", *flags, "--eval-interval", 12, "--log-interval", 5)[0] == 0
    records = [json.loads((tmp_path / name / "training.json").read_text()) for name in "ab"]
    assert records[0]["step"] == records[1]["step"] == 12                     # the loss still falls, so the last is the best
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (tmp_path / "b" / "model.safetensors").read_bytes()


@pytest.mark.parametrize("dtype", ["tf32", "bfloat16", "float16"])
def test_less_precision_trains_as_well(dtype, run, tmp_path):
    """The validation loss is float32's to a hundredth; the weights are float32, and nothing but tf32 lets products round."""
    records = []
    for name in ("float32", dtype):
        assert run(tmp_path / name, "--max-iters", 30, "--dtype", name, "--save-dtype", "float32")[0] == 0
        assert mg.get_float32_matmul_precision() == ("high" if name == "tf32" else "highest")
        records.append(json.loads((tmp_path / name / "training.json").read_text()))
    mg.set_float32_matmul_precision("highest")
    a, b = (record["history"][-1]["nats_per_char"] for record in records)
    assert abs(a - b) < 0.01 * a and records[1]["settings"]["dtype"] == dtype
    assert all(w.dtype == np.float32 for w in load_file(tmp_path / dtype / "model.safetensors").values())


def test_the_best_is_kept(run, tmp_path, monkeypatch):
    """The checkpoint is that of the lowest validation loss, not the last."""
    losses = iter([3.0, 2.0, 2.5, 2.0])
    saved = []
    monkeypatch.setattr(training, "validate", lambda *_: {"nats_per_token": 1.0, "nats_per_char": next(losses)})
    save = training.save_best
    monkeypatch.setattr(training, "save_best", lambda *args: (saved.append(1), save(*args)))
    assert run(tmp_path / "out", "--max-iters", 8, "--eval-interval", 2)[:2] == \
        (0, f"best: step 4, 2.0000 nats per character; saved in {tmp_path / 'out'}\n")
    assert len(saved) == 2 and json.loads((tmp_path / "out" / "training.json").read_text())["step"] == 4


def test_weight_decay_spares_vectors(run, tmp_path):
    """With decay alone at work, matrices shrink, while biases and LayerNorms stay as they were drawn."""
    for name, decay in (("with", 5.0), ("without", 0.0)):
        flags = ("--max-iters", 1, "--warmup-iters", 0, "--weight-decay", decay, "--save-dtype", "float64", "--dtype", "float64")
        assert run(tmp_path / name, *flags)[0] == 0
    decayed, plain = (load_file(tmp_path / name / "model.safetensors") for name in ("with", "without"))
    for name, weight in plain.items():
        assert np.array_equal(decayed[name], weight) == (weight.ndim == 1), name


def told(out, name):
    """The numbers of this name in metrics.jsonl, with their steps."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line[name]) for line in lines if name in line]


def test_accumulation_is_a_larger_batch(run, tmp_path):
    """Four batches of 2 for each change of the weights are one of 8, to rounding; the tokens of a step are counted so."""
    flags = ("--max-iters", 6, "--log-interval", 1, "--eval-interval", 3, "--dtype", "float64", "--save-dtype", "float64")
    assert run(tmp_path / "whole", *flags, "--batch-size", 8)[0] == 0
    code, _, err = run(tmp_path / "parts", *flags, "--batch-size", 2, "--gradient-accumulation-steps", 4)
    assert code == 0 and "6 steps of 128 tokens" in err
    for name in ("train_loss", "grad_norm", "val_loss"):
        a, b = (np.array(told(tmp_path / place, name)) for place in ("whole", "parts"))
        # 64 terms in the longest sum, and AdamW's steps of 0.01 over gradients that are off by eps and no smaller than about 1e-6
        assert len(a) and np.abs(a - b).max() < 64 * np.finfo(np.float64).eps * 6 * 0.01 / 1e-6
    a, b = (load_file(tmp_path / place / "model.safetensors") for place in ("whole", "parts"))
    assert all(np.abs(a[name] - b[name]).max() < 1e-6 for name in a)


def test_one_batch_is_learned_by_heart(run, tmp_path):
    """--overfit-one-batch takes the loss of that batch below 0.01; the validation loss is what it is."""
    code, _, _ = run(tmp_path / "out", "--overfit-one-batch", "--max-iters", 400, "--eval-interval", 400, "--log-interval", 100,
                       "--n-embd", 32, "--n-layer", 2)
    losses = told(tmp_path / "out", "train_loss")
    assert code == 0 and losses[-1][1] < 0.01 < losses[0][1]


def test_what_is_told(run, tmp_path):
    """A line and a line of metrics.jsonl for each interval, a validation loss, samples, a picture; the settings that went in, first."""
    from matplotlib.image import imread

    often = ("--log-interval", 5, "--eval-interval", 6, "--sample-every", 4, "--eval-iters", 1)
    code, _, err = run(tmp_path / "out", "--max-iters", 12, *often)
    assert code == 0
    assert [step for step, _ in told(tmp_path / "out", "train_loss")] == [5, 10, 12]
    assert [step for step, _ in told(tmp_path / "out", "val_loss")] == [6, 12]
    samples = told(tmp_path / "out", "sample")
    assert [step for step, _ in samples] == [4, 8, 12] and all(text for _, text in samples)
    lines = err.splitlines()
    assert "log_interval = 5" in lines[[line.startswith("log_interval") for line in lines].index(True)]
    line = next(line for line in lines if line.startswith("step 10: train loss"))
    for part in ("val loss", "grad norm", "lr ", " ms, ", "tokens/s", "of peak"):
        assert part in line
    assert all(0 < share < 1.5 for _, share in told(tmp_path / "out", "share_of_peak"))
    assert imread(tmp_path / "out" / "loss.png").shape[2] == 4
    assert sum(line.startswith("step") and "sample" in line for line in lines) == 3


def test_the_op_that_made_nan_is_named(run, tmp_path, diverging):
    """--debug-nan ends the run with the op, its module and the step; without it the loss is all there is to say."""
    diverging(2)
    code, out, err = run(tmp_path / "out", "--max-iters", 10, "--debug-nan")
    last = err.splitlines()[-1]
    assert (code, out) == (1, "") and last.startswith("gpt2.train: step 4: embedding: ") and "in wte" in last
    assert "NaN, because weight holds NaN" in last


# ── what a user can get wrong ──
@pytest.mark.parametrize(("flags", "message"), [
    (["--lr", "0.1"], "unrecognized arguments: --lr 0.1"),
    (["--learning-rate", "nan"], "--learning-rate must be a number from 0 on, not nan"),
    (["--learning-rate", "inf"], "--learning-rate must be"),
    (["--learning-rate", "-1"], "--learning-rate must be"),
    (["--learning-rate", "fast"], "argument --learning-rate: invalid float value: 'fast'"),
    (["--min-lr", "nan"], "--min-lr must be"),
    (["--weight-decay", "-0.1"], "--weight-decay must be"),
    (["--grad-clip", "-1"], "--grad-clip must be"),
    (["--beta1", "1"], "--beta1 must be from 0 on and below 1, not 1.0"),
    (["--beta2", "nan"], "--beta2 must be"),
    (["--dropout", "1.5"], "--dropout must be"),
    (["--attn-dropout", "-1"], "--attn-dropout must be"),
    (["--max-iters", "0"], "argument --max-iters: 0 is less than 1"),
    (["--batch-size", "-4"], "argument --batch-size: -4 is less than 1"),
    (["--block-size", "1.5"], "argument --block-size: '1.5' is not a whole number"),
    (["--gradient-accumulation-steps", "0"], "argument --gradient-accumulation-steps: 0 is less than 1"),
    (["--keep", "0"], "argument --keep: 0 is less than 1"),
    (["--n-head", "3"], "--n-embd 16 is not a multiple of --n-head 3"),
    (["--block-size", "200"], "val holds "),
    (["--block-size", "100000"], "train holds "),
    (["--backend", "jax"], "--backend: there is no backend 'jax'"),
    (["--save-dtype", "int8"], "argument --save-dtype: invalid choice: 'int8'"),
    (["--seed", "x"], "argument --seed: invalid int value: 'x'"),
])
def test_a_wrong_setting_is_one_line(flags, message, run, tmp_path):
    """A setting that cannot be trained with ends with exit 2 and one line before anything starts; nothing is written."""
    code, out, err = run(tmp_path / "new" / "out", *flags)
    assert (code, out) == (2, "") and message in err and err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_missing_data_is_one_line(run, tmp_path):
    """A data directory that is not there, or holds no prepared data, ends with exit 3 and the command that makes it."""
    for place in (tmp_path / "nowhere", tmp_path):
        code, out, err = run(tmp_path / "out", data=place)
        assert (code, out) == (3, "") and f"{place} holds no prepared data" in err and err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_missing_backend_is_said_first(run, tmp_path, monkeypatch):
    """A backend that is not to be had ends with exit 4, before a directory is made."""

    def missing(name):
        raise BackendUnavailable("no CuPy here")

    monkeypatch.setattr(backend, "get", missing)
    assert run(tmp_path / "out", "--backend", "cupy") == (4, "", "gpt2.train: no CuPy here\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", [*sorted(BEST), "tokenizer.json"])
def test_nothing_is_overwritten(name, run, tmp_path):
    """An --out-dir that holds any file of a checkpoint is refused and stays as it is; one with other files is taken."""
    (tmp_path / name).write_text("mine")
    code, out, err = run(tmp_path)
    assert (code, out) == (2, "") and f"--out-dir {tmp_path} holds {name} already" in err and err.count("\n") == 1
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(name, "mine")]
    (tmp_path / name).rename(tmp_path / "log.txt")
    assert run(tmp_path, "--max-iters", 1)[0] == 0
    assert held(tmp_path) == (WRITTEN | {"log.txt"}, [0, 1])


def test_an_unwritable_directory_is_said_before_training(run, tmp_path, monkeypatch):
    """An --out-dir that cannot be written ends with exit 2 before the first step, and leaves nothing behind."""
    monkeypatch.setattr(training, "run", lambda *args: pytest.fail("training started"))
    (tmp_path / "file").touch()
    (tmp_path / "closed").mkdir(mode=0o500)
    places = [tmp_path / "file", tmp_path / "file" / "out", tmp_path / "new" / ("x" * 300)]
    if os.geteuid():                                    # root writes anywhere
        places += [tmp_path / "closed", tmp_path / "closed" / "out"]
    before = sorted(tmp_path.rglob("*"))
    for place in places:
        code, out, err = run(place)
        assert (code, out) == (2, "") and f"--out-dir {place} cannot be written: " in err and err.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_a_directory_that_takes_no_file(run, tmp_path, monkeypatch):
    """A directory that can be made, but in which no file can be, is one that cannot be written; it is removed again."""

    def refuse(dir):
        assert os.path.isdir(dir)
        raise OSError(errno.EROFS, "Read-only file system", str(dir))

    monkeypatch.setattr(training.tempfile, "TemporaryFile", refuse)
    code, out, err = run(tmp_path / "new" / "out")
    assert (code, out) == (2, "") and err.endswith(f"--out-dir {tmp_path / 'new' / 'out'} cannot be written: Read-only file system\n")
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_fails_on_the_way(run, tmp_path, monkeypatch, diverging):
    """When the loss becomes NaN the run ends with exit 2 and advice; where it began is kept, and no model."""
    diverging(2)
    code, out, err = run(tmp_path / "new" / "out", "--max-iters", 10)
    assert (code, out) == (2, "") and "the loss became nan at step 4; lower --learning-rate" in err.splitlines()[-1]
    assert held(tmp_path / "new" / "out") == (set(), [0])


def test_a_loss_that_becomes_nan_keeps_the_best(run, tmp_path, diverging):
    """When it does later, what was kept stays; NaN that shows only in the validation is an error too."""
    for bad, where in ((7, "the loss became nan at step 9"), (11, "the validation loss became nan at step 12")):
        diverging(bad)
        folder = tmp_path / str(bad)
        code, out, err = run(folder, "--max-iters", 12, "--eval-interval", 3)
        assert (code, out) == (2, "") and where in err.splitlines()[-1] and "Traceback" not in err
        assert held(folder)[0] == WRITTEN
        record = json.loads((folder / "training.json").read_text())
        assert record["step"] == bad // 3 * 3 and all(math.isfinite(entry["nats_per_char"]) for entry in record["history"])


def test_weights_too_large_for_fp16_are_an_error(run, tmp_path, monkeypatch):
    """Weights that the stored dtype cannot hold end the run with the tensor's name, and no checkpoint is left."""
    monkeypatch.setattr(training.mg.optim, "warmup_cosine", lambda n, **rate: 1e6)
    code, out, err = run(tmp_path / "out", "--max-iters", 1)
    assert (code, out) == (2, "") and "too large for float16" in err.splitlines()[-1]
    assert held(tmp_path / "out") == ({"metrics.jsonl", "loss.png"}, [0])


@pytest.mark.parametrize("after", [2, 7])
def test_control_c_in_the_middle_of_a_step(after, run, tmp_path, monkeypatch):
    """A second Ctrl-C, which does not wait for the end of the step, ends with 130 and names the checkpoint that is left."""
    real, calls = trainer.batch, []

    def batch(*args):
        calls.append(1)
        if len(calls) == after:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(trainer, "batch", batch)
    code, out, err = run(tmp_path / "out", "--max-iters", 50, "--eval-interval", 5)
    last = (after - 1) // 5 * 5
    assert (code, out) == (130, "")
    assert err.splitlines()[-1] == (f"gpt2.train: stopped by SIGINT after step {after - 1}; continue from checkpoint-{last} with "
                                    f"--init-from resume --out-dir {tmp_path / 'out'}")
    assert held(tmp_path / "out")[1] == sorted({0, last})
