// What CUDA C++ has and plain C++ lacks, for kernels that run on the CPU.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

namespace emulator {

struct Dim3 {
    unsigned x, y, z;
};

// Where the running thread is. Set anew whenever another thread of the block goes on.
struct Here {
    Dim3 thread, block, threads, blocks;
    unsigned char* shared;
};
extern thread_local Here here;

// Waits for all threads of the block, at the same place of the source.
void barrier(unsigned line);
// Gives what each lane of the warp brought, once all have.
const uint64_t* exchange(unsigned line, unsigned mask, uint64_t mine);
unsigned lane();

template <typename T>
T shuffle(unsigned line, unsigned mask, T mine, unsigned from) {
    uint64_t bits = 0;
    memcpy(&bits, &mine, sizeof(T));
    const uint64_t* all = exchange(line, mask, bits);
    T theirs;
    memcpy(&theirs, &all[from], sizeof(T));
    return theirs;
}

template <typename T>
T shuffle_down(unsigned line, unsigned mask, T mine, unsigned delta, unsigned width) {
    unsigned own = lane(), from = own % width + delta < width ? own + delta : own;
    return shuffle(line, mask, mine, from);
}

template <typename T>
T shuffle_xor(unsigned line, unsigned mask, T mine, unsigned bits, unsigned width) {
    unsigned own = lane(), from = (own ^ bits) / width <= own / width ? own ^ bits : own;
    return shuffle(line, mask, mine, from);
}

inline unsigned ballot(unsigned line, unsigned mask, bool mine) {
    const uint64_t* all = exchange(line, mask, mine);
    unsigned bits = 0;
    for (unsigned i = 0; i < 32; i++) bits |= (unsigned)all[i] << i;
    return bits;
}

// Adds the products of `halves` times 16 inputs to c, as tensor cores do (see common.cuh).
void mma(unsigned line, int* c, const unsigned* a, const unsigned* b, unsigned halves);

float half_to_float(uint16_t bits);
uint16_t float_to_half(float value);

}  // namespace emulator

#define __global__
#define __device__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))

#define threadIdx (emulator::here.thread)
#define blockIdx (emulator::here.block)
#define blockDim (emulator::here.threads)
#define gridDim (emulator::here.blocks)
#define SHARED(type, name) type* name = reinterpret_cast<type*>(emulator::here.shared)
#define __syncthreads() emulator::barrier(__LINE__)
#define __shfl_down_sync(mask, value, delta, width) emulator::shuffle_down(__LINE__, mask, value, delta, width)
#define __shfl_xor_sync(mask, value, bits, width) emulator::shuffle_xor(__LINE__, mask, value, bits, width)
#define __ballot_sync(mask, value) emulator::ballot(__LINE__, mask, value)

struct int4 {
    int x, y, z, w;
};

template <typename T>
static inline T __ldg(const T* from) {
    return *from;
}

static inline int __dp4a(int a, int b, int sum) {
    for (int byte = 0; byte < 4; byte++) sum += (int8_t)(a >> (8 * byte)) * (int8_t)(b >> (8 * byte));
    return sum;
}

#define mma_32(c, a, b) emulator::mma(__LINE__, c, a, b, 2)
#define mma_16(c, a, b) emulator::mma(__LINE__, c, a, b, 1)

static inline int __clz(int bits) { return bits == 0 ? 32 : __builtin_clz((unsigned)bits); }

static inline float __int_as_float(int bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline unsigned min(unsigned a, unsigned b) { return a < b ? a : b; }
static inline unsigned max(unsigned a, unsigned b) { return a > b ? a : b; }
static inline float half_to_float(uint16_t bits) { return emulator::half_to_float(bits); }
static inline uint16_t float_to_half(float value) { return emulator::float_to_half(value); }
