#pragma once

#include <cmath>

#include "cells/inline.h"

namespace fastrnn::cuda {

// The activations of the cells (csrc/cells/) for float and double, on the device and on the host.
// Each comparison sends NaN to the branch that keeps it.
struct Activations {
  template <class V>
  static FASTRNN_INLINE V sigmoid(const V& a) {
    return sigmoid_of(a);
  }
  template <class V>
  static FASTRNN_INLINE V tanh(const V& a) {
    return tanh_of(a);
  }
  template <class V>
  static FASTRNN_INLINE V relu(const V& a) {
    return a < 0 ? V(0) : a;
  }
  template <class V>
  static FASTRNN_INLINE V zero_unless_positive(const V& h, const V& dh) {
    return h <= 0 ? V(0) : dh;
  }
  template <class V>
  static FASTRNN_INLINE V exp(const V& a) {
    return exp_of(a);
  }
  // log(1 / (1 + exp(-a)))
  template <class V>
  static FASTRNN_INLINE V log_sigmoid(const V& a) {
    return (a > 0 ? V(0) : a) - log1p_of(exp_of(a < 0 ? a : -a));
  }
  // a where x is positive or NaN, else b.
  template <class V>
  static FASTRNN_INLINE V if_positive(const V& x, const V& a, const V& b) {
    return x <= 0 ? b : a;
  }

 private:
  static FASTRNN_INLINE float exp_of(float a) { return ::expf(a); }
  static FASTRNN_INLINE double exp_of(double a) { return ::exp(a); }
  static FASTRNN_INLINE float log1p_of(float a) { return ::log1pf(a); }
  static FASTRNN_INLINE double log1p_of(double a) { return ::log1p(a); }
  static FASTRNN_INLINE double sigmoid_of(double a) { return 1 / (1 + ::exp(-a)); }
#if defined(__CUDA_ARCH__)
  // Every step of a recurrence waits for its activations. Those of the library branch, and take two to four times as many
  // instructions. The absolute errors of these are about the rounding error of 1. Far below zero the relative error of
  // the sigmoid grows, to |a| 2^-24.
  static constexpr float kLog2E = 1.44269504f;
  static FASTRNN_INLINE float exp2_of(float a) {
    float e;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(e) : "f"(a));
    return e;
  }
  static FASTRNN_INLINE float reciprocal(float a) {
    float r;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(a));
    return r;
  }
  static FASTRNN_INLINE float sigmoid_of(float a) { return reciprocal(1 + exp2_of(-kLog2E * a)); }
  // Below 0.55: x + x^3 P(x^2), P by the Remez algorithm, with 0.02 of the rounding error. From there on:
  // 1 - 2 / (exp(2 |x|) + 1), which loses no digit.
  static FASTRNN_INLINE float tanh_of(float a) {
    const float x = ::fabsf(a), u = a * a;
    const float far = 1 - 2 * reciprocal(exp2_of(2 * kLog2E * x) + 1);
    float p = -0.00627423944f;
    p = p * u + 0.021071678935f;
    p = p * u - 0.05385230986f;
    p = p * u + 0.133325861377f;
    p = p * u - 0.333333175596f;
    return x < 0.55f ? a + a * u * p : ::copysignf(far, a);
  }
#else
  static FASTRNN_INLINE float sigmoid_of(float a) { return 1 / (1 + ::expf(-a)); }
  static FASTRNN_INLINE float tanh_of(float a) { return ::tanhf(a); }
#endif
  static FASTRNN_INLINE double tanh_of(double a) { return ::tanh(a); }
};

}  // namespace fastrnn::cuda
