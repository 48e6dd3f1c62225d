#pragma once

#include "cells/inline.h"

namespace fastrnn::cells {

// Long short-term memory, as torch.nn.LSTM:
//   i, f, o = sigmoid(a)    g = tanh(a)
//   c' = f c + i g
//   h' = o tanh(c')
// a: a gate before its activation.
struct Lstm {
  static constexpr const char* name = "lstm";
  static constexpr int gates = 4;         // i f g o
  static constexpr int saved = 4;         // i f g o, kept for the backward
  static constexpr bool has_c = true;     // a cell state beside the hidden state
  static constexpr int whole_gates = 4;   // of the first so many only the sum of both sides is used
  static constexpr bool reads_h = false;  // does h_prev reach the cell past W_hh?

  template <class M, class V>
  static FASTRNN_INLINE void activate(const V* a, V* s, V& c) {
    s[0] = M::sigmoid(a[0]);
    s[1] = M::sigmoid(a[1]);
    s[2] = M::tanh(a[2]);
    s[3] = M::sigmoid(a[3]);
    c = s[1] * c + s[0] * s[2];
  }
  template <class M, class V>
  static FASTRNN_INLINE void output(V* s, const V& /*h_prev*/, const V& c, V& h) {
    h = s[3] * M::tanh(c);
  }

  // do = dh tanh(c')    dc = dc + dh o (1 - tanh(c')^2)
  // di = dc g    df = dc c    dg = dc i    dc_prev = dc f
  // tanh(c') is computed again rather than saved: it is cheaper than the memory.
  template <class M, class V>
  static FASTRNN_INLINE void backward(const V* s, const V& /*h_prev*/, const V& /*h*/, const V& c_prev,
                                      const V& c, const V& dh, V& dc, V* dgx, V* /*dgh*/, V& /*dh_prev*/) {
    const V i = s[0], f = s[1], g = s[2], o = s[3];
    const V tanh_c = M::tanh(c);
    dc = dc + dh * o * (1 - tanh_c * tanh_c);
    dgx[0] = dc * g * i * (1 - i);
    dgx[1] = dc * c_prev * f * (1 - f);
    dgx[2] = dc * i * (1 - g * g);
    dgx[3] = dh * tanh_c * o * (1 - o);
    dc = dc * f;
  }
};

}  // namespace fastrnn::cells
