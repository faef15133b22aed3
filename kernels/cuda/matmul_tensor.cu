// reference.rs: matmul_int8, for many rows: the exact dots by tensor cores, the float sums in registers.
//
// A block of 32 inputs is one step of the tensor cores for 16 outputs and 8 rows, and a tile of weights lies as they
// take it. A warp walks the blocks in order, so that every sum has the reference's order without any exchange.
#include "weights.cuh"

// Rows of a warp, and warps of a thread block, which read the same weights.
#define TENSOR_ROWS 32
#define TENSOR_WARPS 4

// Grid: (groups of TENSOR_ROWS * TENSOR_WARPS rows, tiles). Threads: 32 * TENSOR_WARPS.
template <typename T>
static __device__ __forceinline__ void matmul_tensor(const Tiles& w, const signed char* q, const float* scales,
                                                     const int* sums, u32 rows, float* out, u32 add) {
    const int STEPS = TENSOR_ROWS / 8;
    const u32 blocks = w.k / WEIGHTS;
    const u8* tile = w.data + blockIdx.y * w.stride;
    const u32 g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    const u32 first_row = (blockIdx.x * TENSOR_WARPS + threadIdx.x / 32) * TENSOR_ROWS;
    if (first_row >= rows) return;
    float acc[STEPS][4];
#pragma unroll
    for (int i = 0; i < 4 * STEPS; i++) acc[i / 4][i % 4] = 0.0f;
    for (u32 block = 0; block < blocks; block++) {
        u32 a[4];
        T::groups(w, tile, block, g, t, &a[0], &a[2]);
        T::groups(w, tile, block, g + 8, t, &a[1], &a[3]);
#pragma unroll
        for (int step = 0; step < STEPS; step++) {
            // Rows behind the end are the last once more, and not written.
            const u32 row = first_row + 8 * step;
            const u64 x = (u64)min(row + g, rows - 1) * blocks + block;
            const u32* words = reinterpret_cast<const u32*>(q + x * WEIGHTS) + t;
            const u32 b[2] = {__ldg(words), __ldg(words + 4)};
            int dots[2][4] = {{0, 0, 0, 0}, {0, 0, 0, 0}};
            if (T::PARTS == 1) {
                mma_32(dots[0], a, b);
            } else {
                mma_16(dots[0], a, b);
                mma_16(dots[1], a + 2, b + 1);
            }
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const u64 own = (u64)min(row + 2 * t + i % 2, rows - 1) * blocks + block;
                const u32 lane = g + i / 2 * 8;
                const float by = __ldg(scales + own);
#pragma unroll
                for (int p = 0; p < T::PARTS; p++) {
                    acc[step][i] = fmaf((float)dots[p][i], T::scale(w, tile, block, p, lane) * by, acc[step][i]);
                }
                if (T::MIN) {
                    const float sum = (float)__ldg(sums + own);
                    acc[step][i] = fmaf(T::minimum(w, tile, block, lane), by * sum, acc[step][i]);
                }
            }
        }
    }
#pragma unroll
    for (int step = 0; step < STEPS; step++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const u32 row = first_row + 8 * step + 2 * t + i % 2;
            const u32 output = blockIdx.y * TILE + g + i / 2 * 8;
            if (row >= rows || output >= w.n) continue;
            float* to = out + (u64)row * w.n + output;
            *to = add ? *to + acc[step][i] : acc[step][i];
        }
    }
}

#define MATMUL_TENSOR(T, name)                                                                                 \
    extern "C" __global__ void __launch_bounds__(128) matmul_int8_tensor_##name(                               \
        Tiles w, const signed char* q, const float* scales, const int* sums, u32 rows, float* out, u32 add) {  \
        matmul_tensor<T>(w, q, scales, sums, rows, out, add);                                                  \
    }
QUANTIZED_TYPES(MATMUL_TENSOR)
