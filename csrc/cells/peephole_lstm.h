#pragma once

#include "cells/cell_info.h"
#include "cells/inline.h"

namespace fastrnn::cells {

// LSTM whose gates see c (Gers and Schmidhuber 2000): i and f the old one, o the new one.
//   i, f = sigmoid(a + u c)    g = tanh(a)
//   c' = f c + i g
//   o = sigmoid(a + u c')
//   h' = o tanh(c')
inline constexpr CellInfo kPeepholeLstm{.name = "peephole_lstm",
                                        .layer = "PeepholeLSTM",
                                        .gates = {"i", "f", "g", "o"},
                                        .saved = 4,  // i f g o
                                        .whole_gates = 4,
                                        .states = {"h", "c"},
                                        .parameters = {kW_ih,
                                                       kW_hh,
                                                       kB_ih,
                                                       kB_hh,
                                                       {"W_c", "weight_peephole", ParameterKind::unit_vectors,
                                                        Needs::always, 3},  // of i, f and o
                                                       kW_hr}};

struct PeepholeLstm : CellConstants<kPeepholeLstm> {
  template <class M, class V>
  static FASTRNN_INLINE void activate(const V* a, const V* u, V* s, V* c) {
    s[0] = M::sigmoid(a[0] + u[0] * c[0]);
    s[1] = M::sigmoid(a[1] + u[1] * c[0]);
    s[2] = M::tanh(a[2]);
    c[0] = s[1] * c[0] + s[0] * s[2];
    s[3] = M::sigmoid(a[3] + u[2] * c[0]);
  }
  template <class M, class V>
  static FASTRNN_INLINE void output(V* s, const V* /*u*/, const V& /*h_prev*/, const V* c, V& h) {
    h = s[3] * M::tanh(c[0]);
  }

  // As LSTM's, and each gate passes its gradient on to the c that it saw.
  template <class M, class V>
  static FASTRNN_INLINE void backward(const V* s, const V* u, const V& /*h_prev*/, const V& /*h*/,
                                      const V* c_prev, const V* c, const V& dh, V* dc, V* dgx, V* /*dgh*/,
                                      V* du, V& /*dh_prev*/) {
    const V i = s[0], f = s[1], g = s[2], o = s[3];
    const V tanh_c = M::tanh(c[0]);
    dgx[3] = dh * tanh_c * o * (1 - o);
    dc[0] = dc[0] + dh * o * (1 - tanh_c * tanh_c) + dgx[3] * u[2];
    dgx[0] = dc[0] * g * i * (1 - i);
    dgx[1] = dc[0] * c_prev[0] * f * (1 - f);
    dgx[2] = dc[0] * i * (1 - g * g);
    dc[0] = dc[0] * f + dgx[0] * u[0] + dgx[1] * u[1];
    du[0] = dgx[0] * c_prev[0];
    du[1] = dgx[1] * c_prev[0];
    du[2] = dgx[3] * c[0];
  }
};

}  // namespace fastrnn::cells
