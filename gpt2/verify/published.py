"""Published figures of OpenAI's GPT-2 (124M), computed again with its weights.

A figure that cannot be computed is skipped, with the reason.
"""
from __future__ import annotations

import argparse
import hashlib
import math
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import minigrad as mg

from ..cli.command import backend_of
from ..config import GPT2Config, parameter_shapes
from ..data.tokenizer import load_tokenizer
from ..errors import GPT2Error, MissingError, UsageError
from ..evaluate.__main__ import run_items
from ..evaluate.likelihood import Span, scores
from ..evaluate.tasks import protocol_of, read_items
from ..io.records import MB, read_text
from ..model import GPT2
from ..weights.checkpoint import Tensors, read_tensors
from ..weights.locate import locate

SIZE, SHA256 = 548_105_171, "248dfc3911869ec493c76e65bf2fcf7f615828b0254c12b473182f0f81d3a707"
DOG = [464, 3290, 373, 1043, 287, 257, 2214, 1474, 262, 16246, 286, 2688, 290, 2688, 27262, 13,
       198, 198, 464, 3290]
TURING = [262, 749, 3665, 8217, 319, 262, 5440, 13, 198, 198, 464, 3644, 318, 257, 4572, 326, 460,
          1620, 3716, 16765, 11, 290, 340, 460, 1620, 777, 16765, 287, 257, 835, 326, 318, 845,
          2092, 284, 262, 1692, 3632, 13, 198]
BATCH = {"Hello, my dog is a little": " bit of a mess. I'm not sure if he's going",
         "Today, I": "'m going to be doing a lot of research on this. I"}
STEPS = [5.270007, 4.059707, 3.375123, 2.800783, 2.315382,
         1.849029, 1.394656, 0.999147, 0.624080, 0.376511]


class Checked(NamedTuple):
    """A figure, who published it, and what was found.

    verdict: holds, FAILED or skipped. why: the reason for skipping it.
    """

    what: str
    source: str
    expected: str
    found: str
    verdict: str
    why: str = ""


class Figure(NamedTuple):
    """A published figure: `found(model, tokenizer, data)` must be `expected`.

    within: how much a number may differ. needs: a file of the --data folder. slow: whether it takes
    many minutes on a CPU.
    """

    what: str
    source: str
    expected: Any
    within: float
    found: Callable[[GPT2, Any, Path], Any]
    needs: str = ""
    slow: bool = False


# ── what is computed ──
def greedy(model: GPT2, ids: list[int], n: int) -> list[int]:
    """The n most likely tokens after ids, chosen one after the other."""
    return model.generate([ids], max_new_tokens=n, greedy=True)[0][len(ids):]


def batch(model: GPT2, tokenizer: Any) -> list[str]:
    """The continuations of BATCH's prompts, padded on the left in one batch.

    Each prompt must have the same continuation alone; else both texts are returned.
    """
    rows = [tokenizer.encode(prompt) for prompt in BATCH]
    counts = [len(tokenizer.encode(text)) for text in BATCH.values()]
    together = model.generate(rows, max_new_tokens=max(counts), greedy=True)
    out = [tokenizer.decode(found[len(row):][:n]) for found, row, n in zip(together, rows, counts)]
    alone = [tokenizer.decode(greedy(model, row, n)) for row, n in zip(rows, counts)]
    return out if out == alone else [f"{a} (padded), {b} (alone)" for a, b in zip(out, alone)]


def nll(model: GPT2, ids: list[int]) -> float:
    """The mean of −log p of each id after the first, in nats."""
    score = next(scores(model, [Span(np.array(ids), 1)]))
    return score.nll / score.tokens


def first_ids(text: str, tokenizer: Any, n: int) -> list[int]:
    """The first n ids of Tiny Shakespeare as llm.c writes it.

    Empty lines separate passages, and <|endoftext|> comes before each passage.
    """
    ids: list[int] = []
    for passage in text.split("\n\n"):
        ids += [tokenizer.eot, *tokenizer.encode(passage + "\n\n", allow_special=False)]
        if len(ids) >= n:
            return ids[:n]
    raise UsageError(f"the text has {len(ids)} ids; {n} are needed")


def adamw_losses(model: GPT2, ids: list[int], rows: int, steps: int) -> list[float]:
    """The loss before each AdamW step on one batch, as in llm.c's test.

    All parameters decay by 0.01. The model's own weights do not change.
    """
    arrays = {name: np.array(mg.backend.of(p.array).host(p.array))
              for name, p in model.named_parameters()}
    own = GPT2(model.config, backend=model.where["device"], dtype=model.where["dtype"],
               parameters=arrays)
    x, y = np.array(ids[:-1]).reshape(rows, -1), np.array(ids[1:]).reshape(rows, -1)
    optimizer = mg.optim.AdamW(list(own.parameters()), 1e-4, weight_decay=0.01)
    out = []
    for _ in range(steps):
        own.zero_grad()
        loss = own.loss(x, y)
        loss.backward()
        optimizer.step()
        out.append(loss.item())
    return out


def perplexity(model: GPT2, ids: list[int]) -> float:
    """Perplexity as on transformers' page about it.

    The windows are as long as the context and do not overlap; the first token of each is not
    counted.
    """
    context = model.config.n_positions
    starts = range(0, len(ids) - 1, context)
    found = list(scores(model, (Span(np.array(ids[i:i + context]), 1) for i in starts), 1))
    return math.exp(math.fsum(s.nll for s in found) / sum(s.tokens for s in found))


def wikitext(path: Path) -> str:
    """The text as transformers' page joins it: rows of the data set, with "\\n\\n" between them.

    A blank line is an empty row.
    """
    lines = read_text(path, 256 * MB).splitlines(keepends=True)
    return "\n\n".join(row if row.strip() else "" for row in lines)


def items(task: str, protocol: str, *keys: str) -> Callable[[GPT2, Any, Path], Any]:
    """A function that runs gpt2.evaluate on a task by a protocol, and returns one of its numbers.

    keys: where the number is in the result.
    """
    def found(model: GPT2, tokenizer: Any, data: Path) -> Any:
        args = argparse.Namespace(task=task, protocol=protocol, data=data / FILES[task],
                                  max_length=None, stride=None, limit=None, batch_size=8, model="")
        read_items(args.data, protocol_of(task, protocol).made, 1)     # an error before a long run
        result = run_items(args, model, tokenizer)[0]
        for key in keys:
            result = result[key]
        return result

    return found


FILES = {"hellaswag": "hellaswag_val.jsonl", "lambada": "lambada_test.jsonl"}
FIGURES = [
    Figure("greedy after “The dog”", "transformers' tests", DOG[2:], 0,
           lambda m, t, d: greedy(m, [464, 3290], 18)),
    Figure("a batch, padded on the left and singly", "transformers' tests", list(BATCH.values()), 0,
           lambda m, t, d: batch(m, t)),
    Figure("greedy after “Alan Turing theorized …”", "picoGPT", TURING, 0,
           lambda m, t, d: greedy(
               m, t.encode("Alan Turing theorized that computers would one day become"), 40)),
    # published in float32, after some 10⁹ operations: it is exact to about 1e-5
    Figure("mean NLL of [50256, 15496, 995, 0]", "TransformerLens", 5.331855773925781, 5e-5,
           lambda m, t, d: nll(m, [50256, 15496, 995, 0])),
    # llm.c's own test allows 0.01
    Figure("losses of ten AdamW steps", "llm.c, test_gpt2", STEPS, 0.01,
           lambda m, t, d: adamw_losses(
               m, first_ids(read_text(d / "tinyshakespeare.txt", 256 * MB), t, 257), 4, 10),
           "tinyshakespeare.txt"),
    # from users of transformers' script; its own page has only gpt2-large (19.44)
    Figure("WikiText-2 test perplexity, stride 1024", "karpathy/llm.c#276", 29.94, 0.05,
           lambda m, t, d: perplexity(
               m, t.encode(wikitext(d / "wikitext2-test.raw"), allow_special=False)),
           "wikitext2-test.raw", True),
    # two protocols for each data set, with different texts or different scores
    *(Figure(what, by, wanted, 0.002, items("hellaswag", protocol, key, "value"),
             FILES["hellaswag"], True)
      for what, by, wanted, protocol, key in (
          ("HellaSwag acc, cleaned texts", "lm-eval, by llm.c", 0.2892, "lm-eval", "acc"),
          ("HellaSwag acc_norm, cleaned texts, by characters", "lm-eval, by llm.c", 0.3114,
           "lm-eval", "acc_norm"),
          ("HellaSwag acc, texts as they are", "llm.c", 0.2859, "llm.c", "acc"),
          ("HellaSwag acc_norm, texts as they are, by tokens", "llm.c", 0.2955,
           "llm.c", "acc_per_token"))),
    Figure("LAMBADA acc, last word", "lm-eval", 0.3256, 0.002,
           items("lambada", "lm-eval", "acc", "value"), FILES["lambada"], True),
    Figure("LAMBADA perplexity, last word", "lm-eval", 40.06, 0.3,
           items("lambada", "lm-eval", "perplexity"), FILES["lambada"], True),
    Figure("LAMBADA acc, last token", "Radford et al. 2019", 0.4599, 0.002,
           items("lambada", "openai", "acc", "value"), FILES["lambada"], True),
]


# ── verdicts ──
def judged(figure: Figure, found: Any) -> Checked:
    """The verdict on a figure that was computed."""
    if figure.within:
        holds = bool(np.allclose(found, figure.expected, rtol=0, atol=figure.within))
    else:
        holds = found == figure.expected
    return Checked(figure.what, figure.source, _short(figure.expected), _short(found),
                   "holds" if holds else "FAILED")


def skipped(figure: Figure, why: str) -> Checked:
    """The verdict on a figure that cannot be computed."""
    return Checked(figure.what, figure.source, _short(figure.expected), "", "skipped", why)


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        shown = [_short(one) if not isinstance(one, str) else one for one in value]
        middle, last = ["…"] * (len(shown) > 4), shown[-1:] * (len(shown) > 3)
        return "[" + ", ".join(shown[:3] + middle + last) + "]"
    return f"{value:,}" if isinstance(value, int) and value > 10**6 else str(value)


def lacking(figure: Figure, data: Path | None, slow: bool) -> str:
    """Why a figure cannot be computed; empty if it can."""
    if figure.needs and data is None:
        return f"{figure.needs} is needed; name its folder with --data"
    if figure.needs and data is not None and not (data / figure.needs).is_file():
        return f"{data} has no {figure.needs}"
    return "it takes many minutes on a CPU; add --slow" if figure.slow and not slow else ""


def of_file(tensors: Tensors) -> list[Checked]:
    """Verdicts on the published file: its bytes, tensors and buffers.

    Of a partial checkpoint nothing is counted.
    """
    size, source = tensors.source.stat().st_size, "openai-community/gpt2"
    published, why = size == SIZE, partial(tensors)
    same = published and _sha256(tensors.source) == SHA256
    file = Checked("sha256 of model.safetensors", source, f"{SHA256[:8]}…",
                   "" if not published else f"{SHA256[:8]}…" if same else "another",
                   "skipped" if not published else "holds" if same else "FAILED",
                   "" if published else f"a file of {size:,} bytes, not {SIZE:,}")
    names = [name for name in tensors.stored if name != "lm_head.weight"]
    masks = [key for key in tensors.buffers if re.search(r"\bh\.\d+\.attn\.bias$", key)]
    out = [file]
    numbers = sum(math.prod(tensors.stored[name].shape) for name in names)
    no_masks = "" if masks else "the file has none; transformers no longer writes them"
    for what, by, wanted, found, lacks in (
            ("tensors", source, 148, len(names), why),
            ("parameters", "Radford et al. 2019", 124_439_808, numbers, why),
            ("mask buffers", source, 12, len(masks), why or no_masks)):
        figure = Figure(what, by, wanted, 0, lambda *_: None)
        out.append(skipped(figure, lacks) if lacks else judged(figure, found))
    return out


def partial(tensors: Tensors) -> str:
    """What a partial checkpoint lacks; empty if it is complete."""
    missing = tensors.missing()
    count = len(parameter_shapes(tensors.config)) if tensors.config else 0
    if not missing:
        return ""
    return (f"the checkpoint is partial: {count - len(missing)} of {count} tensors, "
            f"no {missing[0]!r}")


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def run(args: argparse.Namespace) -> list[Checked]:
    """All figures with the weights that --model names.

    UsageError if the weights are not of GPT-2's smallest size.
    """
    device, path = backend_of(args), locate(args.model)
    tensors, small = read_tensors(path), GPT2Config()
    config, told = tensors.config, "unknown"
    if config is not None:
        told = f"{config.n_layer} layers, width {config.n_embd}"
    if config is None or (config.n_layer, config.n_embd) != (small.n_layer, small.n_embd):
        raise UsageError("the published figures are for OpenAI's gpt2 (12 layers, width 768); "
                         f"{args.model} is another model ({told})")
    out, model, why = of_file(tensors), None, partial(tensors)
    try:
        if not why:
            with warnings.catch_warnings():
                # read_tensors has warned already
                warnings.filterwarnings("ignore", ".*is not there; n_head=")
                model = GPT2.from_pretrained(path, backend=device)
            own = path.is_dir() and (path / "vocab.json").exists()
            tokenizer = load_tokenizer(path if own else "gpt2")
    except MissingError as error:
        model, why = None, str(error)
    for figure in FIGURES:
        lacks = why or lacking(figure, args.data, args.slow)
        try:
            if lacks or model is None:
                out.append(skipped(figure, lacks))
            else:
                found = figure.found(model, tokenizer, args.data or Path())
                out.append(judged(figure, found))
        except (GPT2Error, OSError) as error:           # a damaged file of --data
            out.append(skipped(figure, str(error)))
    return out
