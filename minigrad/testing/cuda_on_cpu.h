// CUDA on a CPU: what kernels.cu needs to be compiled by g++ and run, one block after the other, each thread of a block as a fiber.
//
// A fiber runs until it waits for others, at a barrier or in a shuffle; then the next one has its turn. A warp goes as far as it can
// before another does anything, and shared memory starts as NaN: so a number that is read or written on the wrong side of a missing
// barrier makes another result. Not modelled: speed, caches, the order of atomics.
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
#define SHARED(T, name) T* name = reinterpret_cast<T*>(cpu::shared)

using std::exp; using std::fmax; using std::log; using std::sqrt; using std::tanh;

inline unsigned __float_as_uint(float f) { unsigned u; std::memcpy(&u, &f, 4); return u; }
inline float __uint_as_float(unsigned u) { float f; std::memcpy(&f, &u, 4); return f; }

// What the device does in one instruction; exact, for a float holds every half.
inline float from_half(unsigned short bits) {
    int exponent = bits >> 10 & 31, mantissa = bits & 1023;
    float size = std::ldexp(float(exponent ? mantissa + 1024 : mantissa), (exponent ? exponent : 1) - 25);
    if (exponent == 31) size = mantissa ? NAN : INFINITY;
    return bits >> 15 ? -size : size;
}

inline unsigned short to_half(float f) {                // to nearest, ties to even
    unsigned short sign = __float_as_uint(f) >> 31 << 15;
    float size = std::fabs(f);
    if (std::isnan(f)) return 0x7fff;
    if (size == 0.0f || size >= 65520.0f) return sign | (size == 0.0f ? 0 : 0x7c00);
    int exponent;
    std::frexp(size, &exponent);                        // size = [½, 1) 2^exponent, so a unit of its half is 2^(exponent − 11)
    int unit = exponent < -13 ? -24 : exponent - 11;
    int whole = int(std::nearbyint(std::ldexp(size, -unit)));           // up to 2048, which carries into the exponent as it should
    return sign | (((unit + 24) << 10) + whole);
}

struct dim3 { unsigned x = 1, y = 1, z = 1; };
static dim3 gridDim, blockDim, blockIdx;

namespace cpu {

struct Barrier { int waiting = 0; unsigned turn = 0; };
struct Fiber { jmp_buf here; std::vector<char> stack; dim3 index; bool done = false; };

static std::vector<Fiber> fibers;
static std::function<void()> kernel;
static jmp_buf home;
static int current, alive, alive_in_warp[32];
static bool moved;                                      // whether anybody got further since this was made false
static Barrier block_barrier, warp_barrier[32];
static double exchanged[32][32];                        // what the lanes of each warp hand to one another
static char* shared;

inline int warp() { return current / 32; }
inline int lane() { return current % 32; }

// From this fiber to whoever gives the next one its turn. By jumps, for swapcontext asks the system each time.
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
    for (current = int(fibers.size()), fibers.resize(std::max(current, threads)); current < threads; ++current) {
        fibers[current].stack.resize(64 << 10);
        ucontext_t context;
        getcontext(&context);
        context.uc_stack.ss_sp = fibers[current].stack.data();
        context.uc_stack.ss_size = fibers[current].stack.size();
        makecontext(&context, run_fiber, 0);
        if (!_setjmp(home)) setcontext(&context);       // up to its first turn
    }
}

// Run `body` as every thread of the grid. 0; 1 where threads of a block wait for each other for ever; 2 for an impossible launch.
static int launch(dim3 grid, dim3 block, long long bytes, std::function<void()> body) {
    int threads = block.x * block.y * block.z;
    if (threads < 1 || threads > 1024 || bytes > 48 * 1024) return 2;
    std::vector<double> memory(std::max((bytes + 7) / 8, 1LL));         // and not one more: an address sanitizer sees what is beyond
    shared = reinterpret_cast<char*>(memory.data());
    gridDim = grid, blockDim = block, kernel = body;
    make_fibers(threads);
    for (unsigned z = 0; z < grid.z; ++z) for (unsigned y = 0; y < grid.y; ++y) for (unsigned x = 0; x < grid.x; ++x) {
        blockIdx = dim3{x, y, z};
        std::memset(memory.data(), 0xff, memory.size() * sizeof(double));      // every float and every double of it is NaN
        block_barrier = Barrier();
        alive = threads;
        for (int w = 0; w < 32; ++w) warp_barrier[w] = Barrier(), alive_in_warp[w] = 0;
        for (int i = 0; i < threads; ++i) {
            Fiber& f = fibers[i];
            f.done = false;
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
    return 0;
}

// What lane `from` of this thread's warp holds; a lane that has returned gives what it gave last, as on a GPU nothing can be relied on.
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
inline void __syncwarp(unsigned = ~0u) { cpu::wait(cpu::warp_barrier[cpu::warp()], cpu::alive_in_warp[cpu::warp()]); }
template <class T> T __shfl_xor_sync(unsigned, T value, int mask) { return cpu::exchange(value, cpu::lane() ^ mask); }
template <class T> T __shfl_sync(unsigned, T value, int from) { return cpu::exchange(value, from); }
