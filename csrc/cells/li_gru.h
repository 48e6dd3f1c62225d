#pragma once

#include "cells/cell_info.h"
#include "cells/inline.h"

namespace fastrnn::cells {

// Light gated recurrent unit (Ravanelli et al. 2018, https://arxiv.org/abs/1803.10225), as speechbrain's:
//   z = sigmoid(a)    n = relu(a)
//   h' = (1 - z) n + z h
// The shares from the input are normalised before they come here.
inline constexpr CellInfo kLiGru{.name = "ligru",
                                 .layer = "LiGRU",
                                 .gates = {"n", "z"},
                                 .saved = 2,  // n z
                                 .whole_gates = 2,
                                 .reads_h = true,
                                 .parameters = {kW_hh}};

struct LiGru : CellConstants<kLiGru> {
  template <class M, class V>
  static FASTRNN_INLINE void activate(const V* a, const V* /*u*/, V* s, V* /*c*/) {
    s[0] = M::relu(a[0]);
    s[1] = M::sigmoid(a[1]);
  }
  template <class M, class V>
  static FASTRNN_INLINE void output(V* s, const V* /*u*/, const V& h_prev, const V* /*c*/, V& h) {
    h = (1 - s[1]) * s[0] + s[1] * h_prev;  // n may be infinite
  }

  template <class M, class V>
  static FASTRNN_INLINE void backward(const V* s, const V* /*u*/, const V& h_prev, const V& /*h*/,
                                      const V* /*c_prev*/, const V* /*c*/, const V& dh, V* /*dc*/, V* dgx,
                                      V* /*dgh*/, V* /*du*/, V& dh_prev) {
    const V n = s[0], z = s[1];
    dgx[0] = M::zero_unless_positive(n, dh * (1 - z));
    dgx[1] = dh * (h_prev - n) * z * (1 - z);
    dh_prev = dh * z;
  }
};

}  // namespace fastrnn::cells
