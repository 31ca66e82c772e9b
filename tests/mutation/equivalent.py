"""The mutants of `functions.py` that are not mistakes: by the name of each, the reason."""
from __future__ import annotations

SHIFT = "a number that is added to all logits of a row cancels in the softmax, and does not change their order"
MEAN = "a number that is added to the whole residual stream is subtracted again with the mean in each LayerNorm"
ORDER = "a positive factor does not change the order of the logits"
LAST = "the logits are [B, V] here, so axis 1 is the last axis"
ONE = "the code only skips a division by 1"
MEMORY = "this memory is overwritten before it is read"
ZERO = "0 times anything is 0"
FINITE = "a finite number stays finite"
OUT = "the same numbers are written to other memory"
INT64 = "Python's integers become int64 on this platform anyway"
MORE = "more bits are drawn than are used, and the bits that are used stay the same"

EQUIVALENT: dict[str, str] = {
    # optimizers
    "minigrad.optim.Optimizer.step: times 1.0001: narrowed(made, array.dtype)": "a number of 16 bits times 1.0001 is rounded to itself",
    "minigrad.optim.sums_of_squares: 2 for 1 in -1": "any negative size tells NumPy to compute this size",
    "minigrad.optim.clip_grad_norm_: 2 for 1 in -1": "any negative size tells NumPy to compute this size",
    "minigrad.optim.clip_grad_norm_: no invalid in xp.errstate(over='ignore', invalid='ignore')":
        "squares and their sums are never invalid; it is there for a BLAS that warns about unused memory",
    "minigrad.optim.clip_grad_norm_: times 1.0001: math.nan if any(map(math.isnan, tops)) else max(tops)":
        "it only scales the numbers, and is multiplied with again; any number of about this size will do",
    # random numbers
    "minigrad.random._fill: len(out) for min(start + _BLOCK, len(out))":
        "each block also draws the numbers after it; this is slower, and the result is the same",
    "minigrad.random._fill: times 1.0001: there.empty(math.prod(sizes), dtype=dtype)": MEMORY,
    "minigrad.random._fill: plus 1e-5: there.empty(math.prod(sizes), dtype=dtype)": MEMORY,
    "minigrad.backend.base.Device.empty: times 1.0001: self.use().backend.empty(shape, dtype=dtype)": MEMORY,
    "minigrad.backend.base.Device.empty: plus 1e-5: self.use().backend.empty(shape, dtype=dtype)": MEMORY,
    "minigrad.backend.base.Device.zeros: times 1.0001: self.use().backend.zeros(shape, dtype=dtype)": ZERO,
    "minigrad.random.permutation: no kind in raw_bits(backend.cpu, _key(key), index(n, 'permutation:…":
        "it matters only if two numbers of 64 bits are equal, which happens once in 2⁶⁴ pairs",
    "minigrad.backend.splitmix64.keep_mask_span: 3 for 2 in start // 2": MORE,
    "minigrad.backend.splitmix64.keep_mask_span: (stop + 1) // 2 + first for (stop + 1) // 2 - first": MORE,
    "minigrad.backend.splitmix64.keep_mask_span: (stop + 1) // 2 for (stop + 1) // 2 - first": MORE,
    "minigrad.backend.splitmix64.keep_mask_span: (stop + 1) // 2 + 1 for (stop + 1) // 2": MORE,
    "minigrad.backend.splitmix64.keep_mask_span: 2 for 1 in stop + 1": MORE,
    # loss scaling
    "minigrad.optim.GradScaler.step: times 1.0001: clip_grad_norm_(optimizer._parameters(), math.inf)":
        "only whether the norm is finite is used",
    "minigrad.optim.GradScaler.step: plus 1e-5: clip_grad_norm_(optimizer._parameters(), math.inf)":
        "only whether the norm is finite is used",
    # the functions of a decoding step
    "gpt2.decoding.gpu_ops._embed: swapped: word, where = (wte[max(0, tokens[row]), :], wpe[slot -…":
        "the two are added, and the order does not matter",
    "gpt2.decoding.gpu_ops.attention: soon ignored": "it is only a hint for prefetching",
    "gpt2.decoding.gpu_ops._attention: times 1.0001: xp.exp(scores - xp.max(scores, axis=1, keepdims=True))":
        "the weights are divided by their sum afterwards",
    "gpt2.decoding.gpu_ops._greedy: times 1.0001: logits[:, :vocab]": ORDER,
    "gpt2.decoding.gpu_ops._greedy: times 1.0001: xp.max(logits, axis=1)": FINITE,
    "gpt2.decoding.gpu_ops._attention: plus 1e-5: xp.matmul(k, q[row, :].reshape(heads, e, 1)) * scale": SHIFT,
    "gpt2.decoding.gpu_ops._greedy: plus 1e-5: logits[:, :vocab]": SHIFT,
    "gpt2.decoding.gpu_ops._greedy: plus 1e-5: xp.max(logits, axis=1)": FINITE,
    # sampling
    "gpt2.decoding.sampling.process_logits: plus 1e-5: _penalized(logits, options, previous)": SHIFT,
    "gpt2.decoding.sampling.choose: 1.0001 for 1.0 in options.repetition_penalty == 1.0": ONE,
    "gpt2.decoding.sampling.choose: 1 for -1": LAST,
    "gpt2.decoding.sampling.choose: no out in np.exp(x, out=x)": OUT,
    "gpt2.decoding.sampling.choose: times 1.0001: logits if options.repetition_penalty == 1.0 else…": ORDER,
    "gpt2.decoding.sampling.choose: plus 1e-5: logits if options.repetition_penalty == 1.0 else…": SHIFT,
    "gpt2.decoding.sampling.log_softmax: plus 1e-5: _checked(logits.astype(np.float64))": SHIFT,
    "gpt2.decoding.sampling.log_softmax: times 1.0001: x.max(axis=-1, keepdims=True)": SHIFT,
    "gpt2.decoding.sampling.log_softmax: plus 1e-5: x.max(axis=-1, keepdims=True)": SHIFT,
    "gpt2.decoding.sampling.top_logprobs: 1 for -1": LAST,
    "gpt2.decoding.sampling.top_logprobs: 1 for -1 (2)": LAST,
    "gpt2.decoding.sampling.top_logprobs: no axis in np.take_along_axis(x, ids, axis=-1)":
        "−1 is the default since NumPy 2.3; before 2.3 there is no default",
    "gpt2.decoding.sampling._checked: times 1.0001: logits.max(axis=-1)": FINITE,
    "gpt2.decoding.sampling._checked: plus 1e-5: logits.max(axis=-1)": FINITE,
    "gpt2.decoding.sampling._checked: plus 1e-5: logits": SHIFT,
    "gpt2.decoding.sampling._penalized: 1.0001 for 1.0 in penalty != 1.0": ONE,
    "gpt2.decoding.sampling._penalized: old <= 0 for old < 0": "0 times the penalty and 0 divided by it are both 0",
    "gpt2.decoding.sampling._penalized: plus 1e-5: _checked(x)": SHIFT,
    "gpt2.decoding.sampling._kept: options.top_k <= len(x) for options.top_k < len(x)": "the V highest logits are all logits",
    "gpt2.decoding.sampling._kept: plus 1e-5: np.zeros(1)": SHIFT,
    "gpt2.decoding.sampling._kept: plus 1e-5: x[ids]": SHIFT,
    "gpt2.decoding.sampling._drawn: 2 for 1 in block + 1": "the chosen token is in the first of the two blocks that are summed",
    "gpt2.decoding.sampling._shift: 1.0001 for 1.0 in temperature != 1.0": ONE,
    "gpt2.decoding.sampling._weights: no out in np.exp(weights, out=weights)": OUT,
    "gpt2.decoding.sampling._weights: plus 1e-5: x.copy()": SHIFT,
    "gpt2.decoding.sampling._keep_nucleus: weights >= spare / len(x) for weights > spare / len(x)":
        "one more token is sorted, which is not kept",
    "gpt2.decoding.sampling._highest: k < len(peaks) for k <= len(peaks)": "where this matters, all logits are examined instead of some",
    "gpt2.decoding.sampling._highest: times 1.0001: x[ids]": ORDER,
    "gpt2.decoding.sampling._highest: plus 1e-5: x[ids]": SHIFT,
    "gpt2.decoding.decode._Reader.read: no last in self.model(rows, cache=self.cache, last=last)":
        "only 1 + k tokens are read here, and the logits of all of them are needed",
    "gpt2.decoding.decode._Reader.read: plus 1e-5: self.step().read(self.newest)[:, None]": SHIFT,
    "gpt2.decoding.decode._Reader.read: plus 1e-5: self.model(rows, cache=self.cache, last=last).numpy() if…": SHIFT,
    # the cache
    **{f"gpt2.decoding.kv_cache.KVCache.__init__: plus 1e-5: there.zeros(shape, dtype=dtype){which}":
        "a slot is written before it is read" for which in ("", " (2)")},
    "gpt2.decoding.kv_cache.KVCache.__init__: no dtype in there.array(list(pad), dtype='int64')": "Python's integers become int64 anyway",
    "gpt2.decoding.kv_cache.KVCache.__init__: times 1.0001: there.zeros(shape, dtype=dtype)": ZERO,
    "gpt2.decoding.kv_cache.KVCache.__init__: times 1.0001: there.zeros(shape, dtype=dtype) (2)": ZERO,
    "gpt2.decoding.kv_cache.KVCache.extend: plus 1e-5: mg.Tensor(self.keys[layer, :, :, :end])":
        "a number that is added to all keys adds the same number to all scores of a query, which cancels in the softmax",
    "gpt2.decoding.kv_cache.KVCache.rows: without self.pad is not None in self.pad is not None and any(part.padded)":
        "without padding all numbers of `padded` are 0",
    # the decoding step
    "gpt2.decoding.gpu_step.Stepper.step: no soon in gpu_ops.attention(q, keys, values, state, self.pad, y,…":
        "it is only a hint for prefetching",
    "gpt2.decoding.gpu_step.Stepper.step: 3 for 2 in 1:2": "the state has only two numbers, so 1:2 and 1:3 are the same",
    "gpt2.decoding.gpu_step.Stepper.tokens: without self.there.use()":
        "a graph of the fake CuPy always runs on its own device; a real graph runs on the current device",
    "gpt2.decoding.gpu_step.Stepper.__init__: times 1.0001: self.there.zeros(shape, dtype=dtype)": ZERO,
    "gpt2.decoding.gpu_step.Stepper.__init__: times 1.0001: room(rows, d)": ZERO,
    "gpt2.decoding.gpu_step.Stepper.__init__: times 1.0001: room(rows, d) (2)": ZERO,
    "gpt2.decoding.gpu_step.Stepper.__init__: times 1.0001: room(rows, d) (3)": ZERO,
    "gpt2.decoding.gpu_step.Stepper.__init__: times 1.0001: room(rows, config.n_inner or 4 * d)": ZERO,
    "gpt2.decoding.gpu_step.Stepper.__init__: times 1.0001: room(rows, config.vocab_size)": ZERO,
    "gpt2.decoding.gpu_step.Stepper.__init__: times 1.0001: room(rows, heads, gpu_ops.PARTS, d // heads + 2)": ZERO,
    "gpt2.decoding.gpu_step.Stepper.__init__: plus 1e-5: room(rows, d)": MEMORY,
    "gpt2.decoding.gpu_step.Stepper.__init__: plus 1e-5: room(rows, d) (2)": MEMORY,
    "gpt2.decoding.gpu_step.Stepper.__init__: plus 1e-5: room(rows, d) (3)": MEMORY,
    "gpt2.decoding.gpu_step.Stepper.__init__: plus 1e-5: room(rows, config.n_inner or 4 * d)": MEMORY,
    "gpt2.decoding.gpu_step.Stepper.__init__: plus 1e-5: room(rows, config.vocab_size)": MEMORY,
    "gpt2.decoding.gpu_step.Stepper.__init__: plus 1e-5: room(rows, heads, gpu_ops.PARTS, d // heads + 2)": MEMORY,
    "gpt2.decoding.gpu_step.Stepper.__init__: plus 1e-5: model.lm_head.weight.array": SHIFT,
    "gpt2.decoding.gpu_step.Stepper.__init__: plus 1e-5: model.wte.weight.array": MEAN,
    "gpt2.decoding.gpu_step.Stepper.__init__: plus 1e-5: model.wpe.weight.array": MEAN,
    "gpt2.decoding.gpu_step.Stepper.__init__: plus 1e-5: self.there.zeros(shape, dtype=dtype)":
        "this memory is overwritten before it is read, or holds integers, to which 1e-5 is not added",
    "gpt2.decoding.gpu_step.Stepper.__init__: no dtype in self.there.array([cache.length, 0], dtype='int64')": INT64,
    "gpt2.decoding.gpu_step.Stepper.__init__: no dtype in self.there.array(cache.padded, dtype='int64')": INT64,
    "gpt2.decoding.gpu_step.Stepper._start: no dtype in self.there.array(token, dtype='int64')": INT64,
    # the choice on a device
    "gpt2.decoding.gpu_sampling.Chooser.__init__: options.top_k or vocab for min(vocab, options.top_k or vocab)":
        "a top-k above the size of the vocabulary keeps all tokens too",
    "gpt2.decoding.gpu_sampling.Chooser.__init__: no dtype in there.array(uniforms, dtype='float64')": "the draws are float64 already",
    "gpt2.decoding.gpu_sampling.Chooser.__init__: times 1.0001: there.empty((rows, vocab), dtype=dtype)": MEMORY,
    "gpt2.decoding.gpu_sampling.Chooser.__init__: plus 1e-5: there.empty((rows, vocab), dtype=dtype)": MEMORY,
    "gpt2.decoding.gpu_sampling._choose: 2 for 1 in row + 1": "there is only one row, which uses the first number",
    # the decoding loop
    "gpt2.decoding.decode._Reader.__init__: 1 for 0 in [0]": "the ids of the padding do not matter; tests/gpt2/test_model.py tests this",
    "gpt2.decoding.decode._Reader._read_all: plus 1e-5: np.concatenate(logits * len(rows) if same else logits)": SHIFT,
    "gpt2.decoding.decode.steps: 1 for 0 in reader.free >= 0":
        "then the host chooses the token at the last position of the context, and the result is the same",
    "gpt2.decoding.decode.steps: reader.free > 0 for reader.free >= 0":
        "then the host chooses the token at the last position of the context, and the result is the same",
    "gpt2.decoding.decode.steps: times 1.0001: time.perf_counter() (2)":
        "all times of this clock change by the same factor",
    "gpt2.decoding.decode.steps: plus 1e-5: time.perf_counter() (2)": "the error of the measured time is larger than this",
    "gpt2.decoding.decode.steps: plus 1e-5: reader.read(proposal)[:, :, :vocab]": SHIFT,
    "gpt2.decoding.decode.steps: plus 1e-5: logits[:, index]": SHIFT,
    # lookup
    "gpt2.decoding.prompt_lookup.Lookup.push: 2 for 1 in LONGEST + 1": "runs of four tokens are stored too, but never looked up",
    "gpt2.decoding.prompt_lookup.Lookup.propose: LONGEST for min(LONGEST, len(self.tokens))":
        "a run that is longer than the text is the whole text, which no token has followed yet",
    "gpt2.decoding.prompt_lookup.Lookup.propose: len(self.tokens) for min(LONGEST, len(self.tokens))":
        "longer runs are looked up, but none was stored",
}
