#include "dflash/data/row_codec.hpp"

#include <doctest/doctest.h>

#include <vector>

#include "dflash/core/random.hpp"

namespace row_codec_test {

using namespace dflash;

template <class T>
std::vector<float> round_trip(const std::vector<T>& row, DType dtype) {
  const auto n = index_t(row.size());
  std::vector<std::byte> stored(row.size() * std::size_t(size_of(dtype)));
  std::vector<float> out(row.size());
  const float scale = encode_row(row.data(), n, dtype, stored.data());
  decode_row(stored.data(), n, dtype, scale, out.data());
  // Rows decoded as bfloat16 are these floats, rounded.
  std::vector<bfloat16> narrow(row.size());
  decode_row(stored.data(), n, dtype, scale, narrow.data());
  for (std::size_t i = 0; i < row.size(); ++i) CHECK(narrow[i].bits == bfloat16(out[i]).bits);
  return out;
}

TEST_CASE("rows keep what their type can hold") {
  const Random random(1);
  std::vector<float> row(999);
  for (std::size_t i = 0; i < row.size(); ++i) row[i] = float(random.normal(i)) * 30;
  CHECK(round_trip(row, DType::f32) == row);
  std::vector<bfloat16> brain;
  std::vector<float> rounded;
  for (const float x : row) {
    brain.emplace_back(x);
    rounded.push_back(static_cast<float>(brain.back()));
  }
  CHECK(round_trip(row, DType::bf16) == rounded);
  CHECK(round_trip(brain, DType::bf16) == rounded);
  CHECK(round_trip(brain, DType::f32) == rounded);
  // Three bits of mantissa: a normal number moves by 1/16 at most, a small one by half a step.
  float largest = 0;
  for (const float x : row) largest = std::max(largest, std::abs(x));
  const auto coarse = round_trip(row, DType::f8_e4m3);
  for (std::size_t i = 0; i < row.size(); ++i)
    CHECK(std::abs(coarse[i] - row[i]) <=
          std::max(std::abs(row[i]) / 15.9f, largest / 448 * 0x1p-10f * 1.01f));
}

TEST_CASE("scaled rows hold any magnitude") {
  for (const float size : {0.0f, 1e-38f, 1e-30f, 1.0f, 1e30f, 3e38f}) {
    const auto back = round_trip(std::vector<float>{size, -size / 2, 0}, DType::f8_e4m3);
    CHECK(back[0] == doctest::Approx(size).epsilon(1e-6));
    CHECK(back[1] == doctest::Approx(-size / 2).epsilon(1e-6));
    CHECK(back[2] == 0);
  }
  const auto back = round_trip(std::vector<float>{1, INFINITY, NAN}, DType::f8_e4m3);
  CHECK(back[0] == 1);
  CHECK_FALSE(std::isfinite(back[1]));
  CHECK(std::isnan(back[2]));
}

}  // namespace row_codec_test
