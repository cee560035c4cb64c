#include "emulation/fiber.hpp"

#include <sys/mman.h>

#include <cstdint>
#include <new>

#include "emulation/sanitizers.hpp"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace cuda_emulation {

namespace {
constexpr std::size_t stack_bytes = 128 << 10;
}

#if defined(__x86_64__)

// Saves what a called function must preserve, and changes stacks.
extern "C" void dflash_emulation_switch(void** away, void* to);
asm(R"(
.text
.globl dflash_emulation_switch
.type dflash_emulation_switch, @function
dflash_emulation_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size dflash_emulation_switch, . - dflash_emulation_switch
.globl dflash_emulation_start
.type dflash_emulation_start, @function
dflash_emulation_start:
  movq %rbx, %rdi
  callq *%rbp
  ud2
.size dflash_emulation_start, . - dflash_emulation_start
)");
extern "C" void dflash_emulation_start();

namespace {
void* first_frame(char* stack, void (*main)(Fiber*), Fiber* self) {
  void** top = reinterpret_cast<void**>(stack + stack_bytes);
  *--top = nullptr;
  *--top = nullptr;  // the stack is aligned to 16 where start calls main
  *--top = reinterpret_cast<void*>(&dflash_emulation_start);
  *--top = reinterpret_cast<void*>(main);  // rbp
  *--top = self;                           // rbx
  for (int i = 0; i < 4; ++i) *--top = nullptr;
  return top;
}
CUDA_EMULATION_UNWATCHED void change(void** away, void* to) { dflash_emulation_switch(away, to); }
}  // namespace

#else

namespace {
void enter(unsigned main_high, unsigned main_low, unsigned self_high, unsigned self_low) {
  const auto whole = [](unsigned high, unsigned low) {
    return std::uintptr_t(std::uint64_t(high) << 32 | low);
  };
  reinterpret_cast<void (*)(Fiber*)>(whole(main_high, main_low))(
      reinterpret_cast<Fiber*>(whole(self_high, self_low)));
}
void* first_frame(char* stack, void (*main)(Fiber*), Fiber* self) {
  auto* context = new ucontext_t;
  getcontext(context);
  context->uc_stack.ss_sp = stack;
  context->uc_stack.ss_size = stack_bytes;
  context->uc_link = nullptr;
  const auto m = std::uint64_t(reinterpret_cast<std::uintptr_t>(main));
  const auto s = std::uint64_t(reinterpret_cast<std::uintptr_t>(self));
  makecontext(context, reinterpret_cast<void (*)()>(&enter), 4, unsigned(m >> 32), unsigned(m),
              unsigned(s >> 32), unsigned(s));
  return context;
}
CUDA_EMULATION_UNWATCHED void change(void** away, void* to) {
  ucontext_t here;
  *away = &here;
  auto* const there = static_cast<ucontext_t*>(to);
  swapcontext(&here, there);
}
}  // namespace

#endif

CUDA_EMULATION_UNWATCHED Fiber::Fiber() {
  void* const memory = mmap(nullptr, stack_bytes, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  stack_ = static_cast<char*>(memory);
  permit(stack_, stack_bytes);
  here_ = first_frame(stack_, &Fiber::main, this);
#if defined(__SANITIZE_THREAD__)
  thread_ = __tsan_create_fiber(0);
#endif
}

Fiber::~Fiber() {
#if defined(__SANITIZE_THREAD__)
  __tsan_destroy_fiber(thread_);
#endif
  permit(stack_, stack_bytes);
  munmap(stack_, stack_bytes);
}

CUDA_EMULATION_UNWATCHED void Fiber::begin(void (*body)(void*), void* argument) {
  body_ = body;
  argument_ = argument;
}

CUDA_EMULATION_UNWATCHED bool Fiber::idle() const { return body_ == nullptr; }

CUDA_EMULATION_UNWATCHED void Fiber::resume() {
#if defined(__SANITIZE_ADDRESS__)
  void* fake_stack = nullptr;
  __sanitizer_start_switch_fiber(&fake_stack, stack_, stack_bytes);
#endif
#if defined(__SANITIZE_THREAD__)
  resumer_thread_ = __tsan_get_current_fiber();
  __tsan_switch_to_fiber(thread_, __tsan_switch_to_fiber_no_sync);
#endif
  change(&there_, here_);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
#endif
}

CUDA_EMULATION_UNWATCHED void Fiber::pause() { leave(); }

CUDA_EMULATION_UNWATCHED void Fiber::leave() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&fake_stack_, resumer_stack_, resumer_stack_size_);
#endif
#if defined(__SANITIZE_THREAD__)
  __tsan_switch_to_fiber(resumer_thread_, __tsan_switch_to_fiber_no_sync);
#endif
  change(&here_, there_);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake_stack_, &resumer_stack_, &resumer_stack_size_);
#endif
}

CUDA_EMULATION_UNWATCHED void Fiber::main(Fiber* self) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &self->resumer_stack_, &self->resumer_stack_size_);
#endif
  for (;;) {
    self->body_(self->argument_);
    self->body_ = nullptr;
    self->leave();
  }
}

}  // namespace cuda_emulation
