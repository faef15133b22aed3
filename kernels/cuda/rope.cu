// reference.rs: rope
#include "common.cuh"

// Turns each head of each row by its position. One block a row; a thread takes pairs of all heads in turn.
// `apart`: how far apart the elements of a pair lie; `step`: how far apart pairs do.
extern "C" __global__ void rope(float* x, const u32* positions, const float* cosines, const float* sines, u32 heads,
                                u32 dim, u32 pairs, u32 apart, u32 step) {
    u64 at = (u64)positions[blockIdx.x] * pairs;
    float* row = x + (u64)blockIdx.x * heads * dim;
    for (u32 i = threadIdx.x; i < heads * pairs; i += blockDim.x) {
        u32 pair = i % pairs;
        float* first = row + i / pairs * dim + pair * step;
        float* second = first + apart;
        float a = *first, b = *second, c = cosines[at + pair], s = sines[at + pair];
        *first = a * c - b * s;
        *second = a * s + b * c;
    }
}
