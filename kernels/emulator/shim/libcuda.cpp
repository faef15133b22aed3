// A library with the name and the calls of NVIDIA's driver, as far as `CudarcDriver` uses them, over the emulator: so
// that what talks to the driver runs in tests. Strict where the driver is: calls need the context of their thread, and
// what is put into the stream happens when somebody waits for it, with the arguments of the time of the call.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <functional>
#include <map>
#include <mutex>
#include <vector>

#include "machine.h"
#include "shim.h"

extern "C" {
struct Machine;
const emulator::Entry* emulator_find(const char* name);
Machine* emulator_machine_new();
const char* emulator_run(Machine*, const emulator::Entry*, const emulator::Dim3* grid, const emulator::Dim3* block,
                         unsigned shared, void** arguments, uint64_t first, uint64_t step, uint64_t order);
}

#define CALL extern "C" __attribute__((visibility("default"))) int

namespace {

// Of cuda.h's CUresult.
enum { SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, INVALID_DEVICE = 101, INVALID_IMAGE = 200,
       INVALID_CONTEXT = 201, INVALID_HANDLE = 400, NOT_FOUND = 500, LAUNCH_FAILED = 719 };

const size_t MEMORY = 1 << 30;
const uint32_t FATBIN = 0xba55ed50;

int context, stream, module;
thread_local void* current;
std::mutex guard;
std::map<uint64_t, size_t> allocations;
size_t used;
std::vector<std::function<void()>> queue;
// Stays once a kernel has failed.
int failure;
bool stream_is_there, module_is_there, started;

bool entered() { return current == &context; }

// Whether bytes lie within an allocation.
bool within(uint64_t address, size_t bytes) {
    auto after = allocations.upper_bound(address);
    if (after == allocations.begin()) return false;
    --after;
    return address + bytes <= after->first + after->second;
}

void flush() {
    for (auto& act : queue) {
        if (failure == SUCCESS) act();
    }
    queue.clear();
}

int put(void* to, std::function<void()> act) {
    if (!entered()) return INVALID_CONTEXT;
    if (to != &stream || !stream_is_there) return INVALID_HANDLE;
    queue.push_back(act);
    return failure;
}

}  // namespace

CALL cuInit(unsigned flags) {
    started = true;
    return flags == 0 ? SUCCESS : INVALID_VALUE;
}
CALL cuDeviceGetCount(int* count) {
    *count = 1;
    return started ? SUCCESS : 3;
}
CALL cuDeviceGet(int* device, int ordinal) {
    *device = ordinal;
    return ordinal == 0 ? SUCCESS : INVALID_DEVICE;
}
CALL cuDeviceGetName(char* name, int bytes, int) {
    snprintf(name, bytes, "stand-in");
    return SUCCESS;
}
CALL cuDevicePrimaryCtxRetain(void** of, int) {
    *of = &context;
    return SUCCESS;
}
CALL cuDevicePrimaryCtxRelease_v2(int) { return SUCCESS; }
CALL cuCtxSetCurrent(void* of) {
    current = of;
    return of == &context ? SUCCESS : INVALID_CONTEXT;
}
CALL cuGetErrorName(int error, const char** name) {
    *name = error == LAUNCH_FAILED ? "CUDA_ERROR_LAUNCH_FAILED" : "CUDA_ERROR";
    return SUCCESS;
}
CALL cuGetErrorString(int, const char** text) {
    *text = "said by the stand-in";
    return SUCCESS;
}

CALL cuStreamCreate(void** of, unsigned flags) {
    if (!entered()) return INVALID_CONTEXT;
    stream_is_there = true;
    *of = &stream;
    return flags == 1 ? SUCCESS : INVALID_VALUE;
}
CALL cuStreamSynchronize(void* of) {
    std::lock_guard<std::mutex> lock(guard);
    if (!entered()) return INVALID_CONTEXT;
    if (of != &stream || !stream_is_there) return INVALID_HANDLE;
    flush();
    return failure;
}
CALL cuStreamDestroy_v2(void* of) {
    stream_is_there = false;
    return of == &stream && queue.empty() ? SUCCESS : INVALID_HANDLE;
}

CALL cuModuleLoadData(void** of, const void* image) {
    if (!entered()) return INVALID_CONTEXT;
    uint32_t magic;
    memcpy(&magic, image, sizeof magic);
    if (magic != FATBIN || reinterpret_cast<uintptr_t>(image) % 8 != 0) return INVALID_IMAGE;
    module_is_there = true;
    *of = &module;
    return SUCCESS;
}
CALL cuModuleGetFunction(const void** function, void* of, const char* name) {
    if (of != &module || !module_is_there) return INVALID_HANDLE;
    *function = emulator_find(name);
    return *function != nullptr ? SUCCESS : NOT_FOUND;
}
CALL cuModuleUnload(void* of) {
    module_is_there = false;
    return of == &module ? SUCCESS : INVALID_HANDLE;
}

CALL cuMemGetInfo_v2(size_t* free, size_t* total) {
    *free = MEMORY - used;
    *total = MEMORY;
    return entered() ? SUCCESS : INVALID_CONTEXT;
}
CALL cuMemAlloc_v2(uint64_t* address, size_t bytes) {
    std::lock_guard<std::mutex> lock(guard);
    if (!entered()) return INVALID_CONTEXT;
    if (bytes == 0) return INVALID_VALUE;
    if (bytes > MEMORY - used) return OUT_OF_MEMORY;
    void* memory = aligned_alloc(256, (bytes + 255) / 256 * 256);
    memset(memory, 0xff, bytes);
    *address = reinterpret_cast<uint64_t>(memory);
    allocations[*address] = bytes;
    used += bytes;
    return SUCCESS;
}
CALL cuMemFree_v2(uint64_t address) {
    std::lock_guard<std::mutex> lock(guard);
    if (!entered()) return INVALID_CONTEXT;
    flush();
    auto found = allocations.find(address);
    if (found == allocations.end()) return INVALID_VALUE;
    used -= found->second;
    allocations.erase(found);
    free(reinterpret_cast<void*>(address));
    return SUCCESS;
}

CALL cuMemcpyHtoDAsync_v2(uint64_t to, const void* from, size_t bytes, void* of) {
    std::lock_guard<std::mutex> lock(guard);
    if (!within(to, bytes)) return INVALID_VALUE;
    // As the driver stages memory that is not locked.
    std::vector<unsigned char> staged(static_cast<const unsigned char*>(from),
                                      static_cast<const unsigned char*>(from) + bytes);
    return put(of, [=] { memcpy(reinterpret_cast<void*>(to), staged.data(), bytes); });
}
CALL cuMemcpyDtoHAsync_v2(void* to, uint64_t from, size_t bytes, void* of) {
    std::lock_guard<std::mutex> lock(guard);
    if (!within(from, bytes)) return INVALID_VALUE;
    return put(of, [=] { memcpy(to, reinterpret_cast<void*>(from), bytes); });
}
CALL cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t bytes, void* of) {
    std::lock_guard<std::mutex> lock(guard);
    if (!within(to, bytes) || !within(from, bytes)) return INVALID_VALUE;
    return put(of, [=] { memcpy(reinterpret_cast<void*>(to), reinterpret_cast<void*>(from), bytes); });
}

CALL cuLaunchKernel(const emulator::Entry* kernel, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                    unsigned bz, unsigned shared, void* of, void** arguments, void** extra) {
    std::lock_guard<std::mutex> lock(guard);
    uint64_t blocks = (uint64_t)gx * gy * gz, threads = (uint64_t)bx * by * bz;
    if (blocks == 0 || threads == 0 || threads > 1024 || shared > 48 << 10 || extra != nullptr) return INVALID_VALUE;
    if (gy > 65535 || gz > 65535) return INVALID_VALUE;
    std::vector<std::vector<unsigned char>> kept;
    for (unsigned i = 0; i < kernel->arguments; i++) {
        const unsigned char* bytes = static_cast<const unsigned char*>(arguments[i]);
        kept.emplace_back(bytes, bytes + kernel->sizes[i]);
    }
    return put(of, [=]() mutable {
        static Machine* machine = emulator_machine_new();
        std::vector<void*> places;
        for (auto& bytes : kept) places.push_back(bytes.data());
        emulator::Dim3 grid = {gx, gy, gz}, block = {bx, by, bz};
        if (emulator_run(machine, kernel, &grid, &block, shared, places.data(), 0, 1, 0)) failure = LAUNCH_FAILED;
    });
}
