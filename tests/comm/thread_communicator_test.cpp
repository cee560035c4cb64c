#include "dflash/comm/thread_communicator.hpp"

#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <stdexcept>
#include <thread>

#include "communicator_suite.hpp"

namespace thread_communicator_test {

using namespace dflash;
using namespace std::chrono_literals;
using communicator_suite::Counts;
using communicator_suite::view;

static_assert(CommunicatorFor<ThreadCommunicator, CpuBackend<float>>);
static_assert(CommunicatorFor<ThreadCommunicator, CpuBackend<double>>);

/// The text of what run throws.
template <class Body>
std::string failure(int ranks, Body body, std::chrono::duration<double> time_out = 20s) {
  try {
    ThreadCommunicator::run(ranks, body, {.time_out = time_out});
  } catch (const Error& error) {
    return error.what();
  }
  return "no failure";
}

bool contains(const std::string& text, const std::string& part) {
  INFO("text: " << text);
  CHECK(text.find(part) != std::string::npos);
  return text.find(part) != std::string::npos;
}

TEST_CASE("threads are ranks of a communicator") {
  for (const int ranks : {1, 2, 3, 4, 7}) {
    CAPTURE(ranks);
    communicator_suite::check_communicator(
        [&](auto body) { ThreadCommunicator::run(ranks, body, {.time_out = 60s}); });
  }
}

TEST_CASE("a rank may wait for as long as anybody says") {
  for (const double seconds : {6e10, 1e300})
    CHECK(failure(
              2,
              [](ThreadCommunicator comm) {
                if (comm.rank() == 1) std::this_thread::sleep_for(5ms);
                comm.barrier();
              },
              std::chrono::duration<double>(seconds)) == "no failure");
}

TEST_CASE("the first exception of a rank is carried out, with its rank and its type") {
  std::atomic<int> released = 0;
  const auto body = [&](ThreadCommunicator comm) {
    try {
      ThreadCommunicator part = comm.split(comm.rank() % 2);
      if (comm.rank() == 2) throw std::out_of_range("row 7");
      if (comm.rank() == 0) part.barrier();
      if (comm.rank() != 0) comm.barrier();
    } catch (const Error& error) {
      ++released;
      CHECK(error.what() == std::string("rank 2 failed: row 7"));
      throw;
    }
  };
  CHECK(failure(5, body) == "rank 2 failed: row 7");
  CHECK(released == 4);
  bool original = false;
  try {
    ThreadCommunicator::run(3, body);
  } catch (const Error& error) {
    try {
      std::rethrow_if_nested(error);
    } catch (const std::out_of_range&) {
      original = true;
    }
  }
  CHECK(original);
  CHECK(failure(2, [](ThreadCommunicator comm) {
          if (comm.rank() == 1) throw 5;
          comm.barrier();
        }) == "rank 1 failed: an exception of an unknown type");
}

TEST_CASE("abort ends every rank with its reason") {
  CHECK(failure(3, [](ThreadCommunicator comm) {
          ThreadCommunicator pair = comm.split(comm.rank() == 0 ? 0 : 1);
          if (comm.rank() == 2) pair.abort("no space left");
          comm.barrier();
        }) == "rank 2 failed: no space left");
}

TEST_CASE("a rank that stalls is named at the time-out, with the collective") {
  const auto text = failure(
      4,
      [](ThreadCommunicator comm) {
        comm.barrier();
        if (comm.rank() == 2) std::this_thread::sleep_for(1500ms);
        std::vector<float> data(5);
        CpuBackend<float> backend;
        comm.all_reduce_sum(backend, view(data));
      },
      1s);
  contains(text, "time-out");
  contains(text,
           "1 s in all_reduce_sum (collective 2) for rank 2, which has been in no "
           "collective for");
  CHECK(text.find("; rank") == std::string::npos);
}

TEST_CASE("who waits for a waiting rank names the one that stalls") {
  const auto text = failure(
      4,
      [](ThreadCommunicator comm) {
        ThreadCommunicator low = comm.split(comm.rank() < 2 ? 0 : 1);
        ThreadCommunicator middle = comm.split(comm.rank() % 3 == 0 ? 0 : 1);
        if (comm.rank() == 3) std::this_thread::sleep_for(1600ms);
        if (comm.rank() == 2) std::this_thread::sleep_for(100ms);
        if (comm.rank() >= 2) low.barrier();         // 2 waits for 3
        if (comm.rank() % 3 != 0) middle.barrier();  // 1 waits for 2, and loses patience first
      },
      1s);
  contains(text, "rank 1 has waited 1 s in barrier");
  contains(text, "for rank 3");
}

TEST_CASE("ranks that wait in different groups for each other are named") {
  const auto text = failure(
      3,
      [](ThreadCommunicator comm) {
        ThreadCommunicator pair = comm.split(comm.rank() == 2 ? 1 : 0);
        if (comm.rank() == 0) comm.barrier();
        pair.barrier();
        comm.barrier();
      },
      1s);
  contains(text, "time-out");
  contains(text, "which is in barrier (collective 2)");
}

TEST_CASE("a rank that never comes back ends the process, the failure on stderr") {
  int ends[2];
  REQUIRE(pipe(ends) == 0);
  const pid_t child = fork();
  if (child == 0) {
    dup2(ends[1], STDERR_FILENO);
    failure(
        2,
        [](ThreadCommunicator comm) {
          if (comm.rank() == 1) std::this_thread::sleep_for(1h);
          comm.barrier();
        },
        500ms);
    std::_Exit(0);
  }
  close(ends[1]);
  std::string text;
  char buffer[512];
  for (ssize_t n = 0; (n = read(ends[0], buffer, sizeof buffer)) > 0;)
    text.append(buffer, std::size_t(n));
  close(ends[0]);
  int status = 0;
  waitpid(child, &status, 0);
  CHECK(WIFEXITED(status));
  CHECK(WEXITSTATUS(status) == 1);
  contains(text, "time-out: rank 0 has waited 0.5 s in barrier (collective 1) for rank 1, which");
}

TEST_CASE("a rank that ends while others wait is named") {
  CHECK(failure(2, [](ThreadCommunicator comm) {
          if (comm.rank() == 0) comm.barrier();
        }) == "rank 1 has ended, rank 0 waits for it in barrier");
}

TEST_CASE("ranks in different collectives are named") {
  const auto text = failure(2, [](ThreadCommunicator comm) {
    CpuBackend<float> backend;
    std::vector<float> data(5);
    if (comm.rank() == 0) comm.barrier();
    if (comm.rank() == 1) comm.all_reduce_sum(backend, view(data));
  });
  const bool either =
      text == "rank 1 failed: rank 1 is in all_reduce_sum while rank 0 is in barrier" ||
      text == "rank 0 failed: rank 0 is in barrier while rank 1 is in all_reduce_sum";
  INFO(text);
  CHECK(either);
}

TEST_CASE("what ranks say must fit") {
  CpuBackend<float> backend;
  const auto of_two = [&](auto collective) {
    return failure(2, [&](ThreadCommunicator comm) {
      std::vector<float> in(4), out(4);
      collective(comm, in, out);
    });
  };
  CHECK(of_two([](auto& comm, auto& in, auto& out) {
          CpuBackend<float> own;
          const bool first = comm.rank() == 0;
          comm.all_to_all(own, view(in).rows({0, first ? 4 : 3}),
                          first ? Counts{1, 3} : Counts{2, 1}, view(out),
                          first ? Counts{1, 3} : Counts{3, 1});
        }) == "rank 0 failed: all_to_all: rank 1 sends 8 bytes to rank 0, which expects 12");
  contains(of_two([](auto& comm, auto& in, auto&) {
             CpuBackend<float> own;
             comm.all_reduce_sum(own, view(in).rows({0, 3 + comm.rank()}));
           }),
           "all_reduce_sum: rank ");
  contains(of_two([](auto& comm, auto& in, auto& out) {
             CpuBackend<float> own;
             const index_t n = comm.rank() == 0 ? 1 : 3;
             comm.all_gather(own, view(in).rows({0, comm.rank() == 0 ? n : 2}),
                             comm.rank() == 0 ? Counts{1, 3} : Counts{2, 2}, view(out));
           }),
           "all_gather: the counts or elements of ranks");
  contains(of_two([](auto& comm, auto& in, auto& out) {
             CpuBackend<float> own;
             comm.reduce_scatter_sum(own, view(in), comm.rank() == 0 ? Counts{1, 3} : Counts{2, 2},
                                     view(out).rows({0, comm.rank() == 0 ? 1 : 2}));
           }),
           "reduce_scatter_sum: the counts or elements of ranks");
  contains(of_two([](auto& comm, auto& in, auto&) {
             CpuBackend<float> own;
             comm.broadcast(own, view(in), comm.rank());
           }),
           "broadcast: the root is ");
  contains(of_two([](auto& comm, auto& in, auto&) {
             CpuBackend<float> own;
             std::vector<double> wide(4);
             if (comm.rank() == 0) comm.broadcast(own, view(wide), 0);
             if (comm.rank() == 1) comm.broadcast(own, view(in), 0);
           }),
           "4 elements of");
}

TEST_CASE("memory that others may read outlives their reading, whoever fails") {
  for (int trial = 0; trial < 60; ++trial) {
    const auto text = failure(4, [&](ThreadCommunicator comm) {
      CpuBackend<float> backend;
      const Counts counts(4, 20000);
      std::vector<float> out(80000);
      for (int step = 0;; ++step) {
        const std::vector<float> in(80000, float(step));  // freed at once by unwinding
        const bool fails = comm.rank() == trial % 4 && step == trial % 3;
        if (fails && trial % 2 == 0) throw Error("before");
        auto pending = comm.start_all_to_all(backend, view(in), counts, view(out), counts);
        if (fails) throw Error("after");
        pending.wait();
        REQUIRE(out[70000] == float(step));
      }
    });
    CHECK(text == "rank " + std::to_string(trial % 4) +
                      " failed: " + (trial % 2 == 0 ? "before" : "after"));
  }
}

TEST_CASE("a communicator without a team says so") {
  ThreadCommunicator none;
  CHECK(none.size() == 0);
  CHECK_THROWS_AS(none.barrier(), Error);
  CHECK_THROWS_AS(ThreadCommunicator::run(0, [](ThreadCommunicator) {}), Error);
}

}  // namespace thread_communicator_test
