// reference.rs: rms_norm
#include "common.cuh"

// Numbers of a row that lie in shared memory at once.
#define NORM_PART 2048

// out = x / sqrt(mean(x^2) + eps) * weight. One block a row. All threads fetch; the first 16 keep the reference's
// 16 sums, in its order. Shared: NORM_PART + 1 floats.
extern "C" __global__ void rms_norm(const float* x, const float* weight, float eps, u32 width, float* out) {
    SHARED(float, part);
    float* inverse = part + NORM_PART;
    const float* row = x + (u64)blockIdx.x * width;
    float sum = 0.0f;
    for (u32 first = 0; first < width; first += NORM_PART) {
        u32 count = min(width - first, (u32)NORM_PART);
        for (u32 i = threadIdx.x; i < count; i += blockDim.x) part[i] = row[first + i];
        __syncthreads();
        if (threadIdx.x < LANES) {
            for (u32 i = threadIdx.x; i < count; i += LANES) sum = fmaf(part[i], part[i], sum);
        }
        __syncthreads();
    }
    if (threadIdx.x < 32) {
        sum = sum_lanes(sum);
        if (threadIdx.x == 0) *inverse = 1.0f / sqrtf(sum / (float)width + eps);
    }
    __syncthreads();
    float by = *inverse;
    for (u32 i = threadIdx.x; i < width; i += blockDim.x) {
        out[(u64)blockIdx.x * width + i] = row[i] * by * weight[i];
    }
}
