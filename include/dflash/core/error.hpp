#pragma once

#include <stdexcept>
#include <string>

namespace dflash {

/// What every failure throws. For bad input the text is one sentence that names the file, the field
/// and the value; for a broken precondition it names the caller's file and line.
class Error : public std::runtime_error {
 public:
  explicit Error(const std::string& what) : std::runtime_error(what) {}
};

/// Throws Error, naming the caller's line, unless `ok`: for preconditions that a program must keep.
inline void expects(bool ok, const char* why, const char* file = __builtin_FILE(),
                    int line = __builtin_LINE()) {
  if (!ok) throw Error(std::string(why) + " (" + file + ":" + std::to_string(line) + ")");
}

}  // namespace dflash
