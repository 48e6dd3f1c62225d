#pragma once

#include "cells/cell_info.h"
#include "cells/inline.h"
#include "cells/rnn.h"

namespace fastrnn::cells {

// Independently recurrent network (Li et al. 2018, https://arxiv.org/abs/1803.04831): a unit sees its own state alone.
//   h' = activation(x + u h)     x: W_ih x + b
inline constexpr Parameter kU_hh{"u_hh", "weight_hh", ParameterKind::unit_vectors};
inline constexpr Parameter kBias{"b", "bias", ParameterKind::input_bias, Needs::bias};
constexpr CellInfo independent(const char* name, const char* nonlinearity) {
  return {.name = name,
          .layer = "IndRNN",
          .gates = {"h"},
          .saved = 0,
          .whole_gates = 0,
          .reads_h = true,
          .parameters = {kW_ih, kU_hh, kBias},
          .nonlinearity = nonlinearity};
}
inline constexpr CellInfo kIndRnnTanh = independent("indrnn_tanh", "tanh");
inline constexpr CellInfo kIndRnnRelu = independent("indrnn_relu", "relu");

template <const CellInfo& info, class Activation>
struct IndRnn : CellConstants<info> {
  template <class M, class V>
  static FASTRNN_INLINE void activate(const V* gx, const V* gh, const V* u, V* s, V* /*c*/) {
    s[0] = gx[0] + u[0] * gh[0];
  }
  template <class M, class V>
  static FASTRNN_INLINE void output(V* s, const V* /*u*/, const V& /*h_prev*/, const V* /*c*/, V& h) {
    h = Activation::template forward<M>(s[0]);
  }

  template <class M, class V>
  static FASTRNN_INLINE void backward(const V* /*s*/, const V* u, const V& h_prev, const V& h,
                                      const V* /*c_prev*/, const V* /*c*/, const V& dh, V* /*dc*/, V* dgx,
                                      V* dgh, V* du, V& /*dh_prev*/) {
    dgx[0] = Activation::template backward<M>(h, dh);
    dgh[0] = dgx[0] * u[0];
    du[0] = dgx[0] * h_prev;
  }
};
using IndRnnTanh = IndRnn<kIndRnnTanh, Tanh>;
using IndRnnRelu = IndRnn<kIndRnnRelu, Relu>;

}  // namespace fastrnn::cells
