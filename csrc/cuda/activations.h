#pragma once

#include <cmath>

#include "cells/inline.h"

namespace fastrnn::cuda {

// The activations of the cells (csrc/cells/) for float and double, on the device and on the host.
// Each comparison sends NaN to the branch that keeps it.
struct Activations {
  template <class V>
  static FASTRNN_INLINE V sigmoid(const V& a) {
    return 1 / (1 + exp(-a));
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

 private:
  static FASTRNN_INLINE float exp(float a) { return ::expf(a); }
  static FASTRNN_INLINE double exp(double a) { return ::exp(a); }
  static FASTRNN_INLINE float tanh_of(float a) { return ::tanhf(a); }
  static FASTRNN_INLINE double tanh_of(double a) { return ::tanh(a); }
};

}  // namespace fastrnn::cuda
