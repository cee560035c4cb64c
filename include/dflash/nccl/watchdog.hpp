#pragma once

#include <cuda_runtime.h>
#include <nccl.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "dflash/core/config.hpp"
#include "dflash/core/error.hpp"
#include "dflash/cuda/expects.hpp"
#include "dflash/cuda/stream.hpp"

namespace dflash::detail {

/// Looks after the collectives that this rank has started, on a thread of its own: the host does
/// not wait for them, and a peer that is gone would keep the device waiting for ever. When NCCL
/// reports an error, the job of the hosts has failed, or a collective takes longer than the
/// time-out, all communicators are aborted, which releases the device, and the job is ended.
class NcclWatchdog {
 public:
  using clock = std::chrono::steady_clock;

  struct Options {
    double time_out;  // seconds
    int rank;         // in the world
    /// Tells all ranks' numbers of begun collectives, once all that wait too have come.
    std::function<std::vector<index_t>(index_t)> gather_numbers;
    /// Why the job of the hosts has failed; empty if it has not.
    std::function<std::string()> host_failure;
    /// Ends the job of all ranks; where ranks are threads it may return or throw.
    std::function<void(const std::string&)> end_job;
  };

  explicit NcclWatchdog(Options options) : options_(std::move(options)) {
    cuda_expects(cudaGetDevice(&device_), "the CUDA device");
    thread_ = std::thread([this] { watch(); });
  }
  NcclWatchdog(const NcclWatchdog&) = delete;
  NcclWatchdog& operator=(const NcclWatchdog&) = delete;
  ~NcclWatchdog() {
    {
      std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    wake_.notify_all();
    thread_.join();
  }

  double time_out() const { return options_.time_out; }

  /// Keeps what NCCL may write to as long as any communicator is there.
  void keep(std::shared_ptr<ncclComm_t> place) {
    std::lock_guard lock(mutex_);
    places_.push_back(std::move(place));
  }
  void add(ncclComm_t comm) {
    std::lock_guard lock(mutex_);
    comms_.push_back(comm);
  }
  /// False if the watchdog has aborted it.
  bool remove(ncclComm_t comm) {
    std::lock_guard lock(mutex_);
    return std::erase(comms_, comm) > 0;
  }

  /// Makes calls to NCCL, one thread at a time: the watchdog calls it too, and the state of a
  /// communicator is not safe to read and change at once. Throws if the job has failed: its
  /// communicators are gone then.
  template <class Calls>
  void call(Calls&& calls) {
    std::lock_guard lock(mutex_);
    if (!failure_.empty()) throw Error(failure_);
    calls();
  }
  /// Counts a collective that begins. Throws if the job has failed.
  void begin() {
    call([&] { ++number_; });
  }
  /// A collective is over once `done` is reached.
  void started(const char* collective, std::shared_ptr<CudaMark> done) {
    std::lock_guard lock(mutex_);
    pending_.push_back({collective, number_, clock::now(), std::move(done)});
  }

  /// The job cannot go on: releases the device, remembers why and ends the job.
  void fail(const std::string& why) {
    std::vector<ncclComm_t> lost;
    {
      std::lock_guard lock(mutex_);
      if (!failure_.empty()) return;
      failure_ = why;
      lost.swap(comms_);
      pending_.clear();
    }
    for (ncclComm_t comm : lost) ncclCommAbort(comm);
    try {
      options_.end_job(why);
    } catch (...) {  // ranks that are threads are told by begin()
    }
  }

 private:
  struct Pending {
    const char* collective;
    index_t number;
    clock::time_point since;
    std::shared_ptr<CudaMark> done;
  };

  void watch() {
    cudaSetDevice(device_);
    std::unique_lock lock(mutex_);
    while (!wake_.wait_for(lock, std::chrono::milliseconds(100), [&] { return stopping_; })) {
      if (!failure_.empty()) continue;
      std::string trouble = nccl_error();
      if (trouble.empty()) trouble = options_.host_failure();
      Pending late{};
      if (trouble.empty()) late = oldest();
      const bool stalled =
          late.done != nullptr &&
          std::chrono::duration<double>(clock::now() - late.since).count() > options_.time_out;
      if (trouble.empty() && !stalled) continue;
      const index_t own = number_;
      lock.unlock();
      if (stalled) trouble = stall(late, own);
      fail("rank " + std::to_string(options_.rank) + ": " + trouble);
      lock.lock();
    }
  }

  /// With the mutex held: what NCCL found wrong in the background.
  std::string nccl_error() const {
    for (ncclComm_t comm : comms_) {
      ncclResult_t state = ncclSuccess;
      const ncclResult_t asked = ncclCommGetAsyncError(comm, &state);
      const ncclResult_t bad = asked != ncclSuccess ? asked : state;
      if (bad != ncclSuccess && bad != ncclInProgress)
        return std::string("NCCL: ") + ncclGetErrorString(bad) +
               (pending_.empty()
                    ? ""
                    : std::string(" in ") + pending_.front().collective + " (collective " +
                          std::to_string(pending_.front().number) + ")");
    }
    return {};
  }

  /// With the mutex held: the first collective that is not over.
  Pending oldest() {
    while (!pending_.empty() && cudaEventQuery(pending_.front().done->get()) == cudaSuccess)
      pending_.pop_front();
    return pending_.empty() ? Pending{} : pending_.front();
  }

  /// One sentence that names who keeps this rank waiting.
  std::string stall(const Pending& late, index_t own) const {
    char seconds[32];
    std::snprintf(seconds, sizeof seconds, "%.3g s", options_.time_out);
    std::string text = std::string("time-out: waited ") + seconds + " in NCCL's " +
                       late.collective + " (collective " + std::to_string(late.number) + ")";
    try {
      const std::vector<index_t> all = options_.gather_numbers(own);
      const index_t lowest = *std::min_element(all.begin(), all.end());
      text += ", all ranks do; the fewest collectives, " + std::to_string(lowest) +
              ", were begun by rank";
      for (std::size_t r = 0; r < all.size(); ++r)
        if (all[r] == lowest) text += " " + std::to_string(r);
    } catch (const std::exception& missing) {
      text += std::string("; ") + missing.what();
    }
    return text;
  }

  Options options_;
  int device_ = 0;
  std::mutex mutex_;
  std::condition_variable wake_;
  bool stopping_ = false;
  std::string failure_;
  index_t number_ = 0;
  std::vector<ncclComm_t> comms_;
  std::vector<std::shared_ptr<ncclComm_t>> places_;
  std::deque<Pending> pending_;
  std::thread thread_;
};

}  // namespace dflash::detail
