#include "dflash/train/sharded_adamw.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <chrono>
#include <mutex>
#include <thread>

#include "dflash/comm/thread_communicator.hpp"
#include "train/parallel_training.hpp"

namespace sharded_adamw_test {

using namespace dflash;
using namespace parallel_training;

/// The same on threads; all ranks must end with the same weights.
template <class T>
Run train(const DraftConfig& config, const std::vector<MemorySample>& memory, Layout layout,
          LossOptions options = {}, const Disturbance& disturb = {}, double time_out = 60) {
  std::mutex mutex;
  Run first;
  const auto body = [&](ThreadCommunicator world) {
    Run own = train_on<T>(std::move(world), config, memory, layout, options, disturb);
    const std::lock_guard lock(mutex);
    if (first.weights.empty()) first = own;
    CHECK(first.weights == own.weights);
    CHECK(first.loss == own.loss);
  };
  ThreadCommunicator::run(int(layout.ranks()), body,
                          {.time_out = std::chrono::duration<double>(time_out)});
  return first;
}

template <class T>
void check(double loss_limit, double weight_limit, LossOptions options = {}) {
  const auto config = small_config(true, true);
  const auto memory = random_samples(config, {23, 5, 90, 17, 2, 41, 12, 8, 70}, 4);
  const Run one = train<T>(config, memory, {}, options);
  CHECK(one.loss.size() == 5);
  double top = 0;
  for (double w : one.weights) top = std::max(top, std::abs(w));
  for (index_t replicas : {1, 2, 3, 4, 8})
    for (index_t u : {1, 2, 3, 6})
      for (index_t r : {1, 2})
        for (index_t accumulation : {1, 2, 3}) {
          const index_t ranks = replicas * u * r;
          if (ranks > 8 || (accumulation > 1 && ranks > 4)) continue;
          // Layouts take turns with the degrees that divide them.
          index_t t = 1 + (replicas + u + r + accumulation) % ranks;
          while (ranks % t != 0) --t;
          const Layout layout{replicas, {u, r}, accumulation, t};
          CAPTURE(replicas);
          CAPTURE(u);
          CAPTURE(r);
          CAPTURE(accumulation);
          CAPTURE(t);
          const Run many = train<T>(config, memory, layout, options);
          for (std::size_t i = 0; i < 5; ++i) {
            CHECK(std::abs(many.loss[i] - one.loss[i]) <= loss_limit * one.loss[i]);
            CHECK(std::abs(many.norm[i] - one.norm[i]) <= loss_limit * one.norm[i]);
          }
          double worst = 0;
          for (std::size_t i = 0; i < one.weights.size(); ++i)
            worst = std::max(worst, std::abs(many.weights[i] - one.weights[i]));
          CHECK(worst <= weight_limit * top);
        }
}

TEST_CASE("Five steps on any replicas, layout and accumulation are those of one rank, in double") {
  SUBCASE("plain loss") { check<double>(1e-12, 1e-12, {.gamma = 4}); }
  SUBCASE("D-PACE") { check<double>(1e-12, 1e-12, {.type = LossType::dpace}); }
}

TEST_CASE("Five steps on any replicas, layout and accumulation are those of one rank, in float") {
  check<float>(1e-5, 1e-4, {.gamma = 4});
}

TEST_CASE("Buckets that are sent while others are written add up to the bits of one sum") {
  using B = CpuBackend<float>;
  const index_t n = 61;
  const std::vector<ParameterSlot> slots{{"a", {20}, 0, 20}, {"b", {41}, 20, 41}};
  const auto weights_after = [&](int ranks, std::vector<Range> buckets, index_t started) {
    std::vector<float> weights;
    ThreadCommunicator::run(ranks, [&](ThreadCommunicator world) {
      B cpu;
      Tensor<B, float, 1> gradient(cpu, {n}), own(cpu, {n});
      fill(cpu, own.view(), 0.5f);
      ShardedAdamW optimizer(cpu, world, own.view(), slots, {.max_grad_norm = 0}, buckets);
      for (std::uint64_t step = 0; step < 3; ++step) {
        const Random random(step, std::uint64_t(world.rank()));
        for (index_t i = n; i-- > 0;) {
          gradient.view()(i) = float(random.normal(std::uint64_t(i)));
          for (index_t b = 0; b < started; ++b)
            if (buckets[std::size_t(b)].begin == i) optimizer.start(gradient.view(), b);
        }
        optimizer.step(own.view(), gradient.view(), 0.01, 2.0);
      }
      if (world.rank() == 1) weights.assign(own.view().data, own.view().data + n);
    });
    return weights;
  };
  for (const int ranks : {2, 3, 5}) {
    CAPTURE(ranks);
    const auto expected = weights_after(ranks, {}, 0);
    for (const index_t started : {0, 1, 3})
      CHECK(weights_after(ranks, {{40, 61}, {38, 40}, {0, 38}}, started) == expected);
  }
}

TEST_CASE("A bucket is started once in a step") {
  ThreadCommunicator::run(2, [](ThreadCommunicator world) {
    CpuBackend<float> cpu;
    Tensor<CpuBackend<float>, float, 1> gradient(cpu, {9}), own(cpu, {9});
    fill(cpu, own.view(), 0.5f), fill(cpu, gradient.view(), 1.0f);
    ShardedAdamW optimizer(cpu, world, own.view(), {{"a", {9}, 0, 9}}, {}, {{4, 9}, {0, 4}});
    optimizer.start(gradient.view(), 0);
    CHECK_THROWS_WITH_AS(optimizer.start(gradient.view(), 0), doctest::Contains("twice"), Error);
    optimizer.step(own.view(), gradient.view(), 0.1, 1.0);
  });
}

TEST_CASE("A rank that throws or stalls at a random moment ends the job, which names it") {
  const auto config = small_config(true, true);
  const auto memory = random_samples(config, {23, 5, 90, 17, 2, 41, 12, 8, 70}, 4);
  const Random random(6);
  const Layout layouts[] = {
      {2, {2, 1}, 2, 2}, {1, {3, 1}, 1, 3}, {1, {2, 2}, 3, 1}, {3, {1, 1}, 2, 1}};
  for (std::uint64_t round = 0; round < 12; ++round) {
    const Layout& layout = layouts[round % 4];
    const bool stalls = round % 6 == 5;
    const index_t late = index_t(random.integer(2 * round) % std::uint64_t(layout.ranks())),
                  moment = index_t(random.integer(2 * round + 1) %
                                   std::uint64_t(5 * layout.accumulation));
    CAPTURE(round);
    CAPTURE(late);
    CAPTURE(moment);
    const auto disturb = [&](index_t rank, index_t micro) {
      if (rank != late || micro != moment) return;
      if (!stalls) throw Error("row 7 is damaged");
      std::this_thread::sleep_for(std::chrono::milliseconds(2200));
    };
    std::string why;
    const auto begin = std::chrono::steady_clock::now();
    try {
      train<float>(config, memory, layout, {}, disturb, 1.5);
    } catch (const Error& error) {
      why = error.what();
    }
    const std::string name = "rank " + std::to_string(late);
    if (stalls) {
      CHECK_MESSAGE(why.starts_with("time-out: rank "), why);
      CHECK_MESSAGE(
          why.find(" for " + name + ", which has been in no collective") != std::string::npos, why);
    } else {
      CHECK(why == name + " failed: row 7 is damaged");
    }
    CHECK(std::chrono::steady_clock::now() - begin < std::chrono::seconds(20));
  }
}

TEST_CASE("The state of all ranks makes one optimizer, and is taken back by any number of ranks") {
  using B = CpuBackend<double>;
  const index_t n = 37;
  const std::vector<ParameterSlot> slots{{"a", {20}, 0, 20}, {"b", {17}, 20, 17}};
  const auto steps = [&](int ranks, int first, int count, std::vector<double>& weights,
                         AdamW<B>*& state, B& keeper) {
    std::mutex mutex;
    const std::vector<double> start = weights;
    AdamW<B>* before = state;
    state = nullptr;
    ThreadCommunicator::run(ranks, [&](ThreadCommunicator world) {
      B cpu;
      Tensor<B, double, 1> own(cpu, {n}), gradient(cpu, {n});
      cpu.upload(start.data(), own.view().data, n);
      ShardedAdamW optimizer(cpu, world, own.view(), slots);
      if (before != nullptr) optimizer.take(*before, own.view());
      for (int step = first; step < first + count; ++step) {
        // Only rank 0 has a gradient: the sum is the same for any number of ranks.
        for (index_t i = 0; i < n; ++i)
          gradient.view()(i) = world.rank() == 0 ? std::sin(double(i * (step + 1))) : 0;
        optimizer.step(own.view(), gradient.view(), 0.01, 2.0);
      }
      AdamW<B> all = optimizer.whole(own.view());
      const std::lock_guard lock(mutex);
      if (world.rank() != 0) return;
      weights.assign(own.view().data, own.view().data + n);
      state = new AdamW<B>(keeper, own.view(), slots);
      state->steps() = all.steps();
      for (const auto part : {OptimizerPart::first_moment, OptimizerPart::second_moment})
        keeper.copy(all.view(part, own.view()).data, state->view(part, own.view()).data, n);
    });
    delete before;
  };
  B keeper;
  const std::vector<double> start(std::size_t(n), 0.5);
  std::vector<double> whole = start, parts = start;
  AdamW<B>*one = nullptr, *many = nullptr;
  steps(1, 0, 7, whole, one, keeper);
  steps(3, 0, 2, parts, many, keeper);
  steps(5, 2, 3, parts, many, keeper);
  steps(2, 5, 2, parts, many, keeper);
  for (std::size_t i = 0; i < std::size_t(n); ++i) CHECK(std::abs(whole[i] - parts[i]) < 1e-14);
  delete one;
  delete many;
}

}  // namespace sharded_adamw_test
