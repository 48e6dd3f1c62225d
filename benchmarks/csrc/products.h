#pragma once

// The products of an LSTM layer, as the layer computes them on one thread, and the peak of the multiply-adds.

#include <algorithm>
#include <cstdlib>
#include <string>
#include <vector>

#include "cells/registry.h"
#include "cpu/gemm/gemm.h"
#include "cpu/gemm/gemv.h"
#include "cpu/weight_gradients.h"
#include "harness.h"
#include "numbers.h"

namespace benchmarks {

// ---- the peak: multiply-adds of registers ----

constexpr int kSums = 12;  // independent of each other, to cover the latency

// Hides from the compiler that a register keeps its value: it would compute the product once.
template <class V>
FASTRNN_INLINE void hide(V& v) {
#if defined(__x86_64__)
  asm volatile("" : "+v"(v));
#elif defined(__aarch64__)
  asm volatile("" : "+w"(v));
#else
  asm volatile("" : "+m"(v));
#endif
}

template <class T>
__attribute__((noinline)) void add_products(int64_t count, const Real<T>* factors, Real<T>* results) {
  constexpr int L = kLanes<Real<T>>;
  Vector<Real<T>> sums[kSums], a = load(factors), b = load(factors + L);
  for (int j = 0; j < kSums; ++j) sums[j] = load(results + j * L);
  for (int64_t i = 0; i < count; ++i) {
#pragma GCC unroll 12
    for (int j = 0; j < kSums; ++j) {
      hide(a);
      sums[j] = multiply_add<T>(sums[j], a, b);
    }
  }
  for (int j = 0; j < kSums; ++j) store(results + j * L, sums[j]);
}

// FLOP/s, measured and printed when it is first wanted.
template <class T>
class Peak {
 public:
  explicit Peak(const Runner& runner) : runner_(runner) {
    if (runner_.wants(name_)) value();
  }

  double value() {
    if (value_ > 0) return value_;
    constexpr int L = kLanes<Real<T>>;
    constexpr int64_t kCount = 10'000;
    constexpr double kFlops = 2.0 * kCount * kSums * L * kKPack<T>;
    const Numbers<T> factors(2 * L * kKPack<T>);
    const Numbers<Real<T>> results(kSums * L);
    const double seconds = runner_.time(
        [&] { add_products<T>(kCount, reinterpret_cast<const Real<T>*>(&factors[0]), results); });
    value_ = kFlops / seconds;
    runner_.print(name_, seconds, kFlops, value_);
    return value_;
  }

 private:
  const std::string name_ = "peak/" + dtype_name<T>();
  const Runner& runner_;
  double value_ = 0;
};

// ---- products ----

template <class T>
class Products {
  using Cell = cells::Lstm;
  static constexpr int G = Cell::gates, L = kLanes<Real<T>>;

 public:
  // H units, and as many inputs.
  Products(const Runner& runner, Peak<T>& peak, int64_t H) : runner_(runner), peak_(peak), H_(H) {}

  void run() const {
    input_product();
    for (const int64_t sequences : {1, 4, 16, 64}) recurrent_product(sequences);
    gemv();
    weight_gradients();
  }

 private:
  static constexpr int64_t kRows = 512;  // of a chunk

  std::string name(const std::string& product, int64_t rows) const {
    return product + "/" + dtype_name<T>() + "/H:" + std::to_string(H_) + "/rows:" + std::to_string(rows);
  }
  double flops(int64_t rows) const { return 2.0 * rows * G * H_ * H_; }
  PackedMatrix<T> pack(const Panels<T>& panels, const T* W, Numbers<Real<T>>& packed) const {
    PackedMatrix<T> B{panels, H_, packed};
    for (int64_t panel = 0; panel < panels.count(); ++panel) pack_transposed(B, panel, W);
    return B;
  }

  // The gates' shares from the input, for all rows of a chunk.
  void input_product() const {
    const std::string name = this->name("input_product", kRows);
    if (!runner_.wants(name)) return;
    const auto panels = make_panels<T>(H_, G, /*rows=*/16, H_, /*threads=*/1);
    const int64_t width = panels.padded_width();
    const Numbers<T> x(kRows * H_), W(G * H_ * H_);
    const Numbers<Real<T>> bias(width + L), gx(kRows * width + L);
    Numbers<Real<T>> packed(width * k_packs<T>(H_));
    const PackedMatrix<T> B = pack(panels, W, packed);
    const double seconds = runner_.time([&] {
      for (int64_t panel = 0; panel < panels.count(); ++panel) {
        const int64_t column = panels.offset(panel);
        multiply_packed<T>({.A = {.data = x, .M = kRows, .K = H_, .row_stride = H_},
                            .B = B,
                            .panel = panel,
                            .to = {gx + column, width, L, bias + column},
                            .kc = kc_of<T>(H_)});
      }
    });
    runner_.print(name, seconds, flops(kRows), peak_.value());
  }

  // A step's product with W_hh, which each step reads in the opposite order.
  void recurrent_product(int64_t sequences) const {
    const std::string name = this->name("recurrent_product", sequences);
    if (!runner_.wants(name)) return;
    const auto panels = make_panels<T>(H_, G, sequences, H_, /*threads=*/1);
    const int64_t width = panels.padded_width(), H_padded = ceil_div(H_, L) * L;
    const Numbers<T> h(sequences * H_padded), W(G * H_ * H_);
    const Numbers<Real<T>> gx(sequences * width + L), gh((kRowBlock * kPanelVectors + 1) * L);
    Numbers<Real<T>> packed(width * k_packs<T>(H_));
    const PackedMatrix<T> B = pack(panels, W, packed);
    bool descending = false;
    const double seconds = runner_.time([&] {
      for (int64_t i = 0; i < panels.count(); ++i) {
        const int64_t panel = descending ? panels.count() - 1 - i : i;
        for (int64_t row = 0; row < sequences; row += kRowBlock) {
          multiply_packed<T>(
              {.A = {.data = h + row * H_padded,
                     .M = std::min(kRowBlock, sequences - row),
                     .K = H_,
                     .row_stride = H_padded},
               .B = B,
               .panel = panel,
               .order = descending ? Order::descending : Order::ascending,
               .to = {gh, panels.width(panel), L, gx + row * width + panels.offset(panel), width},
               .kc = kc_of<T>(H_)});
        }
      }
      descending = !descending;
    });
    runner_.print(name, seconds, flops(sequences), peak_.value());
  }

  // A single step of one sequence, with W_hh where it stands.
  void gemv() const {
    const std::string name = this->name("gemv", 1);
    if (!runner_.wants(name)) return;
    const auto panels = make_panels<T>(H_, G, /*rows=*/1, H_, /*threads=*/1);
    const Numbers<T> h(H_), W(G * H_ * H_);
    const Numbers<Real<T>> gx(panels.padded_width() + L), gh(panels.padded_width() + L);
    const double seconds = runner_.time([&] {
      for (int64_t panel = 0; panel < panels.count(); ++panel) {
        const int64_t column = panels.offset(panel);
        multiply_unpacked<T>({.data = h, .M = 1, .K = H_, .row_stride = H_}, W, panels, panel,
                             {gh + column, panels.width(panel), L, gx + column});
      }
    });
    runner_.print(name, seconds, flops(1), peak_.value());
  }

  // A chunk's share of dW_ih, dW_hh and the biases, with the packing of its rows.
  void weight_gradients() const {
    const std::string name = this->name("weight_gradients", kRows);
    if (!runner_.wants(name)) return;
    const Numbers<T> dgates(kRows * G * H_), x(kRows * H_), h(kRows * H_);
    const Numbers<T> dW_ih(G * H_ * H_), dW_hh(G * H_ * H_), db_ih(G * H_), db_hh(G * H_);
    std::vector<const T*> x_rows, h_rows;
    for (int64_t k = 0; k < kRows; ++k) x_rows.push_back(x + k * H_), h_rows.push_back(h + k * H_);
    BackwardParams<T> params{};
    params.I = params.H = params.P = H_;
    params.dweights[0] = {
        .W_ih = dW_ih, .W_hh = dW_hh, .b_ih = db_ih, .b_hh = db_hh, .W_hr = nullptr, .unit = {}};
    const cpu::Resources resources{
        .threads = 1,
        .allocate = [](size_t bytes) { return aligned_alloc(tuning::kLine, bytes); },
        .release = free};
    Workspace workspace(resources);
    const ChunkBuffers<T> buffers{.dgx = dgates, .dgh = dgates, .x = x_rows.data(), .h = h_rows.data()};
    const GradientSums<T> sums(Cell::info, params, 0, buffers, kRows, /*threads=*/1, workspace);
    const double seconds = runner_.time([&] {
      for (int64_t task = 0; task < sums.packing_tasks(kRows); ++task) sums.pack(kRows, task);
      for (int64_t task = 0; task < sums.product_tasks(); ++task) sums.multiply(kRows, task, Update::add);
      for (int64_t task = 0; task < sums.vector_tasks(); ++task) sums.add_vectors(kRows, task, Update::add);
    });
    runner_.print(name, seconds, 2 * flops(kRows), peak_.value());
  }

  const Runner& runner_;
  Peak<T>& peak_;
  const int64_t H_;
};

template <class T>
void run_products(const Runner& runner) {
  Peak<T> peak(runner);
  for (const int64_t H : {64, 256, 1024}) Products<T>(runner, peak, H).run();
}

}  // namespace benchmarks
