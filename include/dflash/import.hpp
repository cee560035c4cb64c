#pragma once

// Files of other programs.

#include "dflash/import/gguf_file.hpp"
#include "dflash/import/specforge_folder.hpp"
#include "dflash/import/torch_archive.hpp"
