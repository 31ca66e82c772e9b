// The instructions of our inline assembly, executed as their text says: cuda.py turns each `asm` into a call of `run` with that text.
// What an instruction does, and which lane has which share of a matrix, is from the PTX ISA. An instruction, a type of an operand, or a
// count of bytes that is not here is refused.
#pragma once
#include <cctype>
#include <string>

// ── numbers of 16 bits ──
static float from_half(unsigned short bits) {           // exact, for a float holds every half
    int exponent = bits >> 10 & 31, mantissa = bits & 1023;
    float whole = float(exponent ? mantissa + 1024 : mantissa);
    float size = std::ldexp(whole, (exponent ? exponent : 1) - 25);
    if (exponent == 31) size = mantissa ? NAN : INFINITY;
    return bits >> 15 ? -size : size;
}

static unsigned short to_half(float f) {                // to nearest, ties to even
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

static float from_bfloat(unsigned short bits) { return __uint_as_float(unsigned(bits) << 16); }
static unsigned short to_bfloat(float f) {
    unsigned u = __float_as_uint(f);
    return std::isnan(f) ? 0x7fff : (u + 0x7fff + (u >> 16 & 1)) >> 16;
}

static float flushed(float f) { return std::fabs(f) < 1.17549435e-38f ? std::copysign(0.0f, f) : f; }

namespace cpu {

// An instruction's words, and where each of its arguments comes from: an operand, or a number that is written there
struct Argument { char form; std::vector<long long> parts; };          // form: % register, [ address, { list, # number
struct Call;
struct Instruction {
    std::string name;
    std::vector<Argument> arguments;
    void (*execute)(Call&);
};

struct Call {
    const Instruction& code;
    Operand* operands;
    const void* where;

    [[noreturn]] void refuse(const char* why) { report(where, "executes %s, %s", code.name.c_str(), why); }

    // Operand j of argument i, which must be of this kind ('f', 'r', 'l', 'h') and have its form
    Operand& operand(size_t i, char form, char kind, size_t j = 0) {
        if (i >= code.arguments.size() || code.arguments[i].form != form || j >= code.arguments[i].parts.size())
            refuse("whose arguments are not those of the PTX ISA");
        Operand& o = operands[code.arguments[i].parts[j]];
        size_t bytes = kind == 'h' ? 2 : kind == 'l' || kind == 'd' ? 8 : 4;
        if (!std::strchr(o.kind, kind) || o.bytes != bytes) refuse("with an operand of another type");
        return o;
    }
    void count(size_t arguments, size_t i = 0, size_t parts = 1) {
        if (code.arguments.size() != arguments || (arguments && code.arguments[i].parts.size() != parts))
            refuse("with another number of arguments");
    }
    unsigned bits(size_t i, char kind, size_t j = 0, char form = '%') { return unsigned(read(operand(i, form, kind, j))); }
    float number(size_t i, size_t j = 0, char form = '%') { return __uint_as_float(bits(i, 'f', j, form)); }
    unsigned long long read(const Operand& o) {
        if (o.kind[0] == '=') refuse("and reads an operand that is only written");
        return o.bits;
    }
    void write(Operand& o, unsigned long long value) {
        if (o.kind[0] != '=' && o.kind[0] != '+') refuse("and writes an operand that is only read");
        o.bits = value;
    }
    void put(size_t i, float value, size_t j = 0, char form = '%') { write(operand(i, form, 'f', j), __float_as_uint(value)); }
    long long written(size_t i) {                       // a number in the text
        if (i >= code.arguments.size() || code.arguments[i].form != '#') refuse("where a number is wanted in the text");
        return code.arguments[i].parts[0];
    }
    char* shared(size_t i) { return reinterpret_cast<char*>(shared_from) + bits(i, 'r', 0, '['); }
};

// ── copies that arrive by themselves ──
static void arrive(char* to, int bytes, bool arriving) {
    for (int i = 0; i < bytes; i += 1 << grain) {
        Cell& c = shared_cells[(to + i - reinterpret_cast<char*>(shared_from)) >> grain];
        c.arriving = arriving, c.write = now();
    }
}

static void copy_ahead(Call& c, bool first_cache) {
    c.count(4);
    char* to = c.shared(0);
    const void* from = reinterpret_cast<const void*>(c.read(c.operand(1, '[', 'l')));
    long long bytes = c.written(2), there = c.bits(3, 'r');
    if (bytes != 16 && !(first_cache && (bytes == 4 || bytes == 8))) c.refuse("which cannot copy so many bytes");
    if (there > bytes) c.refuse("which reads more bytes than it copies");
    judge(to, int(bytes), WRITE, c.where);
    if (reinterpret_cast<Address>(from) % bytes) report(c.where, "copies %lld bytes from an address that is not a multiple", bytes);
    for (int i = 0; i < there; i += 1 << grain) judge(static_cast<const char*>(from) + i, 1 << grain, READ, c.where);
    arrive(to, int(bytes), true);
    fibers[current].copies.push_back({to, from, int(bytes), int(there)});
}

static void copies_are_there(Call& c) {
    c.count(0);
    for (const Copy& x : fibers[current].copies) {
        arrive(static_cast<char*>(x.to), x.bytes, false);
        std::memset(x.to, 0, x.bytes);
        std::memcpy(x.to, x.from, x.there);
    }
    fibers[current].copies.clear();
}

// ── four matrices of 8 × 8 from shared memory ──
static void matrices(Call& c, bool turned) {
    c.count(2, 0, 4);
    Warp& w = warp();
    int which = w.meetings % 2, row = lane() / 4, column = lane() % 4 * 2;
    char* mine = c.shared(1);
    if (reinterpret_cast<Address>(mine) % 16) report(c.where, "reads a row of a matrix at an address that is not a multiple of 16 bytes");
    w.handed[which][lane()] = reinterpret_cast<unsigned long long>(mine);
    meet(MATRICES, ~0u, c.where);
    if (w.took_part[which] != ~0u) c.refuse("without all lanes of its warp");
    for (int m = 0; m < 4; ++m) {
        unsigned both = 0;
        for (int k = 0; k < 2; ++k) {
            int i = turned ? column + k : row, j = turned ? row : column + k;
            const unsigned short* at = reinterpret_cast<const unsigned short*>(w.handed[which][8 * m + i]) + j;
            judge(at, 2, READ, c.where);
            both |= unsigned(*at) << 16 * k;
        }
        c.write(c.operand(0, '{', 'r', m), both);
    }
}

// ── products ──
// Of a [16, 16] lane i holds rows i / 4 and i / 4 + 8, columns 2 (i % 4) and the next one, then the same 8 columns on; of b [16, 8] those
// as rows of column i / 4; of c and d [16, 8] the rows of a, columns 2 (i % 4) and the next one.
static void product(Call& call, float (*wide)(unsigned short)) {
    static float dealt[2][32][32][12];                  // two in turn, by warp: each lane's share, 8 numbers of a and 4 of b
    for (size_t i = 0; i < 4; ++i) call.count(4, i, i == 2 ? 2 : 4);
    Warp& w = warp();
    int which = w.meetings % 2, group = lane() / 4, next = lane() % 4;
    float (*all)[12] = dealt[which][current / 32], *own = all[lane()];
    for (int i = 0; i < 6; ++i) {
        unsigned both = call.bits(i < 4 ? 1 : 2, 'r', i % 4, '{');
        own[2 * i] = wide((unsigned short)both), own[2 * i + 1] = wide((unsigned short)(both >> 16));
    }
    meet(PRODUCT, ~0u, call.where);
    if (w.took_part[which] != ~0u) call.refuse("without all lanes of its warp");
    for (int i = 0; i < 2; ++i) for (int j = 0; j < 2; ++j) {
        const float (*column)[12] = all + (2 * next + j) * 4;
        float sum = call.number(3, 2 * i + j, '{');
        for (int k = 0; k < 16; ++k) {
            int pair = k % 8 / 2;
            sum += all[group * 4 + pair][k / 8 * 4 + i * 2 + k % 2] * column[pair][8 + k / 8 * 2 + k % 2];
        }
        call.put(0, sum, 2 * i + j, '{');
    }
}

// ── by name ──
static unsigned pair(Call& c, unsigned short (*narrow)(float)) {       // the first one is the upper half
    c.count(3);
    return unsigned(narrow(c.number(1))) << 16 | narrow(c.number(2));
}

static const std::map<std::string, void (*)(Call&)> INSTRUCTIONS = {
    {"cvt.f32.f16", [](Call& c) { c.count(2); c.put(0, from_half(c.bits(1, 'h'))); }},
    {"cvt.rn.f16.f32", [](Call& c) { c.count(2); c.write(c.operand(0, '%', 'h'), to_half(c.number(1))); }},
    {"cvt.rn.f16x2.f32", [](Call& c) { c.write(c.operand(0, '%', 'r'), pair(c, to_half)); }},
    {"cvt.rn.bf16x2.f32", [](Call& c) { c.write(c.operand(0, '%', 'r'), pair(c, to_bfloat)); }},
    {"ex2.approx.ftz.f32", [](Call& c) { c.count(2); c.put(0, flushed(std::exp2(flushed(c.number(1))))); }},
    {"lg2.approx.ftz.f32", [](Call& c) { c.count(2); c.put(0, flushed(std::log2(flushed(c.number(1))))); }},
    {"prefetch.global.L2", [](Call& c) {
        c.count(1);
        Address at = c.read(c.operand(0, '[', 'l'));
        if (!place_of(at, 1, false)) report(c.where, "asks ahead for memory outside of all arrays that it was given");
    }},
    {"cp.async.cg.shared.global", [](Call& c) { copy_ahead(c, false); }},
    {"cp.async.ca.shared.global", [](Call& c) { copy_ahead(c, true); }},
    {"cp.async.wait_all", copies_are_there},
    {"ldmatrix.sync.aligned.m8n8.x4.shared.b16", [](Call& c) { matrices(c, false); }},
    {"ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16", [](Call& c) { matrices(c, true); }},
    {"mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32", [](Call& c) { product(c, from_half); }},
    {"mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32", [](Call& c) { product(c, from_bfloat); }},
};

// "name a, b, c;" with a register %0, an address [%0], a list {%0, %1} or a number for each of a, b, c
static const Instruction* parse(const char* text, int operands, const void* where) {
    Instruction* made = new Instruction();
    const char* p = text;
    while (*p && !std::isspace(*p) && *p != ';') made->name += *p++;
    auto found = INSTRUCTIONS.find(made->name);
    if (found == INSTRUCTIONS.end()) report(where, "executes %s, an instruction that ptx.h does not know", made->name.c_str());
    made->execute = found->second;
    while (*p && *p != ';') {
        if (std::isspace(*p) || *p == ',') { ++p; continue; }
        Argument a{'#', {}};
        char end = 0;
        if (*p == '[' || *p == '{') a.form = *p, end = *p++ == '[' ? ']' : '}';
        do {
            while (std::isspace(*p) || (end && *p == ',')) ++p;
            if (*p == '%') {
                if (!end) a.form = '%';
                ++p;
            } else if (end)
                report(where, "executes %s, which is not written as the PTX ISA has it", text);
            char* after;
            a.parts.push_back(std::strtoll(p, &after, 10));
            if (after == p || (a.form != '#' && (a.parts.back() < 0 || a.parts.back() >= operands)))
                report(where, "executes %s, which names an operand that is not there", text);
            p = after;
            while (std::isspace(*p)) ++p;
        } while (end && *p != end && *p);
        if (end && *p++ != end) report(where, "executes %s, which is not written as the PTX ISA has it", text);
        made->arguments.push_back(a);
    }
    if (*p != ';') report(where, "executes %s, which does not end", text);
    return made;
}

void run(const Instruction*& known, const char* text, Operand* operands, int n) {
    if (!known) known = parse(text, n, CALLER);
    Call call{*known, operands, CALLER};
    unsigned before = mode();
    set_mode(of_host);
    known->execute(call);
    set_mode(before);
}

}  // namespace cpu
