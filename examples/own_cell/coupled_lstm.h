#pragma once

#include "cells/cell_info.h"
#include "cells/inline.h"

namespace fastrnn::cells {

// An LSTM with one gate for what is kept and what is new (Greff et al. 2017, "LSTM: A search space odyssey", CIFG):
//   f, o = sigmoid(a)    g = tanh(a)
//   c' = f c + (1 - f) g
//   h' = o tanh(c')
// a: a gate before its activation, W_ih x + b_ih + W_hh h + b_hh.
inline constexpr CellInfo kCoupledLstm{.name = "coupled_lstm",
                                       .layer = "CoupledLSTM",
                                       .gates = {"f", "g", "o"},
                                       .saved = 3,  // f g o
                                       .whole_gates = 3,
                                       .states = {"h", "c"}};

struct CoupledLstm : CellConstants<kCoupledLstm> {
  template <class M, class V>
  static FASTRNN_INLINE void activate(const V* a, const V* /*u*/, V* s, V* c) {
    s[0] = M::sigmoid(a[0]);
    s[1] = M::tanh(a[1]);
    s[2] = M::sigmoid(a[2]);
    c[0] = s[1] + s[0] * (c[0] - s[1]);
  }
  template <class M, class V>
  static FASTRNN_INLINE void output(V* s, const V* /*u*/, const V& /*h_prev*/, const V* c, V& h) {
    h = s[2] * M::tanh(c[0]);
  }

  // do = dh tanh(c')    dc' = dc + dh o (1 - tanh(c')^2)    df = dc' (c - g)    dg = dc' (1 - f)    dc = dc' f
  template <class M, class V>
  static FASTRNN_INLINE void backward(const V* s, const V* /*u*/, const V& /*h_prev*/, const V& /*h*/,
                                      const V* c_prev, const V* c, const V& dh, V* dc, V* dgx, V* /*dgh*/,
                                      V* /*du*/, V& /*dh_prev*/) {
    const V f = s[0], g = s[1], o = s[2], tanh_c = M::tanh(c[0]);
    const V dc_all = dc[0] + dh * o * (1 - tanh_c * tanh_c);
    dgx[0] = dc_all * (c_prev[0] - g) * f * (1 - f);
    dgx[1] = dc_all * (1 - f) * (1 - g * g);
    dgx[2] = dh * tanh_c * o * (1 - o);
    dc[0] = dc_all * f;
  }
};

}  // namespace fastrnn::cells
