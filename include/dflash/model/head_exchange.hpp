#pragma once

#include <array>
#include <optional>
#include <span>
#include <tuple>
#include <utility>
#include <vector>

#include "dflash/core/error.hpp"
#include "dflash/core/head_places.hpp"
#include "dflash/core/host_vector.hpp"
#include "dflash/core/tensor.hpp"

namespace dflash {

/// A tensor in both of its layouts on a sequence group: outside, this rank's rows of all heads;
/// inside, all ranks' rows of this rank's heads. Heads may be needed by several ranks.
template <class U>
struct HeadLane {
  View<const U, 3> outside;         // (own rows, all heads, D); on the way back its shape alone
  View<U, 3> inside;                // (all rows, own heads, D)
  const std::vector<Range>* rows;   // (P): where a rank's rows lie inside; empty: none of them
  const std::vector<Range>* heads;  // (P): which heads a rank takes; empty: none from here

  /// Elements of this rank's rows for another's heads, and of another's rows for this rank's heads.
  index_t elements_to_heads(index_t to) const {
    return outside.shape[0] * (*heads)[std::size_t(to)].size() * outside.shape[2];
  }
  index_t elements_to_rows(index_t to) const {
    return (*rows)[std::size_t(to)].size() * inside.shape[1] * inside.shape[2];
  }
};

/// One packed all-to-all between the two layouts. Every piece is laid where its receiver expects
/// it; what a rank owes itself is copied straight, not sent. `start_*` packs and sends, `finish_*`
/// waits and unpacks; the lanes' tensors live until then. Or `open_to_heads` says where the pieces
/// are to be written, and `send` follows. U of a lane is T, or a type that fills a whole number of
/// T.
template <Backend B, class C>
class HeadExchange {
 public:
  using T = typename B::value_type;

  HeadExchange() = default;
  HeadExchange(B& backend, C& group) : backend_(&backend), group_(&group) {}

  /// The places of each lane's heads of this rank's rows, in the order of the lanes: in what will
  /// be sent, or inside. Of `outside` only the shape is used.
  template <class... Lane>
  std::array<HostVector<HeadPart<T>>, sizeof...(Lane)> open_to_heads(const Lane&... lanes) {
    open([&](index_t to) { return (lanes.elements_to_heads(to) + ...); },
         [&](index_t from) { return (lanes.elements_to_rows(from) + ...); });
    std::array<HostVector<HeadPart<T>>, sizeof...(Lane)> places;
    T* at = sent_.view().data;
    for (index_t p = 0; p < size(); ++p) {
      auto places_of_lane = places.begin();
      (place(lanes, p, at, *places_of_lane++), ...);
    }
    own_is_there_ = true;
    return places;
  }
  void send() {
    pending_.emplace(group_->start_all_to_all(*backend_, In<T, 1>(sent_.view()), send_counts_,
                                              received_.view(), receive_counts_));
  }

  /// inside = outside, for the heads of each rank.
  template <class... U>
  void start_to_heads(const HeadLane<U>&... lanes) {
    start([&](index_t to) { return (units<U>(lanes.elements_to_heads(to)) + ...); },
          [&](index_t from) { return (units<U>(lanes.elements_to_rows(from)) + ...); },
          [&](index_t to, T*& at) { (pack_heads(lanes, to, at), ...); });
  }
  template <class... U>
  void finish_to_heads(const HeadLane<U>&... lanes) {
    finish([&](index_t from, const T*& at) {
      if (from != here())
        (unpack_rows(lanes, from, at), ...);
      else if (!own_is_there_)
        (copy_own(lanes), ...);
    });
    own_is_there_ = false;
  }

  /// The way back: consume(rank, views...) gets, in the order of the ranks, this rank's rows of
  /// each rank's heads; a lane that has nothing from that rank gives an empty view.
  template <class... U>
  void start_to_rows(const HeadLane<U>&... lanes) {
    start([&](index_t to) { return (units<U>(lanes.elements_to_rows(to)) + ...); },
          [&](index_t from) { return (units<U>(lanes.elements_to_heads(from)) + ...); },
          [&](index_t to, T*& at) { (pack_rows(lanes, to, at), ...); });
  }
  template <class Consume, class... U>
  void finish_to_rows(Consume&& consume, const HeadLane<U>&... lanes) {
    finish([&](index_t from, const T*& at) {
      // Braces evaluate from left to right: pieces lie in the order of the lanes.
      std::apply([&](const auto&... views) { consume(from, views...); },
                 std::tuple{piece(lanes, from, at)...});
    });
  }

 private:
  template <class U>
  static constexpr index_t units(index_t elements) {
    static_assert(sizeof(U) % sizeof(T) == 0);
    return elements * index_t(sizeof(U) / sizeof(T));
  }
  index_t here() const { return group_->rank(); }
  index_t size() const { return group_->size(); }

  template <class Send, class Receive>
  void open(Send&& send, Receive&& receive) {
    send_counts_.assign(std::size_t(size()), 0);
    receive_counts_.assign(std::size_t(size()), 0);
    index_t sent = 0, received = 0;
    for (index_t p = 0; p < size(); ++p) {
      if (p == here()) continue;
      sent += send_counts_[std::size_t(p)] = send(p);
      received += receive_counts_[std::size_t(p)] = receive(p);
    }
    sent_ = Tensor<B, T, 1>(*backend_, {sent});
    received_ = Tensor<B, T, 1>(*backend_, {received});
  }

  template <class Send, class Receive, class Pack>
  void start(Send&& sent, Receive&& received, Pack&& pack) {
    open(sent, received);
    T* at = sent_.view().data;
    for (index_t p = 0; p < size(); ++p)
      if (p != here()) pack(p, at);
    send();
  }

  template <class Unpack>
  void finish(Unpack&& unpack) {
    expects(pending_.has_value(), "HeadExchange: finished before it was started");
    pending_->wait();
    pending_.reset();
    const T* at = received_.view().data;
    for (index_t p = 0; p < size(); ++p) unpack(p, at);
    sent_ = {}, received_ = {};
  }

  void place(const HeadLane<T>& lane, index_t to, T*& at, HostVector<HeadPart<T>>& places) {
    const Range heads = (*lane.heads)[std::size_t(to)];
    if (lane.elements_to_heads(to) == 0) return;
    if (to == here()) {
      const Range rows = (*lane.rows)[std::size_t(to)];
      return places.push_back({lane.inside.rows(rows).data, heads.begin, heads.size()});
    }
    places.push_back({at, heads.begin, heads.size()});
    at += lane.elements_to_heads(to);
  }
  template <class U>
  void pack_heads(const HeadLane<U>& lane, index_t to, T*& at) {
    const Range heads = (*lane.heads)[std::size_t(to)];
    if (lane.elements_to_heads(to) == 0) return;
    const index_t d = lane.outside.shape[2], rows = lane.outside.shape[0];
    copy_columns(*backend_, as_rows(lane.outside), heads.begin * d,
                 View<U, 2>{reinterpret_cast<U*>(at), {rows, heads.size() * d}});
    at += units<U>(lane.elements_to_heads(to));
  }
  template <class U>
  void unpack_rows(const HeadLane<U>& lane, index_t from, const T*& at) {
    const index_t n = lane.elements_to_rows(from);
    if (n == 0) return;
    backend_->copy(reinterpret_cast<const U*>(at),
                   lane.inside.rows((*lane.rows)[std::size_t(from)]).data, n);
    at += units<U>(n);
  }
  template <class U>
  void copy_own(const HeadLane<U>& lane) {
    const Range heads = (*lane.heads)[std::size_t(here())];
    if (lane.elements_to_heads(here()) == 0) return;
    copy_columns(*backend_, as_rows(lane.outside), heads.begin * lane.outside.shape[2],
                 as_rows(lane.inside.rows((*lane.rows)[std::size_t(here())])));
  }
  template <class U>
  void pack_rows(const HeadLane<U>& lane, index_t to, T*& at) {
    const index_t n = lane.elements_to_rows(to);
    if (n == 0) return;
    backend_->copy(lane.inside.rows((*lane.rows)[std::size_t(to)]).data, reinterpret_cast<U*>(at),
                   n);
    at += units<U>(n);
  }
  /// This rank's rows of a rank's heads: in the received elements, or its own.
  template <class U>
  View<const U, 3> piece(const HeadLane<U>& lane, index_t from, const T*& at) {
    const Range heads = (*lane.heads)[std::size_t(from)];
    if (from == here()) return View<U, 3>(lane.inside.rows((*lane.rows)[std::size_t(from)]));
    const View<const U, 3> view{reinterpret_cast<const U*>(at),
                                {lane.outside.shape[0], heads.size(), lane.outside.shape[2]}};
    at += units<U>(lane.elements_to_heads(from));
    return view;
  }
  template <class U>
  static View<U, 2> as_rows(View<U, 3> v) {
    return reshape<2>(v, {v.shape[0], v.shape[1] * v.shape[2]});
  }

  B* backend_ = nullptr;
  C* group_ = nullptr;
  std::vector<index_t> send_counts_, receive_counts_;
  bool own_is_there_ = false;  // it was written to its place
  Tensor<B, T, 1> sent_, received_;
  using Pending = decltype(std::declval<C&>().start_all_to_all(
      std::declval<B&>(), std::declval<In<T, 1>>(), std::declval<std::span<const index_t>>(),
      std::declval<Out<T, 1>>(), std::declval<std::span<const index_t>>()));
  std::optional<Pending> pending_;
};

}  // namespace dflash
