// Runs the blocks of a kernel one after another. A block's threads are fibers, which take turns at barriers and warp
// operations; a turn's order is the caller's choice, since a right kernel does not depend on it.
#include "machine.h"

#include <stdarg.h>
#include <stdio.h>

#include <memory>
#include <vector>

#include "fiber.h"
#include "shim.h"

#if defined(__x86_64__)
asm(R"(
    .text
    .globl emulator_switch
    .type emulator_switch, @function
emulator_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
    .size emulator_switch, .-emulator_switch
)");
#endif

namespace emulator {

thread_local Here here;

namespace {

const size_t STACK = 64 << 10;
const unsigned WARP = 32;
const unsigned THREADS = 1024;
// Shared memory that every device gives a block, and what is looked at behind it.
const unsigned SHARED_LIMIT = 48 << 10;
const unsigned GUARD = 256;
const uint16_t POISON = 0x7ff5;  // A NaN as f16, and twice over as f32.

enum class State { Ready, AtBarrier, InWarp, Done };

struct Thread {
    Fiber fiber;
    State state;
    unsigned line;
    unsigned turn;
};

struct Machine {
    std::unique_ptr<unsigned char[]> stacks{new unsigned char[STACK * THREADS]};
    std::vector<Thread> threads{THREADS};
    std::vector<uint64_t> brought = std::vector<uint64_t>(2 * THREADS);
    alignas(64) unsigned char shared[SHARED_LIMIT + GUARD];
    Fiber home;
    const Entry* entry;
    void** arguments;
    unsigned count, running;
    bool failed;
    char message[200];
};

thread_local Machine* machine;

void fail(const char* format, ...) {
    va_list list;
    va_start(list, format);
    vsnprintf(machine->message, sizeof machine->message, format, list);
    va_end(list);
    machine->failed = true;
}

// Leaves the thread; it goes on when the machine lets it, or never.
void pause(State state, unsigned line) {
    Thread& mine = machine->threads[machine->running];
    mine.state = state;
    mine.line = line;
    machine->home.go_on(mine.fiber);
}

void begin() {
    machine->entry->call(machine->arguments);
    pause(State::Done, 0);
}

// Lets warps go on whose lanes are all at the same operation. Gives whether there were any.
bool release_warps(Machine& m) {
    bool any = false;
    for (unsigned first = 0; first < m.count; first += WARP) {
        const Thread* warp = &m.threads[first];
        bool whole = first + WARP <= m.count;
        for (unsigned i = 0; whole && i < WARP; i++) {
            whole = warp[i].state == State::InWarp && warp[i].line == warp[0].line;
        }
        for (unsigned i = 0; whole && i < WARP; i++) m.threads[first + i].state = State::Ready;
        any |= whole;
    }
    return any;
}

// Lets the block go on from a barrier, or says what holds it up. Gives whether anything is left to do.
bool release_block(Machine& m) {
    unsigned done = 0, waiting = 0, line = 0;
    bool alike = true;
    for (unsigned i = 0; i < m.count; i++) {
        const Thread& thread = m.threads[i];
        if (thread.state == State::InWarp) {
            fail("thread %u waits at line %u for lanes of its warp that never come", i, thread.line);
            return false;
        }
        if (thread.state == State::Done) {
            done++;
            continue;
        }
        alike = alike && (waiting == 0 || thread.line == line);
        line = thread.line;
        waiting++;
    }
    if (waiting == 0) return false;
    if (done > 0) {
        fail("%u threads wait at the barrier of line %u, %u have ended", waiting, line, done);
        return false;
    }
    if (!alike) {
        fail("threads wait at different barriers, one of them that of line %u", line);
        return false;
    }
    for (unsigned i = 0; i < m.count; i++) m.threads[i].state = State::Ready;
    return true;
}

void run_thread(Machine& m, unsigned index) {
    m.running = index;
    here.thread = {index % here.threads.x, index / here.threads.x % here.threads.y,
                   index / here.threads.x / here.threads.y};
    m.threads[index].fiber.go_on(m.home);
}

void poison(unsigned char* from, size_t bytes) {
    for (size_t i = 0; i + 1 < bytes; i += 2) memcpy(from + i, &POISON, 2);
}

// Shared memory ends with what was asked for, so that the guard behind it begins there.
void run_block(Machine& m, unsigned shared, uint64_t order) {
    poison(m.shared, shared + GUARD);
    for (unsigned i = 0; i < m.count; i++) {
        m.threads[i].fiber.prepare(&m.stacks[i * STACK], STACK, begin);
        m.threads[i].state = State::Ready;
        m.threads[i].turn = 0;
    }
    // Steps of an odd length come by every index of a power of two, once each.
    unsigned padded = 1;
    while (padded < m.count) padded *= 2;
    uint64_t random = order;
    bool more = true;
    while (more && !m.failed) {
        unsigned step = 1, start = 0;
        if (order != 0) {
            random = random * 6364136223846793005ull + 1442695040888963407ull;
            step = (unsigned)(random >> 40) | 1;
            start = (unsigned)(random >> 20);
        }
        for (unsigned i = 0; i < padded && !m.failed; i++) {
            unsigned index = (start + i * step) & (padded - 1);
            if (index < m.count && m.threads[index].state == State::Ready) run_thread(m, index);
        }
        more = !m.failed && (release_warps(m) || release_block(m));
    }
    for (unsigned i = 0; i + 1 < GUARD && !m.failed; i += 2) {
        if (memcmp(&m.shared[shared + i], &POISON, 2) != 0) {
            fail("a block wrote beyond its %u bytes of shared memory", shared);
        }
    }
}

}  // namespace

void barrier(unsigned line) { pause(State::AtBarrier, line); }

unsigned lane() { return machine->running % WARP; }

const uint64_t* exchange(unsigned line, unsigned mask, uint64_t mine) {
    Machine& m = *machine;
    if (mask != ~0u) {
        fail("the warp operation of line %u names some lanes only: not supported", line);
        pause(State::Done, line);
    }
    // Lanes are at most one exchange apart: two sets of places are enough.
    uint64_t* all = &m.brought[(m.threads[m.running].turn++ % 2) * THREADS + m.running / WARP * WARP];
    all[m.running % WARP] = mine;
    pause(State::InWarp, line);
    return all;
}

void mma(unsigned line, int* c, const unsigned* a, const unsigned* b, unsigned halves) {
    // Each half's words of all lanes: output g, output g + 8, row g.
    uint64_t outputs[2][WARP], rows[2][WARP];
    for (unsigned half = 0; half < halves; half++) {
        memcpy(outputs[half], exchange(line, ~0u, a[2 * half] | (uint64_t)a[2 * half + 1] << 32), sizeof outputs[half]);
        memcpy(rows[half], exchange(line, ~0u, b[half]), sizeof rows[half]);
    }
    unsigned g = lane() / 4, t = lane() % 4;
    for (unsigned i = 0; i < 4; i++) {
        unsigned row = 2 * t + i % 2;
        for (unsigned word = 0; word < 4 * halves; word++) {
            unsigned from = word % 4;
            unsigned weights = (unsigned)(outputs[word / 4][4 * g + from] >> (i / 2 * 32));
            c[i] = __dp4a((int)weights, (int)rows[word / 4][4 * row + from], c[i]);
        }
    }
}

float half_to_float(uint16_t bits) {
    struct Table {
        float values[65536];
        Table() {
            for (unsigned half = 0; half < 65536; half++) {
                int exponent = half >> 10 & 31, fraction = half & 1023;
                float size = exponent == 31 ? (fraction ? NAN : INFINITY)
                             : exponent > 0 ? ldexpf((float)(1024 + fraction), exponent - 25)
                                            : ldexpf((float)fraction, -24);
                values[half] = half >> 15 ? -size : size;
            }
        }
    };
    static const Table table;
    return table.values[bits];
}

uint16_t float_to_half(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    uint32_t sign = bits >> 16 & 0x8000, size = bits & 0x7fffffff;
    if (size > 0x7f800000) return sign | 0x7e00;
    if (size >= 0x47800000) return sign | 0x7c00;
    uint32_t shift = 13, number = size - 0x38000000;
    if (size < 0x38800000) {
        // Below the smallest normal half: the fraction with its hidden bit, in units of 2^-24.
        if (size < 0x33000000) return sign;
        shift = 126 - (size >> 23);
        number = (size & 0x7fffff) | 0x800000;
    }
    // To nearest, ties to even; a carry goes into the exponent, as it should.
    uint32_t half = number >> shift, rest = number & ((1u << shift) - 1), tie = 1u << (shift - 1);
    return sign | (half + (rest > tie || (rest == tie && (half & 1))));
}

extern "C" Machine* emulator_machine_new() { return new Machine; }

extern "C" void emulator_machine_free(Machine* m) { delete m; }

extern "C" unsigned emulator_arguments(const Entry* entry) { return entry->arguments; }

// Runs blocks `first`, `first + step`, ... of the grid; with an `order` other than 0, blocks backwards and threads
// shuffled. Gives null, or what a device would not forgive, valid until the machine's next run.
extern "C" const char* emulator_run(Machine* m, const Entry* entry, const Dim3* grid, const Dim3* block,
                                    unsigned shared, void** arguments, uint64_t first, uint64_t step, uint64_t order) {
    m->entry = entry;
    m->arguments = arguments;
    m->count = block->x * block->y * block->z;
    m->failed = false;
    machine = m;
    here.threads = *block;
    here.blocks = *grid;
    here.shared = m->shared;
    uint64_t blocks = (uint64_t)grid->x * grid->y * grid->z;
    for (uint64_t i = first; i < blocks && !m->failed; i += step) {
        uint64_t at = order == 0 ? i : blocks - 1 - i;
        here.block = {(unsigned)(at % grid->x), (unsigned)(at / grid->x % grid->y),
                      (unsigned)(at / grid->x / grid->y)};
        run_block(*m, shared, order == 0 ? 0 : order + i);
    }
    machine = nullptr;
    return m->failed ? m->message : nullptr;
}

}  // namespace emulator
