#include "cpu/cache.h"

#include <unistd.h>

namespace fastrnn::cpu {

int64_t second_level_cache() {
  static const int64_t bytes = [] {
#ifdef _SC_LEVEL2_CACHE_SIZE
    const int64_t found = sysconf(_SC_LEVEL2_CACHE_SIZE);
    if (found > 0) return found;
#endif
    return int64_t{1} << 20;
  }();
  return bytes;
}

}  // namespace fastrnn::cpu
