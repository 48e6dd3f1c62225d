#pragma once

// The cells, forward and backward, as the engine calls them: blocks of units that are in the caches of a core.

#include <algorithm>
#include <string>

#include "cells/registry.h"
#include "cpu/cell_functions.h"
#include "harness.h"
#include "numbers.h"

namespace benchmarks {

template <class Cell, class T>
class CellBenchmark {
  static constexpr int64_t kRows = 16, kVectors = 4, N = kVectors * kLanes<T>;
  static constexpr int64_t G = Cell::gates, S = std::max<int64_t>(Cell::saved, 1);
  static constexpr int64_t C = std::max<int64_t>(Cell::cell_states, 1);
  static constexpr int64_t U = std::max<int64_t>(Cell::unit_vectors, 1);
  // A cell that is normalised takes a row at a time.
  static constexpr int64_t kCalls = Cell::normalised ? kRows : 1;

 public:
  explicit CellBenchmark(const Runner& runner) : runner_(runner) {}

  void run() {
    constexpr cpu::CellFunctions<T> cell = kCellFunctions<Cell, T>;
    if (cell.forward == nullptr) return;  // the instruction set has the code of the one before it
    cpu::ForwardBlock<T> forward = some_rows<cpu::ForwardBlock<T>>();
    forward.gx = {gx_, G * N};
    forward.gh = {gh_, G * N};
    forward.gate = N;
    forward.bias_h = bias_;
    forward.h_prev = {h_prev_, N};
    forward.out = {h_, N};
    forward.c = {c_, C * N};
    forward.saved_s = {s_, S * N};
    forward.c_next = forward.saved_next = forward.panel_units = N;
    forward.kept = {kept_, (S + C) * N};
    forward.v = {v_, N};
    print("cell_forward", [&] {
      if (cell.forward_early) cell.forward_early(forward);
      cell.forward(forward);
    });

    cpu::BackwardBlock<T> backward = some_rows<cpu::BackwardBlock<T>>();
    if (cell.backward_early) backward.product = {v_, N};
    backward.dh = {dh_, N};
    backward.dy = {dy_, N};
    backward.s = {s_, S * N};
    backward.c = {c_saved_, C * N};
    backward.c_prev = {c_prev_, C * N};
    backward.h_prev = {h_prev_, N};
    backward.h = {h_, N};
    backward.dc = {dc_, C * N};
    backward.dgx = {dgx_, G * N};
    backward.dgh = {dgh_, G * N};
    backward.du = {du_, U * N};
    backward.m = {m_, N};
    backward.saved_next = backward.c_next = backward.gate = N;
    backward.scratch = {scratch_, G * N};
    print("cell_backward", [&] {
      cell.backward(backward);
      if (cell.backward_early) cell.backward_early(backward);
    });
  }

 private:
  template <class AnyBlock>
  AnyBlock some_rows() const {
    AnyBlock block;
    block.rows = kRows / kCalls;
    block.units = N;
    for (int k = 0; k < Cell::unit_vectors; ++k) block.unit[k] = u_ + k * N;
    return block;
  }

  // The time is of a vector of units.
  template <class F>
  void print(const std::string& pass, const F& call) {
    const std::string name = pass + "/" + dtype_name<T>() + "/" + Cell::info.name;
    if (!runner_.wants(name)) return;
    const auto calls = [&] {
      for (int i = 0; i < kCalls; ++i) call();
    };
    runner_.print(name, runner_.time(calls) / (kRows * kVectors));
  }

  const Runner& runner_;
  const Numbers<T> gx_{kRows * G * N}, gh_{kRows * G * N}, bias_{G * N}, u_{U * N}, s_{kRows * S * N};
  const Numbers<T> h_{kRows * N}, h_prev_{kRows * N}, v_{kRows * N}, kept_{kRows * (S + C) * N};
  const Numbers<T> c_{kRows * C * N}, c_saved_{kRows * C * N}, c_prev_{kRows * C * N};
  const Numbers<T> dh_{kRows * N}, dy_{kRows * N}, dc_{kRows * C * N}, m_{kRows * N}, scratch_{G * N};
  const Numbers<T> dgx_{kRows * G * N}, dgh_{kRows * G * N}, du_{kRows * U * N};
};

template <class T>
void run_cells(const Runner& runner) {
#define FASTRNN_CELL(Cell) CellBenchmark<cells::Cell, T>(runner).run();
  FASTRNN_FOR_EACH_CELL(FASTRNN_CELL)
#undef FASTRNN_CELL
}

}  // namespace benchmarks
