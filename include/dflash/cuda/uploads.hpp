#pragma once

#include <cuda_runtime.h>

#include "dflash/core/config.hpp"
#include "dflash/cuda/expects.hpp"
#include "dflash/cuda/staging.hpp"
#include "dflash/cuda/stream.hpp"

namespace dflash {

/// Where uploads run beside a backend's work: a stream, and pinned memory that is not held up by
/// the uploads in the order of that work.
struct CudaUploadLane {
  CudaStream stream;
  CudaStaging staging;
};

/// Uploads beside a backend's work; see uploads_beside. Freed memory is used again in the order of
/// that work, so the lane first waits for what had been given by then, and only for that; the work
/// that is given after this has gone waits for the lane.
class CudaUploads {
 public:
  CudaUploads(cudaStream_t work, CudaUploadLane& lane) : work_(work), lane_(&lane) {
    cuda_expects(cudaEventRecord(free_.get(), work_), "uploads");
    cuda_expects(cudaStreamWaitEvent(lane_->stream.get(), free_.get(), 0), "uploads");
  }
  CudaUploads(const CudaUploads&) = delete;
  CudaUploads& operator=(const CudaUploads&) = delete;
  ~CudaUploads() {
    cudaEventRecord(landed_.get(), lane_->stream.get());
    cudaStreamWaitEvent(work_, landed_.get(), 0);
  }

  template <class U>
  void upload(const U* host, U* here, index_t n) {
    lane_->staging.upload(lane_->stream.get(), host, here, std::size_t(n) * sizeof(U));
  }

 private:
  cudaStream_t work_;
  CudaUploadLane* lane_;
  CudaMark free_, landed_;
};

}  // namespace dflash
