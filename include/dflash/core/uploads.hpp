#pragma once

#include <algorithm>

#include "dflash/core/backend.hpp"
#include "dflash/core/config.hpp"
#include "dflash/core/host_vector.hpp"

namespace dflash {

/// For uploads_beside of a backend that has no way to do that.
template <Backend B>
class PlainUploads {
 public:
  explicit PlainUploads(B& backend) : backend_(&backend) {}

  /// Rows that fill(range, out) makes, a range of them at a time.           here (rows, width)
  template <class U, class Fill>
  void upload_rows(index_t rows, index_t width, U* here, Fill&& fill) {
    if constexpr (HostBackend<B>) {
      if (rows > 0) fill(Range{0, rows}, here);
    } else {
      const index_t piece = std::max<index_t>(piece_numbers / std::max<index_t>(width, 1), 1);
      HostVector<U> made(std::size_t(std::min(piece, rows) * width));
      for (index_t row = 0; row < rows; row += piece) {
        const Range some{row, std::min(rows, row + piece)};
        fill(some, made.data());
        backend_->upload(made.data(), here + row * width, some.size() * width);
      }
    }
  }

 private:
  static constexpr index_t piece_numbers = 1 << 18;

  B* backend_;
};

/// For uploads into memory that has been allocated and not used yet: they need not wait for the
/// backend's work, and may run beside it. What the backend does after this object has gone finds
/// them done.
template <Backend B>
auto uploads_beside(B& backend) {
  if constexpr (requires { backend.uploads_beside(); })
    return backend.uploads_beside();
  else
    return PlainUploads<B>(backend);
}

}  // namespace dflash
