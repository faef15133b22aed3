// Keys and values on their way to the cache: keys [block][kv head][dim][slot], values [block][kv head][slot][dim].
#include "common.cuh"

// Stores row blockIdx.x at slot id slots[blockIdx.x]. One block a row, `heads * dim` numbers of each.
template <typename Number>
static __device__ __forceinline__ void write_rows(Number* keys, Number* values, const float* k, const float* v,
                                                  const u32* slots, u32 heads, u32 dim) {
    u32 slot = slots[blockIdx.x];
    u64 block = slot / SLOTS;
    u32 offset = slot % SLOTS;
    u64 width = (u64)heads * dim;
    for (u32 i = threadIdx.x; i < width; i += blockDim.x) {
        u32 head = i / dim, d = i % dim;
        u64 start = (block * heads + head) * SLOTS * dim;
        store(keys, start + (u64)d * SLOTS + offset, k[blockIdx.x * width + i]);
        store(values, start + (u64)offset * dim + d, v[blockIdx.x * width + i]);
    }
}

extern "C" __global__ void write_kv_f32(float* keys, float* values, const float* k, const float* v, const u32* slots,
                                        u32 heads, u32 dim) {
    write_rows(keys, values, k, v, slots, heads, dim);
}

extern "C" __global__ void write_kv_f16(u16* keys, u16* values, const float* k, const float* v, const u32* slots,
                                        u32 heads, u32 dim) {
    write_rows(keys, values, k, v, slots, heads, dim);
}
