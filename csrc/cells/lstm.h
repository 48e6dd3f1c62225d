#pragma once

#include "cells/cell_info.h"
#include "cells/inline.h"

namespace fastrnn::cells {

// Long short-term memory, as torch.nn.LSTM:
//   i, f, o = sigmoid(a)    g = tanh(a)
//   c' = f c + i g
//   h' = o tanh(c')
// a: a gate before its activation.
inline constexpr CellInfo kLstm{.name = "lstm",
                                .layer = "LSTM",
                                .gates = {"i", "f", "g", "o"},
                                .saved = 4,  // i f g o
                                .whole_gates = 4,
                                .states = {"h", "c"},
                                .parameters = {kW_ih, kW_hh, kB_ih, kB_hh, kW_hr}};

struct Lstm : CellConstants<kLstm> {
  template <class M, class V>
  static FASTRNN_INLINE void activate(const V* a, const V* /*u*/, V* s, V* c) {
    s[0] = M::sigmoid(a[0]);
    s[1] = M::sigmoid(a[1]);
    s[2] = M::tanh(a[2]);
    s[3] = M::sigmoid(a[3]);
    c[0] = s[1] * c[0] + s[0] * s[2];
  }
  template <class M, class V>
  static FASTRNN_INLINE void output(V* s, const V* /*u*/, const V& /*h_prev*/, const V* c, V& h) {
    h = s[3] * M::tanh(c[0]);
  }

  // do = dh tanh(c')    dc = dc + dh o (1 - tanh(c')^2)
  // di = dc g    df = dc c    dg = dc i    dc_prev = dc f
  // tanh(c') is computed again rather than saved: it is cheaper than the memory.
  template <class M, class V>
  static FASTRNN_INLINE void backward(const V* s, const V* /*u*/, const V& /*h_prev*/, const V& /*h*/,
                                      const V* c_prev, const V* c, const V& dh, V* dc, V* dgx, V* /*dgh*/,
                                      V* /*du*/, V& /*dh_prev*/) {
    const V i = s[0], f = s[1], g = s[2], o = s[3];
    const V tanh_c = M::tanh(c[0]);
    dc[0] = dc[0] + dh * o * (1 - tanh_c * tanh_c);
    dgx[0] = dc[0] * g * i * (1 - i);
    dgx[1] = dc[0] * c_prev[0] * f * (1 - f);
    dgx[2] = dc[0] * i * (1 - g * g);
    dgx[3] = dh * tanh_c * o * (1 - o);
    dc[0] = dc[0] * f;
  }
};

}  // namespace fastrnn::cells
