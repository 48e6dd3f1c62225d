#pragma once

#include <cmath>

#include "cuda/stepwise/step.h"

// The kernels of a cell that is normalised, and sums over rows of numbers for them. Such a sum has two parts, in a
// fixed order. First each of kRowLanes threads adds up every kRowLanes-th number of the row. Then every thread that
// needs the sum adds up what these have found.

namespace fastrnn::cuda {

constexpr int kRowLanes = 32;

// The numbers of a row that a lane has.
FASTRNN_INLINE int64_t numbers_of_lane(int64_t lane, int64_t width) {
  return (width - lane + kRowLanes - 1) / kRowLanes;
}

// Two sums of each row, for (d, b, lane).
template <class V>
struct RowSums {
  StepRows step[2];
  int64_t B, width;
  int D;
  const V* terms;  // [2, D, B, width]
  V* sums;         // [D, B, 2, kRowLanes]

  FASTRNN_INLINE void operator()(int64_t d, int64_t b, int64_t lane) const {
    if (b >= step[d].n) return;
    for (int which = 0; which < 2; ++which) {
      V sum = 0;
      const V* row = terms + ((which * D + d) * B + b) * width;
      for (int64_t i = lane; i < width; i += kRowLanes) sum += row[i];
      sums[((d * B + b) * 2 + which) * kRowLanes + lane] = sum;
    }
  }
};
// The mean of `width` numbers, of which the lanes have these sums.
template <class V>
FASTRNN_INLINE V mean_of(const V* sums, int64_t width) {
  V sum = 0;
  for (int lane = 0; lane < kRowLanes; ++lane) sum += sums[lane];
  return sum / static_cast<V>(width);
}

// Mean, and sum of squared deviations from it, of each lane's numbers in a row, for (d, row, lane).
template <class V>
struct RowMoments {
  StepRows step[2];  // n rows of each direction
  int64_t rows, width, stride;
  const V* from;  // [D, rows], of `width` numbers each, `stride` apart
  V* moments;     // [D, rows, 2, kRowLanes]

  FASTRNN_INLINE void operator()(int64_t d, int64_t row, int64_t lane) const {
    if (row >= step[d].n) return;
    const V* numbers = from + (d * rows + row) * stride;
    V sum = 0, squares = 0;
    for (int64_t i = lane; i < width; i += kRowLanes) sum += numbers[i];
    const V mean = lane < width ? sum / static_cast<V>(numbers_of_lane(lane, width)) : V(0);
    for (int64_t i = lane; i < width; i += kRowLanes) squares += (numbers[i] - mean) * (numbers[i] - mean);
    V* to = moments + (d * rows + row) * 2 * kRowLanes + lane;
    to[0] = mean;
    to[kRowLanes] = squares;
  }
};
// Mean and 1 / standard deviation of a row, as torch.nn.LayerNorm's.
template <class V>
struct Moments {
  V mean, scale;

  // of_lanes [2, kRowLanes]: what RowMoments found of a row of `width` numbers.
  FASTRNN_INLINE Moments(const V* of_lanes, int64_t width) {
    const int lanes = width < kRowLanes ? static_cast<int>(width) : kRowLanes;
    V sum = 0, squares = 0;
    for (int lane = 0; lane < lanes; ++lane) {
      sum += static_cast<V>(numbers_of_lane(lane, width)) * of_lanes[lane];
    }
    mean = sum / static_cast<V>(width);
    for (int lane = 0; lane < lanes; ++lane) {
      const V deviation = of_lanes[lane] - mean;
      squares +=
          of_lanes[kRowLanes + lane] + static_cast<V>(numbers_of_lane(lane, width)) * deviation * deviation;
    }
    scale = 1 / std::sqrt(squares / static_cast<V>(width) + static_cast<V>(cells::kNormEps));
  }
  FASTRNN_INLINE V normalise(V number) const { return (number - mean) * scale; }
};

// A step of the cell, for (d, b, unit), once the product's moments are known. If it has a state c, this computes c'.
template <class Cell, class T>
struct NormalisedForward : ForwardStep<Cell, T> {
  using Step = ForwardStep<Cell, T>;
  using Step::C, Step::G, Step::U;
  using typename Step::V;
  using Inner = typename Cell::Inner;

  const V* moments;  // [D, B, 2, kRowLanes], of the product
  V* c_computed;     // [C, D, B, H]
  V* kept;           // [Inner's S, D, B, H], for NormalisedOutput

  FASTRNN_INLINE void operator()(int64_t d, int64_t b, int64_t unit) const {
    if (!this->has(d, b)) return;
    const int64_t i = this->state(d, b, unit), H = this->H, all = this->all_states();
    const Moments<V> of_product(moments + (d * this->B + b) * 2 * kRowLanes, G * H);
    V u[U], x[G], h[G], a[G], s[Inner::saved], c[C + 1];
    this->load_unit_vectors(d, unit, u);
    for (int g = 0; g < G; ++g) {
      const V product = this->gh[this->gate(d, b, unit, g)];
      if (this->s) this->s[this->saved(d, b, unit, Cell::saved) + (Inner::saved + g) * H] = product;
      x[g] = this->x_share(d, b, unit, g);
      h[g] = of_product.normalise(product) * u[g];
      a[g] = x[g] + h[g];
    }
    for (int k = 0; k < C; ++k) c[k] = this->c[k * all + i];
    if constexpr (cells::has_split_gate<Inner>) {
      Inner::template activate<Activations>(x, h, u + G, s, c);
    } else {
      Inner::template activate<Activations>(a, u + G, s, c);
    }
    if constexpr (C == 0) {
      V h_prev{}, output;
      if constexpr (Cell::reads_h) h_prev = this->h_prev(d, b, unit);
      Inner::template output<Activations>(s, u + G, h_prev, c, output);
      this->finish(d, b, unit, s, c, output);
    } else {
      for (int k = 0; k < C; ++k) c_computed[k * all + i] = c[k];
      for (int k = 0; k < Inner::saved; ++k) kept[k * all + i] = s[k];
    }
  }
};

// What is left of it, once the moments of c' are known.
template <class Cell, class T>
struct NormalisedOutput : ForwardStep<Cell, T> {
  using Step = ForwardStep<Cell, T>;
  using Step::G, Step::U;
  using typename Step::V;
  using Inner = typename Cell::Inner;

  const V* moments_c;   // [D, B, 2, kRowLanes]
  const V* c_computed;  // [D, B, H]
  const V* kept;        // [Inner's S, D, B, H]

  FASTRNN_INLINE void operator()(int64_t d, int64_t b, int64_t unit) const {
    if (!this->has(d, b)) return;
    const int64_t i = this->state(d, b, unit);
    const Moments<V> of_c(moments_c + (d * this->B + b) * 2 * kRowLanes, this->H);
    V u[U], s[Inner::saved], h_prev{}, h;
    this->load_unit_vectors(d, unit, u);
    for (int k = 0; k < Inner::saved; ++k) s[k] = kept[k * this->all_states() + i];
    const V c = c_computed[i], normalised = of_c.normalise(c) * u[G] + u[G + 1];
    if constexpr (Cell::reads_h) h_prev = this->h_prev(d, b, unit);
    Inner::template output<Activations>(s, u, h_prev, &normalised, h);
    this->finish(d, b, unit, s, &c, h);
  }
};

// What the normalisation of a row passes on of a gradient. The derivative of n = (v - mean) / deviation is that of v
// less its share in both moments. So of d, the gradient of n, it is scale (d - mean(d) - n mean(d n)).
template <class V>
struct NormalisedGradient {
  V scale, mean, mean_n;

  FASTRNN_INLINE V operator()(V n, V gradient) const { return scale * (gradient - mean - n * mean_n); }
};

// A step of the backward. All moments are known, in the order of the saved rows. The sums over a row of gradients are
// those of the terms that the kernel before leaves.
template <class Cell, class T>
struct NormalisedStep : BackwardStep<Cell, T> {
  using Step = BackwardStep<Cell, T>;
  using Step::G;
  using typename Step::V;
  using Inner = typename Cell::Inner;

  const V* moments;    // [D, R, 2, kRowLanes], of the product
  const V* moments_c;  // [D, R, 2, kRowLanes]
  const V* sums;       // [D, B, 2, kRowLanes], of the terms that the kernel before left
  V* terms;            // [2, D, B, GH or H]

  FASTRNN_INLINE Moments<V> moments_of(const V* of_rows, int64_t d, int64_t b, int64_t width) const {
    return {of_rows + (d * this->R + this->row(d, b)) * 2 * kRowLanes, width};
  }
  FASTRNN_INLINE NormalisedGradient<V> gradient_of(const Moments<V>& of_row, int64_t d, int64_t b,
                                                   int64_t width) const {
    const V* of_lanes = sums + (d * this->B + b) * 2 * kRowLanes;
    return {of_row.scale, mean_of(of_lanes, width), mean_of(of_lanes + kRowLanes, width)};
  }
  FASTRNN_INLINE V product(const Moments<V>& of_product, int64_t d, int64_t b, int64_t unit, int g) const {
    return of_product.normalise(this->s[this->saved(d, b, unit, Cell::saved) + (Inner::saved + g) * this->H]);
  }
  // Writes the gate gradients of the output; returns the gradient of the c that the output is computed from.
  FASTRNN_INLINE V through_output(int64_t d, int64_t unit, V c, const V* s, V dh, V* gx) const {
    const T *gain = this->weights[d].unit[G], *bias = this->weights[d].unit[G + 1];
    V dc;
    Inner::template backward_output<Activations>(s, c * to_real(gain[unit]) + to_real(bias[unit]), dh, gx,
                                                 dc);
    return dc;
  }
};

// With a state c: the gradients of its gain and bias, for (d, b, unit).
template <class Cell, class T>
struct OutputBackward : NormalisedStep<Cell, T> {
  using Step = NormalisedStep<Cell, T>;
  using Step::G;
  using typename Step::V, typename Step::Inner;

  FASTRNN_INLINE void operator()(int64_t d, int64_t b, int64_t unit) const {
    if (!this->has(d, b)) return;
    const int64_t i = this->state(d, b, unit);
    V s[Inner::saved], gx[G], dh = this->gradient_of_h(d, b, unit);
    this->take_kept(d, b, unit, 0, dh);
    this->load_activations(d, b, unit, s);
    const V c = this->moments_of(this->moments_c, d, b, this->H).normalise(this->c_computed(d, b, unit, 0));
    const V dc = this->through_output(d, unit, c, s, dh, gx);
    this->store_du(d, b, unit, G, dc * c);
    this->store_du(d, b, unit, G + 1, dc);
    const V term = dc * to_real(this->weights[d].unit[G][unit]);
    this->terms[i] = term;
    this->terms[this->all_states() + i] = term * c;
  }
};

// The gradients of the gates and of the gains of the product, for (d, b, unit).
template <class Cell, class T>
struct NormalisedBackward : NormalisedStep<Cell, T> {
  using Step = NormalisedStep<Cell, T>;
  using Step::C, Step::G;
  using typename Step::V, typename Step::Inner;

  FASTRNN_INLINE void operator()(int64_t d, int64_t b, int64_t unit) const {
    if (!this->has(d, b)) return;
    const int64_t i = this->state(d, b, unit), H = this->H;
    const Moments<V> of_product = this->moments_of(this->moments, d, b, G * H);
    V s[Inner::saved], gx[G], gh[G], dh_prev{}, dh = this->gradient_of_h(d, b, unit);
    const V kept_dh = this->take_kept(d, b, unit, 0, dh);
    this->load_activations(d, b, unit, s);
    if constexpr (C > 0) {
      const Moments<V> of_c = this->moments_of(this->moments_c, d, b, H);
      const V c = of_c.normalise(this->c_computed(d, b, unit, 0));
      const V of_normalised = this->through_output(d, unit, c, s, dh, gx);
      V dc = this->dc[i];
      const V kept_dc = this->take_kept(d, b, unit, 1, dc);
      dc += this->gradient_of(of_c, d, b, H)(c, of_normalised * to_real(this->weights[d].unit[G][unit]));
      Inner::template backward_gates<Activations>(s, this->c_prev(d, b, unit, 0), dc, gx);
      this->dc[i] = dc + kept_dc;
    } else {
      V none{}, h_prev{};
      const V* const no_states = nullptr;
      if constexpr (Cell::reads_h) h_prev = this->h_prev(d, b, unit);
      Inner::template backward<Activations>(s, no_states, h_prev, none, no_states, no_states, dh, &none, gx,
                                            gh, &none, dh_prev);
    }
    this->dh[i] = dh_prev + kept_dh;
    for (int g = 0; g < G; ++g) {
      const V gradient = cells::has_split_gate<Inner> ? gh[g] : gx[g];
      const V product = this->product(of_product, d, b, unit, g);
      this->store_dgx(d, b, unit, g, gx[g]);
      this->store_du(d, b, unit, g, gradient * product);
      const V term = gradient * to_real(this->weights[d].unit[g][unit]);
      this->terms[this->gate(d, b, unit, g)] = term;
      this->terms[G * this->all_states() + this->gate(d, b, unit, g)] = term * product;
    }
  }
};

// The gradients of the product, for (d, b, unit).
template <class Cell, class T>
struct ProductBackward : NormalisedStep<Cell, T> {
  using Step = NormalisedStep<Cell, T>;
  using Step::G;
  using typename Step::V;

  FASTRNN_INLINE void operator()(int64_t d, int64_t b, int64_t unit) const {
    if (!this->has(d, b)) return;
    const int64_t width = G * this->H;
    const Moments<V> of_product = this->moments_of(this->moments, d, b, width);
    const NormalisedGradient<V> pass = this->gradient_of(of_product, d, b, width);
    for (int g = 0; g < G; ++g) {
      const V product = this->product(of_product, d, b, unit, g);
      const V gradient = this->terms[this->gate(d, b, unit, g)];
      this->store_dgh(d, b, unit, g, pass(product, gradient));
    }
  }
};

}  // namespace fastrnn::cuda
