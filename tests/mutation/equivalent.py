"""Why a mutant of `functions.py` is no mistake, each by its name."""
from __future__ import annotations

SHIFT = "a number that is added to all logits of a row cancels in the softmax, and changes no order"
MEAN = "a number that is added to the whole residual stream is in the mean that each LayerNorm takes away"
ORDER = "a factor above 0 changes no order"
LAST = "logits are [B, V] here: axis 1 is the last"
ONE = "what is left out for 1 is a division by 1"
MEMORY = "memory that is written before it is read"
ZERO = "0 times anything is 0"
FINITE = "a finite number stays finite"
OUT = "the same numbers in other memory"
INT64 = "whole numbers of Python are int64 on this platform either way"
MORE = "more bits are drawn than are used, and the same ones are used"

EQUIVALENT: dict[str, str] = {
    # optimizers
    "minigrad.optim.Optimizer.step: times 1.0001: narrowed(made, array.dtype)": "a number of 16 bits times 1.0001 is rounded to itself",
    "minigrad.optim.sums_of_squares: 2 for 1 in -1": "NumPy takes any size below 0 for the one that is to be found out",
    "minigrad.optim.clip_grad_norm_: 2 for 1 in -1": "NumPy takes any size below 0 for the one that is to be found out",
    "minigrad.optim.clip_grad_norm_: no invalid in xp.errstate(over='ignore', invalid='ignore')":
        "squares and their sums are never invalid; it is there for a BLAS that says so of what lies beside them",
    "minigrad.optim.clip_grad_norm_: times 1.0001: math.nan if any(map(math.isnan, tops)) else max(tops)":
        "any number about as large does to divide by and multiply with again",
    # random numbers
    "minigrad.random._fill: len(out) for min(start + _BLOCK, len(out))": "each block draws all that comes after it too: slower, the same",
    "minigrad.random._fill: times 1.0001: there.empty(math.prod(sizes), dtype=dtype)": MEMORY,
    "minigrad.random._fill: plus 1e-5: there.empty(math.prod(sizes), dtype=dtype)": MEMORY,
    "minigrad.backend.base.Device.empty: times 1.0001: self.use().backend.empty(shape, dtype=dtype)": MEMORY,
    "minigrad.backend.base.Device.empty: plus 1e-5: self.use().backend.empty(shape, dtype=dtype)": MEMORY,
    "minigrad.backend.base.Device.zeros: times 1.0001: self.use().backend.zeros(shape, dtype=dtype)": ZERO,
    "minigrad.random.permutation: no kind in raw_bits(backend.cpu, _key(key), index(n, 'permutation:…":
        "two numbers of 64 bits are equal once in 2⁶⁴ pairs; then the order of the two would be NumPy's choice",
    "minigrad.backend.splitmix64.keep_mask_span: 3 for 2 in start // 2": MORE,
    "minigrad.backend.splitmix64.keep_mask_span: (stop + 1) // 2 + first for (stop + 1) // 2 - first": MORE,
    "minigrad.backend.splitmix64.keep_mask_span: (stop + 1) // 2 for (stop + 1) // 2 - first": MORE,
    "minigrad.backend.splitmix64.keep_mask_span: (stop + 1) // 2 + 1 for (stop + 1) // 2": MORE,
    "minigrad.backend.splitmix64.keep_mask_span: 2 for 1 in stop + 1": MORE,
    # what a step of decoding is made of
    "minigrad.optim.GradScaler.step: times 1.0001: clip_grad_norm_(optimizer._parameters(), math.inf)":
        "all that is read is whether the norm is finite",
    "minigrad.optim.GradScaler.step: plus 1e-5: clip_grad_norm_(optimizer._parameters(), math.inf)":
        "all that is read is whether the norm is finite",
    "gpt2.decoding.gpu_ops._embed: swapped: word, where = (wte[max(0, tokens[row]), :], wpe[place -…": "a sum of two, the other one first",
    "gpt2.decoding.gpu_ops.attention: soon ignored": "a hint at what is read next changes no number",
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
        "−1 is NumPy's default from 2.3 on; before, it has none",
    "gpt2.decoding.sampling._checked: times 1.0001: logits.max(axis=-1)": FINITE,
    "gpt2.decoding.sampling._checked: plus 1e-5: logits.max(axis=-1)": FINITE,
    "gpt2.decoding.sampling._checked: plus 1e-5: logits": SHIFT,
    "gpt2.decoding.sampling._penalized: 1.0001 for 1.0 in penalty != 1.0": ONE,
    "gpt2.decoding.sampling._penalized: old <= 0 for old < 0": "0 times the penalty and 0 by it are both 0",
    "gpt2.decoding.sampling._penalized: plus 1e-5: _checked(x)": SHIFT,
    "gpt2.decoding.sampling._kept: options.top_k <= len(x) for options.top_k < len(x)": "all of them are the V highest",
    "gpt2.decoding.sampling._kept: plus 1e-5: np.zeros(1)": SHIFT,
    "gpt2.decoding.sampling._kept: plus 1e-5: x[ids]": SHIFT,
    "gpt2.decoding.sampling._drawn: 2 for 1 in block + 1": "the draw lies in the first of the two blocks that are summed up",
    "gpt2.decoding.sampling._shift: 1.0001 for 1.0 in temperature != 1.0": ONE,
    "gpt2.decoding.sampling._weights: no out in np.exp(weights, out=weights)": OUT,
    "gpt2.decoding.sampling._weights: plus 1e-5: x.copy()": SHIFT,
    "gpt2.decoding.sampling._keep_nucleus: weights >= spare / len(x) for weights > spare / len(x)": "a token more is sorted",
    "gpt2.decoding.sampling._highest: k < len(peaks) for k <= len(peaks)": "where it makes a difference all are looked at, and not some",
    "gpt2.decoding.sampling._highest: times 1.0001: x[ids]": ORDER,
    "gpt2.decoding.sampling._highest: plus 1e-5: x[ids]": SHIFT,
    "gpt2.decoding.decode._Reader.read: no last in self.model(rows, cache=self.cache, last=last)":
        "what follows the cache is 1 + k places, all of them wanted",
    "gpt2.decoding.decode._Reader.read: plus 1e-5: self.step().read(self.newest)[:, None]": SHIFT,
    "gpt2.decoding.decode._Reader.read: plus 1e-5: self.model(rows, cache=self.cache, last=last).numpy() if…": SHIFT,
    # the cache
    **{f"gpt2.decoding.kv_cache.KVCache.__init__: plus 1e-5: there.zeros(shape, dtype=dtype){which}":
        "a place is written before it is read" for which in ("", " (2)")},
    "gpt2.decoding.kv_cache.KVCache.__init__: no dtype in there.array(list(pad), dtype='int64')": "Python's integers become int64 anyway",
    "gpt2.decoding.kv_cache.KVCache.__init__: times 1.0001: there.zeros(shape, dtype=dtype)": ZERO,
    "gpt2.decoding.kv_cache.KVCache.__init__: times 1.0001: there.zeros(shape, dtype=dtype) (2)": ZERO,
    "gpt2.decoding.kv_cache.KVCache.extend: plus 1e-5: mg.Tensor(self.keys[layer, :, :, :end])":
        "the same number more in all keys is the same number more in all scores of a query, and cancels in the softmax",
    "gpt2.decoding.kv_cache.KVCache.rows: without self.pad is not None in self.pad is not None and any(part.padded)":
        "where there is no pad, all of padded is 0",
    # the decoding step
    "gpt2.decoding.gpu_step.Stepper.step: no soon in gpu_ops.attention(q, keys, values, state, self.pad, y,…":
        "a hint at what is read next changes no number",
    "gpt2.decoding.gpu_step.Stepper.step: 3 for 2 in 1:2": "the state has two numbers, and its last one either way",
    "gpt2.decoding.gpu_step.Stepper.tokens: without self.there.use()":
        "the fake CuPy's graph runs where it was captured; a GPU's on the current device",
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
        "memory that is written before it is read, or whole numbers, which 1e-5 does not change",
    "gpt2.decoding.gpu_step.Stepper.__init__: no dtype in self.there.array([cache.length, 0], dtype='int64')": INT64,
    "gpt2.decoding.gpu_step.Stepper.__init__: no dtype in self.there.array(cache.padded, dtype='int64')": INT64,
    "gpt2.decoding.gpu_step.Stepper._start: no dtype in self.there.array(token, dtype='int64')": INT64,
    # the choice on a device
    "gpt2.decoding.gpu_sampling.Chooser.__init__: options.top_k or vocab for min(vocab, options.top_k or vocab)": "more than all are all",
    "gpt2.decoding.gpu_sampling.Chooser.__init__: no dtype in there.array(uniforms, dtype='float64')": "draws are float64 already",
    "gpt2.decoding.gpu_sampling.Chooser.__init__: times 1.0001: there.empty((rows, vocab), dtype=dtype)": MEMORY,
    "gpt2.decoding.gpu_sampling.Chooser.__init__: plus 1e-5: there.empty((rows, vocab), dtype=dtype)": MEMORY,
    "gpt2.decoding.gpu_sampling._choose: 2 for 1 in row + 1": "one row is drawn for, by the first of the numbers",
    # from a prompt to more tokens
    "gpt2.decoding.decode._Reader.__init__: 1 for 0 in [0]": "what stands in the padding does not matter; tests/gpt2/test_model.py",
    "gpt2.decoding.decode._Reader._read_all: plus 1e-5: np.concatenate(logits * len(rows) if same else logits)": SHIFT,
    "gpt2.decoding.decode.steps: 1 for 0 in reader.free >= 0":
        "the last place of the context is read by a step too, whose token the host chooses",
    "gpt2.decoding.decode.steps: reader.free > 0 for reader.free >= 0": "the same: the host chooses the token that is read last",
    "gpt2.decoding.decode.steps: times 1.0001: time.perf_counter() (2)":
        "a time that is measured, off by the same as all times of this clock",
    "gpt2.decoding.decode.steps: plus 1e-5: time.perf_counter() (2)": "a time that is measured is off by more",
    "gpt2.decoding.decode.steps: plus 1e-5: reader.read(proposal)[:, :, :vocab]": SHIFT,
    "gpt2.decoding.decode.steps: plus 1e-5: logits[:, place]": SHIFT,
    # lookup
    "gpt2.decoding.prompt_lookup.Lookup.push: 2 for 1 in LONGEST + 1": "runs of four are remembered too, and nobody looks for one",
    "gpt2.decoding.prompt_lookup.Lookup.propose: LONGEST for min(LONGEST, len(self.tokens))":
        "a run longer than the text is the text, which was never followed by anything",
    "gpt2.decoding.prompt_lookup.Lookup.propose: len(self.tokens) for min(LONGEST, len(self.tokens))":
        "longer runs are looked for, and none was remembered",
}
