"""python -m gpt2.generate: continue a prompt. Text on stdout as it comes; everything else on stderr."""
from __future__ import annotations

import argparse
import sys
import time
from typing import Any

from .cli.command import Parser, at_least, emit_json, run_command, text
from .errors import MissingError, UsageError
from .model_flags import add_model, add_prompt, model_of, prompt_ids, said_of


def parser() -> argparse.ArgumentParser:
    p = Parser(prog="python -m gpt2.generate", description=__doc__)
    add_prompt(p, "\n", "what to continue; - reads stdin; '' starts from <|endoftext|> (default: a new line)")
    add_model(p)
    p.add_argument("--max-new-tokens", type=at_least(1), metavar="N", help="(default: 100, or as many as the context has room for)")
    p.add_argument("--temperature", type=float, default=1.0, metavar="X", help="below 1: safer, above 1: wilder, 0: greedy")
    p.add_argument("--top-k", type=int, metavar="K", help="draw among the K most likely tokens")
    p.add_argument("--top-p", type=float, metavar="P", help="draw among the most likely tokens that together reach P")
    p.add_argument("--min-p", type=float, metavar="P", help="draw among tokens at least P times as likely as the likeliest")
    p.add_argument("--repetition-penalty", type=float, default=1.0, metavar="X", help="above 1: avoid tokens that were there already")
    p.add_argument("--greedy", action="store_true", help="always the most likely token")
    p.add_argument("--stop", type=text, action="append", default=[], metavar="TEXT", help="end before this text; repeatable")
    p.add_argument("--num-samples", type=at_least(1), default=1, metavar="N")
    p.add_argument("--seed", type=at_least(0), default=1337, metavar="N", help="the same seed gives the same text (default: 1337)")
    p.add_argument("--logprobs", type=at_least(0), default=0, metavar="N", help="show the N most likely tokens at each place")
    p.add_argument("--lookup", type=at_least(0), default=0, metavar="N",
                   help="read up to N tokens ahead that followed the same tokens before: the same text in fewer passes (default: 0)")
    p.add_argument("--no-stream", action="store_true", help="print when all is there")
    p.add_argument("--overflow", default="error", choices=["error", "slide"],
                   help="when the context is full: refuse, or read its later half again and go on (default: error)")
    p.add_argument("--timing", action="store_true", help="how long each part took, on stderr")
    p.add_argument("--json", action="store_true", help="one JSON document as the last line of stdout, instead of text")
    return p


def report(timing: dict[str, Any]) -> str:
    """The timing as one line."""
    decode = (f", {timing['ms_per_token']:.2f} ms a token after it ({timing['tokens_per_second']:.1f} tokens/s, "
              f"{timing['weights_gb_per_second']:.1f} GB/s of weights read)" if timing["ms_per_token"] else "")
    guessed = (f", {timing['tokens_per_pass']:.2f} tokens a pass, {timing['accepted']} of {timing['proposed']} guesses right"
               if timing["proposed"] else "")
    return (f"load {timing['load_seconds']:.3f} s, prefill of {timing['prompt_tokens']} tokens {timing['prefill_seconds']:.3f} s"
            f"{decode}{guessed}, KV cache {timing['kv_mb']:.1f} MB")


def main(argv: list[str] | None = None) -> int:
    started = time.perf_counter()
    args = parser().parse_args(argv)
    if "" in args.stop:
        raise UsageError("--stop needs a text that is not empty")
    if args.lookup and args.num_samples > 1:
        raise UsageError(f"--lookup guesses for one sample, and --num-samples is {args.num_samples}; leave out one of the two")

    from .decoding.decode import Timing
    from .decoding.sampling import SamplingOptions
    from .decoding.streaming import continue_text

    options = SamplingOptions(temperature=args.temperature, top_k=args.top_k, top_p=args.top_p, min_p=args.min_p,
                              repetition_penalty=args.repetition_penalty, greedy=args.greedy)
    model, tokenizer = model_of(args)
    if tokenizer is None:
        raise MissingError(f"{args.model} has no tokenizer to write text with; put its vocab.json and merges.txt there")
    ids = prompt_ids(args, tokenizer, unconditional=True)
    stream = tokenizer.stream()
    # <|endoftext|> that nobody typed is not printed, as OpenAI's generate_unconditional_samples leaves it out
    prompt = "" if args.ids is None and args.prompt == "" else "".join(map(stream.push, ids))
    room = max(1, model.config.n_positions + 1 - len(ids))              # the last new token is not read
    loaded = time.perf_counter() - started
    streaming = args.num_samples == 1 and not (args.no_stream or args.json)
    ahead = [prompt]                                    # printed with the first text, once nothing can be refused any more

    def emit(row: int, text: str) -> None:
        if streaming:
            whole = "".join(ahead) + text
            ahead.clear()                               # first: Ctrl-C may come while a reader keeps us waiting
            sys.stdout.write(whole)
            sys.stdout.flush()

    took = Timing()
    samples = continue_text(
        model,
        tokenizer,
        ids,
        max_new_tokens=args.max_new_tokens or (min(100, room) if args.overflow == "error" else 100),
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
    names = dict(model.named_parameters())
    weights = sum(p.array.nbytes for p in names.values()) - names["wpe.weight"].array.nbytes
    each = took.decode / took.tokens if took.tokens else 0.0
    timing = {"load_seconds": loaded, "prompt_tokens": len(ids), "prefill_seconds": took.prefill,
              "ms_per_token": 1e3 * each, "tokens_per_second": args.num_samples / each if each else 0.0,
              "weights_gb_per_second": weights * took.passes / took.decode / 1e9 if each else 0.0, "kv_mb": took.kv_bytes / 1e6,
              "passes": took.passes, "tokens_per_pass": took.tokens / took.passes if took.passes else 0.0,
              "proposed": took.proposed, "accepted": took.accepted}
    interrupted = any(s.finish_reason == "interrupted" for s in samples)
    if args.json:
        emit_json(
            {
                **said_of(args),
                "backend": model.where["device"],
                "dtype": model.where["dtype"],
                "prompt": prompt,
                **({} if args.ids is None else {"ids": ids}),
                "samples": [
                    {
                        "text": s.text,
                        "tokens": s.tokens,
                        "finish_reason": s.finish_reason,
                        **(
                            {"logprobs": [[[i, lp] for i, lp in place] for place in s.logprobs]}
                            if args.logprobs
                            else {}
                        ),
                    }
                    for s in samples
                ],
                "timing": timing,
            }
        )
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
    return 130 if interrupted else 0


if __name__ == "__main__":
    run_command(main, "gpt2.generate")
