// reference.rs: matmul_int8
//
// The integer dot products of a block of 32 are exact, so that any thread may make any of them; only the float sum
// over blocks has an order. One thread block makes one tile of 16 outputs for up to ROWS rows: all threads make the
// dots of a part of the row into shared memory, then one thread an output and row adds them up, block by block.
#include "weights.cuh"

// Blocks of 32 whose dots lie in shared memory at once.
#define DOT_PART 32

// Shared: DOT_PART * PARTS * ROWS * TILE ints. Grid: (tiles, row groups). Threads: a multiple of 32, and at least ROWS * TILE.
template <typename T, int ROWS>
static __device__ __forceinline__ void matmul_int8(const Tiles& w, const signed char* q, const float* scales,
                                                   const int* sums, u32 rows, float* out, u32 add) {
    SHARED(int, dots);
    const u32 blocks = w.k / WEIGHTS;
    const u8* tile = w.data + blockIdx.x * w.stride;
    const u32 first_row = blockIdx.y * ROWS;
    const u32 count = min(rows - first_row, (u32)ROWS);
    const u32 lane = threadIdx.x % TILE;
    const u32 row = threadIdx.x / TILE;
    float acc = 0.0f;
    for (u32 first = 0; first < blocks; first += DOT_PART) {
        const u32 part = min(blocks - first, (u32)DOT_PART);
        for (u32 at = threadIdx.x / TILE; at < part; at += blockDim.x / TILE) {
            u32 weights[8];
            T::integers(w, tile, first + at, lane, weights);
#pragma unroll
            for (int r = 0; r < ROWS; r++) {
                if (r >= count) break;
                const u64 x = (u64)(first_row + r) * blocks + first + at;
                const int4* words = reinterpret_cast<const int4*>(q + x * WEIGHTS);
                const int4 low = words[0], high = words[1];
                int dot[2] = {0, 0};
                dot[0] = __dp4a((int)weights[0], low.x, dot[0]);
                dot[0] = __dp4a((int)weights[1], low.y, dot[0]);
                dot[0] = __dp4a((int)weights[2], low.z, dot[0]);
                dot[0] = __dp4a((int)weights[3], low.w, dot[0]);
                dot[1] = __dp4a((int)weights[4], high.x, dot[1]);
                dot[1] = __dp4a((int)weights[5], high.y, dot[1]);
                dot[1] = __dp4a((int)weights[6], high.z, dot[1]);
                dot[1] = __dp4a((int)weights[7], high.w, dot[1]);
                if (T::PARTS == 1) dot[0] += dot[1];
#pragma unroll
                for (int p = 0; p < T::PARTS; p++) dots[((r * T::PARTS + p) * DOT_PART + at) * TILE + lane] = dot[p];
            }
        }
        __syncthreads();
        if (row < count) {
            const u64 x = (u64)(first_row + row) * blocks + first;
            for (u32 at = 0; at < part; at++) {
                const float by = scales[x + at];
#pragma unroll
                for (int p = 0; p < T::PARTS; p++) {
                    const float dot = (float)dots[((row * T::PARTS + p) * DOT_PART + at) * TILE + lane];
                    acc = fmaf(dot, T::scale(w, tile, first + at, p, lane) * by, acc);
                }
                if (T::MIN) acc = fmaf(T::minimum(w, tile, first + at, lane), by * (float)sums[x + at], acc);
            }
        }
        __syncthreads();
    }
    const u32 output = blockIdx.x * TILE + lane;
    if (row < count && output < w.n) {
        float* to = out + (u64)(first_row + row) * w.n + output;
        *to = add ? *to + acc : acc;
    }
}

#define MATMUL_INT8(T, name)                                                                                    \
    extern "C" __global__ void matmul_int8_##name(Tiles w, const signed char* q, const float* scales,           \
                                                  const int* sums, u32 rows, float* out, u32 add) {             \
        matmul_int8<T, 8>(w, q, scales, sums, rows, out, add);                                                  \
    }                                                                                                           \
    extern "C" __global__ void matmul_int8_##name##_row(Tiles w, const signed char* q, const float* scales,     \
                                                        const int* sums, u32 rows, float* out, u32 add) {       \
        matmul_int8<T, 1>(w, q, scales, sums, rows, out, add);                                                  \
    }
QUANTIZED_TYPES(MATMUL_INT8)
