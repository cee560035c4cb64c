#include "nccl.h"

#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "emulation/nccl_link.hpp"

namespace nccl_emulation {

/// A communicator, and a thread that drives the streams it was given work for, as a GPU would.
struct Comm {
  explicit Comm(std::shared_ptr<Link> its_link) : link(std::move(its_link)) {}

  const std::shared_ptr<Link> link;
  std::mutex mutex;
  std::condition_variable wake;
  std::set<cudaStream_t> streams;  // with work to drive
  bool stopping = false;
  std::thread driver = std::thread([this] { drive(); });

  // A part that was asked for: its handle is written when this one is next found to be done.
  std::unique_ptr<Comm> part;
  Comm** part_handle = nullptr;

  ~Comm() {
    {
      std::lock_guard lock(mutex);
      stopping = true;
    }
    wake.notify_all();
    driver.join();
  }
  void drive() {
    std::unique_lock lock(mutex);
    for (;;) {
      wake.wait(lock, [&] { return stopping || !streams.empty(); });
      if (streams.empty()) return;
      const cudaStream_t stream = *streams.begin();
      streams.erase(streams.begin());
      lock.unlock();
      cudaStreamSynchronize(stream);
      lock.lock();
    }
  }
};

namespace {

std::atomic<int> next_job = 0;

thread_local int depth = 0;
/// What the group consists of so far: all of one communicator and stream.
thread_local std::vector<Message> group;
thread_local Comm* group_comm = nullptr;
thread_local cudaStream_t group_stream = nullptr;

ncclResult_t put(const Message& message, Comm* comm, cudaStream_t stream) {
  if (message.peer < 0 || message.peer >= comm->link->ranks() || message.bytes == 0)
    return ncclInvalidArgument;
  if (depth == 0) return ncclInvalidUsage;  // the library always groups
  if (!group.empty() && (comm != group_comm || stream != group_stream)) return ncclInvalidUsage;
  group_comm = comm, group_stream = stream;
  group.push_back(message);
  return ncclSuccess;
}

}  // namespace
}  // namespace nccl_emulation

using namespace nccl_emulation;

const char* ncclGetErrorString(ncclResult_t result) {
  switch (result) {
    case ncclSuccess:
      return "no error";
    case ncclRemoteError:
      return "remote process exited or there was a network error";
    case ncclInvalidArgument:
      return "invalid argument";
    case ncclInvalidUsage:
      return "invalid usage";
    case ncclInProgress:
      return "NCCL operation in progress";
  }
  return "unknown result code";
}

ncclResult_t ncclGetUniqueId(ncclUniqueId* id) {
  *id = {};
  const std::string name = "emulated " + std::to_string(next_job++);
  name.copy(id->internal, sizeof id->internal - 1);
  return ncclSuccess;
}

ncclResult_t ncclCommInitRankConfig(ncclComm_t* comm, int ranks, ncclUniqueId id, int rank,
                                    ncclConfig_t* config) {
  if (config->blocking != 0 || rank < 0 || rank >= ranks) return ncclInvalidArgument;
  *comm = new Comm(make_link(id, ranks, rank));
  return ncclInProgress;
}

ncclResult_t ncclCommSplit(ncclComm_t comm, int color, int key, ncclComm_t* part,
                           ncclConfig_t* config) {
  if (config->blocking != 0 || color < 0) return ncclInvalidArgument;
  *part = nullptr;
  comm->part_handle = part;
  comm->part = std::make_unique<Comm>(comm->link->split(color, key));
  return ncclInProgress;
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t* state) {
  if (comm == nullptr) return ncclInvalidArgument;
  *state = comm->link->state();
  if (*state == ncclSuccess && comm->part != nullptr) {
    *comm->part_handle = comm->part.release();
    *state = ncclInProgress;
  }
  return ncclSuccess;
}

ncclResult_t ncclCommFinalize(ncclComm_t comm) {
  comm->link->finalize();
  return ncclInProgress;
}
ncclResult_t ncclCommDestroy(ncclComm_t comm) {
  delete comm;
  return ncclSuccess;
}
ncclResult_t ncclCommAbort(ncclComm_t comm) {
  comm->link->abort();
  delete comm;
  return ncclSuccess;
}

ncclResult_t ncclGroupStart() {
  ++depth;
  return ncclSuccess;
}
ncclResult_t ncclGroupEnd() {
  if (depth == 0) return ncclInvalidUsage;
  if (--depth > 0 || group.empty()) return ncclSuccess;
  Comm* const comm = group_comm;
  cuda_emulation::enqueue(group_stream, [link = comm->link, messages = std::exchange(group, {})] {
    link->exchange(messages);
  });
  {
    std::lock_guard lock(comm->mutex);
    comm->streams.insert(group_stream);
  }
  comm->wake.notify_all();
  return ncclInProgress;
}

ncclResult_t ncclSend(const void* from, std::size_t count, ncclDataType_t, int peer,
                      ncclComm_t comm, cudaStream_t stream) {
  return put({static_cast<const char*>(from), nullptr, count, peer}, comm, stream);
}
ncclResult_t ncclRecv(void* to, std::size_t count, ncclDataType_t, int peer, ncclComm_t comm,
                      cudaStream_t stream) {
  return put({nullptr, static_cast<char*>(to), count, peer}, comm, stream);
}
