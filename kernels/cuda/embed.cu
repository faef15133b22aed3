// reference.rs: dequantize_row, of the rows of an embedding.
#include "weights.cuh"

// Row i of `out` is row tokens[i] of `w` as f32. One block a row; a thread takes blocks of weights in turn.
template <typename T>
static __device__ __forceinline__ void embed_quantized(const Tiles& w, const u32* tokens, float* out) {
    u32 token = tokens[blockIdx.x];
    const u8* tile = w.data + token / TILE * w.stride;
    u32 lane = token % TILE;
    for (u32 index = threadIdx.x; index < w.k / WEIGHTS; index += blockDim.x) {
        u32 q[8];
        T::integers(w, tile, index, lane, q);
        float min = T::minimum(w, tile, index, lane);
        float* to = out + (u64)blockIdx.x * w.k + index * WEIGHTS;
#pragma unroll
        for (int g = 0; g < 8; g++) {
            float scale = T::scale(w, tile, index, g * T::PARTS / 8, lane);
#pragma unroll
            for (int byte = 0; byte < 4; byte++) to[4 * g + byte] = T::weight(q[g], byte, scale, min);
        }
    }
}

template <typename T>
static __device__ __forceinline__ void embed_floats(const Tiles& w, const u32* tokens, float* out) {
    u32 token = tokens[blockIdx.x];
    const u8* tile = w.data + token / TILE * w.stride;
    for (u32 i = threadIdx.x; i < w.k; i += blockDim.x) {
        out[(u64)blockIdx.x * w.k + i] = T::at(tile, (u64)i * TILE + token % TILE);
    }
}

#define EMBED_QUANTIZED(T, name)                                                               \
    extern "C" __global__ void embed_##name(Tiles w, const u32* tokens, float* out) { \
        embed_quantized<T>(w, tokens, out);                                                    \
    }
#define EMBED_FLOATS(T, name)                                                                  \
    extern "C" __global__ void embed_##name(Tiles w, const u32* tokens, float* out) { \
        embed_floats<T>(w, tokens, out);                                                       \
    }
QUANTIZED_TYPES(EMBED_QUANTIZED)
FLOAT_TYPES(EMBED_FLOATS)
