#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "dflash/core/random.hpp"
#include "dflash/core/tensor.hpp"

namespace dflash_test {

using dflash::index_t;
using dflash::View;

inline std::size_t at(index_t i) { return std::size_t(i); }

/// n standard normal numbers.
template <class T>
std::vector<T> random(index_t n, std::uint64_t key) {
  const dflash::Random numbers(key);
  std::vector<T> x(at(n));
  for (index_t i = 0; i < n; ++i) x[at(i)] = T(numbers.normal(std::uint64_t(i)));
  return x;
}

template <class T>
View<T, 1> flat(std::vector<T>& x) {
  return {x.data(), {index_t(x.size())}};
}
template <class T>
View<const T, 1> flat(const std::vector<T>& x) {
  return {x.data(), {index_t(x.size())}};
}
template <class T>
View<T, 2> matrix(std::vector<T>& x, index_t rows, index_t columns) {
  return {x.data(), {rows, columns}};
}
template <class T>
View<const T, 2> matrix(const std::vector<T>& x, index_t rows, index_t columns) {
  return {x.data(), {rows, columns}};
}

template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() &&
         (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}

/// Largest absolute difference.
template <class T>
double difference(const std::vector<T>& a, const std::vector<T>& b) {
  double worst = a.size() == b.size() ? 0 : INFINITY;
  for (std::size_t i = 0; i < std::min(a.size(), b.size()); ++i) {
    const double d = std::abs(double(a[i]) - double(b[i]));
    if (!(d <= worst)) worst = d;
  }
  return worst;
}

/// Largest error of `gradient`, the claimed derivative of f() with respect to x, against central
/// differences, relative to its largest entry.
template <class F>
double gradient_error(std::vector<double>& x, const std::vector<double>& gradient, F f) {
  double worst = 0, largest = 1e-3;
  for (std::size_t i = 0; i < x.size(); ++i) {
    const double kept = x[i], h = 1e-5;
    x[i] = kept + h;
    const double above = f();
    x[i] = kept - h;
    const double below = f();
    x[i] = kept;
    worst = std::max(worst, std::abs((above - below) / (2 * h) - gradient[i]));
    largest = std::max(largest, std::abs(gradient[i]));
  }
  return worst / largest;
}

/// <a, b>, a loss whose gradient with respect to a is b.
inline double dot(const std::vector<double>& a, const std::vector<double>& b) {
  double sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

}  // namespace dflash_test
