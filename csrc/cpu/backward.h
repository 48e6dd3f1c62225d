#pragma once

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "cpu/chunks.h"
#include "cpu/direction_base.h"
#include "cpu/gemm/gemm.h"
#include "cpu/layer_plan.h"
#include "cpu/plan.h"
#include "cpu/threads/team.h"
#include "cpu/weight_gradients.h"
#include "cpu/zoneout.h"

namespace fastrnn::cpu::FASTRNN_ISA {

// The backward of one direction, from its last step to its first. A step multiplies the gate gradients of the step
// after it with W_hh, which gives dh, and computes its own gate gradients panel by panel as dh leaves the tile. The
// gate gradients of a chunk of steps then give their share of dW_ih, dW_hh, the biases and dx while they are in
// cache.
template <class T>
class Backward : DirectionBase<T, BackwardParams<T>> {
  using Base = DirectionBase<T, BackwardParams<T>>;
  using Base::begins_anew, Base::time_after, Base::time_before;
  using Base::C, Base::G, Base::L, Base::late_, Base::U, Base::cell_, Base::info_;
  using Base::direction_, Base::plan_, Base::steal_, Base::d_, Base::p_, Base::w_;
  using Base::has_W_hh_, Base::has_W_ih_, Base::noisy_, Base::projected_, Base::split_, Base::zoned_;
  using Base::R_, Base::GH_, Base::H_padded_, Base::P_padded_, Base::workspace_;
  using Base::take, Base::batch_group, Base::step_panels, Base::order_of, Base::for_each_batch;
  using typename Base::V;

 public:
  Backward(const EngineCell<T>& cell, const BackwardParams<T>& params, int d, const Plan& plan,
           const Resources& resources)
      : Base(cell, params, d, plan, resources),
        EH_(GH_ - late_ * p_.H),
        chunk_steps_(steps_in_chunk(p_.rows, rows_of_chunk(GH_))),
        W_hh_{W_hh_panels<T>(G, plan_, Pass::backward, p_.rows.B, p_.H, p_.P), EH_},
        W_late_{step_panels(p_.H, late_ * p_.H), late_ * p_.H},
        W_hr_{step_panels(p_.H, p_.P), p_.P},
        W_ih_{{p_.I, 1, kTileVectors, kTileVectors}, GH_},
        buffers_(take_buffers(chunk_steps_ * sequences_in_chunk(p_.rows))),
        sums_(info_, p_, d_, buffers_, chunk_steps_ * sequences_in_chunk(p_.rows), plan_.threads,
              workspace_) {
    const int64_t B = p_.rows.B;
    if (has_W_hh_ && (p_.rows.T > 1 || p_.dh0 != nullptr)) take_packed(W_hh_);
    if (late_ > 0) take_packed(W_late_);
    if (p_.dx && has_W_ih_) take_packed(W_ih_);
    if (projected_) take_packed(W_hr_);
    if (chunk_steps_ < p_.rows.T) take(carry_, B * GH_);
    take(dh_, B * P_padded_);
    if (C > 0) take(dc_, C * B * H_padded_);
    if (info_.normalised) take(scratch_, G * B * H_padded_);
    if (zoned_) take(kept_, (1 + C) * B * H_padded_);
    take(zeros_, std::max(p_.P, p_.H));
    std::memset(zeros_, 0, std::max(p_.P, p_.H) * sizeof(T));
  }

  void run(Team& team) {
    prepare(team);
    for_each_batch([&](Range batch) { run_batch(team, batch); });
    write_initial(team);
    if constexpr (!std::is_same_v<T, Real<T>>) sums_.write(team);
  }

 private:
  // Rows whose gate gradients are multiplied at a time.
  static int64_t rows_of_chunk(int64_t GH) {
    return std::max<int64_t>(tuning::kBackwardChunkRows, tuning::kBackwardChunkBytes / (GH * sizeof(T)));
  }

  ChunkBuffers<T> take_buffers(int64_t rows) {
    ChunkBuffers<T> buffers;
    take(buffers.dgx, rows * GH_);
    buffers.dgh = buffers.dgx;
    if (split_ || info_.normalised) take(buffers.dgh, rows * GH_);
    if (projected_) take(buffers.dh, rows * p_.P);
    if (projected_) take(buffers.m, rows * p_.H);
    if (U > 0) take(buffers.du, rows * U * p_.H);
    if (late_ > 0) take(buffers.v, rows * p_.H);
    if (p_.noise.mask) take(buffers.dropped, rows * p_.P);
    take(buffers.x, rows);
    take(buffers.h, rows);
    return buffers;
  }

  // The gate gradients of the step after the present one, which covers n sequences.
  struct Later {
    const T* dgh;  // [n, GH]
    int64_t n;
  };

  void run_batch(Team& team, Range batch) {
    Later later{nullptr, 0};
    for (int64_t i1 = p_.rows.T; i1 > 0; i1 -= std::min(chunk_steps_, i1)) {
      const int64_t i0 = std::max<int64_t>(i1 - chunk_steps_, 0);
      const Chunk chunk = chunk_of(p_.rows, direction_, i0, i1, batch);
      // What the step after step i of the forward has left.
      const auto later_of = [&](int64_t i) {
        if (i + 1 == i1) return later;
        const int64_t t = direction_.time(i + 1);
        return Later{buffers_.dgh + chunk.row(t) * GH_, p_.rows.n(t)};
      };
      if (plan_.by_batch()) {
        const Range all{0, W_hh_.panels.count()}, all_units{0, W_hr_.panels.count()},
            all_late{0, W_late_.panels.count()};
        team.for_each_chain(plan_.batch_groups, i1 - i0, [&](int64_t group, int64_t number) {
          const int64_t i = i1 - 1 - number, t = direction_.time(i);
          hidden_gradient(chunk, t, all, batch_group(group), later_of(i));
          if (late_ > 0) late_gradient(chunk, t, all_late, batch_group(group));
          if (info_.normalised) normalised_cells(chunk, t, present(t, batch_group(group)));
          if (projected_) unproject(chunk, t, all_units, batch_group(group));
        });
      } else {
        for (int64_t i = i1 - 1; i >= i0; --i) {
          const int64_t t = direction_.time(i);
          const Later after = later_of(i);
          fetch_written(after.dgh, after.n * GH_);
          team.for_each(W_hh_.panels.count(), steal_, order_of(t),
                        [&](int64_t panel) { hidden_gradient(chunk, t, {panel, panel + 1}, batch, after); });
          if (late_ > 0) {
            team.for_each(W_late_.panels.count(), steal_, order_of(t),
                          [&](int64_t panel) { late_gradient(chunk, t, {panel, panel + 1}, batch); });
          }
          if (info_.normalised) {
            const Range rows = present(t, batch);
            team.for_each_share(rows.end - rows.begin, [&](Range share) {
              normalised_cells(chunk, t, {rows.begin + share.begin, rows.begin + share.end});
            });
          }
          if (projected_) {
            team.for_each(W_hr_.panels.count(), steal_, order_of(t),
                          [&](int64_t panel) { unproject(chunk, t, {panel, panel + 1}, batch); });
          }
        }
      }
      later = later_of(i0 - 1);
      const bool first = i1 == p_.rows.T && batch.begin == 0;
      chunk_gradients(chunk, team, first ? Update::replace : Update::add, i0 > 0 ? &later : nullptr);
      if (i0 > 0) later.dgh = carry_;
    }
    if (p_.dh0) {
      team.for_each(W_hh_.panels.count(), steal_, Order::ascending, [&](int64_t panel) {
        hidden_gradient({p_.rows, 0, 0, batch}, -1, {panel, panel + 1}, batch, later);
      });
    }
  }

  // A short call reads whole panels from where they stand.
  bool in_place(const Panels<T>& panels, int64_t panel) const {
    return kKPack<T> == 1 && R_ <= tuning::kUnpackedRows && panels.last(panel) == L;
  }

  // A product with the weights W [K, columns], which B packs.
  FASTRNN_INLINE void multiply(const T* W, const PanelProduct<T>& product) const {
    const Panels<T>& panels = product.B.panels;
    if constexpr (kKPack<T> == 1) {
      if (in_place(panels, product.panel)) {
        return multiply_micropanel<T>({.A = product.A,
                                       .B = W + panels.first(product.panel),
                                       .ldb = panels.units,
                                       .nv = panels.nv(product.panel),
                                       .to = product.to,
                                       .kc = product.kc,
                                       .prefetch_list = product.prefetch_list});
      }
    }
    multiply_packed(product);
  }
  void take_packed(PackedMatrix<T>& B) {
    const bool none = in_place(B.panels, 0) && in_place(B.panels, B.panels.count() - 1);
    take(B.data, none ? 0 : B.size());
  }
  void pack(const PackedMatrix<T>& B, const T* W, Team& team) const {
    team.for_each(B.panels.count(), steal_, Order::ascending, [&](int64_t panel) {
      if (in_place(B.panels, panel)) return;
      const auto row = [&](int64_t k) { return W + k * B.panels.units; };
      for (int number = 0; number < B.panels.micropanels(panel); ++number) {
        const Micropanel micropanel = B.panels.micropanel(panel, number);
        for (int64_t k = 0; k < B.K; k += kKPack<T>) pack_micropanel_row(B, panel, micropanel, k, row);
      }
    });
  }

  void prepare(Team& team) {
    if (W_hh_.data) pack(W_hh_, w_.W_hh, team);
    if (W_late_.data) pack(W_late_, W_late(), team);
    if (W_ih_.data) pack(W_ih_, w_.W_ih, team);
    if (W_hr_.data) pack(W_hr_, w_.W_hr, team);
    team.for_each_share(p_.rows.B, [&](Range rows) {
      for (int64_t b = rows.begin; b < rows.end; ++b) {
        initial_gradient(p_.dhn, b, p_.P, dh_ + b * P_padded_);
        for (int state = 0; state < C; ++state) {
          initial_gradient(p_.dcn[state], b, p_.H, dc_ + (state * p_.rows.B + b) * H_padded_);
        }
      }
    });
  }

  const T* W_late() const { return w_.W_hh + EH_ * p_.P; }
  Range present(int64_t t, Range batch) const { return {batch.begin, std::min(batch.end, p_.rows.n(t))}; }

  void initial_gradient(const T* given, int64_t b, int64_t size, Real<T>* state) const {
    copy(state, given ? given + (d_ * p_.rows.B + b) * size : zeros_, size);
  }

  // dh of step t's n sequences, and with it their gate gradients. `dh_` holds what reaches a state past the
  // product: the gradient of the final state, and what the cell passes on element by element. Sequences that
  // the later step had and this one has not (a packed batch in reverse) have reached their initial state:
  // their dh stays as it is.
  void hidden_gradient(const Chunk& chunk, int64_t t, Range own, Range batch, const Later& later) {
    const int64_t n = t < 0 ? 0 : p_.rows.n(t);  // no step, only the initial state: none
    const Panels<T>& panels = W_hh_.panels;
    alignas(64) Real<T> block[kRowBlock * kPanelVectors * L];
    const int64_t end = std::min(batch.end, std::max(n, later.n));
    for (int64_t panel = own.begin; panel < own.end; ++panel) {
      const int64_t width = panels.width(panel);
      for (int64_t b0 = batch.begin; b0 < end; b0 += kRowBlock) {
        const int64_t b1 = std::min(b0 + kRowBlock, end);
        const int64_t multiplied = std::clamp<int64_t>(later.n - b0, 0, b1 - b0);
        if (multiplied > 0 && !has_W_hh_) {
          for (int64_t r = 0; r < multiplied; ++r) {
            copy(block + r * width, later.dgh + (b0 + r) * GH_ + panels.first(panel), panels.size(panel));
          }
        } else if (multiplied > 0) {
          PrefetchList prefetch_list(b1 - b0);
          if (b0 < n && !projected_ && prefetch_pays(p_.P, b1 - b0)) add_saved(t, b0, panel, prefetch_list);
          multiply(w_.W_hh,
                   {.A = {.data = later.dgh + b0 * GH_, .M = multiplied, .K = EH_, .row_stride = GH_},
                    .B = W_hh_,
                    .panel = panel,
                    .order = order_of(t),
                    .to = {block, width, L},
                    .kc = kc_of<T>(EH_),
                    .prefetch_list = &prefetch_list});
        }
        if (p_.resets && multiplied > 0) cut(time_after(t), panel, {b0, b0 + multiplied}, block);
        const Range with_step{b0, std::clamp(n, b0, b1)};
        if (projected_) {
          take_gradient(chunk, t, panel, with_step, block, multiplied);
        } else if (noisy_ || info_.normalised) {
          for (int64_t b = b0; b < with_step.end; ++b) {
            add_gradient(t, panel, b, b < b0 + multiplied ? block + (b - b0) * width : nullptr);
          }
          if (!info_.normalised) noisy_cells(chunk, t, panels.first(panel), panels.size(panel), with_step);
        } else if (with_step.begin < with_step.end) {
          for_each_cell_block(chunk, t, panels.first(panel), panels.size(panel), with_step,
                              [&](BackwardBlock<T>& of_cells, int64_t b) {
                                of_cells.dh = {dh_ + b * P_padded_ + panels.first(panel), P_padded_};
                                of_cells.product = {block + (b - b0) * width, width};
                                of_cells.multiplied = multiplied - (b - b0);
                                if (p_.dy) {
                                  of_cells.dy = {
                                      p_.dy + (p_.rows.row(t, b) * p_.D + d_) * p_.P + panels.first(panel),
                                      p_.rows.stride_b * p_.D * p_.P};
                                }
                              });
        }
        for (int64_t b = with_step.end; b < b0 + multiplied; ++b) {
          add_product(panel, b, block + (b - b0) * width);
        }
      }
    }
  }

  // No gradient passes to the step before `later` of sequences that begin anew there. product: theirs of a panel.
  void cut(int64_t later, int64_t panel, Range rows, Real<T>* product) const {
    const Panels<T>& panels = W_hh_.panels;
    for (int64_t b = rows.begin; b < rows.end; ++b) {
      if (!begins_anew(later, b)) continue;
      const int64_t units = panels.u(panel) * L;
      std::memset(product + (b - rows.begin) * panels.width(panel), 0, units * sizeof(Real<T>));
      std::memset(dh_ + b * P_padded_ + panels.first(panel), 0, units * sizeof(Real<T>));
    }
  }
  // The same for the states beside h, of some units.
  void cut_states(int64_t later, int64_t unit, int64_t units, Range rows) const {
    for (int64_t b = rows.begin; b < rows.end; ++b) {
      if (b >= p_.rows.n(later) || !begins_anew(later, b)) continue;
      for (int state = 0; state < C; ++state) {
        std::memset(dc_ + (state * p_.rows.B + b) * H_padded_ + unit, 0, units * sizeof(Real<T>));
      }
    }
  }

  // Adds a row of the product with W_hh to dh.
  void add_product(int64_t panel, int64_t b, const Real<T>* product) const {
    const Panels<T>& panels = W_hh_.panels;
    for (int j = 0; j < panels.u(panel); ++j) {
      const int64_t unit = panels.first(panel) + j * L;
      Real<T>* dh = dh_ + b * P_padded_ + unit;
      V change = load(product + j * L);
      if (p_.noise.mask) change *= load_upto(mask(b) + unit, p_.P - unit);
      store(dh, load(dh) + change);
    }
  }
  const T* mask(int64_t b) const { return p_.noise.mask + (d_ * p_.rows.B + b) * p_.P; }

  // dh of sequence b in step t: what reached it past the product, the product, null for none, and dy.
  void add_gradient(int64_t t, int64_t panel, int64_t b, const Real<T>* product) const {
    const Panels<T>& panels = W_hh_.panels;
    if (product) add_product(panel, b, product);
    for (int j = 0; p_.dy && j < panels.u(panel); ++j) {
      const int64_t unit = panels.first(panel) + j * L;
      Real<T>* dh = dh_ + b * P_padded_ + unit;
      const T* dy = p_.dy + (p_.rows.row(t, b) * p_.D + d_) * p_.P + unit;
      store(dh, load(dh) + load_upto(dy, p_.P - unit));
    }
  }

  // With zoneout or dropout of h: the cells of some units, once dh_ has all of dh.
  void noisy_cells(const Chunk& chunk, int64_t t, int64_t unit, int64_t units, Range rows) {
    if (rows.begin >= rows.end) return;
    if (zoned_ && p_.resets && time_after(t) >= 0) cut_states(time_after(t), unit, units, rows);
    if (zoned_) keep_gradients(t, unit, units, rows);
    alignas(64) T dropped[kRowBlock * kPanelVectors * L];
    for_each_cell_block(chunk, t, unit, units, rows, [&](BackwardBlock<T>& of_cells, int64_t b) {
      of_cells.dh = {dh_ + b * P_padded_ + unit, P_padded_};
      if (!has_W_hh_ && p_.noise.mask) {  // h_prev is what the product would read
        for (int64_t r = 0; r < of_cells.rows; ++r) drop(t, b + r, unit, units, dropped + r * units);
        of_cells.h_prev = {dropped, units};
      }
    });
    if (zoned_) add_kept_gradients(unit, units, rows);
  }

  // The hidden state before step t times the dropout mask.
  void drop(int64_t t, int64_t b, int64_t unit, int64_t units, T* to) const {
    const T *h = previous_h(t, b) + unit, *m = mask(b) + unit;
    for (int64_t j = 0; j < units; j += L) {
      store_upto(to + j, load_upto(h + j, units - j) * load_upto(m + j, units - j), units - j);
    }
  }

  // Zoneout parts the gradients of a step's states: what the old states get waits in `kept_`.
  void keep_gradients(int64_t t, int64_t unit, int64_t units, Range rows) {
    for (int64_t b = rows.begin; b < rows.end; ++b) {
      for (int64_t j = unit; j < unit + units; j += L) {
        const Zoneout<T> zoneout(p_.noise, (d_ * R_ + p_.rows.row(t, b)) * p_.H + j);
        for (int k = 0; k <= C; ++k) {
          Real<T>* d = gradient(k, b) + j;
          const V m = zoneout.factor(k), before = load(d);
          store(kept_ + (k * p_.rows.B + b) * H_padded_ + j, m * before);
          store(d, (1 - m) * before);
        }
      }
    }
  }
  void add_kept_gradients(int64_t unit, int64_t units, Range rows) {
    for (int64_t b = rows.begin; b < rows.end; ++b) {
      for (int64_t j = unit; j < unit + units; j += L) {
        for (int k = 0; k <= C; ++k) {
          Real<T>* d = gradient(k, b) + j;
          store(d, load(d) + load(kept_ + (k * p_.rows.B + b) * H_padded_ + j));
        }
      }
    }
  }
  // Of state k, 0 for h.
  Real<T>* gradient(int k, int64_t b) const {
    return k == 0 ? dh_ + b * P_padded_ : dc_ + ((k - 1) * p_.rows.B + b) * H_padded_;
  }

  // The cells of whole rows of step t, once dh_ has all of dh.
  void normalised_cells(const Chunk& chunk, int64_t t, Range rows) {
    if (noisy_) return noisy_cells(chunk, t, 0, p_.H, rows);
    for_each_cell_block(chunk, t, 0, p_.H, rows, [&](BackwardBlock<T>& of_cells, int64_t b) {
      of_cells.dh = {dh_ + b * P_padded_, P_padded_};
    });
  }

  // The gradient of v, which the late gates of step t multiply, and with it those of the other gates.
  void late_gradient(const Chunk& chunk, int64_t t, Range own, Range batch) {
    const Panels<T>& panels = W_late_.panels;
    alignas(64) Real<T> block[kRowBlock * kPanelVectors * L];
    const int64_t end = std::min(batch.end, p_.rows.n(t));
    for (int64_t panel = own.begin; panel < own.end; ++panel) {
      const int64_t width = panels.width(panel), unit = panels.first(panel), units = panels.size(panel);
      for (int64_t b0 = batch.begin; b0 < end; b0 += kRowBlock) {
        const int64_t b1 = std::min(b0 + kRowBlock, end);
        const T* dgates = buffers_.dgx + (chunk.row(t) + b0) * GH_ + EH_;
        multiply(W_late(), {.A = {.data = dgates, .M = b1 - b0, .K = late_ * p_.H, .row_stride = GH_},
                            .B = W_late_,
                            .panel = panel,
                            .order = order_of(t),
                            .to = {block, width, L},
                            .kc = kc_of<T>(late_ * p_.H)});
        for (int64_t b = b0; p_.noise.mask && b < b1; ++b) {
          for (int64_t j = 0; j < units; j += L) {
            Real<T>* dv = block + (b - b0) * width + j;
            store(dv, load(dv) * load_upto(mask(b) + unit + j, units - j));
          }
        }
        for_each_cell_block<Part::early>(chunk, t, unit, units, {b0, b1},
                                         [&](BackwardBlock<T>& of_cells, int64_t b) {
                                           of_cells.product = {block + (b - b0) * width, width};
                                           of_cells.multiplied = b1 - b;
                                           of_cells.dh = {dh_ + b * P_padded_ + unit, P_padded_};
                                           of_cells.m = {buffers_.v + (chunk.row(t) + b) * p_.H + unit, p_.H};
                                         });
        for (int64_t b = b0; p_.noise.mask && b < b1; ++b) {
          T* v = buffers_.v + (chunk.row(t) + b) * p_.H + unit;
          for (int64_t j = 0; j < units; j += L) {
            store_upto(v + j, load_upto(v + j, units - j) * load_upto(mask(b) + unit + j, units - j),
                       units - j);
          }
        }
      }
    }
  }

  // With a projection: dh of step t, which the projection's backward multiplies.
  void take_gradient(const Chunk& chunk, int64_t t, int64_t panel, Range rows, const Real<T>* product,
                     int64_t multiplied) {
    const Panels<T>& panels = W_hh_.panels;
    for (int64_t b = rows.begin; b < rows.end; ++b) {
      if (b < rows.begin + multiplied)
        add_product(panel, b, product + (b - rows.begin) * panels.width(panel));
      for (int j = 0; j < panels.u(panel); ++j) {
        const int64_t unit = panels.first(panel) + j * L, lanes = std::min<int64_t>(L, p_.P - unit);
        V dh = load(dh_ + b * P_padded_ + unit);
        if (p_.dy) dh += load_upto(p_.dy + (p_.rows.row(t, b) * p_.D + d_) * p_.P + unit, lanes);
        store_upto(buffers_.dh + (chunk.row(t) + b) * p_.P + unit, dh, lanes);
        store(dh_ + b * P_padded_ + unit, V{});
      }
    }
  }

  // What the cells of a panel read, from sequence b on, and the step after has not.
  void add_saved(int64_t t, int64_t b, int64_t panel, PrefetchList& prefetch_list) const {
    const int64_t row = p_.rows.row(t, b), before = previous_row(t, b);
    const int64_t y_row = info_.saved > 0 ? before : row;
    const int64_t unit = W_hh_.panels.first(panel), n = W_hh_.panels.size(panel);
    const auto add = [&](const auto* rows, int64_t size) {
      prefetch_list.add(rows + unit, n, p_.rows.stride_b * size);
    };
    if (p_.dy) add(p_.dy + (row * p_.D + d_) * p_.P, p_.D * p_.P);
    for (int saved = 0; saved < info_.saved; ++saved) {
      add(p_.s + ((d_ * R_ + row) * info_.saved + saved) * p_.H, info_.saved * p_.H);
    }
    for (int state = 0; state < C && before >= 0; ++state) {
      add(p_.c + ((d_ * R_ + before) * C + state) * p_.H, C * p_.H);
    }
    const bool reads_y = info_.saved == 0 || info_.reads_h;
    if (reads_y && y_row >= 0) add(p_.y + (y_row * p_.D + d_) * p_.P, p_.D * p_.P);
  }

  // With a projection the gradient of the cell's output m is dh W_hr.
  void unproject(const Chunk& chunk, int64_t t, Range own, Range batch) {
    const Panels<T>& panels = W_hr_.panels;
    alignas(64) Real<T> block[kRowBlock * kPanelVectors * L];
    const int64_t end = std::min(batch.end, p_.rows.n(t));
    for (int64_t panel = own.begin; panel < own.end; ++panel) {
      const int64_t width = panels.width(panel);
      for (int64_t b0 = batch.begin; b0 < end; b0 += kRowBlock) {
        const int64_t b1 = std::min(b0 + kRowBlock, end);
        const T* dh = buffers_.dh + (chunk.row(t) + b0) * p_.P;
        multiply(w_.W_hr, {.A = {.data = dh, .M = b1 - b0, .K = p_.P, .row_stride = p_.P},
                           .B = W_hr_,
                           .panel = panel,
                           .order = order_of(t),
                           .to = {block, width, L},
                           .kc = kc_of<T>(p_.P)});
        for_each_cell_block(chunk, t, panels.first(panel), panels.size(panel), {b0, b1},
                            [&](BackwardBlock<T>& of_cells, int64_t b) {
                              of_cells.product = {block + (b - b0) * width, width};
                              of_cells.multiplied = b1 - b;
                              of_cells.m = {buffers_.m + (chunk.row(t) + b) * p_.H + panels.first(panel),
                                            p_.H};
                            });
      }
    }
  }

  enum class Part { all, early };

  // Computes the cells of some units, in blocks of sequences whose states before the step stand alike: in the step
  // before, or as initial states. complete(block, b) adds what is missing in a block from sequence b on.
  template <Part part_of_cell = Part::all, class F>
  void for_each_cell_block(const Chunk& chunk, int64_t t, int64_t unit, int64_t units, Range rows,
                           const F& complete) const {
    if (p_.resets && part_of_cell == Part::all && !zoned_ && time_after(t) >= 0) {
      cut_states(time_after(t), unit, units, rows);
    }
    const int64_t before = time_before(t), with_before = before < 0 ? 0 : p_.rows.n(before);
    // Where the state before step t stands: in the step before, as an initial state, or it is zero.
    const auto place = [&](int64_t b) { return begins_anew(t, b) ? 2 : b < with_before ? 0 : 1; };
    for (Range part{rows.begin, rows.begin}; part.begin < rows.end; part.begin = part.end) {
      if (p_.resets) {
        for (++part.end; part.end < rows.end && place(part.end) == place(part.begin);) ++part.end;
      } else {
        part.end = part.begin < with_before ? std::min(with_before, rows.end) : rows.end;
      }
      BackwardBlock<T> block = cell_block(chunk, t, unit, units, part);
      complete(block, part.begin);
      (part_of_cell == Part::early ? cell_.backward_early : cell_.backward)(block);
    }
  }

  BackwardBlock<T> cell_block(const Chunk& chunk, int64_t t, int64_t unit, int64_t units, Range rows) const {
    const int64_t b = rows.begin, row = p_.rows.row(t, b), before = previous_row(t, b);
    const int64_t chunk_row = chunk.row(t) + b, stride = p_.rows.stride_b;
    BackwardBlock<T> block;
    block.rows = rows.end - rows.begin;
    block.units = units;
    for (int vector = 0; vector < U; ++vector) block.unit[vector] = w_.unit[vector] + unit;
    const auto saved = [&](const Real<T>* numbers, int64_t count, int64_t at) -> RowsAt<const Real<T>> {
      return {numbers + (d_ * R_ + at) * count * p_.H + unit, stride * count * p_.H};
    };
    block.saved_next = p_.H;
    if (info_.saved > 0) block.s = saved(p_.s, info_.saved, row);
    const int of_h = info_.saved == 0;  // of what zoneout saves
    if (C > 0) block.c = saved(p_.c, C, row);
    if (zoned_ && C > 0) block.c = saved(p_.computed + of_h * p_.H, of_h + C, row);
    if (zoned_ && of_h) block.h_computed = saved(p_.computed, of_h + C, row);
    if (C > 0 && before >= 0) block.c_prev = saved(p_.c, C, before);
    for (int state = 0; state < C && !begins_anew(t, b); ++state) {
      if (p_.c0[state]) block.c_0[state] = {p_.c0[state] + (d_ * p_.rows.B + b) * p_.H + unit, p_.H};
    }
    if (!projected_) {
      // A single step comes without y, unless the cell saves nothing else.
      const int64_t y_stride = stride * p_.D * p_.P;
      if (info_.saved == 0 && !zoned_) block.h = {p_.y + (row * p_.D + d_) * p_.P + unit, y_stride};
      if (info_.reads_h) {
        const T* h_prev = previous_h(t, b);
        block.h_prev = {h_prev + unit, before >= 0 ? y_stride : h_prev == zeros_ ? 0 : p_.P};
      }
    }
    if (C > 0) block.dc = {dc_ + b * H_padded_ + unit, H_padded_};
    block.c_next = p_.rows.B * H_padded_;
    block.dgx = {buffers_.dgx + chunk_row * GH_ + unit, GH_};
    if (buffers_.dgh != buffers_.dgx) block.dgh = {buffers_.dgh + chunk_row * GH_ + unit, GH_};
    if (U > 0) block.du = {buffers_.du + chunk_row * U * p_.H + unit, U * p_.H};
    block.gate = p_.H;
    if (scratch_) block.scratch = {scratch_ + b * H_padded_ + unit, H_padded_};
    return block;
  }

  // The row that held the state before step t, or -1 if that was the initial state, or zero.
  int64_t previous_row(int64_t t, int64_t b) const {
    const int64_t before = time_before(t);
    return before < 0 || b >= p_.rows.n(before) || begins_anew(t, b) ? -1 : p_.rows.row(before, b);
  }
  const T* previous_h(int64_t t, int64_t b) const {
    const int64_t row = previous_row(t, b);
    if (row >= 0) return p_.y + (row * p_.D + d_) * p_.P;
    return p_.h0 && !begins_anew(t, b) ? p_.h0 + (d_ * p_.rows.B + b) * p_.P : zeros_;
  }

  // The chunk's share of dW_ih, dW_hh, dW_hr, the vectors and dx. If another chunk follows, it needs what this one
  // has left, `carried`.
  void chunk_gradients(const Chunk& chunk, Team& team, Update update, const Later* carried) {
    const int64_t K = chunk.count();
    const Steal steal = K >= tuning::kStolenRows ? Steal::at_once : steal_;
    list_rows(chunk, team);
    team.for_each(sums_.packing_tasks(K), steal, Order::ascending,
                  [&](int64_t task) { sums_.pack(K, task); });
    const int64_t counts[] = {sums_.product_tasks(), p_.dx ? ceil_div(K, kRowBlock) : 0, sums_.vector_tasks(),
                              carried != nullptr};
    int64_t tasks = 0;
    for (int64_t count : counts) tasks += count;
    team.for_each(tasks, steal, Order::ascending, [&](int64_t task) {
      switch (kind_of(counts, task)) {
        case 0:
          return sums_.multiply(K, task, update);
        case 1:
          return input_gradient(block_of(task, kRowBlock, K));
        case 2:
          return sums_.add_vectors(K, task, update);
        default:
          std::memcpy(carry_, carried->dgh, carried->n * GH_ * sizeof(T));
      }
    });
  }

  // Where the chunk's rows of x, and of the hidden state before each step, stand.
  void list_rows(const Chunk& chunk, Team& team) {
    team.for_each_share(chunk.count(), [&](Range share) {
      int64_t first = 0;  // the chunk's row of the step's first sequence
      for (int64_t t = chunk.begin; t < chunk.end; ++t) {
        const int64_t b0 = chunk.sequences.begin, n = std::min(p_.rows.n(t), chunk.sequences.end) - b0;
        const int64_t last = std::min(share.end - first, n);
        for (int64_t b = std::max<int64_t>(share.begin - first, 0); b < last; ++b) {
          buffers_.x[first + b] = p_.x + p_.rows.row(t, b0 + b) * p_.I;
          buffers_.h[first + b] = previous_h(t, b0 + b);
          if (p_.noise.mask) {
            T* dropped = buffers_.dropped + (first + b) * p_.P;
            drop(t, b0 + b, 0, p_.P, dropped);
            buffers_.h[first + b] = dropped;
          }
        }
        first += n;
      }
    });
  }

  // dx = dgx W_ih for a block of the chunk's rows, the second direction's added to the first's; without W_ih dgx.
  void input_gradient(Range rows) const {
    for (int64_t row = rows.begin; !has_W_ih_ && row < rows.end; ++row) {
      copy(p_.dx + (buffers_.x[row] - p_.x) + d_ * GH_, buffers_.dgx + row * GH_, GH_);
    }
    if (!has_W_ih_) return;
    const Panels<T>& panels = W_ih_.panels;
    alignas(64) Real<T> block[kRowBlock * kPanelVectors * L];
    for (int64_t panel = 0; panel < panels.count(); ++panel) {
      const int64_t width = panels.width(panel), n = panels.size(panel), M = rows.end - rows.begin;
      multiply(w_.W_ih, {.A = {.data = buffers_.dgx + rows.begin * GH_, .M = M, .K = GH_, .row_stride = GH_},
                         .B = W_ih_,
                         .panel = panel,
                         .to = {block, width, L},
                         .kc = kc_of<T>(GH_)});
      for (int64_t row = rows.begin; row < rows.end; ++row) {
        T* dx = p_.dx + (buffers_.x[row] - p_.x) + panels.first(panel);
        for (int64_t column = 0; column < n; column += L) {
          const V sum = load(block + (row - rows.begin) * width + column);
          const V all = d_ == 0 ? sum : sum + load_upto(dx + column, n - column);
          store_upto(dx + column, all, n - column);
        }
      }
    }
  }

  void write_initial(const Team& team) const {
    const Range rows = team.own_share(p_.rows.B);
    for (int64_t b = rows.begin; b < rows.end; ++b) {
      const int64_t to = d_ * p_.rows.B + b;
      if (!direction_.reverse && begins_anew(0, b)) {  // its initial states are not read
        std::memset(dh_ + b * P_padded_, 0, p_.P * sizeof(Real<T>));
        for (int state = 0; state < C; ++state) {
          std::memset(dc_ + (state * p_.rows.B + b) * H_padded_, 0, p_.H * sizeof(Real<T>));
        }
      }
      if (p_.dh0) copy(p_.dh0 + to * p_.P, dh_ + b * P_padded_, p_.P);
      for (int state = 0; state < C; ++state) {
        if (p_.dc0[state]) copy(p_.dc0[state] + to * p_.H, dc_ + (state * p_.rows.B + b) * H_padded_, p_.H);
      }
    }
  }

  const int64_t EH_;  // columns of the gates that are not late
  const int64_t chunk_steps_;
  PackedMatrix<T> W_hh_, W_late_, W_hr_, W_ih_;
  const ChunkBuffers<T> buffers_;
  const GradientSums<T> sums_;
  T* carry_ = nullptr;          // [B, GH], dgh of the chunk before, if there are several
  Real<T>* dh_;                 // [B, P_padded]
  Real<T>* dc_ = nullptr;       // [C, B, H_padded]
  Real<T>* kept_ = nullptr;     // [1 + C, B, H_padded], the gradients that zoneout passes on
  Real<T>* scratch_ = nullptr;  // [G, B, H_padded], for cells that are normalised
  T* zeros_;                    // [max(P, H)]
};

template <class T>
void backward(const EngineCell<T>& cell, const BackwardParams<T>& p, const Resources& resources) {
  const Plan plan = make_plan(problem_of(cell.info, p), Pass::backward, usable_threads(resources.threads));
  for (int d = 0; d < p.D; ++d) {
    Backward<T> direction(cell, p, d, plan, resources);
    TaskQueue queue(plan.threads, plan.batch_groups);
    parallel(plan.threads, [&](int rank, int size) {
      Team team(rank, size, queue);
      direction.run(team);
      return team.waited();
    });
  }
}

}  // namespace fastrnn::cpu::FASTRNN_ISA
