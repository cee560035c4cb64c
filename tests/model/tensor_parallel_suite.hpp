#pragma once

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <set>
#include <string>
#include <vector>

#include "dflash/comm/tensor_parallel_group.hpp"
#include "dflash/core/host_copy.hpp"
#include "dflash/core/random.hpp"
#include "dflash/cpu.hpp"
#include "dflash/decode/greedy.hpp"
#include "dflash/decode/speculative_decoder.hpp"
#include "dflash/model/dflash_block.hpp"
#include "dflash/model/draft_model.hpp"
#include "dflash/model/parallel_linear.hpp"
#include "dflash/model/target_model.hpp"
#include "dflash/model/target_traffic.hpp"
#include "dflash/model/vocabulary_parallel.hpp"
#include "model/target_fixture.hpp"

/// What tensor-parallel models must do on any communicator. Each check is called by all ranks of a
/// world; every rank computes what one rank alone gets, and compares.
namespace tensor_parallel_suite {

using namespace dflash;

template <class T>
constexpr double tolerance = std::is_same_v<T, double> ? 1e-12 : 1e-5;

template <class T>
using Matrix = Tensor<CpuBackend<T>, T, 2>;

template <class T>
std::vector<T> host(View<const T, 2> v) {
  return {v.data, v.data + v.size()};
}

template <class T>
Matrix<T> random_matrix(CpuBackend<T>& backend, index_t rows, index_t columns, std::uint64_t seed) {
  Matrix<T> m(backend, {rows, columns});
  const Random random(seed);
  for (index_t i = 0; i < m.size(); ++i) m.view().data[i] = T(random.normal(std::uint64_t(i)));
  return m;
}

/// The largest difference, relative to the largest entry expected.
template <class T>
double difference(const std::vector<T>& actual, const std::vector<T>& expected) {
  if (actual.size() != expected.size()) return INFINITY;
  double top = 0, worst = 0;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    top = std::max(top, std::abs(double(expected[i])));
    const double off = std::abs(double(actual[i]) - double(expected[i]));
    worst = std::max(worst, std::isnan(off) ? INFINITY : off);
  }
  return top > 0 ? worst / top : worst;
}

/// Some rows and columns of a matrix.
template <class T>
Matrix<T> part_of(CpuBackend<T>& backend, View<const T, 2> all, Range rows, Range columns) {
  Matrix<T> part(backend, {rows.size(), columns.size()});
  copy_columns(backend, all.rows(rows), columns.begin, part.view());
  return part;
}

/// Whether all ranks of the group hold the same bits.
template <Backend B, class C>
bool same_on_all(B& backend, TensorParallelGroup<C>& group, In<typename B::value_type, 2> mine) {
  Tensor<B, typename B::value_type, 1> first(backend, {mine.size()});
  backend.copy(mine.data, first.view().data, mine.size());
  group.communicator().broadcast(backend, first.view(), 0);
  return host_copy(backend, first.view()) == host_copy(backend, mine);
}

/// A linear layer cut either way: values and gradients are those of the whole layer.
template <class T, class C>
void check_linear(C& world, index_t degree, index_t rows, index_t inputs, index_t outputs) {
  CpuBackend<T> cpu;
  TensorParallelGroup<C> group(world, degree);
  const Range all_in{0, inputs}, all_out{0, outputs}, in = group.share().of(inputs),
                                                      out = group.share().of(outputs), all{0, rows};
  const auto x = random_matrix(cpu, rows, inputs, 1), w = random_matrix(cpu, outputs, inputs, 2),
             bias = random_matrix(cpu, 1, outputs, 3), dy = random_matrix(cpu, rows, outputs, 4);
  auto y = random_matrix(cpu, rows, outputs, 5), dx = random_matrix(cpu, rows, inputs, 6),
       dw = random_matrix(cpu, outputs, inputs, 7), dbias = random_matrix(cpu, 1, outputs, 8);
  const auto old_dx = host<T>(dx.view()), old_dw = host<T>(dw.view()),
             old_dbias = host<T>(dbias.view());
  const auto row = [](auto&& m) { return reshape<1>(m.view(), {m.size()}); };
  linear(cpu, x.view(), w.view(), y.view());
  add_rows(cpu, row(bias), y.view());
  linear_backward_input(cpu, dy.view(), w.view(), dx.view());
  linear_backward_weight(cpu, dy.view(), x.view(), dw.view());
  sum_rows(cpu, dy.view(), row(dbias));
  const auto old = [&](const std::vector<T>& values, index_t n, index_t width, Range r, Range c) {
    return part_of<T>(cpu, {values.data(), {n, width}}, r, c);
  };
  const auto near = [&](View<const T, 2> a, View<const T, 2> b) {
    CHECK(difference(host(a), host(b)) <= tolerance<T>);
  };
  {
    const ColumnParallelLinear<CpuBackend<T>, C> layer(cpu, group);
    const auto own_w = part_of<T>(cpu, w.view(), out, all_in),
               own_bias = part_of<T>(cpu, bias.view(), {0, 1}, out),
               own_dy = part_of<T>(cpu, dy.view(), all, out);
    Matrix<T> own_y(cpu, {rows, out.size()}), frozen_y(cpu, {rows, out.size()});
    layer.forward(x.view(), own_w.view(), row(own_bias), own_y.view());
    layer.forward(x.view(), freeze(cpu, own_w.view()), row(own_bias), frozen_y.view());
    CHECK(host<T>(own_y.view()) == host<T>(frozen_y.view()));
    near(own_y.view(), part_of<T>(cpu, y.view(), all, out).view());
    auto own_dx = old(old_dx, rows, inputs, all, all_in),
         own_dw = old(old_dw, outputs, inputs, out, all_in),
         own_dbias = old(old_dbias, 1, outputs, {0, 1}, out);
    layer.backward(x.view(), own_w.view(), own_dy.view(), own_dx.view(), own_dw.view(),
                   row(own_dbias));
    near(own_dx.view(), dx.view());
    CHECK(same_on_all(cpu, group, own_dx.view()));
    near(own_dw.view(), part_of<T>(cpu, dw.view(), out, all_in).view());
    near(own_dbias.view(), part_of<T>(cpu, dbias.view(), {0, 1}, out).view());
  }
  {
    const RowParallelLinear<CpuBackend<T>, C> layer(cpu, group);
    const auto own_w = part_of<T>(cpu, w.view(), all_out, in),
               own_x = part_of<T>(cpu, x.view(), all, in);
    Matrix<T> own_y(cpu, {rows, outputs});
    layer.forward(own_x.view(), own_w.view(), row(bias), own_y.view());
    near(own_y.view(), y.view());
    CHECK(same_on_all(cpu, group, own_y.view()));
    auto own_dx = old(old_dx, rows, inputs, all, in),
         own_dw = old(old_dw, outputs, inputs, all_out, in),
         own_dbias = old(old_dbias, 1, outputs, {0, 1}, all_out);
    layer.backward(own_x.view(), own_w.view(), dy.view(), own_dx.view(), own_dw.view(),
                   row(own_dbias));
    near(own_dx.view(), part_of<T>(cpu, dx.view(), all, in).view());
    near(own_dw.view(), part_of<T>(cpu, dw.view(), all_out, in).view());
    near(own_dbias.view(), dbias.view());
  }
}

inline std::vector<std::int32_t> some_tokens(index_t n, index_t vocabulary,
                                             std::uint64_t seed = 3) {
  const Random random(seed);
  std::vector<std::int32_t> tokens;
  for (index_t i = 0; i < n; ++i)
    tokens.push_back(std::int32_t(random.integer(std::uint64_t(i)) % std::uint64_t(vocabulary)));
  return tokens;
}

/// Prefill, cached decoding and greedy answers of a target over the ranks are those of one; what
/// the ranks send is what the formula says.
template <Backend B, class C>
void check_target_on(B& backend, C& world, index_t degree, const std::filesystem::path& folder) {
  using T = typename B::value_type;
  const auto host = [&](View<const T, 2> v) { return host_copy(backend, v); };
  const TargetModel<B> one(backend, folder);
  TensorParallelGroup<C> group(world, degree);
  const TargetModel<B, C> many(backend, group, folder);
  const auto near = [&](View<const T, 2> a, View<const T, 2> b) {
    CHECK(difference(host(a), host(b)) <= tolerance<T>);
  };
  // On a GPU a product's bits may depend on how many rows it has.
  const auto same = [&](View<const T, 2> a, View<const T, 2> b) {
    if constexpr (HostBackend<B>)
      CHECK(host(a) == host(b));
    else
      near(a, b);
  };
  const auto& config = one.config();
  const auto tokens = some_tokens(41, config.vocabulary);
  const std::vector<index_t> offsets{0, 9, 10, 41};
  TargetRequest request{.layers = {}, .last_hidden = true, .logits = Logits::all};
  for (index_t i = 0; i < config.layers; ++i) request.layers.push_back(i);

  const auto expected = one.prefill(tokens, offsets, request);
  const Traffic before = group.communicator().traffic();
  const auto actual = many.prefill(tokens, offsets, request);
  CHECK(group.communicator().traffic() - before ==
        target_traffic(config, group.share(), 41, config.layers, 41, NumberBytes::of<B>()));
  near(actual.features.view(), expected.features.view());
  near(actual.last_hidden.view(), expected.last_hidden.view());
  near(actual.logits.view(), expected.logits.view());
  CHECK(same_on_all(backend, group, actual.features.view()));
  CHECK(same_on_all(backend, group, actual.logits.view()));
  if (degree == 1) CHECK(host(actual.logits.view()) == host(expected.logits.view()));

  const Traffic before_last = group.communicator().traffic();
  const auto last = many.prefill(tokens, offsets, {.layers = {}, .logits = Logits::last});
  CHECK(group.communicator().traffic() - before_last ==
        target_traffic(config, group.share(), 41, config.layers, 3, NumberBytes::of<B>()));
  REQUIRE(last.logits.view().shape[0] == 3);
  for (index_t i = 0; i < 3; ++i) {
    const index_t row = offsets[std::size_t(i) + 1] - 1;
    same(last.logits.view().rows({i, i + 1}),
         View<const T, 2>(actual.logits.view()).rows({row, row + 1}));
  }

  // Cached decoding of the last sample is its prefill.
  const auto sample = std::span(tokens).subspan(10);
  for (const index_t step : {1, 12, 31}) {
    auto cache = many.cache();
    for (index_t at = 0; at < 31; at += step) {
      const index_t n = std::min<index_t>(step, 31 - at);
      const auto output =
          many.forward(sample.subspan(std::size_t(at), std::size_t(n)), cache, request);
      const Range rows{10 + at, 10 + at + n};
      same(output.features.view(), View<const T, 2>(actual.features.view()).rows(rows));
      same(output.logits.view(), View<const T, 2>(actual.logits.view()).rows(rows));
    }
  }
  const auto prompt = std::span(tokens).first(9);
  CHECK(greedy(many, prompt, 25, {}) == greedy(one, prompt, 25, {}));
}

template <class T, class C>
void check_target(C& world, index_t degree, const std::filesystem::path& folder) {
  CpuBackend<T> cpu;
  check_target_on(cpu, world, degree, folder);
}

/// Rows of a split embedding are those of the whole one, for the same tokens or each rank's own.
template <class T, class C>
void check_embedding(C& world, index_t degree, index_t vocabulary,
                     const std::vector<index_t>& tokens_of) {
  using B = CpuBackend<T>;
  constexpr index_t hidden = 5;
  B cpu;
  TensorParallelGroup<C> group(world, degree);
  const auto all = random_matrix<T>(cpu, vocabulary, hidden, 1);
  const Range own = group.share().of(vocabulary);
  const auto rows = part_of<T>(cpu, all.view(), own, {0, hidden});
  const VocabularySlice<T> slice{rows.view(), own.begin, vocabulary};
  const auto check = [&](const std::vector<std::int32_t>& tokens, auto&& gather) {
    const index_t n = index_t(tokens.size());
    const auto ids = uploaded(cpu, tokens.data(), n);
    Matrix<T> expected(cpu, {n, hidden}), actual(cpu, {n, hidden});
    gather_rows(cpu, all.view(), ids.view(), expected.view());
    gather(tokens, ids.view(), actual.view());
    CHECK(host<T>(actual.view()) == host<T>(expected.view()));
  };
  check(some_tokens(17, vocabulary),
        [&](auto& tokens, auto, auto y) { gather_vocabulary_rows(cpu, group, slice, tokens, y); });
  std::vector<index_t> distinct;
  for (index_t rank = 0; rank < degree; ++rank) {
    const index_t n = tokens_of[std::size_t(rank)];
    const auto tokens = some_tokens(n, vocabulary, std::uint64_t(rank));
    distinct.push_back(index_t(std::set(tokens.begin(), tokens.end()).size()));
  }
  const Traffic before = group.communicator().traffic();
  check(some_tokens(tokens_of[std::size_t(group.rank())], vocabulary, std::uint64_t(group.rank())),
        [&](auto&, auto ids, auto y) { gather_own_vocabulary_rows(cpu, group, slice, ids, y); });
  CHECK(group.communicator().traffic() - before ==
        own_vocabulary_rows_traffic(group.share(), hidden, distinct, NumberBytes::of<B>()));
}

/// A draft's proposals and their fate do not depend on the number of ranks that hold the target.
template <class T, class C>
void check_speculation(C& world, index_t degree, const std::filesystem::path& folder) {
  using B = CpuBackend<T>;
  B cpu;
  const TargetModel<B> one(cpu, folder);
  TensorParallelGroup<C> group(world, degree);
  const TargetModel<B, C> many(cpu, group, folder);
  nlohmann::json json{{"hidden_size", one.config().hidden},
                      {"intermediate_size", 20},
                      {"num_hidden_layers", 2},
                      {"num_attention_heads", 2},
                      {"num_key_value_heads", 1},
                      {"head_dim", 8},
                      {"vocab_size", one.config().vocabulary},
                      {"block_size", 4},
                      {"num_target_layers", one.config().layers}};
  json["dflash_config"] = {{"target_layer_ids", {0, 2}}, {"mask_token_id", 2}};
  const DraftConfig config = DraftConfig::from_json(json, "config.json");
  const auto weights = random_parameters(cpu, config, 5);
  const LocalAttention attention(cpu);
  const DFlashBlock block(attention, config.shape);
  const DraftModel model(block, config);
  SpeculativeDecoder alone(one, model, weights, 2);
  SpeculativeDecoder together(many, model, weights, 2);
  const auto prompt = some_tokens(9, one.config().vocabulary);
  for (const double temperature : {0.0, 0.8}) {
    const DecodeOptions options{
        .max_new_tokens = 30, .temperature = temperature, .draft_temperature = temperature};
    const SpeculativeAnswer expected = alone.decode(prompt, options),
                            actual = together.decode(prompt, options);
    CHECK(actual.tokens == expected.tokens);
    CHECK(actual.drafted == expected.drafted);
    REQUIRE(actual.cycles.size() == expected.cycles.size());
    for (std::size_t i = 0; i < expected.cycles.size(); ++i)
      CHECK(actual.cycles[i].draft_tokens == expected.cycles[i].draft_tokens);
  }
}

}  // namespace tensor_parallel_suite
