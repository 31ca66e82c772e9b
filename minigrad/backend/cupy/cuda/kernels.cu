// The kernels of the CuPy backend; attention has a file of its own, which is compiled with this one. Each does on a GPU what the kernel of
// the same name in numpy_kernels.py does on a CPU.
//
// Compiled by NVRTC when first used, once for each kind of number: Store is what lies in memory (float, double, Half or Bfloat), Real is
// what is computed with (float, or double). In tests, where there is no GPU, g++ compiles it (minigrad/testing/fake_cupy/cuda.py). Arrays
// are contiguous where they are not Strided, counts long long, numbers double: what CuPy makes of Python's int and float. Sums are taken
// in an order that the shapes fix, so equal calls give equal bits.
#define SHARED(T, name) extern __shared__ __align__(16) double shared_memory[]; T* name = reinterpret_cast<T*>(shared_memory)
__device__ __forceinline__ float from_half(unsigned short bits) { float f; asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(bits)); return f; }
__device__ __forceinline__ unsigned short to_half(float f) { unsigned short b; asm("cvt.rn.f16.f32 %0, %1;" : "=h"(b) : "f"(f)); return b; }

// 16-bit numbers, without the toolkit's headers: a machine with a driver and CuPy alone may not have them.
struct Half {                                           // IEEE: 5 bits of exponent, 10 of mantissa
    unsigned short bits;
    Half() = default;
    __device__ __forceinline__ Half(float f) : bits(to_half(f)) {}
    __device__ __forceinline__ operator float() const { return from_half(bits); }
};

struct Bfloat {                                         // the upper half of a float, rounded to nearest, ties to even
    unsigned short bits;
    Bfloat() = default;
    __device__ __forceinline__ Bfloat(float f) {
        unsigned u = __float_as_uint(f);
        bits = f == f ? (u + 0x7fff + (u >> 16 & 1)) >> 16 : 0x7fff;
    }
    __device__ __forceinline__ operator float() const { return __uint_as_float(unsigned(bits) << 16); }
};

typedef STORE Store;
typedef REAL Real;
typedef long long Count;
typedef Store Strided;                                  // what lies in memory with steps between its rows that are told

#define KERNEL extern "C" __global__ void
#define ALL_LANES 0xffffffffu
#define INFINITE Real(1e300 * 1e300)

// N numbers of memory in one access; 16 bytes of them are the most that a thread can ask for
template <int N> struct alignas(N * sizeof(Store)) Pack { Store v[N]; };
#define WIDE int(16 / sizeof(Store))
template <int N> __device__ __forceinline__ Pack<N> load(const Store* p) {
    return *reinterpret_cast<const Pack<N>*>(p);
}
template <int N> __device__ __forceinline__ void store(Store* p, const Pack<N>& pack) {
    *reinterpret_cast<Pack<N>*>(p) = pack;
}
__device__ __forceinline__ bool aligned(const Store* p) { return (unsigned long long)(p) % 16 == 0; }

// ── sums over the threads of a warp, and of a block ──
__device__ __forceinline__ Real warp_sum(Real v) {
    for (int m = 16; m > 0; m /= 2) v += __shfl_xor_sync(ALL_LANES, v, m);
    return v;
}

__device__ __forceinline__ Real warp_max(Real v) {
    for (int m = 16; m > 0; m /= 2) v = fmax(v, __shfl_xor_sync(ALL_LANES, v, m));
    return v;
}

// Whole warps only, at most 32 of them. `room`: 32 numbers of shared memory, used once. Every thread gets the result.
__device__ __forceinline__ Real block_sum(Real v, Real* room) {
    v = warp_sum(v);
    if (threadIdx.x % 32 == 0) room[threadIdx.x / 32] = v;
    __syncthreads();
    return warp_sum(threadIdx.x % 32 < blockDim.x / 32 ? room[threadIdx.x % 32] : Real(0));
}

__device__ __forceinline__ Real block_max(Real v, Real* room) {
    v = warp_max(v);
    if (threadIdx.x % 32 == 0) room[threadIdx.x / 32] = v;
    __syncthreads();
    return warp_max(threadIdx.x % 32 < blockDim.x / 32 ? room[threadIdx.x % 32] : -INFINITE);
}

// ── what is above is for all files of kernels, what is below for this one ──

// ── layer norm: a warp for each row, N numbers at a time ──
template <int N> __device__ __forceinline__ void normalized_row(const Store* x, const Store* more, Store* both, const Store* weight,
                                                                const Store* bias, Store* y, Real* mean, Real* rstd, Count d, double eps) {
    int lane = threadIdx.x % 32;
    if (more) {
        for (Count i = lane * N; i < d; i += 32 * N) {
            Pack<N> a = load<N>(x + i), b = load<N>(more + i);
            for (int k = 0; k < N; ++k) a.v[k] = Real(a.v[k]) + Real(b.v[k]);
            store<N>(both + i, a);
        }
        x = both;                                       // each lane reads what it wrote itself
    }
    Real sum = 0, squares = 0;
    for (Count i = lane * N; i < d; i += 32 * N) {
        Pack<N> a = load<N>(x + i);
        for (int k = 0; k < N; ++k) sum += Real(a.v[k]);
    }
    Real m = warp_sum(sum) / d;
    for (Count i = lane * N; i < d; i += 32 * N) {
        Pack<N> a = load<N>(x + i);
        for (int k = 0; k < N; ++k) squares += (Real(a.v[k]) - m) * (Real(a.v[k]) - m);
    }
    Real r = Real(1.0 / sqrt(double(warp_sum(squares)) / d + eps));      // its rounding would be a whole row's
    for (Count i = lane * N; i < d; i += 32 * N) {
        Pack<N> a = load<N>(x + i), w = load<N>(weight + i), b = load<N>(bias + i);
        for (int k = 0; k < N; ++k) a.v[k] = (Real(a.v[k]) - m) * r * Real(w.v[k]) + Real(b.v[k]);
        store<N>(y + i, a);
    }
    if (lane == 0) *mean = m, *rstd = r;
}

// y = (x − μ) rstd ⊙ weight + bias   (layer_norm.1); where there is more, of both = x + more
KERNEL layer_norm(const Store* x, const Store* more, Store* both, const Store* weight, const Store* bias, Store* y, Real* mean, Real* rstd,
                  Count rows, Count d, double eps) {
    Count row = Count(blockIdx.x) * (blockDim.x / 32) + threadIdx.x / 32;
    if (row >= rows) return;                            // a whole warp leaves
    bool wide = d % WIDE == 0 && aligned(x) && aligned(more) && aligned(both) && aligned(weight) && aligned(bias) && aligned(y);
    x += row * d, y += row * d, mean += row, rstd += row;
    if (more) more += row * d, both += row * d;
    if (wide) normalized_row<WIDE>(x, more, both, weight, bias, y, mean, rstd, d, eps);
    else normalized_row<1>(x, more, both, weight, bias, y, mean, rstd, d, eps);
}

template <int N> __device__ __forceinline__ void normalized_row_dx(const Store* g, const Store* x, const Store* weight, const Store* more,
                                                                   Real m, Real r, Store* dx, Count d) {
    int lane = threadIdx.x % 32;
    Real along_one = 0, along_x = 0;
    for (Count i = lane * N; i < d; i += 32 * N) {
        Pack<N> a = load<N>(g + i), w = load<N>(weight + i), b = load<N>(x + i);
        for (int k = 0; k < N; ++k) {
            Real h = Real(a.v[k]) * Real(w.v[k]);
            along_one += h;
            along_x += h * ((Real(b.v[k]) - m) * r);
        }
    }
    along_one = warp_sum(along_one) / d;
    along_x = warp_sum(along_x) / d;
    for (Count i = lane * N; i < d; i += 32 * N) {
        Pack<N> a = load<N>(g + i), w = load<N>(weight + i), b = load<N>(x + i), c;
        if (more) c = load<N>(more + i);
        for (int k = 0; k < N; ++k) {
            Real v = (Real(a.v[k]) * Real(w.v[k]) - along_one - (Real(b.v[k]) - m) * r * along_x) * r;
            a.v[k] = more ? Real(c.v[k]) + v : v;
        }
        store<N>(dx + i, a);
    }
}

// ∂x = rstd (ĝ − mean(ĝ) − x̂ mean(ĝ ⊙ x̂)), ĝ = g ⊙ weight   (layer_norm.5); and more, where there is more: what comes along the
// residual stream   (block.5–6)
KERNEL layer_norm_dx(const Store* g, const Store* x, const Store* weight, const Store* more, const Real* mean, const Real* rstd, Store* dx,
                     Count rows, Count d) {
    Count row = Count(blockIdx.x) * (blockDim.x / 32) + threadIdx.x / 32;
    if (row >= rows) return;
    bool wide = d % WIDE == 0 && aligned(g) && aligned(x) && aligned(weight) && aligned(more) && aligned(dx);
    g += row * d, x += row * d, dx += row * d;
    if (more) more += row * d;
    if (wide) normalized_row_dx<WIDE>(g, x, weight, more, mean[row], rstd[row], dx, d);
    else normalized_row_dx<1>(g, x, weight, more, mean[row], rstd[row], dx, d);
}

// sums[part, 0] = Σ g ⊙ x̂ and sums[part, 1] = Σ g over the rows of each part   (layer_norm.6–7); blocks of 32 columns and 8 rows
KERNEL layer_norm_sums(const Store* g, const Store* x, const Real* mean, const Real* rstd, Real* sums, Count rows, Count d) {
    SHARED(Real, room);                                 // [2, 8, 32]
    Count column = Count(blockIdx.x) * 32 + threadIdx.x;
    Real dweight = 0, dbias = 0;
    if (column < d)
        for (Count row = Count(blockIdx.y) * 8 + threadIdx.y; row < rows; row += Count(gridDim.y) * 8) {
            Real h = g[row * d + column];
            dweight += h * ((Real(x[row * d + column]) - mean[row]) * rstd[row]);
            dbias += h;
        }
    room[threadIdx.y * 32 + threadIdx.x] = dweight;
    room[(8 + threadIdx.y) * 32 + threadIdx.x] = dbias;
    __syncthreads();
    if (threadIdx.y < 2 && column < d) {
        Real sum = 0;
        for (int k = 0; k < 8; ++k) sum += room[(threadIdx.y * 8 + k) * 32 + threadIdx.x];
        sums[(Count(blockIdx.y) * 2 + threadIdx.y) * d + column] = sum;
    }
}

// ── sums over rows: sums[part] = Σ x over the rows of each part; blocks of 32 columns and 8 rows   (sum_to.1) ──
KERNEL column_sums(const Store* x, Real* sums, Count rows, Count d) {
    SHARED(Real, room);                                 // [8, 32]
    Count column = Count(blockIdx.x) * 32 + threadIdx.x;
    Real part = 0;
    if (column < d)
        for (Count row = Count(blockIdx.y) * 8 + threadIdx.y; row < rows; row += Count(gridDim.y) * 8) part += Real(x[row * d + column]);
    room[threadIdx.y * 32 + threadIdx.x] = part;
    __syncthreads();
    if (threadIdx.y == 0 && column < d) {
        Real sum = 0;
        for (int k = 0; k < 8; ++k) sum += room[k * 32 + threadIdx.x];
        sums[Count(blockIdx.y) * d + column] = sum;
    }
}

// ── WIDE numbers a thread: sums, and numbers as they are stored to and from those that are computed with ──
KERNEL add(const Store* a, const Store* b, Store* y, Count n) {
    Count i = (Count(blockIdx.x) * blockDim.x + threadIdx.x) * WIDE;
    if (i + WIDE <= n && aligned(a) && aligned(b) && aligned(y)) {
        Pack<WIDE> p = load<WIDE>(a + i), q = load<WIDE>(b + i);
        for (int k = 0; k < WIDE; ++k) p.v[k] = Real(p.v[k]) + Real(q.v[k]);
        store<WIDE>(y + i, p);
    } else
        for (Count end = i + WIDE < n ? i + WIDE : n; i < end; ++i) y[i] = Real(a[i]) + Real(b[i]);
}

KERNEL widen(const Store* x, Real* y, Count n) {
    Count i = (Count(blockIdx.x) * blockDim.x + threadIdx.x) * WIDE;
    if (i + WIDE <= n && aligned(x)) {
        Pack<WIDE> p = load<WIDE>(x + i);
        for (int k = 0; k < WIDE; ++k) y[i + k] = p.v[k];
    } else
        for (Count end = i + WIDE < n ? i + WIDE : n; i < end; ++i) y[i] = x[i];
}

KERNEL narrow(const Real* x, Store* y, Count n) {
    Count i = (Count(blockIdx.x) * blockDim.x + threadIdx.x) * WIDE;
    if (i + WIDE <= n && aligned(y)) {
        Pack<WIDE> p;
        for (int k = 0; k < WIDE; ++k) p.v[k] = x[i + k];
        store<WIDE>(y + i, p);
    } else
        for (Count end = i + WIDE < n ? i + WIDE : n; i < end; ++i) y[i] = x[i];
}

// ── gelu by tanh, of x or of x + bias: WIDE numbers a thread; without a bias d is 1 ──
#define GELU_C Real(0.79788456080286535588)             // √(2/π)
#define GELU_A Real(0.044715)
#define GELU_FAR Real(1e4)                              // where x² is no number any more, the slope has long been 0 or 1

// ½x(1 + tanh(c(x + a x³)))   (gelu.2)
__device__ __forceinline__ Real gelu_of(Real x) {
    return Real(0.5) * x * (Real(1) + tanh(GELU_C * (x + GELU_A * x * x * x)));
}

// ½(1 + t) + ½x(1 − t²) c(1 + 3a x²)   (gelu.4)
__device__ __forceinline__ Real gelu_slope(Real x) {
    x = x > GELU_FAR ? GELU_FAR : x < -GELU_FAR ? -GELU_FAR : x;        // NaN stays what it is
    Real t = tanh(GELU_C * (x + GELU_A * x * x * x));
    return Real(0.5) * (Real(1) + t) + Real(0.5) * x * (Real(1) - t * t) * GELU_C * (Real(1) + Real(3) * GELU_A * x * x);
}

KERNEL gelu(const Store* x, const Store* bias, Store* y, Count n, Count d) {
    Count i = (Count(blockIdx.x) * blockDim.x + threadIdx.x) * WIDE;
    if (i + WIDE <= n && aligned(x) && aligned(y) && (!bias || (d % WIDE == 0 && aligned(bias)))) {
        Pack<WIDE> a = load<WIDE>(x + i), b;
        if (bias) b = load<WIDE>(bias + i % d);
        for (int k = 0; k < WIDE; ++k) a.v[k] = gelu_of(bias ? Real(a.v[k]) + Real(b.v[k]) : Real(a.v[k]));
        store<WIDE>(y + i, a);
    } else
        for (Count end = i + WIDE < n ? i + WIDE : n; i < end; ++i) y[i] = gelu_of(bias ? Real(x[i]) + Real(bias[i % d]) : Real(x[i]));
}

KERNEL gelu_dx(const Store* g, const Store* x, const Store* bias, Store* dx, Count n, Count d) {
    Count i = (Count(blockIdx.x) * blockDim.x + threadIdx.x) * WIDE;
    if (i + WIDE <= n && aligned(g) && aligned(x) && aligned(dx) && (!bias || (d % WIDE == 0 && aligned(bias)))) {
        Pack<WIDE> a = load<WIDE>(g + i), b = load<WIDE>(x + i), c;
        if (bias) c = load<WIDE>(bias + i % d);
        for (int k = 0; k < WIDE; ++k) a.v[k] = Real(a.v[k]) * gelu_slope(bias ? Real(b.v[k]) + Real(c.v[k]) : Real(b.v[k]));
        store<WIDE>(dx + i, a);
    } else
        for (Count end = i + WIDE < n ? i + WIDE : n; i < end; ++i)
            dx[i] = Real(g[i]) * gelu_slope(bias ? Real(x[i]) + Real(bias[i % d]) : Real(x[i]));
}

// ── dropout: two numbers for each draw of 64 bits, SplitMix64's finaliser of key + (i + 1) γ ──
// x / (1 − p) where the draw is at least `least`, else 0   (dropout.1)
KERNEL dropout_op(const Store* x, Store* y, Count n, Count key, Count least, double factor) {
    Count pair = Count(blockIdx.x) * blockDim.x + threadIdx.x;
    if (2 * pair >= n) return;
    unsigned long long z = (unsigned long long)(pair + 1) * 0x9E3779B97F4A7C15ull + (unsigned long long)key;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ z >> 27) * 0x94D049BB133111EBull;
    z ^= z >> 31;
    y[2 * pair] = Count(z & 0xffffffffull) >= least ? Real(x[2 * pair]) * Real(factor) : Real(0);
    if (2 * pair + 1 < n) y[2 * pair + 1] = Count(z >> 32) >= least ? Real(x[2 * pair + 1]) * Real(factor) : Real(0);
}

// ── cross-entropy: a block for each row ──
// lse = log Σ exp(logits) and nll = lse − logits[target]   (cross_entropy.1); a row is V long in memory, its first n numbers count
KERNEL cross_entropy(const Store* logits, const Count* targets, Real* lse, Real* nll, Count V, Count n) {
    SHARED(Real, room);                                 // [2, 32]
    Count row = blockIdx.x;
    logits += row * V;
    Real top = -INFINITE, sum = 0;
    for (Count i = threadIdx.x; i < n; i += blockDim.x) top = fmax(top, Real(logits[i]));
    top = block_max(top, room);
    for (Count i = threadIdx.x; i < n; i += blockDim.x) sum += exp(Real(logits[i]) - top);
    sum = block_sum(sum, room + 32);
    if (threadIdx.x == 0) {
        lse[row] = log(sum) + top;
        nll[row] = log(sum) + top - Real(logits[targets[row]]);
    }
}

// (softmax(logits) − onehot(target)) ⊙ scale g   (cross_entropy.3); rows that do not count have scale 0
KERNEL cross_entropy_dlogits(const Real* g, const Store* logits, const Count* targets, const Real* lse, const Real* scale, Store* dlogits,
                             Count V, Count n) {
    Count row = blockIdx.x;
    Real factor = scale[row] * g[0];
    for (Count i = threadIdx.x; i < n; i += blockDim.x) {
        Real p = exp(Real(logits[row * V + i]) - lse[row]);
        if (i == targets[row]) p -= Real(1);
        dlogits[row * V + i] = p * factor;
    }
}

// ── the token table's gradient ──
// sum[r] += Σ values[order[k]] over sorted[k] = r; a block for each k, of which the first of its kind does the work   (embedding.3)
KERNEL add_rows(Store* sum, const Count* sorted, const Count* order, const Store* values, Count n, Count d) {
    Count k = blockIdx.x;
    if (k > 0 && sorted[k] == sorted[k - 1]) return;
    for (Count i = threadIdx.x; i < d; i += blockDim.x) {
        Real s = 0;
        for (Count j = k; j < n && sorted[j] == sorted[k]; ++j) s += Real(values[order[j] * d + i]);
        sum[sorted[k] * d + i] = Real(sum[sorted[k] * d + i]) + s;
    }
}

// ── several arrays in one launch: a block has `each` numbers of one of them ──
// table [2 + k, arrays]: each array's first block, its size, and the addresses of k arrays that belong together
struct Part { Count array, from, to; };

__device__ __forceinline__ Part part_of(const Count* table, Count arrays, Count each) {
    Count low = 0, high = arrays;                       // table[low] ≤ blockIdx.x < table[high]
    while (high - low > 1) {
        Count middle = (low + high) / 2;
        if (table[middle] <= Count(blockIdx.x)) low = middle;
        else high = middle;
    }
    Count from = (Count(blockIdx.x) - table[low]) * each, size = table[arrays + low];
    return {low, from, from + each < size ? from + each : size};
}

__device__ __forceinline__ Store* array_of(const Count* table, Count arrays, Part part, int kind) {
    return reinterpret_cast<Store*>(table[(2 + kind) * arrays + part.array]);
}

// the gradients' norm: sums[block] = Σ x² over the numbers of each block
KERNEL sums_of_squares(const Count* table, Count arrays, Count each, Real* sums) {
    SHARED(Real, room);                                 // [32]
    Part part = part_of(table, arrays, each);
    const Store* x = array_of(table, arrays, part, 0);
    Count tail = aligned(x) ? part.to - (part.to - part.from) % WIDE : part.from;
    Real sum = 0;
    for (Count i = part.from + threadIdx.x * WIDE; i < tail; i += blockDim.x * WIDE) {
        Pack<WIDE> a = load<WIDE>(x + i);
        for (int k = 0; k < WIDE; ++k) sum += Real(a.v[k]) * Real(a.v[k]);
    }
    for (Count i = tail + threadIdx.x; i < part.to; i += blockDim.x) sum += Real(x[i]) * Real(x[i]);
    sum = block_sum(sum, room);
    if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

// x ← factor x
KERNEL scale(const Count* table, Count arrays, Count each, double factor) {
    Part part = part_of(table, arrays, each);
    Store* x = array_of(table, arrays, part, 0);
    Count tail = aligned(x) ? part.to - (part.to - part.from) % WIDE : part.from;
    for (Count i = part.from + threadIdx.x * WIDE; i < tail; i += blockDim.x * WIDE) {
        Pack<WIDE> a = load<WIDE>(x + i);
        for (int k = 0; k < WIDE; ++k) a.v[k] = Real(a.v[k]) * Real(factor);
        store<WIDE>(x + i, a);
    }
    for (Count i = tail + threadIdx.x; i < part.to; i += blockDim.x) x[i] = Real(x[i]) * Real(factor);
}

// AdamW, all in one pass   (adamw.1–4; Loshchilov, Hutter 2019)
template <int N> __device__ __forceinline__ void adamw_numbers(Store* p, const Store* g, Store* m, Store* v, double lr, double beta1,
                                                               double beta2, double eps, double weight_decay, double correct1,
                                                               double correct2) {
    Pack<N> a = load<N>(p), d = load<N>(g), m1 = load<N>(m), v2 = load<N>(v);
    for (int k = 0; k < N; ++k) {
        Real slope = d.v[k];
        Real first = Real(m1.v[k]) * Real(beta1) + slope * Real(1.0 - beta1);
        Real second = Real(v2.v[k]) * Real(beta2) + slope * slope * Real(1.0 - beta2);
        m1.v[k] = first, v2.v[k] = second;
        a.v[k] = Real(a.v[k]) * Real(1.0 - lr * weight_decay) - first / (sqrt(second / Real(correct2)) + Real(eps)) * Real(lr / correct1);
    }
    store<N>(p, a), store<N>(m, m1), store<N>(v, v2);
}

KERNEL adamw_update(const Count* table, Count arrays, Count each, double lr, double beta1, double beta2, double eps, double weight_decay,
                    double correct1, double correct2) {
    Part part = part_of(table, arrays, each);
    Store *p = array_of(table, arrays, part, 0), *g = array_of(table, arrays, part, 1);
    Store *m = array_of(table, arrays, part, 2), *v = array_of(table, arrays, part, 3);
    bool wide = aligned(p) && aligned(g) && aligned(m) && aligned(v);
    Count tail = wide ? part.to - (part.to - part.from) % WIDE : part.from;
    for (Count i = part.from + threadIdx.x * WIDE; i < tail; i += blockDim.x * WIDE)
        adamw_numbers<WIDE>(p + i, g + i, m + i, v + i, lr, beta1, beta2, eps, weight_decay, correct1, correct2);
    for (Count i = tail + threadIdx.x; i < part.to; i += blockDim.x)
        adamw_numbers<1>(p + i, g + i, m + i, v + i, lr, beta1, beta2, eps, weight_decay, correct1, correct2);
}
