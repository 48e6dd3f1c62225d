#pragma once

#include <cstdint>

namespace fastrnn::cpu {

// Bytes of a core's second-level cache; 1 MiB if the system does not say.
int64_t second_level_cache();

}  // namespace fastrnn::cpu
