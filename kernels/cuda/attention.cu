// reference.rs: paged_attention, as two kernels: the state of each span by itself, then the spans merged in order.
#include "common.cuh"

// Query heads of one kv head that a thread block takes through a span.
#define HEADS 8

// Slots that a query sees, and how its row is shaped: `Shape` of kernels/src/cuda/attention.rs, field by field.
struct Shape {
    u32 heads;
    u32 kv_heads;
    u32 dim;
    // 0: all slots are seen.
    u32 window;
    float scale;
    // 0: none.
    float softcap;
    // Spans of which a row has room for its states.
    u32 spans;
    // Row of the first block in the grid.
    u32 first_row;
};

// The first slot that the query at slot `end - 1` sees.
static __device__ __forceinline__ u32 first_seen(const Shape& s, u32 end) {
    return s.window > 0 && end > s.window ? end - s.window : 0;
}

// The accumulated values of each head: a thread an element, and as many heads as there are threads too few for, which
// read a value once. `to`: where head 0's begin, `apart`: how far the next head's are.
template <typename Number>
static __device__ __forceinline__ void weigh(const float* scores, const Number* values, const u32* table,
                                             const Shape& s, u32 kv_head, u32 first, u32 end, u32 count, float* to,
                                             u64 apart) {
    const u32 teams = max(blockDim.x / s.dim, 1u);
    const u32 team = threadIdx.x / s.dim;
    if (team >= teams) return;
    for (u32 d = threadIdx.x % s.dim; d < s.dim; d += blockDim.x) {
        float acc[HEADS];
#pragma unroll
        for (int j = 0; j < HEADS; j++) acc[j] = 0.0f;
        for (u32 block = first / SLOTS; block * SLOTS < end; block++) {
            const u64 start = ((u64)__ldg(table + block) * s.kv_heads + kv_head) * SLOTS * s.dim + d;
            const u32 low = max(first, block * SLOTS), high = min(end, (block + 1) * SLOTS);
#pragma unroll 4
            for (u32 it = low; it < high; it++) {
                const float v = load(values, start + (u64)(it % SLOTS) * s.dim);
#pragma unroll
                for (int j = 0; j < HEADS; j++) {
                    const u32 h = team + j * teams;
                    if (h < count) acc[j] = fmaf(scores[h * SPAN + it % SPAN], v, acc[j]);
                }
            }
        }
#pragma unroll
        for (int j = 0; j < HEADS; j++) {
            const u32 h = team + j * teams;
            if (h < count) to[h * apart + d] = acc[j];
        }
    }
}

// The state of one row, kv head and span: for each head its highest score, 16 sums and `dim` accumulated values.
// Grid: (rows, kv heads * head groups, spans). Threads: SPAN. Shared: HEADS * (dim + SPAN + 1) floats.
// `lengths[row]`: slots that the row's query sees, its own included; `offsets[row]`: where its block table begins.
template <typename Number>
static __device__ __forceinline__ void attend(const float* q, const Number* keys, const Number* values,
                                              const u32* lengths, const u32* offsets, const u32* tables,
                                              const Shape& s, float* states) {
    SHARED(float, shared);
    const u32 row = s.first_row + blockIdx.x;
    const u32 group = s.heads / s.kv_heads;
    const u32 parts = (group + HEADS - 1) / HEADS;
    const u32 kv_head = blockIdx.y / parts;
    const u32 first_head = blockIdx.y % parts * HEADS;
    const u32 count = min(group - first_head, (u32)HEADS);
    const u32 seen_end = lengths[row];
    const u32 seen = first_seen(s, seen_end);
    const u32 span = seen / SPAN + blockIdx.z;
    if (span * SPAN >= seen_end) return;
    const u32 first = max(seen, span * SPAN), end = min(seen_end, (span + 1) * SPAN);
    const u32* table = tables + offsets[row];

    float* queries = shared;
    float* scores = queries + HEADS * s.dim;
    float* highest = scores + HEADS * SPAN;
    const u64 head = (u64)row * s.heads + (u64)kv_head * group + first_head;
    for (u32 i = threadIdx.x; i < count * s.dim; i += blockDim.x) queries[i] = q[head * s.dim + i];
    __syncthreads();

    // A thread a slot: its scores with all heads.
    const u32 slot = span * SPAN + threadIdx.x;
    const bool sees = slot >= first && slot < end;
    if (sees) {
        float even[HEADS], odd[HEADS];
#pragma unroll
        for (int h = 0; h < HEADS; h++) even[h] = odd[h] = 0.0f;
        const u64 start = ((u64)table[slot / SLOTS] * s.kv_heads + kv_head) * SLOTS * s.dim + slot % SLOTS;
        for (u32 d = 0; d < s.dim; d += 2) {
            const float k = load(keys, start + (u64)d * SLOTS);
#pragma unroll
            for (int h = 0; h < HEADS; h++) {
                if (h < count) even[h] = fmaf(queries[h * s.dim + d], k, even[h]);
            }
            if (d + 1 == s.dim) break;
            const float next = load(keys, start + (u64)(d + 1) * SLOTS);
#pragma unroll
            for (int h = 0; h < HEADS; h++) {
                if (h < count) odd[h] = fmaf(queries[h * s.dim + d + 1], next, odd[h]);
            }
        }
#pragma unroll
        for (int h = 0; h < HEADS; h++) {
            if (h >= count) break;
            float score = (even[h] + odd[h]) * s.scale;
            if (s.softcap != 0.0f) score = softcap_ref(score, s.softcap);
            scores[h * SPAN + threadIdx.x] = score;
        }
    }
    __syncthreads();

    // The highest of each head: a warp a head. A NaN is never the highest.
    const u32 lane = threadIdx.x % 32;
    for (u32 h = threadIdx.x / 32; h < count; h += blockDim.x / 32) {
        float max = __int_as_float((int)0xff800000u);
        for (u32 at = lane; at < SPAN; at += 32) {
            const u32 it = span * SPAN + at;
            if (it < first || it >= end) continue;
            const float score = scores[h * SPAN + at];
            max = score > max ? score : max;
        }
#pragma unroll
        for (int step = 16; step > 0; step /= 2) {
            const float other = __shfl_xor_sync(ALL_LANES, max, step, 32);
            max = other > max ? other : max;
        }
        if (lane == 0) highest[h] = max;
    }
    __syncthreads();
    for (u32 h = 0; h < count; h++) {
        if (sees) scores[h * SPAN + threadIdx.x] = exp_ref(scores[h * SPAN + threadIdx.x] - highest[h]);
    }
    __syncthreads();

    // States: [max][16 sums][dim accumulated].
    const u32 width = 1 + LANES + s.dim;
    const u64 own = (u64)(blockIdx.x * s.heads + kv_head * group + first_head) * s.spans + blockIdx.z;
    for (u32 i = threadIdx.x; i < count * (1 + LANES); i += blockDim.x) {
        const u32 h = i / (1 + LANES), part = i % (1 + LANES);
        float value = highest[h];
        if (part > 0) {
            value = 0.0f;
            for (u32 at = part - 1; at < SPAN; at += LANES) {
                const u32 it = span * SPAN + at;
                if (it >= first && it < end) value = value + scores[h * SPAN + at];
            }
        }
        states[(own + (u64)h * s.spans) * width + part] = value;
    }
    weigh(scores, values, table, s, kv_head, first, end, count, states + own * width + 1 + LANES, (u64)s.spans * width);
}

extern "C" __global__ void attend_f32(const float* q, const float* keys, const float* values, const u32* lengths,
                                      const u32* offsets, const u32* tables, Shape s, float* states) {
    attend(q, keys, values, lengths, offsets, tables, s, states);
}

extern "C" __global__ void attend_f16(const float* q, const u16* keys, const u16* values, const u32* lengths,
                                      const u32* offsets, const u32* tables, Shape s, float* states) {
    attend(q, keys, values, lengths, offsets, tables, s, states);
}

// reference.rs: SpanState::merge, span by span, then the division by the sum. Grid: (rows, heads).
// A thread a number: the first warp has the sums. Threads: a multiple of 32, at least 32. Shared: 1 float.
extern "C" __global__ void merge_spans(const float* states, const u32* lengths, Shape s, float* out) {
    SHARED(float, sum);
    const u32 row = s.first_row + blockIdx.x;
    const u32 end = lengths[row];
    const u32 spans = (end + SPAN - 1) / SPAN - first_seen(s, end) / SPAN;
    const u32 width = 1 + LANES + s.dim;
    const float* state = states + (u64)(blockIdx.x * s.heads + blockIdx.y) * s.spans * width;
    const u32 own = 1 + threadIdx.x;
    float* to = out + ((u64)row * s.heads + blockIdx.y) * s.dim;
    // The sums first; a thread beyond them runs along, so that the warp stays whole.
    for (u32 first = 0; first < s.dim + blockDim.x; first += blockDim.x) {
        const bool sums = first == 0;
        const u32 d = first - blockDim.x + threadIdx.x;
        const u32 at = sums ? own : 1 + LANES + d;
        const bool has = sums ? threadIdx.x < LANES : d < s.dim;
        float max = __int_as_float((int)0xff800000u), mine = 0.0f;
        for (u32 span = 0; span < spans && has; span++) {
            const float theirs = state[(u64)span * width];
            const float highest = theirs > max ? theirs : max;
            const float a = exp_ref(max - highest), b = exp_ref(theirs - highest);
            max = highest;
            mine = fmaf(state[(u64)span * width + at], b, mine * a);
        }
        if (sums) {
            if (threadIdx.x < 32) {
                mine = sum_lanes(mine);
                if (threadIdx.x == 0) *sum = mine;
            }
            __syncthreads();
        } else if (has) {
            to[d] = mine / *sum;
        }
    }
}
