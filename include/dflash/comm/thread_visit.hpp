#pragma once

#include <algorithm>
#include <cstddef>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "dflash/comm/thread_job.hpp"
#include "dflash/core/config.hpp"

namespace dflash::detail {

/// What a rank shows the others during a collective.
struct Shown {
  const std::byte* data = nullptr;
  index_t elements = 0, element_bytes = 1;
  std::vector<index_t> counts = {};  // elements of each block
  int choice = 0;                    // root or color
};

struct ThreadTeam;

/// One collective of one team, alive while a rank is in it.
struct ThreadMeeting {
  ThreadMeeting(const char* name, std::size_t ranks)
      : collective(name), shown(ranks), stage(ranks) {}

  const char* collective;
  int opener = -1;
  std::vector<Shown> shown;
  std::vector<int> stage;  // how often each rank came; below zero: withdrew
  int reading = 0;         // ranks that may be reading what others show
  bool withdrawn = false;  // a rank waits until nobody reads, to take its memory away
  std::map<int, std::shared_ptr<ThreadTeam>> children;  // by color, of split
};

/// Ranks of a job that form one communicator.
struct ThreadTeam {
  ThreadTeam(std::shared_ptr<ThreadJob> its_job, std::vector<int> ranks)
      : job(std::move(its_job)), members(std::move(ranks)) {}

  std::shared_ptr<ThreadJob> job;
  std::vector<int> members;                                // ranks in the job
  std::map<index_t, std::shared_ptr<ThreadMeeting>> open;  // by number, until all have joined
};

/// One rank's part in one collective. Its memory is read by nobody once this object is gone,
/// however it goes: that is what makes unwinding safe.
class ThreadVisit {
 public:
  ThreadVisit(std::shared_ptr<ThreadTeam> team, int rank, index_t number, const char* collective,
              Shown shown)
      : team_(std::move(team)), rank_(rank) {
    std::lock_guard lock(team_->job->mutex);
    team_->job->begin(team_->members[std::size_t(rank_)]);
    auto& meeting = team_->open[number];
    if (!meeting) {
      meeting = std::make_shared<ThreadMeeting>(collective, team_->members.size());
      meeting->opener = rank_;
    }
    if (std::string(meeting->collective) != collective)
      throw Error(std::string("rank ") + member(rank_) + " is in " + collective + " while rank " +
                  member(meeting->opener) + " is in " + meeting->collective);
    meeting->shown[std::size_t(rank_)] = std::move(shown);
    meeting_ = meeting;
    if (come() == 0) team_->open.erase(number);
  }
  ThreadVisit(ThreadVisit&&) = default;
  ThreadVisit& operator=(ThreadVisit&&) = delete;

  ~ThreadVisit() {
    if (!meeting_ || over_) return;
    std::unique_lock lock(team_->job->mutex);
    stop_reading();
    meeting_->stage[std::size_t(rank_)] = -1;
    meeting_->withdrawn = true;
    team_->job->wait_briefly(lock, team_->members[std::size_t(rank_)],
                             [&] { return meeting_->reading == 0; });
  }

  /// Waits until all ranks have shown their memory; from then on it may be read.
  void open() { wait(true); }
  /// Waits until all ranks have come here, and reads on.
  void meet() {
    leave_stage();
    wait(true);
  }
  /// Waits until all ranks have come here; what this one showed is its own again.
  void close() {
    if (reading_) leave_stage();
    wait(false);
    over_ = true;
  }

  int rank() const { return rank_; }
  int size() const { return int(team_->members.size()); }
  const Shown& shown(int rank) const { return meeting_->shown[std::size_t(rank)]; }

  /// The team of the ranks `members` of this one, which chose `color`.
  std::shared_ptr<ThreadTeam> child(int color, const std::vector<int>& members) {
    std::lock_guard lock(team_->job->mutex);
    auto& team = meeting_->children[color];
    if (!team) {
      std::vector<int> of_job;
      for (int rank : members) of_job.push_back(team_->members[std::size_t(rank)]);
      team = std::make_shared<ThreadTeam>(team_->job, std::move(of_job));
    }
    return team;
  }

 private:
  std::string member(int rank) const { return std::to_string(team_->members[std::size_t(rank)]); }

  void wake_all() {
    for (int rank : team_->members) team_->job->wake(rank);
  }
  void stop_reading() {
    if (!std::exchange(reading_, false)) return;
    if (--meeting_->reading == 0 && meeting_->withdrawn) wake_all();
  }
  /// How many ranks have yet to come as often as this one now has.
  std::ptrdiff_t come() {
    const int stage = ++meeting_->stage[std::size_t(rank_)];
    const auto behind = std::count_if(meeting_->stage.begin(), meeting_->stage.end(),
                                      [&](int other) { return other < stage; });
    if (behind == 0) wake_all();
    return behind;
  }
  void leave_stage() {
    std::lock_guard lock(team_->job->mutex);
    stop_reading();
    come();
  }
  void wait(bool then_read) {
    std::unique_lock lock(team_->job->mutex);
    const int stage = meeting_->stage[std::size_t(rank_)];
    team_->job->wait(lock, team_->members[std::size_t(rank_)], meeting_->collective, [&] {
      std::vector<int> missing;
      for (std::size_t r = 0; r < meeting_->stage.size(); ++r)
        if (meeting_->stage[r] < stage) missing.push_back(team_->members[r]);
      return missing;
    });
    if (then_read) {
      ++meeting_->reading;
      reading_ = true;
    }
  }

  std::shared_ptr<ThreadTeam> team_;
  std::shared_ptr<ThreadMeeting> meeting_;
  int rank_;
  bool reading_ = false, over_ = false;
};

}  // namespace dflash::detail
