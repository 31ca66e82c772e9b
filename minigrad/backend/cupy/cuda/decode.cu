// One step of decoding: the kernels of gpt2/decoding/gpu_ops.py for 1 … 8 rows. Compiled after what kernels.cu starts with, for each
// ROWS and CHUNK that is asked for: x has ROWS rows at most (1, 2, 4 or 8), and CHUNK numbers of a weight or of the cache are read at once:
// WIDE, or 1 where rows do not begin on 16 bytes. All of that at once takes a compiler ten times as long.
//
// Such a step reads every weight once and computes next to nothing, so all here is about asking for memory early and often: a kernel's
// first weights are on their way before it knows what to multiply them with. Weights are [out, in], each row in one piece. What travels
// between the kernels is kept in Real. Where the step is comes from memory, so that the same launches are right for every step.

#define FETCH(p) asm volatile("prefetch.global.L2 [%0];" :: "l"(p))

// The numbers p[0 … n − 1] will be wanted soon: `of` threads, of which this is number `me`, ask for them, and do not wait
__device__ __forceinline__ void soon(const Store* p, Count n, unsigned me, unsigned of) {
    const Count each = 32 / sizeof(Store);
#pragma unroll 1
    for (Count i = me * each; i < n; i += of * each) FETCH(p + i);
}

// as many numbers that are computed with as one access can take
#define EACH int(16 / sizeof(Real))
template <int P> struct alignas(P * sizeof(Real)) Reals { Real v[P]; };

// C numbers as they came from memory: taken apart only where they are used, for until then they would need a register each
template <int C, bool FULL = C * sizeof(Store) == 16> struct Chunk {
    Store v[C];
    __device__ __forceinline__ Chunk() {}
    __device__ __forceinline__ Chunk(const Store* p, bool there) { for (int e = 0; e < C; ++e) v[e] = there ? p[e] : Store(0.0f); }
    __device__ __forceinline__ Real operator[](int e) const { return Real(v[e]); }
};

template <int C> struct alignas(16) Chunk<C, true> {
    unsigned long long v[2];
    __device__ __forceinline__ Chunk() {}
    __device__ __forceinline__ Chunk(const Store* p, bool there) {
        if (there) *this = *reinterpret_cast<const Chunk*>(p);
        else v[0] = v[1] = 0;
    }
    __device__ __forceinline__ Real operator[](int e) const {
        constexpr int each = 8 / sizeof(Store);
        unsigned long long bits = v[e / each] >> (64 / each * (e % each));
        return Real(*reinterpret_cast<const Store*>(&bits));
    }
};

// ── a residual stream's start: x = wte[token] + wpe[place − pad], one block for all rows ──
// ids [1 + ring, rows]: row 0 is the token to be read, which is kept in row 1 + made % ring; state: places taken, and tokens made. Both
// are one more for all that comes after.
KERNEL __launch_bounds__(512) step_embed(Count* ids, Count* state, const Count* pad, const Store* wte, const Store* wpe, Real* x, Count rows, Count d,
                  Count ring) {
    Count place = state[0], made = state[1];
    for (Count row = 0; row < rows; ++row) {
        Count token = ids[row] > 0 ? ids[row] : 0;      // −1 says that there was none to choose
        const Store *word = wte + token * d, *where = wpe + (place - pad[row]) * d;
        for (Count i = threadIdx.x; i < d; i += blockDim.x) x[row * d + i] = Real(word[i]) + Real(where[i]);
    }
    for (Count row = threadIdx.x; row < rows; row += blockDim.x) ids[(1 + made % ring) * rows + row] = ids[row];
    __syncthreads();                                    // all have read the state
    if (threadIdx.x == 0) state[0] = place + 1, state[1] = made + 1;
}

// ── products of N rows of x, or of their LayerNorm, with a matrix ──
// μ and rstd of `given` rows of x [given, k], N of each, into `found`; `room` is for 32 N numbers
template <int N> __device__ __forceinline__ void statistics(const Real* x, int given, int k, double eps, Real* room, Real* found) {
    constexpr int AT_ONCE = N == 1 && sizeof(Real) == 4 ? 4 : 1;
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    for (int squares = 0; squares < 2; ++squares) {
        Real part[N];
#pragma unroll
        for (int n = 0; n < N; ++n) {
            Real m = squares ? found[n] : Real(0);
            part[n] = 0;
#pragma unroll 1
            for (int i = threadIdx.x; n < given && i < k; i += AT_ONCE * blockDim.x) {
                Real a[AT_ONCE];                        // waiting is what this costs
#pragma unroll
                for (int j = 0; j < AT_ONCE; ++j) a[j] = i + j * int(blockDim.x) < k ? x[Count(n) * k + i + j * blockDim.x] - m : Real(0);
#pragma unroll
                for (int j = 0; j < AT_ONCE; ++j) part[n] += squares ? a[j] * a[j] : a[j];
            }
        }
#pragma unroll
        for (int n = 0; n < N; ++n) {
            part[n] = warp_sum(part[n]);
            if (lane == 0) room[n * 32 + warp] = part[n];
        }
        __syncthreads();
        if (warp < N) {                                 // a warp for each row
            Real sum = warp_sum(lane < warps ? room[warp * 32 + lane] : Real(0)) / k;
            if (lane == 0) found[squares * N + warp] = squares ? Real(1.0 / sqrt(double(sum) + eps)) : sum;
        }
        __syncthreads();
    }
}

// What a product is of: x [rows, k], a LayerNorm's weight and bias or none, and a matrix [outs, k] cut up as `products` says
struct Product {
    const Real* x; const Store* gain; const Store* shift; const Store* weight;
    int rows, k, outs, slices, panel;
    double eps;
};

// A block has a range of the matrix's rows. A warp takes R of them at a time, and of these every slices-th group of 32 chunks of C numbers,
// U of them before it needs the first; the slices of a row are added at the end. x lies in shared memory, `panel` groups at a time, so that
// neighbouring lanes find their P numbers side by side. finish(n, row, sum) is called once for each product.
template <int N, int R, int U, int C, class Finish>
__device__ __forceinline__ void products(Real* tile, Product p, Finish finish) {
    constexpr int AT_ONCE = N == 1 && sizeof(Real) == 4 ? 2 : 1;           // with the weights there is room for no more
    constexpr int P = C < EACH ? C : EACH;              // tile: [N, panel, C / P, 32, P]
    Real* found = tile + N * p.panel * 32 * C;           // [2, N]
    Real* room = found + 2 * N;                         // [N, 32]
    Real* sums = room + N * 32;                         // [rows of this block, slices, N]
    int k = p.k, slices = p.slices, panel = p.panel, given = N == 1 ? 1 : p.rows;
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    int few = unsigned(p.outs) / gridDim.x, more = unsigned(p.outs) % gridDim.x, block = blockIdx.x;       // 64 bits divide slowly
    int first = block * few + (block < more ? block : more), here = few + (block < more);
    int chunks = k / C, groups = (chunks + 31) / 32, items = (here + R - 1) / R * slices;
    for (int start = 0; start < groups; start += panel) {
        int end = start + panel < groups ? start + panel : groups, item = warp, g = start + item % slices;
        Chunk<C> w[U][R];
        Real sum[R][N];
        auto fetch = [&]() {
#pragma unroll
            for (int u = 0; u < U; ++u) {
                int at = g + u * slices;
#pragma unroll
                for (int r = 0; r < R; ++r) {
                    int row = item / slices * R + r;
                    bool there = at < end && at * 32 + lane < chunks && row < here;
                    w[u][r] = Chunk<C>(p.weight + Count(first + row) * k + Count(at * 32 + lane) * C, there);
                }
            }
        };
        if (item < items) fetch();                      // these travel while x is made ready
        if (start == 0) {                               // and so do these
            finish.soon(first, here);
            if (p.gain) soon(p.gain, k, threadIdx.x, blockDim.x), soon(p.shift, k, threadIdx.x, blockDim.x);
        }
        if (p.gain && start == 0) statistics<N>(p.x, given, k, p.eps, room, found);
        if (start > 0) __syncthreads();                 // all are done with the panel before
#pragma unroll 1
        for (int base = threadIdx.x; base < panel * 32 * C; base += AT_ONCE * blockDim.x) {
            Real v[AT_ONCE][N], gain[AT_ONCE], shift[AT_ONCE];
#pragma unroll
            for (int j = 0; j < AT_ONCE; ++j) {
                int at = start * 32 * C + base + j * blockDim.x;
                bool normed = p.gain && at < k;
                gain[j] = normed ? Real(p.gain[at]) : Real(1), shift[j] = normed ? Real(p.shift[at]) : Real(0);
#pragma unroll
                for (int n = 0; n < N; ++n) v[j][n] = at < k && n < given ? p.x[Count(n) * k + at] : Real(0);
            }
#pragma unroll
            for (int j = 0; j < AT_ONCE; ++j) {
                int i = base + j * blockDim.x, e = i % C, c = i / C;
                bool there = i < panel * 32 * C, normed = p.gain && start * 32 * C + i < k;
#pragma unroll
                for (int n = 0; n < N; ++n) {
                    Real a = normed && n < given ? (v[j][n] - found[n]) * found[N + n] * gain[j] + shift[j] : v[j][n];
                    if (there) tile[(((n * panel + c / 32) * (C / P) + e / P) * 32 + c % 32) * P + e % P] = a;
                }
            }
        }
        __syncthreads();
        for (int r = 0; r < R; ++r) for (int n = 0; n < N; ++n) sum[r][n] = 0;
        while (item < items) {
#pragma unroll
            for (int u = 0; u < U; ++u) {
                int at = g + u * slices - start;
                if (at + start < end)
#pragma unroll
                    for (int h = 0; h < C / P; ++h)
#pragma unroll
                        for (int n = 0; n < N; ++n) {
                            Reals<P> a = *reinterpret_cast<const Reals<P>*>(tile + (((n * panel + at) * (C / P) + h) * 32 + lane) * P);
#pragma unroll
                            for (int r = 0; r < R; ++r)
#pragma unroll
                                for (int e = 0; e < P; ++e) sum[r][n] += w[u][r][h * P + e] * a.v[e];
                        }
            }
            int done = item;
            g += slices * U;
            bool over = g >= end;
            if (over) item += warps, g = start + item % slices;
            if (item < items) fetch();                  // before the sums are taken, which is a wait
            if (over) {
#pragma unroll
                for (int r = 0; r < R; ++r)
#pragma unroll
                    for (int n = 0; n < N; ++n) {
                        Real all = warp_sum(sum[r][n]);
                        int row = done / slices * R + r;
                        Real* to = sums + (row * slices + done % slices) * N + n;
                        if (lane == 0 && row < here) *to = start ? *to + all : all;
                        sum[r][n] = 0;
                    }
            }
        }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < here * given; i += blockDim.x) {
        int row = i % here, n = i / here;
        Real all = 0;
        for (int s = 0; s < slices; ++s) all += sums[(row * slices + s) * N + n];
        finish(n, first + row, all);
    }
}

// Registers decide how many rows of the matrix a warp takes and how much it asks for at a time, and how often what is read of x is used.
// BLOCKS of a multiprocessor share its registers.
#if ROWS == 1
#define BLOCKS 2
#define TAKEN 1, 8
#elif ROWS <= 4
#define BLOCKS 1
#define TAKEN 2, 4
#else
#define BLOCKS 1
#define TAKEN (sizeof(Real) == 4 ? 4 : 2), 1
#endif

// act(x + bias), added to what is there where `adds`; the activations by number: none, gelu.2, gelu.1, relu
struct IntoRows {
    const Store* bias; Real* out; int outs, act; bool adds;
    __device__ __forceinline__ void soon(int row, int n) const { if (bias) ::soon(bias + row, n, threadIdx.x, blockDim.x); }
    __device__ __forceinline__ void operator()(int n, int row, Real v) const {
        if (bias) v += Real(bias[row]);
        if (act == 1) v = Real(0.5) * v * (Real(1) + tanh(Real(0.79788456080286535588) * (v + Real(0.044715) * v * v * v)));
        if (act == 2) v = Real(0.5) * v * (Real(1) + erf(v * Real(0.70710678118654752440)));
        if (act == 3) v = v < Real(0) ? Real(0) : v;    // NaN stays
        Real* to = out + Count(n) * outs + row;
        *to = adds ? *to + v : v;
    }
};

// q as a row; k and v [heads, e] into their places [rows, heads, size, e] of the cache
struct IntoHeads {
    const Store* bias; Real* q; Store* keys; Store* values; int d, e; Count size, place;
    __device__ __forceinline__ void soon(int row, int n) const { ::soon(bias + row, n, threadIdx.x, blockDim.x); }
    __device__ __forceinline__ void operator()(int n, int row, Real v) const {
        v += Real(bias[row]);
        int i = row % d;
        if (row < d) q[Count(n) * d + i] = v;
        Store* to = row < 2 * d ? keys : values;
        if (row >= d) to[((Count(n) * (d / e) + i / e) * size + place) * e + i % e] = Store(v);
    }
};

// out [rows, outs] ← act(LN(x) Wᵀ + bias) (+ out); without LN gain is 0, without a bias bias is
KERNEL __launch_bounds__(512, BLOCKS) step_linear(const Real* x, const Store* gain, const Store* shift, const Store* weight,
                                                  const Store* bias, Real* out, Count rows, Count k, Count outs, Count slices, Count panel,
                                                  Count act, Count adds, double eps) {
    SHARED(Real, tile);
    Product p{x, gain, shift, weight, int(rows), int(k), int(outs), int(slices), int(panel), eps};
    products<ROWS, TAKEN, CHUNK>(tile, p, IntoRows{bias, out, p.outs, int(act), adds != 0});
}

// LN(x) Wᵀ + bias for W [3 d, d]: q [rows, d], and k and v into the cache [rows, d / e, size, e] at the last place taken
KERNEL __launch_bounds__(512, BLOCKS) step_qkv(const Real* x, const Store* gain, const Store* shift, const Store* weight, const Store* bias,
                                               Real* q, Store* keys, Store* values, const Count* state, Count rows, Count d, Count e,
                                               Count size, Count slices, Count panel, double eps) {
    SHARED(Real, tile);
    Product p{x, gain, shift, weight, int(rows), int(d), int(3 * d), int(slices), int(panel), eps};
    products<ROWS, TAKEN, CHUNK>(tile, p, IntoHeads{bias, q, keys, values, p.k, int(e), size, state[0] - 1});
}

// ── attention of one query over the keys of its row, in parts   (decode.1; Dao et al. 2023, flash-decoding) ──
__device__ __forceinline__ Real share(Real top, Real all) { return top == -INFINITE ? Real(0) : exp(top - all); }

// What another block wrote, past this one's own cache
__device__ __forceinline__ Real fresh(const Real* p) { return *reinterpret_cast<const volatile Real*>(p); }

// Over keys lo … hi − 1: Σ exp(s − top) v, Σ exp(s − top), and top, the highest s; each warp's into its own room [e + 2]. `lanes` lanes
// have a key between them, M chunks of C of its numbers each; a warp asks for U · 32 / lanes keys and their values at once.
template <int C, int M, int U>
__device__ __forceinline__ void over_keys(const Real* q, const Store* keys, const Store* values, Real* room, Count lo, Count hi, int e,
                                          int lanes, double scale) {
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32, mine = lane / lanes, each = 32 / lanes;
    Real top = -INFINITE, sum = 0, out[M][C], query[M][C];
#pragma unroll
    for (int i = 0; i < M; ++i)
#pragma unroll
        for (int x = 0; x < C; ++x) {
            int at = (i * lanes + lane % lanes) * C + x;
            out[i][x] = 0, query[i][x] = at < e ? q[at] * Real(scale) : Real(0);
        }
    for (Count base = lo + warp * each * U; base < hi; base += warps * each * U) {
        Chunk<C> k[U][M], v[U][M];
        Real s[U], best = top;
#pragma unroll
        for (int u = 0; u < U; ++u)
#pragma unroll
            for (int i = 0; i < M; ++i) {
                Count key = base + u * each + mine;
                int at = (i * lanes + lane % lanes) * C;
                bool there = key < hi && at < e;
                k[u][i] = Chunk<C>(keys + key * e + at, there);
                v[u][i] = Chunk<C>(values + key * e + at, there);
            }
#pragma unroll
        for (int u = 0; u < U; ++u) {
            s[u] = 0;
#pragma unroll
            for (int i = 0; i < M; ++i)
#pragma unroll
                for (int x = 0; x < C; ++x) s[u] += query[i][x] * k[u][i][x];
            for (int m = lanes / 2; m > 0; m /= 2) s[u] += __shfl_xor_sync(ALL_LANES, s[u], m);
            if (base + u * each + mine >= hi) s[u] = -INFINITE;
            best = fmax(best, s[u]);
        }
        Real keep = share(top, best);
        top = best, sum *= keep;
#pragma unroll
        for (int i = 0; i < M; ++i)
#pragma unroll
            for (int x = 0; x < C; ++x) out[i][x] *= keep;
#pragma unroll
        for (int u = 0; u < U; ++u) {
            Real p = share(s[u], best);
            sum += p;
#pragma unroll
            for (int i = 0; i < M; ++i)
#pragma unroll
                for (int x = 0; x < C; ++x) out[i][x] += p * v[u][i][x];
        }
    }
    for (int m = lanes; m < 32; m *= 2) {               // the keys of a warp
        Real other = __shfl_xor_sync(ALL_LANES, top, m), best = fmax(top, other), a = share(top, best), b = share(other, best);
        sum = sum * a + __shfl_xor_sync(ALL_LANES, sum, m) * b;
        top = best;
#pragma unroll
        for (int i = 0; i < M; ++i)
#pragma unroll
            for (int x = 0; x < C; ++x) out[i][x] = out[i][x] * a + __shfl_xor_sync(ALL_LANES, out[i][x], m) * b;
    }
    room += warp * (e + 2);
    if (mine == 0)
#pragma unroll
        for (int i = 0; i < M; ++i)
#pragma unroll
            for (int x = 0; x < C; ++x) {
                int at = (i * lanes + lane) * C + x;
                if (at < e) room[at] = out[i][x];
            }
    if (lane == 0) room[e] = sum, room[e + 1] = top;
}

// out[row, head] = softmax(scale q Kᵀ) V over the keys pad[row] … state[0] − 1 of the cache [rows, heads, size, e], e ≤ 256, by blocks
// [parts, heads, rows]. The keys are cut into so many parts at most, of `least` keys at least. The last block of a head to be done,
// whichever it is, adds the parts up in their order. parts: [rows, heads, parts, e + 2]; arrived: [rows, heads], 0 before and after.
// next and later, of so many numbers, are what is read after this: memory would have little to do meanwhile.
KERNEL step_attention(const Real* q, const Store* keys, const Store* values, const Count* state, const Count* pad, Real* out, Real* parts,
                      Count* arrived, const Store* next, const Store* later, Count e, Count size, Count least, Count of_next, Count of_later,
                      double scale) {
    SHARED(Real, room);                                 // [warps, e + 2]
    int lane = threadIdx.x % 32, warps = blockDim.x / 32, lanes = 1;
    Count head = Count(blockIdx.z) * gridDim.y + blockIdx.y, lo = pad[blockIdx.z], n = state[0] - lo;
    unsigned me = (unsigned(head) * gridDim.x + blockIdx.x) * blockDim.x + threadIdx.x, all = gridDim.z * gridDim.y * gridDim.x * blockDim.x;
    Count each = (unsigned(n) + gridDim.x - 1) / gridDim.x;
    if (each < least) each = least;
    Count used = (unsigned(n) + unsigned(each) - 1) / unsigned(each);
    if (blockIdx.x >= used) {
        soon(next, of_next, me, all), soon(later, of_later, me, all);
        return;
    }
    Count from = lo + blockIdx.x * each, to = from + each < lo + n ? from + each : lo + n;
    while (lanes < 32 && lanes * CHUNK < e) lanes *= 2;
    keys += head * size * e, values += head * size * e, q += head * e, out += head * e, parts += head * gridDim.x * (e + 2);
    constexpr int MOST = 256 / (32 * CHUNK);            // chunks of a lane where the whole warp has one key
    if (CHUNK > 1 && (MOST == 1 || e <= 32 * CHUNK)) over_keys<CHUNK, 1, 4>(q, keys, values, room, from, to, e, lanes, scale);
    else over_keys<CHUNK, MOST, 1>(q, keys, values, room, from, to, e, lanes, scale);
    soon(next, of_next, me, all), soon(later, of_later, me, all);
    __syncthreads();
    if (threadIdx.x >= 32) return;
    Real top = -INFINITE, sum = 0;                      // of this block
    for (int w = 0; w < warps; ++w) top = fmax(top, room[w * (e + 2) + e + 1]);
    for (int w = 0; w < warps; ++w) sum += room[w * (e + 2) + e] * share(room[w * (e + 2) + e + 1], top);
    Real* part = parts + blockIdx.x * (e + 2);
    for (int i = lane; i < e; i += 32) {
        Real v = 0;
        for (int w = 0; w < warps; ++w) v += room[w * (e + 2) + i] * share(room[w * (e + 2) + e + 1], top);
        if (used == 1) out[i] = v / sum;
        else part[i] = v;
    }
    if (used == 1) return;
    if (lane == 0) part[e] = sum, part[e + 1] = top;
    __threadfence();                                    // all that this warp wrote is seen before its number is
    __syncwarp();
    int before = 0;
    if (lane == 0) before = atomicAdd(reinterpret_cast<unsigned long long*>(arrived + head), 1ull);
    before = __shfl_sync(ALL_LANES, before, 0);
    if (before != used - 1) return;
    __threadfence();
    __syncwarp();                                       // a shuffle alone does not order what lane 0 has seen before what others read
    top = -INFINITE, sum = 0;
    for (int p = 0; p < used; ++p) top = fmax(top, fresh(parts + p * (e + 2) + e + 1));
    for (int p = 0; p < used; ++p) sum += fresh(parts + p * (e + 2) + e) * share(fresh(parts + p * (e + 2) + e + 1), top);
    for (int i = lane; i < e; i += 32) {
        Real v = 0;
        for (int p = 0; p < used; ++p) v += fresh(parts + p * (e + 2) + i) * share(fresh(parts + p * (e + 2) + e + 1), top);
        out[i] = v / sum;
    }
    if (lane == 0) arrived[head] = 0;
}
