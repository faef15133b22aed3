// reference.rs: silu_mul; and the gathering of rows.
#include "common.cuh"

// out = gate / (1 + e^-gate) * up, `len` of each. One thread a number.
extern "C" __global__ void silu_mul(const float* gate, const float* up, float* out, u64 len) {
    u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= len) return;
    float g = gate[i];
    out[i] = g / (1.0f + exp_ref(-g)) * up[i];
}

// Row i of `out` is row rows[i] of `x`. One block row a row, one thread a number.
extern "C" __global__ void gather(const float* x, const u32* rows, float* out, u32 width) {
    u32 i = blockIdx.y * blockDim.x + threadIdx.x;
    if (i >= width) return;
    out[(u64)blockIdx.x * width + i] = x[(u64)rows[blockIdx.x] * width + i];
}
