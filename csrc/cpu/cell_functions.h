#pragma once

// The functions of a cell over a block, in vectors of units.

#include <algorithm>
#include <type_traits>

#include "cells/registry.h"
#include "cpu/cell_block.h"
#include "cpu/gemm/math.h"
#include "cpu/gemm/simd.h"
#include "cpu/tuning.h"

namespace fastrnn::cpu::FASTRNN_ISA {

template <class Cell, class T>
void cell_forward(const ForwardBlock<T>& given) {
  const ForwardBlock<T> block = given;  // of which the compiler knows that no store changes it
  using V = Vector<Real<T>>;
  using Math = VectorMath<Real<T>>;
  constexpr int G = Cell::gates, C = Cell::cell_states, U = Cell::unit_vectors, L = kLanes<Real<T>>;
  constexpr bool kRounded = !std::is_same_v<T, Real<T>>;
  for (int64_t unit = 0; unit < block.units; unit += L) {
    const int64_t n = std::min<int64_t>(L, block.units - unit);
    V bias_h[G], u[std::max(U, 1)];
    for (int vector = 0; vector < U; ++vector) u[vector] = load_upto(block.unit[vector] + unit, n);
    for (int g = Cell::whole_gates; g < G; ++g) bias_h[g] = load(block.bias_h + g * block.gate + unit);
    // Positions that go from row to row: this loop is short, and index arithmetic would be half of it.
    const auto first = [&](const auto& rows) { return rows.at ? rows.at + unit : nullptr; };
    const Real<T>*gx = first(block.gx), *gh = first(block.gh), *h_prev = first(block.h_prev);
    T *out = first(block.out), *y = first(block.y), *y_copy = first(block.y_copy);
    Real<T>*h_real = first(block.h_real), *c_at = first(block.c);
    Real<T>*saved_s = first(block.saved_s), *saved_c = first(block.saved_c);
    const auto compute = [&](auto count) __attribute__((always_inline)) {
      constexpr int N = decltype(count)::value;
      V s[N][std::max(Cell::saved, 1)], c[N][std::max(C, 1)];
#pragma GCC unroll 8
      for (int r = 0; r < N; ++r) {
        V x[G], h[G];
        for (int g = 0; g < G; ++g) {
          if (cells::has_split_gate<Cell>) x[g] = load(gx + g * block.gate);
          h[g] = load(gh + g * block.gate);
          if (g >= Cell::whole_gates) h[g] += bias_h[g];
        }
        for (int state = 0; state < C; ++state) {
          c[r][state] = load(c_at + state * block.c_next + r * block.c.stride);
        }
        if constexpr (cells::has_split_gate<Cell>) {
          Cell::template activate<Math>(x, h, u, s[r], c[r]);
        } else {
          Cell::template activate<Math>(h, u, s[r], c[r]);
        }
        gx += block.gx.stride;
        gh += block.gh.stride;
      }
#pragma GCC unroll 8
      for (int r = 0; r < N; ++r) {
        V h_old{}, h;
        if (Cell::reads_h) h_old = load(h_prev);
        Cell::template output<Math>(s[r], u, h_old, c[r], h);
        store(out, h);
        if (kRounded && h_real) store(h_real, h);
        if (y) store_upto(y, h, n);
        if (y_copy) store_upto(y_copy, h, n);
        for (int state = 0; state < C; ++state) store(c_at + state * block.c_next, c[r][state]);
        for (int state = 0; saved_c && state < C; ++state) {
          store_upto(saved_c + state * block.saved_next, c[r][state], n);
        }
        if (Cell::saved > 0 && saved_s) {
          for (int saved = 0; saved < Cell::saved; ++saved) {
            store_upto(saved_s + saved * block.saved_next, s[r][saved], n);
          }
        }
        if (Cell::reads_h) h_prev += block.h_prev.stride;
        out += block.out.stride;
        h_real += block.h_real.stride;
        y += block.y.stride;
        y_copy += block.y_copy.stride;
        c_at += block.c.stride;
        saved_c += block.saved_c.stride;
        saved_s += block.saved_s.stride;
      }
    };
    using tuning::kCellRows;  // all their gates, then all their outputs
    int64_t b = 0;
    for (; b + kCellRows <= block.rows; b += kCellRows) compute(std::integral_constant<int, kCellRows>{});
    for (; b < block.rows; ++b) compute(std::integral_constant<int, 1>{});
  }
}

// Gate gradients, and what reaches the step before past the product.
template <class Cell, class T>
void cell_backward(const BackwardBlock<T>& given) {
  const BackwardBlock<T> block = given;
  using V = Vector<Real<T>>;
  using Math = VectorMath<Real<T>>;
  constexpr int G = Cell::gates, C = Cell::cell_states, U = Cell::unit_vectors, L = kLanes<Real<T>>;
  for (int64_t b = 0; b < block.rows; ++b) {
    for (int64_t unit = 0; unit < block.units; unit += L) {
      const int64_t n = std::min<int64_t>(L, block.units - unit);
      const auto at = [&](const auto& rows)
                          __attribute__((always_inline)) { return rows.at + b * rows.stride + unit; };
      V dh{};
      if (block.dh.at) dh = load(at(block.dh));
      if (b < block.multiplied) dh += load(at(block.product));
      if (block.dy.at) dh += load_upto(at(block.dy), n);
      V s[std::max(Cell::saved, 1)], u[std::max(U, 1)], dgx[G], dgh[G], du[std::max(U, 1)];
      V h_prev{}, h{}, c_prev[std::max(C, 1)], c[std::max(C, 1)], dc[std::max(C, 1)], dh_prev{};
      for (int vector = 0; vector < U; ++vector) u[vector] = load_upto(block.unit[vector] + unit, n);
      for (int saved = 0; saved < Cell::saved; ++saved) {
        s[saved] = load_upto(at(block.s) + saved * block.saved_next, n);
      }
      if (Cell::saved == 0 && block.h.at) h = load_upto(at(block.h), n);
      if (Cell::reads_h && block.h_prev.at) h_prev = load_upto(at(block.h_prev), n);
      for (int state = 0; state < C; ++state) {
        c[state] = load_upto(at(block.c) + state * block.saved_next, n);
        if (block.c_prev.at) {
          c_prev[state] = load_upto(at(block.c_prev) + state * block.saved_next, n);
        } else {
          c_prev[state] = block.c_0[state].at ? load_upto(at(block.c_0[state]), n) : V{};
        }
        dc[state] = load(at(block.dc) + state * block.c_next);
      }
      Cell::template backward<Math>(s, u, h_prev, h, c_prev, c, dh, dc, dgx, dgh, du, dh_prev);
      for (int state = 0; state < C; ++state) store(at(block.dc) + state * block.c_next, dc[state]);
      if constexpr (Cell::projects) {
        if (block.m.at) {
          V m;
          Cell::template output<Math>(s, u, h_prev, c, m);
          store_upto(at(block.m), m, n);
        }
      }
      for (int vector = 0; vector < U; ++vector) {
        store_upto(at(block.du) + vector * block.gate, du[vector], n);
      }
      for (int g = 0; g < G; ++g) {
        store_upto(at(block.dgx) + g * block.gate, dgx[g], n);
        if (cells::has_split_gate<Cell>) store_upto(at(block.dgh) + g * block.gate, dgh[g], n);
      }
      if (block.dh.at) store(at(block.dh), dh_prev);
    }
  }
}

template <class Cell, class T>
constexpr CellFunctions<T> kCellFunctions = {cell_forward<Cell, T>, cell_backward<Cell, T>};

}  // namespace fastrnn::cpu::FASTRNN_ISA
