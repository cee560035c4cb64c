#pragma once

#include <cuda_runtime.h>

#include "dflash/cuda/expects.hpp"

namespace dflash {

/// A stream of its own on the current device.
class CudaStream {
 public:
  CudaStream() {
    cuda_expects(cudaStreamCreateWithFlags(&handle_, cudaStreamNonBlocking), "a CUDA stream");
  }
  CudaStream(const CudaStream&) = delete;
  CudaStream& operator=(const CudaStream&) = delete;
  ~CudaStream() {
    cudaStreamSynchronize(handle_);
    cudaStreamDestroy(handle_);
  }

  cudaStream_t get() const { return handle_; }

 private:
  cudaStream_t handle_ = nullptr;
};

/// A CUDA event that lasts as long as somebody waits for it.
class CudaMark {
 public:
  explicit CudaMark(unsigned flags = 0) {
    cuda_expects(cudaEventCreateWithFlags(&event_, flags | cudaEventDisableTiming), "a CUDA event");
  }
  CudaMark(const CudaMark&) = delete;
  CudaMark& operator=(const CudaMark&) = delete;
  ~CudaMark() { cudaEventDestroy(event_); }

  cudaEvent_t get() const { return event_; }

 private:
  cudaEvent_t event_ = nullptr;
};

}  // namespace dflash
