#pragma once

#include <chrono>
#include <cstring>
#include <exception>
#include <memory>
#include <numeric>
#include <span>
#include <string>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

#include "dflash/comm/communicator.hpp"
#include "dflash/comm/pending_collective.hpp"
#include "dflash/comm/thread_visit.hpp"

namespace dflash {

/// How ranks that are threads run.
struct ThreadOptions {
  /// How long a rank waits for another before the job fails; zero: for ever.
  std::chrono::duration<double> time_out = std::chrono::minutes(10);
};

/// Ranks that are threads of one process: each shows the others where its memory lies, and they
/// copy straight from it.
class ThreadCommunicator {
 public:
  /// No team.
  ThreadCommunicator() = default;

  /// Calls `body(communicator)` on `size` threads and waits for all of them. The first failure of a
  /// rank releases every rank that waits, in whatever group, and is thrown here as an Error that
  /// names the rank, the original exception nested in it. A rank that still runs one time-out after
  /// the failure cannot be stopped: the process then ends, with the failure on stderr and status 1.
  template <class Body>
  static void run(int size, Body&& body, ThreadOptions options = {}) {
    expects(size >= 1, "ThreadCommunicator: a job needs at least one rank");
    const auto job = std::make_shared<detail::ThreadJob>(size, options.time_out.count());
    std::vector<int> ranks(std::size_t(size), 0);
    std::iota(ranks.begin(), ranks.end(), 0);
    const auto team = std::make_shared<detail::ThreadTeam>(job, ranks);
    const auto of_rank = [&](int rank) {
      try {
        body(ThreadCommunicator(team, rank));
      } catch (...) {
        job->fail_of(rank, std::current_exception());
      }
      job->end(rank);
    };
    std::vector<std::thread> threads;
    for (const int rank : ranks) {
      try {
        threads.emplace_back(of_rank, rank);
      } catch (...) {  // no more threads: those that run must be waited for
        job->fail_of(rank, std::current_exception());
        job->end(rank);
      }
    }
    job->wait_for_end();
    for (std::thread& thread : threads) thread.join();
    job->rethrow();
  }

  int rank() const { return rank_; }
  int size() const { return team_ ? int(team_->members.size()) : 0; }
  const Traffic& traffic() const { return traffic_; }

  ThreadCommunicator split(int color) {
    detail::check_color(color);
    auto visit = start("split", {.choice = color});
    visit.open();
    std::vector<int> members;
    for (int r = 0; r < size(); ++r)
      if (visit.shown(r).choice == color) members.push_back(r);
    const auto own = std::find(members.begin(), members.end(), rank_) - members.begin();
    ThreadCommunicator part(visit.child(color, members), int(own));
    visit.close();
    return part;
  }

  void barrier() { start("barrier", {}).close(); }

  /// Why the job has failed; empty if it has not.
  std::string failure() const { return team_ ? team_->job->failure() : std::string(); }

  [[noreturn]] void abort(const std::string& why) {
    const Error error(why);
    if (team_)
      team_->job->fail_of(team_->members[std::size_t(rank_)], std::make_exception_ptr(error));
    throw error;
  }

  template <HostBackend B, class T>
  PendingCollective start_all_to_all(B& backend, In<T, 1> in, std::span<const index_t> send_counts,
                                     View<T, 1> out, std::span<const index_t> receive_counts) {
    detail::check_all_to_all<T>(in, send_counts, out, receive_counts, rank_, size());
    traffic_.all_to_all.add(index_t(sizeof(T)) * detail::sent_to_others(send_counts, rank_));
    return PendingCollective([visit = show("all_to_all", backend, in, send_counts), out,
                              counts = to_vector(receive_counts)]() mutable {
      visit.open();
      for (int step = 0; step < visit.size(); ++step)  // not all from the same rank at once
        copy_block(visit, (visit.rank() + step) % visit.size(), counts, out);
      visit.close();
    });
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
    const index_t begin = detail::offset_of(counts, rank_), own = counts[std::size_t(rank_)];
    traffic_.all_reduce_sum.add(index_t(sizeof(T)) * detail::sent_to_others(counts, rank_) +
                                sent_by_gather<T>(own));
    auto visit = show<T>("all_reduce_sum", backend, data, {});
    visit.open();
    check_sizes<T>(visit, "all_reduce_sum", data.size());
    // A slice is read by one rank alone, its own among them, so the sum may go where it lies.
    add_up(visit, begin, data.rows({begin, begin + own}));
    visit.meet();
    for (int r = 0; r < size(); ++r)
      if (r != rank_) copy(visit, r, detail::offset_of(counts, r), counts[std::size_t(r)], data);
    visit.close();
  }

  template <HostBackend B, class T>
  requires std::is_arithmetic_v<T> PendingCollective start_reduce_scatter_sum(
      B& backend, In<T, 1> in, std::span<const index_t> counts, View<T, 1> out) {
    detail::check_reduce_scatter<T>(in, counts, out, rank_, size());
    traffic_.reduce_scatter_sum.add(index_t(sizeof(T)) * detail::sent_to_others(counts, rank_));
    return PendingCollective([visit = show("reduce_scatter_sum", backend, in, counts),
                              counts = to_vector(counts), out]() mutable {
      visit.open();
      check_counts<T>(visit, "reduce_scatter_sum", counts);
      add_up(visit, detail::offset_of(counts, visit.rank()), out);
      visit.close();
    });
  }
  template <HostBackend B, class T>
  requires std::is_arithmetic_v<T>
  void reduce_scatter_sum(B& backend, In<T, 1> in, std::span<const index_t> counts,
                          View<T, 1> out) {
    start_reduce_scatter_sum(backend, in, counts, out).wait();
  }

  template <HostBackend B, class T>
  void all_gather(B& backend, In<T, 1> in, std::span<const index_t> counts, View<T, 1> out) {
    detail::check_all_gather<T>(in, counts, out, rank_, size());
    traffic_.all_gather.add(sent_by_gather<T>(in.size()));
    auto visit = show("all_gather", backend, in, counts);
    visit.open();
    check_counts<T>(visit, "all_gather", counts);
    for (int step = 0; step < size(); ++step) {
      const int r = (rank_ + step) % size();
      const index_t begin = detail::offset_of(counts, r);
      if (visit.shown(r).data != bytes(out.data + begin))
        copy(visit, r, 0, counts[std::size_t(r)],
             out.rows({begin, begin + counts[std::size_t(r)]}));
    }
    visit.close();
  }

  template <HostBackend B, class T>
  void broadcast(B& backend, View<T, 1> data, int root) {
    detail::check_root(root, size());
    traffic_.broadcast.add(rank_ == root ? sent_by_gather<T>(data.size()) : 0);
    auto visit = show<T>("broadcast", backend, data, {}, root);
    visit.open();
    for (int r = 0; r < size(); ++r)
      if (visit.shown(r).choice != root)
        throw Error("broadcast: the root is " + std::to_string(visit.shown(r).choice) +
                    " on rank " + std::to_string(r) + ", " + std::to_string(root) + " on rank " +
                    std::to_string(rank_));
    check_sizes<T>(visit, "broadcast", data.size());
    if (rank_ != root) copy(visit, root, 0, data.size(), data);
    visit.close();
  }

 private:
  ThreadCommunicator(std::shared_ptr<detail::ThreadTeam> team, int rank)
      : team_(std::move(team)), rank_(rank) {}

  detail::ThreadVisit start(const char* collective, detail::Shown shown) {
    expects(team_ != nullptr, "ThreadCommunicator: this one has no team");
    return {team_, rank_, number_++, collective, std::move(shown)};
  }
  template <class T, HostBackend B>
  detail::ThreadVisit show(const char* collective, B& backend, View<T, 1> data,
                           std::span<const index_t> counts, int choice = 0) {
    backend.synchronize();
    return start(collective, {.data = bytes(data.data),
                              .elements = data.size(),
                              .element_bytes = sizeof(T),
                              .counts = {counts.begin(), counts.end()},
                              .choice = choice});
  }

  template <class T>
  static auto bytes(T* data) {
    using Byte = std::conditional_t<std::is_const_v<T>, const std::byte, std::byte>;
    static_assert(std::is_trivially_copyable_v<T>);
    return reinterpret_cast<Byte*>(data);
  }
  static std::vector<index_t> to_vector(std::span<const index_t> counts) {
    return {counts.begin(), counts.end()};
  }
  template <class T>
  index_t sent_by_gather(index_t elements) const {
    return elements * index_t(sizeof(T)) * (size() - 1);
  }

  template <class T>
  static void check_sizes(const detail::ThreadVisit& visit, const char* collective,
                          index_t elements) {
    for (int r = 0; r < visit.size(); ++r) {
      const detail::Shown& theirs = visit.shown(r);
      if (theirs.elements != elements || theirs.element_bytes != index_t(sizeof(T)))
        throw Error(std::string(collective) + ": rank " + std::to_string(r) + " has " +
                    std::to_string(theirs.elements) + " elements of " +
                    std::to_string(theirs.element_bytes) + " bytes, rank " +
                    std::to_string(visit.rank()) + " has " + std::to_string(elements) + " of " +
                    std::to_string(sizeof(T)));
    }
  }
  template <class T>
  static void check_counts(const detail::ThreadVisit& visit, const char* collective,
                           std::span<const index_t> counts) {
    for (int r = 0; r < visit.size(); ++r) {
      const detail::Shown& theirs = visit.shown(r);
      if (!std::equal(counts.begin(), counts.end(), theirs.counts.begin()) ||
          theirs.element_bytes != index_t(sizeof(T)))
        throw Error(std::string(collective) + ": the counts or elements of ranks " +
                    std::to_string(r) + " and " + std::to_string(visit.rank()) + " differ");
    }
  }
  template <class T>
  static void add_up(const detail::ThreadVisit& visit, index_t begin, View<T, 1> out) {
    std::vector<const T*> sources;
    for (int r = 0; r < visit.size(); ++r)
      sources.push_back(reinterpret_cast<const T*>(visit.shown(r).data) + begin);
    detail::sum_in_order<T>(sources, out.size(), out.data);
  }
  /// What a rank sends this one in an all-to-all, to its block of `out`.
  template <class T>
  static void copy_block(const detail::ThreadVisit& visit, int from,
                         std::span<const index_t> counts, View<T, 1> out) {
    const detail::Shown& theirs = visit.shown(from);
    const index_t sent = theirs.counts[std::size_t(visit.rank())] * theirs.element_bytes,
                  expected = counts[std::size_t(from)] * index_t(sizeof(T));
    if (sent != expected)
      throw Error("all_to_all: rank " + std::to_string(from) + " sends " + std::to_string(sent) +
                  " bytes to rank " + std::to_string(visit.rank()) + ", which expects " +
                  std::to_string(expected));
    if (sent > 0)
      std::memcpy(
          out.data + detail::offset_of(counts, from),
          theirs.data + detail::offset_of(theirs.counts, visit.rank()) * theirs.element_bytes,
          std::size_t(sent));
  }
  /// Elements [begin, begin + n) of what the rank shows, to the same place of `out`.
  template <class T>
  static void copy(const detail::ThreadVisit& visit, int rank, index_t begin, index_t n,
                   View<T, 1> out) {
    if (n > 0)
      std::memcpy(out.data + begin, visit.shown(rank).data + begin * index_t(sizeof(T)),
                  std::size_t(n) * sizeof(T));
  }

  std::shared_ptr<detail::ThreadTeam> team_;
  int rank_ = 0;
  index_t number_ = 0;
  Traffic traffic_;
};

static_assert(Communicator<ThreadCommunicator>);

}  // namespace dflash
