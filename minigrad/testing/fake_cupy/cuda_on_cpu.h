// CUDA on a CPU: what kernels.cu and attention.cu need to be compiled by g++ and run, one block
// after the other, each thread of a block as a fiber.
//
// A fiber runs until it waits for others, at a barrier or in a shuffle; then the next one has its
// turn. A warp goes as far as it can before another does anything, and shared memory starts as NaN:
// so a number that is read or written on the wrong side of a missing barrier makes another result.
// Not modelled: speed, caches, the order of atomics.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <setjmp.h>
#include <ucontext.h>
#include <vector>

#define __global__
#define __device__
#define __forceinline__ inline
#define __restrict__
#define __launch_bounds__(...)
#define threadIdx (cpu::fibers[cpu::current].index)
#define CHECK_PLACE(p, bytes) cpu::check_place(p, bytes)
#define SHARED(T, name) T* name = reinterpret_cast<T*>(cpu::shared)

using std::erf; using std::exp; using std::exp2; using std::fmax; using std::log; using std::sqrt;
using std::tanh;

inline unsigned __float_as_uint(float f) { unsigned u; std::memcpy(&u, &f, 4); return u; }
inline long long __double_as_longlong(double f) { long long u; std::memcpy(&u, &f, 8); return u; }
inline float __uint_as_float(unsigned u) { float f; std::memcpy(&f, &u, 4); return f; }

// What the device does in one instruction; exact, for a float holds every half.
inline float from_half(unsigned short bits) {
    int exponent = bits >> 10 & 31, mantissa = bits & 1023;
    float whole = float(exponent ? mantissa + 1024 : mantissa);
    float size = std::ldexp(whole, (exponent ? exponent : 1) - 25);
    if (exponent == 31) size = mantissa ? NAN : INFINITY;
    return bits >> 15 ? -size : size;
}

inline unsigned short to_half(float f) {                // to nearest, ties to even
    unsigned short sign = __float_as_uint(f) >> 31 << 15;
    float size = std::fabs(f);
    if (std::isnan(f)) return 0x7fff;
    if (size == 0.0f || size >= 65520.0f) return sign | (size == 0.0f ? 0 : 0x7c00);
    int exponent;
    // size = [½, 1) 2^exponent, so a unit of its half is 2^(exponent − 11)
    std::frexp(size, &exponent);
    int unit = exponent < -13 ? -24 : exponent - 11;
    // up to 2048, which carries into the exponent as it should
    int whole = int(std::nearbyint(std::ldexp(size, -unit)));
    return sign | (((unit + 24) << 10) + whole);
}

struct dim3 { unsigned x = 1, y = 1, z = 1; };
static dim3 gridDim, blockDim, blockIdx;

namespace cpu {

struct Barrier { int waiting = 0; unsigned turn = 0; };
struct Copy { void* to; const void* from; bool there; };
struct Fiber {
    jmp_buf here;
    std::vector<char> stack;
    dim3 index;
    bool done = false;
    std::vector<Copy> copies;
};

static std::vector<Fiber> fibers;
static std::function<void()> kernel;
static jmp_buf home;
static int current, alive, alive_in_warp[32];
static bool moved;                      // whether anybody got further since this was made false
static bool misplaced;                  // whether a piece of several numbers began where none may
static Barrier block_barrier, warp_barrier[32];
static double exchanged[32][32];        // what the lanes of each warp hand to one another
static char* shared;

inline int warp() { return current / 32; }
inline int lane() { return current % 32; }

// From this fiber to whoever gives the next one its turn. By jumps, for swapcontext asks the system
// each time.
inline void give_way() {
    if (!_setjmp(fibers[current].here)) _longjmp(home, 1);
}

// Wait until all threads that have not returned are here too; `living` counts them.
inline void wait(Barrier& barrier, const int& living) {
    unsigned turn = barrier.turn;
    ++barrier.waiting;
    moved = true;
    while (barrier.turn == turn) {
        if (barrier.waiting >= living) {
            barrier.waiting = 0;
            ++barrier.turn;
            moved = true;
            return;
        }
        give_way();
    }
}

static void run_fiber() {                               // a thread of one block after the other
    for (;;) {
        give_way();
        kernel();
        fibers[current].done = moved = true;
        --alive;
        --alive_in_warp[warp()];
    }
}

static void make_fibers(int threads) {
    current = int(fibers.size());
    fibers.resize(std::max(current, threads));
    for (; current < threads; ++current) {
        fibers[current].stack.resize(64 << 10);
        ucontext_t context;
        getcontext(&context);
        context.uc_stack.ss_sp = fibers[current].stack.data();
        context.uc_stack.ss_size = fibers[current].stack.size();
        makecontext(&context, run_fiber, 0);
        if (!_setjmp(home)) setcontext(&context);       // up to its first turn
    }
}

// Run `body` as every thread of the grid. 0; 1 where threads of a block wait for each other for
// ever; 2 for an impossible launch; 3 where numbers were asked for in one piece at an address that
// is not a multiple of its bytes.
static int launch(dim3 grid, dim3 block, long long bytes, std::function<void()> body) {
    int threads = block.x * block.y * block.z;
    if (threads < 1 || threads > 1024 || bytes > 48 * 1024) return 2;
    // as long as was asked for: an address sanitizer sees what is beyond
    std::vector<double> memory(std::max((bytes + 7) / 8, 1LL));
    shared = reinterpret_cast<char*>(memory.data());
    gridDim = grid, blockDim = block, kernel = body;
    misplaced = false;
    make_fibers(threads);
    for (unsigned z = 0; z < grid.z; ++z)
    for (unsigned y = 0; y < grid.y; ++y)
    for (unsigned x = 0; x < grid.x; ++x) {
        blockIdx = dim3{x, y, z};
        // every float and every double of it is NaN
        std::memset(memory.data(), 0xff, memory.size() * sizeof(double));
        block_barrier = Barrier();
        alive = threads;
        for (int w = 0; w < 32; ++w) warp_barrier[w] = Barrier(), alive_in_warp[w] = 0;
        for (int i = 0; i < threads; ++i) {
            Fiber& f = fibers[i];
            f.done = false;
            f.copies.clear();
            f.index = dim3{i % block.x, i / block.x % block.y, i / (block.x * block.y)};
            ++alive_in_warp[i / 32];
        }
        while (alive > 0) {
            bool any = false;
            for (int first = 0; first < threads; first += 32) do {
                moved = false;
                for (int i = first; i < first + 32 && i < threads; ++i) if (!fibers[i].done) {
                    current = i;
                    if (!_setjmp(home)) _longjmp(fibers[i].here, 1);
                }
                any = any || moved;
            } while (moved);
            if (!any) return 1;
        }
    }
    return misplaced ? 3 : 0;
}

inline void check_place(const void* p, int bytes) {
    misplaced = misplaced || reinterpret_cast<unsigned long long>(p) % bytes;
}

// What lane `from` of this thread's warp holds; a lane that has returned gives what it gave last,
// as on a GPU nothing can be relied on.
template <class T> T exchange(T value, int from) {
    std::memcpy(&exchanged[warp()][lane()], &value, sizeof(T));
    wait(warp_barrier[warp()], alive_in_warp[warp()]);
    T got;
    std::memcpy(&got, &exchanged[warp()][from], sizeof(T));
    wait(warp_barrier[warp()], alive_in_warp[warp()]);
    return got;
}

}  // namespace cpu

inline void __syncthreads() { cpu::wait(cpu::block_barrier, cpu::alive); }
inline void __syncwarp(unsigned = ~0u) {
    cpu::wait(cpu::warp_barrier[cpu::warp()], cpu::alive_in_warp[cpu::warp()]);
}
inline void __threadfence() {}          // one block runs after the other, and one fiber at a time
template <class T> T atomicAdd(T* sum, T value) { T before = *sum; *sum += value; return before; }
template <class T> T __shfl_xor_sync(unsigned, T value, int mask) {
    return cpu::exchange(value, cpu::lane() ^ mask);
}
template <class T> T __shfl_sync(unsigned, T value, int from) { return cpu::exchange(value, from); }

// ── copies that arrive by themselves, and tensor cores: a lane's share is that of the PTX ISA ──
// 16 bytes that were asked for are NaN until they are waited for: so forgetting that is seen, and
// so is asking while somebody still needs what was there.
inline void copy(void* to, const void* from, bool there) {
    cpu::check_place(to, 16);
    cpu::check_place(there ? from : to, 16);
    std::memset(to, 0xff, 16);
    cpu::fibers[cpu::current].copies.push_back({to, from, there});
}

inline void copied() {
    for (const cpu::Copy& c : cpu::fibers[cpu::current].copies) {
        if (c.there) std::memcpy(c.to, c.from, 16);
        else std::memset(c.to, 0, 16);
    }
    cpu::fibers[cpu::current].copies.clear();
}

namespace cpu {

// the rows that the lanes of each warp point at, and the lanes' shares of the factors of a product:
// 8 numbers of a, 4 of b
static const unsigned short* asked[32][32];
static float dealt[32][32][12];

inline void read_matrices(unsigned (&r)[4], const void* row, bool turned) {
    check_place(row, 16);
    asked[warp()][lane()] = static_cast<const unsigned short*>(row);
    wait(warp_barrier[warp()], alive_in_warp[warp()]);
    for (int m = 0; m < 4; ++m) {
        const unsigned short** rows = asked[warp()] + 8 * m;
        int i = lane() / 4, j = lane() % 4 * 2;
        r[m] = turned ? rows[j][i] | unsigned(rows[j + 1][i]) << 16
                      : rows[i][j] | unsigned(rows[i][j + 1]) << 16;
    }
    wait(warp_barrier[warp()], alive_in_warp[warp()]);
}

}  // namespace cpu

inline void matrices(unsigned (&r)[4], const void* row) { cpu::read_matrices(r, row, false); }
inline void matrices_turned(unsigned (&r)[4], const void* row) { cpu::read_matrices(r, row, true); }

template <class T> unsigned two(float first, float second, T) {
    return T(first).bits | unsigned(T(second).bits) << 16;
}

// Of a [16, 16] lane i holds rows i / 4 and i / 4 + 8, columns 2 (i % 4) and the next one, then the
// same 8 columns on; of b [16, 8] those as rows of column i / 4; of c [16, 8] the rows of a,
// columns 2 (i % 4) and the next one.
template <class T>
void mma(float& c0, float& c1, float& c2, float& c3, const unsigned (&a)[4], unsigned b0,
         unsigned b1, T) {
    float (*all)[12] = cpu::dealt[cpu::warp()], *own = all[cpu::lane()];
    unsigned words[6] = {a[0], a[1], a[2], a[3], b0, b1};
    for (int i = 0; i < 12; ++i) {
        T number;
        number.bits = (unsigned short)(words[i / 2] >> i % 2 * 16);
        own[i] = number;
    }
    cpu::wait(cpu::warp_barrier[cpu::warp()], cpu::alive_in_warp[cpu::warp()]);
    float* c[2][2] = {{&c0, &c1}, {&c2, &c3}};
    int group = cpu::lane() / 4, next = cpu::lane() % 4;
    for (int i = 0; i < 2; ++i) for (int j = 0; j < 2; ++j) {
        const float (*column)[12] = all + (2 * next + j) * 4;
        float sum = *c[i][j];
        for (int k = 0; k < 16; ++k) {
            int pair = k % 8 / 2;
            const float* row = all[group * 4 + pair];
            sum += row[k / 8 * 4 + i * 2 + k % 2] * column[pair][8 + k / 8 * 2 + k % 2];
        }
        *c[i][j] = sum;
    }
    cpu::wait(cpu::warp_barrier[cpu::warp()], cpu::alive_in_warp[cpu::warp()]);
}
