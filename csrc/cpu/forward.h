#pragma once

#include <algorithm>
#include <cstring>
#include <memory>
#include <type_traits>

#include "cpu/chunks.h"
#include "cpu/direction_base.h"
#include "cpu/frozen_panels.h"
#include "cpu/gemm/gemm.h"
#include "cpu/gemm/gemv.h"
#include "cpu/layer_plan.h"
#include "cpu/plan.h"
#include "cpu/threads/team.h"
#include "cpu/zoneout.h"

namespace fastrnn::cpu::FASTRNN_ISA {

// The forward of one direction. A chunk of steps at a time: the gates' shares from the input as one product over
// all rows of the chunk, then step after step the product with W_hh and, panel by panel as it leaves the tile, the
// cell.
//
// A cell with late gates comes in two parts, and between them the product of the second, which all units of the
// first have to be done for. A cell whose product is normalised follows when all panels are done, row by row.
//
// W: what the weights are. A frozen layer has them packed, perhaps as smaller numbers than T.
template <class T, class W = T>
class Forward : DirectionBase<T, ForwardParams<T>> {
  using Base = DirectionBase<T, ForwardParams<T>>;
  using Base::begins_anew, Base::time_after;
  using Base::C, Base::G, Base::L, Base::late_, Base::U, Base::cell_, Base::info_;
  using Base::direction_, Base::plan_, Base::steal_, Base::d_, Base::p_, Base::w_;
  using Base::has_W_hh_, Base::has_W_ih_, Base::noisy_, Base::projected_, Base::split_, Base::zoned_;
  using Base::R_, Base::GH_, Base::H_padded_, Base::P_padded_;
  using Base::take, Base::batch_group, Base::order_of, Base::for_each_batch;
  using typename Base::V;
  // Between steps the states are Real. What the products read is T: the same numbers, or rounded ones.
  static constexpr bool kRounded = !std::is_same_v<T, Real<T>>;
  // Before each product its left factor is quantized, row by row.
  static constexpr bool kQuantized = std::is_same_v<W, int8_weight>;

 public:
  // steps: of a chunk, at most; 0: as the plan wants it. again: frozen weights that the call packs again.
  Forward(const EngineCell<T>& cell, const ForwardParams<T>& params, int d, const Plan& plan,
          const Resources& resources, int64_t steps = 0, const FrozenWeights<W>* again = nullptr)
      : Base(cell, params, d, plan, resources),
        again_(again),
        frozen_(again ? nullptr : p_.frozen[d]),
        packed_(frozen_ || R_ > tuning::kUnpackedRows),
        saves_(p_.s != nullptr || p_.y_copy != nullptr),
        panels_(frozen_ ? frozen_panels<T, W>(p_.H, G)
                        : W_hh_panels<W>(G, plan_, Pass::forward, p_.rows.B, p_.H, p_.P)),
        W_ih_{panels_, p_.I},
        W_hh_{gates_of_panels(G - late_), p_.P},
        W_late_{gates_of_panels(late_), p_.H},
        W_hr_{frozen_ ? frozen_panels<T, W>(p_.P, 1) : this->template step_panels<W>(p_.P, p_.H), p_.H} {
    const int64_t B = p_.rows.B, width = panels_.padded_width();
    chunk_steps_ = steps_in_chunk(
        p_.rows, std::max<int64_t>(tuning::kForwardChunkBytes / (width * sizeof(Real<T>)), kRowBlock));
    if (plan_.by_batch() && steps == 0) steps = ceil_div(p_.rows.T, tuning::kLeastChunks);
    if (steps > 0) chunk_steps_ = std::min(chunk_steps_, steps);
    if (frozen_) {
      read_frozen();
    } else if (packed_) {
      used_once_ = !plan_.by_batch() && chunk_steps_ >= p_.rows.T;
      if (has_W_ih_)
        take(W_ih_.data, used_once_ ? plan_.threads * panels_.width(0) * W_ih_.rows() : W_ih_.size());
      if (has_W_hh_) take(W_hh_.data, W_hh_.size());
      if (late_ > 0) take(W_late_.data, W_late_.size());
      if (projected_) take(W_hr_.data, W_hr_.size());
    }
    // Vectors of units may be read from up to one vector past these.
    if (!frozen_) take(b_x_, width + L);
    if (!frozen_ && split_) take(b_h_, width + L);
    take(gx_, chunk_steps_ * sequences_in_chunk(p_.rows) * width + L);
    if (info_.normalised) take(gh_, B * width + L);
    take(h_[0], B * P_padded_);
    take(h_[1], B * P_padded_);
    if ((kRounded || noisy_) && !projected_) take(h_real_, B * P_padded_);
    if (noisy_ && !projected_) take(h_computed_, B * P_padded_);
    if (zoned_ && C > 0) take(c_before_, C * B * H_padded_);
    if (C > 0) take(c_, C * B * H_padded_);
    if (late_ > 0) take(v_, B * H_padded_);
    if (late_ > 0 || info_.normalised) take(kept_, std::max(info_.saved, 1) * B * H_padded_);
    if (projected_) take(m_, B * H_padded_);
    if constexpr (kQuantized) {
      x_ = take_quantized((each_quantizes_ ? plan_.threads : 1) * x_rows(), p_.I);
      // Here too each thread quantizes all rows that it multiplies.
      state_ = take_quantized((plan_.by_batch() ? 1 : plan_.threads) * B, std::max(p_.H, p_.P));
    }
  }

  void run(Team& team) {
    prepare(team);
    if (plan_.by_batch()) {
      pack(team);
      team.for_each_chain(plan_.batch_groups, chunks(),
                          [&](int64_t group, int64_t number) { run_chunk(group, number); });
    } else {
      for_each_batch([&](Range batch) { run_by_units(team, batch); });
    }
    write_final(team);
  }

  // The parts of `run` by batch. What a batch group does in a chunk depends on the chunks before it alone.
  void begin(Team& team) {
    prepare(team);
    pack(team);
  }
  int64_t chunks() const { return ceil_div(p_.rows.T, chunk_steps_); }
  void run_chunk(int64_t group, int64_t number) {
    const Range all{0, panels_.count()}, all_out{0, W_hr_.panels.count()}, batch = batch_group(group);
    const int64_t i0 = number * chunk_steps_, i1 = std::min(i0 + chunk_steps_, p_.rows.T);
    const Chunk chunk = chunk_of(p_.rows, direction_, i0, i1, {0, p_.rows.B});
    if constexpr (kQuantized) quantize_input(chunk, batch, 0, 1, 0);
    input_gates(chunk, all, batch, W_ih_, 0);
    for (int64_t i = i0; i < i1; ++i) {
      step(chunk, i, all, batch, left_of_step(i, batch, 0));
      if (late_ > 0) late_step(chunk, i, all, batch, left_of_late_step(i, batch, 0));
      if (info_.normalised) normalised_step(chunk, i, present(i, batch));
      if (projected_) project(i, all_out, batch, left_of_projection(i, batch, 0));
    }
  }
  void end(Team& team) { write_final(team); }

 private:
  void pack(Team& team) {
    team.for_each(panels_.count(), steal_, Order::ascending, [&](int64_t panel) {
      pack_for_input(panel, W_ih_);
      pack_for_steps(panel);
    });
  }

  void run_by_units(Team& team, Range batch) {
    PackedMatrix<W> W_ih = W_ih_;
    if (used_once_ && has_W_ih_) {
      // Each panel is used by the thread that packs it, and each thread has room for one.
      W_ih.single_panel = true;
      W_ih.data += team.rank * panels_.width(0) * W_ih.rows();
    }
    for (int64_t i0 = 0; i0 < p_.rows.T; i0 += chunk_steps_) {
      const int64_t i1 = std::min(i0 + chunk_steps_, p_.rows.T);
      const Chunk chunk = chunk_of(p_.rows, direction_, i0, i1, batch);
      const bool first = i0 == 0 && batch.begin == 0;
      // A single step reads h_0, which is there: no thread has to wait for others between the two products of a panel.
      const bool at_once = p_.rows.T == 1 && has_W_hh_ && late_ == 0 && !info_.normalised;
      const LeftRows h_0 = at_once ? left_of_step(i0, batch, team.rank) : LeftRows{};
      if constexpr (kQuantized) {
        if (each_quantizes_) {
          quantize_input(chunk, batch, 0, 1, team.rank);
        } else {
          team.for_each(team.size, Steal::if_late, Order::ascending,
                        [&](int64_t part) { quantize_input(chunk, batch, part, team.size, 0); });
        }
      }
      team.for_each(panels_.count(), steal_, Order::ascending, [&](int64_t panel) {
        // W_hh comes last, so the cache has it when the steps begin.
        if (first || used_once_) pack_for_input(panel, W_ih);
        input_gates(chunk, {panel, panel + 1}, batch, W_ih, each_quantizes_ ? team.rank : 0);
        if (first) pack_for_steps(panel);
        if (at_once) step(chunk, i0, {panel, panel + 1}, batch, h_0);
      });
      if (!has_W_hh_) {  // units that do not depend on each other
        team.for_each(panels_.count(), steal_, Order::ascending, [&](int64_t panel) {
          for (int64_t i = i0; i < i1; ++i) step(chunk, i, {panel, panel + 1}, batch, {});
        });
        continue;
      }
      for (int64_t i = i0; i < i1; ++i) {
        if (!at_once) {
          fetch_written(h_before(i), p_.rows.B * P_padded_);
          const LeftRows h = left_of_step(i, batch, team.rank);
          team.for_each(panels_.count(), steal_, order_of(i),
                        [&](int64_t panel) { step(chunk, i, {panel, panel + 1}, batch, h); });
        }
        if (late_ > 0) {
          const LeftRows v = left_of_late_step(i, batch, team.rank);
          team.for_each(panels_.count(), steal_, order_of(i),
                        [&](int64_t panel) { late_step(chunk, i, {panel, panel + 1}, batch, v); });
        }
        if (info_.normalised) {
          const Range rows = present(i, batch);
          team.for_each_share(rows.end - rows.begin, [&](Range share) {
            normalised_step(chunk, i, {rows.begin + share.begin, rows.begin + share.end});
          });
        }
        if (projected_) {
          const LeftRows m = left_of_projection(i, batch, team.rank);
          team.for_each(W_hr_.panels.count(), steal_, order_of(i),
                        [&](int64_t panel) { project(i, {panel, panel + 1}, batch, m); });
        }
      }
    }
  }

  // The panels of gates that a product of a step has.
  Panels<W> gates_of_panels(int gates) const {
    Panels<W> panels = panels_;
    panels.G = gates;
    return panels;
  }
  // Memory that is only read; PackedMatrix is what packs as well.
  template <class S>
  S* frozen_at(int64_t at) const {
    return reinterpret_cast<S*>(const_cast<char*>(frozen_) + at);
  }
  void read_frozen() {
    const FrozenLayout<T, W> layout(info_, p_.I, p_.H, p_.P, projected_);
    W_ih_.data = frozen_at<Real<W>>(layout.at_W_ih);
    W_hh_.data = frozen_at<Real<W>>(layout.at_W_hh);
    W_late_.data = frozen_at<Real<W>>(layout.at_W_late);
    W_hr_.data = frozen_at<Real<W>>(layout.at_W_hr);
    b_x_ = frozen_at<Real<T>>(layout.at_b_x);
    b_h_ = frozen_at<Real<T>>(layout.at_b_h);
  }

  void pack_for_input(int64_t panel, const PackedMatrix<W>& W_ih) {
    if constexpr (std::is_same_v<T, W>) {
      if (frozen_) return;
      if (packed_ && has_W_ih_) pack(W_ih, panel, w_.W_ih, &FrozenWeights<W>::W_ih);
      if (again_) {
        const auto pack_bias = [&](Real<T>* to, const FrozenAt& frozen) {
          again_->pack_bias({panels_, 1, to}, panel, frozen);
          if (panel == panels_.count() - 1) clear(to + panels_.padded_width(), L);  // as pack_biases
        };
        pack_bias(b_x_, again_->b_x);
        if (split_) pack_bias(b_h_, again_->b_h);
      } else {
        pack_biases(panels_, panel, w_.b_ih, w_.b_hh, info_.whole_gates, b_x_, b_h_);
      }
    }
  }
  void pack_for_steps(int64_t panel) {
    if constexpr (std::is_same_v<T, W>) {
      if (frozen_ || !packed_) return;
      if (has_W_hh_) pack(W_hh_, panel, w_.W_hh, &FrozenWeights<W>::W_hh);
      if (late_ > 0) pack(W_late_, panel, W_late(), &FrozenWeights<W>::W_late);
    }
  }
  // A panel of `weights`, or of what a frozen layer has of them.
  void pack(const PackedMatrix<W>& to, int64_t panel, const T* weights,
            FrozenAt FrozenWeights<W>::* at) const {
    if (again_) {
      again_->pack(to, panel, again_->*at);
    } else {
      pack_transposed(to, panel, weights);
    }
  }
  const T* W_late() const { return w_.W_hh + (G - late_) * p_.H * p_.P; }

  void pack_projection(Team& team) {
    if constexpr (std::is_same_v<T, W>) {
      if (frozen_ || !packed_ || !projected_) return;
      team.for_each(W_hr_.panels.count(), steal_, Order::ascending,
                    [&](int64_t panel) { pack(W_hr_, panel, w_.W_hr, &FrozenWeights<W>::W_hr); });
    }
  }

  void prepare(Team& team) {
    pack_projection(team);
    // Both buffers: a packed sequence that starts later finds its initial state in whichever is read then.
    team.for_each_share(p_.rows.B, [&](Range rows) {
      for (int64_t b = rows.begin; b < rows.end; ++b) {
        for (T* buffer : h_) {
          initial_state(p_.h0, b, p_.P, buffer + b * P_padded_);
          if (p_.noise.mask) drop(b, 0, p_.P, buffer + b * P_padded_, buffer + b * P_padded_);
        }
        if (h_real_) initial_state(p_.h0, b, p_.P, h_real_ + b * P_padded_);
        for (int state = 0; state < C; ++state) {
          initial_state(p_.c0[state], b, p_.H, c_ + (state * p_.rows.B + b) * H_padded_);
        }
        if (!direction_.reverse && begins_anew(0, b)) {
          for (T* buffer : h_) clear(buffer + b * P_padded_, p_.P);
          clear_states(b, 0, p_.H);
        }
      }
    });
  }

  template <class S>
  static void clear(S* numbers, int64_t count) {
    std::memset(numbers, 0, count * sizeof(S));
  }
  // The states that the cell computes, of some units of sequence b.
  void clear_states(int64_t b, int64_t unit, int64_t units) const {
    if (h_real_) clear(h_real_ + b * P_padded_ + unit, units);
    for (int state = 0; state < C; ++state) clear(c_ + (state * p_.rows.B + b) * H_padded_ + unit, units);
  }
  // After step t: clears the states of some units of the sequences that begin anew in the next step. after: h, null
  // where the projection makes it.
  void begin_anew(int64_t t, int64_t unit, int64_t units, Range rows, T* after) const {
    const int64_t next = time_after(t);
    if (!p_.resets || next < 0) return;
    for (int64_t b = rows.begin; b < std::min(rows.end, p_.rows.n(next)); ++b) {
      if (!begins_anew(next, b)) continue;
      if (after) clear(after + b * P_padded_ + unit, units);
      clear_states(b, unit, units);
    }
  }

  template <class S>
  void initial_state(const T* given, int64_t b, int64_t size, S* state) const {
    if (given) {
      copy(state, given + (d_ * p_.rows.B + b) * size, size);
    } else {
      std::memset(state, 0, size * sizeof(S));
    }
  }

  // to = from times the dropout mask, for `count` units of sequence b from `unit` on.
  template <class S>
  void drop(int64_t b, int64_t unit, int64_t count, const S* from, T* to) const {
    const T* mask = p_.noise.mask + (d_ * p_.rows.B + b) * p_.P + unit;
    for (int64_t j = 0; j < count; j += L) {
      store_upto(to + j, load_upto(from + j, count - j) * load_upto(mask + j, count - j), count - j);
    }
  }

  // A product with weights, packed unless only few rows are multiplied.
  FASTRNN_INLINE void multiply(const T* weights, const PanelProduct<W>& product) const {
    if constexpr (std::is_same_v<T, W>) {
      if (!packed_) {
        return multiply_unpacked(product.A, weights, product.B.panels, product.panel, product.to);
      }
    }
    multiply_packed(product);
  }

  // Rows of a left factor, one for each sequence.
  struct LeftRows {
    const Left<W>* data = nullptr;
    int64_t stride = 0, K = 0;
    const float* scales = nullptr;

    LeftFactor<W> rows(Range rows) const {
      LeftFactor<W> factor{
          .data = data + rows.begin * stride, .M = rows.end - rows.begin, .K = K, .row_stride = stride};
      if (kQuantized) factor.scales = scales + rows.begin;
      return factor;
    }
  };
  struct QuantizedRows {
    Left<W>* numbers = nullptr;
    float* scales = nullptr;
  };
  QuantizedRows take_quantized(int64_t rows, int64_t K) {
    QuantizedRows quantized;
    take(quantized.numbers, rows * quantized_stride(K));
    take(quantized.scales, rows);
    return quantized;
  }
  LeftRows left_of_step(int64_t i, Range batch, int rank) const {
    return left_of(h_before(i), P_padded_, p_.P, present(i, batch), rank);
  }
  LeftRows left_of_late_step(int64_t i, Range batch, int rank) const {
    return left_of(v_, H_padded_, p_.H, present(i, batch), rank);
  }
  LeftRows left_of_projection(int64_t i, Range batch, int rank) const {
    return left_of(m_, H_padded_, p_.H, present(i, batch), rank);
  }
  // The first K numbers of some rows, quantized by this thread.
  LeftRows left_of(const T* from, int64_t stride, int64_t K, Range rows, int rank) const {
    if constexpr (kQuantized) {
      const int64_t first = plan_.by_batch() ? 0 : rank * p_.rows.B, to_stride = quantized_stride(K);
      Left<W>* const to = state_.numbers + first * quantized_stride(std::max(p_.H, p_.P));
      float* const scales = state_.scales + first;
      for (int64_t b = rows.begin; b < rows.end; ++b) {
        scales[b] = quantize(from + b * stride, K, to + b * to_stride);
      }
      return {to, to_stride, whole_packs<W>(K), scales};
    } else {
      return {from, stride, K};
    }
  }
  int64_t x_rows() const { return chunk_steps_ * sequences_in_chunk(p_.rows); }
  // Part `part` of `parts` of a chunk's rows, for this thread or for all.
  void quantize_input(const Chunk& chunk, Range batch, int64_t part, int64_t parts, int rank) const {
    const int64_t to_stride = quantized_stride(p_.I), first = rank * x_rows();
    chunk.for_each_run(
        batch, [&](int64_t row, int64_t stride, int64_t chunk_row, int64_t chunk_stride, int64_t count) {
          for (int64_t k = count * part / parts; k < count * (part + 1) / parts; ++k) {
            const int64_t to = first + chunk_row + k * chunk_stride;
            x_.scales[to] = quantize(p_.x + (row + k * stride) * p_.I, p_.I, x_.numbers + to * to_stride);
          }
        });
  }
  LeftFactor<W> input_rows(int64_t row, int64_t stride, int64_t chunk_row, int64_t chunk_stride,
                           int64_t count) const {
    if constexpr (kQuantized) {
      const int64_t width = quantized_stride(p_.I);
      return {.data = x_.numbers + chunk_row * width,
              .M = count,
              .K = whole_packs<W>(p_.I),
              .row_stride = chunk_stride * width,
              .scales = x_.scales + chunk_row,
              .scale_stride = chunk_stride};
    } else {
      return {.data = p_.x + row * p_.I, .M = count, .K = p_.I, .row_stride = stride * p_.I};
    }
  }

  void input_gates(const Chunk& chunk, Range own, Range batch, const PackedMatrix<W>& W_ih, int rank) {
    const int64_t width = panels_.padded_width();
    chunk.for_each_run(batch, [&](int64_t row, int64_t stride, int64_t chunk_row, int64_t chunk_stride,
                                  int64_t count) {
      for (int64_t panel = own.begin; panel < own.end; ++panel) {
        const int64_t column = panels_.offset(panel);
        if (!has_W_ih_) {
          copy_gates(panel, row, stride, gx_ + chunk_row * width + column, chunk_stride * width, count);
          continue;
        }
        multiply(w_.W_ih, {.A = input_rows(row, stride, rank * x_rows() + chunk_row, chunk_stride, count),
                           .B = W_ih,
                           .panel = panel,
                           .to = {gx_ + chunk_row * width + column, chunk_stride * width, L, b_x_ + column},
                           .kc = kc_of<W>(p_.I)});
      }
    });
  }

  // Where x holds the gates' shares: a panel of some rows of them.
  void copy_gates(int64_t panel, int64_t row, int64_t stride, Real<T>* to, int64_t to_stride,
                  int64_t count) const {
    const int64_t size = panels_.size(panel);
    for (int64_t i = 0; i < count; ++i) {
      const T* from = p_.x + (row + i * stride) * p_.I + d_ * GH_ + panels_.first(panel);
      for (int g = 0; g < G; ++g) copy(to + i * to_stride + g * size, from + g * p_.H, size);
    }
  }

  const T* h_before(int64_t i) const { return h_[i % 2]; }
  T* h_after(int64_t i) const { return h_[(i + 1) % 2]; }
  Range present(int64_t i, Range batch) const {
    return {batch.begin, std::min(batch.end, p_.rows.n(direction_.time(i)))};
  }
  // The gates' shares from the input in step t.
  const Real<T>* gx_at(const Chunk& chunk, int64_t t, int64_t b, int64_t panel) const {
    return gx_ + (chunk.row(t) + b) * panels_.padded_width() + panels_.offset(panel);
  }

  // Calls f(block) for the rows of a step, as many at a time as a product takes.
  template <class F>
  static void for_each_block(Range rows, const F& f) {
    for (int64_t b = rows.begin; b < rows.end; b += kRowBlock) f(Range{b, std::min(b + kRowBlock, rows.end)});
  }

  // Step i of the recurrence: the hidden state after it, or what the projection, or the product of the late gates,
  // takes.
  void step(const Chunk& chunk, int64_t i, Range own, Range batch, const LeftRows& left) {
    const int64_t t = direction_.time(i);
    alignas(64) Real<T> gh[kRowBlock * kPanelColumns + L];
    for (int64_t panel = own.begin; panel < own.end; ++panel) {
      for_each_block(present(i, batch), [&](Range block) {
        const int64_t b = block.begin, count = block.end - b, width = W_hh_.panels.width(panel);
        const Real<T>* gx = gx_at(chunk, t, b, panel);
        Destination<Real<T>> to{gh, width, L};
        if (!split_) to.plus = gx, to.plus_stride = panels_.padded_width();
        if (info_.normalised) {
          to = {gh_ + b * panels_.padded_width() + panels_.offset(panel), panels_.padded_width(), L};
        }
        if (!has_W_hh_) {
          const int64_t unit = panels_.first(panel), size = panels_.size(panel);
          const T* h = h_before(i) + b * P_padded_ + unit;
          for (int64_t r = 0; r < count; ++r) copy(gh + r * width, h + r * P_padded_, size);
        } else {
          PrefetchList prefetch_list(count);
          if (saves_ && !projected_ && prefetch_pays(p_.P, count)) add_results(t, b, panel, prefetch_list);
          multiply(w_.W_hh, {.A = left.rows(block),
                             .B = W_hh_,
                             .panel = panel,
                             .order = order_of(i),
                             .to = to,
                             .kc = kc_of<W>(p_.P),
                             .prefetch_list = &prefetch_list});
        }
        if (info_.normalised) return;
        ForwardBlock<T> cells = cell_block(t, i, panel, block);
        cells.gx = {gx, panels_.padded_width()};
        cells.gh = {gh, width};
        if (late_ > 0) {
          cells.v = {v_ + b * H_padded_ + panels_.first(panel), H_padded_};
          cell_.forward_early(cells);
          for (int64_t r = b; p_.noise.mask && r < block.end; ++r) {
            T* v = v_ + r * H_padded_ + panels_.first(panel);
            drop(r, panels_.first(panel), panels_.size(panel), v, v);
          }
        } else {
          cell_.forward(cells);
          if (noisy_ && !projected_) finish(t, i, panels_.first(panel), panels_.size(panel), block);
          begin_anew(t, panels_.first(panel), panels_.size(panel), block, projected_ ? nullptr : h_after(i));
        }
      });
    }
  }

  // The late gates of step i, and the hidden state after it.
  void late_step(const Chunk& chunk, int64_t i, Range own, Range batch, const LeftRows& left) {
    const int64_t t = direction_.time(i);
    alignas(64) Real<T> gh[kRowBlock * kPanelColumns + L];
    for (int64_t panel = own.begin; panel < own.end; ++panel) {
      for_each_block(present(i, batch), [&](Range block) {
        const int64_t b = block.begin, width = W_late_.panels.width(panel);
        const Real<T>* gx = gx_at(chunk, t, b, panel) + (G - late_) * panels_.size(panel);
        multiply(W_late(), {.A = left.rows(block),
                            .B = W_late_,
                            .panel = panel,
                            .order = order_of(i),
                            .to = {gh, width, L, gx, panels_.padded_width()},
                            .kc = kc_of<W>(p_.H)});
        ForwardBlock<T> cells = cell_block(t, i, panel, block);
        cells.gh = {gh, width};
        cell_.forward(cells);
        if (noisy_) finish(t, i, panels_.first(panel), panels_.size(panel), block);
        begin_anew(t, panels_.first(panel), panels_.size(panel), block, h_after(i));
      });
    }
  }

  // The cells of whole rows of step i, whose products are done.
  void normalised_step(const Chunk& chunk, int64_t i, Range rows) {
    const int64_t t = direction_.time(i);
    for (int64_t b = rows.begin; b < rows.end; ++b) {
      ForwardBlock<T> cells = cell_block(t, i, 0, {b, b + 1});
      cells.units = p_.H;
      cells.panel_units = panels_.size(0);
      cells.gx.at = gx_at(chunk, t, b, 0);
      cells.gh.at = gh_ + b * panels_.padded_width();
      cell_.forward(cells);
      if (noisy_) finish(t, i, 0, p_.H, {b, b + 1});
      begin_anew(t, 0, p_.H, {b, b + 1}, h_after(i));
    }
  }

  // What the cells of a panel write for the backward, from sequence b on.
  void add_results(int64_t t, int64_t b, int64_t panel, PrefetchList& prefetch_list) const {
    const int64_t row = p_.rows.row(t, b);
    const int64_t unit = panels_.first(panel), n = panels_.size(panel);
    const auto add = [&](const auto* rows, int64_t size) {
      prefetch_list.add(rows + unit, n, p_.rows.stride_b * size);
    };
    for (const T* y : {p_.y, p_.y_copy}) {
      if (y) add(y + (row * p_.D + d_) * p_.P, p_.D * p_.P);
    }
    for (int state = 0; p_.c && state < C; ++state) {
      add(p_.c + ((d_ * R_ + row) * C + state) * p_.H, C * p_.H);
    }
    for (int saved = 0; p_.s && saved < info_.saved; ++saved) {
      add(p_.s + ((d_ * R_ + row) * info_.saved + saved) * p_.H, info_.saved * p_.H);
    }
  }

  // What is saved of some sequences in step t: `count` numbers of each unit.
  RowsAt<Real<T>> saved_rows(Real<T>* numbers, int64_t count, int64_t row, int64_t unit) const {
    if (!numbers || count == 0) return {};
    return {numbers + (d_ * R_ + row) * count * p_.H + unit, p_.rows.stride_b * count * p_.H};
  }

  // A panel of some sequences in step i, but for the gates' shares.
  ForwardBlock<T> cell_block(int64_t t, int64_t i, int64_t panel, Range rows) const {
    const int64_t unit = panels_.first(panel), row = p_.rows.row(t, rows.begin);
    const int64_t at_h = rows.begin * P_padded_ + unit, at_c = rows.begin * H_padded_ + unit;
    ForwardBlock<T> block;
    block.rows = rows.end - rows.begin;
    block.units = panels_.size(panel);
    for (int vector = 0; vector < U; ++vector) block.unit[vector] = w_.unit[vector] + unit;
    block.gate = panels_.size(panel);
    if (split_) block.bias_h = b_h_ + panels_.offset(panel);
    block.saved_next = p_.H;
    block.c_next = p_.rows.B * H_padded_;
    if (C > 0) block.c = {c_ + at_c, H_padded_};
    if (kept_) block.kept = {kept_ + at_c, H_padded_};
    block.saved_s = saved_rows(p_.s, info_.saved, row, unit);
    if (projected_) {
      block.out = {m_ + at_c, H_padded_};
      block.saved_c = saved_rows(p_.c, C, row, unit);
      return block;
    }
    if constexpr (kRounded) {
      block.h_prev = {h_real_ + at_h, P_padded_};
    } else {
      block.h_prev = {(noisy_ ? h_real_ : h_before(i)) + at_h, P_padded_};
    }
    if (noisy_) {
      block.h_real = {h_computed_ + at_h, P_padded_};
    } else {
      if (kRounded) block.h_real = {h_real_ + at_h, P_padded_};
      block.out = {h_after(i) + at_h, P_padded_};
      const int64_t at_y = (row * p_.D + d_) * p_.P + unit, y_stride = p_.rows.stride_b * p_.D * p_.P;
      block.y = {p_.y + at_y, y_stride};
      if (p_.y_copy) block.y_copy = {p_.y_copy + at_y, y_stride};
    }
    if (zoned_) {
      const int h = info_.saved == 0;
      block.saved_c = saved_rows(p_.computed, h + C, row, unit + h * p_.H);
      if (C == 0) block.saved_c = {};
      for (int state = 0; state < C; ++state) {
        for (int64_t b = rows.begin; b < rows.end; ++b) {
          const int64_t at = state * block.c_next + b * H_padded_ + unit;
          copy(c_before_ + at, c_ + at, info_.normalised ? p_.H : panels_.size(panel));
        }
      }
    } else {
      block.saved_c = saved_rows(p_.c, C, row, unit);
    }
    return block;
  }

  // With zoneout or dropout of h: the states after step i, for `units` units of some sequences from `unit` on, once
  // the cell has computed h_computed_ and c_.
  void finish(int64_t t, int64_t i, int64_t unit, int64_t units, Range rows) {
    const int64_t B = p_.rows.B;
    for (int64_t b = rows.begin; b < rows.end; ++b) {
      const int64_t row = p_.rows.row(t, b), at_h = b * P_padded_ + unit;
      if (zoned_ && p_.computed && info_.saved == 0) {
        copy(p_.computed + (d_ * R_ + row) * (1 + C) * p_.H + unit, h_computed_ + at_h, units);
      }
      for (int64_t j = 0; j < units; j += L) {
        const int64_t n = std::min<int64_t>(L, units - j);
        V h = load(h_computed_ + at_h + j);
        if (zoned_) {
          const Zoneout<T> zoneout(p_.noise, (d_ * R_ + row) * p_.H + unit + j);
          h = zoneout.blend(0, load(h_real_ + at_h + j), h);
          for (int state = 0; state < C; ++state) {
            const int64_t at = (state * B + b) * H_padded_ + unit + j;
            const V c = zoneout.blend(1 + state, load(c_before_ + at), load(c_ + at));
            store(c_ + at, c);
            if (p_.c) store_upto(p_.c + ((d_ * R_ + row) * C + state) * p_.H + unit + j, c, n);
          }
        }
        store(h_real_ + at_h + j, h);
        for (T* y : {p_.y, p_.y_copy}) {
          if (y) store_upto(y + (row * p_.D + d_) * p_.P + unit + j, h, n);
        }
      }
      if (p_.noise.mask) {
        drop(b, unit, units, h_real_ + at_h, h_after(i) + at_h);
      } else {
        copy(h_after(i) + at_h, h_real_ + at_h, units);
      }
    }
  }

  void project(int64_t i, Range own, Range batch, const LeftRows& left) {
    const int64_t t = direction_.time(i);
    const Panels<W>& panels = W_hr_.panels;
    alignas(64) Real<T> block[kRowBlock * kPanelColumns];
    for (int64_t panel = own.begin; panel < own.end; ++panel) {
      const int64_t width = panels.width(panel), unit = panels.first(panel);
      for_each_block(present(i, batch), [&](Range rows) {
        multiply(w_.W_hr, {.A = left.rows(rows),
                           .B = W_hr_,
                           .panel = panel,
                           .order = order_of(i),
                           .to = {block, width, L},
                           .kc = kc_of<W>(p_.H)});
        for (int64_t b = rows.begin; b < rows.end; ++b) {
          const int64_t n = std::min(width, p_.P - unit);
          const Real<T>* h = block + (b - rows.begin) * width;
          T* after = h_after(i) + b * P_padded_ + unit;
          copy(after, h, n);
          if (p_.noise.mask) drop(b, unit, n, h, after);
          for (T* y : {p_.y, p_.y_copy}) {
            if (y) copy(y + (p_.rows.row(t, b) * p_.D + d_) * p_.P + unit, h, n);
          }
          const int64_t next = time_after(t);
          if (next >= 0 && begins_anew(next, b)) clear(after, n);
        }
      });
    }
  }

  void write_final(const Team& team) const {
    const Range rows = team.own_share(p_.rows.B);
    int64_t steps = p_.rows.T;
    for (int64_t b = rows.begin; b < rows.end; ++b) {
      if (p_.rows.packed() && !direction_.reverse) {
        while (p_.rows.n(steps - 1) <= b) --steps;  // sorted: later sequences are shorter
      }
      const int64_t to = d_ * p_.rows.B + b;
      if (p_.hn) {
        if (noisy_ && projected_) {
          const int64_t last = direction_.time(steps - 1);
          copy(p_.hn + to * p_.P, p_.y + (p_.rows.row(last, b) * p_.D + d_) * p_.P, p_.P);
        } else if (noisy_) {
          copy(p_.hn + to * p_.P, h_real_ + b * P_padded_, p_.P);
        } else {
          copy(p_.hn + to * p_.P, h_[steps % 2] + b * P_padded_, p_.P);
        }
      }
      for (int state = 0; state < C; ++state) {
        copy(p_.cn[state] + to * p_.H, c_ + (state * p_.rows.B + b) * H_padded_, p_.H);
      }
    }
  }

  const FrozenWeights<W>* const again_;  // weights packed before the call, to be packed again, or null
  const char* const frozen_;             // the same as they are, or null
  const bool packed_;
  const bool saves_;        // for the backward
  const Panels<W> panels_;  // gates of the hidden units
  int64_t chunk_steps_;
  bool used_once_ = false;  // the packed W_ih: each panel by the thread that packs it
  PackedMatrix<W> W_ih_, W_hh_, W_late_, W_hr_;
  Real<T>*b_x_, *b_h_ = nullptr;  // one row of panels each; what is added to either product
  Real<T>* gx_;                   // [rows of a chunk, padded_width]
  Real<T>* gh_ = nullptr;         // [B, padded_width], a step's product if it is normalised
  T* h_[2];                       // [B, P_padded], read and written in turn
  Real<T>* h_real_ = nullptr;     // [B, P_padded], h before it was rounded or dropped
  Real<T>* c_ = nullptr;          // [C, B, H_padded]
  T* v_ = nullptr;                // [B, H_padded], what the late gates' product reads
  Real<T>* kept_ = nullptr;       // [saved, B, H_padded], between both parts of a cell with late gates
  T* m_ = nullptr;                // [B, H_padded], o tanh(c) before the projection
  // With zoneout or dropout of h: the h that the cell computed, and c before the step. As h_real_ and c_.
  Real<T>*h_computed_ = nullptr, *c_before_ = nullptr;
  // Few rows are quantized by each thread: to wait for another that does it would take longer.
  const bool each_quantizes_ = kQuantized && !plan_.by_batch() && R_ <= tuning::kUnpackedRows;
  QuantizedRows x_, state_;  // the rows of a chunk; what the products of a step read, for each thread
};

// again: of each direction, frozen weights that the call packs again.
template <class T, class W>
void forward_layer(const EngineCell<T>& cell, const ForwardParams<T>& p, const Resources& resources,
                   const FrozenWeights<W>* again = nullptr) {
  const Plan plan =
      make_plan(problem_of<T, W>(cell.info, p), Pass::forward, usable_threads(resources.threads));
  const int threads = plan.team_threads();
  Forward<T, W> first(cell, p, 0, plan, resources, 0, again);
  const auto second =
      p.D == 2 ? std::make_unique<Forward<T, W>>(cell, p, 1, plan, resources, 0, again ? again + 1 : nullptr)
               : nullptr;
  Forward<T, W>* const directions[] = {&first, second.get()};
  TaskQueue queues[2]{{threads, plan.batch_groups}, {threads, plan.batch_groups}};
  parallel(threads, [&](int rank, int size) {
    int64_t waited = 0;
    if (plan.side_by_side && size >= 2) {
      const int half = size / 2, d = rank >= half;
      Team team(d ? rank - half : rank, d ? size - half : half, queues[d]);
      directions[d]->run(team);
      waited = team.waited();
    } else {
      for (int d = 0; d < p.D; ++d) {
        Team team(rank, size, queues[d]);
        directions[d]->run(team);
        waited += team.waited();
      }
    }
    return waited;
  });
}

template <class T, class W = T>
void forward(const EngineCell<T>& cell, const ForwardParams<T>& p, const Resources& resources) {
  if constexpr (kPacksAgain<T, W>) {
    constexpr int64_t rows =
        std::is_same_v<T, W> ? tuning::kRowsToPackAgain : tuning::kBfloat16RowsToPackAgain;
    if (p.frozen[0] && p.rows.B > 1 && p.rows.total() >= rows) {
      const FrozenLayout<T, W> layout(cell.info, p.I, p.H, p.P, p.weights[0].W_hr != nullptr);
      FrozenWeights<T> again[2];
      for (int d = 0; d < p.D; ++d) again[d] = frozen_weights<T, W>(layout, p.frozen[d]);
      return forward_layer<T, T>(cell, p, resources, again);
    }
  }
  forward_layer<T, W>(cell, p, resources);
}

}  // namespace fastrnn::cpu::FASTRNN_ISA
