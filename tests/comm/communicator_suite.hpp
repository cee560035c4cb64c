#pragma once

#include <doctest/doctest.h>

#include <cstdint>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "comm/communicator_cases.hpp"
#include "dflash/comm/communicator.hpp"
#include "dflash/core/bfloat16.hpp"
#include "dflash/cpu/backend.hpp"

/// What every communicator must do. Each check is called by all ranks.
namespace communicator_suite {

template <class B, class T, class C>
void check_moves(C& comm) {
  B backend;
  const int rank = comm.rank(), ranks = comm.size();
  CAPTURE(rank);
  CAPTURE(ranks);
  for (int round = 0; round < patterns; ++round) {
    CAPTURE(round);
    Exchange<B, T> exchange(backend, rank, ranks, {round}, round);
    const auto before = exchange.in.host();
    comm.all_to_all(backend, exchange.in.view(), exchange.send, exchange.out.view(),
                    exchange.receive);
    CHECK(exchange.right());
    CHECK(same_bits(exchange.in.host(), before));

    const Counts counts = Pattern{round}.sent(1, ranks);  // the same on every rank
    std::vector<T> whole;
    for (int r = 0; r < ranks; ++r) {
      const auto theirs = values<T>(r, counts[std::size_t(r)], round);
      whole.insert(whole.end(), theirs.begin(), theirs.end());
    }
    const auto own = values<T>(rank, counts[std::size_t(rank)], round);
    Array<B, T> own_there(backend, own), out(backend, values<T>(99, sum(counts)));
    comm.all_gather(backend, own_there.view(), counts, out.view());
    CHECK(same_bits(out.host(), whole));

    auto mixed = values<T>(99, sum(counts));
    const index_t begin = std::accumulate(counts.begin(), counts.begin() + rank, index_t(0));
    std::copy(own.begin(), own.end(), mixed.begin() + begin);
    Array<B, T> place(backend, mixed);
    comm.all_gather(backend, place.view().rows({begin, begin + index_t(own.size())}), counts,
                    place.view());
    CHECK(same_bits(place.host(), whole));

    for (int root = 0; root < ranks; ++root) {
      const index_t n = 400 * round;
      Array<B, T> data(backend, values<T>(rank, n, root));
      comm.broadcast(backend, data.view(), root);
      CHECK(same_bits(data.host(), values<T>(root, n, root)));
    }
  }
}

template <class B, class T, class C>
void check_sums(C& comm) {
  B backend;
  const int rank = comm.rank(), ranks = comm.size();
  CAPTURE(rank);
  CAPTURE(ranks);
  for (const index_t n : {0, 1, 2, 5, 1000, 20011}) {
    CAPTURE(n);
    Array<B, T> data(backend, values<T>(rank, n, 1));
    comm.all_reduce_sum(backend, data.view());
    CHECK(same_bits(data.host(), sum_of_ranks<T>(ranks, n, 1)));
  }
  for (int round = 0; round < patterns; ++round) {
    CAPTURE(round);
    const Counts counts = Pattern{round}.sent(1, ranks);
    const auto expected = part(sum_of_ranks<T>(ranks, sum(counts), 2), counts, rank);
    Array<B, T> in(backend, values<T>(rank, sum(counts), 2)),
        out(backend, values<T>(99, counts[std::size_t(rank)]));
    comm.reduce_scatter_sum(backend, in.view(), counts, out.view());
    CHECK(same_bits(out.host(), expected));
    CHECK(same_bits(in.host(), values<T>(rank, sum(counts), 2)));

    const index_t begin = std::accumulate(counts.begin(), counts.begin() + rank, index_t(0));
    comm.reduce_scatter_sum(backend, in.view(), counts,
                            in.view().rows({begin, begin + counts[std::size_t(rank)]}));
    CHECK(same_bits(part(in.host(), counts, rank), expected));
  }
}

template <class B, class C>
void check_started_exchanges(C& comm) {
  B backend;
  const int rank = comm.rank(), ranks = comm.size();
  CAPTURE(rank);
  CAPTURE(ranks);
  const auto start = [&](auto& exchange) {
    // The counts may go before the exchange is done, the buffers may not.
    const Counts send = exchange.send, receive = exchange.receive;
    return comm.start_all_to_all(backend, exchange.in.view(), send, exchange.out.view(), receive);
  };
  Exchange<B, float> first(backend, rank, ranks, {4}, 1);
  Exchange<B, double> second(backend, rank, ranks, {1}, 2);
  Exchange<B, std::uint8_t> third(backend, rank, ranks, {0}, 3);
  Sum<B, float> one(backend, rank, ranks, {1}, 5), two(backend, rank, ranks, {4}, 6);
  {
    auto a = start(first);
    auto sum = one.start(comm, backend);
    auto b = start(second);
    Array<B, double> data(backend, values<double>(rank, 77, 4));
    comm.all_reduce_sum(backend, data.view());  // in between
    CHECK(same_bits(data.host(), sum_of_ranks<double>(ranks, 77, 4)));
    [[maybe_unused]] const auto c = start(third);
    [[maybe_unused]] const auto unwaited = two.start(comm, backend);
    sum.wait();
    CHECK(one.right());
    b.wait();
    CHECK(second.right());
    auto moved = std::move(a);
    moved.wait();
    moved.wait();  // nothing more to wait for
    CHECK(first.right());
  }
  CHECK(third.right());  // c waited when it went
  CHECK(two.right());

  // Buckets of one buffer, each started when it is written; the parts lie where they are summed.
  std::vector<Sum<B, float>> buckets;
  for (int i = 0; i < 5; ++i) buckets.emplace_back(backend, rank, ranks, Pattern{i % patterns}, i);
  std::vector<decltype(one.start_in_place(comm, backend))> sums;
  for (auto& bucket : buckets) sums.push_back(bucket.start_in_place(comm, backend));
  for (auto& sum : sums) sum.wait();
  for (const auto& bucket : buckets) CHECK(bucket.right_in_place());

  using Pending = decltype(start(first));
  std::vector<Pending> pending;
  std::vector<Exchange<B, std::int32_t>> many;
  for (int i = 0; i < 12; ++i) many.emplace_back(backend, rank, ranks, Pattern{i % patterns}, i);
  for (auto& exchange : many) pending.push_back(start(exchange));
  comm.barrier();
  for (auto& p : pending) p.wait();
  for (const auto& exchange : many) CHECK(exchange.right());
}

template <class B, class C>
void check_split(C& comm) {
  B backend;
  const int rank = comm.rank(), ranks = comm.size();
  CAPTURE(rank);
  CAPTURE(ranks);
  const auto sum_over = [&](C& part) {
    Array<B, std::int64_t> data(backend, std::vector<std::int64_t>(3, std::int64_t(1) << rank));
    part.all_reduce_sum(backend, data.view());
    return data.host()[0];
  };
  C by_parity = comm.split(rank % 2);
  CHECK(by_parity.size() == (ranks + 1 - rank % 2) / 2);
  CHECK(by_parity.rank() == rank / 2);
  std::int64_t expected = 0;
  for (int r = rank % 2; r < ranks; r += 2) expected += std::int64_t(1) << r;
  CHECK(sum_over(by_parity) == expected);

  C alone = comm.split(rank);
  CHECK(alone.size() == 1);
  CHECK(sum_over(alone) == std::int64_t(1) << rank);
  C again = comm.split(7);
  CHECK(again.rank() == rank);
  C pairs = by_parity.split(by_parity.rank() / 2);
  CHECK(pairs.rank() == rank / 2 % 2);
  if (rank % 2 == 0) sum_over(by_parity);  // groups need not do the same
  pairs.barrier();
  CHECK(sum_over(again) == (std::int64_t(1) << ranks) - 1);
  CHECK(sum_over(comm) == (std::int64_t(1) << ranks) - 1);
  CHECK_THROWS_WITH_AS(comm.split(-1), "split: color -1 is negative", dflash::Error);
}

template <class B, class C>
void check_traffic(C& comm) {
  B backend;
  const int rank = comm.rank(), ranks = comm.size();
  CAPTURE(rank);
  CAPTURE(ranks);
  const dflash::Traffic before = comm.traffic();
  dflash::Traffic expected;
  const index_t others = ranks - 1;

  Exchange<B, float> a(backend, rank, ranks, {1}, 0);
  comm.all_to_all(backend, a.in.view(), a.send, a.out.view(), a.receive);
  comm.start_all_to_all(backend, a.in.view(), a.send, a.out.view(), a.receive).wait();
  expected.all_to_all = {2, 2 * 4 * (sum(a.send) - a.send[std::size_t(rank)])};

  Array<B, double> data(backend, std::vector<double>(101));
  comm.all_reduce_sum(backend, data.view());
  const index_t slice = 101 / ranks + (rank < 101 % ranks ? 1 : 0);
  expected.all_reduce_sum = {1, 8 * (101 - slice + slice * others)};

  const Counts counts = Pattern{4}.sent(0, ranks);
  const index_t own = counts[std::size_t(rank)];
  Array<B, std::int32_t> whole(backend, std::vector<std::int32_t>(std::size_t(sum(counts)))),
      mine(backend, std::vector<std::int32_t>(std::size_t(own), 0));
  comm.reduce_scatter_sum(backend, whole.view(), counts, mine.view());
  comm.start_reduce_scatter_sum(backend, whole.view(), counts, mine.view()).wait();
  expected.reduce_scatter_sum = {2, 2 * 4 * (sum(counts) - own)};
  comm.all_gather(backend, mine.view(), counts, whole.view());
  expected.all_gather = {1, 4 * own * others};
  Array<B, dflash::bfloat16> halves(backend, std::vector<dflash::bfloat16>(11));
  for (int root = 0; root < ranks; ++root) comm.broadcast(backend, halves.view(), root);
  expected.broadcast = {ranks, 2 * 11 * others};

  comm.barrier();
  C part = comm.split(rank % 2);
  CHECK(part.traffic() == dflash::Traffic{});
  const dflash::Traffic difference = comm.traffic() - before;
  CHECK(difference == expected);
  CHECK(difference.total().calls == 6 + ranks);
}

/// Arguments that are wrong on every rank: an error on each, and all goes on.
template <class B, class C>
void check_arguments(C& comm) {
  using dflash::Error;
  B backend;
  const int rank = comm.rank(), ranks = comm.size();
  const auto p = std::size_t(ranks);
  Array<B, float> in(backend, std::vector<float>(2 * p, 1.0f)),
      out(backend, std::vector<float>(2 * p, 0.0f));
  const Counts two(p, 2), three(p, 3), many(p + 1, 2);
  Counts negative = two;
  negative[0] = -2;
  const std::string n = std::to_string(ranks), n2 = std::to_string(2 * ranks);
  const auto text = [](auto&& call) -> std::string {
    try {
      call();
    } catch (const Error& error) {
      return error.what();
    }
    return "no error";
  };
  const auto exchange = [&](const Counts& send, const Counts& receive) {
    return text([&] { comm.all_to_all(backend, in.view(), send, out.view(), receive); });
  };
  CHECK(exchange(many, two) ==
        "all_to_all: " + std::to_string(ranks + 1) + " send counts for " + n + " ranks");
  CHECK(exchange(two, {}) == "all_to_all: 0 receive counts for " + n + " ranks");
  CHECK(exchange(negative, two) == "all_to_all: the send count of rank 0 is -2");
  CHECK(exchange(two, three) == "all_to_all: the receive counts add up to " +
                                    std::to_string(3 * ranks) + ", the buffer holds " + n2 +
                                    " elements");
  CHECK(text([&] { comm.all_to_all(backend, out.view(), two, out.view(), two); }) ==
        "all_to_all: in and out overlap");
  CHECK(text([&] { comm.start_all_to_all(backend, in.view(), three, out.view(), two); }) ==
        "all_to_all: the send counts add up to " + std::to_string(3 * ranks) +
            ", the buffer holds " + n2 + " elements");
  CHECK(text([&] { comm.all_gather(backend, in.view(), two, out.view()); }) ==
        (ranks == 1 ? "no error"
                    : "all_gather: the count of rank " + std::to_string(rank) +
                          " is 2, its buffer holds " + n2 + " elements"));
  CHECK(text([&] { comm.reduce_scatter_sum(backend, in.view(), three, out.view()); }) ==
        "reduce_scatter_sum: the part counts add up to " + std::to_string(3 * ranks) +
            ", the buffer holds " + n2 + " elements");
  if (ranks > 1) {
    const index_t elsewhere = rank == 0 ? 1 : 0;
    CHECK(text([&] {
            comm.reduce_scatter_sum(backend, in.view(), two,
                                    in.view().rows({elsewhere, elsewhere + 2}));
          }) == "reduce_scatter_sum: in and out overlap");
    CHECK(text([&] {
            comm.all_gather(backend, out.view().rows({elsewhere, elsewhere + 2}), two, out.view());
          }) == "all_gather: in and out overlap");
  }
  CHECK(text([&] { comm.broadcast(backend, out.view(), ranks); }) ==
        "broadcast: root " + n + " is none of " + n + " ranks");
  CHECK(text([&] { comm.broadcast(backend, out.view(), -1); }) ==
        "broadcast: root -1 is none of " + n + " ranks");
  comm.all_to_all(backend, in.view(), two, out.view(), two);
  CHECK(out.host() == in.host());
}

/// Any order of any collectives, the same on all ranks.
template <class B, class C>
void check_random_mix(C& comm, int collectives, unsigned seed) {
  B backend;
  const int rank = comm.rank(), ranks = comm.size();
  CAPTURE(rank);
  CAPTURE(seed);
  std::mt19937 random(seed);  // the same on every rank
  C half = comm.split(rank < ranks / 2 ? 0 : 1);
  bool right = true;
  for (int i = 0; i < collectives; ++i) {
    const int kind = int(random() % 7), salt = int(random() % 1000);
    const int round = int(random() % patterns), root = int(random() % unsigned(ranks));
    const index_t n = index_t(random() % 3000);
    if (kind == 0) {
      Exchange<B, double> exchange(backend, rank, ranks, {round}, salt);
      comm.all_to_all(backend, exchange.in.view(), exchange.send, exchange.out.view(),
                      exchange.receive);
      right = right && exchange.right();
    } else if (kind == 1) {
      Array<B, float> data(backend, values<float>(rank, n, salt));
      comm.all_reduce_sum(backend, data.view());
      right = right && same_bits(data.host(), sum_of_ranks<float>(ranks, n, salt));
    } else if (kind == 2) {
      Array<B, float> data(backend, values<float>(rank, n, salt));
      comm.broadcast(backend, data.view(), root);
      right = right && same_bits(data.host(), values<float>(root, n, salt));
    } else if (kind == 3) {
      Array<B, std::int64_t> data(backend, values<std::int64_t>(half.rank(), n, salt));
      half.all_reduce_sum(backend, data.view());
      right = right && same_bits(data.host(), sum_of_ranks<std::int64_t>(half.size(), n, salt));
    } else if (kind == 4) {
      comm.barrier();
    } else if (kind == 5) {
      Sum<B, float> outer(backend, rank, ranks, {round}, salt);
      Sum<B, float> inner(backend, half.rank(), half.size(), {4}, salt);
      auto pending = outer.start(comm, backend);
      auto other = inner.start_in_place(half, backend);
      pending.wait();
      other.wait();
      right = right && inner.right_in_place() && outer.right();
    } else {
      Exchange<B, float> outer(backend, rank, ranks, {round}, salt);
      Exchange<B, float> inner(backend, half.rank(), half.size(), {4}, salt);
      auto pending = comm.start_all_to_all(backend, outer.in.view(), outer.send, outer.out.view(),
                                           outer.receive);
      half.all_to_all(backend, inner.in.view(), inner.send, inner.out.view(), inner.receive);
      pending.wait();
      right = right && inner.right() && outer.right();
    }
  }
  CHECK(right);
}

/// Everything above, on a backend's memory. run(body) calls body(communicator) on every rank.
template <class B = dflash::CpuBackend<float>, class Run>
void check_communicator(const Run& run) {
  run([](auto comm) {
    check_moves<B, float>(comm);
    check_moves<B, double>(comm);
    check_moves<B, std::int32_t>(comm);
    check_moves<B, std::int64_t>(comm);
    check_moves<B, std::uint8_t>(comm);
    check_moves<B, dflash::bfloat16>(comm);
  });
  run([](auto comm) {
    check_sums<B, float>(comm);
    check_sums<B, double>(comm);
    check_sums<B, std::int32_t>(comm);
    check_sums<B, std::int64_t>(comm);
    check_sums<B, std::uint8_t>(comm);
  });
  run([](auto comm) { check_started_exchanges<B>(comm); });
  run([](auto comm) { check_split<B>(comm); });
  run([](auto comm) { check_traffic<B>(comm); });
  run([](auto comm) { check_arguments<B>(comm); });
  run([](auto comm) {
    for (unsigned seed = 1; seed <= 3; ++seed) check_random_mix<B>(comm, 40, seed);
  });
}

}  // namespace communicator_suite
