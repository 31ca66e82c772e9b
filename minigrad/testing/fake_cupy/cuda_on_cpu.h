// CUDA's names for g++: what our kernels are compiled against to run on a CPU. `machine.h` runs them, and judges each access of memory.
#pragma once
#include <cmath>
#include <cstring>

#define __global__
#define __device__
#define __forceinline__ inline
#define __shared__
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __launch_bounds__(...)                          // cuda.py asks for them
#define threadIdx (cpu::thread_index())
#define blockIdx (cpu::block_index())
#define blockDim (cpu::block_size())
#define gridDim (cpu::grid_size())

using std::erf; using std::exp; using std::exp2; using std::floor; using std::fmax; using std::log; using std::sqrt; using std::tanh;

struct dim3 { unsigned x, y, z; };
struct alignas(16) int4 { int x, y, z, w; };

namespace cpu {

// They do not change while a thread runs
dim3 thread_index() __attribute__((const));
dim3 block_index() __attribute__((const));
dim3 block_size() __attribute__((const));
dim3 grid_size() __attribute__((const));
int lane() __attribute__((const));

void wait_for_block();
void wait_for_warp(unsigned mask);
void fence();
unsigned long long exchange(unsigned mask, unsigned long long bits, int from);
void trap();
unsigned long long place_in_shared(const void* p);

// One operand of an instruction: what PTX calls it ("=f", "r", …), and its bits
struct Operand { const char* kind; unsigned bytes; unsigned long long bits; };
struct Instruction;
void run(const Instruction*& known, const char* text, Operand* operands, int n);

template <class T> Operand operand(const char* kind, T value) {
    Operand made{kind, sizeof(T), 0};
    std::memcpy(&made.bits, &value, sizeof(T));
    return made;
}
template <class T> void take(const Operand& from, T& to) { std::memcpy(&to, &from.bits, sizeof(T)); }

template <class To, class From> To same_bits(From value) {
    To to;
    static_assert(sizeof(To) == sizeof(From), "");
    std::memcpy(&to, &value, sizeof(To));
    return to;
}

}  // namespace cpu

inline unsigned __float_as_uint(float f) { return cpu::same_bits<unsigned>(f); }
inline float __uint_as_float(unsigned u) { return cpu::same_bits<float>(u); }
inline long long __double_as_longlong(double f) { return cpu::same_bits<long long>(f); }
inline unsigned long long __cvta_generic_to_shared(const void* p) { return cpu::place_in_shared(p); }
inline void __syncthreads() { cpu::wait_for_block(); }
inline void __syncwarp(unsigned mask = ~0u) { cpu::wait_for_warp(mask); }
inline void __threadfence() { cpu::fence(); }
inline void __trap() { cpu::trap(); }
template <class T> T atomicAdd(T* sum, T value) { return __atomic_fetch_add(sum, value, __ATOMIC_RELAXED); }

template <class T> T __shfl_sync(unsigned mask, T value, int from) {
    unsigned long long bits = 0;
    std::memcpy(&bits, &value, sizeof(T));
    bits = cpu::exchange(mask, bits, from);
    std::memcpy(&value, &bits, sizeof(T));
    return value;
}
template <class T> T __shfl_xor_sync(unsigned mask, T value, int bits) { return __shfl_sync(mask, value, cpu::lane() ^ bits); }
