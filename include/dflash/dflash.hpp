#pragma once

// Everything that needs a C++20 compiler, Eigen, nlohmann/json and xxHash. Tokenizers and chat
// templates: <dflash/text.hpp>.

#include "dflash/any_backend.hpp"
#include "dflash/cpu.hpp"
