// Kernels that do what a device does not forgive: each check of the emulator has one that it must catch.
#include "../../cuda/common.cuh"

// Half of the threads end before the barrier.
extern "C" __global__ void fault_barrier_skipped(float* out) {
    if (threadIdx.x >= blockDim.x / 2) return;
    __syncthreads();
    out[threadIdx.x] = 1.0f;
}

// The halves wait at barriers of their own.
extern "C" __global__ void fault_barriers_differ(float* out) {
    if (threadIdx.x < blockDim.x / 2) {
        __syncthreads();
    } else {
        __syncthreads();
    }
    out[threadIdx.x] = 1.0f;
}

// Half of the lanes do not take part.
extern "C" __global__ void fault_lanes_missing(float* out) {
    if (threadIdx.x % 2 == 0) out[threadIdx.x] = __shfl_xor_sync(ALL_LANES, 1.0f, 1, 32);
}

// The last thread writes one number behind the buffer.
extern "C" __global__ void fault_write_beyond(float* out) { out[threadIdx.x + 1] = 1.0f; }

// The last thread writes one number behind the block's shared memory.
extern "C" __global__ void fault_shared_beyond(float* out) {
    SHARED(float, part);
    part[threadIdx.x + 1] = 1.0f;
    __syncthreads();
    out[threadIdx.x] = part[threadIdx.x];
}

// A neighbour's number is read without waiting for it.
extern "C" __global__ void fault_no_barrier(float* out) {
    SHARED(float, part);
    part[threadIdx.x] = (float)threadIdx.x;
    out[threadIdx.x] = part[(threadIdx.x + 1) % blockDim.x];
}

// One number behind the buffer is read.
extern "C" __global__ void fault_read_beyond(float* out) {
    float next = out[threadIdx.x + 1];
    if (threadIdx.x + 1 == blockDim.x) out[0] = next;
}
