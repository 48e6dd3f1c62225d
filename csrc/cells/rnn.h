#pragma once

#include "cells/inline.h"

namespace fastrnn::cells {

// Elman RNN, as torch.nn.RNN:
//   h' = activation(a)     a: the gate before it
template <class Activation>
struct Rnn {
  static constexpr const char* name = Activation::name;
  static constexpr int gates = 1;
  static constexpr int saved = 0;  // the backward needs h' only
  static constexpr bool has_c = false;
  static constexpr int whole_gates = 1;
  static constexpr bool reads_h = false;  // does h_prev reach the cell past W_hh?

  template <class M, class V>
  static FASTRNN_INLINE void activate(const V* a, V* s, V& /*c*/) {
    s[0] = a[0];
  }
  template <class M, class V>
  static FASTRNN_INLINE void output(V* s, const V& /*h_prev*/, const V& /*c*/, V& h) {
    h = Activation::template forward<M>(s[0]);
  }

  template <class M, class V>
  static FASTRNN_INLINE void backward(const V* /*s*/, const V& /*h_prev*/, const V& h, const V& /*c_prev*/,
                                      const V& /*c*/, const V& dh, V& /*dc*/, V* dgx, V* /*dgh*/,
                                      V& /*dh_prev*/) {
    dgx[0] = Activation::template backward<M>(h, dh);
  }
};

struct Tanh {
  static constexpr const char* name = "rnn_tanh";
  template <class M, class V>
  static FASTRNN_INLINE V forward(const V& a) {
    return M::tanh(a);
  }
  template <class M, class V>
  static FASTRNN_INLINE V backward(const V& h, const V& dh) {
    return dh * (1 - h * h);
  }
};

struct Relu {
  static constexpr const char* name = "rnn_relu";
  template <class M, class V>
  static FASTRNN_INLINE V forward(const V& a) {
    return M::relu(a);
  }
  // Zero where h <= 0; a NaN in h lets dh through, as torch's threshold_backward does.
  template <class M, class V>
  static FASTRNN_INLINE V backward(const V& h, const V& dh) {
    return M::zero_unless_positive(h, dh);
  }
};

using RnnTanh = Rnn<Tanh>;
using RnnRelu = Rnn<Relu>;

}  // namespace fastrnn::cells
