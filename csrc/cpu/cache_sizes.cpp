#include "cpu/cache_sizes.h"

#include <unistd.h>

#include "cpu/tuning.h"

namespace fastrnn::cpu {
namespace {

CacheSizes ask() {
  CacheSizes sizes = tuning::kTunedCaches;
#if defined(_SC_LEVEL1_DCACHE_SIZE) && defined(_SC_LEVEL2_CACHE_SIZE)
  const int64_t first_level = sysconf(_SC_LEVEL1_DCACHE_SIZE), second_level = sysconf(_SC_LEVEL2_CACHE_SIZE);
  if (first_level > 0) sizes.first_level = first_level;
  if (second_level > 0) sizes.second_level = second_level;
#endif
  return sizes;
}

}  // namespace

const CacheSizes& cache_sizes() {
  static const CacheSizes sizes = ask();
  return sizes;
}

}  // namespace fastrnn::cpu
