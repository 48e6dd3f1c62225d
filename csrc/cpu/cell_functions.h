#pragma once

// The functions of a cell over a block, in vectors of units.

#include <algorithm>
#include <cmath>
#include <type_traits>

#include "cells/cell.h"
#include "cpu/cell_block.h"
#include "cpu/gemm/math.h"
#include "cpu/gemm/simd.h"
#include "cpu/tuning.h"

namespace fastrnn::cpu::FASTRNN_ISA {

// Where the numbers of sequence b stand, from `unit` on.
template <class S>
FASTRNN_INLINE S* place(const RowsAt<S>& rows, int64_t b, int64_t unit) {
  return rows.at + b * rows.stride + unit;
}

// Calls f(b, unit, n) for each sequence of a block and each vector of its units, of which n are there.
template <class T, class F>
FASTRNN_INLINE void for_each_vector(const Block<T>& block, const F& f) {
  constexpr int L = kLanes<Real<T>>;
  for (int64_t b = 0; b < block.rows; ++b) {
    for (int64_t unit = 0; unit < block.units; unit += L) {
      f(b, unit, std::min<int64_t>(L, block.units - unit));
    }
  }
}

// The first `count` of the numbers that the forward saved of each unit.
template <class T>
FASTRNN_INLINE void load_saved(const BackwardBlock<T>& block, int64_t b, int64_t unit, int64_t n, int count,
                               Vector<Real<T>>* s) {
  for (int saved = 0; saved < count; ++saved) {
    s[saved] = load_upto(place(block.s, b, unit) + saved * block.saved_next, n);
  }
}

// dh of the cell's output, once all of it has come.
template <class T>
FASTRNN_INLINE Vector<Real<T>> load_gradient(const BackwardBlock<T>& block, int64_t b, int64_t unit,
                                             int64_t n) {
  Vector<Real<T>> dh{};
  if (block.dh.at) dh = load(place(block.dh, b, unit));
  if (b < block.multiplied) dh += load(place(block.product, b, unit));
  if (block.dy.at) dh += load_upto(place(block.dy, b, unit), n);
  return dh;
}

// h, wherever it is wanted, and what the backward needs of the unit, the first `count` numbers.
template <class T>
FASTRNN_INLINE void store_results(const ForwardBlock<T>& block, int64_t b, int64_t unit, int64_t n,
                                  Vector<Real<T>> h, const Vector<Real<T>>* s, int count) {
  if (block.out.at) store(place(block.out, b, unit), h);
  if (block.h_real.at) store(place(block.h_real, b, unit), h);
  if (block.y.at) store_upto(place(block.y, b, unit), h, n);
  if (block.y_copy.at) store_upto(place(block.y_copy, b, unit), h, n);
  for (int saved = 0; block.saved_s.at && saved < count; ++saved) {
    store_upto(place(block.saved_s, b, unit) + saved * block.saved_next, s[saved], n);
  }
}

template <class Cell, class T>
void cell_forward(const ForwardBlock<T>& given) {
  const ForwardBlock<T> block = given;  // of which the compiler knows that no store changes it
  using V = Vector<Real<T>>;
  using Math = VectorMath<Real<T>>;
  constexpr int G = Cell::gates, C = Cell::cell_states, U = Cell::unit_vectors, L = kLanes<Real<T>>;
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
        if (out) store(out, h);
        if (h_real) store(h_real, h);
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
      const auto at = [&](const auto& rows) __attribute__((always_inline)) { return place(rows, b, unit); };
      const V dh = load_gradient(block, b, unit, n);
      V s[std::max(Cell::saved, 1)], u[std::max(U, 1)], dgx[G], dgh[G], du[std::max(U, 1)];
      V h_prev{}, h{}, c_prev[std::max(C, 1)], c[std::max(C, 1)], dc[std::max(C, 1)], dh_prev{};
      for (int vector = 0; vector < U; ++vector) u[vector] = load_upto(block.unit[vector] + unit, n);
      load_saved(block, b, unit, n, Cell::saved, s);
      if (Cell::saved == 0 && block.h.at) h = load_upto(at(block.h), n);
      if (Cell::saved == 0 && block.h_computed.at) h = load_upto(at(block.h_computed), n);
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

// ---- a cell with late gates ----

// The first part: v, and what the second one needs.
template <class Cell, class T>
void early_cell_forward(const ForwardBlock<T>& given) {
  const ForwardBlock<T> block = given;
  using V = Vector<Real<T>>;
  for_each_vector(block, [&](int64_t b, int64_t unit, int64_t) __attribute__((always_inline)) {
    V a[Cell::gates - Cell::late_gates], s[Cell::saved], v;
    for (int g = 0; g < Cell::gates - Cell::late_gates; ++g) {
      a[g] = load(place(block.gh, b, unit) + g * block.gate);
    }
    Cell::template activate<VectorMath<Real<T>>>(a, load(place(block.h_prev, b, unit)), s, v);
    for (int saved = 0; saved < Cell::saved; ++saved) {
      store(place(block.kept, b, unit) + saved * block.c_next, s[saved]);
    }
    store(place(block.v, b, unit), v);
  });
}

template <class Cell, class T>
void late_cell_forward(const ForwardBlock<T>& given) {
  const ForwardBlock<T> block = given;
  using V = Vector<Real<T>>;
  for_each_vector(block, [&](int64_t b, int64_t unit, int64_t n) __attribute__((always_inline)) {
    V a[Cell::late_gates], s[Cell::saved], h;
    for (int g = 0; g < Cell::late_gates; ++g) a[g] = load(place(block.gh, b, unit) + g * block.gate);
    for (int saved = 0; saved < Cell::saved; ++saved) {
      s[saved] = load(place(block.kept, b, unit) + saved * block.c_next);
    }
    Cell::template output<VectorMath<Real<T>>>(a, load(place(block.h_prev, b, unit)), s, h);
    store_results(block, b, unit, n, h, s, Cell::saved);
  });
}

// The gradients of the gates that the second part is computed from.
template <class Cell, class T>
void late_cell_backward(const BackwardBlock<T>& given) {
  const BackwardBlock<T> block = given;
  using V = Vector<Real<T>>;
  for_each_vector(block, [&](int64_t b, int64_t unit, int64_t n) __attribute__((always_inline)) {
    V s[Cell::saved], dgx[Cell::gates] = {}, dh_prev{};
    load_saved(block, b, unit, n, Cell::saved, s);
    Cell::template backward_output<VectorMath<Real<T>>>(s, load_upto(place(block.h_prev, b, unit), n),
                                                        load_gradient(block, b, unit, n), dgx, dh_prev);
    for (int g = 0; g < Cell::gates; ++g) {
      store_upto(place(block.dgx, b, unit) + g * block.gate, dgx[g], n);
    }
    store(place(block.dh, b, unit), dh_prev);
  });
}

// Those of the others, of the gradient of v; v again for dW_hh.
template <class Cell, class T>
void early_cell_backward(const BackwardBlock<T>& given) {
  const BackwardBlock<T> block = given;
  using V = Vector<Real<T>>;
  for_each_vector(block, [&](int64_t b, int64_t unit, int64_t n) __attribute__((always_inline)) {
    V s[Cell::saved], dgx[Cell::gates], dh_prev = load(place(block.dh, b, unit)), v;
    load_saved(block, b, unit, n, Cell::saved, s);
    T* const of_gates = place(block.dgx, b, unit);
    for (int g = 0; g < Cell::gates; ++g) dgx[g] = load_upto(of_gates + g * block.gate, n);
    Cell::template backward_activate<VectorMath<Real<T>>>(
        s, load_upto(place(block.h_prev, b, unit), n), load(place(block.product, b, unit)), dgx, dh_prev, v);
    for (int g = 0; g < Cell::gates - Cell::late_gates; ++g) {
      store_upto(of_gates + g * block.gate, dgx[g], n);
    }
    store_upto(place(block.m, b, unit), v, n);
    store(place(block.dh, b, unit), dh_prev);
  });
}

// ---- a cell that is normalised ----

// The first n lanes, zeros in the others.
template <class V>
FASTRNN_INLINE V first_lanes(V v, int64_t n) {
  constexpr int64_t lanes = sizeof(V) / sizeof(v[0]);
  if (n >= lanes) return v;
  for (int64_t lane = n; lane < lanes; ++lane) v[lane] = 0;
  return v;
}

// The mean of `count` numbers that were added up in the lanes of `rows` vectors.
template <class T, int rows>
FASTRNN_INLINE Real<T> mean_of(const Vector<Real<T>> (&sums)[rows], int64_t count) {
  Vector<Real<T>> sum = sums[0];
  for (int row = 1; row < rows; ++row) sum += sums[row];
  Real<T> lanes[kLanes<Real<T>>];
  store(lanes, sum);
  for (int half = kLanes<Real<T>> / 2; half > 0; half /= 2) {
    for (int lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
  }
  return lanes[0] / static_cast<Real<T>>(count);
}

// Mean and 1 / standard deviation of numbers, as torch.nn.LayerNorm's.
template <class T>
struct Moments {
  using V = Vector<Real<T>>;
  Real<T> mean, scale;

  V normalise(V v) const { return (v - mean) * scale; }
};

// Of rows of H numbers. for_each(f) calls f(row, v, n) for each row's vectors, of n numbers each, in the order of
// the units. A sum for each row, as one alone would wait for each addition.
template <class T, int rows, class ForEach>
FASTRNN_INLINE Moments<T> moments_of(int64_t H, const ForEach& for_each) {
  using V = Vector<Real<T>>;
  V sums[rows] = {}, squares[rows] = {};
  for_each([&](int row, V v, int64_t) __attribute__((always_inline)) { sums[row] += v; });
  const Real<T> mean = mean_of<T>(sums, rows * H);
  for_each([&](int row, V v, int64_t n) __attribute__((always_inline)) {
    const V deviation = first_lanes(v - mean, n);
    squares[row] += deviation * deviation;
  });
  const Real<T> variance = mean_of<T>(squares, rows * H);
  return {mean, 1 / std::sqrt(variance + static_cast<Real<T>>(cells::kNormEps))};
}
template <class T, int rows>
FASTRNN_INLINE Moments<T> moments_of_rows(const Real<T>* first, int64_t stride, int64_t H) {
  constexpr int L = kLanes<Real<T>>;
  return moments_of<T, rows>(H, [&](const auto& f) __attribute__((always_inline)) {
    for (int64_t i = 0; i < H; i += L) {
      for (int row = 0; row < rows; ++row) f(row, load_upto(first + row * stride + i, H - i), H - i);
    }
  });
}

template <class Cell, class T>
void normalised_cell_forward(const ForwardBlock<T>& given) {
  const ForwardBlock<T> block = given;
  using V = Vector<Real<T>>;
  using Math = VectorMath<Real<T>>;
  using Inner = typename Cell::Inner;
  constexpr int G = Cell::gates, C = Cell::cell_states, U = Cell::unit_vectors, L = kLanes<Real<T>>;
  const int64_t H = block.units;
  const Moments<T> of_product = moments_of<T, G>(H, [&](const auto& f) __attribute__((always_inline)) {
    for (int64_t first = 0; first < H; first += block.panel_units) {
      const int64_t size = std::min(block.panel_units, H - first);
      const Real<T>* gh = block.gh.at + first * G;
      for (int64_t j = 0; j < size; j += L) {
        for (int g = 0; g < G; ++g) f(g, load_upto(gh + g * size + j, size - j), size - j);
      }
    }
  });
  const auto finish = [&](int64_t unit, int64_t n, const V* u, V* s, const V* c)
                          __attribute__((always_inline)) {
                            V h_prev{}, h;
                            if (Cell::reads_h) h_prev = load(block.h_prev.at + unit);
                            Inner::template output<Math>(s, u, h_prev, c, h);
                            store_results(block, 0, unit, n, h, s, Inner::saved);
                          };
  for (int64_t first = 0; first < H; first += block.panel_units) {
    const int64_t size = std::min(block.panel_units, H - first);
    const Real<T>*gx = block.gx.at + first * G, *gh = block.gh.at + first * G;
    for (int64_t j = 0; j < size; j += L) {
      const int64_t n = std::min<int64_t>(L, size - j), unit = first + j;
      V x[G], h[G], a[G], u[U], s[Inner::saved], c[std::max(C, 1)];
      for (int vector = 0; vector < U; ++vector) u[vector] = load_upto(block.unit[vector] + unit, n);
      for (int g = 0; g < G; ++g) {
        const V product = load_upto(gh + g * size + j, n);
        if (block.saved_s.at) {
          store_upto(block.saved_s.at + (Inner::saved + g) * block.saved_next + unit, product, n);
        }
        x[g] = load_upto(gx + g * size + j, n);
        h[g] = of_product.normalise(product) * u[g];
        a[g] = x[g] + h[g];
      }
      for (int state = 0; state < C; ++state) c[state] = load(block.c.at + state * block.c_next + unit);
      if constexpr (cells::has_split_gate<Inner>) {
        Inner::template activate<Math>(x, h, u + G, s, c);
      } else {
        Inner::template activate<Math>(a, u + G, s, c);
      }
      if (C == 0) {
        finish(unit, n, u, s, c);
        continue;
      }
      for (int state = 0; state < C; ++state) {
        store(block.c.at + state * block.c_next + unit, c[state]);
        if (block.saved_c.at) store_upto(block.saved_c.at + state * block.saved_next + unit, c[state], n);
      }
      for (int saved = 0; saved < Inner::saved; ++saved) {
        store(block.kept.at + saved * block.c_next + unit, s[saved]);
      }
    }
  }
  if constexpr (C > 0) {
    const Moments<T> of_c = moments_of_rows<T, 1>(block.c.at, 0, H);
    for (int64_t unit = 0; unit < H; unit += L) {
      const int64_t n = std::min<int64_t>(L, H - unit);
      V s[Inner::saved];
      for (int saved = 0; saved < Inner::saved; ++saved) {
        s[saved] = load(block.kept.at + saved * block.c_next + unit);
      }
      const V gain = load_upto(block.unit[G] + unit, n), bias = load_upto(block.unit[G + 1] + unit, n);
      const V c = of_c.normalise(load(block.c.at + unit)) * gain + bias;
      finish(unit, n, nullptr, s, &c);
    }
  }
}

template <class Cell, class T>
void normalised_cell_backward(const BackwardBlock<T>& given) {
  const BackwardBlock<T> block = given;
  using V = Vector<Real<T>>;
  using Math = VectorMath<Real<T>>;
  using Inner = typename Cell::Inner;
  constexpr int G = Cell::gates, C = Cell::cell_states, L = kLanes<Real<T>>;
  const int64_t H = block.units;
  for (int64_t b = 0; b < block.rows; ++b) {
    const auto at = [&](const auto& rows, int64_t unit)
                        __attribute__((always_inline)) { return place(rows, b, unit); };
    // The derivative of (v - mean) / deviation is that of v less its share in both moments.
    Real<T> mean_w = 0, mean_w_c = 0;
    const auto normalised_c = [&](const Moments<T>& of_c, int64_t unit, int64_t n) {
      return of_c.normalise(load_upto(at(block.c, unit), n));
    };
    const Moments<T> of_product =
        moments_of_rows<T, G>(at(block.s, 0) + Inner::saved * block.saved_next, block.saved_next, H);
    const Moments<T> of_c = C > 0 ? moments_of_rows<T, 1>(at(block.c, 0), 0, H) : of_product;
    // dc of what is normalised: the gradient that the output passes to it.
    const auto through_output = [&](int64_t unit, int64_t n, V* s, V* dgx) __attribute__((always_inline)) {
      load_saved(block, b, unit, n, Inner::saved, s);
      V dc{};
      if constexpr (C > 0) {
        const V gain = load_upto(block.unit[G] + unit, n), bias = load_upto(block.unit[G + 1] + unit, n);
        const V c = normalised_c(of_c, unit, n) * gain + bias;
        Inner::template backward_output<Math>(s, c, load_upto(at(block.dh, unit), n), dgx, dc);
      }
      return dc;
    };
    if constexpr (C > 0) {
      V sum[1] = {}, sum_c[1] = {};
      for (int64_t unit = 0; unit < H; unit += L) {
        const int64_t n = std::min<int64_t>(L, H - unit);
        V s[Inner::saved], dgx[G];
        const V dc = through_output(unit, n, s, dgx), c = normalised_c(of_c, unit, n);
        store_upto(at(block.du, unit) + G * block.gate, dc * c, n);
        store_upto(at(block.du, unit) + (G + 1) * block.gate, dc, n);
        const V w = dc * load_upto(block.unit[G] + unit, n);
        sum[0] += w;
        sum_c[0] += w * c;
      }
      mean_w = mean_of<T>(sum, H);
      mean_w_c = mean_of<T>(sum_c, H);
    }

    V sums[G] = {}, sums_product[G] = {};
    for (int64_t unit = 0; unit < H; unit += L) {
      const int64_t n = std::min<int64_t>(L, H - unit);
      V s[Inner::saved], dgx[G], dgh[G], dh_prev{};
      V dc = through_output(unit, n, s, dgx);
      if constexpr (C > 0) {
        const V c = normalised_c(of_c, unit, n), gain = load_upto(block.unit[G] + unit, n);
        V c_prev{};
        if (block.c_prev.at) {
          c_prev = load_upto(at(block.c_prev, unit), n);
        } else if (block.c_0[0].at) {
          c_prev = load_upto(at(block.c_0[0], unit), n);
        }
        V dc_total = load_upto(at(block.dc, unit), n) + of_c.scale * (dc * gain - mean_w - c * mean_w_c);
        Inner::template backward_gates<Math>(s, c_prev, dc_total, dgx);
        store(at(block.dc, unit), dc_total);
      } else {
        V none{};
        const V* const no_states = nullptr;
        const V h_prev = Cell::reads_h ? load_upto(at(block.h_prev, unit), n) : V{};
        Inner::template backward<Math>(s, no_states, h_prev, none, no_states, no_states,
                                       load_upto(at(block.dh, unit), n), &none, dgx, dgh, &none, dh_prev);
      }
      store(at(block.dh, unit), dh_prev);
      for (int g = 0; g < G; ++g) {
        const V d = cells::has_split_gate<Inner> ? dgh[g] : dgx[g];
        const V product =
            of_product.normalise(load_upto(at(block.s, unit) + (Inner::saved + g) * block.saved_next, n));
        store_upto(at(block.dgx, unit) + g * block.gate, dgx[g], n);
        store_upto(at(block.du, unit) + g * block.gate, d * product, n);
        const V e = d * load_upto(block.unit[g] + unit, n);
        store(at(block.scratch, unit) + g * block.c_next, e);
        sums[g] += e;
        sums_product[g] += e * product;
      }
    }
    const Real<T> mean_e = mean_of<T>(sums, G * H), mean_e_product = mean_of<T>(sums_product, G * H);
    for (int64_t unit = 0; unit < H; unit += L) {
      const int64_t n = std::min<int64_t>(L, H - unit);
      for (int g = 0; g < G; ++g) {
        const V product =
            of_product.normalise(load_upto(at(block.s, unit) + (Inner::saved + g) * block.saved_next, n));
        const V e = load(at(block.scratch, unit) + g * block.c_next);
        store_upto(at(block.dgh, unit) + g * block.gate,
                   of_product.scale * (e - mean_e - product * mean_e_product), n);
      }
    }
  }
}

template <class Cell, class T>
constexpr CellFunctions<T> functions_of() {
  if constexpr (!kHasOwnCode<T>) {
    return {};
  } else if constexpr (Cell::late_gates > 0) {
    return {late_cell_forward<Cell, T>, late_cell_backward<Cell, T>, early_cell_forward<Cell, T>,
            early_cell_backward<Cell, T>};
  } else if constexpr (Cell::normalised) {
    return {normalised_cell_forward<Cell, T>, normalised_cell_backward<Cell, T>};
  } else {
    return {cell_forward<Cell, T>, cell_backward<Cell, T>};
  }
}
template <class Cell, class T>
constexpr CellFunctions<T> kCellFunctions = functions_of<Cell, T>();

}  // namespace fastrnn::cpu::FASTRNN_ISA
