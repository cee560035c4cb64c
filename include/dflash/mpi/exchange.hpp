#pragma once

#include <mpi.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <exception>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "dflash/core/config.hpp"
#include "dflash/mpi/expects.hpp"
#include "dflash/mpi/watchdog.hpp"

namespace dflash {

/// How large MPI's messages may be.
struct MpiLimits {
  index_t message_bytes = index_t(1) << 30;   // MPI counts in int; larger blocks go in pieces
  index_t scratch_bytes = index_t(64) << 20;  // what a sum may receive at a time
};

namespace detail {

inline bool mpi_is_usable() {
  int begun = 0, ended = 0;
  return MPI_Initialized(&begun) == MPI_SUCCESS && MPI_Finalized(&ended) == MPI_SUCCESS &&
         begun != 0 && ended == 0;
}

/// An MPI communicator and what belongs to it.
struct MpiGroup {
  MPI_Comm comm;
  std::shared_ptr<MpiWatchdog> watchdog;
  MpiLimits limits;
  int rank = 0, size = 1, tag = 0;

  MpiGroup(MPI_Comm owned, std::shared_ptr<MpiWatchdog> dog, MpiLimits its_limits)
      : comm(owned), watchdog(std::move(dog)), limits(its_limits) {
    mpi_expects(MPI_Comm_set_errhandler(comm, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
    mpi_expects(MPI_Comm_rank(comm, &rank), "MPI_Comm_rank");
    mpi_expects(MPI_Comm_size(comm, &size), "MPI_Comm_size");
  }
  MpiGroup(const MpiGroup&) = delete;
  MpiGroup& operator=(const MpiGroup&) = delete;
  ~MpiGroup() {
    // Freeing is collective; a rank that fails is alone.
    if (mpi_is_usable() && std::uncaught_exceptions() == 0) MPI_Comm_free(&comm);
  }
};

/// Messages between the ranks of a group that are under way together. Ranks make their exchanges in
/// the same order. Every block ends with a message below the limit, be it empty, so that a receiver
/// notices if sender and receiver disagree about its size.
class MpiExchange {
 public:
  MpiExchange(std::shared_ptr<MpiGroup> group, const char* collective)
      : group_(std::move(group)), collective_(collective), tag_(group_->tag) {
    group_->tag = (group_->tag + 1) % 32768;  // the tags that MPI promises
  }
  MpiExchange(const MpiExchange&) = delete;
  MpiExchange& operator=(const MpiExchange&) = delete;

  ~MpiExchange() {
    if (requests_.empty() || !mpi_is_usable()) return;
    if (std::uncaught_exceptions() > exceptions_) {
      withdraw();
    } else {
      try {
        wait();
      } catch (...) {  // MPI's state is lost: the next call says so
      }
    }
  }

  /// All that is received is posted before anything is sent.
  void receive(std::byte* block, index_t bytes, int from) {
    pieces(bytes, [&](index_t begin, int n) {
      messages_.push_back({from, n});
      mpi_expects(MPI_Irecv(block + begin, n, MPI_BYTE, from, tag_, group_->comm, &request()),
                  "MPI_Irecv");
    });
  }
  void send(const std::byte* block, index_t bytes, int to) {
    pieces(bytes, [&](index_t begin, int n) {
      messages_.push_back({-1, n});
      mpi_expects(MPI_Isend(block + begin, n, MPI_BYTE, to, tag_, group_->comm, &request()),
                  "MPI_Isend");
    });
  }

  /// Error if a rank sent another number of bytes than expected, as soon as one is seen: MPI's own
  /// waits may hang where a message is longer than its buffer.
  void wait() {
    const MpiWatchdog::Inside inside(*group_->watchdog, collective_);
    const int requests = int(requests_.size());
    std::vector<int> which(requests_.size());
    std::vector<MPI_Status> statuses(requests_.size());
    for (int done = 0; done != MPI_UNDEFINED;) {
      const int status =
          MPI_Testsome(requests, requests_.data(), &done, which.data(), statuses.data());
      if (status != MPI_ERR_IN_STATUS) mpi_expects(status, "MPI_Testsome");
      for (int i = 0; done != MPI_UNDEFINED && i < done; ++i)
        check(messages_[std::size_t(which[std::size_t(i)])], statuses[std::size_t(i)],
              status == MPI_ERR_IN_STATUS);
      if (done == 0) std::this_thread::yield();
    }
    requests_.clear();
    messages_.clear();
  }

 private:
  struct Message {
    int from;  // -1: sent
    int bytes;
  };

  template <class Piece>
  void pieces(index_t bytes, Piece piece) {
    const index_t limit = group_->limits.message_bytes;
    index_t begin = 0;
    for (; bytes - begin >= limit; begin += limit) piece(begin, int(limit));
    piece(begin, int(bytes - begin));
  }
  MPI_Request& request() { return requests_.emplace_back(MPI_REQUEST_NULL); }

  void check(const Message& message, const MPI_Status& status, bool errors) const {
    int error_class = MPI_SUCCESS, bytes = message.bytes;
    if (errors) MPI_Error_class(status.MPI_ERROR, &error_class);
    const bool too_long = error_class == MPI_ERR_TRUNCATE;
    if (error_class != MPI_SUCCESS && !too_long) mpi_expects(status.MPI_ERROR, "MPI_Testsome");
    if (message.from < 0) return;
    if (!too_long) mpi_expects(MPI_Get_count(&status, MPI_BYTE, &bytes), "MPI_Get_count");
    if (bytes != message.bytes || too_long)
      throw Error(std::string(collective_) + ": rank " + std::to_string(message.from) + " sends " +
                  (too_long ? "more" : std::to_string(bytes)) + " bytes to rank " +
                  std::to_string(group_->rank) + ", which expects " +
                  std::to_string(message.bytes));
  }

  /// Gives up what can be given up: the rank is failing and its buffers go.
  void withdraw() {
    for (std::size_t i = 0; i < requests_.size(); ++i)
      if (messages_[i].from >= 0 && requests_[i] != MPI_REQUEST_NULL) MPI_Cancel(&requests_[i]);
    int done = 0;
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(1);
    while (MPI_Testall(int(requests_.size()), requests_.data(), &done, MPI_STATUSES_IGNORE) ==
               MPI_SUCCESS &&
           done == 0 && std::chrono::steady_clock::now() < end)
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    for (MPI_Request& request : requests_)
      if (request != MPI_REQUEST_NULL) MPI_Request_free(&request);
  }

  std::shared_ptr<MpiGroup> group_;
  const char* collective_;
  int tag_;
  std::vector<MPI_Request> requests_;
  std::vector<Message> messages_;
  int exceptions_ = std::uncaught_exceptions();
};

}  // namespace detail
}  // namespace dflash
