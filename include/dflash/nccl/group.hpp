#pragma once

#include <cuda_runtime.h>
#include <nccl.h>

#include <chrono>
#include <exception>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <utility>

#include "dflash/nccl/expects.hpp"
#include "dflash/nccl/watchdog.hpp"

namespace dflash::detail {

/// An NCCL communicator and its stream. NCCL never blocks the host here: every call that may be
/// under way is waited for with a time-out.
class NcclGroup {
 public:
  /// `make(comm, config)` starts the making of the communicator, a part of `parent` if there is
  /// one.
  NcclGroup(int rank, int size, std::shared_ptr<NcclWatchdog> watchdog,
            const std::function<ncclResult_t(ncclComm_t*, ncclConfig_t*)>& make,
            const NcclGroup* parent = nullptr)
      : rank_(rank), size_(size), watchdog_(std::move(watchdog)) {
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    cuda_expects(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "a CUDA stream");
    // A part exists once its parent has done its share, which writes to `made` until then, perhaps
    // after this has failed.
    const auto made = std::make_shared<ncclComm_t>();
    watchdog_->keep(made);
    try {
      watchdog_->call([&] { nccl_expects(make(made.get(), &config), "NCCL's start"); });
      if (parent != nullptr) parent->settle("ncclCommSplit");
      comm_ = *made;
      settle("NCCL's start");
    } catch (...) {
      if (comm_ != nullptr) ncclCommAbort(comm_);
      cudaStreamDestroy(stream_);
      throw;
    }
    watchdog_->add(comm_);
  }
  NcclGroup(const NcclGroup&) = delete;
  NcclGroup& operator=(const NcclGroup&) = delete;
  ~NcclGroup() {
    if (watchdog_->remove(comm_)) {  // else it is gone already
      // Finalizing waits for the peers; a rank that fails is alone.
      if (std::uncaught_exceptions() > 0 || !finalized())
        ncclCommAbort(comm_);
      else
        ncclCommDestroy(comm_);
    }
    cudaStreamDestroy(stream_);
  }

  int rank() const { return rank_; }
  int size() const { return size_; }
  ncclComm_t comm() const { return comm_; }
  cudaStream_t stream() const { return stream_; }
  const std::shared_ptr<NcclWatchdog>& watchdog() const { return watchdog_; }

  /// Waits until NCCL has done what it does in the background. Error after the time-out.
  void settle(const char* what) const {
    const auto end =
        NcclWatchdog::clock::now() + std::chrono::duration<double>(watchdog_->time_out());
    for (int turn = 0;; ++turn) {
      ncclResult_t state = ncclSuccess;
      watchdog_->call([&] { nccl_expects(ncclCommGetAsyncError(comm_, &state), what); });
      if (state != ncclInProgress) return nccl_expects(state, what);
      if (NcclWatchdog::clock::now() > end)
        throw Error(std::string(what) + ": rank " + std::to_string(rank_) + " of " +
                    std::to_string(size_) + " has waited " +
                    std::to_string(int(watchdog_->time_out())) + " s for the other ranks");
      if (turn < 100)
        std::this_thread::yield();
      else
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
  }

  /// Sends and receives of `messages()` as one piece of work of this group's stream.
  template <class Messages>
  void together(const char* collective, Messages&& messages) const {
    watchdog_->call([&] {
      nccl_expects(ncclGroupStart(), collective);
      try {
        messages();
      } catch (...) {
        ncclGroupEnd();
        throw;
      }
      nccl_expects(ncclGroupEnd(), collective);
    });
    settle(collective);
  }

 private:
  bool finalized() const {
    try {
      watchdog_->call([&] { nccl_expects(ncclCommFinalize(comm_), "NCCL's end"); });
      settle("NCCL's end");
      return true;
    } catch (const Error&) {
      return false;
    }
  }

  int rank_, size_;
  std::shared_ptr<NcclWatchdog> watchdog_;
  ncclComm_t comm_ = nullptr;
  cudaStream_t stream_ = nullptr;
};

}  // namespace dflash::detail
