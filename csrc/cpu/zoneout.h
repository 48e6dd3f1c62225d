#pragma once

#include "core/params.h"
#include "core/random.h"
#include "cpu/gemm/simd.h"

namespace fastrnn::cpu::FASTRNN_ISA {

// Zoneout of a vector of units (Krueger et al. 2017, https://arxiv.org/abs/1606.01305).
template <class T>
class Zoneout {
  using V = Vector<Real<T>>;

 public:
  // at: the number of the first unit in a sequence buffer [D, R, H], of n units.
  Zoneout(const Noise<T>& noise, int64_t at, int64_t n) : noise_(noise) {
    if (!noise.seed) return;
    constexpr int L = kLanes<Real<T>>;
    for (int i = 0; i < L; ++i) {
      const Philox random(*noise.seed, at + std::min<int64_t>(i, n - 1));
      for (int k = 0; k <= kMostCellStates; ++k) random_[k][i] = random.value[k];
    }
  }

  // The factor of the old state of state k; that of the new one is one less.
  V factor(int k) const {
    const double p = noise_.zoneout[k];
    if (!noise_.seed) return splat(static_cast<Real<T>>(p));
    Real<T> factor[kLanes<Real<T>>];
    const double limit = p * 4294967296.0;
    for (int i = 0; i < kLanes<Real<T>>; ++i) factor[i] = random_[k][i] < limit ? 1 : 0;
    return load(factor);
  }
  V blend(int k, V before, V computed) const {
    if (noise_.zoneout[k] == 0) return computed;
    const V m = factor(k);
    return m * before + (1 - m) * computed;
  }

 private:
  const Noise<T>& noise_;
  uint32_t random_[1 + kMostCellStates][kLanes<Real<T>>];
};

}  // namespace fastrnn::cpu::FASTRNN_ISA
