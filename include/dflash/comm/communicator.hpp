#pragma once

#include <concepts>
#include <span>
#include <string>
#include <type_traits>

#include "dflash/comm/collective_arguments.hpp"
#include "dflash/comm/traffic.hpp"
#include "dflash/core/backend.hpp"
#include "dflash/core/error.hpp"
#include "dflash/core/tensor.hpp"

namespace dflash {

/// A set of ranks that act together. Every rank calls split, barrier and the collectives of
/// CommunicatorFor in the same order; one without a team (default, moved from) only takes a new
/// one.
template <class C>
concept Communicator = std::movable<C> && std::default_initializable<C> &&
    requires(C& comm, const C& same, int color, const std::string& why) {
  { same.rank() } -> std::same_as<int>;
  { same.size() } -> std::same_as<int>;
  { comm.split(color) } -> std::same_as<C>;   // ranks of equal color >= 0, in their old order
  { comm.barrier() } -> std::same_as<void>;   // waits until every rank has called it
  { comm.abort(why) } -> std::same_as<void>;  // ends the job of all ranks; does not return
  { same.traffic() } -> std::same_as<const Traffic&>;
};

/// A communicator that moves the memory of backend B, in B's order. Moves take any trivially
/// copyable element, sums any arithmetic one; sums add the ranks' values in the order of the ranks.
/// Counts are in elements, one per rank, zero allowed; Error if they do not fit the buffers or,
/// where it shows, what other ranks say. Buffers never overlap, except as noted.
template <class C, class B, class T = typename B::value_type,
          class A = typename B::accumulator_type>
concept CommunicatorFor = Communicator<C> && Backend<B> &&
    requires(C& comm, B& backend, In<T, 1> in, View<T, 1> out, In<A, 1> parts, View<A, 1> total,
             std::span<const index_t> counts, int root) {
  // Block p of in goes to rank p, block p of out comes from rank p: (in, counts, out, counts).
  comm.all_to_all(backend, in, counts, out, counts);
  comm.all_reduce_sum(backend, total);  // total = sum over ranks, the same bits on every rank
  // total = sum over ranks of part rank() of their parts; may be just that part of parts.
  comm.reduce_scatter_sum(backend, parts, counts, total);
  // The same, done once wait() returns; until then the input stays as it is and the output is not
  // looked at. Ranks start and wait in the same order; other collectives may lie between. Destroyed
  // without wait(), they wait, or withdraw if an exception is passing.
  comm.start_all_to_all(backend, in, counts, out, counts).wait();
  comm.start_reduce_scatter_sum(backend, parts, counts, total).wait();
  comm.all_gather(backend, in, counts, out);  // out = all in; in may be part rank() of out
  comm.broadcast(backend, out, root);         // out = the root's
};

/// One rank: every collective is a copy or nothing, so one rank needs no special case anywhere.
class SingleProcess {
 public:
  struct Done {
    void wait() {}
  };

  int rank() const { return 0; }
  int size() const { return 1; }
  SingleProcess split(int color) {
    detail::check_color(color);
    return {};
  }
  void barrier() {}
  [[noreturn]] void abort(const std::string& why) { throw Error(why); }
  const Traffic& traffic() const { return traffic_; }

  template <Backend B, class T>
  void all_to_all(B& backend, In<T, 1> in, std::span<const index_t> send_counts, View<T, 1> out,
                  std::span<const index_t> receive_counts) {
    detail::check_all_to_all<T>(in, send_counts, out, receive_counts, 0, 1);
    traffic_.all_to_all.add(0);
    backend.copy(in.data, out.data, in.size());
  }
  template <Backend B, class T>
  Done start_all_to_all(B& backend, In<T, 1> in, std::span<const index_t> send_counts,
                        View<T, 1> out, std::span<const index_t> receive_counts) {
    all_to_all(backend, in, send_counts, out, receive_counts);
    return {};
  }
  template <Backend B, class T>
  requires std::is_arithmetic_v<T>
  void all_reduce_sum(B&, View<T, 1>) { traffic_.all_reduce_sum.add(0); }
  template <Backend B, class T>
  requires std::is_arithmetic_v<T>
  void reduce_scatter_sum(B& backend, In<T, 1> in, std::span<const index_t> counts,
                          View<T, 1> out) {
    detail::check_reduce_scatter<T>(in, counts, out, 0, 1);
    traffic_.reduce_scatter_sum.add(0);
    if (in.data != out.data) backend.copy(in.data, out.data, in.size());
  }
  template <Backend B, class T>
  requires std::is_arithmetic_v<T> Done start_reduce_scatter_sum(B& backend, In<T, 1> in,
                                                                 std::span<const index_t> counts,
                                                                 View<T, 1> out) {
    reduce_scatter_sum(backend, in, counts, out);
    return {};
  }
  template <Backend B, class T>
  void all_gather(B& backend, In<T, 1> in, std::span<const index_t> counts, View<T, 1> out) {
    detail::check_all_gather<T>(in, counts, out, 0, 1);
    traffic_.all_gather.add(0);
    if (in.data != out.data) backend.copy(in.data, out.data, in.size());
  }
  template <Backend B, class T>
  void broadcast(B&, View<T, 1>, int root) {
    detail::check_root(root, 1);
    traffic_.broadcast.add(0);
  }

 private:
  Traffic traffic_;
};

static_assert(Communicator<SingleProcess>);

}  // namespace dflash
