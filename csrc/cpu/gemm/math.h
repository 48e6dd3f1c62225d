#pragma once

// Activation functions on vectors. NaN goes through and infinities saturate, so comparisons are written such
// that a NaN takes the branch that keeps it.

#include <iterator>

#include "cpu/gemm/simd.h"

namespace fastrnn::cpu::FASTRNN_ISA {

template <class T>
struct Exp2Constants;
template <>
struct Exp2Constants<float> {
  static constexpr int mantissa_bits = 23, bias = 127;
  static constexpr float polynomial[] = {0.693147188029f,   0.240226510842f,   0.0555035710552f,
                                         0.00961803077060f, 0.00133908668452f, 0.000154697351878f};
};
template <>
struct Exp2Constants<double> {
  static constexpr int mantissa_bits = 52, bias = 1023;
  static constexpr double polynomial[] = {
      0.69314718055994530909,   0.24022650695910098223,   0.055504108664821659735,  0.0096181291076068868479,
      0.0013333558146396009032, 1.5403530441738456026e-4, 1.5252733853272817248e-5, 1.3215442586644178355e-6,
      1.0178051732237913579e-7, 7.0725861757099233034e-9, 4.4566747337789026604e-10};
};

// 2^(c x) = scale (1 + p): c x = n + f, n an integer, |f| <= 1/2, scale = 2^n, p = 2^f - 1. c x is NaN or in
// [lowest, highest].
//
// p / f is the polynomial whose largest error is the smallest (by the Remez algorithm), 0.09 of the rounding error
// of 2^f in float and 0.08 in double; coefficients from the constant one up.
template <class T>
struct Exp2 {
  using V = Vector<T>;
  using Bits = typename VectorOf<T>::bits;
  using K = Exp2Constants<T>;
  static constexpr T lowest = -K::bias, highest = K::bias + 1;  // there 2^n becomes 0 and infinity
  V scale, p;

  FASTRNN_INLINE Exp2(T c, V x) {
    // Adding 1.5 * 2^mantissa_bits rounds to an integer, which then sits in the low bits, here n with the
    // bias of an exponent; the shift drops the rest. c x is left to the multiply-adds: not rounded, if they
    // are fused.
    constexpr T round = static_cast<T>((int64_t{3} << (K::mantissa_bits - 1)) + K::bias);
    const V rounded = c * x + round;
    const V f = c * x - (rounded - round);
    scale = reinterpret_cast<V>(reinterpret_cast<Bits>(rounded) << K::mantissa_bits);
    constexpr int degree = static_cast<int>(std::size(K::polynomial)) - 1;
    V q = splat(K::polynomial[degree]);
#pragma GCC unroll 16
    for (int k = degree - 1; k >= 0; --k) q = q * f + K::polynomial[k];
    p = q * f;
  }
};

template <class T>
struct VectorMath {
  using V = Vector<T>;
  static constexpr T kLog2E = static_cast<T>(1.44269504088896340736);

  // 1 / (1 + exp(-x))
  static FASTRNN_INLINE V sigmoid(V x) {
    const Exp2<T> e(-kLog2E, at_least(-Exp2<T>::highest / kLog2E, at_most(-Exp2<T>::lowest / kLog2E, x)));
    return 1 / (1 + e.scale * (1 + e.p));
  }

  // tanh x = t / (t + 2), t = exp(2 x) - 1, which keeps its relative accuracy near zero.
  static FASTRNN_INLINE V tanh(V x) {
    constexpr T most = -Exp2<T>::lowest / (2 * kLog2E);
    const Exp2<T> e(2 * kLog2E, at_least(-most, at_most(most, x)));
    const V t = e.scale * e.p + (e.scale - 1);
    return t / (t + 2);
  }

  static FASTRNN_INLINE V exp(V x) {
    const Exp2<T> e(kLog2E, at_least(Exp2<T>::lowest / kLog2E, at_most(Exp2<T>::highest / kLog2E, x)));
    return e.scale * (1 + e.p);
  }

  // log(1 / (1 + exp(-x))) = min(x, 0) - log(1 + e), e = exp(-|x|). log(1 + e) = 2 atanh(e / (2 + e)), whose
  // series in powers of at most 1/9 keeps its relative accuracy.
  static FASTRNN_INLINE V log_sigmoid(V x) {
    const V e = exp(x < 0 ? x : -x), y = e / (2 + e), y2 = y * y;
    constexpr int terms = sizeof(T) == 4 ? 8 : 17;
    V sum = splat(static_cast<T>(1.0 / (2 * terms - 1)));
#pragma GCC unroll 17
    for (int k = terms - 2; k >= 0; --k) sum = sum * y2 + static_cast<T>(1.0 / (2 * k + 1));
    return (x > 0 ? V{} : x) - 2 * y * sum;
  }

  // a where x is positive or NaN, else b.
  static FASTRNN_INLINE V if_positive(V x, V a, V b) { return x <= 0 ? b : a; }
  static FASTRNN_INLINE V relu(V x) { return x < 0 ? V{} : x; }
  static FASTRNN_INLINE V zero_unless_positive(V x, V value) { return x <= 0 ? V{} : value; }
};

}  // namespace fastrnn::cpu::FASTRNN_ISA
