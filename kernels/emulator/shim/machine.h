// A kernel as the machine calls it.
#pragma once

#include <stddef.h>
#include <utility>

namespace emulator {

struct Entry {
    const char* name;
    void (*call)(void** arguments);
    unsigned arguments;
    // Bytes of each argument.
    const unsigned* sizes;
};

template <auto kernel>
struct Caller;

// Takes the arguments from where they lie, as cuLaunchKernel does.
template <typename... A, void (*kernel)(A...)>
struct Caller<kernel> {
    static const unsigned count = sizeof...(A);
    static constexpr unsigned sizes[] = {sizeof(A)...};
    static void call(void** arguments) { spread(arguments, std::make_index_sequence<sizeof...(A)>()); }
    template <size_t... I>
    static void spread(void** arguments, std::index_sequence<I...>) {
        kernel(*static_cast<A*>(arguments[I])...);
    }
};

#define ENTRY(kernel)                                                                 \
    {#kernel, emulator::Caller<&kernel>::call, emulator::Caller<&kernel>::count, \
     emulator::Caller<&kernel>::sizes}

}  // namespace emulator
