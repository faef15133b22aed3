// reference.rs: matmul_f32
//
// One fma an input in ascending order: a chain that cannot be split. One thread block makes one tile of 16 outputs
// for up to 8 rows: all threads turn a part of the tile into f32 in shared memory, then one thread an output and row
// walks it.
#include "weights.cuh"

// Inputs whose weights lie in shared memory at once.
#define WALK_PART 256
#define WALK_ROWS 8

// Adds the products of `count` inputs, whose weights lie in `weights`, [input][output].
static __device__ __forceinline__ float walk(const float* weights, const float* x, u32 count, u32 lane, float acc) {
#pragma unroll 8
    for (u32 i = 0; i < count; i++) acc = fmaf(__ldg(x + i), weights[i * TILE + lane], acc);
    return acc;
}

// A part of a tile as f32, from input `first` on.
template <typename T>
struct QuantizedPart {
    static __device__ __forceinline__ void fill(const Tiles& w, const u8* tile, u32 first, u32 count, float* weights) {
        const u32 lane = threadIdx.x % TILE;
        for (u32 at = threadIdx.x / TILE; at < count / WEIGHTS; at += blockDim.x / TILE) {
            const u32 index = first / WEIGHTS + at;
            u32 q[8];
            T::integers(w, tile, index, lane, q);
            const float min = T::minimum(w, tile, index, lane);
#pragma unroll
            for (int g = 0; g < 8; g++) {
                const float scale = T::scale(w, tile, index, g * T::PARTS / 8, lane);
#pragma unroll
                for (int byte = 0; byte < 4; byte++) {
                    weights[(at * WEIGHTS + 4 * g + byte) * TILE + lane] = T::weight(q[g], byte, scale, min);
                }
            }
        }
    }
};

template <typename T>
struct FloatPart {
    static __device__ __forceinline__ void fill(const Tiles&, const u8* tile, u32 first, u32 count, float* weights) {
        for (u32 i = threadIdx.x; i < count * TILE; i += blockDim.x) weights[i] = T::at(tile, (u64)first * TILE + i);
    }
};

// Shared: WALK_PART * TILE floats. Grid: (row groups of WALK_ROWS, tiles). Threads: WALK_ROWS * TILE.
template <typename Part>
static __device__ __forceinline__ void matmul_f32(const Tiles& w, const float* x, u32 rows, float* out, u32 add) {
    SHARED(float, weights);
    const u8* tile = w.data + blockIdx.y * w.stride;
    const u32 lane = threadIdx.x % TILE;
    const u32 row = blockIdx.x * WALK_ROWS + threadIdx.x / TILE;
    float acc = 0.0f;
    for (u32 first = 0; first < w.k; first += WALK_PART) {
        const u32 count = min(w.k - first, (u32)WALK_PART);
        Part::fill(w, tile, first, count, weights);
        __syncthreads();
        if (row < rows) acc = walk(weights, x + (u64)row * w.k + first, count, lane, acc);
        __syncthreads();
    }
    const u32 output = blockIdx.y * TILE + lane;
    if (row < rows && output < w.n) {
        float* to = out + (u64)row * w.n + output;
        *to = add ? *to + acc : acc;
    }
}

#define MATMUL_F32_QUANTIZED(T, name)                                                                           \
    extern "C" __global__ void matmul_f32_##name(Tiles w, const float* x, u32 rows, float* out, u32 add) {      \
        matmul_f32<QuantizedPart<T> >(w, x, rows, out, add);                                                    \
    }
#define MATMUL_F32_FLOATS(T, name)                                                                              \
    extern "C" __global__ void matmul_f32_##name(Tiles w, const float* x, u32 rows, float* out, u32 add) {      \
        matmul_f32<FloatPart<T> >(w, x, rows, out, add);                                                        \
    }
QUANTIZED_TYPES(MATMUL_F32_QUANTIZED)
FLOAT_TYPES(MATMUL_F32_FLOATS)
