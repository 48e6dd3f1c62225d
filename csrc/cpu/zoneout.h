#pragma once

#include <cmath>
#include <cstring>
#if defined(__SSE2__) && !defined(__AVX2__)
#include <emmintrin.h>
#endif

#include "core/params.h"
#include "core/random.h"
#include "cpu/gemm/simd.h"

namespace fastrnn::cpu::FASTRNN_ISA {

// core/random.h's Philox for several counters, one after the other, each number in a lane of 64 bits.
struct PhiloxLanes {
  typedef uint64_t Lanes __attribute__((vector_size(kVectorBytes)));
  static constexpr int count = kVectorBytes / sizeof(uint64_t);
  Lanes value[4];

  // Of numbers below 2^32.
  static FASTRNN_INLINE Lanes multiply(Lanes a, uint32_t b) {
#if defined(__AVX512F__)
    return reinterpret_cast<Lanes>(_mm512_mul_epu32(reinterpret_cast<__m512i>(a), _mm512_set1_epi64(b)));
#elif defined(__AVX2__)
    return reinterpret_cast<Lanes>(_mm256_mul_epu32(reinterpret_cast<__m256i>(a), _mm256_set1_epi64x(b)));
#elif defined(__SSE2__)
    return reinterpret_cast<Lanes>(_mm_mul_epu32(reinterpret_cast<__m128i>(a), _mm_set1_epi64x(b)));
#else
    return a * b;
#endif
  }

  FASTRNN_INLINE PhiloxLanes(uint64_t key, uint64_t counter) {
    Lanes counters;
    for (int i = 0; i < count; ++i) counters[i] = i;
    counters += counter;
    Lanes c0 = counters & 0xffffffff, c1 = counters >> 32, c2{}, c3{};
    uint32_t key_0 = static_cast<uint32_t>(key), key_1 = static_cast<uint32_t>(key >> 32);
    for (int round = 0; round < 10; ++round) {
      const Lanes product_0 = multiply(c0, Philox::kMultiplier0),
                  product_1 = multiply(c2, Philox::kMultiplier1);
      c0 = (product_1 >> 32) ^ c1 ^ key_0;
      c1 = product_1 & 0xffffffff;
      c2 = (product_0 >> 32) ^ c3 ^ key_1;
      c3 = product_0 & 0xffffffff;
      key_0 += Philox::kWeyl0;
      key_1 += Philox::kWeyl1;
    }
    value[0] = c0, value[1] = c1, value[2] = c2, value[3] = c3;
  }
};

// Zoneout of a vector of units (Krueger et al. 2017, https://arxiv.org/abs/1606.01305).
template <class T>
class Zoneout {
  using V = Vector<Real<T>>;
  static constexpr int L = kLanes<Real<T>>;

 public:
  // at: the number of the first unit in a sequence buffer [D, R, H]. Lanes past the units are not used.
  Zoneout(const Noise<T>& noise, int64_t at) : noise_(noise) {
    if (!noise.seed) return;
    for (int i = 0; i < L; i += PhiloxLanes::count) {
      const PhiloxLanes random(*noise.seed, at + i);
      for (int k = 0; k <= kMostCellStates; ++k) std::memcpy(random_[k] + i, &random.value[k], kVectorBytes);
    }
  }

  // The factor of the old state of state k; that of the new one is one less.
  V factor(int k) const {
    const double p = noise_.zoneout[k];
    if (!noise_.seed) return splat(static_cast<Real<T>>(p));
    const auto limit = static_cast<int64_t>(std::ceil(p * 4294967296.0));  // as keeps_state
    alignas(kVectorBytes) Real<T> factor[L];
    for (int i = 0; i < L; ++i) factor[i] = random_[k][i] < limit ? Real<T>{1} : Real<T>{0};
    return load(factor);
  }
  V blend(int k, V before, V computed) const {
    if (noise_.zoneout[k] == 0) return computed;
    const V m = factor(k);
    return m * before + (1 - m) * computed;
  }

 private:
  const Noise<T>& noise_;
  alignas(kVectorBytes) int64_t random_[1 + kMostCellStates][L];  // of 32 bits
};

}  // namespace fastrnn::cpu::FASTRNN_ISA
