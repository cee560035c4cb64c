#pragma once

#include <concepts>

#include "dflash/core/config.hpp"

namespace dflash {

/// Where the arithmetic runs and in which scalar type: memory, transfers and order.
/// The operations themselves are free functions whose first argument is the backend
/// (core/operations.hpp lists them), found by argument-dependent lookup.
template <class B>
concept Backend = std::movable<B> && std::floating_point<typename B::accumulator_type> &&
    requires(B& backend, index_t n, const float* in, float* out) {
  typename B::value_type;
  typename B::template Buffer<float>;
  typename B::FrozenMatrix;
  { backend.template allocate<float>(n) } -> std::same_as<typename B::template Buffer<float>>;
  { backend.upload(in, out, n) } -> std::same_as<void>;    // host -> backend
  { backend.download(in, out, n) } -> std::same_as<void>;  // backend -> host, complete on return
  { backend.copy(in, out, n) } -> std::same_as<void>;      // backend -> backend
  { backend.synchronize() } -> std::same_as<void>;
};

/// A backend whose memory the host reads and writes directly.
template <class B>
concept HostBackend = Backend<B> && requires {
  requires B::host_memory;
};

}  // namespace dflash
