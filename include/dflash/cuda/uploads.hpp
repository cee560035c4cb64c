#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstddef>
#include <mutex>
#include <thread>
#include <vector>

#include "dflash/core/config.hpp"
#include "dflash/core/error.hpp"
#include "dflash/core/thread_pool.hpp"
#include "dflash/cuda/expects.hpp"
#include "dflash/cuda/memory.hpp"
#include "dflash/cuda/stream.hpp"

namespace dflash {

/// Where uploads run beside a backend's work: a stream, and threads that fill pinned memory. Each
/// thread has two pieces of it: one is filled while the other crosses the bus.
class CudaUploadLane {
 public:
  /// On the current device. `threads` includes the caller's.
  explicit CudaUploadLane(int threads = usual_threads(), std::size_t piece_bytes = std::size_t(2)
                                                                                   << 20)
      : piece_bytes_(piece_bytes),
        pinned_(2 * std::size_t(threads) * piece_bytes),
        own_(std::size_t(threads)),
        pool_(threads) {
    cuda_expects(cudaGetDevice(&device_), "the CUDA device");
  }

  /// A GPU's share of the machine's cores; eight together outrun its bus.
  static int usual_threads() {
    int devices = 1;
    cuda_expects(cudaGetDeviceCount(&devices), "the CUDA devices");
    return std::clamp(int(std::thread::hardware_concurrency()) / devices, 1, 8);
  }

  cudaStream_t stream() const { return stream_.get(); }

  /// Rows that fill(range, out) makes: it is called by several threads at once, and when this
  /// returns all rows are on their way.                                     here (rows, width)
  template <class U, class Fill>
  void upload_rows(index_t rows, index_t width, U* here, Fill&& fill) {
    if (rows * width == 0) return;
    const auto most = index_t(piece_bytes_ / (std::size_t(width) * sizeof(U)));
    expects(most > 0, "a row fits into a piece of pinned memory");
    const std::lock_guard lock(mutex_);
    pool_.parallel_for((rows + most - 1) / most, [&](index_t i, int thread) {
      const Range some{i * most, std::min(rows, (i + 1) * most)};
      OfThread& own = own_[std::size_t(thread)];
      const CudaMark& landed = own.landed[own.turn];
      cuda_expects(cudaSetDevice(device_), "the backend's GPU");
      cuda_expects(cudaEventSynchronize(landed.get()), "upload");
      char* const piece = pinned_.data() + std::size_t(2 * thread + own.turn) * piece_bytes_;
      fill(some, reinterpret_cast<U*>(piece));
      cuda_expects(cudaMemcpyAsync(here + some.begin * width, piece,
                                   std::size_t(some.size() * width) * sizeof(U),
                                   cudaMemcpyHostToDevice, stream()),
                   "upload");
      cuda_expects(cudaEventRecord(landed.get(), stream()), "upload");
      own.turn = 1 - own.turn;
    });
  }

 private:
  struct OfThread {
    // Who waits for a piece to land leaves the core to others.
    CudaMark landed[2]{CudaMark(cudaEventBlockingSync), CudaMark(cudaEventBlockingSync)};
    int turn = 0;
  };

  std::size_t piece_bytes_;
  int device_ = 0;
  PinnedMemory pinned_;
  CudaStream stream_;  // ends before the memory it reads
  std::vector<OfThread> own_;
  std::mutex mutex_;
  ThreadPool pool_;
};

/// Uploads beside a backend's work; see uploads_beside. Freed memory is used again in the order of
/// that work, so the lane first waits for what had been given by then, and only for that; the work
/// that is given after this has gone waits for the lane.
class CudaUploads {
 public:
  CudaUploads(cudaStream_t work, CudaUploadLane& lane) : work_(work), lane_(&lane) {
    cuda_expects(cudaEventRecord(free_.get(), work_), "uploads");
    cuda_expects(cudaStreamWaitEvent(lane_->stream(), free_.get(), 0), "uploads");
  }
  CudaUploads(const CudaUploads&) = delete;
  CudaUploads& operator=(const CudaUploads&) = delete;
  ~CudaUploads() {
    cudaEventRecord(landed_.get(), lane_->stream());
    cudaStreamWaitEvent(work_, landed_.get(), 0);
  }

  /// See CudaUploadLane.
  template <class U, class Fill>
  void upload_rows(index_t rows, index_t width, U* here, Fill&& fill) {
    lane_->upload_rows(rows, width, here, fill);
  }

 private:
  cudaStream_t work_;
  CudaUploadLane* lane_;
  CudaMark free_, landed_;
};

}  // namespace dflash
