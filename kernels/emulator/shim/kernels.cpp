// The kernels of kernels/cuda/, compiled as C++, by name.
#include "../../cuda/kernels.cu"
#include "faults.cu"
#include "machine.h"

using emulator::Entry;

#define QUANTIZED_ENTRIES(T, name) \
    ENTRY(embed_##name), ENTRY(matmul_f32_##name), \
    ENTRY(matmul_int8_row_##name), ENTRY(matmul_int8_few_##name), ENTRY(matmul_int8_many_##name), \
    ENTRY(matmul_int8_tensor_##name),
#define FLOAT_ENTRIES(T, name) ENTRY(embed_##name), ENTRY(matmul_f32_##name),

static const Entry ENTRIES[] = {
    QUANTIZED_TYPES(QUANTIZED_ENTRIES)
    FLOAT_TYPES(FLOAT_ENTRIES)
    ENTRY(attend_f16),
    ENTRY(attend_f32),
    ENTRY(gather),
    ENTRY(merge_spans),
    ENTRY(rms_norm),
    ENTRY(rope),
    ENTRY(round_blocks),
    ENTRY(silu_mul),
    ENTRY(write_kv_f16),
    ENTRY(write_kv_f32),
    ENTRY(fault_barrier_skipped),
    ENTRY(fault_barriers_differ),
    ENTRY(fault_lanes_missing),
    ENTRY(fault_write_beyond),
    ENTRY(fault_shared_beyond),
    ENTRY(fault_no_barrier),
    ENTRY(fault_read_beyond),
};

// The kernel of a name, or null.
extern "C" const Entry* emulator_find(const char* name) {
    for (const Entry& entry : ENTRIES) {
        if (strcmp(entry.name, name) == 0) return &entry;
    }
    return nullptr;
}
