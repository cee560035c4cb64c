#include "emulation/device_memory.hpp"

#include <sys/mman.h>

#include <new>
#include <string>

#include "emulation/block.hpp"
#include "emulation/sanitizers.hpp"

namespace cuda_emulation {

namespace {
constexpr std::size_t page = 4096, alignment = 256, guard = 256;
std::size_t room_for(std::size_t bytes) {
  return (bytes + alignment - 1) / alignment * alignment + guard;
}
std::size_t pages(std::size_t bytes) { return (bytes + page - 1) / page * page; }
}  // namespace

DeviceMemory::DeviceMemory() {
  void* const memory =
      mmap(nullptr, most_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  base_ = static_cast<char*>(memory);
}

void DeviceMemory::open() {
  std::lock_guard lock(mutex_);
  if (openers_++ == 0 && used_ > 0) mprotect(base_, pages(used_), PROT_READ | PROT_WRITE);
}
void DeviceMemory::close() {
  std::lock_guard lock(mutex_);
  if (--openers_ == 0 && used_ > 0) mprotect(base_, pages(used_), PROT_NONE);
}

void* DeviceMemory::allocate(std::size_t bytes) {
  if (bytes == 0) return nullptr;
  char* at = nullptr;
  const std::size_t room = room_for(bytes);
  {
    std::lock_guard lock(mutex_);
    if (const auto found = free_.find(room); found != free_.end()) {
      at = found->second;
      free_.erase(found);
    } else {
      if (used_ + room > most_bytes) return nullptr;
      at = base_ + used_;
      used_ += room;
      if (openers_ > 0) mprotect(base_, pages(used_), PROT_READ | PROT_WRITE);
    }
    live_[at] = bytes;
    live_bytes_ += bytes;
  }
  const Open open(*this);
  permit(at, bytes);
  forbid(at + bytes, room - bytes);
  poison(at, bytes);
  return at;
}

void DeviceMemory::free(void* at) {
  std::lock_guard lock(mutex_);
  const auto found = live_.find(static_cast<char*>(at));
  if (found == live_.end()) throw Misuse("device memory is given back that is not there");
  forbid(at, found->second);
  live_bytes_ -= found->second;
  free_.emplace(room_for(found->second), static_cast<char*>(at));
  live_.erase(found);
}

void DeviceMemory::check(const void* at, std::size_t bytes) {
  std::lock_guard lock(mutex_);
  auto found = live_.upper_bound(static_cast<const char*>(at));
  if (found != live_.begin()) --found;
  if (found == live_.end() || static_cast<const char*>(at) < found->first ||
      static_cast<const char*>(at) + bytes > found->first + found->second)
    throw Misuse("a copy of " + std::to_string(bytes) + " bytes leaves its device memory");
}

std::size_t DeviceMemory::bytes() {
  std::lock_guard lock(mutex_);
  return live_bytes_;
}

DeviceMemory& device_memory() {
  static DeviceMemory memory;
  return memory;
}

}  // namespace cuda_emulation
