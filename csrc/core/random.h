#pragma once

#include <cstdint>

#include "cells/inline.h"

namespace fastrnn {

// Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"): four random numbers of 32 bits
// that depend on the key and the counter alone, so that a backward draws again what the forward drew.
struct Philox {
  static constexpr uint32_t kMultiplier0 = 0xD2511F53, kMultiplier1 = 0xCD9E8D57;
  static constexpr uint32_t kWeyl0 = 0x9E3779B9, kWeyl1 = 0xBB67AE85;  // added to the key in each round
  uint32_t value[4];

  FASTRNN_INLINE Philox(uint64_t key, uint64_t counter) {
    uint32_t key_0 = static_cast<uint32_t>(key), key_1 = static_cast<uint32_t>(key >> 32);
    uint32_t c0 = static_cast<uint32_t>(counter), c1 = static_cast<uint32_t>(counter >> 32), c2 = 0, c3 = 0;
    for (int round = 0; round < 10; ++round) {
      const uint64_t product_0 = uint64_t{kMultiplier0} * c0, product_1 = uint64_t{kMultiplier1} * c2;
      c0 = static_cast<uint32_t>(product_1 >> 32) ^ c1 ^ key_0;
      c1 = static_cast<uint32_t>(product_1);
      c2 = static_cast<uint32_t>(product_0 >> 32) ^ c3 ^ key_1;
      c3 = static_cast<uint32_t>(product_0);
      key_0 += kWeyl0;
      key_1 += kWeyl1;
    }
    value[0] = c0, value[1] = c1, value[2] = c2, value[3] = c3;
  }
};

// Zoneout's factor of the old state: of state k, 0 for h, of a unit in a row of a sequence buffer [D, R, H], whose
// number in that buffer is `at`. 1 with chance p, else 0.
FASTRNN_INLINE bool keeps_state(uint64_t seed, uint64_t at, int k, double p) {
  return Philox(seed, at).value[k] < p * 4294967296.0;
}

}  // namespace fastrnn
