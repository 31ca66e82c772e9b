// A GPU's machine on a CPU: runs a kernel that g++ compiled against cuda_on_cpu.h, block after block, each thread of a block as a fiber.
//
// A fiber runs until it waits for others, at a barrier or in a shuffle; then the next one has its turn. A warp goes as far as it can
// before another does anything. Blocks come in another order each time. `memory.h` judges each access, so that an error is found
// whatever the order was, and `ptx.h` executes the inline assembly. Not modelled: speed, and how a GPU rounds.
#pragma once
#include "cuda_on_cpu.h"

#include <algorithm>
#include <dlfcn.h>
#include <numeric>
#include <random>
#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>
#ifdef __SSE__
#include <xmmintrin.h>
#endif

alignas(16) double shared_memory[48 * 1024 / sizeof(double)];

#include "memory.h"

namespace cpu {

constexpr long STACK = 256 << 10;
enum Meeting { SYNCWARP, SHUFFLE, MATRICES, PRODUCT };
static const char* MEETINGS[] = {"__syncwarp", "a shuffle", "ldmatrix", "mma"};

struct Copy { void* to; const void* from; int bytes, there; };
struct Fiber {
    jmp_buf here;
    dim3 index;
    bool done;
    unsigned fences;
    std::vector<Copy> copies;
};
// The lanes that have not returned, those that wait, for what and with which mask; and what they hand to one another
struct Warp {
    unsigned alive, arrived, mask, meetings, turn;
    Meeting kind;
    unsigned long long handed[2][32];
    unsigned took_part[2];
};

static std::vector<Fiber> fibers;
static char* stacks;
static Warp warps[32];
static void (*kernel)(void**);
static void** arguments;
static jmp_buf home, leave;
static int current, alive, waiting;
static unsigned turn, block_number;
static bool moved;                      // whether anybody got further since this was made false
static dim3 grid_is, block_is, index_is;

dim3 thread_index() { return fibers[current].index; }
dim3 block_index() { return index_is; }
dim3 block_size() { return block_is; }
dim3 grid_size() { return grid_is; }
int lane() { return current % 32; }
static Warp& warp() { return warps[current / 32]; }
static Moment now() { return {block_number, turn, warp().turn, fibers[current].fences, current}; }
static void stop() { _longjmp(leave, 1); }

// How floats near 0 are computed with: CuPy compiles with -ftz=true, so that a float too small to be normal is 0, read or computed. A
// double is not touched, nor what inline assembly does. (Only x86 can be told so.)
#ifdef __SSE__
static unsigned mode() { return _mm_getcsr(); }
static void set_mode(unsigned mode) { _mm_setcsr(mode); }
#else
static unsigned mode() { return 0; }
static void set_mode(unsigned) {}
#endif
constexpr unsigned FLUSHED = 0x8040;
static unsigned of_kernel, of_host;

// From this fiber to whoever gives the next one its turn. By jumps, for swapcontext asks the system each time.
static void give_way() {
    unsigned before = mode();
    if (!_setjmp(fibers[current].here)) _longjmp(home, 1);
    set_mode(before);
}

// Until all threads of the block that have not returned are here too
void wait_for_block() {
    unsigned before = turn;
    ++waiting;
    moved = true;
    while (turn == before) {
        if (waiting < alive) { give_way(); continue; }
        waiting = 0;
        ++turn;
        for (Warp& w : warps) ++w.turn;
        moved = true;
    }
}

// Until all lanes of the warp that have not returned are here too, for the same thing
static void meet(Meeting kind, unsigned mask, const void* where) {
    Warp& w = warp();
    unsigned own = 1u << lane(), before = w.meetings;
    if (!(mask & own)) report(where, "calls %s with the mask %#x, which leaves out its own lane", MEETINGS[kind], mask);
    if (w.arrived && (w.kind != kind || w.mask != mask))
        report(where, "calls %s with the mask %#x, and other lanes of its warp %s with %#x", MEETINGS[kind], mask, MEETINGS[w.kind],
               w.mask);
    w.kind = kind, w.mask = mask, w.arrived |= own;
    moved = true;
    while (w.meetings == before) {
        if (w.arrived != w.alive) { give_way(); continue; }
        w.took_part[before % 2] = w.arrived;
        w.arrived = 0;
        ++w.meetings;
        w.turn += kind == SYNCWARP;                     // nothing else orders what lanes do to memory
        moved = true;
    }
}

void wait_for_warp(unsigned mask) { meet(SYNCWARP, mask, CALLER); }

void fence() {
    ++fibers[current].fences;
    fenced();
}

// What lane `from` of this thread's warp hands over. Two of them alternate: nobody is two meetings ahead.
unsigned long long exchange(unsigned mask, unsigned long long bits, int from) {
    Warp& w = warp();
    int which = w.meetings % 2;
    w.handed[which][lane()] = bits;
    meet(SHUFFLE, mask, CALLER);
    if (from < 0 || from > 31 || !(w.took_part[which] >> from & 1))
        report(CALLER, "takes what lane %d hands over, which takes no part", from);
    return w.handed[which][from];
}

void trap() { report(CALLER, "comes to __trap()"); }

unsigned long long place_in_shared(const void* p) { return reinterpret_cast<Address>(p) - shared_from; }

static void run_fiber() {                               // a thread of one block after the other
    for (;;) {
        give_way();
        set_mode(of_kernel);
        kernel(arguments);
        set_mode(of_host);
        if (!fibers[current].copies.empty()) report(nullptr, "returns before cp.async.wait_all: something is still on its way");
        fibers[current].done = moved = true;
        --alive;
        warp().alive &= ~(1u << lane());
    }
}

static void make_fibers() {
    fibers.resize(1024);
    if (!stacks) {
        void* room = mmap(nullptr, 1024 * STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        stacks = static_cast<char*>(room);
        stacks_from = reinterpret_cast<Address>(room), stacks_to = stacks_from + 1024 * STACK;
    }
    for (current = 0; current < 1024; ++current) {
        ucontext_t context;
        getcontext(&context);
        context.uc_stack.ss_sp = stacks + current * STACK;
        context.uc_stack.ss_size = STACK;
        makecontext(&context, run_fiber, 0);
        if (!_setjmp(home)) setcontext(&context);       // up to its first turn
    }
}

static bool run_block(int threads) {
    ++blocks_run;
    turn = waiting = 0;
    alive = threads;
    fences.clear();
    acquires.clear();
    for (int i = 0; i < 32; ++i) {
        int lanes = std::min(std::max(threads - 32 * i, 0), 32);
        warps[i] = Warp();
        warps[i].alive = lanes == 32 ? ~0u : (1u << lanes) - 1;
    }
    for (int i = 0; i < threads; ++i) {
        Fiber& f = fibers[i];
        unsigned n = i;
        f.index = dim3{n % block_is.x, n / block_is.x % block_is.y, n / (block_is.x * block_is.y)};
        f.done = false, f.fences = 0;
        f.copies.clear();
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
        if (!any) return false;
    }
    return true;
}

static const char* run_blocks(const std::vector<long long>& order) {
    if (_setjmp(leave)) return said;
    for (long long i : order) {
        block_number = unsigned(i);
        index_is = dim3{unsigned(i % grid_is.x), unsigned(i / grid_is.x % grid_is.y), unsigned(i / grid_is.x / grid_is.y)};
        if (!run_block(block_is.x * block_is.y * block_is.z)) return "threads of a block wait for each other for ever";
    }
    return nullptr;
}

}  // namespace cpu

#include "ptx.h"

// Run a kernel as every thread of a grid, or of those of its blocks that are named. What went wrong, or null; `at`: where in the code.
extern "C" const char* run_kernel(void (*kernel)(void**), void** arguments, const unsigned* grid, const unsigned* block, long long shared,
                                  const cpu::Place* given, int count, int bytes, int flush, const long long* chosen, long long n,
                                  long long* at) {
    using namespace cpu;
    of_host = mode(), of_kernel = flush ? of_host | FLUSHED : of_host;
    cpu::kernel = kernel, cpu::arguments = arguments;
    places.assign(given, given + count);
    grain = bytes == 2 ? 1 : 2;
    grid_is = dim3{grid[0], grid[1], grid[2]}, block_is = dim3{block[0], block[1], block[2]};
    shared_from = reinterpret_cast<Address>(shared_memory), shared_to = shared_from + shared;
    shared_cells.resize(sizeof shared_memory >> grain);
    if (pages.size() > 4096) pages.clear();
    releases.clear();
    ++launches;
    said[0] = 0, said_at = nullptr;
    if (fibers.empty()) make_fibers();
    std::vector<long long> order(chosen, chosen + n);
    if (!chosen) {
        order.resize((long long)grid[0] * grid[1] * grid[2]);
        std::iota(order.begin(), order.end(), 0);
    }
    std::shuffle(order.begin(), order.end(), std::mt19937(launches));
    const char* fault = run_blocks(order);
    set_mode(of_host);
    if (fault) fibers.clear();                          // they are in the middle of something
    Dl_info library;
    if (said_at && dladdr(said_at, &library)) *at = static_cast<const char*>(said_at) - static_cast<char*>(library.dli_fbase);
    return fault;
}

// From here on, in this thread, floats near 0 are 0, or are what they are
extern "C" void flush(int on) { cpu::set_mode(on ? cpu::mode() | cpu::FLUSHED : cpu::mode() & ~cpu::FLUSHED); }
