"""The workloads of CTranslate2: our checkpoint, converted by its own converter, and greedy `generate_batch` of a fixed length."""
from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import agreement
from .peers import Work
from .rows import Row


def form(checkpoint: str) -> Path:
    """The folder of a checkpoint in CTranslate2's format."""
    return Path(checkpoint) / "ctranslate2"


def prepare(task: Mapping[str, Any]) -> Work:
    """Convert the checkpoint once. Its tokens are the ids as decimal numbers."""
    import ctranslate2
    import tokenizers
    import transformers

    from gpt2 import GPT2Config

    checkpoint = Path(task["checkpoint"])
    if not form(str(checkpoint)).exists():
        transformers.logging.set_verbosity_error()
        vocabulary = GPT2Config.from_file(checkpoint).vocab_size
        with tempfile.TemporaryDirectory(dir=checkpoint) as source:
            for name in ("config.json", "model.safetensors"):
                (Path(source) / name).symlink_to(checkpoint.resolve() / name)
            words = tokenizers.Tokenizer(tokenizers.models.WordLevel({str(i): i for i in range(vocabulary)}, unk_token="0"))
            last = str(vocabulary - 1)                  # no prompt contains it
            ends = {"bos_token": last, "eos_token": last, "unk_token": "0"}
            transformers.PreTrainedTokenizerFast(tokenizer_object=words, **ends).save_pretrained(source)
            ctranslate2.converters.TransformersConverter(source).convert(f"{source}/made")
            os.rename(f"{source}/made", form(str(checkpoint)))
    return Work(lambda: None, dict)


def build_int8(task: Mapping[str, Any]) -> Work:
    return build(task, kind="int8")


def build(task: Mapping[str, Any], kind: str = "float32") -> Work:
    import ctranslate2

    from gpt2 import GPT2Config
    from minigrad.backend.numpy.kernels import cores

    row = Row.from_dict(task["row"])
    ids, _ = agreement.batch_of(row, GPT2Config.from_file(task["checkpoint"]))
    threads = cores()
    model = ctranslate2.Generator(str(form(task["checkpoint"])), device="cpu", compute_type=kind, inter_threads=1, intra_threads=threads)
    prompts = [[str(i) for i in each] for each in ids.tolist()]

    def generate(scores: bool = False) -> Any:
        return model.generate_batch(prompts, max_length=row.new, min_length=row.new, sampling_topk=1, beam_size=1, return_scores=scores,
                                    include_prompt_in_result=False, end_token=[])

    def answer() -> dict[str, Any]:
        out = generate(scores=True)                     # a score is a mean over the new tokens
        return {"ids": [each.sequences_ids[0] for each in out], "scores": [each.scores[0] * row.new for each in out]}

    return Work(generate, answer, f"CTranslate2 {ctranslate2.__version__} {kind}, {threads} threads")


START = """
import json, sys
import ctranslate2
model = ctranslate2.Generator(sys.argv[1] + "/ctranslate2", device="cpu", compute_type="float32")
prompt = [str(i) for i in json.loads(sys.argv[2])]
out = model.generate_batch([prompt], max_length=1, min_length=1, include_prompt_in_result=False)
print(out[0].sequences_ids[0][0], flush=True)
"""
