#pragma once

#include <cmath>

#include "cells/inline.h"

namespace fastrnn::cuda {

// The activations of the cells (csrc/cells/) for float and double, on the device and on the host.
// Each comparison sends NaN to the branch that keeps it.
struct Activations {
  template <class V>
  static FASTRNN_INLINE V sigmoid(const V& a) {
    return 1 / (1 + exp_of(-a));
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
  static FASTRNN_INLINE float tanh_of(float a) { return ::tanhf(a); }
  static FASTRNN_INLINE double tanh_of(double a) { return ::tanh(a); }
};

}  // namespace fastrnn::cuda
