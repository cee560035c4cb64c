#pragma once

#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <string>
#include <system_error>

#include "dflash/core/config.hpp"
#include "dflash/core/error.hpp"

namespace dflash {

/// A number of bytes for people, such as "1.50 GiB".
inline std::string bytes_text(index_t bytes) {
  const char* const units[] = {"bytes", "KiB", "MiB", "GiB", "TiB", "PiB"};
  double amount = double(bytes);
  int unit = 0;
  for (; amount >= 1024 && unit < 5; ++unit) amount /= 1024;
  char text[40];
  std::snprintf(text, sizeof text, unit == 0 ? "%.0f %s" : "%.2f %s", amount, units[unit]);
  return text;
}

/// Bytes that may be written to the disk on which this path, or what exists of it, lies.
inline index_t free_disk_bytes(std::filesystem::path path) {
  path = std::filesystem::absolute(path);
  std::error_code why;
  while (!std::filesystem::exists(path, why) && path.has_relative_path()) path = path.parent_path();
  const auto space = std::filesystem::space(path, why);
  if (why) throw Error("cannot ask for the free space of " + path.string() + ": " + why.message());
  return index_t(space.available);
}

/// Error with both numbers if `bytes` more do not fit on the disk of this path.
inline void expect_disk_space(const std::filesystem::path& path, index_t bytes) {
  const index_t available = free_disk_bytes(path);
  if (bytes > available)
    throw Error(path.string() + " needs " + bytes_text(bytes) + " more, but its disk has " +
                bytes_text(available) + " free");
}

}  // namespace dflash
