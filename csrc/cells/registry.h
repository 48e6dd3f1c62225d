#pragma once

#include "cells/cell.h"
#include "cells/gru.h"
#include "cells/ind_rnn.h"
#include "cells/layer_norm.h"
#include "cells/li_gru.h"
#include "cells/lstm.h"
#include "cells/peephole_lstm.h"
#include "cells/rnn.h"
#include "cells/s_lstm.h"

// Every cell stands in this list once. The kernels, their dispatch, the operators and Python's table are made
// from it.
#define FASTRNN_FOR_EACH_CELL(X) \
  X(Lstm)                        \
  X(Gru)                         \
  X(RnnTanh)                     \
  X(RnnRelu)                     \
  X(RnnSigmoid)                  \
  X(RnnIdentity)                 \
  X(GruResetBefore)              \
  X(PeepholeLstm)                \
  X(LayerNormLstm)               \
  X(LayerNormGru)                \
  X(IndRnnTanh)                  \
  X(IndRnnRelu)                  \
  X(LiGru)                       \
  X(SLstm)

namespace fastrnn::cells {

// All cells. A cell's index is its place here, and in every table of kernels.
#define FASTRNN_CELL(Cell) &Cell::info,
inline constexpr const CellInfo* kCells[] = {FASTRNN_FOR_EACH_CELL(FASTRNN_CELL)};
#undef FASTRNN_CELL
inline constexpr int kCellCount = static_cast<int>(sizeof(kCells) / sizeof(kCells[0]));

#define FASTRNN_CELL(Cell) static_assert(check_cell<Cell>());
FASTRNN_FOR_EACH_CELL(FASTRNN_CELL)
#undef FASTRNN_CELL

}  // namespace fastrnn::cells
