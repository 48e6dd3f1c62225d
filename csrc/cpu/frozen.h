#pragma once

// The weights of a frozen layer in memory: packed once, for every call and every instruction set. A matrix stands as a
// PackedMatrix (cpu/gemm/packing.h) whose panels are one micropanel each and as wide as the widest vectors, so that
// narrower ones read it too. What kernels call is always inlined: it is compiled for each instruction set.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "cells/cell_info.h"
#include "cells/inline.h"
#include "core/params.h"

namespace fastrnn::cpu {

// What stands for the number 0 in a row that VNNI multiplies, whose numbers have no sign.
constexpr int kQuantizedZero = 128;

// W: what the weights are stored as (core/params.h).
template <class W>
struct FrozenMatrix {
  static constexpr int64_t kLine = 64;  // bytes of the widest vector, and of a column block
  static constexpr int64_t kColumns = kLine / sizeof(Real<W>);  // of a column block
  static constexpr int64_t kPack = sizeof(Real<W>) / sizeof(W);
  static constexpr int64_t kRowsAfter = sizeof(W) == 1 ? 2 : 0;  // what int8 weights need besides

  int64_t units;
  int G;
  int64_t blocks;  // of units in a panel
  int64_t K;

  FASTRNN_INLINE int64_t panel_units() const { return blocks * kColumns; }
  FASTRNN_INLINE int64_t rows() const { return (K + kPack - 1) / kPack + kRowsAfter; }
  FASTRNN_INLINE int64_t columns_of(int64_t size) const {
    return (G * size + kColumns - 1) / kColumns * kColumns;
  }
  FASTRNN_INLINE int64_t width() const {
    const int64_t whole = units / panel_units() * panel_units();
    return whole * G + columns_of(units - whole);
  }
  FASTRNN_INLINE int64_t bytes() const { return width() * rows() * sizeof(Real<W>); }

  // The rows of weights [G * units, K] become columns. scales: of int8 weights, one for each row.
  void pack(const W* weights, const float* scales, char* to) const {
    std::memset(to, 0, bytes());
    for (int64_t first = 0; first < units; first += panel_units()) {
      const int64_t size = std::min(panel_units(), units - first), columns = columns_of(size);
      W* panel = reinterpret_cast<W*>(to) + first * G * rows() * kPack;
      for (int g = 0; g < G; ++g) {
        for (int64_t unit = 0; unit < size; ++unit) {
          const int64_t row = g * units + first + unit, column = g * size + unit;
          const W* from = weights + row * K;
          for (int64_t k = 0; k < K; ++k) panel[(k / kPack * columns + column) * kPack + k % kPack] = from[k];
          if constexpr (kRowsAfter > 0) {
            int32_t sum = 0;
            for (int64_t k = 0; k < K; ++k) sum += from[k].value;
            sum *= kQuantizedZero;
            W* after = panel + ((rows() - kRowsAfter) * columns + column) * kPack;
            std::memcpy(after, &sum, sizeof sum);
            std::memcpy(after + columns * kPack, scales + row, sizeof(float));
          }
        }
      }
    }
  }
};

// Where the parts of one direction of one layer stand, in bytes; T: what it computes with.
template <class T, class W>
struct FrozenLayout {
  static constexpr int64_t kLine = FrozenMatrix<W>::kLine;
  static constexpr int64_t kMostBlocks = 8;  // column blocks of a panel, if its gates are no more

  FrozenMatrix<W> W_ih, W_hh, W_late, W_hr;
  int64_t at_W_ih, at_W_hh, at_W_late, at_W_hr, at_b_x, at_b_h, at_unit, unit_stride, bytes = 0;

  FASTRNN_INLINE FrozenLayout(const cells::CellInfo& cell, int64_t I, int64_t H, int64_t P, bool projected)
      : W_ih{H, cell.gates.size(), blocks_of(cell.gates.size()), I},
        W_hh{H, cell.gates.size() - cell.late_gates, W_ih.blocks, P},
        W_late{H, cell.late_gates, W_ih.blocks, H},
        W_hr{P, 1, blocks_of(1), H} {
    const auto take = [&](bool is_there, int64_t size) {
      const int64_t at = bytes;
      if (is_there) bytes += (size + kLine - 1) / kLine * kLine;
      return at;
    };
    // Vectors of units may be read from up to one vector past a bias.
    const int64_t bias = W_ih.width() * sizeof(Real<T>) + kLine;
    at_W_ih = take(cell.has(cells::ParameterKind::input_matrix), W_ih.bytes());
    at_W_hh = take(cell.has(cells::ParameterKind::state_matrix), W_hh.bytes());
    at_W_late = take(cell.late_gates > 0, W_late.bytes());
    at_W_hr = take(projected, W_hr.bytes());
    at_b_x = take(true, bias);
    at_b_h = take(cell.whole_gates < cell.gates.size(), bias);
    unit_stride = H * sizeof(T);
    at_unit = take(true, cell.unit_vectors() * unit_stride);
  }
  static FASTRNN_INLINE int64_t blocks_of(int G) { return std::max<int64_t>(1, kMostBlocks / G); }
};

}  // namespace fastrnn::cpu
