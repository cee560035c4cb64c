#pragma once

#include <string>

/// A number as it lies in memory, and in little-endian files.
template <class T>
std::string bytes_of(T value) {
  return {reinterpret_cast<const char*>(&value), sizeof value};
}
