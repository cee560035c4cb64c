#include <csignal>
#include <cstdlib>
#include <functional>
#include <iostream>
#include <map>
#include <thread>

#include "dflash/cpu/backend.hpp"
#include "dflash/mpi.hpp"

using namespace dflash;
using namespace std::chrono_literals;

namespace {

void stall() {
  for (;;) std::this_thread::sleep_for(1s);
}

/// Rank 1 sends `sent` floats to the others, which expect 3.
void exchange(MpiCommunicator& world, index_t sent) {
  CpuBackend<float> backend;
  const std::vector<index_t> three(3, 3);
  std::vector<index_t> send = three;
  if (world.rank() == 1) send = {sent, 3, sent};
  const std::vector<float> in(std::size_t(send[0] + send[1] + send[2]));
  std::vector<float> out(9);
  world.all_to_all(backend, {in.data(), {index_t(in.size())}}, send,
                   View<float, 1>{out.data(), {9}}, three);
}

const std::map<std::string, std::function<void(MpiCommunicator&)>> failures = {
    {"exception",
     [](auto& world) {
       if (world.rank() == 1) throw Error("row 7");
     }},
    {"while_pending",
     [](auto& world) {
       CpuBackend<float> backend;
       const std::vector<index_t> counts(3, 1 << 20);
       const std::vector<float> in(3 << 20);
       std::vector<float> out(3 << 20);
       auto pending = world.start_all_to_all(backend, {in.data(), {3 << 20}}, counts,
                                             View<float, 1>{out.data(), {3 << 20}}, counts);
       if (world.rank() == 1) throw Error("row 7");
     }},
    {"in_a_thread",
     [](auto& world) {
       if (world.rank() == 1) std::thread([] { throw Error("row 7"); }).join();
     }},
    {"abort",
     [](auto& world) {
       if (world.rank() == 1) world.abort("no space left");
     }},
    {"too_few", [](auto& world) { exchange(world, 2); }},
    {"too_many", [](auto& world) { exchange(world, 4); }},
    {"stall",
     [](auto& world) {
       world.barrier();
       if (world.rank() == 1) stall();
     }},
    {"stall_of_a_rank_that_others_wait_for_in_a_chain",
     [](auto& world) {
       MpiCommunicator pair = world.split(world.rank() == 2 ? 1 : 0);
       if (world.rank() == 1) stall();
       pair.barrier();
     }},
    {"stop",
     [](auto& world) {
       world.barrier();
       if (world.rank() == 1) std::raise(SIGSTOP);
     }},
    {"different_order",
     [](auto& world) {
       MpiCommunicator same = world.split(0);
       if (world.rank() == 1) same.barrier();
     }},
    {"missing_at_the_end",
     [](auto& world) {
       if (world.rank() == 1) stall();
     }},
    {"kill",
     [](auto& world) {
       if (world.rank() == 1) std::raise(SIGKILL);
     }},
    {"exit",
     [](auto& world) {
       if (world.rank() == 1) std::exit(0);
     }},
};

}  // namespace

/// A job whose rank 1 fails in the way that the argument names.
int main(int argc, char** argv) {
  const std::string kind = argc == 2 ? argv[1] : "";
  const auto fail_outside = [&] {
    MpiEnvironment mpi(argc, argv, {.time_out = 2s});
    MpiCommunicator world = mpi.world();
    world.barrier();
    if (world.rank() == 1) throw Error("row 7");
    world.barrier();
  };
  if (kind == "uncaught") fail_outside();
  if (kind == "past_the_environment") {
    try {
      fail_outside();
    } catch (const Error&) {
      return 0;
    }
  }
  const auto failure = failures.find(kind);
  if (failure == failures.end()) {
    std::cerr << "no such failure: " << kind << '\n';
    return 0;
  }
  MpiEnvironment mpi(argc, argv, {.time_out = 2s});
  mpi.run([&](MpiCommunicator world) {
    world.barrier();
    failure->second(world);
    if (kind == "missing_at_the_end") return;
    world.barrier();
    world.barrier();
  });
}
