#pragma once

/// Ranks that hold a GPU each: NcclCommunicator, over any communicator of their hosts.
#include "dflash/nccl/communicator.hpp"
