// reference.rs: quantize_block
#include "common.cuh"

// Rounds each 32 inputs to 8 bit. One warp a block of inputs, one lane an input.
extern "C" __global__ void round_blocks(const float* x, signed char* q, float* scale, int* sum, u64 blocks) {
    u64 block = (u64)blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    u32 lane = threadIdx.x % 32;
    if (block >= blocks) return;
    float value = x[block * 32 + lane];
    // The reference's maximum starts anew after a NaN, and is one if the last input is.
    u32 nans = __ballot_sync(ALL_LANES, value != value);
    u32 skipped = 32 - __clz((int)nans);
    float amax = lane < skipped ? 0.0f : fabsf(value);
#pragma unroll
    for (int step = 16; step > 0; step /= 2) {
        float other = __shfl_xor_sync(ALL_LANES, amax, step, 32);
        amax = amax > other ? amax : other;
    }
    if (skipped == 32) amax = __int_as_float(0x7fc00000);
    float inverse = amax > 0.0f ? 127.0f / amax : 0.0f;
    float rounded = rintf(value * inverse);
    // Rust's cast: the nearest that fits, and 0 for NaN.
    int integer = rounded >= 127.0f ? 127 : rounded <= -128.0f ? -128 : rounded == rounded ? (int)rounded : 0;
    int total = integer;
#pragma unroll
    for (int step = 16; step > 0; step /= 2) total += __shfl_xor_sync(ALL_LANES, total, step, 32);
    q[block * 32 + lane] = (signed char)integer;
    if (lane == 0) {
        scale[block] = amax / 127.0f;
        sum[block] = total;
    }
}
