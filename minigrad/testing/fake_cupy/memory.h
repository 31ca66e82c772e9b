// Every access of memory that a kernel makes, judged. g++ reports them: -fsanitize=thread puts a call before each (__tsan_read4 and the
// like), and these are ours; -fsanitize=alignment and the like call us where arithmetic has no defined result.
//
// An access must lie in an array of the launch, or in its shared memory, at a multiple of its type's bytes. Shared memory is written
// before it is read. Two accesses of one place, of which one writes, must come one after the other by the rules of CUDA, in whatever order
// threads run here: __syncthreads() orders the threads of a block, __syncwarp() the lanes of a warp; shuffles order nothing. What one block
// wrote another may read if a fence of the writer came after, then an atomic operation of the writer's block, one of the reader's block on
// the same place, a fence there, and then the read; and the read must be volatile, for a plain one may be answered by the first cache
// (CUDA C++ Programming Guide, Memory Fence Functions).
#pragma once
#include <cstdarg>
#include <cstdio>
#include <map>
#include <unordered_map>
#include <vector>

namespace cpu {

typedef unsigned long long Address;

struct Place { Address from, to; const char* name; bool written; };     // an array that the launch was given
// When a thread did something: how often its block, and its warp, had waited, and how often it had fenced
struct Moment { unsigned block, turn, warp_turn, fences; int thread; };
enum Readers : unsigned char { NONE, ONE, OF_A_WARP, OF_A_BLOCK, OF_SEVERAL_BLOCKS };
// What was done to some bytes since `since`: a launch or, of shared memory, a block
struct Cell { unsigned since; bool written, atomic, arriving; Readers readers; Moment write, read; };
// What an atomic operation tells those that come after it: the fences before it
struct Release { unsigned block; std::vector<Moment> fences; };
// An atomic operation of this block: it came after so many others on its place. Complete with the fence after it
struct Acquire { Address place; size_t after; Moment at; bool complete; Moment fence; };

enum Kind { READ = 0, WRITE = 1, VOLATILE = 2, ATOMIC = 4 };

static std::vector<Place> places;
static unsigned launches, blocks_run;
static int grain;                                       // bytes of a cell are 1 << grain
static std::unordered_map<Address, std::vector<Cell>> pages;
static std::vector<Cell> shared_cells;
static std::vector<Moment> fences;                      // of this block
static std::map<Address, std::vector<Release>> releases;
static std::vector<Acquire> acquires;                   // of this block
static char said[600];
static const void* said_at;

static Moment now();
[[noreturn]] static void stop();
static Address stacks_from, stacks_to, shared_from, shared_to;

// What is wrong, for the error; the launch ends
[[noreturn]] static void report(const void* where, const char* format, ...) {
    Moment m = now();
    int n = std::snprintf(said, sizeof said, "thread %d of block %u ", m.thread, m.block);
    va_list given;
    va_start(given, format);
    std::vsnprintf(said + n, sizeof said - n, format, given);
    va_end(given);
    said_at = where;
    stop();
}

// ── what comes before what ──
// Whether a came before b, of one block: by the order of one thread's fences, or because both waited in between
static bool precedes(const Moment& a, const Moment& b) {
    if (a.thread == b.thread) return a.fences < b.fences;
    return a.turn < b.turn || (a.thread / 32 == b.thread / 32 && a.warp_turn < b.warp_turn);
}

static bool is_over(const Moment& m) {                  // before what this thread does now
    Moment mine = now();
    if (m.block == mine.block) return m.thread == mine.thread || precedes(m, mine);
    for (const Acquire& a : acquires) {
        if (!a.complete || !is_over(a.fence)) continue;
        const std::vector<Release>& told = releases[a.place];
        for (size_t i = 0; i < a.after; ++i)
            if (told[i].block == m.block)
                for (const Moment& f : told[i].fences) if (precedes(m, f)) return true;
    }
    return false;
}

static void fenced() {
    Moment mine = now();
    fences.push_back(mine);
    for (Acquire& a : acquires) if (!a.complete && is_over(a.at)) a.complete = true, a.fence = mine;
}

static void told(Address place) {
    std::vector<Release>& all = releases[place];
    acquires.push_back({place, all.size(), now(), false, Moment()});
    Release mine{now().block, {}};
    for (const Moment& f : fences) if (is_over(f)) mine.fences.push_back(f);
    all.push_back(mine);
}

// ── cells ──
static void note_reader(Cell& c, const Moment& m) {
    const Moment& before = c.read;
    if (c.readers == OF_SEVERAL_BLOCKS) return;
    if (c.readers != NONE && before.block != m.block) { c.readers = OF_SEVERAL_BLOCKS; return; }
    bool same_warp = before.thread / 32 == m.thread / 32;
    if (c.readers == NONE || before.turn < m.turn || (c.readers == ONE && before.thread == m.thread)) c.readers = ONE;
    else if (c.readers == OF_A_BLOCK) return;
    else if (!same_warp) c.readers = OF_A_BLOCK;
    else c.readers = before.warp_turn < m.warp_turn ? ONE : OF_A_WARP;
    c.read = m;
}

static bool reading_is_over(const Cell& c, const Moment& m) {
    if (c.readers == NONE) return true;
    if (c.readers == OF_SEVERAL_BLOCKS || c.read.block != m.block) return c.readers != OF_SEVERAL_BLOCKS && is_over(c.read);
    if (c.read.turn < m.turn) return true;
    if (c.readers == ONE) return is_over(c.read);
    return c.readers == OF_A_WARP && c.read.thread / 32 == m.thread / 32 && c.read.warp_turn < m.warp_turn;
}

static const char* ORDER = "nothing puts the two in order: __syncthreads(), __syncwarp() within a warp, or a fence and an atomic "
                           "operation on either side between blocks";

static void judge_cell(Cell& c, unsigned since, int kind, const char* name, Address offset, const void* where) {
    if (c.since != since) c = Cell(), c.since = since;
    Moment m = now();
    if (c.arriving) report(where, "uses %s + %llu bytes before cp.async.wait_all: they are still on their way", name, offset);
    bool both_atomic = c.atomic && kind & ATOMIC;
    if (c.written && !both_atomic && !is_over(c.write))
        report(where, "%s %s + %llu bytes, which thread %d of block %u writes; %s", kind & (WRITE | ATOMIC) ? "writes" : "reads", name,
               offset, c.write.thread, c.write.block, ORDER);
    if (c.written && c.write.block != m.block && kind == READ)
        report(where, "reads %s + %llu bytes, which block %u wrote, by a plain load, which the first cache may answer: read it by a "
               "volatile one", name, offset, c.write.block);
    if (kind & (WRITE | ATOMIC)) {
        if (!reading_is_over(c, m))
            report(where, "writes %s + %llu bytes, which thread %d of block %u reads%s; %s", name, offset, c.read.thread, c.read.block,
                   c.readers == ONE ? "" : ", and others too", ORDER);
        c.written = true, c.atomic = kind & ATOMIC, c.write = m, c.readers = NONE;
    } else
        note_reader(c, m);
}

static Cell& cell_of(Address at) {
    static Address last = ~0ull;
    static std::vector<Cell>* cells;
    if (at >> 12 != last || pages.empty()) {
        cells = &pages[last = at >> 12];
        if (cells->empty()) cells->resize(4096 >> grain);
    }
    return (*cells)[(at & 4095) >> grain];
}

static const Place* place_of(Address at, int bytes, bool writing) {
    static size_t last;
    auto fits = [&](const Place& p) { return at >= p.from && at + bytes <= p.to && (p.written || !writing); };
    if (last < places.size() && fits(places[last])) return &places[last];
    for (last = 0; last < places.size(); ++last) if (fits(places[last])) return &places[last];
    return nullptr;
}

// ── accesses ──
static void judge(const void* p, int bytes, int kind, const void* where) {
    Address at = reinterpret_cast<Address>(p);
    if (at - stacks_from < stacks_to - stacks_from) return;
    if (at - shared_from < sizeof shared_memory) {
        if (at + bytes > shared_to)
            report(where, "%s shared memory + %llu bytes; the launch asked for %llu", kind & WRITE ? "writes" : "reads", at - shared_from,
                   shared_to - shared_from);
        for (Address a = at; a < at + bytes; a += 1 << grain) {
            Cell& c = shared_cells[(a - shared_from) >> grain];
            if (kind == READ && !(c.since == blocks_run && (c.written || c.arriving)))
                report(where, "reads shared memory + %llu bytes, which nobody has written", a - shared_from);
            judge_cell(c, blocks_run, kind, "shared memory", a - shared_from, where);
        }
        return;
    }
    const Place* place = place_of(at, bytes, kind & (WRITE | ATOMIC));
    if (!place) {
        for (const Place& p : places)
            if (at >= p.from && at < p.to) report(where, "writes %s + %llu bytes, or beyond its end", p.name, at - p.from);
        const Place* near = nullptr;
        for (const Place& p : places) if (at >= p.from && (!near || p.from > near->from)) near = &p;
        report(where, "%s outside of all arrays that it was given, %lld bytes after the start of %s", kind & WRITE ? "writes" : "reads",
               near ? (long long)(at - near->from) : (long long)at, near ? near->name : "memory");
    }
    if (!place->written) return;                        // nobody writes there in this launch
    for (Address a = at; a < at + bytes; a += 1 << grain) judge_cell(cell_of(a), launches, kind, place->name, a - place->from, where);
}

}  // namespace cpu

// ── what g++ calls ──
#define CALLER __builtin_return_address(0)
#define ACCESSES(n)                                                                                                                       \
    extern "C" void __tsan_read##n(void* p) { cpu::judge(p, n, cpu::READ, CALLER); }                                                      \
    extern "C" void __tsan_write##n(void* p) { cpu::judge(p, n, cpu::WRITE, CALLER); }                                                    \
    extern "C" void __tsan_volatile_read##n(void* p) { cpu::judge(p, n, cpu::VOLATILE, CALLER); }                                         \
    extern "C" void __tsan_volatile_write##n(void* p) { cpu::judge(p, n, cpu::WRITE | cpu::VOLATILE, CALLER); }
ACCESSES(1) ACCESSES(2) ACCESSES(4) ACCESSES(8) ACCESSES(16)

extern "C" void __tsan_read_range(void* p, long n) { cpu::judge(p, int(n), cpu::READ, CALLER); }
extern "C" void __tsan_write_range(void* p, long n) { cpu::judge(p, int(n), cpu::WRITE, CALLER); }
extern "C" void __tsan_init() {}
extern "C" unsigned __tsan_atomic32_fetch_add(unsigned* p, unsigned value, int) {
    cpu::judge(p, 4, cpu::ATOMIC, CALLER);
    cpu::told(reinterpret_cast<cpu::Address>(p));
    unsigned before = *p;
    *p = before + value;
    return before;
}
extern "C" unsigned long long __tsan_atomic64_fetch_add(unsigned long long* p, unsigned long long value, int) {
    cpu::judge(p, 8, cpu::ATOMIC, CALLER);
    cpu::told(reinterpret_cast<cpu::Address>(p));
    unsigned long long before = *p;
    *p = before + value;
    return before;
}

// The first number is where it is in the source, in the words of g++'s own library: file, line and column
struct Source { const char* file; unsigned line, column; };
#define UNDEFINED(name, what)                                                                                                             \
    extern "C" void __ubsan_handle_##name(Source*, unsigned long long, unsigned long long) { cpu::report(CALLER, what); }
UNDEFINED(add_overflow, "adds two numbers whose sum its type does not hold")
UNDEFINED(sub_overflow, "subtracts two numbers whose difference its type does not hold")
UNDEFINED(mul_overflow, "multiplies two numbers whose product its type does not hold")
UNDEFINED(negate_overflow, "negates a number whose negative its type does not hold")
UNDEFINED(divrem_overflow, "divides by 0")
UNDEFINED(shift_out_of_bounds, "shifts by more bits than there are")
UNDEFINED(out_of_bounds, "uses an element that its array does not have")
UNDEFINED(type_mismatch_v1, "uses a pointer that is null, or not a multiple of its type's bytes")
