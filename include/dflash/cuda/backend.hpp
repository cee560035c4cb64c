#pragma once

#include <cuda_runtime.h>

#include <concepts>
#include <cstdint>
#include <memory>
#include <mutex>
#include <type_traits>

#include "dflash/core/backend.hpp"
#include "dflash/core/bfloat16.hpp"
#include "dflash/core/error.hpp"
#include "dflash/cuda/expects.hpp"
#include "dflash/cuda/fault.hpp"
#include "dflash/cuda/gemm.hpp"
#include "dflash/cuda/memory.hpp"
#include "dflash/cuda/memory_watch.hpp"
#include "dflash/cuda/staging.hpp"
#include "dflash/cuda/stream.hpp"
#include "dflash/cuda/uploads.hpp"

namespace dflash {

/// The current CUDA device: activations and weights in T, everything summed in float (for T = float
/// that is fp32 arithmetic, never TF32). All work but uploads_beside is in the order of one stream;
/// only download and synchronize wait for it.
template <class T>
requires(std::same_as<T, float> || std::same_as<T, bfloat16>) class CudaBackend {
 public:
  using value_type = T;
  using accumulator_type = float;
  static constexpr bool host_memory = false;
  static constexpr index_t head_rows = 4096;  // how many linear_cross_entropy likes to have
  template <class U>
  using Buffer = CachedBuffer<U>;

  /// A copy of a weight matrix, for products: as it is, or in whole numbers (freeze_int8).
  struct FrozenMatrix {
    Buffer<T> data;
    index_t rows = 0, columns = 0;
    Buffer<std::int8_t> whole;  // instead of data: w = whole * scale
    Buffer<float> scale;        // (rows)
  };

  CudaBackend() : device_(std::make_unique<Device>()) {}

  /// Uninitialised memory; it may outlive the backend.
  template <class U>
  Buffer<U> allocate(index_t n) {
    static_assert(std::is_trivially_copyable_v<U>);
    expects(n >= 0, "CudaBackend: a negative number of elements");
    use_device();
    Buffer<U> buffer(device_->cache, n);
    cuda::memory_taken(stream(), buffer.data(), std::size_t(n) * sizeof(U), buffer.room());
    return buffer;
  }
  template <class U>
  void upload(const U* host, U* here, index_t n) {
    use_device();
    device_->staging.upload(stream(), host, here, bytes<U>(n));
  }
  /// See uploads_beside.
  CudaUploads uploads_beside() {
    use_device();
    Device& d = *device_;
    std::call_once(d.lane_made, [&] { d.lane = std::make_unique<CudaUploadLane>(); });
    return {d.stream, *d.lane};
  }
  template <class U>
  void download(const U* here, U* host, index_t n) {
    cuda_expects(cudaMemcpyAsync(host, here, bytes<U>(n), cudaMemcpyDeviceToHost, stream()),
                 "download");
    synchronize();
  }
  template <class U>
  void copy(const U* from, U* to, index_t n) {
    if (n > 0)
      cuda_expects(cudaMemcpyAsync(to, from, bytes<U>(n), cudaMemcpyDeviceToDevice, stream()),
                   "copy");
  }
  /// Waits for all work. Throws what a kernel found wrong since the last time.
  void synchronize() {
    Device& d = *device_;
    cuda_expects(
        cudaMemcpyAsync(d.host_fault, d.fault, sizeof(int), cudaMemcpyDeviceToHost, d.stream),
        "synchronize");
    cuda_expects(cudaStreamSynchronize(d.stream), "synchronize");
    const CudaFault found = CudaFault(*d.host_fault);
    if (found == CudaFault::none) return;
    cuda_expects(cudaMemsetAsync(d.fault, 0, sizeof(int), d.stream), "synchronize");
    throw Error(text(found));
  }

  cudaStream_t stream() const { return device_->stream; }
  CudaGemm& gemm() { return device_->gemm; }
  /// Where kernels write a CudaFault.
  int* fault() const { return device_->fault; }
  int multiprocessors() const { return device_->multiprocessors; }

  /// How often memory had to come from the system: constant once training is under way.
  index_t system_allocations() const { return device_->cache->system_allocations(); }

 private:
  /// Memory may be asked for and filled by any thread; each has a current device of its own.
  void use_device() { cuda_expects(cudaSetDevice(device_->number), "the backend's GPU"); }

  template <class U>
  static std::size_t bytes(index_t n) {
    return std::size_t(n) * sizeof(U);
  }

  /// What moves with the backend as one. The stream goes last.
  struct Device {
    CudaStream owned_stream;
    cudaStream_t stream = owned_stream.get();
    std::shared_ptr<MemoryCache> cache = std::make_shared<MemoryCache>(device_memory());
    CudaStaging staging;
    std::once_flag lane_made;
    std::unique_ptr<CudaUploadLane> lane;  // from its first use on
    CudaGemm gemm{stream};
    Buffer<int> fault_memory{cache, 1};
    int* fault = fault_memory.data();
    PinnedMemory pinned_fault{sizeof(int)};
    int* host_fault = reinterpret_cast<int*>(pinned_fault.data());
    int number = 0, multiprocessors = 0;

    Device() {
      cuda_expects(cudaMemsetAsync(fault, 0, sizeof(int), stream), "a CUDA backend");
      cudaDeviceProp properties;
      cuda_expects(cudaGetDevice(&number), "the CUDA device");
      cuda_expects(cudaGetDeviceProperties(&properties, number), "the CUDA device");
      multiprocessors = properties.multiProcessorCount;
    }
    Device(const Device&) = delete;
    Device& operator=(const Device&) = delete;
    ~Device() { cudaStreamSynchronize(stream); }
  };

  std::unique_ptr<Device> device_;
};

static_assert(Backend<CudaBackend<float>>);
static_assert(Backend<CudaBackend<bfloat16>>);

}  // namespace dflash
