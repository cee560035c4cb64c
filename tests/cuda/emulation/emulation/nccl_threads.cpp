#include <condition_variable>
#include <cstring>
#include <deque>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <utility>

#include "emulation/nccl_link.hpp"

namespace nccl_emulation {

namespace {

/// What the ranks of a communicator share.
struct Team {
  explicit Team(int size) : ranks(size) {}

  const int ranks;
  std::mutex mutex;
  std::condition_variable changed;
  std::set<int> here, finalized, failed;  // failed: or aborted, which the others are not told
  std::map<std::pair<int, int>, std::deque<std::vector<char>>> mail;  // from, to
  // Splits: how many each rank has asked for, and for each of them what the ranks chose.
  std::map<int, int> splits;
  struct Split {
    std::map<int, std::pair<int, int>> choice;  // of a rank: color, key
    std::map<int, std::shared_ptr<Team>> parts;
  };
  std::map<int, Split> split;
};

std::mutex jobs_mutex;
std::map<std::string, std::shared_ptr<Team>> jobs;  // by unique id

class ThreadLink : public Link {
 public:
  ThreadLink(std::shared_ptr<Team> team, int rank) : team_(std::move(team)), rank_(rank) {
    std::lock_guard lock(team_->mutex);
    team_->here.insert(rank_);
  }
  /// Becomes a part of the parent's team once all its ranks have chosen.
  ThreadLink(std::shared_ptr<Team> parent, int rank, int number)
      : parent_(std::move(parent)), parent_rank_(rank), parent_split_(number) {}

  int ranks() const override { return team_->ranks; }

  ncclResult_t state() override {
    if (team_ == nullptr) {
      const ncclResult_t made = join_part();
      if (team_ == nullptr) return made;
    }
    std::lock_guard lock(team_->mutex);
    if (team_->failed.contains(rank_)) return ncclRemoteError;
    const auto all = [&](const std::set<int>& ranks) { return int(ranks.size()) == team_->ranks; };
    return all(team_->here) && (!finalizing_ || all(team_->finalized)) ? ncclSuccess
                                                                       : ncclInProgress;
  }

  std::shared_ptr<Link> split(int color, int key) override {
    std::lock_guard lock(team_->mutex);
    const int number = team_->splits[rank_]++;
    team_->split[number].choice[rank_] = {color, key};
    return std::make_shared<ThreadLink>(team_, rank_, number);
  }

  void exchange(const std::vector<Message>& messages) override {
    std::unique_lock lock(team_->mutex);
    for (const Message& m : messages)
      if (m.to == nullptr) team_->mail[{rank_, m.peer}].emplace_back(m.from, m.from + m.bytes);
    team_->changed.notify_all();
    for (const Message& m : messages) {
      if (m.to == nullptr) continue;
      auto& box = team_->mail[{m.peer, rank_}];
      team_->changed.wait(lock, [&] { return team_->failed.contains(rank_) || !box.empty(); });
      if (team_->failed.contains(rank_) || box.front().size() != m.bytes) {
        team_->failed.insert(rank_);
        return;
      }
      std::memcpy(m.to, box.front().data(), m.bytes);
      box.pop_front();
    }
  }

  void finalize() override {
    std::lock_guard lock(team_->mutex);
    finalizing_ = true;
    team_->finalized.insert(rank_);
  }

  void abort() override {
    Team& team = team_ != nullptr ? *team_ : *parent_;
    std::lock_guard lock(team.mutex);
    team.failed.insert(team_ != nullptr ? rank_ : parent_rank_);
    team.changed.notify_all();
  }

 private:
  ncclResult_t join_part() {
    std::lock_guard lock(parent_->mutex);
    Team::Split& split = parent_->split[parent_split_];
    if (parent_->failed.contains(parent_rank_)) return ncclRemoteError;
    if (int(split.choice.size()) < parent_->ranks) return ncclInProgress;
    const int color = split.choice[parent_rank_].first;
    std::set<std::pair<int, int>> members;  // key, rank
    for (const auto& [rank, choice] : split.choice)
      if (choice.first == color) members.emplace(choice.second, rank);
    auto& part = split.parts[color];
    if (part == nullptr) part = std::make_shared<Team>(int(members.size()));
    rank_ = 0;
    for (const auto& [key, rank] : members) {
      if (rank == parent_rank_) break;
      ++rank_;
    }
    std::lock_guard part_lock(part->mutex);
    part->here.insert(rank_);
    team_ = part;
    return ncclSuccess;
  }

  std::shared_ptr<Team> team_;
  int rank_ = 0;
  std::shared_ptr<Team> parent_;
  int parent_rank_ = 0, parent_split_ = 0;
  bool finalizing_ = false;
};

}  // namespace

std::shared_ptr<Link> make_link(const ncclUniqueId& id, int ranks, int rank) {
  std::lock_guard lock(jobs_mutex);
  auto& team = jobs[id.internal];
  if (team == nullptr) team = std::make_shared<Team>(ranks);
  const auto link = std::make_shared<ThreadLink>(team, rank);
  if (link->state() == ncclSuccess) jobs.erase(id.internal);
  return link;
}

}  // namespace nccl_emulation
