#pragma once

/// Ranks that are MPI processes: MpiEnvironment, MpiCommunicator.
#include "dflash/mpi/communicator.hpp"
#include "dflash/mpi/environment.hpp"
