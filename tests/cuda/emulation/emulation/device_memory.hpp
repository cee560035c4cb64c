#pragma once

#include <cstddef>
#include <map>
#include <mutex>

namespace cuda_emulation {

/// The device's memory: what the host touches outside a stream's work is a fault.
class DeviceMemory {
 public:
  static constexpr std::size_t most_bytes = std::size_t(16) << 30;

  DeviceMemory();

  /// While one lives, everybody may read and write.
  class Open {
   public:
    explicit Open(DeviceMemory& memory) : memory_(memory) { memory_.open(); }
    ~Open() { memory_.close(); }
    Open(const Open&) = delete;
    Open& operator=(const Open&) = delete;

   private:
    DeviceMemory& memory_;
  };

  /// Poisoned memory, aligned to 256 bytes; null if there is no more.
  void* allocate(std::size_t bytes);
  /// Misuse if `at` is not what allocate gave.
  void free(void* at);
  /// Misuse unless all the bytes lie in one allocation.
  void check(const void* at, std::size_t bytes);
  bool contains(const void* at) const {
    const auto* p = static_cast<const char*>(at);
    return p >= base_ && p < base_ + most_bytes;
  }
  std::size_t bytes();

 private:
  void open();
  void close();

  std::mutex mutex_;
  char* base_ = nullptr;
  std::size_t used_ = 0, live_bytes_ = 0;
  int openers_ = 0;
  std::map<const char*, std::size_t> live_;
  std::multimap<std::size_t, char*> free_;  // by room
};

DeviceMemory& device_memory();

}  // namespace cuda_emulation
