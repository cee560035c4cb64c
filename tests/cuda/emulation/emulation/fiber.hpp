#pragma once

#include <cstddef>

namespace cuda_emulation {

/// A thread of control of its own stack that runs only while somebody resumes it.
class Fiber {
 public:
  Fiber();
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  /// The next resume begins body(argument). The fiber must be idle.
  void begin(void (*body)(void*), void* argument);
  /// Runs the fiber until it pauses or its body returns.
  void resume();
  /// Back to whoever resumed this fiber. Called on the fiber.
  void pause();
  /// No body is under way.
  bool idle() const;

 private:
  static void main(Fiber* self);
  void leave();

  void (*body_)(void*) = nullptr;
  void* argument_ = nullptr;
  char* stack_ = nullptr;
  void *here_ = nullptr, *there_ = nullptr;  // stack pointers while away: of this, of the resumer
  void *fake_stack_ = nullptr, *thread_ = nullptr;  // for the sanitizers
  void* resumer_thread_ = nullptr;
  const void* resumer_stack_ = nullptr;
  std::size_t resumer_stack_size_ = 0;
};

}  // namespace cuda_emulation
