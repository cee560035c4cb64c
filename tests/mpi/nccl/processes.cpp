// The emulated NCCL between processes: its messages go by MPI, through the host's memory.

#include <mpi.h>

#include <atomic>
#include <cstring>
#include <stdexcept>
#include <thread>

#include "emulation/nccl_link.hpp"

namespace nccl_emulation {

namespace {

/// The communicators of MPI stay until its end: freeing one would be collective.
class ProcessLink : public Link {
 public:
  explicit ProcessLink(MPI_Comm comm) : comm_(comm) { MPI_Comm_size(comm_, &ranks_); }

  int ranks() const override { return ranks_; }
  ncclResult_t state() override { return aborted_ ? ncclRemoteError : ncclSuccess; }

  std::shared_ptr<Link> split(int color, int key) override {
    MPI_Comm part;
    MPI_Comm_split(comm_, color, key, &part);
    return std::make_shared<ProcessLink>(part);
  }

  void exchange(const std::vector<Message>& messages) override {
    // Another thread's call may move these bytes, and the device's memory is open to this one
    // alone.
    std::vector<std::vector<char>> host;
    std::vector<MPI_Request> requests;
    for (const Message& m : messages) {
      const auto n = int(m.bytes);
      auto& bytes = host.emplace_back(m.bytes);
      if (m.to == nullptr) std::memcpy(bytes.data(), m.from, m.bytes);
      MPI_Request& request = requests.emplace_back();
      if (m.to == nullptr)
        MPI_Isend(bytes.data(), n, MPI_BYTE, m.peer, 0, comm_, &request);
      else
        MPI_Irecv(bytes.data(), n, MPI_BYTE, m.peer, 0, comm_, &request);
    }
    for (int done = 0; done == 0;) {
      MPI_Testall(int(requests.size()), requests.data(), &done, MPI_STATUSES_IGNORE);
      if (done == 0 && aborted_) return withdraw(std::move(host), requests);
      std::this_thread::yield();
    }
    for (std::size_t i = 0; i < messages.size(); ++i)
      if (messages[i].to != nullptr) std::memcpy(messages[i].to, host[i].data(), messages[i].bytes);
  }

  void finalize() override {}
  void abort() override { aborted_ = true; }

 private:
  /// The job ends: MPI may still look at what it was given.
  static void withdraw(std::vector<std::vector<char>> host, std::vector<MPI_Request>& requests) {
    new std::vector<std::vector<char>>(std::move(host));
    for (MPI_Request& request : requests)
      if (request != MPI_REQUEST_NULL) MPI_Request_free(&request);
  }

  MPI_Comm comm_;
  int ranks_ = 0;
  std::atomic<bool> aborted_ = false;
};

}  // namespace

std::shared_ptr<Link> make_link(const ncclUniqueId&, int ranks, int rank) {
  int world_ranks = 0, world_rank = 0;
  MPI_Comm_size(MPI_COMM_WORLD, &world_ranks);
  MPI_Comm_rank(MPI_COMM_WORLD, &world_rank);
  if (ranks != world_ranks || rank != world_rank)
    throw std::runtime_error("the emulated NCCL knows MPI's world alone, and parts of it");
  MPI_Comm all;
  MPI_Comm_dup(MPI_COMM_WORLD, &all);
  return std::make_shared<ProcessLink>(all);
}

}  // namespace nccl_emulation
