#pragma once

#include <mpi.h>

#include <cstdio>
#include <cstdlib>
#include <string>

#include "dflash/core/error.hpp"

namespace dflash {

/// Throws Error, naming the MPI function, unless it succeeded.
inline void mpi_expects(int status, const char* function) {
  if (status == MPI_SUCCESS) return;
  char text[MPI_MAX_ERROR_STRING] = {};
  int length = 0;
  MPI_Error_string(status, text, &length);
  throw Error(std::string(function) + " failed: " + text);
}

namespace detail {

/// Ends every rank of the job with a non-zero status, `line` on stderr.
[[noreturn]] inline void end_mpi_job(const std::string& line) {
  std::fprintf(stderr, "%s\n", line.c_str());
  std::fflush(nullptr);
  MPI_Abort(MPI_COMM_WORLD, EXIT_FAILURE);
  std::_Exit(EXIT_FAILURE);
}

/// The same for a failure of this rank.
[[noreturn]] inline void fail_mpi_rank(const std::string& why) {
  int rank = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  end_mpi_job("rank " + std::to_string(rank) + " failed: " + why);
}

}  // namespace detail
}  // namespace dflash
