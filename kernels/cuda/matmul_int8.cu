// reference.rs: matmul_int8
//
// The integer dot products of a block of 32 are exact, so that any thread may make any of them; only the float sum
// over blocks has an order. So all threads make the dots of a part of the row into shared memory, half a warp a block
// of weights (its 16 lanes read 64 bytes in a row at a time); then one thread an output and row adds them up, block by
// block. How many rows share a thread block changes no bit.
#include "weights.cuh"

// The exact dots of a block: of the whole, or of each half for types with two scales.
template <typename T>
static __device__ __forceinline__ void dots_of(const u32* weights, const signed char* q, u64 block, int* dot) {
    const int4* words = reinterpret_cast<const int4*>(q + block * WEIGHTS);
    const int4 low = __ldg(words), high = __ldg(words + 1);
    int first = __dp4a((int)weights[0], low.x, 0);
    first = __dp4a((int)weights[1], low.y, first);
    first = __dp4a((int)weights[2], low.z, first);
    first = __dp4a((int)weights[3], low.w, first);
    int second = __dp4a((int)weights[4], high.x, T::PARTS == 1 ? first : 0);
    second = __dp4a((int)weights[5], high.y, second);
    second = __dp4a((int)weights[6], high.z, second);
    second = __dp4a((int)weights[7], high.w, second);
    dot[0] = T::PARTS == 1 ? second : first;
    if (T::PARTS == 2) dot[1] = second;
}

// What a block adds to an output: one product, or two where a block has two scales or a minimum.
template <int PRODUCTS>
struct __align__(8 * PRODUCTS) Term {
    float factors[2 * PRODUCTS];
};

// Blocks whose terms lie in shared memory at once.
#define ROW_PART 128
// Blocks whose weights half a warp asks for at once: memory is slow, and one row gives it little else to do.
#define FLIGHT 4

// One row: nothing is shared between rows, so that scales are multiplied by all threads, too, and the sum is left
// with one fused operation a product. Grid: (tiles). Threads: a multiple of 16. Shared: ROW_PART * TILE terms.
template <typename T>
static __device__ __forceinline__ void matmul_row(const Tiles& w, const signed char* q, const float* scales,
                                                  const int* sums, float* out, u32 add) {
    const int PRODUCTS = T::PARTS == 2 || T::MIN ? 2 : 1;
    SHARED(Term<PRODUCTS>, terms);
    const u32 blocks = w.k / WEIGHTS;
    const u8* tile = w.data + blockIdx.x * w.stride;
    const u32 lane = threadIdx.x % TILE;
    const u32 halves = blockDim.x / TILE;
    float acc = 0.0f;
    for (u32 first = 0; first < blocks; first += ROW_PART) {
        const u32 part = min(blocks - first, (u32)ROW_PART);
        for (u32 at = threadIdx.x / TILE; at < part; at += FLIGHT * halves) {
            // All weights are asked for before any is used; behind the end, the last block's once more.
            u32 weights[FLIGHT][8];
#pragma unroll
            for (int j = 0; j < FLIGHT; j++) {
                T::integers(w, tile, first + min(at + j * halves, part - 1), lane, weights[j]);
            }
#pragma unroll
            for (int j = 0; j < FLIGHT; j++) {
                const u32 own = min(at + j * halves, part - 1), block = first + own;
                int dot[2];
                dots_of<T>(weights[j], q, block, dot);
                const float by = __ldg(scales + block);
                Term<PRODUCTS> term;
#pragma unroll
                for (int p = 0; p < T::PARTS; p++) {
                    term.factors[2 * p] = (float)dot[p];
                    term.factors[2 * p + 1] = T::scale(w, tile, block, p, lane) * by;
                }
                if (T::MIN) {
                    term.factors[2 * PRODUCTS - 2] = T::minimum(w, tile, block, lane);
                    term.factors[2 * PRODUCTS - 1] = by * (float)__ldg(sums + block);
                }
                // Whoever makes the last block once more writes the same.
                terms[own * TILE + lane] = term;
            }
        }
        __syncthreads();
        if (threadIdx.x < TILE) {
#pragma unroll 8
            for (u32 at = 0; at < part; at++) {
                const Term<PRODUCTS> term = terms[at * TILE + lane];
#pragma unroll
                for (int p = 0; p < PRODUCTS; p++) acc = fmaf(term.factors[2 * p], term.factors[2 * p + 1], acc);
            }
        }
        __syncthreads();
    }
    const u32 output = blockIdx.x * TILE + lane;
    if (threadIdx.x < TILE && output < w.n) out[output] = add ? out[output] + acc : acc;
}

// Rows that use a block's weights while they are in registers.
#define GROUP 8
// Dots that lie in shared memory at once.
#define DOTS 8192

// Up to ROWS rows. Grid: (row groups, tiles): neighbours read the same weights. Threads: ROWS * TILE.
// Shared: DOTS ints.
template <typename T, int ROWS>
static __device__ __forceinline__ void matmul_rows(const Tiles& w, const signed char* q, const float* scales,
                                                   const int* sums, u32 rows, float* out, u32 add) {
    SHARED(int, dots);
    // Blocks at once, and how the threads divide them: half a warp a block and a group of rows.
    const u32 PART = DOTS / (ROWS * TILE * T::PARTS);
    const u32 GROUPS = ROWS / GROUP;
    const u32 blocks = w.k / WEIGHTS;
    const u8* tile = w.data + blockIdx.y * w.stride;
    const u32 first_row = blockIdx.x * ROWS;
    const u32 count = min(rows - first_row, (u32)ROWS);
    const u32 lane = threadIdx.x % TILE;
    const u32 row = threadIdx.x / TILE;
    float acc = 0.0f;
    for (u32 first = 0; first < blocks; first += PART) {
        const u32 part = min(blocks - first, PART);
        for (u32 item = threadIdx.x / TILE; item < part * GROUPS; item += ROWS) {
            const u32 at = item / GROUPS, group = item % GROUPS * GROUP;
            if (group >= count) continue;
            u32 weights[8];
            T::integers(w, tile, first + at, lane, weights);
            // Without a branch, so that the inputs are asked for together: rows behind the end are the last once more.
#pragma unroll
            for (int j = 0; j < GROUP; j++) {
                const u32 r = min(group + j, count - 1);
                int dot[2];
                dots_of<T>(weights, q, (u64)(first_row + r) * blocks + first + at, dot);
#pragma unroll
                for (int p = 0; p < T::PARTS; p++) dots[((r * T::PARTS + p) * PART + at) * TILE + lane] = dot[p];
            }
        }
        __syncthreads();
        if (row < count) {
            const u64 x = (u64)(first_row + row) * blocks + first;
#pragma unroll 4
            for (u32 at = 0; at < part; at++) {
                const float by = __ldg(scales + x + at);
#pragma unroll
                for (int p = 0; p < T::PARTS; p++) {
                    const float dot = (float)dots[((row * T::PARTS + p) * PART + at) * TILE + lane];
                    acc = fmaf(dot, T::scale(w, tile, first + at, p, lane) * by, acc);
                }
                if (T::MIN) acc = fmaf(T::minimum(w, tile, first + at, lane), by * (float)__ldg(sums + x + at), acc);
            }
        }
        __syncthreads();
    }
    const u32 output = blockIdx.y * TILE + lane;
    if (row < count && output < w.n) {
        float* to = out + (u64)(first_row + row) * w.n + output;
        *to = add ? *to + acc : acc;
    }
}

#define MATMUL_INT8(T, name)                                                                                        \
    extern "C" __global__ void matmul_int8_row_##name(Tiles w, const signed char* q, const float* scales,           \
                                                      const int* sums, u32 rows, float* out, u32 add) {             \
        matmul_row<T>(w, q, scales, sums, out, add);                                                                \
    }                                                                                                               \
    extern "C" __global__ void __launch_bounds__(128) matmul_int8_few_##name(                                       \
        Tiles w, const signed char* q, const float* scales, const int* sums, u32 rows, float* out, u32 add) {       \
        matmul_rows<T, 8>(w, q, scales, sums, rows, out, add);                                                      \
    }                                                                                                               \
    extern "C" __global__ void __launch_bounds__(512, 1) matmul_int8_many_##name(                                      \
        Tiles w, const signed char* q, const float* scales, const int* sums, u32 rows, float* out, u32 add) {       \
        matmul_rows<T, 32>(w, q, scales, sums, rows, out, add);                                                     \
    }
QUANTIZED_TYPES(MATMUL_INT8)
