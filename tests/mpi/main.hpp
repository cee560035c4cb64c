#pragma once

#include "dflash/mpi.hpp"

/// That of the test program; every rank runs every test case.
dflash::MpiEnvironment& mpi();
