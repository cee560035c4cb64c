#include "dflash/io/tensor_entry.hpp"

#include <doctest/doctest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "io/temporary_folder.hpp"

namespace tensor_entry_test {

using namespace dflash;

template <class To, class From>
std::vector<To> converted(const std::vector<From>& from) {
  // One byte further on, so that nothing is aligned.
  std::vector<std::byte> bytes(1);
  const auto* begin = reinterpret_cast<const std::byte*>(from.data());
  bytes.insert(bytes.end(), begin, begin + from.size() * sizeof(From));
  std::vector<To> out(from.size());
  convert<To>({dtype_of<From>(), {index_t(from.size())}, bytes.data() + 1}, out.data());
  return out;
}

template <class To, class From>
bool fits(From value) {
  return error_of([&] { converted<To>(std::vector<From>{value}); }).empty();
}

TEST_CASE("small whole numbers convert exactly between all types") {
  const auto each = [](auto f) {
    f(std::int8_t()), f(std::uint8_t()), f(std::int16_t()), f(std::uint16_t()), f(std::int32_t());
    f(std::uint32_t()), f(std::int64_t()), f(std::uint64_t()), f(float()), f(double());
  };
  each([&](auto from) {
    each([&](auto to) {
      using From = decltype(from);
      using To = decltype(to);
      CHECK(converted<To>(std::vector<From>{0, 1, 127}) == std::vector<To>{0, 1, 127});
      if (std::is_signed_v<From> && std::is_signed_v<To>)
        CHECK(converted<To>(std::vector<From>{From(-128)}) == std::vector<To>{To(-128)});
    });
  });
}

TEST_CASE("16- and 8-bit floats convert to float and back") {
  const std::vector<bfloat16> brain{bfloat16(1.5f), bfloat16(-0x1p100f)};
  CHECK(converted<float>(brain) == std::vector<float>{1.5f, -0x1p100f});
  CHECK(converted<std::int32_t>(std::vector<bfloat16>{bfloat16(-256.0f)})[0] == -256);
  float16 half;
  half.bits = 0x3c01;
  CHECK(converted<double>(std::vector<float16>{half})[0] == 1 + 0x1p-10);
  CHECK(converted<float>(std::vector<float8_e4m3>{float8_e4m3(-448.0f)})[0] == -448);
  CHECK(converted<bfloat16>(std::vector<float>{1.00390625f})[0].bits == 0x3f80);  // tie: to even
  CHECK(converted<bfloat16>(std::vector<double>{3.0})[0].bits == 0x4040);
  CHECK(converted<bfloat16>(brain)[1].bits == brain[1].bits);
}

TEST_CASE("a value that has no place in the other type is an error") {
  CHECK(fits<std::uint8_t>(255));
  CHECK_FALSE(fits<std::uint8_t>(256));
  CHECK_FALSE(fits<std::uint64_t>(-1));
  CHECK_FALSE(fits<std::int64_t>(std::uint64_t(1) << 63));
  CHECK(fits<std::int64_t>(-0x1p63));
  CHECK_FALSE(fits<std::int64_t>(0x1p63));
  CHECK_FALSE(fits<std::uint64_t>(0x1p64));
  CHECK_FALSE(fits<std::int32_t>(1.5f));
  CHECK_FALSE(fits<std::int32_t>(std::numeric_limits<float>::quiet_NaN()));
  CHECK_FALSE(fits<float>(1e300));
  CHECK(fits<float>(std::numeric_limits<double>::infinity()));
  CHECK(fits<float>(1e-300));
  CHECK_FALSE(fits<bfloat16>(std::numeric_limits<float>::max()));
  CHECK(error_of([] {
          converted<std::uint8_t>(std::vector<std::int32_t>{1, 300});
        }) == "element 1 (I32) has no place in U8");
}

TEST_CASE("any byte but zero is a true boolean") {
  const std::byte bytes[] = {std::byte(0), std::byte(1), std::byte(77)};
  float out[3];
  convert<float>({DType::boolean, {3}, bytes}, out);
  CHECK(out[0] == 0);
  CHECK(out[1] == 1);
  CHECK(out[2] == 1);
}

TEST_CASE("elements are used in place only where type and alignment allow it") {
  alignas(8) std::byte bytes[16] = {};
  CHECK(TensorEntry{DType::f32, {2}, bytes}.in_place<float>() != nullptr);
  CHECK(TensorEntry{DType::f32, {2}, bytes + 2}.in_place<float>() == nullptr);
  CHECK(TensorEntry{DType::i32, {2}, bytes}.in_place<float>() == nullptr);
}

TEST_CASE("a part of a tensor is those rows and columns, whatever lies around them") {
  std::vector<float> values(6 * 5);
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = float(i);
  values[4] = 1e30f;  // has no place in an int
  const auto* data = reinterpret_cast<const std::byte*>(values.data());
  const TensorEntry matrix{DType::f32, {6, 5}, data}, row{DType::f32, {30}, data};
  const auto read = [](const TensorEntry& tensor, const TensorPart& part) {
    std::vector<int> out(std::size_t(part.size()));
    convert(tensor, part, out.data());
    return out;
  };
  CHECK(read(matrix, {{1, 3}, {0, 5}}) == std::vector{5, 6, 7, 8, 9, 10, 11, 12, 13, 14});
  CHECK(read(matrix, {{0, 6}, {3, 4}}) == std::vector{3, 8, 13, 18, 23, 28});
  CHECK(read(matrix, {{2, 4}, {1, 3}}) == std::vector{11, 12, 16, 17});
  CHECK(read(matrix, {{2, 2}, {1, 3}}).empty());
  CHECK(read(matrix, {{2, 4}, {3, 3}}).empty());
  CHECK(read(row, {{6, 9}}) == std::vector{6, 7, 8});
  CHECK(error_of([&] { read(matrix, {{0, 2}, {3, 5}}); }).find("element 4 ") != std::string::npos);
  for (const TensorPart& part :
       {TensorPart{{-1, 2}, {0, 5}}, TensorPart{{5, 7}, {0, 5}}, TensorPart{{0, 6}, {2, 6}},
        TensorPart{{3, 2}, {0, 5}}, TensorPart{{0, 6}, {-1, 2}}})
    CHECK(!error_of([&] {
             std::vector<int> out(64);
             convert(matrix, part, out.data());
           }).empty());
}

}  // namespace tensor_entry_test
