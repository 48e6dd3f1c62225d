#pragma once

#include "cells/cell_info.h"
#include "cells/inline.h"

namespace fastrnn::cells {

// Gated recurrent unit with the reset after the matmul, as torch.nn.GRU:
//   r, z = sigmoid(x + h)    n = tanh(x_n + r h_n)
//   h' = (1 - z) n + z h = n + z (h - n)
// x, h: a gate's share from the input and from the hidden state.
inline constexpr CellInfo kGru{.name = "gru",
                               .layer = "GRU",
                               .gates = {"r", "z", "n"},
                               .saved = 4,        // r z n h_n
                               .whole_gates = 2,  // in n the hidden state's share passes through r
                               .reads_h = true,
                               .persistent = true};

struct Gru : CellConstants<kGru> {
  template <class M, class V>
  static FASTRNN_INLINE void activate(const V* gx, const V* gh, const V* /*u*/, V* s, V* /*c*/) {
    s[0] = M::sigmoid(gx[0] + gh[0]);
    s[1] = M::sigmoid(gx[1] + gh[1]);
    s[2] = gx[2] + s[0] * gh[2];
    s[3] = gh[2];
  }
  template <class M, class V>
  static FASTRNN_INLINE void output(V* s, const V* /*u*/, const V& h_prev, const V* /*c*/, V& h) {
    s[2] = M::tanh(s[2]);
    h = s[2] + s[1] * (h_prev - s[2]);
  }

  // dz = dh (h - n)    dn = dh (1 - z)    dr = dn' h_n    dh_n = dn' r    dh_prev = dh z
  // dn': the gradient before the tanh.
  template <class M, class V>
  static FASTRNN_INLINE void backward(const V* s, const V* /*u*/, const V& h_prev, const V& /*h*/,
                                      const V* /*c_prev*/, const V* /*c*/, const V& dh, V* /*dc*/, V* dgx,
                                      V* dgh, V* /*du*/, V& dh_prev) {
    const V r = s[0], z = s[1], n = s[2], h_n = s[3];
    dgx[2] = dh * (1 - z) * (1 - n * n);
    dgx[1] = dh * (h_prev - n) * z * (1 - z);
    dgx[0] = dgx[2] * h_n * r * (1 - r);
    dgh[0] = dgx[0];
    dgh[1] = dgx[1];
    dgh[2] = dgx[2] * r;
    dh_prev = dh * z;
  }
};

// The same with the reset before the product, as Cho et al. 2014 (https://arxiv.org/abs/1406.1078):
//   r, z = sigmoid(x + h)    v = r h    n = tanh(x_n + W_hn v + b_hn)    h' = n + z (h - n)
inline constexpr CellInfo kGruResetBefore{.name = "gru_reset_before",
                                          .layer = "GRU",
                                          .gates = {"r", "z", "n"},
                                          .saved = 3,  // r z n
                                          .whole_gates = 3,
                                          .reads_h = true,
                                          .late_gates = 1};

struct GruResetBefore : CellConstants<kGruResetBefore> {
  template <class M, class V>
  static FASTRNN_INLINE void activate(const V* a, const V& h_prev, V* s, V& v) {
    s[0] = M::sigmoid(a[0]);
    s[1] = M::sigmoid(a[1]);
    s[2] = a[0];  // until n is known
    v = s[0] * h_prev;
  }
  template <class M, class V>
  static FASTRNN_INLINE void output(const V* a, const V& h_prev, V* s, V& h) {
    s[2] = M::tanh(a[0]);
    h = s[2] + s[1] * (h_prev - s[2]);
  }

  // dz = dh (h - n)    dn = dh (1 - z)    dh_prev = dh z
  template <class M, class V>
  static FASTRNN_INLINE void backward_output(const V* s, const V& h_prev, const V& dh, V* dgx, V& dh_prev) {
    const V z = s[1], n = s[2];
    dgx[2] = dh * (1 - z) * (1 - n * n);
    dgx[1] = dh * (h_prev - n) * z * (1 - z);
    dh_prev = dh * z;
  }
  // dr = dv h    dh_prev = dh_prev + dv r
  template <class M, class V>
  static FASTRNN_INLINE void backward_activate(const V* s, const V& h_prev, const V& dv, V* dgx, V& dh_prev,
                                               V& v) {
    const V r = s[0];
    dgx[0] = dv * h_prev * r * (1 - r);
    dh_prev = dh_prev + dv * r;
    v = r * h_prev;
  }
};

}  // namespace fastrnn::cells
