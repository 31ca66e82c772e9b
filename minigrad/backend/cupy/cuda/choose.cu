// The next token on the device: what gpt2/sampling.py does on the host. Compiled after what kernels.cu starts with, for what logits are
// computed in, and apart from decode.cu, which takes a compiler ten times as long.
//
// A block for each row. The vocabulary is not sorted: a border (the k-th highest logit, the nucleus's last) is found bit by bit, as the
// highest number below which no more than so much weight lies. Sums are doubles, taken in an order that the sizes fix.

typedef unsigned long long Key;

__device__ __forceinline__ Key bits_of(float x) { return __float_as_uint(x); }
__device__ __forceinline__ Key bits_of(double x) { return Key(__double_as_longlong(x)); }

// Keys are in the order of their numbers; +0 and −0, which are equal, have one
__device__ __forceinline__ Key key_of(Real x) {
    constexpr Key sign = Key(1) << (8 * sizeof(Real) - 1), all = sign | (sign - 1);
    Key bits = bits_of(x + Real(0));
    return bits & sign ? ~bits & all : bits | sign;
}

// Three sums over the block, for every thread. room: 3 · 32 numbers, used again and again.
__device__ __forceinline__ void three_sums(double* part, double* room) {
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    for (int b = 0; b < 3; ++b)
        for (int m = 16; m > 0; m /= 2) part[b] += __shfl_xor_sync(ALL_LANES, part[b], m);
    __syncthreads();                                    // all have read what the room held
    if (lane == 0) for (int b = 0; b < 3; ++b) room[b * 32 + warp] = part[b];
    __syncthreads();
    for (int b = 0; b < 3; ++b) {
        part[b] = lane < warps ? room[b * 32 + lane] : 0.0;
        for (int m = 16; m > 0; m /= 2) part[b] += __shfl_xor_sync(ALL_LANES, part[b], m);
    }
}

// The highest number of so many bits, an even count, for which the weights of all items below it come to no more than `limit`, two bits at
// a time; `below` becomes what they come to. of(i, key, weight) gives item i < n its key and weight.
template <class Of> __device__ __forceinline__ Key border(int bits, Count n, double limit, double* room, double& below, Of of) {
    Key found = 0;
    below = 0.0;
    for (int shift = bits - 2; shift >= 0; shift -= 2) {
        double part[3] = {0.0, 0.0, 0.0};
        for (Count i = threadIdx.x; i < n; i += blockDim.x) {
            Key key;
            double weight;
            of(i, key, weight);
            for (int b = 0; b < 3; ++b) if (key < (found | Key(b + 1) << shift)) part[b] += weight;
        }
        three_sums(part, room);
        int best = part[2] <= limit ? 3 : part[1] <= limit ? 2 : part[0] <= limit ? 1 : 0;
        if (best) below = part[best - 1];
        found |= Key(best) << shift;
    }
    return found;
}

// ids[row] ← a token of the first n of logits [rows, V], by the draw uniforms[step, row]; −1 where the highest is not finite, or NaN is
// among them. inverse: 1/temperature; 0 for the highest logit itself, the lowest place among equals. k: at least 1. seen [rows, n], if
// any: which tokens there were; the chosen one becomes one of them. weights [rows, n]: room.
KERNEL __launch_bounds__(1024) step_choose(const Real* logits, const double* uniforms, const Count* step, Count* seen, Real* weights,
                                           Count* ids, Count V, Count n, Count k, Count span, double inverse, double nucleus,
                                           double least, double penalty) {
    SHARED(double, room);                               // [3, 32], and a sum for each group of 32 · span tokens
    double *sums = room + 96, below;
    Count row = blockIdx.x, size = 32 * span, groups = (n + size - 1) / size;
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    logits += row * V, weights += row * n;
    if (seen) seen += row * n;
    auto value = [&](Count i) {
        Real x = logits[i];
        return seen && seen[i] ? Real(x < Real(0) ? double(x) * penalty : double(x) / penalty) : x;
    };
    Real top = -INFINITE;
    double wrong[3] = {0.0, 0.0, 0.0};
    for (Count i = threadIdx.x; i < n; i += blockDim.x) {
        Real x = value(i);
        top = fmax(top, x);
        if (x != x) wrong[0] = 1.0;
    }
    top = block_max(top, reinterpret_cast<Real*>(room));
    three_sums(wrong, room);
    if (wrong[0] > 0.0 || !(top - top == Real(0))) {
        if (threadIdx.x == 0) ids[row] = -1;
        return;
    }
    constexpr int width = 8 * sizeof(Real);
    Key low = 0, edge = 0;                              // keys from `low` on are among the k highest; those from `edge` on in the nucleus,
    Count from = 0;                                     // and of those that equal it, the tokens from this one on
    if (inverse == 0.0) {
        low = edge = key_of(top);
        from = Count(border(32, n, 0.0, room, below, [&](Count i, Key& key, double& weight) {
            key = Key(i), weight = key_of(value(i)) == low ? 1.0 : 0.0;
        }));
        if (threadIdx.x == 0) {
            ids[row] = from;
            if (seen) seen[from] = 1;
        }
        return;
    }
    if (k < n)
        low = border(width, n, double(n - k), room, below, [&](Count i, Key& key, double& weight) { key = key_of(value(i)), weight = 1.0; });
    double whole[3] = {0.0, 0.0, 0.0};
    for (Count i = threadIdx.x; i < n; i += blockDim.x) {
        Real x = value(i), w = key_of(x) >= low ? Real(exp(Real(double(x - top) * inverse))) : Real(0);
        weights[i] = w;
        whole[0] += w;
    }
    three_sums(whole, room);
    if (nucleus < 1.0) {
        double spare = (1.0 - nucleus) * whole[0];
        edge = border(width, n, spare, room, below, [&](Count i, Key& key, double& weight) {
            key = key_of(value(i)), weight = weights[i];
        });
        bool none = edge > key_of(top);                 // so little is asked for that all would go: then the last stays
        if (none) edge = key_of(top);
        double equal[3] = {0.0, 0.0, 0.0};              // how many equal the edge, and the weight of each of them
        for (Count i = threadIdx.x; i < n; i += blockDim.x) if (key_of(value(i)) == edge) equal[0] += 1.0, equal[1] += weights[i];
        three_sums(equal, room);
        double gone = equal[1] > 0.0 ? floor((spare - below) * equal[0] / equal[1]) : 0.0, most = equal[0] - 1.0;
        if (none || gone > most) gone = most;
        if (gone > 0.0)
            from = Count(border(32, n, gone, room, below, [&](Count i, Key& key, double& weight) {
                key = Key(i), weight = key_of(value(i)) == edge ? 1.0 : 0.0;
            }));
    }
    for (Count g = warp; g < groups; g += warps) {      // what is left, and its sums over each group
        double sum = 0.0;
        for (Count i = g * size + lane; i < (g + 1) * size && i < n; i += 32) {
            Key key = key_of(value(i));
            if (key < edge || (key == edge && i < from) || double(weights[i]) < least) weights[i] = Real(0);
            sum += weights[i];
        }
        for (int m = 16; m > 0; m /= 2) sum += __shfl_xor_sync(ALL_LANES, sum, m);
        if (lane == 0) sums[g] = sum;
    }
    __syncthreads();
    if (warp > 0) return;
    Count each = (groups + 31) / 32, start = lane * each, end = start + each < groups ? start + each : groups;
    double mine = 0.0, before = 0.0, all = 0.0;
    for (Count g = start; g < end; ++g) mine += sums[g];
    for (int other = 0; other < 32; ++other) {          // in the order of the lanes
        double v = __shfl_sync(ALL_LANES, mine, other);
        if (other < lane) before += v;
        all += v;
    }
    double wanted = uniforms[step[0] * gridDim.x + row] * all;
    Count last = mine > 0.0 && before <= wanted ? lane : -1;            // the last lane with something that begins no later than that
    for (int m = 16; m > 0; m /= 2) {
        Count other = __shfl_xor_sync(ALL_LANES, last, m);
        last = other > last ? other : last;
    }
    if (lane != last) return;
    Count chosen = -1, filled = -1;
    for (Count g = start; g < end && chosen < 0; ++g) {
        if (sums[g] > 0.0) filled = g;
        if (before + sums[g] <= wanted) before += sums[g];
        else
            for (Count i = g * size; i < (g + 1) * size && i < n && before <= wanted; ++i)
                if (weights[i] > Real(0)) chosen = i, before += weights[i];
    }
    if (chosen < 0)                                     // rounding left all of it short of what is wanted: then it is the last of them
        for (Count i = filled * size; i < (filled + 1) * size && i < n; ++i)
            if (weights[i] > Real(0)) chosen = i;
    ids[row] = chosen;
    if (seen) seen[chosen] = 1;
}

// ── the likeliest token: a block for each row ──
// ids[row] = the place of the highest of the first n of logits [rows, V], the lowest among equals; −1 where that is NaN or infinite
KERNEL __launch_bounds__(1024) step_greedy(const Real* logits, Count* ids, Count V, Count n) {
    SHARED(Real, tops);                                 // [32], and as many places
    Count* places = reinterpret_cast<Count*>(tops + 32);
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    logits += Count(blockIdx.x) * V;
    Real top = -INFINITE;
    Count place = n;
    auto take = [&](Real v, Count i) { if (v > top || (v == top && i < place)) top = v, place = i; };
    for (Count i = threadIdx.x; i < n; i += blockDim.x) {
        Real v = logits[i];
        take(v == v ? v : INFINITE, i);
    }
    for (int m = 16; m > 0; m /= 2) {
        Real v = __shfl_xor_sync(ALL_LANES, top, m);
        Count i = __shfl_xor_sync(ALL_LANES, place, m);
        take(v, i);
    }
    if (lane == 0) tops[warp] = top, places[warp] = place;
    __syncthreads();
    if (threadIdx.x) return;
    for (unsigned w = 0; w < blockDim.x / 32; ++w) take(tops[w], places[w]);
    ids[blockIdx.x] = top - top == Real(0) ? place : -1;
}
