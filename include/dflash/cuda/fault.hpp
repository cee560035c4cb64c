#pragma once

namespace dflash {

/// What a kernel found wrong in its input. It goes on without reading out of range, and the next
/// download or synchronize throws.
enum class CudaFault : int { none, gather_id, scatter_id, label };

inline const char* text(CudaFault fault) {
  switch (fault) {
    case CudaFault::gather_id:
      return "gather_rows: an id is not a row of w";
    case CudaFault::scatter_id:
      return "scatter_rows: an id is not a row of y";
    case CudaFault::label:
      return "linear_cross_entropy: a label is not a row of w";
    case CudaFault::none:
      break;
  }
  return "no fault";
}

}  // namespace dflash
