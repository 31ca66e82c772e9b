// Attention in tiles   (attention.1, .4–7; Dao 2023). Compiled after what kernels.cu starts with.
//
// The weights are never stored. A block keeps some queries and walks over the keys a tile at a time, as far as its queries see
// (attention.13), and corrects each row's greatest score, its sum and its result as it goes (attention.11); on the way back the weights
// are computed again from lse (attention.10), and the tiles' parts are added up (attention.14).
// Rows are padded with zeros to D numbers. A tile is 8 KB, whatever it holds, and a block has 48 KB at most.
#define LOG2_E Real(1.44269504088896340736)
#define LN_2 Real(0.69314718055994530942)
__device__ __forceinline__ int lane() { return threadIdx.x % 32; }
__device__ __forceinline__ int warp() { return threadIdx.x / 32; }

#if __CUDA_ARCH__ >= 800
#define SM_80(...) asm volatile(__VA_ARGS__)
#else
#define SM_80(...) __trap()                             // the wrapper does not come here
#endif
__device__ __forceinline__ unsigned in_shared(const void* p) { return unsigned(__cvta_generic_to_shared(p)); }

// 16 bytes to shared memory, or 16 zeros, that arrive by themselves; they are there after copied()
__device__ __forceinline__ void copy(void* to, const void* from, bool there) {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" :: "r"(in_shared(to)), "l"(from), "r"(there ? 16 : 0));
#else
    *reinterpret_cast<int4*>(to) = there ? *reinterpret_cast<const int4*>(from) : int4{0, 0, 0, 0};
#endif
}

__device__ __forceinline__ void copied() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

// Four matrices of 8 × 8: lane i says where row i % 8 of matrix i / 8 is, and gets numbers 2 (i % 4) and the next one of each one's row
// i / 4, or of its column i / 4
__device__ __forceinline__ void matrices(unsigned (&r)[4], const void* row) {
    SM_80("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
          : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(in_shared(row)));
}

__device__ __forceinline__ void matrices_turned(unsigned (&r)[4], const void* row) {
    SM_80("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
          : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(in_shared(row)));
}

// [16, 8] += [16, 16] · [16, 8], dealt to the lanes of a warp as the PTX ISA says; and two numbers in 32 bits
#define TENSOR_CORES(T, type)                                                                                                             \
    __device__ __forceinline__ void mma(float& c0, float& c1, float& c2, float& c3, const unsigned (&a)[4], unsigned b0, unsigned b1,     \
                                        T) {                                                                                              \
        SM_80("mma.sync.aligned.m16n8k16.row.col.f32." type "." type ".f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"         \
              : "+f"(c0), "+f"(c1), "+f"(c2), "+f"(c3) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));                   \
    }                                                                                                                                     \
    __device__ __forceinline__ unsigned two(float first, float second, T) {                                                               \
        unsigned both = 0;                                                                                                                \
        SM_80("cvt.rn." type "x2.f32 %0, %1, %2;" : "=r"(both) : "f"(second), "f"(first));                                                \
        return both;                                                                                                                      \
    }
TENSOR_CORES(Half, "f16")
TENSOR_CORES(Bfloat, "bf16")

// 2ˣ; for weights of 16 bits in one instruction, whose error is 2⁻²²
__device__ __forceinline__ double power(double x) { return exp2(x); }
__device__ __forceinline__ float power(float x) {
    if (sizeof(Store) == 2) {
        float y;
        asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
        return y;
    }
    return exp2(x);
}

// The rows of one head, wherever they lie: [length, width], their numbers side by side
struct Rows {
    const Store* first;
    Count step;
    int length, width;
    bool wide;                                          // whether they can be read 16 bytes at a time
};

__device__ __forceinline__ Rows rows_of(const Store* x, Count batch, Count head, Count step, Count length, Count width, int n, int heads) {
    x += n / heads * batch + n % heads * head;
    return Rows{x, step, int(length), int(width), width % WIDE == 0 && step % WIDE == 0 && aligned(x)};
}

// Where results go: [batch, row, head, number], all of them side by side
struct Results {
    Store* all;
    int n, heads, length, width;
    __device__ __forceinline__ Store* row(int i) const { return all + ((n / heads * Count(length) + i) * heads + n % heads) * width; }
};

// Where a number of a tile is. Pieces of 16 bytes change places from row to row, so that a column of 8 rows lies in all banks.
template <int D> __device__ __forceinline__ unsigned place(unsigned row, unsigned column) {
    return row * D + (row % 8 * WIDE ^ column);
}

// ROWS rows from `from` on as a tile, zeros where there are none; it is there after copied() and a barrier
template <int D, int ROWS, int THREADS> __device__ __forceinline__ void fetch(Store* tile, const Rows& x, int from) {
    constexpr int PIECES = D / WIDE, STEP = THREADS / PIECES;
    int row = threadIdx.x / PIECES, column = threadIdx.x % PIECES * WIDE;
    int end = column >= x.width ? 0 : x.length - from < ROWS ? x.length - from : ROWS;
    const Store* at = x.first + Count(from + row) * x.step + column;
    if (x.wide) {
        #pragma unroll 4
        for (int i = 0; i < ROWS / STEP; ++i, at += STEP * x.step) copy(tile + place<D>(row + i * STEP, column), at, row + i * STEP < end);
    } else {
        #pragma unroll 1
        for (; row < ROWS; row += STEP, at += STEP * x.step)
            #pragma unroll 1
            for (int k = 0; k < WIDE; ++k) tile[place<D>(row, column + k)] = row < end && column + k < x.width ? at[k] : Store(0);
    }
}

// Tiles of two arrays, N rows of both at a time; for tensor cores the next ones are on their way while these are worked on
template <int D, int N, int THREADS> struct Stream {
    static constexpr bool AHEAD = sizeof(Store) == 2;
    Store* tiles;
    Rows a, b;
    int at, end, turn;

    __device__ __forceinline__ Store* here() { return tiles + turn * 2 * N * D; }
    __device__ __forceinline__ void ask(int from) {
        fetch<D, N, THREADS>(here(), a, from);
        fetch<D, N, THREADS>(here() + N * D, b, from);
    }
    __device__ __forceinline__ Store* next() {
        Store* now = here();
        copied();
        __syncthreads();                                // and nobody needs the tiles before these
        if (AHEAD && at + N < end) turn ^= 1, ask(at + N);
        return now;
    }
    __device__ __forceinline__ bool more() {
        at += N;
        if (at >= end) return false;
        if (!AHEAD) {
            __syncthreads();
            ask(at);
        }
        return true;
    }
};

// Products of a warp's W rows. Each row is shared by LANES lanes: of a thread's R rows with C scores each, and E results each, row(i),
// column(j) and place_of(j) say which they are. This one is for numbers of 32 bits and more, which a thread multiplies by itself.
template <int D, int N, int W, int SIZE = sizeof(Store)> struct Products {
    static constexpr int LANES = 8, R = W / 4, C = N / 8, E = D / 8, ROOM = W * (N + 4);
    static __device__ __forceinline__ int row(int i) { return i * 4 + lane() / 8; }
    static __device__ __forceinline__ int column(int j) { return j * 8 + lane() % 8; }
    static __device__ __forceinline__ int place_of(int j) { return (j / WIDE * 8 + lane() % 8) * WIDE + j % WIDE; }

    struct Lying { const Store* tile; int width; };     // the warp's rows of a tile, of which so many numbers are not padding
    typedef Lying Held;                                 // registers are for sums here

    // s = rows · othersᵀ
    static __device__ __forceinline__ void scores(Real (&s)[R][C], const Lying& own, const Store* others) {
        for (int i = 0; i < R; ++i) for (int j = 0; j < C; ++j) s[i][j] = 0;
        for (int k = 0; k < own.width; k += WIDE) {
            Pack<WIDE> a[R];
            #pragma unroll
            for (int i = 0; i < R; ++i) a[i] = load<WIDE>(own.tile + place<D>(warp() * W + row(i), k));
            #pragma unroll
            for (int j = 0; j < C; ++j) {
                Pack<WIDE> b = load<WIDE>(others + place<D>(column(j), k));
                #pragma unroll
                for (int i = 0; i < R; ++i) for (int w = 0; w < WIDE; ++w) s[i][j] += Real(a[i].v[w]) * Real(b.v[w]);
            }
        }
    }

    // o += p · others. The lanes of a row hand each other their weights in `room`.
    static __device__ __forceinline__ void spread(Real (&o)[R][E], const Real (&p)[R][C], const Store* others, Real* room) {
        room += warp() * ROOM;
        for (int i = 0; i < R; ++i) for (int j = 0; j < C; ++j) room[row(i) * (N + 4) + column(j)] = p[i][j];
        __syncwarp();
        #pragma unroll 4
        for (int k = 0; k < N; ++k) {
            Real a[R];
            #pragma unroll
            for (int i = 0; i < R; ++i) a[i] = room[row(i) * (N + 4) + k];
            #pragma unroll
            for (int j = 0; j < E; j += WIDE) {
                Pack<WIDE> b = load<WIDE>(others + place<D>(k, place_of(j)));
                #pragma unroll
                for (int i = 0; i < R; ++i) for (int w = 0; w < WIDE; ++w) o[i][j + w] += a[i] * Real(b.v[w]);
            }
        }
        __syncwarp();
    }

    // A row of the result, as far as it is wide
    static __device__ __forceinline__ void put(Store* to, const Real (&o)[E], Real factor, int width) {
        #pragma unroll
        for (int j = 0; j < E; ++j) if (place_of(j) < width) to[place_of(j)] = o[j] * factor;
    }
};

// Tensor cores: numbers of 16 bits, float32 sums; weights are rounded to 16 bits before they are multiplied.
template <int D, int N, int W> struct Products<D, N, W, 2> {
    static constexpr int LANES = 4, R = W / 8, C = N / 4, E = D / 4, ROOM = 0;
    static __device__ __forceinline__ int row(int i) { return i * 8 + lane() / 4; }
    static __device__ __forceinline__ int column(int j) { return j / 2 * 8 + lane() % 4 * 2 + j % 2; }
    static __device__ __forceinline__ int place_of(int j) { return column(j); }

    struct Part { unsigned a[W / 16][4]; };             // 16 columns of a warp's rows
    struct Lying {
        const Store* tile;
        int width;
        __device__ __forceinline__ Part part(int k) const {
            Part p;
            #pragma unroll
            for (int m = 0; m < W / 16; ++m) matrices(p.a[m], tile + place<D>(warp() * W + m * 16 + lane() % 16, lane() / 16 * 8 ^ k * 16));
            return p;
        }
    };
    struct Held {                                       // the same in registers, for rows that meet many others
        Part parts[D / 16];
        __device__ __forceinline__ Held(const Lying& from) {
            #pragma unroll
            for (int k = 0; k < D / 16; ++k) parts[k] = from.part(k);
        }
        __device__ __forceinline__ const Part& part(int k) const { return parts[k]; }
    };

    template <class Own> static __device__ __forceinline__ void scores(Real (&s)[R][C], const Own& own, const Store* others) {
        #pragma unroll
        for (int i = 0; i < R; ++i)
            #pragma unroll
            for (int j = 0; j < C; ++j) s[i][j] = 0;
        #pragma unroll
        for (int k = 0; k < D / 16; ++k) {
            Part p = own.part(k);
            #pragma unroll
            for (int n = 0; n < N / 16; ++n) {
                unsigned b[4];
                matrices(b, others + place<D>(n * 16 + lane() / 16 * 8 + lane() % 8, lane() / 8 % 2 * 8 ^ k * 16));
                step(s, p, n, b);
            }
        }
    }

    static __device__ __forceinline__ void spread(Real (&o)[R][E], const Real (&p)[R][C], const Store* others, Real*) {
        #pragma unroll
        for (int k = 0; k < N / 16; ++k) {
            Part part;                                  // what a product leaves a thread is what the next one wants of it
            #pragma unroll
            for (int m = 0; m < W / 16; ++m)
                #pragma unroll
                for (int r = 0; r < 4; ++r)
                    part.a[m][r] = two(p[m * 2 + r % 2][k * 4 + r / 2 * 2], p[m * 2 + r % 2][k * 4 + r / 2 * 2 + 1], Store());
            #pragma unroll
            for (int n = 0; n < D / 16; ++n) {
                unsigned b[4];
                matrices_turned(b, others + place<D>(k * 16 + lane() % 16, lane() / 16 * 8 ^ n * 16));
                step(o, part, n, b);
            }
        }
    }

    // 16 of a warp's columns, for each 16 of its rows
    template <int COLUMNS>
    static __device__ __forceinline__ void step(Real (&c)[R][COLUMNS], const Part& part, int n, const unsigned (&b)[4]) {
        #pragma unroll
        for (int m = 0; m < W / 16; ++m)
            #pragma unroll
            for (int h = 0; h < 2; ++h)
                mma(c[m * 2][n * 4 + h * 2], c[m * 2][n * 4 + h * 2 + 1], c[m * 2 + 1][n * 4 + h * 2], c[m * 2 + 1][n * 4 + h * 2 + 1],
                    part.a[m], b[h * 2], b[h * 2 + 1], Store());
    }

    static __device__ __forceinline__ void put(Store* to, const Real (&o)[E], Real factor, int width) {
        #pragma unroll
        for (int j = 0; j < E; j += 2)
            if (width % 2 == 0 && place_of(j) < width)
                *reinterpret_cast<unsigned*>(to + place_of(j)) = two(o[j] * factor, o[j + 1] * factor, Store());
            else for (int k = j; k < j + 2; ++k) if (place_of(k) < width) to[place_of(k)] = o[k] * factor;
    }
};

// A block's own queries are kept in registers; but for compute capability 10 and 12 compilers have none left over
#if __CUDA_ARCH__ >= 1000
#define OWN Lying
#else
#define OWN Held
#endif

// Greatest number, and sum, over the lanes that share a row
template <int LANES> __device__ __forceinline__ Real row_max(Real v) {
    for (int m = LANES / 2; m > 0; m /= 2) v = fmax(v, __shfl_xor_sync(ALL_LANES, v, m));
    return v;
}

template <int LANES> __device__ __forceinline__ Real row_sum(Real v) {
    for (int m = LANES / 2; m > 0; m /= 2) v += __shfl_xor_sync(ALL_LANES, v, m);
    return v;
}

// Scores of keys that are not there or not seen become −∞: of a warp's queries from `first` on with N keys from `at` on
template <int N, class P> __device__ __forceinline__ void hide(Real (&s)[P::R][P::C], int first, int at, int queries, int keys,
                                                               bool causal) {
    int seen = causal ? keys - queries + first + 1 - at : N, there = keys - at;        // by the first query, from `at` on
    if (seen >= N && there >= N) return;
    #pragma unroll
    for (int i = 0; i < P::R; ++i) {
        int left = causal && seen + P::row(i) < there ? seen + P::row(i) : there;
        #pragma unroll
        for (int j = 0; j < P::C; ++j) if (P::column(j) >= left) s[i][j] = -INFINITE;
    }
}

// How tiles are dealt out: N rows in a tile of the stream, `rows` that a block keeps, W of them for each warp
template <int D, int TILES> struct Dealt {
    static constexpr int N = 8192 / (D * int(sizeof(Store))), ROWS = TILES * N, LEAST = sizeof(Store) == 2 ? 16 : 4;
    static constexpr int WARPS = ROWS / LEAST < 4 ? ROWS / LEAST : 4, W = ROWS / WARPS, THREADS = 32 * WARPS;
};

// out = softmax(s q kᵀ) v and lse = log Σ exp(s q kᵀ) for the queries of a block   (attention.1, .11–12)
template <int D> __device__ __forceinline__ void attend(Store* tiles, const Rows& q, const Rows& k, const Rows& v, const Results& out,
                                                        Real* lse, int first, bool causal, Real s) {
    typedef Dealt<D, 2> Deal;
    typedef Products<D, Deal::N, Deal::W> P;
    int all = k.length - q.length + first + Deal::ROWS;    // keys that the last query sees
    Stream<D, Deal::N, Deal::THREADS> stream{tiles + Deal::ROWS * D, k, v, 0, causal && all < k.length ? all : k.length, 0};
    Real* room = reinterpret_cast<Real*>(tiles + (Deal::ROWS + 2 * Deal::N) * D);
    Real o[P::R][P::E], top[P::R], sum[P::R];
    #pragma unroll
    for (int i = 0; i < P::R; ++i) {
        top[i] = -INFINITE, sum[i] = 0;
        #pragma unroll
        for (int j = 0; j < P::E; ++j) o[i][j] = 0;
    }
    fetch<D, Deal::ROWS, Deal::THREADS>(tiles, q, first);
    stream.ask(0);
    copied();
    __syncthreads();
    typename P::OWN own(typename P::Lying{tiles, q.width});
    s *= LOG2_E;
    do {
        const Store* keys = stream.next();
        Real p[P::R][P::C];
        P::scores(p, own, keys);
        hide<Deal::N, P>(p, first + warp() * Deal::W, stream.at, q.length, k.length, causal);
        #pragma unroll
        for (int i = 0; i < P::R; ++i) {
            Real most = p[i][0];
            #pragma unroll
            for (int j = 1; j < P::C; ++j) most = fmax(most, p[i][j]);
            most = fmax(top[i], row_max<P::LANES>(most) * s);
            Real base = most == -INFINITE ? Real(0) : most, less = power(top[i] - base);
            top[i] = most;
            sum[i] *= less;
            #pragma unroll
            for (int j = 0; j < P::C; ++j) p[i][j] = power(p[i][j] * s - base), sum[i] += p[i][j];
            #pragma unroll
            for (int j = 0; j < P::E; ++j) o[i][j] *= less;
        }
        P::spread(o, p, keys + Deal::N * D, room);
    } while (stream.more());
    #pragma unroll
    for (int i = 0; i < P::R; ++i) {
        int query = first + warp() * Deal::W + P::row(i);
        sum[i] = row_sum<P::LANES>(sum[i]);
        if (query >= q.length) continue;
        P::put(out.row(query), o[i], Real(1) / sum[i], v.width);
        if (lane() % P::LANES == 0) lse[query] = top[i] * LN_2 + log(sum[i]);
    }
}

// What the way back wants of a query: log₂ Σ exp(s q kᵀ) and rowsum(g ⊙ out); of one that is not there, ∞ and 0
struct Statistics { Real top, along; };

// ∂q = s ∂S k with P = exp(s q kᵀ − lse) and ∂S = P ⊙ (g vᵀ − along)   (attention.5–6)
template <int D> __device__ __forceinline__ void attend_dq(Store* tiles, const Rows& g, const Rows& q, const Rows& k, const Rows& v,
                                                           const Statistics* stats, const Results& dq, int first, bool causal, Real s) {
    typedef Dealt<D, 1> Deal;
    typedef Products<D, Deal::N, Deal::W> P;
    int all = k.length - q.length + first + Deal::ROWS;
    Stream<D, Deal::N, Deal::THREADS> stream{tiles + 2 * Deal::N * D, k, v, 0, causal && all < k.length ? all : k.length, 0};
    Real* room = reinterpret_cast<Real*>(tiles + 4 * Deal::N * D);
    Real o[P::R][P::E];
    Statistics stat[P::R];
    #pragma unroll
    for (int i = 0; i < P::R; ++i) {
        stat[i] = stats[first + warp() * Deal::W + P::row(i)];
        #pragma unroll
        for (int j = 0; j < P::E; ++j) o[i][j] = 0;
    }
    fetch<D, Deal::N, Deal::THREADS>(tiles, q, first);
    fetch<D, Deal::N, Deal::THREADS>(tiles + Deal::N * D, g, first);
    stream.ask(0);
    do {
        const Store* keys = stream.next();
        Real p[P::R][P::C], dp[P::R][P::C];
        P::scores(p, typename P::Lying{tiles, q.width}, keys);
        P::scores(dp, typename P::Lying{tiles + Deal::N * D, v.width}, keys + Deal::N * D);
        hide<Deal::N, P>(p, first + warp() * Deal::W, stream.at, q.length, k.length, causal);
        #pragma unroll
        for (int i = 0; i < P::R; ++i)
            #pragma unroll
            for (int j = 0; j < P::C; ++j) p[i][j] = power(p[i][j] * (s * LOG2_E) - stat[i].top) * (dp[i][j] - stat[i].along);
        P::spread(o, p, keys, room);
    } while (stream.more());
    #pragma unroll
    for (int i = 0; i < P::R; ++i) {
        int query = first + warp() * Deal::W + P::row(i);
        if (query < q.length) P::put(dq.row(query), o[i], s, q.width);
    }
}

// ∂k = s ∂Sᵀ q and ∂v = Pᵀ g for the keys of a block   (attention.4–7)
template <int D> __device__ __forceinline__ void attend_dk_dv(Store* tiles, const Rows& g, const Rows& q, const Rows& k, const Rows& v,
                                                              const Statistics* stats, const Results& dk, const Results& dv,
                                                              int first, bool causal, Real s) {
    typedef Dealt<D, 1> Deal;
    typedef Products<D, Deal::N, Deal::W> P;
    int before = k.length - q.length, start = causal && first > before ? (first - before) / Deal::N * Deal::N : 0;
    Stream<D, Deal::N, Deal::THREADS> stream{tiles + 2 * Deal::N * D, q, g, start, q.length, 0};
    Real* room = reinterpret_cast<Real*>(tiles + 4 * Deal::N * D);
    Real ok[P::R][P::E], ov[P::R][P::E];
    #pragma unroll
    for (int i = 0; i < P::R; ++i)
        #pragma unroll
        for (int j = 0; j < P::E; ++j) ok[i][j] = ov[i][j] = 0;
    fetch<D, Deal::N, Deal::THREADS>(tiles, k, first);
    fetch<D, Deal::N, Deal::THREADS>(tiles + Deal::N * D, v, first);
    stream.ask(start);
    do {
        const Store* queries = stream.next();
        Real p[P::R][P::C], dp[P::R][P::C];
        P::scores(p, typename P::Lying{tiles, k.width}, queries);
        const Statistics* stat = stats + stream.at;
        #pragma unroll
        for (int j = 0; j < P::C; ++j)
            #pragma unroll
            for (int i = 0; i < P::R; ++i) p[i][j] = power(p[i][j] * (s * LOG2_E) - stat[P::column(j)].top);
        int ahead = causal ? first + warp() * Deal::W - before - stream.at : -D;       // of the last key that the first query sees
        if (ahead > -Deal::W) {
            #pragma unroll
            for (int i = 0; i < P::R; ++i)
                #pragma unroll
                for (int j = 0; j < P::C; ++j) if (ahead + P::row(i) > P::column(j)) p[i][j] = 0;
        }
        P::spread(ov, p, queries + Deal::N * D, room);
        P::scores(dp, typename P::Lying{tiles + Deal::N * D, v.width}, queries + Deal::N * D);
        #pragma unroll
        for (int j = 0; j < P::C; ++j) {
            Real less = stat[P::column(j)].along;
            #pragma unroll
            for (int i = 0; i < P::R; ++i) p[i][j] *= dp[i][j] - less;
        }
        P::spread(ok, p, queries, room);
    } while (stream.more());
    #pragma unroll
    for (int i = 0; i < P::R; ++i) {
        int key = first + warp() * Deal::W + P::row(i);
        if (key >= k.length) continue;
        P::put(dk.row(key), ok[i], s, k.width);
        P::put(dv.row(key), ov[i], Real(1), v.width);
    }
}

// For each head size one kernel. Of each array there are the steps from one batch, head and row to the next; out, ∂q, ∂k and ∂v are
// [batch, row, head, number] in memory. Late queries and early keys have most to do and come first.
// What the kernels have to say of their arguments
#define ROWS_OF(x, length, width) rows_of(x, x##_batch, x##_head, x##_row, length, width, n, int(heads))
#define OUT(x, length, width) Results{x, n, int(heads), int(length), int(width)}
#define STATS reinterpret_cast<const Statistics*>(stats) + Count(n) * room
#define BLOCK(D, TILES, length) int size = Dealt<D, TILES>::ROWS, blocks = int((length + size - 1) / size), n = blockIdx.x / blocks

template <int N> __device__ __forceinline__ Real part_of_product(const Store* a, const Store* b, int width) {
    Real sum = 0;
    for (int i = lane() % 8 * N; i < width; i += 8 * N) {
        Pack<N> x = load<N>(a + i), y = load<N>(b + i);
        for (int k = 0; k < N; ++k) sum += Real(x.v[k]) * Real(y.v[k]);
    }
    return sum;
}

// 8 lanes for each query, `room` queries of memory for each head   (attention.5)
KERNEL attention_statistics(const Strided* g, const Strided* out, const Real* lse, Real* stats, Count g_batch, Count g_head, Count g_row,
                            Count out_batch, Count out_head, Count out_row, Count heads, Count queries, Count e, Count room, Count size) {
    Count place = (Count(blockIdx.x) * blockDim.x + threadIdx.x) / 8;
    int n = int(place / room), query = int(place % room);
    Statistics stat{INFINITE, 0};
    if (place < size && query < queries) {
        Rows a = ROWS_OF(g, queries, e), b = ROWS_OF(out, queries, e);
        const Store *x = a.first + query * a.step, *y = b.first + query * b.step;
        stat.along = a.wide && b.wide ? part_of_product<WIDE>(x, y, a.width) : part_of_product<1>(x, y, a.width);
        stat.top = lse[Count(n) * queries + query] * LOG2_E;
    }
    stat.along = row_sum<8>(stat.along);
    if (place < size && lane() % 8 == 0) reinterpret_cast<Statistics*>(stats)[place] = stat;
}

KERNEL flash_attention_64(const Strided* q, const Strided* k, const Strided* v, Store* out, Real* lse, Count q_batch, Count q_head,
                          Count q_row, Count k_batch, Count k_head, Count k_row, Count v_batch, Count v_head, Count v_row, Count heads,
                          Count queries, Count keys, Count d, Count e, Count causal, double s) {
    SHARED(Store, tiles);
    BLOCK(64, 2, queries), first = (blocks - 1 - blockIdx.x % blocks) * size;
    attend<64>(tiles, ROWS_OF(q, queries, d), ROWS_OF(k, keys, d), ROWS_OF(v, keys, e), OUT(out, queries, e), lse + Count(n) * queries,
               first, causal != 0, Real(s));
}

KERNEL flash_attention_128(const Strided* q, const Strided* k, const Strided* v, Store* out, Real* lse, Count q_batch, Count q_head,
                           Count q_row, Count k_batch, Count k_head, Count k_row, Count v_batch, Count v_head, Count v_row, Count heads,
                           Count queries, Count keys, Count d, Count e, Count causal, double s) {
    SHARED(Store, tiles);
    BLOCK(128, 2, queries), first = (blocks - 1 - blockIdx.x % blocks) * size;
    attend<128>(tiles, ROWS_OF(q, queries, d), ROWS_OF(k, keys, d), ROWS_OF(v, keys, e), OUT(out, queries, e), lse + Count(n) * queries,
                first, causal != 0, Real(s));
}

KERNEL __launch_bounds__(128, 3) flash_attention_dq_64(const Strided* g, const Strided* q, const Strided* k, const Strided* v,
        const Real* stats, Store* dq, Count g_batch, Count g_head, Count g_row, Count q_batch, Count q_head, Count q_row, Count k_batch,
        Count k_head, Count k_row, Count v_batch, Count v_head, Count v_row, Count heads, Count queries, Count keys, Count room, Count d,
        Count e, Count causal, double s) {
    SHARED(Store, tiles);
    BLOCK(64, 1, queries), first = (blocks - 1 - blockIdx.x % blocks) * size;
    attend_dq<64>(tiles, ROWS_OF(g, queries, e), ROWS_OF(q, queries, d), ROWS_OF(k, keys, d), ROWS_OF(v, keys, e), STATS,
                  OUT(dq, queries, d), first, causal != 0, Real(s));
}

KERNEL flash_attention_dq_128(const Strided* g, const Strided* q, const Strided* k, const Strided* v, const Real* stats, Store* dq,
                              Count g_batch, Count g_head, Count g_row, Count q_batch, Count q_head, Count q_row, Count k_batch,
                              Count k_head, Count k_row, Count v_batch, Count v_head, Count v_row, Count heads, Count queries, Count keys,
                              Count room, Count d, Count e, Count causal, double s) {
    SHARED(Store, tiles);
    BLOCK(128, 1, queries), first = (blocks - 1 - blockIdx.x % blocks) * size;
    attend_dq<128>(tiles, ROWS_OF(g, queries, e), ROWS_OF(q, queries, d), ROWS_OF(k, keys, d), ROWS_OF(v, keys, e), STATS,
                   OUT(dq, queries, d), first, causal != 0, Real(s));
}

KERNEL flash_attention_dk_dv_64(const Strided* g, const Strided* q, const Strided* k, const Strided* v, const Real* stats, Store* dk,
                                Store* dv, Count g_batch, Count g_head, Count g_row, Count q_batch, Count q_head, Count q_row,
                                Count k_batch, Count k_head, Count k_row, Count v_batch, Count v_head, Count v_row, Count heads,
                                Count queries, Count keys, Count room, Count d, Count e, Count causal, double s) {
    SHARED(Store, tiles);
    BLOCK(64, 1, keys), first = blockIdx.x % blocks * size;
    attend_dk_dv<64>(tiles, ROWS_OF(g, queries, e), ROWS_OF(q, queries, d), ROWS_OF(k, keys, d), ROWS_OF(v, keys, e), STATS,
                     OUT(dk, keys, d), OUT(dv, keys, e), first, causal != 0, Real(s));
}

KERNEL flash_attention_dk_dv_128(const Strided* g, const Strided* q, const Strided* k, const Strided* v, const Real* stats, Store* dk,
                                 Store* dv, Count g_batch, Count g_head, Count g_row, Count q_batch, Count q_head, Count q_row,
                                 Count k_batch, Count k_head, Count k_row, Count v_batch, Count v_head, Count v_row, Count heads,
                                 Count queries, Count keys, Count room, Count d, Count e, Count causal, double s) {
    SHARED(Store, tiles);
    BLOCK(128, 1, keys), first = blockIdx.x % blocks * size;
    attend_dk_dv<128>(tiles, ROWS_OF(g, queries, e), ROWS_OF(q, queries, d), ROWS_OF(k, keys, d), ROWS_OF(v, keys, e), STATS,
                      OUT(dk, keys, d), OUT(dv, keys, e), first, causal != 0, Real(s));
}
