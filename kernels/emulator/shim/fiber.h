// A thread of execution that goes on where it left off: on x86-64 by exchanging stack pointers, elsewhere by ucontext.
#pragma once

#include <stddef.h>
#include <stdint.h>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace emulator {

#if defined(__x86_64__)

// Saves what a call must preserve on the stack, notes the stack in `from`, and goes on with that of `to`.
extern "C" void emulator_switch(void** from, void* to);

struct Fiber {
    void* stack_pointer = nullptr;

    // To begin with `entry`, which never returns, on the given stack.
    void prepare(unsigned char* stack, size_t bytes, void (*entry)()) {
        void** top = reinterpret_cast<void**>((reinterpret_cast<uintptr_t>(stack) + bytes) & ~uintptr_t(15));
        // As after a call: the entry finds its stack 8 bytes off a multiple of 16.
        *--top = nullptr;
        *--top = reinterpret_cast<void*>(entry);
        for (int i = 0; i < 6; i++) *--top = nullptr;
        stack_pointer = top;
    }
    void go_on(Fiber& from) { emulator_switch(&from.stack_pointer, stack_pointer); }
};

#else

struct Fiber {
    ucontext_t context;

    void prepare(unsigned char* stack, size_t bytes, void (*entry)()) {
        getcontext(&context);
        context.uc_stack.ss_sp = stack;
        context.uc_stack.ss_size = bytes;
        context.uc_link = nullptr;
        makecontext(&context, entry, 0);
    }
    void go_on(Fiber& from) { swapcontext(&from.context, &context); }
};

#endif

}  // namespace emulator
