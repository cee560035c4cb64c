#pragma once

#include <cuda_runtime.h>
#include <nccl.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <memory>
#include <numeric>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "dflash/comm/communicator.hpp"
#include "dflash/comm/host_memory.hpp"
#include "dflash/core/tensor.hpp"
#include "dflash/cuda/expects.hpp"
#include "dflash/cuda/stream.hpp"
#include "dflash/nccl/expects.hpp"
#include "dflash/nccl/group.hpp"
#include "dflash/nccl/watchdog.hpp"

namespace dflash {

/// A backend whose work is in the order of a CUDA stream.
template <class B>
concept StreamBackend = Backend<B> && requires(const B& b) {
  { b.stream() } -> std::same_as<cudaStream_t>;
};

/// A collective that has started on NCCL's stream; see CommunicatorFor.
class PendingNcclCollective {
 public:
  PendingNcclCollective() = default;
  /// `memory` is what the collective uses besides its arguments.
  PendingNcclCollective(cudaStream_t stream, std::shared_ptr<CudaMark> done,
                        std::shared_ptr<const void> memory = {})
      : stream_(stream), done_(std::move(done)), memory_(std::move(memory)) {}
  PendingNcclCollective(PendingNcclCollective&& o) noexcept = default;
  PendingNcclCollective& operator=(PendingNcclCollective&& o) {
    wait();
    stream_ = o.stream_, done_ = std::move(o.done_), memory_ = std::move(o.memory_);
    return *this;
  }
  ~PendingNcclCollective() {
    if (done_ != nullptr) cudaStreamWaitEvent(stream_, done_->get(), 0);
  }

  /// What the backend does from now on comes after the collective. The host goes on.
  void wait() {
    if (const auto done = std::move(done_))
      cuda_expects(cudaStreamWaitEvent(stream_, done->get(), 0), "a collective");
    memory_.reset();  // to be used again in the order of the backend's stream
  }

 private:
  cudaStream_t stream_ = nullptr;
  std::shared_ptr<CudaMark> done_;
  std::shared_ptr<const void> memory_;
};

struct NcclOptions {
  std::chrono::duration<double> time_out = std::chrono::minutes(30);
  index_t scratch_bytes = index_t(256) << 20;  // what a sum may receive at a time
};

/// Ranks that hold a GPU each, moving its memory by NCCL on a stream of its own, beside the
/// backend's. Sums are made here, in the order of the ranks, so that they have the bits of every
/// other communicator. `H` is a communicator of the ranks' hosts: threads of one process, each with
/// its own current device, or MPI processes.
template <Communicator H>
class NcclCommunicator {
 public:
  /// No team.
  NcclCommunicator() = default;
  /// All ranks of `host`; the calling thread's current device is this rank's. Error after the
  /// time-out if a rank does not come.
  explicit NcclCommunicator(H host, NcclOptions options = {})
      : host_(std::move(host)), options_(options) {
    ncclUniqueId id{};
    if (host_.rank() == 0) nccl_expects(ncclGetUniqueId(&id), "ncclGetUniqueId");
    HostMemory memory;
    host_.broadcast(memory, View<char, 1>{id.internal, {index_t(sizeof id.internal)}}, 0);
    group_ = std::make_shared<detail::NcclGroup>(
        host_.rank(), host_.size(), make_watchdog(), [&](ncclComm_t* comm, ncclConfig_t* config) {
          return ncclCommInitRankConfig(comm, host_.size(), id, host_.rank(), config);
        });
  }

  int rank() const { return group_ ? group_->rank() : 0; }
  int size() const { return group_ ? group_->size() : 0; }
  const Traffic& traffic() const { return traffic_; }

  NcclCommunicator split(int color) {
    detail::check_color(color);
    begin();
    NcclCommunicator part;
    part.host_ = host_.split(color);
    part.options_ = options_;
    part.group_ = std::make_shared<detail::NcclGroup>(
        part.host_.rank(), part.host_.size(), group_->watchdog(),
        [&](ncclComm_t* comm, ncclConfig_t* config) {
          return ncclCommSplit(group_->comm(), color, rank(), comm, config);
        },
        group_.get());
    return part;
  }

  /// Of the hosts: work on the devices may still be under way.
  void barrier() {
    begin();
    host_.barrier();
  }

  [[noreturn]] void abort(const std::string& why) {
    if (group_) group_->watchdog()->fail(why);
    host_.abort(why);
  }

  template <StreamBackend B, class T>
  PendingNcclCollective start_all_to_all(B& backend, In<T, 1> in,
                                         std::span<const index_t> send_counts, View<T, 1> out,
                                         std::span<const index_t> receive_counts) {
    detail::check_all_to_all<T>(in, send_counts, out, receive_counts, rank(), size());
    traffic_.all_to_all.add(bytes<T>(detail::sent_to_others(send_counts, rank())));
    begin();
    follow(backend);
    exchange<T>(
        "all_to_all", [&](int to) { return block(in, send_counts, to); },
        [&](int from) { return block(out, receive_counts, from); });
    return {backend.stream(), mark("all_to_all")};
  }
  template <StreamBackend B, class T>
  void all_to_all(B& backend, In<T, 1> in, std::span<const index_t> send_counts, View<T, 1> out,
                  std::span<const index_t> receive_counts) {
    start_all_to_all(backend, in, send_counts, out, receive_counts).wait();
  }

  template <StreamBackend B, class T>
  requires std::is_arithmetic_v<T>
  void all_reduce_sum(B& backend, View<T, 1> data) {
    const auto counts = detail::even_counts(data.size(), size());
    const View<T, 1> own = block(data, counts, rank());
    traffic_.all_reduce_sum.add(
        bytes<T>(detail::sent_to_others(counts, rank()) + own.size() * (size() - 1)));
    begin();
    const auto scratch = add_up<T>(backend, "all_reduce_sum", data, counts, own);
    gather<T>("all_reduce_sum", own, counts, data);
    lead(backend, "all_reduce_sum");
  }

  template <StreamBackend B, class T>
  requires std::is_arithmetic_v<T> PendingNcclCollective start_reduce_scatter_sum(
      B& backend, In<T, 1> in, std::span<const index_t> counts, View<T, 1> out) {
    detail::check_reduce_scatter<T>(in, counts, out, rank(), size());
    traffic_.reduce_scatter_sum.add(bytes<T>(detail::sent_to_others(counts, rank())));
    begin();
    auto scratch = add_up<T>(backend, "reduce_scatter_sum", in, counts, out);
    return {backend.stream(), mark("reduce_scatter_sum"), std::move(scratch)};
  }
  template <StreamBackend B, class T>
  requires std::is_arithmetic_v<T>
  void reduce_scatter_sum(B& backend, In<T, 1> in, std::span<const index_t> counts,
                          View<T, 1> out) {
    start_reduce_scatter_sum(backend, in, counts, out).wait();
  }

  template <StreamBackend B, class T>
  void all_gather(B& backend, In<T, 1> in, std::span<const index_t> counts, View<T, 1> out) {
    detail::check_all_gather<T>(in, counts, out, rank(), size());
    traffic_.all_gather.add(bytes<T>(in.size() * (size() - 1)));
    begin();
    follow(backend);
    gather<T>("all_gather", in, counts, out);
    lead(backend, "all_gather");
  }

  template <StreamBackend B, class T>
  void broadcast(B& backend, View<T, 1> data, int root) {
    detail::check_root(root, size());
    traffic_.broadcast.add(rank() == root ? bytes<T>(data.size() * (size() - 1)) : 0);
    begin();
    follow(backend);
    group_->together("broadcast", [&] {
      if (rank() != root) return receive(data, root);
      for (int peer = 0; peer < size(); ++peer)
        if (peer != root) send<T>(data, peer);
    });
    lead(backend, "broadcast");
  }

 private:
  std::shared_ptr<detail::NcclWatchdog> make_watchdog() {
    // Apart from every other group: the watchdogs use it while the ranks are anywhere.
    const auto afterwards = std::make_shared<H>(host_.split(0));
    const auto gather_numbers = [afterwards](index_t own) {
      const auto size = std::size_t(afterwards->size());
      std::vector<index_t> all(size), ones(size, 1);
      HostMemory memory;
      afterwards->all_gather(memory, In<index_t, 1>{&own, {1}}, ones,
                             View<index_t, 1>{all.data(), {index_t(size)}});
      return all;
    };
    return std::make_shared<detail::NcclWatchdog>(detail::NcclWatchdog::Options{
        options_.time_out.count(), host_.rank(), gather_numbers,
        [afterwards] {
          // Processes end with their job; threads go on, and may sit behind a device that waits.
          if constexpr (requires { afterwards->failure(); })
            return afterwards->failure();
          else
            return std::string();
        },
        [afterwards](const std::string& why) { afterwards->abort(why); }});
  }

  void begin() {
    expects(group_ != nullptr, "NcclCommunicator: this one has no team");
    group_->watchdog()->begin();
  }

  template <class T>
  static constexpr index_t bytes(index_t elements) {
    static_assert(std::is_trivially_copyable_v<T>);
    return elements * index_t(sizeof(T));
  }

  /// NCCL's stream goes on after what the backend has been given so far.
  template <class B>
  void follow(B& backend) {
    const CudaMark ready;
    cuda_expects(cudaEventRecord(ready.get(), backend.stream()), "a collective");
    cuda_expects(cudaStreamWaitEvent(group_->stream(), ready.get(), 0), "a collective");
  }
  /// The end of what NCCL's stream has been given so far.
  std::shared_ptr<CudaMark> mark(const char* collective) {
    auto done = std::make_shared<CudaMark>();
    cuda_expects(cudaEventRecord(done->get(), group_->stream()), collective);
    group_->watchdog()->started(collective, done);
    return done;
  }
  /// The backend goes on after what NCCL's stream has been given so far.
  template <class B>
  void lead(B& backend, const char* collective) {
    PendingNcclCollective(backend.stream(), mark(collective)).wait();
  }

  template <class T>
  static View<T, 1> block(View<T, 1> all, std::span<const index_t> counts, int peer) {
    const index_t begin = detail::offset_of(counts, peer);
    return all.rows({begin, begin + counts[std::size_t(peer)]});
  }
  template <class T>
  void send(In<T, 1> from, int peer) {
    if (from.size() > 0)
      nccl_expects(ncclSend(from.data, std::size_t(bytes<T>(from.size())), ncclUint8, peer,
                            group_->comm(), group_->stream()),
                   "ncclSend");
  }
  template <class T>
  void receive(View<T, 1> to, int peer) {
    if (to.size() > 0)
      nccl_expects(ncclRecv(to.data, std::size_t(bytes<T>(to.size())), ncclUint8, peer,
                            group_->comm(), group_->stream()),
                   "ncclRecv");
  }

  /// On NCCL's stream: outgoing(p) goes to each rank p, incoming(p) comes from it; what a rank
  /// sends to itself is copied, unless it is there already.
  template <class T, class Outgoing, class Incoming>
  void exchange(const char* collective, Outgoing&& outgoing, Incoming&& incoming) {
    const In<T, 1> from = outgoing(rank());
    if (const View<T, 1> to = incoming(rank()); from.size() > 0 && from.data != to.data)
      cuda_expects(cudaMemcpyAsync(to.data, from.data, std::size_t(bytes<T>(from.size())),
                                   cudaMemcpyDeviceToDevice, group_->stream()),
                   collective);
    group_->together(collective, [&] {
      for (int step = 1; step < size(); ++step) {
        const int to = (rank() + step) % size(), from = (rank() - step + size()) % size();
        send<T>(outgoing(to), to);
        receive<T>(incoming(from), from);
      }
    });
  }

  struct Scratch {
    cudaStream_t stream;  // in whose order the memory is used
    void* data;
    index_t bytes;
    std::shared_ptr<const void> memory;
  };
  /// What the sums that are under way receive into, one after the other.
  template <StreamBackend B>
  std::shared_ptr<Scratch> shared_scratch(B& backend, index_t bytes) {
    auto scratch = scratch_.lock();
    if (scratch != nullptr && scratch->stream == backend.stream() && scratch->bytes >= bytes)
      return scratch;
    using Memory = typename B::template Buffer<std::byte>;
    const auto memory = std::make_shared<Memory>(backend.template allocate<std::byte>(bytes));
    scratch.reset(new Scratch{backend.stream(), memory->data(), bytes, memory});
    scratch_ = scratch;
    return scratch;
  }

  /// On NCCL's stream: out = sum over ranks of this rank's part. In rounds, so that what is
  /// received at a time is bounded. Returns the memory that they use, until they are over.
  template <class T, StreamBackend B>
  std::shared_ptr<const void> add_up(B& backend, const char* collective, In<T, 1> in,
                                     std::span<const index_t> counts, View<T, 1> out) {
    const index_t most = *std::max_element(counts.begin(), counts.end());
    const index_t segment = std::max<index_t>(1, options_.scratch_bytes / bytes<T>(size()));
    auto scratch = shared_scratch(backend, bytes<T>(std::min(segment, out.size()) * size()));
    follow(backend);
    for (index_t begin = 0; begin < most; begin += segment) {
      const auto now = [&](auto part) {
        return part.rows({std::min(begin, part.size()), std::min(begin + segment, part.size())});
      };
      const View<T, 1> sum = now(out);
      const View<T, 2> parts{static_cast<T*>(scratch->data), {size(), sum.size()}};
      exchange<T>(
          collective, [&](int to) { return now(block(in, counts, to)); },
          [&](int from) {
            return reshape<1>(parts.rows({from, from + 1}), {sum.size()});
          });
      if (sum.size() > 0) sum_of_parts(group_->stream(), View<const T, 2>(parts), sum);
    }
    return scratch;
  }

  /// On NCCL's stream: out = all ranks' `own`.
  template <class T>
  void gather(const char* collective, In<T, 1> own, std::span<const index_t> counts,
              View<T, 1> out) {
    exchange<T>(
        collective, [&](int) { return own; }, [&](int from) { return block(out, counts, from); });
  }

  H host_;
  NcclOptions options_;
  std::shared_ptr<detail::NcclGroup> group_;
  std::weak_ptr<Scratch> scratch_;
  Traffic traffic_;
};

}  // namespace dflash
