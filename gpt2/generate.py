"""python -m gpt2.generate: continue a prompt.

The text goes to stdout as it is made; everything else goes to stderr.
"""
from __future__ import annotations

import argparse
import contextlib
import sys
import time
from typing import Any

from .cli.command import Parser, at_least, emit_json, run_command, text
from .errors import DifferentError, MissingError, UsageError
from .model_flags import add_model, add_prompt, model_of, prompt_ids, said_of


def parser() -> argparse.ArgumentParser:
    p = Parser(prog="python -m gpt2.generate", description=__doc__)
    add_prompt(p, "\n", "the text to continue; - reads it from stdin; '' starts from <|endoftext|> "
                        "(default: a new line)")
    add_model(p)
    p.add_argument("--max-new-tokens", type=at_least(1), metavar="N",
                   help="(default: 100, or as many as the context has room for)")
    p.add_argument("--temperature", type=float, default=1.0, metavar="X",
                   help="below 1: likely tokens become likelier; above 1: the text becomes more "
                        "varied; 0: greedy")
    p.add_argument("--top-k", type=int, metavar="K", help="sample from the K most likely tokens")
    p.add_argument("--top-p", type=float, metavar="P",
                   help="sample from the fewest most likely tokens whose total probability is "
                        "at least P")
    p.add_argument("--min-p", type=float, metavar="P",
                   help="sample from the tokens that are at least P times as likely as the "
                        "most likely one")
    p.add_argument("--repetition-penalty", type=float, default=1.0, metavar="X",
                   help="above 1: tokens that are in the text already become less likely")
    p.add_argument("--greedy", action="store_true", help="always choose the most likely token")
    p.add_argument("--stop", type=text, action="append", default=[], metavar="TEXT",
                   help="end before this text; repeatable")
    p.add_argument("--num-samples", type=at_least(1), default=1, metavar="N")
    p.add_argument("--seed", type=at_least(0), default=1337, metavar="N",
                   help="the same seed gives the same text (default: 1337)")
    p.add_argument("--logprobs", type=at_least(0), default=0, metavar="N",
                   help="print the N most likely tokens at each position")
    p.add_argument("--lookup", type=at_least(0), default=0, metavar="N",
                   help="prompt lookup: guess up to N tokens that followed the same tokens "
                        "before, and check them in one pass: the same text in fewer passes "
                        "(default: 0)")
    p.add_argument("--no-stream", action="store_true", help="print the text when it is complete")
    p.add_argument("--overflow", default="error", choices=["error", "slide"],
                   help="when the context is full: end with an error, or drop its earlier half, "
                        "read the later half again and continue (default: error)")
    p.add_argument("--check", action="store_true",
                   help="compare the first tokens and their logits with NumPy's in the same dtype, "
                        "or on NumPy with those of the unfused definitions; say so in a line on "
                        "stderr, and exit with 5 if they differ by more than rounding")
    p.add_argument("--timing", action="store_true",
                   help="print on stderr how long each part took")
    p.add_argument("--json", action="store_true",
                   help="print one JSON document as the last line of stdout, instead of text")
    return p


def report(timing: dict[str, Any]) -> str:
    """The timing as one line."""
    parts = [f"load {timing['load_seconds']:.3f} s",
             f"prefill of {timing['prompt_tokens']} tokens {timing['prefill_seconds']:.3f} s"]
    if timing["ms_per_token"]:
        parts.append(f"{timing['ms_per_token']:.2f} ms a token after it "
                     f"({timing['tokens_per_second']:.1f} tokens/s, "
                     f"{timing['weights_gb_per_second']:.1f} GB/s of weights read)")
    if timing["proposed"]:
        parts.append(f"{timing['tokens_per_pass']:.2f} tokens a pass")
        parts.append(f"{timing['accepted']} of {timing['proposed']} guesses right")
    return ", ".join([*parts, f"KV cache {timing['kv_mb']:.1f} MB"])


def as_json(sample: Any, logprobs: bool) -> dict[str, Any]:
    """One sample of `continue_text` as the JSON document has it."""
    fields: dict[str, Any] = {"text": sample.text, "tokens": sample.tokens,
                              "finish_reason": sample.finish_reason}
    if logprobs:
        fields["logprobs"] = [[[i, lp] for i, lp in place] for place in sample.logprobs]
    return fields


def refuse(wrong: str) -> None:
    """DifferentError if there is something wrong."""
    if wrong:
        raise DifferentError(f"--check: {wrong}; python -m benchmarks.gpu looks for the kernel, "
                             "please send its report")


def main(argv: list[str] | None = None) -> int:
    started = time.perf_counter()
    args = parser().parse_args(argv)
    if "" in args.stop:
        raise UsageError("--stop must not be an empty text")
    if args.lookup and args.num_samples > 1:
        raise UsageError(f"--lookup works for one sample only, and --num-samples is "
                         f"{args.num_samples}; leave out one of the two")

    from .decoding.decode import Timing
    from .decoding.sampling import SamplingOptions
    from .decoding.streaming import continue_text

    options = SamplingOptions(temperature=args.temperature, top_k=args.top_k, top_p=args.top_p,
                              min_p=args.min_p, repetition_penalty=args.repetition_penalty,
                              greedy=args.greedy)
    model, tokenizer = model_of(args)
    if tokenizer is None:
        raise MissingError(f"{args.model} has no tokenizer to turn its tokens into text; "
                           "put its vocab.json and merges.txt there")
    ids = prompt_ids(args, tokenizer, unconditional=True)
    stream = tokenizer.stream()
    # an empty prompt starts from <|endoftext|>, which is not printed: OpenAI's
    # generate_unconditional_samples leaves it out too
    prompt = "" if args.ids is None and args.prompt == "" else "".join(map(stream.push, ids))
    # how many new tokens fit the context; the model does not read the last one
    room = max(1, model.config.n_positions + 1 - len(ids))
    loaded = time.perf_counter() - started
    streaming = args.num_samples == 1 and not (args.no_stream or args.json)
    ahead = [prompt]                    # printed with the first new text, after all checks

    def emit(row: int, text: str) -> None:
        if streaming:
            whole = "".join(ahead) + text
            ahead.clear()               # before the write, which Ctrl-C may interrupt
            sys.stdout.write(whole)
            sys.stdout.flush()

    took = Timing()
    longest = args.max_new_tokens or (min(100, room) if args.overflow == "error" else 100)

    def check(tokens: list[list[int]]) -> Any:
        from .verify.generation import check_generation

        return check_generation(model, ids, tokens, options, args.seed, passes=longest - 1,
                                vocab=min(tokenizer.n_vocab, model.config.vocab_size),
                                lookup=args.lookup)

    try:
        samples = continue_text(
            model,
            tokenizer,
            ids,
            max_new_tokens=longest,
            num_samples=args.num_samples,
            options=options,
            seed=args.seed,
            stop=args.stop,
            overflow=args.overflow,
            lookup=args.lookup,
            logprobs=args.logprobs,
            timing=took,
            emit=emit,
        )
    except MissingError:                # logits are NaN: is it the weights, or the device?
        if args.check:
            with contextlib.suppress(UsageError):
                refuse(check([]).wrong)
        raise
    names = dict(model.named_parameters())
    weights = sum(p.array.nbytes for p in names.values()) - names["wpe.weight"].array.nbytes
    each = took.decode / took.tokens if took.tokens else 0.0
    timing = {
        "load_seconds": loaded,
        "prompt_tokens": len(ids),
        "prefill_seconds": took.prefill,
        "ms_per_token": 1e3 * each,
        "tokens_per_second": args.num_samples / each if each else 0.0,
        "weights_gb_per_second": weights * took.passes / took.decode / 1e9 if each else 0.0,
        "kv_mb": took.kv_bytes / 1e6,
        "passes": took.passes,
        "tokens_per_pass": took.tokens / took.passes if took.passes else 0.0,
        "proposed": took.proposed,
        "accepted": took.accepted,
    }
    interrupted = any(s.finish_reason == "interrupted" for s in samples)
    checked = check([s.tokens for s in samples]) if args.check and not interrupted else None
    if args.json:
        emit_json({
            **said_of(args),
            "backend": model.where["device"],
            "dtype": model.where["dtype"],
            "prompt": prompt,
            **({} if args.ids is None else {"ids": ids}),
            "samples": [as_json(s, args.logprobs > 0) for s in samples],
            "timing": timing,
            **({} if checked is None else {"check": checked.as_json()}),
        })
    elif streaming:
        print("".join(ahead))
    else:
        print("\n---\n".join(prompt + s.text for s in samples))
    if args.logprobs and not args.json:
        for n, s in enumerate(samples):
            for token, place in zip(s.tokens, s.logprobs):
                likely = "  ".join(f"{tokenizer.decode([i])!r} {lp:.3f}" for i, lp in place)
                print(f"[{n}] {tokenizer.decode([token])!r}: {likely}", file=sys.stderr)
    if args.timing:
        print(report(timing), file=sys.stderr)
    if checked is not None:
        refuse(checked.wrong)
        print(f"check: {checked}", file=sys.stderr)
    return 130 if interrupted else 0


if __name__ == "__main__":
    run_command(main, "gpt2.generate")
