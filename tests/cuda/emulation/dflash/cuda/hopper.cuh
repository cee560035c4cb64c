#pragma once

// The emulator's counterpart of the library's dflash/cuda/hopper.cuh: the same names, the same
// meaning. Addresses of shared memory are counted from the block's first byte. Copies land, and
// products are computed, only when they are waited for.

#include <array>
#include <map>
#include <string>
#include <vector>

#include "dflash/cuda/ptx.cuh"
#include "dflash/cuda/tensor_map.hpp"
#include "emulation/sanitizers.hpp"

namespace dflash::cuda {

inline constexpr bool has_hopper_instructions = true;
[[noreturn]] inline void refuse() { throw cuda_emulation::Misuse("a kernel without its code"); }
inline constexpr int panel_bytes = 128, panel_alignment = 1024;

template <class T>
T* panel_memory() {
  return shared_memory<T>();
}
inline int swizzled(int row, int chunk) { return row * panel_bytes + (chunk ^ row % 8) * 16; }

struct Barrier {
  std::uint64_t state;
};

namespace detail {

inline std::uint64_t shared_offset(const void* at) {
  return std::uint64_t(static_cast<const char*>(at) - shared_memory<char>());
}
/// Where the hardware finds the byte that lies `at` bytes behind the start of unswizzled memory.
inline char* swizzled_place(std::uint64_t at) {
  return shared_memory<char>() + (at ^ (at >> 7 & 7) << 4);
}

struct PanelCopy {
  void* to;
  TensorMap map;
  index_t column, head, row;

  index_t lines() const { return map.box_rows * map.box_heads; }
  std::uint64_t bytes() const { return std::uint64_t(lines()) * panel_bytes; }
  void land() const {
    const auto& x = map.tensor;
    for (index_t line = 0; line < lines(); ++line)
      for (index_t c = 0; c < 64; ++c) {
        const index_t r = row + line / map.box_heads, h = head + line % map.box_heads;
        const bool inside = r < x.shape[0] && h < x.shape[1] && column + c < x.shape[2];
        const bfloat16 value = inside ? x(r, h, column + c) : bfloat16(0.0f);
        std::memcpy(swizzled_place(shared_offset(to) + std::uint64_t(line * panel_bytes + c * 2)),
                    &value, 2);
      }
  }
};

struct BarrierState {
  unsigned arrivals = 0, missing = 0, phase = 0;
  std::uint64_t bytes = 0;
  std::vector<PanelCopy> copies;

  void arrive() {
    if (missing == 0)
      throw cuda_emulation::Misuse("a barrier: more arrivals than it was begun for");
    --missing;
    advance();
  }
  void landed(const PanelCopy& copy) {
    if (copy.bytes() > bytes)
      throw cuda_emulation::Misuse("a barrier: more bytes than it was told to expect");
    bytes -= copy.bytes();
    advance();
  }
  void advance() {
    if (missing > 0 || bytes > 0) return;
    ++phase;
    missing = arrivals;
  }
};

inline std::map<const void*, BarrierState>& barriers() {
  static thread_local std::map<const void*, BarrierState> all;
  return all;
}
inline BarrierState& state_of(const Barrier& barrier) {
  const auto found = barriers().find(&barrier);
  if (found == barriers().end()) throw cuda_emulation::Misuse("a barrier that was not begun");
  return found->second;
}

/// Lands what is under way to the barrier. The thread that waits does it, watched: the memory is
/// the kernel's.
inline void land(Barrier& barrier) {
  std::vector<PanelCopy> copies;
  {
    const cuda_emulation::Unwatched unwatched;
    std::swap(copies, state_of(barrier).copies);
  }
  for (const PanelCopy& copy : copies) copy.land();
  const cuda_emulation::Unwatched unwatched;
  for (const PanelCopy& copy : copies) state_of(barrier).landed(copy);
}

}  // namespace detail

inline void begin_barrier(Barrier& barrier, unsigned arrivals) {
  const cuda_emulation::Unwatched unwatched;
  detail::BarrierState& state = detail::barriers()[&barrier];
  state = {};
  state.arrivals = state.missing = arrivals;
}
inline void fence_barriers() {}
inline void arrive(Barrier& barrier) {
  const cuda_emulation::Unwatched unwatched;
  cuda_emulation::release(&barrier);
  detail::state_of(barrier).arrive();
}
inline void arrive_expecting(Barrier& barrier, unsigned bytes) {
  const cuda_emulation::Unwatched unwatched;
  cuda_emulation::release(&barrier);
  detail::state_of(barrier).bytes += bytes;
  detail::state_of(barrier).arrive();
}
inline void wait(Barrier& barrier, unsigned parity) {
  const auto ended = [&] {
    const cuda_emulation::Unwatched unwatched;
    return (detail::state_of(barrier).phase & 1) != parity;
  };
  while (!ended()) {
    cuda_emulation::yield_thread("a barrier of shared memory");
    cuda_emulation::acquire(&barrier);
    detail::land(barrier);
    cuda_emulation::release(&barrier);
  }
  cuda_emulation::acquire(&barrier);
}

inline void copy_panel(void* shared, const TensorMap& map, Barrier& barrier, int column, int head,
                       int row) {
  const detail::PanelCopy copy{shared, map, column, head, row};
  if (detail::shared_offset(shared) % panel_alignment != 0)
    throw cuda_emulation::Misuse("copy_panel: a panel begins at a multiple of 1024 bytes");
  cuda_emulation::poison(shared, copy.bytes());
  const cuda_emulation::Unwatched unwatched;
  cuda_emulation::release(&barrier);
  detail::state_of(barrier).copies.push_back(copy);
}

inline void fence_async() {}
inline void sync_some(int id, int threads) {
  struct Meeting {
    int here = 0;
    unsigned turn = 0;
  };
  static thread_local std::array<Meeting, 16> meetings;
  const cuda_emulation::Unwatched unwatched;
  Meeting& meeting = meetings[std::size_t(id)];
  const unsigned turn = meeting.turn;
  cuda_emulation::release(&meeting);
  if (++meeting.here == threads) {
    meeting.here = 0;
    ++meeting.turn;
  }
  while (meeting.turn == turn) cuda_emulation::yield_thread("a barrier of some threads");
  cuda_emulation::acquire(&meeting);
}
template <int count>
void keep_registers() {}
template <int count>
void take_registers() {}

inline std::uint64_t describe(const void* panel, unsigned step = 16) {
  const auto field = [](std::uint64_t bytes) { return (bytes & 0x3ffff) >> 4; };
  return field(detail::shared_offset(panel)) | field(step) << 16 | field(8 * panel_bytes) << 32 |
         std::uint64_t(1) << 62;
}

namespace detail {

/// A factor in shared memory, as a description gives it.
struct Described {
  std::uint64_t start, leading, stride;

  explicit Described(std::uint64_t bits)
      : start((bits & 0x3fff) << 4),
        leading((bits >> 16 & 0x3fff) << 4),
        stride((bits >> 32 & 0x3fff) << 4) {
    if (bits >> 62 != 1) throw cuda_emulation::Misuse("a description of no 128-byte panel");
  }
  /// Element k of a row; rows in groups of eight, `stride` bytes apart.
  float of_row(unsigned row, unsigned k) const {
    return at(start + row / 8 * stride + row % 8 * panel_bytes + k * 2);
  }
  /// Element (k, column): 64 columns to a panel, `leading` bytes apart.
  float of_column(unsigned k, unsigned column) const {
    return at(start + column / 64 * leading + k / 8 * stride + k % 8 * panel_bytes +
              column % 64 * 2);
  }

 private:
  static float at(std::uint64_t place) {
    bfloat16 value;
    std::memcpy(&value, swizzled_place(place), 2);
    return float(value);
  }
};

/// One product under way: what this thread's rows of a are, and where b lies.
struct GroupProduct {
  bool add, columns, a_described;
  std::uint64_t a, b;
  std::array<std::array<float, 16>, 2> rows;  // of a, if it was in registers
};
/// The products under way for one accumulator of a thread, and what it held before them.
struct Accumulation {
  float* accumulator;
  std::vector<float> sums;
  std::vector<GroupProduct> products;

  std::size_t size_bytes() const { return sums.size() * sizeof(float); }
  /// Computes them, watched: their factors are the kernel's memory.
  void land() {
    const unsigned warp = threadIdx.x / 32 % 4, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    for (const GroupProduct& product : products) {
      const Described b(product.b);
      auto rows = product.rows;
      if (product.a_described)
        for (unsigned half = 0; half < 2; ++half)
          for (unsigned k = 0; k < 16; ++k)
            rows[half][k] = Described(product.a).of_row(16 * warp + g + 8 * half, k);
      if (!product.add) sums.assign(sums.size(), 0.0f);
      for (unsigned n = 0; n < sums.size() / 4; ++n)
        for (unsigned j = 0; j < 2; ++j)
          for (unsigned k = 0; k < 16; ++k) {
            const unsigned column = 8 * n + 2 * t + j;
            const float y = product.columns ? b.of_column(k, column) : b.of_row(column, k);
            sums[4 * n + j] += rows[0][k] * y;
            sums[4 * n + 2 + j] += rows[1][k] * y;
          }
    }
    std::memcpy(accumulator, sums.data(), size_bytes());
  }
};
/// The groups of products that a thread has under way; the newest is still open.
inline std::vector<std::vector<Accumulation>>& products_of_thread() {
  static thread_local std::array<std::vector<std::vector<Accumulation>>, 1024> all;
  auto& groups = all[threadIdx.x];
  if (groups.empty()) groups.emplace_back();
  return groups;
}

template <int N>
void add_product(float (&c)[N][4], const GroupProduct& product) {
  const cuda_emulation::Unwatched unwatched;
  auto& groups = products_of_thread();
  for (std::size_t i = 0; i < groups.size(); ++i)
    for (Accumulation& accumulation : groups[i]) {
      if (accumulation.accumulator != &c[0][0]) continue;
      if (i + 1 != groups.size())
        throw cuda_emulation::Misuse("products of a group: their sum is still under way");
      return accumulation.products.push_back(product);
    }
  groups.back().push_back({&c[0][0], {&c[0][0], &c[0][0] + 4 * N}, {product}});
  cuda_emulation::poison(&c, sizeof c);
}

/// The factor in registers that the four lanes of a row hold together.
inline std::array<std::array<float, 16>, 2> left_rows(const std::uint32_t (&a)[4]) {
  struct Given {
    std::uint32_t a[4];
  } mine;
  std::memcpy(mine.a, a, sizeof mine.a);
  const cuda_emulation::Gathered all(~0u, &mine, sizeof mine, "a product of a group");
  std::array<std::array<float, 16>, 2> rows;
  for (unsigned part = 0; part < 4; ++part) {
    const auto from = all.from<Given>(cuda_emulation::lane() / 4 * 4 + part);
    for (unsigned half = 0; half < 2; ++half)
      for (unsigned k = 0; k < 2; ++k) {
        rows[half][2 * part + k] = element(from.a[half], k);
        rows[half][8 + 2 * part + k] = element(from.a[2 + half], k);
      }
  }
  return rows;
}

}  // namespace detail

inline void begin_group_products() {}
inline void settle(float) {}
inline void commit_group_products() {
  const cuda_emulation::Unwatched unwatched;
  detail::products_of_thread().emplace_back();
}
template <int pending, int N>
void wait_group_products(float (&c)[N][4]) {
  std::vector<std::vector<detail::Accumulation>> ended;
  {
    const cuda_emulation::Unwatched unwatched;
    auto& groups = detail::products_of_thread();
    if (!groups.back().empty())
      throw cuda_emulation::Misuse("wait_group_products: products that were not committed");
    while (groups.size() > pending + 1) {
      ended.push_back(std::move(groups.front()));
      groups.erase(groups.begin());
    }
    for (const auto& group : groups)
      for (const detail::Accumulation& accumulation : group)
        if (accumulation.accumulator == &c[0][0])
          throw cuda_emulation::Misuse("wait_group_products: c is still under way");
  }
  for (auto& group : ended)
    for (detail::Accumulation& accumulation : group) accumulation.land();
}
inline std::uint64_t behind(std::uint64_t description, unsigned bytes) {
  return description + (bytes >> 4);
}

template <bool add, int N>
void multiply_group(float (&c)[N][4], std::uint64_t a, std::uint64_t b) {
  detail::add_product(c, {add, false, true, a, b, {}});
}
template <int N>
void multiply_group_columns(float (&c)[N][4], const std::uint32_t (&a)[4], std::uint64_t b) {
  detail::add_product(c, {true, true, false, 0, b, detail::left_rows(a)});
}

}  // namespace dflash::cuda
