#include "nccl.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <tuple>
#include <utility>
#include <vector>

namespace nccl_emulation {

/// What the ranks of a communicator share.
struct Team {
  explicit Team(int size) : ranks(size) {}

  const int ranks;
  std::mutex mutex;
  std::condition_variable changed;
  std::set<int> here, finalized, failed;
  bool aborted = false;
  std::map<std::pair<int, int>, std::deque<std::vector<char>>> mail;  // from, to
  // Splits: how many each rank has asked for, and for each of them what the ranks chose.
  std::map<int, int> splits;
  struct Split {
    std::map<int, std::pair<int, int>> choice;  // of a rank: color, key
    std::map<int, std::shared_ptr<Team>> parts;
  };
  std::map<int, Split> split;
};

/// A rank's end of it.
struct Comm {
  std::shared_ptr<Team> team;
  int rank = 0;
  // A communicator that is being made by a split becomes a part of this team.
  std::shared_ptr<Team> parent;
  int parent_rank = 0, parent_split = 0;
  bool finalizing = false;

  std::mutex mutex;
  std::condition_variable wake;
  std::set<cudaStream_t> streams;  // with work to drive
  bool stopping = false;
  std::thread driver = std::thread([this] { drive(); });

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

std::mutex jobs_mutex;
std::map<std::string, std::shared_ptr<Team>> jobs;  // by unique id
std::atomic<int> next_job = 0;

/// A send or a receive between ncclGroupStart and ncclGroupEnd.
struct Message {
  Comm* comm;
  cudaStream_t stream;
  const char* from;
  char* to;
  std::size_t bytes;
  int peer;
};
thread_local int depth = 0;
thread_local std::vector<Message> group;

void exchange(Team& team, int rank, const std::vector<Message>& messages) {
  std::unique_lock lock(team.mutex);
  for (const Message& m : messages)
    if (m.to == nullptr) team.mail[{rank, m.peer}].emplace_back(m.from, m.from + m.bytes);
  team.changed.notify_all();
  for (const Message& m : messages) {
    if (m.to == nullptr) continue;
    auto& box = team.mail[{m.peer, rank}];
    team.changed.wait(lock, [&] { return team.aborted || !box.empty(); });
    if (team.aborted || box.front().size() != m.bytes) {
      team.failed.insert(rank);
      return;
    }
    std::memcpy(m.to, box.front().data(), m.bytes);
    box.pop_front();
  }
}

ncclResult_t put(const Message& message) {
  if (message.peer < 0 || message.peer >= message.comm->team->ranks || message.bytes == 0)
    return ncclInvalidArgument;
  if (depth == 0) return ncclInvalidUsage;  // the library always groups
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
  std::lock_guard lock(jobs_mutex);
  auto& team = jobs[id.internal];
  if (team == nullptr) team = std::make_shared<Team>(ranks);
  *comm = new Comm;
  (*comm)->team = team;
  (*comm)->rank = rank;
  std::lock_guard team_lock(team->mutex);
  team->here.insert(rank);
  if (int(team->here.size()) == ranks) jobs.erase(id.internal);
  return ncclInProgress;
}

ncclResult_t ncclCommSplit(ncclComm_t comm, int color, int key, ncclComm_t* part,
                           ncclConfig_t* config) {
  if (config->blocking != 0 || color < 0) return ncclInvalidArgument;
  Team& team = *comm->team;
  std::lock_guard lock(team.mutex);
  *part = new Comm;
  (*part)->parent = comm->team;
  (*part)->parent_rank = comm->rank;
  (*part)->parent_split = team.splits[comm->rank]++;
  team.split[(*part)->parent_split].choice[comm->rank] = {color, key};
  return ncclInProgress;
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t* state) {
  *state = ncclSuccess;
  if (comm->team == nullptr) {
    Team& team = *comm->parent;
    std::lock_guard lock(team.mutex);
    Team::Split& split = team.split[comm->parent_split];
    if (team.aborted) *state = ncclRemoteError;
    if (team.aborted || int(split.choice.size()) < team.ranks) {
      if (!team.aborted) *state = ncclInProgress;
      return ncclSuccess;
    }
    const int color = split.choice[comm->parent_rank].first;
    std::vector<std::tuple<int, int>> members;  // key, rank
    for (const auto& [rank, choice] : split.choice)
      if (choice.first == color) members.emplace_back(choice.second, rank);
    std::sort(members.begin(), members.end());
    auto& part = split.parts[color];
    if (part == nullptr) part = std::make_shared<Team>(int(members.size()));
    for (std::size_t i = 0; i < members.size(); ++i)
      if (std::get<1>(members[i]) == comm->parent_rank) comm->rank = int(i);
    comm->team = part;
    std::lock_guard part_lock(part->mutex);
    part->here.insert(comm->rank);
  }
  Team& team = *comm->team;
  std::lock_guard lock(team.mutex);
  if (team.aborted || team.failed.contains(comm->rank))
    *state = ncclRemoteError;
  else if (int(team.here.size()) < team.ranks ||
           (comm->finalizing && int(team.finalized.size()) < team.ranks))
    *state = ncclInProgress;
  return ncclSuccess;
}

ncclResult_t ncclCommFinalize(ncclComm_t comm) {
  std::lock_guard lock(comm->team->mutex);
  comm->finalizing = true;
  comm->team->finalized.insert(comm->rank);
  return ncclInProgress;
}
ncclResult_t ncclCommDestroy(ncclComm_t comm) {
  delete comm;
  return ncclSuccess;
}
ncclResult_t ncclCommAbort(ncclComm_t comm) {
  if (const auto team = comm->team != nullptr ? comm->team : comm->parent) {
    std::lock_guard lock(team->mutex);
    team->aborted = true;
    team->changed.notify_all();
  }
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
  const auto messages = std::exchange(group, {});
  Comm* const comm = messages.front().comm;
  const cudaStream_t stream = messages.front().stream;
  for (const Message& m : messages)
    if (m.comm != comm || m.stream != stream) return ncclInvalidUsage;
  cuda_emulation::enqueue(stream, [team = comm->team, rank = comm->rank, messages] {
    exchange(*team, rank, messages);
  });
  {
    std::lock_guard lock(comm->mutex);
    comm->streams.insert(stream);
  }
  comm->wake.notify_all();
  return ncclInProgress;
}

ncclResult_t ncclSend(const void* from, std::size_t count, ncclDataType_t, int peer,
                      ncclComm_t comm, cudaStream_t stream) {
  return put({comm, stream, static_cast<const char*>(from), nullptr, count, peer});
}
ncclResult_t ncclRecv(void* to, std::size_t count, ncclDataType_t, int peer, ncclComm_t comm,
                      cudaStream_t stream) {
  return put({comm, stream, nullptr, static_cast<char*>(to), count, peer});
}
