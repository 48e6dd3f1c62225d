#pragma once

#include <type_traits>

#include "cells/registry.h"
#include "cuda/activations.h"
#include "cuda/exchange.h"
#include "cuda/recurrence.h"

// The persistent kernels' body: all steps of a recurrence, by a group of blocks that hold the weights in their
// registers. Written once at warp granularity over an execution context, which is a warp of the device
// (csrc/cuda/device_warp.cuh) or a thread of the host (tests/csrc/host_warp.h):
//
//   Ctx::var<V>              a register of each lane; [lane] is one lane's
//   lanes(f)                 calls f(lane) for every lane
//   warp(), block(), direction()
//   shared<V>(offset)        the block's shared memory
//   block_sync(), cluster_sync()
//   shuffle_xor(var, mask)   the value of lane ^ mask
//   mma<math>(c, a, b)       c += a b, a tile of the matrix unit
//   load_fresh<V>(address)   what another block wrote, past the first-level cache
//   signal(counter), wait_counter(counter, value)                    adds 1, waits until it is reached
//   barrier_init(at), barrier_expect(at, bytes), barrier_wait(at, parity), push(lane, rank, to, word, at)
//                            barriers in shared memory that count pushed bytes
// Calls outside lanes() are made by all lanes of a warp.

namespace fastrnn::cuda {

// The steps of a sweep, 0 .. T - 1, and their times.
struct Order {
  int64_t T;
  bool ascending;
  FASTRNN_INLINE int64_t time(int64_t i) const { return ascending ? i : T - 1 - i; }
  // The step of a sequence of `length` steps that this sweep meets last before iteration i, or -1.
  FASTRNN_INLINE int64_t before(int64_t i, int64_t length) const {
    const int64_t t = ascending ? time(i) - 1 : time(i) + 1;
    if (ascending) return t < length ? t : length - 1;
    return t < length ? t : -1;
  }
  // Whether that is the sequence's last step in this sweep.
  FASTRNN_INLINE bool ends(int64_t i, int64_t length) const {
    return ascending ? time(i) == length - 1 : time(i) == 0;
  }
};

FASTRNN_INLINE int64_t row_of(const DeviceRows& rows, int64_t t, int64_t b) {
  return rows.offsets ? rows.offsets[t] + b : t * rows.stride_t + b * rows.stride_b;
}
FASTRNN_INLINE int64_t length_of(const DeviceRows& rows, int64_t b) {
  return rows.lengths ? rows.lengths[b] : rows.T;
}
// Rows in all.
FASTRNN_INLINE int64_t total_rows(const DeviceRows& rows) {
  return rows.offsets ? rows.offsets[rows.T] : rows.T * rows.B;
}

// What a sweep does with a unit u of a sequence b: the forward.
template <class Cell_, Math math_>
struct ForwardRole {
  using Cell = Cell_;
  static constexpr Math math = math_;
  using T = Stored<math>;
  using Params = Recurrence<T>;
  static constexpr bool backward = false;
  static constexpr int G = Cell::gates;
  static constexpr int parts = 1;  // of what is exchanged: h
  static constexpr int states = kept_states(Cell::has_c, Cell::reads_h, backward);

  const Params& p;
  const int d;
  const Order order;
  const int64_t R;

  FASTRNN_DEVICE ForwardRole(const Params& p, int d)
      : p(p), d(d), order{p.rows.T, d == 0}, R(total_rows(p.rows)) {}

  FASTRNN_DEVICE int64_t last() const { return p.rows.T - 1; }
  FASTRNN_DEVICE bool active(int64_t i, int64_t length) const { return order.time(i) < length; }

  // The weight of unit u's gate for the exchanged h[k].
  FASTRNN_DEVICE T weight(int gate, int64_t u, int64_t /*part*/, int64_t k) const {
    return p.weights[d].W_hh[(gate * p.H + u) * p.H + k];
  }

  // Where h of sequence b stands before iteration i [H], or null for zeros. `fresh`: written by this sweep.
  FASTRNN_DEVICE const T* exchanged(int64_t i, int64_t b, bool& fresh) const {
    const int64_t t = order.before(i, length_of(p.rows, b));
    fresh = t >= 0;
    if (fresh) return p.y + row_of(p.rows, t, b) * p.D * p.H + d * p.H;
    return p.h0 ? p.h0 + (d * p.rows.B + b) * p.H : nullptr;
  }

  FASTRNN_DEVICE void start(int64_t u, int64_t b, float* state, int64_t stride) const {
    const int64_t at = (d * p.rows.B + b) * p.H + u;
    if (Cell::has_c) state[0] = p.c0 ? to_real(p.c0[at]) : 0;
    if (Cell::reads_h) state[Cell::has_c * stride] = p.h0 ? to_real(p.h0[at]) : 0;
  }

  struct Inputs {
    float gx[G];
  };
  FASTRNN_DEVICE Inputs load(int64_t i, int64_t u, int64_t b) const {
    Inputs in;
    const int64_t row = row_of(p.rows, order.time(i), b);
    FASTRNN_UNROLL
    for (int gate = 0; gate < G; ++gate) {
      in.gx[gate] = p.gx[row * p.D * G * p.H + (d * G + gate) * p.H + u];
    }
    return in;
  }

  // sums: W_hh h of the unit's gates.
  FASTRNN_DEVICE void step(int64_t i, int64_t u, int64_t b, const Inputs& in, const float (&sums)[G],
                           float* state, int64_t stride, T (&out)[parts]) const {
    const int64_t row = row_of(p.rows, order.time(i), b), at = (d * p.rows.B + b) * p.H + u;
    const Weights<T>& w = p.weights[d];
    float gx[G], gh[G], s[Cell::saved > 0 ? Cell::saved : 1], c = 0, h_prev = 0, h;
    FASTRNN_UNROLL
    for (int gate = 0; gate < G; ++gate) {
      gx[gate] = in.gx[gate] + (w.b_ih ? to_real(w.b_ih[gate * p.H + u]) : 0);
      gh[gate] = sums[gate] + (w.b_hh ? to_real(w.b_hh[gate * p.H + u]) : 0);
    }
    if (Cell::has_c) c = state[0];
    if (Cell::reads_h) h_prev = state[Cell::has_c * stride];
    cells::forward<Cell, Activations>(gx, gh, h_prev, s, c, h);
    if (Cell::has_c) state[0] = c;
    if (Cell::reads_h) state[Cell::has_c * stride] = h;

    out[0] = from_real<T>(h);
    p.y[row * p.D * p.H + d * p.H + u] = out[0];
    if (Cell::saved > 0 && p.s) {
      FASTRNN_UNROLL
      for (int k = 0; k < Cell::saved; ++k) {
        p.s[(d * R + row) * Cell::saved * p.H + k * p.H + u] = s[k];
      }
    }
    if (Cell::has_c && p.c) p.c[(d * R + row) * p.H + u] = c;
    if (order.ends(i, length_of(p.rows, b))) {
      if (p.hn) p.hn[at] = out[0];
      if (Cell::has_c && p.cn) p.cn[at] = from_real<T>(c);
    }
  }
};

// The backward, from the last step to the first; one iteration more, T, gives the gradients of h0 and c0.
// Between steps a unit keeps dc, and the part of dh that does not pass through W_hh.
template <class Cell_, Math math_>
struct BackwardRole {
  using Cell = Cell_;
  static constexpr Math math = math_;
  using T = Stored<math>;
  using Params = BackwardRecurrence<T>;
  static constexpr bool backward = true;
  static constexpr int G = Cell::gates;
  static constexpr int parts = G;  // of what is exchanged: the gradients of the hidden state's shares
  static constexpr int states = kept_states(Cell::has_c, Cell::reads_h, backward);

  const Params& p;
  const int d;
  const Order order, forward;
  const int64_t R;

  FASTRNN_DEVICE BackwardRole(const Params& p, int d)
      : p(p), d(d), order{p.rows.T, d == 1}, forward{p.rows.T, d == 0}, R(total_rows(p.rows)) {}

  FASTRNN_DEVICE int64_t last() const { return p.rows.T; }
  FASTRNN_DEVICE bool active(int64_t i, int64_t length) const {
    return i == p.rows.T || order.time(i) < length;
  }

  FASTRNN_DEVICE T weight(int /*row*/, int64_t u, int64_t gate, int64_t k) const {
    return p.weights[d].W_hh[(gate * p.H + k) * p.H + u];
  }

  // [G*H], or null for zeros.
  FASTRNN_DEVICE const T* exchanged(int64_t i, int64_t b, bool& fresh) const {
    const int64_t t = order.before(i, length_of(p.rows, b));
    fresh = t >= 0;
    return fresh ? p.dgh + (row_of(p.rows, t, b) * p.D + d) * G * p.H : nullptr;
  }

  FASTRNN_DEVICE void start(int64_t u, int64_t b, float* state, int64_t stride) const {
    const int64_t at = (d * p.rows.B + b) * p.H + u;
    state[0] = p.dhn ? to_real(p.dhn[at]) : 0;
    if (Cell::has_c) state[stride] = p.dcn ? to_real(p.dcn[at]) : 0;
  }

  struct Inputs {
    float dy, h, h_prev, c, c_prev, s[Cell::saved > 0 ? Cell::saved : 1];
  };
  FASTRNN_DEVICE Inputs load(int64_t i, int64_t u, int64_t b) const {
    Inputs in{};
    if (i == p.rows.T) return in;
    const int64_t row = row_of(p.rows, order.time(i), b), at = (d * p.rows.B + b) * p.H + u;
    // The same step is the forward's iteration T - 1 - i.
    const int64_t t = forward.before(p.rows.T - 1 - i, length_of(p.rows, b));
    const int64_t previous = t < 0 ? -1 : row_of(p.rows, t, b);
    const int64_t in_y = d * p.H + u;
    if (p.dy) in.dy = to_real(p.dy[row * p.D * p.H + in_y]);
    if (Cell::saved == 0) in.h = to_real(p.y[row * p.D * p.H + in_y]);
    if (Cell::reads_h) {
      in.h_prev = previous >= 0 ? to_real(p.y[previous * p.D * p.H + in_y]) : p.h0 ? to_real(p.h0[at]) : 0;
    }
    if (Cell::has_c) {
      in.c = p.c[(d * R + row) * p.H + u];
      in.c_prev = previous >= 0 ? p.c[(d * R + previous) * p.H + u] : p.c0 ? to_real(p.c0[at]) : 0;
    }
    FASTRNN_UNROLL
    for (int k = 0; k < Cell::saved; ++k) in.s[k] = p.s[(d * R + row) * Cell::saved * p.H + k * p.H + u];
    return in;
  }

  // sums: W_hh^T of the gradients of the hidden state's shares, one step later.
  FASTRNN_DEVICE void step(int64_t i, int64_t u, int64_t b, const Inputs& in, const float (&sums)[1],
                           float* state, int64_t stride, T (&out)[parts]) const {
    const int64_t at = (d * p.rows.B + b) * p.H + u;
    const float dh = sums[0] + state[0] + in.dy;
    float dc = Cell::has_c ? state[stride] : 0;
    if (i == p.rows.T) {
      if (p.dh0) p.dh0[at] = from_real<T>(dh);
      if (Cell::has_c && p.dc0) p.dc0[at] = from_real<T>(dc);
      return;
    }
    const int64_t row = (row_of(p.rows, order.time(i), b) * p.D + d) * G * p.H + u;
    float dgx[G], dgh[G], dh_prev = 0;
    Cell::template backward<Activations>(in.s, in.h_prev, in.h, in.c_prev, in.c, dh, dc, dgx, dgh, dh_prev);
    state[0] = dh_prev;
    if (Cell::has_c) state[stride] = dc;
    FASTRNN_UNROLL
    for (int gate = 0; gate < G; ++gate) {
      p.dgx[row + gate * p.H] = from_real<T>(dgx[gate]);
      out[gate] = from_real<T>(cells::has_split_gate<Cell> ? dgh[gate] : dgx[gate]);
      if (cells::has_split_gate<Cell>) p.dgh[row + gate * p.H] = out[gate];
    }
  }
};

// One warp's part of a sweep.
template <class Ctx, class Role, int tier>
class Sweep {
  static constexpr Math math = Role::math;
  using T = typename Role::T;
  using E = Element<math>;
  template <class V>
  using var = typename Ctx::template var<V>;

  static constexpr WarpRows kRows = warp_rows(Role::G, Role::backward);
  static constexpr int kRowsPerUnit = kRows.rows_per_unit;
  static constexpr int kUnitGroups = kRows.unit_groups();
  static constexpr int kBatch = tile_batch(tier, math), kBatchTiles = kBatch / kTileBatch;
  static constexpr bool kPushes = tier == 2;
  using Exchange = std::conditional_t<kPushes, ClusterExchange<Ctx, math>, GridExchange<Ctx, math>>;
  using Sums = var<float>[kBatchTiles][kRows.row_tiles][4];

 public:
  // counters: of the direction's group, one a tile; not used in tier 2.
  FASTRNN_DEVICE static void run(Ctx& ctx, const typename Role::Params& p, const Tiling& t, int d,
                                 uint32_t* counters) {
    Sweep(ctx, p, t, d).sweep(counters);
  }

 private:
  FASTRNN_DEVICE Sweep(Ctx& ctx, const typename Role::Params& p, const Tiling& t, int d)
      : ctx(ctx),
        t(t),
        role(p, d),
        H(p.H),
        B(p.rows.B),
        shape(exchange_shape(Role::G, Role::backward, p.H)),
        group(ctx.block() / t.blocks),
        row_warp(ctx.warp() / t.k_warps),
        k_warp(ctx.warp() % t.k_warps),
        unit0((int64_t{ctx.block() % t.blocks} * t.row_warps + row_warp) * kRows.units()) {
    const int64_t begin = int64_t{k_warp} * kRows.k_tiles(math);
    const int64_t left = t.k_tiles - begin;
    used = left < 0 ? 0 : static_cast<int>(left < kRows.k_tiles(math) ? left : kRows.k_tiles(math));
    k0 = begin * tile_shape(math).k;
  }

  FASTRNN_DEVICE Exchange make_exchange([[maybe_unused]] uint32_t* counters) {
    if constexpr (kPushes) {
      return Exchange(ctx, t, shape, kBatch, role.last());
    } else {
      return Exchange(ctx, t, shape, role.last(), counters);
    }
  }

  FASTRNN_DEVICE void sweep(uint32_t* counters) {
    Exchange exchange = make_exchange(counters);
    Product<Ctx, math, kRows.row_tiles, kBatchTiles> product;
    product.load_weights(ctx, [&](int row, int64_t k) { return weight(row, k0 + k); });
    clear_buffers();
    start_states();
    ctx.block_sync();
    if (kPushes) {
      for (int tile = 0; tile < t.tiles; ++tile) fetch(exchange, tile, 0);
    }
    exchange.start();

    // The last block may have warps without units. They take part where whole blocks meet, and only there.
    const bool idle = unit0 >= H;
    const bool computes = k_warp == 0 && !idle;
    for (int64_t i = 0; i <= role.last(); ++i) {
      for (int tile = 0; tile < t.tiles; ++tile) {
        var<typename Role::Inputs> inputs[kUnitGroups][kBatchTiles][2];
        if (computes) load_inputs(i, tile, inputs);
        if (!kPushes || !idle) exchange.wait(tile, i);
        if (!kPushes) {
          fetch(exchange, tile, i);
          ctx.block_sync();
        }
        Sums sums;
        // Before the first step of a backward no gate gradients exist; 0 * W would be NaN for infinite W.
        product.multiply(ctx, exchange.buffer(tile, i) + k0, t.row_elements,
                         idle || (Role::backward && i == 0) ? 0 : used, sums);
        if (t.k_warps > 1) add_slices((i * t.tiles + tile) % 2, sums);
        if (computes) compute(exchange, i, tile, sums, inputs);
        exchange.finish(tile, i);
      }
    }
    exchange.end();
  }

  FASTRNN_DEVICE E weight(int row, int64_t k) const {
    const int slot = row / 8;
    const int64_t u = unit0 + 8 * (slot / kRowsPerUnit) + row % 8, part = k / shape.part, j = k % shape.part;
    const bool inside = slot < kUnitGroups * kRowsPerUnit && u < H && part < shape.parts && j < H;
    return inside ? to_element<math>(role.weight(slot % kRowsPerUnit, u, part, j)) : E(0);
  }

  FASTRNN_DEVICE int warps() const { return t.row_warps * t.k_warps; }

  // Padding is multiplied too, by zeros.
  FASTRNN_DEVICE void clear_buffers() {
    uint32_t* words = ctx.template shared<uint32_t>(t.exchange);
    const int64_t count = (t.partials - t.exchange) / 4;
    for (int64_t first = 32 * ctx.warp(); first < count; first += 32 * warps()) {
      ctx.lanes([&](int lane) {
        if (first + lane < count) words[first + lane] = 0;
      });
    }
  }

  // Copies what iteration i reads into the tile's buffer.
  FASTRNN_DEVICE void fetch(const Exchange& exchange, int tile, int64_t i) {
    for (int n = ctx.warp(); n < kBatch; n += warps()) {
      const int64_t b = sequence(tile, n);
      if (b >= B) continue;
      bool fresh;
      const T* from = role.exchanged(i, b, fresh);
      E* to = exchange.buffer(tile, i) + n * t.row_elements;
      if (fresh && H * sizeof(T) % sizeof(Quad) == 0) {
        constexpr int kPerQuad = sizeof(Quad) / sizeof(T);
        for (int64_t k = 0; k < shape.K(); k += 32 * kPerQuad) {
          ctx.lanes([&](int lane) {
            const int64_t at = k + lane * kPerQuad;
            if (at >= shape.K()) return;
            Quad quad = ctx.template load_fresh<Quad>(from + at);
            if constexpr (math == Math::tf32) {
              for (uint32_t& word : quad.of) word = bit_cast<uint32_t>(to_tf32(bit_cast<float>(word)));
            }
            *reinterpret_cast<Quad*>(to + at) = quad;
          });
        }
      } else {
        for (int64_t part = 0; part < shape.parts; ++part) {
          for (int64_t k = 0; k < H; k += 32) {
            ctx.lanes([&](int lane) {
              if (k + lane < H) {
                to[part * shape.part + k + lane] =
                    from ? to_element<math>(ctx.template load_fresh<T>(from + part * H + k + lane)) : E(0);
              }
            });
          }
        }
      }
    }
  }

  FASTRNN_DEVICE int64_t sequence(int tile, int n) const {
    return (int64_t{group} * t.tiles + tile) * kBatch + n;
  }
  // Numbers that a lane keeps of a unit and sequence stand this far apart.
  FASTRNN_DEVICE int64_t state_stride() const { return int64_t{t.row_warps} * kRows.units() * kBatch; }
  FASTRNN_DEVICE float* state(int tile, int unit, int n) const {
    return ctx.template shared<float>(t.states) + tile * Role::states * state_stride() +
           (row_warp * kRows.units() + unit) * kBatch + n;
  }

  // Calls f(lane, unit group, batch tile, which, unit, n in the tile, sequence) for all that a lane computes.
  template <class F>
  FASTRNN_DEVICE void for_each_own(int tile, const F& f) {
    FASTRNN_UNROLL
    for (int unit_group = 0; unit_group < kUnitGroups; ++unit_group) {
      FASTRNN_UNROLL
      for (int batch_tile = 0; batch_tile < kBatchTiles; ++batch_tile) {
        FASTRNN_UNROLL
        for (int which = 0; which < 2; ++which) {
          ctx.lanes([&](int lane) {
            const int unit = 8 * unit_group + lane / 4, n = 8 * batch_tile + 2 * (lane % 4) + which;
            f(lane, unit_group, batch_tile, which, unit, n, sequence(tile, n));
          });
        }
      }
    }
  }

  FASTRNN_DEVICE void start_states() {
    if (k_warp != 0) return;
    for (int tile = 0; tile < t.tiles; ++tile) {
      for_each_own(tile, [&](int, int, int, int, int unit, int n, int64_t b) {
        if (unit0 + unit < H && b < B) role.start(unit0 + unit, b, state(tile, unit, n), state_stride());
      });
    }
  }

  FASTRNN_DEVICE bool takes_part(int64_t i, int unit, int64_t b) const {
    return unit0 + unit < H && b < B && role.active(i, length_of(role.p.rows, b));
  }

  // Ahead of the wait, so that it hides their latency.
  FASTRNN_DEVICE void load_inputs(int64_t i, int tile,
                                  var<typename Role::Inputs> (&inputs)[kUnitGroups][kBatchTiles][2]) {
    for_each_own(tile, [&](int lane, int ug, int bt, int which, int unit, int, int64_t b) {
      if (takes_part(i, unit, b)) inputs[ug][bt][which][lane] = role.load(i, unit0 + unit, b);
    });
  }

  // The k warps' sums of the same rows, added up by the first of them, in their order. Two buffers: a warp may
  // be at its next tile before this one's sums have been read, but not two ahead.
  FASTRNN_DEVICE void add_slices(int64_t parity, Sums& sums) {
    float* const base = ctx.template shared<float>(t.partials + parity * t.partial_bytes);
    const auto place = [&](int slice, int bt, int m, int j, int lane) {
      return base +
             (((((row_warp * (t.k_warps - 1) + slice - 1) * kBatchTiles + bt) * kRows.row_tiles + m) * 4 +
               j) *
                  32 +
              lane);
    };
    const auto for_each_sum = [&](const auto& f) {
      FASTRNN_UNROLL
      for (int bt = 0; bt < kBatchTiles; ++bt) {
        FASTRNN_UNROLL
        for (int m = 0; m < kRows.row_tiles; ++m) {
          FASTRNN_UNROLL
          for (int j = 0; j < 4; ++j) {
            ctx.lanes([&](int lane) { f(bt, m, j, lane); });
          }
        }
      }
    };
    if (k_warp > 0) {
      for_each_sum(
          [&](int bt, int m, int j, int lane) { *place(k_warp, bt, m, j, lane) = sums[bt][m][j][lane]; });
    }
    ctx.block_sync();
    if (k_warp == 0) {
      for (int slice = 1; slice < t.k_warps; ++slice) {
        for_each_sum(
            [&](int bt, int m, int j, int lane) { sums[bt][m][j][lane] += *place(slice, bt, m, j, lane); });
      }
    }
  }

  FASTRNN_DEVICE void compute(Exchange& exchange, int64_t i, int tile, Sums& sums,
                              const var<typename Role::Inputs> (&inputs)[kUnitGroups][kBatchTiles][2]) {
    var<E> elements[kUnitGroups][kBatchTiles][Role::parts][2];
    for_each_own(tile, [&](int lane, int ug, int bt, int which, int unit, int n, int64_t b) {
      float own[kRowsPerUnit];
      FASTRNN_UNROLL
      for (int row = 0; row < kRowsPerUnit; ++row) {
        const int slot = ug * kRowsPerUnit + row;
        own[row] = sums[bt][slot / 2][slot % 2 * 2 + which][lane];
      }
      T out[Role::parts] = {};
      const bool takes = takes_part(i, unit, b);
      if (takes) {
        role.step(i, unit0 + unit, b, inputs[ug][bt][which][lane], own, state(tile, unit, n), state_stride(),
                  out);
      }
      if constexpr (kPushes) {
        FASTRNN_UNROLL
        for (int part = 0; part < Role::parts; ++part) {
          // Who takes no part passes on what it had.
          elements[ug][bt][part][which][lane] =
              takes ? to_element<math>(out[part])
              : unit0 + unit < H
                  ? exchange.buffer(tile, i)[n * t.row_elements + part * shape.part + unit0 + unit]
                  : E(0);
        }
      }
    });
    if constexpr (kPushes) {
      FASTRNN_UNROLL
      for (int ug = 0; ug < kUnitGroups; ++ug) {
        FASTRNN_UNROLL
        for (int bt = 0; bt < kBatchTiles; ++bt) {
          FASTRNN_UNROLL
          for (int part = 0; part < Role::parts; ++part) {
            exchange.publish(tile, i, bt, part, unit0 + 8 * ug, elements[ug][bt][part]);
          }
        }
      }
    }
  }

  Ctx& ctx;
  const Tiling& t;
  const Role role;
  const int64_t H, B;
  const ExchangeShape shape;
  const int group, row_warp, k_warp;
  const int64_t unit0;
  int64_t k0;  // where this warp's slice begins
  int used;    // its tiles that hold more than padding
};

}  // namespace fastrnn::cuda
