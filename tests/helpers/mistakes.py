"""python -m tests.helpers.mistakes: what gpt2.verify says of each mistake of a port in C, alone and in pairs."""
from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gpt2.config import GPT2Config
from gpt2.golden import __main__ as golden
from gpt2.model import GPT2
from gpt2.verify import __main__ as verify

# the number in port.c, its kind, and what must be said of it
MISTAKES = [
    (1, "forward", "ε is 1e-3"), (2, "forward", "ε is added to the deviation"), (3, "forward", "divides by n − 1"),
    (4, "forward", "LayerNorm's bias is not added"), (5, "loading", "ln_1 has ln_2's weight"), (6, "forward", "RMSNorm"),
    (7, "forward", "c_attn's bias is added twice"), (8, "forward", "K and V are swapped"), (9, "forward", "Q and K are swapped"),
    (10, "forward", "not divided by √(d/h)"), (11, "forward", "divided by √d;"), (12, "forward", "hides each query's own key"),
    (13, "forward", "one key too many"), (14, "forward", "first key is skipped"), (15, "forward", "last key is skipped"),
    (16, "forward", "window of the last 4 keys"), (17, "forward", "first head's V"), (18, "forward", "heads are put together in reverse"),
    (19, "forward", "masked scores are 0"), (20, "forward", "no causal mask"), (21, "forward", "by erf"), (22, "forward", "0.044751"),
    (23, "forward", "lacks the term 0.044715 x³"), (24, "forward", "MLP's output replaces"), (25, "forward", "what ln_1 made"),
    (26, "forward", "ln_f, is not applied"), (27, "forward", "padded vocabulary"), (28, "forward", "sum over the tokens"),
    (29, "forward", "mlp.c_proj's bias is added twice"), (30, "loading", "start at row 1"), (31, "loading", "mlp.c_fc's weight is read"),
    (32, "loading", "attn.c_proj's weight is read"), (33, "loading", "h.1, h.10"), (34, "loading", "weights of the first one"),
    (35, "loading", "weight and bias are swapped"), (36, "loading", "head's matrix is read transposed"), (37, "forward", "by √d"),
    (38, "batching", "8 bits"), (39, "batching", "wpe is indexed by the id"), (40, "batching", "all rows of the batch are row 0"),
    (41, "batching", "positions run on"), (42, "batching", "targets are not shifted"), (43, "batching", "read as [T, B]"),
    (44, "forward", "dropout is on"),
    (45, "backward", "lacks its second term"), (46, "backward", "activation's derivative is left out"), (47, "backward", "its two means"),
    (48, "backward", "weight is left out in the backward pass"), (49, "backward", "gradient Σ g;"), (50, "backward", "−x̂ mean(ĝ ⊙ x̂)"),
    (51, "backward", "scale 1/√(d/h) is left out in the backward pass"), (52, "backward", "left out of K's"),
    (53, "backward", "softmax's derivative lacks"), (54, "backward", "past ln_2 is left out"), (55, "backward", "lacks the head's part"),
    (56, "backward", "set, not added"), (57, "backward", "mlp.c_fc's bias has the gradient of the first row"),
    (58, "backward", "divided by T, the tokens of a row, once too often"), (59, "backward", "softmax alone"),
    (60, "backward", "wpe's gradient is of the last row"), (61, "backward", "V gets no gradient"), (62, "backward", "added up twice"),
    (63, "backward", "GELU's input"), (64, "backward", "diagonal of the scores"), (65, "loading", "c_attn's bias is not added"),
    (66, "optimiser", "begins at 2"), (67, "optimiser", "bias correction"), (68, "optimiser", "added to the gradient"),
    (69, "optimiser", "inside the root"), (70, "optimiser", "10 times as much"), (71, "optimiser", "not zeroed"),
    (72, "optimiser", "β₁ and β₂ are swapped"), (73, "optimiser", "only matrices decay"), (74, "optimiser", "weight decay is left out"),
    (75, "forward", "is ReLU"), (76, "backward", "derivative is that of ReLU"), (77, "backward", "lacks the inner one"),
    (78, "backward", "lacks −mean(ĝ)"), (79, "forward", "divided by d/h"), (80, "backward", "softmax's derivative is left out"),
    (81, "forward", "ln_2 is applied to the block's input"), (82, "backward", "added up twice"),
    (83, "backward", "attn.c_proj hands back g W"),
    (84, "backward", "past ln_1 is left out"), (85, "backward", "lacks the embedding's part"), (86, "optimiser", "does not grow"),
    (87, "optimiser", "not multiplied by the learning rate"), (88, "backward", "added up at the query's position"),
    (89, "forward", "use the first row's K"), (90, "forward", "has √(2/π) times x alone"),
    (91, "backward", "of the last token alone: it is set"), (92, "loading", "l · d numbers after block 0's"),
    (93, "backward", "written over the head's part"), (94, "optimiser", "head keeps its first table"),
    (95, "forward", "without the transpose to [B, T, h, d/h]"), (96, "loading", "attn.c_proj's weight is read transposed"),
    (97, "forward", "each matrix leaves out the last token"), (98, "loading", "mlp.c_fc's weight is that of block 0"),
    (99, "forward", "attention's output is added 1.1 times"), (100, "backward", "is added to that of block 0"),
    (101, "backward", "goes past ln_2 0.5 times"), (102, "backward", "the first head's for all of them"),
    (103, "forward", "the second addition leaves out the last token"),
]
SAYS = {number: says for number, _, says in MISTAKES}
PAIRS = [(1, 21), (7, 22), (10, 45), (12, 24), (17, 29), (18, 31), (8, 47), (30, 53), (38, 49), (40, 57), (42, 51), (27, 63), (28, 61),
         (45, 57), (47, 63), (51, 49), (53, 60), (54, 56), (58, 45), (46, 55), (52, 64), (84, 77), (50, 66), (45, 68), (66, 74), (70, 87),
         (21, 66), (14, 42), (5, 80), (32, 83), (3, 72), (16, 85), (88, 90), (91, 92), (89, 93), (95, 66)]
CONFIG = {"vocab_size": 300, "n_positions": 64, "n_embd": 32, "n_head": 4, "n_layer": 3}
DEEP = {**CONFIG, "n_embd": 16, "n_layer": 11}          # for blocks in the order of their names
IDS = [5, 17, 280, 99, 201, 7, 261, 42, 12, 250, 17, 3, 88, 9, 130, 61, 277, 5, 5, 299, 150, 31, 17, 260, 8]           # 3 rows of 8


class Judged(NamedTuple):
    """What came of one port. verdict: named, perhaps (the right one is among what is said), located (the steps alone are told), unknown, or
    wrong; agrees: exit code 0.
    """

    mistakes: tuple[int, ...]
    verdict: str
    first: str | None
    said: list[str]
    seconds: float


def built(folder: Path) -> Path:
    """The port, compiled. CalledProcessError where it does not, FileNotFoundError where there is no C compiler."""
    subprocess.run(["cc", "-O2", "-o", folder / "port", Path(__file__).with_name("port.c"), "-lm"], check=True, capture_output=True)
    return folder / "port"


def truth(folder: Path, config: dict[str, int], steps: int = 2) -> Path:
    """A truth of random weights in both formats, in a folder: `files` for the port and `golden` for gpt2.verify."""
    GPT2(GPT2Config(**config), seed=0).save_pretrained(folder / "model")
    flags = ["--model", folder / "model", "--random-weights", 0, "--ids", ",".join(map(str, IDS)), "--batch-size", 3]
    for more in (["--format", "llmc", "--steps", 0, "--out", folder / "files"],
                 ["--grad", "--steps", steps, "--out", folder / "golden"]):
        if golden.main([str(flag) for flag in [*flags, *more]]):
            raise RuntimeError("gpt2.golden failed")
    return folder


def judged(port: Path, truth: Path, mistakes: tuple[int, ...], bare: bool = False, steps: int = 2) -> Judged:
    """A port with some mistakes beside the truth. bare: without activations, as llm.c's debug state has it."""
    with tempfile.TemporaryDirectory() as out:
        files = truth / "files"
        subprocess.run([port, files / "gpt2_124M.bin", files / "gpt2_124M_debug_state.bin", out, str(steps), *map(str, mistakes)],
                       check=True)
        for path in Path(out).glob("*.npy") if bare else ():
            if path.name.startswith(("blocks.", "embed.", "pos_embed.", "ln_f.out")):
                path.unlink()
        began = time.process_time()
        args = verify.parser().parse_args(["--golden", str(truth / "golden"), "--against", out])
        with np.errstate(all="ignore"):
            found, _, code = verify.against(args)
        spent = time.process_time() - began
    return Judged(mistakes, verdict(found, code, mistakes), found["first"], found["causes"], spent)


def verdict(found: dict[str, Any], code: int, mistakes: tuple[int, ...]) -> str:
    """named: all are, and nothing else. perhaps: one that is right is among what may be. wrong: something else is said to be it."""
    if code == 0:
        return "agrees"
    wanted, said = [SAYS[n] for n in mistakes], found["causes"]
    hits = [any(says in cause for cause in said) for says in wanted]
    if not found["named"]:
        return "named" if all(hits) and wanted == [SAYS[44]] else "located" if found["places"] else "unknown"
    if found["sure"]:
        if len(said) > len(wanted) or not all(any(says in cause for says in wanted) for cause in said):
            return "wrong"
        return "named" if all(hits) else "in part"
    return "perhaps" if all(hits) else "in part" if any(hits) else "wrong"


def main(argv: list[str] | None = None) -> int:
    p = argparse.ArgumentParser(prog="python -m tests.helpers.mistakes", description=__doc__)
    p.add_argument("--only", type=int, nargs="+", metavar="N", help="one port with these mistakes together, all that is said")
    p.add_argument("--pairs", action="store_true", help="the pairs in place of single mistakes")
    p.add_argument("--bare", action="store_true", help="the port gives logits, loss, gradients of parameters and steps, and no activations")
    args = p.parse_args(argv)
    rows: list[tuple[int, ...]] = [tuple(args.only)] if args.only else PAIRS if args.pairs else [(), *((n,) for n, _, _ in MISTAKES)]
    counted: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as folder:
        port, homes = built(Path(folder)), dict[str, Path]()
        for row in rows:
            name = "deep" if 33 in row else "small"
            if name not in homes:
                home = Path(folder, name)
                home.mkdir()
                stdout, sys.stdout = sys.stdout, open("/dev/null", "w")
                try:
                    homes[name] = truth(home, DEEP if name == "deep" else CONFIG)
                finally:
                    sys.stdout.close()
                    sys.stdout = stdout
            one = judged(port, homes[name], row, args.bare)
            counted[one.verdict] = counted.get(one.verdict, 0) + 1
            print(f"{'+'.join(map(str, row)) or 'none':>6}  {one.verdict:8} {one.seconds:5.1f} s  {one.first}  {' | '.join(one.said)}",
                  flush=True)
    print(", ".join(f"{n} {what}" for what, n in sorted(counted.items())))
    return 1 if counted.get("wrong") else 0


if __name__ == "__main__":
    raise SystemExit(main())
