#pragma once

#include <mpi.h>

#include <cstring>
#include <memory>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "dflash/comm/communicator.hpp"
#include "dflash/comm/pending_collective.hpp"
#include "dflash/mpi/exchange.hpp"
#include "dflash/mpi/expects.hpp"
#include "dflash/mpi/sum.hpp"
#include "dflash/mpi/watchdog.hpp"

namespace dflash {

/// Ranks that are MPI processes, moving host memory. MpiEnvironment makes the first one.
class MpiCommunicator {
 public:
  /// No team.
  MpiCommunicator() = default;
  /// Owns `comm`.
  MpiCommunicator(MPI_Comm comm, std::shared_ptr<detail::MpiWatchdog> watchdog, MpiLimits limits)
      : group_(std::make_shared<detail::MpiGroup>(comm, std::move(watchdog), limits)) {}

  int rank() const { return group_ ? group_->rank : 0; }
  int size() const { return group_ ? group_->size : 0; }
  const Traffic& traffic() const { return traffic_; }

  MpiCommunicator split(int color) {
    detail::check_color(color);
    begin();
    const detail::MpiWatchdog::Inside inside(*group_->watchdog, "split");
    MPI_Comm part;
    mpi_expects(MPI_Comm_split(group_->comm, color, rank(), &part), "MPI_Comm_split");
    return MpiCommunicator(part, group_->watchdog, group_->limits);
  }

  void barrier() {
    begin();
    const detail::MpiWatchdog::Inside inside(*group_->watchdog, "barrier");
    mpi_expects(MPI_Barrier(group_->comm), "MPI_Barrier");
  }

  [[noreturn]] void abort(const std::string& why) { detail::fail_mpi_rank(why); }

  template <HostBackend B, class T>
  PendingCollective start_all_to_all(B& backend, In<T, 1> in, std::span<const index_t> send_counts,
                                     View<T, 1> out, std::span<const index_t> receive_counts) {
    detail::check_all_to_all<T>(in, send_counts, out, receive_counts, rank(), size());
    traffic_.all_to_all.add(bytes<T>(detail::sent_to_others(send_counts, rank())));
    begin();
    backend.synchronize();
    auto exchange = std::make_unique<detail::MpiExchange>(group_, "all_to_all");
    for (int step = 1; step < size(); ++step)
      receive(*exchange, out.data, receive_counts, left(step));
    for (int step = 1; step < size(); ++step) send(*exchange, in.data, send_counts, right(step));
    copy(in.data + detail::offset_of(send_counts, rank()), send_counts[std::size_t(rank())],
         out.data + detail::offset_of(receive_counts, rank()));
    return PendingCollective([exchange = std::move(exchange)] { exchange->wait(); });
  }
  template <HostBackend B, class T>
  void all_to_all(B& backend, In<T, 1> in, std::span<const index_t> send_counts, View<T, 1> out,
                  std::span<const index_t> receive_counts) {
    start_all_to_all(backend, in, send_counts, out, receive_counts).wait();
  }

  template <HostBackend B, class T>
  requires std::is_arithmetic_v<T>
  void all_reduce_sum(B& backend, View<T, 1> data) {
    const auto counts = detail::even_counts(data.size(), size());
    const index_t own = counts[std::size_t(rank())];
    traffic_.all_reduce_sum.add(
        bytes<T>(detail::sent_to_others(counts, rank()) + own * (size() - 1)));
    begin();
    T* slice = data.data + detail::offset_of(counts, rank());
    detail::MpiSum<T, B>(backend, group_, "all_reduce_sum", data.data, counts, slice).finish();
    gather<T>("all_reduce_sum", slice, counts, data.data);
  }

  template <HostBackend B, class T>
  requires std::is_arithmetic_v<T> PendingCollective start_reduce_scatter_sum(
      B& backend, In<T, 1> in, std::span<const index_t> counts, View<T, 1> out) {
    detail::check_reduce_scatter<T>(in, counts, out, rank(), size());
    traffic_.reduce_scatter_sum.add(bytes<T>(detail::sent_to_others(counts, rank())));
    begin();
    auto sum = std::make_unique<detail::MpiSum<T, B>>(backend, group_, "reduce_scatter_sum",
                                                      in.data, counts, out.data);
    return PendingCollective([sum = std::move(sum)] { sum->finish(); });
  }
  template <HostBackend B, class T>
  requires std::is_arithmetic_v<T>
  void reduce_scatter_sum(B& backend, In<T, 1> in, std::span<const index_t> counts,
                          View<T, 1> out) {
    start_reduce_scatter_sum(backend, in, counts, out).wait();
  }

  template <HostBackend B, class T>
  void all_gather(B& backend, In<T, 1> in, std::span<const index_t> counts, View<T, 1> out) {
    detail::check_all_gather<T>(in, counts, out, rank(), size());
    traffic_.all_gather.add(bytes<T>(in.size() * (size() - 1)));
    begin();
    backend.synchronize();
    gather<T>("all_gather", in.data, counts, out.data);
  }

  template <HostBackend B, class T>
  void broadcast(B& backend, View<T, 1> data, int root) {
    detail::check_root(root, size());
    traffic_.broadcast.add(rank() == root ? bytes<T>(data.size() * (size() - 1)) : 0);
    begin();
    backend.synchronize();
    detail::MpiExchange exchange(group_, "broadcast");
    if (rank() != root) exchange.receive(raw(data.data), bytes<T>(data.size()), root);
    for (int step = 1; rank() == root && step < size(); ++step)
      exchange.send(raw(data.data), bytes<T>(data.size()), right(step));
    exchange.wait();
  }

 private:
  void begin() {
    expects(group_ != nullptr, "MpiCommunicator: this one has no team");
    group_->watchdog->begin();
  }
  int right(int step) const { return (rank() + step) % size(); }
  int left(int step) const { return (rank() - step + size()) % size(); }

  template <class T>
  static constexpr index_t bytes(index_t elements) {
    static_assert(std::is_trivially_copyable_v<T>);
    return elements * index_t(sizeof(T));
  }
  template <class T>
  static std::byte* raw(T* data) {
    return reinterpret_cast<std::byte*>(data);
  }
  template <class T>
  static const std::byte* raw(const T* data) {
    return reinterpret_cast<const std::byte*>(data);
  }
  template <class T>
  static void copy(const T* from, index_t n, T* to) {
    if (n > 0 && from != to) std::memcpy(raw(to), raw(from), std::size_t(bytes<T>(n)));
  }
  /// Block `peer` of a buffer that is cut by `counts`.
  template <class T>
  static void receive(detail::MpiExchange& exchange, T* out, std::span<const index_t> counts,
                      int peer) {
    exchange.receive(raw(out + detail::offset_of(counts, peer)),
                     bytes<T>(counts[std::size_t(peer)]), peer);
  }
  template <class T>
  static void send(detail::MpiExchange& exchange, const T* in, std::span<const index_t> counts,
                   int peer) {
    exchange.send(raw(in + detail::offset_of(counts, peer)), bytes<T>(counts[std::size_t(peer)]),
                  peer);
  }

  template <class T>
  void gather(const char* collective, const T* in, std::span<const index_t> counts, T* out) {
    detail::MpiExchange exchange(group_, collective);
    const index_t own = counts[std::size_t(rank())];
    for (int step = 1; step < size(); ++step) receive(exchange, out, counts, left(step));
    for (int step = 1; step < size(); ++step) exchange.send(raw(in), bytes<T>(own), right(step));
    copy(in, own, out + detail::offset_of(counts, rank()));
    exchange.wait();
  }

  std::shared_ptr<detail::MpiGroup> group_;
  Traffic traffic_;
};

static_assert(Communicator<MpiCommunicator>);

}  // namespace dflash
