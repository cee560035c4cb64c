#pragma once

#include <cuda_runtime.h>

#include <string>

#include "dflash/cuda/expects.hpp"
#include "dflash/cuda/sum_of_parts.cuh"
#include "dflash/nccl.hpp"
#include "launch/process_launcher.hpp"

namespace examples {

/// How a program gets its ranks: here, the processes that mpirun or srun started, each with a GPU
/// of its machine.
class Launcher : public ProcessLauncher {
 public:
  using ProcessLauncher::ProcessLauncher;

  int threads(int) const { return 1; }

  /// Runs body(world) on every rank.
  template <class Body>
  void run(Body&& body) {
    dflash::cuda_expects(cudaSetDevice(device()), "the rank's GPU");
    body(dflash::NcclCommunicator(world(), {.time_out = time_out()}));
  }

 private:
  /// The GPU with this rank's number on its machine; or the only one, where each rank is shown just
  /// its own (srun --gpus-per-task=1).
  int device() const {
    int devices = 0;
    dflash::cuda_expects(cudaGetDeviceCount(&devices), "the CUDA devices");
    if (devices > 1 && here().ranks > devices)
      throw dflash::Error("there are " + std::to_string(here().ranks) +
                          " ranks on this machine and " + std::to_string(devices) +
                          " GPUs, and each rank needs its own");
    return devices > 1 ? int(here().rank) : 0;
  }
};

}  // namespace examples
