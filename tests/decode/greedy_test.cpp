#include "dflash/decode/greedy.hpp"

#include <doctest/doctest.h>

#include "dflash/cpu.hpp"
#include "model/target_fixture.hpp"

namespace greedy_test {

using namespace dflash;
using fixture::RandomTarget;
using fixture::small_config;

TEST_CASE("greedy decoding appends the argmax of a fresh prefill, token by token") {
  const RandomTarget files(small_config("qwen3"));
  CpuBackend<float> backend;
  const TargetModel<CpuBackend<float>> target(backend, files.folder);
  const std::vector<std::int32_t> prompt{3, 1, 4, 1, 5};
  std::vector<std::int32_t> sequence = prompt;
  for (int i = 0; i < 12; ++i) {
    const auto output = target.prefill(sequence, std::vector<index_t>{0, index_t(sequence.size())},
                                       {.layers = {}, .logits = Logits::last});
    const float* row = output.logits.view().data;
    sequence.push_back(std::int32_t(std::max_element(row, row + 50) - row));
  }
  const std::vector<std::int32_t> expected(sequence.begin() + 5, sequence.end());
  CHECK(greedy(target, prompt, 12, {}) == expected);
  CHECK(greedy(target, prompt, 0, {}).empty());

  // The first occurrence of a stop token ends the answer, and is part of it.
  const std::int32_t stop = expected[6];
  const auto end = std::find(expected.begin(), expected.end(), stop) + 1;
  const std::vector<std::int32_t> stops{stop};
  CHECK(greedy(target, prompt, 12, stops) == std::vector<std::int32_t>(expected.begin(), end));
}

}  // namespace greedy_test
