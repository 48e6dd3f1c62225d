#pragma once

#include "cells/gru.h"
#include "cells/lstm.h"

namespace fastrnn::cells {

// LSTM and GRU with layer normalisation (Ba et al. 2016, https://arxiv.org/abs/1607.06450). Before the cell, the product
// W_hh h is normalised over all its gates and multiplied by g_hh, the shares from the input come so already, with
// the bias; and of the LSTM h' = o tanh(LN(c'; g_c, b_c)), where c' itself is kept as it is. CellInfo::normalised says
// so to the kernels.
inline constexpr Parameter kG_hh{"g_hh", "ln_hh_weight", ParameterKind::gate_vector};
inline constexpr CellInfo kLayerNormLstm{.name = "layer_norm_lstm",
                                         .layer = "LayerNormLSTM",
                                         .gates = {"i", "f", "g", "o"},
                                         .saved = 8,  // i f g o, and W_hh h
                                         .whole_gates = 4,
                                         .normalised = true,
                                         .states = {"h", "c"},
                                         .parameters = {kW_hh,
                                                        kG_hh,
                                                        {"g_c", "ln_c_weight", ParameterKind::unit_vectors},
                                                        {"b_c", "ln_c_bias", ParameterKind::unit_vectors}}};
inline constexpr CellInfo kLayerNormGru{.name = "layer_norm_gru",
                                        .layer = "LayerNormGRU",
                                        .gates = {"r", "z", "n"},
                                        .saved = 7,  // r z n h_n, and W_hh h
                                        .whole_gates = 2,
                                        .reads_h = true,
                                        .normalised = true,
                                        .parameters = {kW_hh, kG_hh}};

struct LayerNormLstm : CellConstants<kLayerNormLstm> {
  using Inner = Lstm;
};
struct LayerNormGru : CellConstants<kLayerNormGru> {
  using Inner = Gru;
};

}  // namespace fastrnn::cells
