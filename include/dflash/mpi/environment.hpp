#pragma once

#include <mpi.h>

#include <chrono>
#include <exception>
#include <memory>
#include <utility>

#include "dflash/comm/failure.hpp"
#include "dflash/comm/share.hpp"
#include "dflash/mpi/communicator.hpp"
#include "dflash/mpi/expects.hpp"
#include "dflash/mpi/watchdog.hpp"

namespace dflash {

/// How ranks that are MPI processes run.
struct MpiOptions {
  /// How long a rank waits for another before the job ends; zero: for ever.
  std::chrono::duration<double> time_out = std::chrono::minutes(10);
};

/// MPI is usable while this object lives; one per process. An error that nobody catches, here or in
/// any thread, ends the job of all ranks with a non-zero status, its rank and text on stderr.
class MpiEnvironment {
 public:
  /// Collective. Error if MPI cannot serve several threads at a time.
  MpiEnvironment(int& argc, char**& argv, MpiOptions options = {}) {
    int begun = 0, threads = MPI_THREAD_SINGLE;
    mpi_expects(MPI_Initialized(&begun), "MPI_Initialized");
    expects(begun == 0, "MpiEnvironment: MPI is in use already");
    mpi_expects(MPI_Init_thread(&argc, &argv, MPI_THREAD_MULTIPLE, &threads), "MPI_Init_thread");
    earlier_ = std::set_terminate(
        [] { detail::fail_mpi_rank(detail::text_of(std::current_exception())); });
    if (threads < MPI_THREAD_MULTIPLE)
      throw Error("this MPI does not support MPI_THREAD_MULTIPLE, which the watchdog needs");
    watchdog_ = std::make_shared<detail::MpiWatchdog>(options.time_out.count());
  }
  MpiEnvironment(const MpiEnvironment&) = delete;
  MpiEnvironment& operator=(const MpiEnvironment&) = delete;
  /// Waits for the other ranks to get here too.
  ~MpiEnvironment() {
    if (std::uncaught_exceptions() > exceptions_)
      detail::fail_mpi_rank("an exception left the MPI environment");
    {
      const detail::MpiWatchdog::Inside inside(*watchdog_, "the end of the job");
      MPI_Barrier(MPI_COMM_WORLD);
    }
    watchdog_->stop();
    std::set_terminate(earlier_);
    MPI_Finalize();
  }

  /// All ranks of the job. Collective.
  MpiCommunicator world(MpiLimits limits = {}) {
    MPI_Comm copy;
    const detail::MpiWatchdog::Inside inside(*watchdog_, "world");
    mpi_expects(MPI_Comm_dup(MPI_COMM_WORLD, &copy), "MPI_Comm_dup");
    return MpiCommunicator(copy, watchdog_, limits);
  }

  /// Calls `body()`; an exception of a rank ends the job, its rank and text on stderr.
  template <class Body>
  void guard(Body&& body) {
    try {
      body();
    } catch (...) {
      detail::fail_mpi_rank(detail::text_of(std::current_exception()));
    }
  }
  /// The same for `body(world())`.
  template <class Body>
  void run(Body&& body) {
    guard([&] { body(world()); });
  }

  /// From now on: see MpiOptions.
  void set_time_out(std::chrono::duration<double> time_out) {
    watchdog_->set_time_out(time_out.count());
  }

  /// This rank among those on its machine. Collective.
  Share here() {
    MPI_Comm machine;
    const detail::MpiWatchdog::Inside inside(*watchdog_, "here");
    mpi_expects(
        MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &machine),
        "MPI_Comm_split_type");
    int ranks = 1, rank = 0;
    mpi_expects(MPI_Comm_size(machine, &ranks), "MPI_Comm_size");
    mpi_expects(MPI_Comm_rank(machine, &rank), "MPI_Comm_rank");
    mpi_expects(MPI_Comm_free(&machine), "MPI_Comm_free");
    return {ranks, rank};
  }

 private:
  std::terminate_handler earlier_ = nullptr;
  std::shared_ptr<detail::MpiWatchdog> watchdog_;
  int exceptions_ = std::uncaught_exceptions();
};

}  // namespace dflash
