#pragma once

// The cells, forward and backward, on vectors of units that are in the first-level cache.

#include <algorithm>
#include <string>

#include "cells/registry.h"
#include "cpu/gemm/math.h"
#include "cpu/gemm/simd.h"
#include "harness.h"
#include "numbers.h"

namespace benchmarks {

template <class Cell, class T>
class CellBenchmark {
  static constexpr int L = kLanes<T>, G = Cell::gates;
  // At least one, for arrays.
  static constexpr int S = std::max(Cell::saved, 1), C = std::max(Cell::cell_states, 1);
  static constexpr int U = std::max(Cell::unit_vectors, 1);
  static constexpr int kRows = 16;  // a vector of units each
  static constexpr int kTogether = tuning::kCellRows;
  using V = Vector<T>;
  using Math = VectorMath<T>;

 public:
  explicit CellBenchmark(const Runner& runner) : runner_(runner) {}

  void run() {
    print("cell_forward", [this] {
      for (int row = 0; row < kRows; row += kTogether) forward(row);
    });
    print("cell_backward", [this] {
      for (int row = 0; row < kRows; ++row) backward(row);
    });
  }

 private:
  template <class F>
  void print(const std::string& pass, const F& call) {
    const std::string name = pass + "/" + dtype_name<T>() + "/" + Cell::info.name;
    if (runner_.wants(name)) runner_.print(name, runner_.time(call) / kRows);
  }

  // As layers do: some rows' gates, then their outputs.
  void forward(int first) {
    V s[kTogether][S], c[kTogether][C], u[U];
    for (int k = 0; k < U; ++k) u[k] = load(u_ + k * L);
#pragma GCC unroll 8
    for (int r = 0; r < kTogether; ++r) {
      const int row = first + r;
      V x[G], h[G];
      for (int g = 0; g < G; ++g) x[g] = load(gx_ + (row * G + g) * L), h[g] = load(gh_ + (row * G + g) * L);
      for (int k = 0; k < C; ++k) c[r][k] = load(c_ + (row * C + k) * L);
      if constexpr (cells::has_split_gate<Cell>) {
        Cell::template activate<Math>(x, h, u, s[r], c[r]);
      } else {
        Cell::template activate<Math>(h, u, s[r], c[r]);
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < kTogether; ++r) {
      const int row = first + r;
      V h;
      Cell::template output<Math>(s[r], u, load(h_ + row * L), c[r], h);
      store(h_ + row * L, h);
      for (int k = 0; k < C; ++k) store(c_ + (row * C + k) * L, c[r][k]);
      for (int k = 0; k < Cell::saved; ++k) store(s_ + (row * S + k) * L, s[r][k]);
    }
  }

  void backward(int row) {
    V s[S], u[U], c_prev[C], c[C], dc[C], dgx[G], dgh[G], du[U], dh_prev{};
    for (int k = 0; k < S; ++k) s[k] = load(s_ + (row * S + k) * L);
    for (int k = 0; k < U; ++k) u[k] = load(u_ + k * L);
    for (int k = 0; k < C; ++k) {
      c_prev[k] = load(c_prev_ + (row * C + k) * L);
      c[k] = load(c_ + (row * C + k) * L);
      dc[k] = load(dc_ + (row * C + k) * L);
    }
    Cell::template backward<Math>(s, u, load(h_prev_ + row * L), load(h_ + row * L), c_prev, c,
                                  load(dh_ + row * L), dc, dgx, dgh, du, dh_prev);
    for (int g = 0; g < G; ++g) {
      store(dgx_ + (row * G + g) * L, dgx[g]);
      if (cells::has_split_gate<Cell>) store(dgh_ + (row * G + g) * L, dgh[g]);
    }
    for (int k = 0; k < Cell::cell_states; ++k) store(dc_ + (row * C + k) * L, dc[k]);
    for (int k = 0; k < Cell::unit_vectors; ++k) store(du_ + (row * U + k) * L, du[k]);
    if (Cell::reads_h) store(dh_prev_ + row * L, dh_prev);
  }

  const Runner& runner_;
  const Numbers<T> gx_{kRows * G * L}, gh_{kRows * G * L}, u_{U * L}, s_{kRows * S * L};
  const Numbers<T> h_{kRows * L}, h_prev_{kRows * L}, c_{kRows * C * L}, c_prev_{kRows * C * L};
  const Numbers<T> dh_{kRows * L}, dc_{kRows * C * L}, dh_prev_{kRows * L};
  const Numbers<T> dgx_{kRows * G * L}, dgh_{kRows * G * L}, du_{kRows * U * L};
};

template <class T>
void run_cells(const Runner& runner) {
#define FASTRNN_CELL(Cell) CellBenchmark<cells::Cell, T>(runner).run();
  FASTRNN_FOR_EACH_CELL(FASTRNN_CELL)
#undef FASTRNN_CELL
}

}  // namespace benchmarks
