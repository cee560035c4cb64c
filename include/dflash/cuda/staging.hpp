#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <deque>
#include <mutex>
#include <vector>

#include "dflash/cuda/expects.hpp"
#include "dflash/cuda/memory.hpp"

namespace dflash {

/// A ring of pinned host memory through which uploads go: the caller's memory is free again at
/// once, and the host waits only if it is a whole ring ahead of the device. Any thread may upload.
class CudaStaging {
 public:
  explicit CudaStaging(std::size_t bytes = std::size_t(32) << 20) : size_(bytes), ring_(bytes) {}
  CudaStaging(const CudaStaging&) = delete;
  CudaStaging& operator=(const CudaStaging&) = delete;
  ~CudaStaging() {
    for (Piece& piece : in_flight_) {
      cudaEventSynchronize(piece.landed);
      cudaEventDestroy(piece.landed);
    }
    for (cudaEvent_t event : free_events_) cudaEventDestroy(event);
  }

  /// Copies host memory to the device in the order of the stream.
  void upload(cudaStream_t stream, const void* host, void* device, std::size_t bytes) {
    const std::lock_guard lock(mutex_);
    const std::size_t most = size_ / 4;
    for (std::size_t done = 0; done < bytes;) {
      const std::size_t part = std::min(most, bytes - done);
      char* const here = room_for(part);
      std::memcpy(here, static_cast<const char*>(host) + done, part);
      cuda_expects(cudaMemcpyAsync(static_cast<char*>(device) + done, here, part,
                                   cudaMemcpyHostToDevice, stream),
                   "upload");
      cuda_expects(cudaEventRecord(in_flight_.back().landed, stream), "upload");
      done += part;
    }
  }

 private:
  struct Piece {
    std::size_t begin, end;
    cudaEvent_t landed;
  };

  char* room_for(std::size_t bytes) {
    const std::size_t aligned = (bytes + 255) / 256 * 256;
    if (next_ + aligned > size_) next_ = 0;
    const std::size_t begin = next_, end = next_ + aligned;
    const auto in_the_way = [&] {
      return std::any_of(in_flight_.begin(), in_flight_.end(),
                         [&](const Piece& p) { return p.begin < end && begin < p.end; });
    };
    while (!in_flight_.empty() && (in_flight_.size() >= most_pieces || in_the_way())) {
      cuda_expects(cudaEventSynchronize(in_flight_.front().landed), "upload");
      free_events_.push_back(in_flight_.front().landed);
      in_flight_.pop_front();
    }
    in_flight_.push_back({begin, end, event()});
    next_ = end;
    return ring_.data() + begin;
  }

  cudaEvent_t event() {
    cudaEvent_t event = nullptr;
    if (free_events_.empty()) {
      cuda_expects(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "an event");
    } else {
      event = free_events_.back();
      free_events_.pop_back();
    }
    return event;
  }

  static constexpr std::size_t most_pieces = 64;

  std::mutex mutex_;
  std::size_t size_, next_ = 0;
  PinnedMemory ring_;
  std::deque<Piece> in_flight_;
  std::vector<cudaEvent_t> free_events_;
};

}  // namespace dflash
