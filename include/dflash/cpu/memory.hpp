#pragma once

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <cstddef>
#include <cstdlib>
#include <mutex>
#include <new>

#include "dflash/core/memory_cache.hpp"

namespace dflash {

/// Owns n uninitialised elements of host memory, 64-byte aligned.
template <class U>
using CpuBuffer = CachedBuffer<U>;

namespace detail {

/// Host memory in large pages, through which weights that are read from end to end come up to twice
/// as fast. Blocks smaller than a page share slabs; a slab goes when all its blocks have gone.
class LargePages {
 public:
  static void* allocate(std::size_t bytes) {
    const std::size_t total = (bytes + 2 * line - 1) / line * line;
    if (total >= page) return block_in(aligned(page, total), nullptr);
    if (total < page / 64) return block_in(aligned(line, total), nullptr);
    std::lock_guard lock(mutex_);
    if (slab_ == nullptr || slab_->used + total > slab_size) {
      if (slab_ != nullptr) leave(slab_);
      void* const memory = aligned(page, slab_size);
      slab_ = memory == nullptr ? nullptr : new (memory) Slab;
      if (slab_ == nullptr) return nullptr;
    }
    ++slab_->users;
    void* const block = block_in(reinterpret_cast<std::byte*>(slab_) + slab_->used, slab_);
    slab_->used += total;
    return block;
  }

  static void free(void* block) noexcept {
    Header* const header = static_cast<Header*>(block) - 1;
    if (header->slab == nullptr) return std::free(header);
    std::lock_guard lock(mutex_);
    leave(header->slab);
  }

 private:
  static constexpr std::size_t line = 64, page = 1 << 21, slab_size = 8 * page;

  struct alignas(line) Slab {
    std::size_t used = sizeof(Slab), users = 1;  // blocks, and the next one's
  };
  struct alignas(line) Header {
    Slab* slab;  // null: the block has memory of its own
  };

  static void* aligned(std::size_t alignment, std::size_t bytes) {
    void* const memory =
        std::aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    if (memory != nullptr && alignment == page)
      ::madvise(memory, bytes / page * page, MADV_HUGEPAGE);
#endif
    return memory;
  }
  static void* block_in(void* memory, Slab* slab) {
    return memory == nullptr ? nullptr : new (memory) Header{slab} + 1;
  }
  static void leave(Slab* slab) noexcept {
    if (--slab->users == 0) std::free(slab);
  }

  static inline std::mutex mutex_;
  static inline Slab* slab_ = nullptr;
};

}  // namespace detail

/// Host memory in large pages.
inline MemorySource large_page_memory() {
  return {detail::LargePages::allocate, detail::LargePages::free};
}

}  // namespace dflash
