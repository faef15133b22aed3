// What every kernel shares: the functions of kernels/src/reference.rs that fix rounding, and how a tile is read.
//
// Compiled by nvcc with -fmad=false, and as C++ for the emulator with -ffp-contract=off: only what the reference
// writes as `mul_add` is fused, by fmaf. Division and square root are correctly rounded in both.
#pragma once

#ifdef CONCLAVE_EMULATOR
#include "shim.h"
#else
// Shared memory is asked for at launch. The emulator hands out as much as was asked for, and no more.
extern __shared__ __align__(16) unsigned char shared_bytes[];
#define SHARED(type, name) type* name = reinterpret_cast<type*>(shared_bytes)
#endif

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

// Lanes over which sums of squares and of probabilities are spread.
#define LANES 16
// Outputs in a tile of weights.
#define TILE 16
// Inputs in a block of weights.
#define WEIGHTS 32
// Slots in a block of the cache, and in a span of attention.
#define SLOTS 16
#define SPAN 256
#define ALL_LANES 0xffffffffu

#ifndef CONCLAVE_EMULATOR
static __device__ __forceinline__ float half_to_float(u16 bits) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
}

static __device__ __forceinline__ u16 float_to_half(float value) {
    u16 bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
}
#endif

// Products of 8-bit integers by a warp's tensor cores (PTX ISA, mma.m16n8k32 and m16n8k16), exact. With g = lane / 4
// and t = lane % 4: a[0] has inputs 4t.. of output g, a[1] those of output g + 8, a[2] and a[3] inputs 16 + 4t..; b[0]
// has inputs 4t.. of row g, b[1] inputs 16 + 4t..; c is of output g and rows 2t, 2t + 1, then of output g + 8.
#ifndef CONCLAVE_EMULATOR
static __device__ __forceinline__ void mma_32(int* c, const u32* a, const u32* b) {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Of 16 inputs: a[0], a[1] and b[0] only.
static __device__ __forceinline__ void mma_16(int* c, const u32* a, const u32* b) {
    asm("mma.sync.aligned.m16n8k16.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(b[0]));
}
#endif

// reference.rs: exp
static __device__ __forceinline__ float exp_ref(float x) {
    float clamped = 88.0f < x ? 88.0f : x;
    clamped = -87.0f > clamped ? -87.0f : clamped;
    float n = rintf(clamped * 1.44269504088896340736f);
    float r = fmaf(n, -0.6933594f, clamped);
    r = fmaf(n, 2.1219444e-4f, r);
    float p = 1.9875691e-4f;
    p = fmaf(p, r, 1.3981999e-3f);
    p = fmaf(p, r, 8.333452e-3f);
    p = fmaf(p, r, 4.1665796e-2f);
    p = fmaf(p, r, 1.6666665e-1f);
    p = fmaf(p, r, 0.5f);
    p = fmaf(p, r * r, r + 1.0f);
    float power = __int_as_float((int)((u32)((int)n + 127) << 23));
    return x < -87.0f ? 0.0f : p * power;
}

// reference.rs: softcap
static __device__ __forceinline__ float softcap_ref(float x, float c) {
    float y = x / c;
    return c * (1.0f - 2.0f / (exp_ref(y + y) + 1.0f));
}

// reference.rs: sum_lanes, with lane i of the sum in lane i of each half of a warp; right in lane 0 of the half.
static __device__ __forceinline__ float sum_lanes(float v) {
    v = v + __shfl_down_sync(ALL_LANES, v, 8, LANES);
    v = v + __shfl_down_sync(ALL_LANES, v, 4, LANES);
    v = v + __shfl_down_sync(ALL_LANES, v, 2, LANES);
    return v + __shfl_down_sync(ALL_LANES, v, 1, LANES);
}

// A number of the cache or of a scale, which the kernel does not write.
static __device__ __forceinline__ float load(const float* from, u64 at) { return __ldg(from + at); }
static __device__ __forceinline__ float load(const u16* from, u64 at) { return half_to_float(__ldg(from + at)); }
static __device__ __forceinline__ void store(float* to, u64 at, float value) { to[at] = value; }
static __device__ __forceinline__ void store(u16* to, u64 at, float value) { to[at] = float_to_half(value); }
