#pragma once

// Activation functions on vectors. NaN goes through and infinities saturate, so comparisons are written such
// that a NaN takes the branch that keeps it.

#include "cpu/simd.h"

namespace fastrnn::cpu::FASTRNN_ISA {

template <class T>
struct ExpConstants;
template <>
struct ExpConstants<float> {
  static constexpr float log2_e = 1.44269504f;
  static constexpr float ln2_high = 0.693145752f, ln2_low = 1.42860677e-6f;
  static constexpr float round = 12582912.0f;               // 1.5 * 2^23: adding it rounds to an integer
  static constexpr float lowest = -88.0f, highest = 89.0f;  // there 2^n becomes 0 and infinity
  static constexpr int mantissa_bits = 23, bias = 127, degree = 7;
};
template <>
struct ExpConstants<double> {
  static constexpr double log2_e = 1.4426950408889634;
  static constexpr double ln2_high = 6.93147180369123816490e-01, ln2_low = 1.90821492927058770002e-10;
  static constexpr double round = 6755399441055744.0;  // 1.5 * 2^52
  static constexpr double lowest = -709.0, highest = 709.9;
  static constexpr int mantissa_bits = 52, bias = 1023, degree = 13;
};

// 1 / k!
template <class T>
struct InverseFactorials {
  T of[ExpConstants<T>::degree + 1];
  constexpr InverseFactorials() : of() {
    double factorial = 1;
    for (int k = 0; k <= ExpConstants<T>::degree; ++k) {
      factorial *= k > 0 ? k : 1;
      of[k] = static_cast<T>(1 / factorial);
    }
  }
};

// exp(x) = scale (1 + p): x = n ln 2 + r, scale = 2^n, p = exp(r) - 1 by its Taylor series, |r| <= ln(2)/2.
// The degree makes the truncation smaller than a rounding error. x is NaN or in [lowest, highest].
template <class T>
struct Exp {
  using V = Vector<T>;
  using Bits = typename VectorOf<T>::bits;
  using K = ExpConstants<T>;
  V scale, p;

  FASTRNN_INLINE explicit Exp(V x) {
    const V rounded = x * K::log2_e + K::round;
    const V n = rounded - K::round;
    const V r = (x - n * K::ln2_high) - n * K::ln2_low;
    // The integer n sits in the low bits of `rounded`; the shift drops the rest.
    scale = reinterpret_cast<V>((reinterpret_cast<Bits>(rounded) + K::bias) << K::mantissa_bits);
    constexpr InverseFactorials<T> inverse_factorial;
    V q = splat(inverse_factorial.of[K::degree]);
#pragma GCC unroll 16
    for (int k = K::degree - 1; k >= 1; --k) q = q * r + inverse_factorial.of[k];
    p = q * r;
  }
};

template <class T>
struct VectorMath {
  using V = Vector<T>;
  using Bits = typename VectorOf<T>::bits;
  using K = ExpConstants<T>;

  static FASTRNN_INLINE V sigmoid(V x) {
    const Exp<T> e(at_least(K::lowest, at_most(K::highest, -x)));
    return 1 / (1 + e.scale * (1 + e.p));
  }

  // tanh|x| = -t / (2 + t), t = exp(-2|x|) - 1, which keeps its relative accuracy near zero.
  static FASTRNN_INLINE V tanh(V x) {
    const Bits sign = reinterpret_cast<Bits>(x) & reinterpret_cast<Bits>(splat(T(-0.0)));
    const V magnitude = reinterpret_cast<V>(reinterpret_cast<Bits>(x) ^ sign);
    const Exp<T> e(at_least(K::lowest, -2 * magnitude));
    const V t = e.scale * e.p + (e.scale - 1);
    return reinterpret_cast<V>(reinterpret_cast<Bits>(-t / (2 + t)) | sign);
  }

  static FASTRNN_INLINE V relu(V x) { return x < 0 ? V{} : x; }
  static FASTRNN_INLINE V zero_unless_positive(V x, V value) { return x <= 0 ? V{} : value; }
};

}  // namespace fastrnn::cpu::FASTRNN_ISA
