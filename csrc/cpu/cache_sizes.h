#pragma once

#include <cstdint>

namespace fastrnn::cpu {

// Bytes of a core's own caches.
struct CacheSizes {
  int64_t first_level, second_level;
};

// As the system says; where it says nothing, those that the kernels were tuned for (cpu/tuning.h).
const CacheSizes& cache_sizes();

}  // namespace fastrnn::cpu
