// Tiles of weights, as kernels/src/weights/tile.rs lays them out.
#pragma once
#include "common.cuh"

// A weight matrix: `Tiles` of kernels/src/cuda/matrix.rs, field by field.
struct Tiles {
    const u8* data;
    // Bytes from one tile to the next.
    u64 stride;
    // Where parts of a tile begin, in bytes.
    u32 plane;
    u32 scale;
    u32 min;
    // Outputs and inputs.
    u32 n;
    u32 k;
    u32 unused;
};

// A quantized type. EXTRA: bits beyond a nibble, or -1 where integers are whole bytes. Number: what scales are
// stored as. PARTS: scales a block. ZERO: what is subtracted from the stored integers.
template <int EXTRA_, typename Number_, int PARTS_, bool MIN_, int ZERO_>
struct Quantized {
    static const int EXTRA = EXTRA_;
    typedef Number_ Number;
    static const int PARTS = PARTS_;
    static const bool MIN = MIN_;
    static const int ZERO = ZERO_;

    // Of block `index` of output `lane`, groups `t` and `t + 4` of four inputs each: their integers less ZERO, a byte
    // an input. (A nibble's word has both.)
    static __device__ __forceinline__ void groups(const Tiles& w, const u8* tile, u32 index, u32 lane, u32 t, u32* low,
                                                  u32* high) {
        const u32* words = reinterpret_cast<const u32*>(tile + (u64)index * (EXTRA < 0 ? 512 : 256)) + lane;
        if (EXTRA < 0) {
            *low = __ldg(words + t * TILE) ^ 0x80808080u;
            *high = __ldg(words + (t + 4) * TILE) ^ 0x80808080u;
            return;
        }
        const u32 word = __ldg(words + t * TILE);
        *low = word & 0x0f0f0f0fu;
        *high = (word >> 4) & 0x0f0f0f0fu;
        const u32* planes =
            reinterpret_cast<const u32*>(tile + w.plane + (u64)index * 64 * (EXTRA > 0 ? EXTRA : 0)) + lane;
        if (EXTRA == 1) {
            const u32 plane = __ldg(planes);
            *low |= ((plane >> t) & 0x01010101u) << 4;
            *high |= ((plane >> (t + 4)) & 0x01010101u) << 4;
        }
        if (EXTRA == 2) {
            *low |= ((__ldg(planes) >> (2 * t)) & 0x03030303u) << 4;
            *high |= ((__ldg(planes + TILE) >> (2 * t)) & 0x03030303u) << 4;
        }
        if (ZERO > 0) {
            // Byte by byte: the integers are below 128, so that no byte borrows from the next.
            const u32 zero = ZERO * 0x01010101u;
            *low = ((*low | 0x80808080u) - zero) ^ 0x80808080u;
            *high = ((*high | 0x80808080u) - zero) ^ 0x80808080u;
        }
    }

    // All integers of block `index` of output `lane`, less ZERO: input 4g + b in byte b of q[g].
    static __device__ __forceinline__ void integers(const Tiles& w, const u8* tile, u32 index, u32 lane, u32* q) {
#pragma unroll
        for (int t = 0; t < 4; t++) groups(w, tile, index, lane, t, q + t, q + t + 4);
    }

    static __device__ __forceinline__ float scale(const Tiles& w, const u8* tile, u32 index, u32 part, u32 lane) {
        const Number* scales = reinterpret_cast<const Number*>(tile + w.scale);
        return load(scales, (u64)(index * PARTS + part) * TILE + lane);
    }

    static __device__ __forceinline__ float minimum(const Tiles& w, const u8* tile, u32 index, u32 lane) {
        return MIN ? load(reinterpret_cast<const Number*>(tile + w.min), (u64)index * TILE + lane) : 0.0f;
    }

    // reference.rs: dequantize_row; inputs 4g .. 4g + 4 of a block, from q[g].
    static __device__ __forceinline__ float weight(u32 word, int byte, float scale, float min) {
        int q = (signed char)(u8)(word >> (8 * byte));
        return (float)q * scale + min;
    }
};

typedef Quantized<0, u16, 1, false, 8> Q4_0;
typedef Quantized<0, u16, 1, true, 0> Q4_1;
typedef Quantized<1, u16, 1, false, 16> Q5_0;
typedef Quantized<1, u16, 1, true, 0> Q5_1;
typedef Quantized<-1, u16, 1, false, 128> Q8_0;
typedef Quantized<0, float, 1, true, 0> Q4_K;
typedef Quantized<1, float, 1, true, 0> Q5_K;
typedef Quantized<2, float, 2, false, 32> Q6_K;

// Float types: a tile is [input][output].
struct F32 {
    static __device__ __forceinline__ float at(const u8* tile, u64 index) {
        return __ldg(reinterpret_cast<const float*>(tile) + index);
    }
};
struct F16 {
    static __device__ __forceinline__ float at(const u8* tile, u64 index) {
        return half_to_float(__ldg(reinterpret_cast<const u16*>(tile) + index));
    }
};
struct Bf16 {
    static __device__ __forceinline__ float at(const u8* tile, u64 index) {
        return __int_as_float((int)((u32)__ldg(reinterpret_cast<const u16*>(tile) + index) << 16));
    }
};

// Each type: X(its struct, its name in kernels' names).
#define QUANTIZED_TYPES(X) \
    X(Q4_0, q4_0) X(Q4_1, q4_1) X(Q5_0, q5_0) X(Q5_1, q5_1) X(Q8_0, q8_0) X(Q4_K, q4_k) X(Q5_K, q5_k) X(Q6_K, q6_k)
#define FLOAT_TYPES(X) X(F32, f32) X(F16, f16) X(Bf16, bf16)
