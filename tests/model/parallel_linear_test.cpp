#include "dflash/model/parallel_linear.hpp"

#include "dflash/comm/thread_communicator.hpp"
#include "model/tensor_parallel_suite.hpp"

namespace parallel_linear_test {

using namespace dflash;
using tensor_parallel_suite::check_linear;

TEST_CASE("A linear layer cut by outputs or by inputs is the whole layer") {
  for (const int ranks : {1, 2, 3, 4, 5})
    for (const index_t rows : {1, 7}) {
      CAPTURE(ranks);
      CAPTURE(rows);
      ThreadCommunicator::run(ranks, [&](ThreadCommunicator world) {
        check_linear<double>(world, ranks, rows, 11, 13);
        check_linear<float>(world, ranks, rows, 11, 13);
        check_linear<double>(world, ranks, rows, 3, 2);  // ranks without a feature
      });
    }
}

TEST_CASE("Groups of a world work side by side") {
  ThreadCommunicator::run(6, [](ThreadCommunicator world) {
    check_linear<double>(world, 2, 5, 9, 8);
    check_linear<double>(world, 3, 5, 9, 8);
  });
}

TEST_CASE("One process needs no communicator") {
  SingleProcess world;
  check_linear<double>(world, 1, 5, 9, 8);
}

}  // namespace parallel_linear_test
