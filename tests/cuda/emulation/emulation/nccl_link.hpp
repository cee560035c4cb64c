#pragma once

#include <nccl.h>

#include <cstddef>
#include <memory>
#include <vector>

namespace nccl_emulation {

/// A send or a receive between ncclGroupStart and ncclGroupEnd; `to` is null in a send.
struct Message {
  const char* from;
  char* to;
  std::size_t bytes;
  int peer;
};

/// A rank's end of a communicator: how its messages travel.
class Link {
 public:
  virtual ~Link() = default;
  virtual int ranks() const = 0;
  /// What ncclCommGetAsyncError tells.
  virtual ncclResult_t state() = 0;
  virtual std::shared_ptr<Link> split(int color, int key) = 0;
  /// Returns when all messages have travelled, or none will.
  virtual void exchange(const std::vector<Message>& messages) = 0;
  virtual void finalize() = 0;
  virtual void abort() = 0;
};

/// The end of `rank` in the communicator that `id` names: between threads, unless a program brings
/// its own.
std::shared_ptr<Link> make_link(const ncclUniqueId& id, int ranks, int rank);

}  // namespace nccl_emulation
