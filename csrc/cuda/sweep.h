#pragma once

#include <type_traits>

#include "cells/registry.h"
#include "cuda/activations.h"
#include "cuda/exchange.h"
#include "cuda/recurrence.h"

// The persistent kernels' body: all steps of a recurrence, by a group of blocks that hold the weights in their
// registers. Written once at warp granularity over an execution context, which is a warp of the device
// (csrc/cuda/device_warp.cuh) or a thread of the host (tests/csrc/cuda/host_warp.h):
//
//   Ctx::var<V>              a register of each lane; [lane] is one lane's
//   lanes(f)                 calls f(lane) for every lane
//   warp(), block(), direction()
//   shared<V>(offset)        the block's shared memory
//   block_sync(), cluster_sync(), warp_sync()
//   shuffle_xor(var, mask)   the value of lane ^ mask
//   mma<math>(c, a, b)       c += a b, a tile of the matrix unit
//   load_fresh<V>(address)   what another block wrote, past the first-level cache
//   signal(counter)          adds 1
//   wait_counter(counter, value, limited)    until it is reached; not `limited`: however long that takes
//   barrier_init(at), barrier_expect(at, bytes), barrier_wait(at, parity), push(lane, rank, to, word, at)
//                            barriers in shared memory that count pushed bytes
// Calls outside lanes() are made by all lanes of a warp.

namespace fastrnn::cuda {

// The steps of a sweep, 0 .. T - 1, and their times.
struct Order {
  int T;
  bool ascending;
  FASTRNN_INLINE int time(int i) const { return ascending ? i : T - 1 - i; }
  // The step of a sequence of `length` steps that this sweep meets last before iteration i, or -1.
  FASTRNN_INLINE int before(int i, int length) const {
    const int t = ascending ? time(i) - 1 : time(i) + 1;
    if (ascending) return t < length ? t : length - 1;
    return t < length ? t : -1;
  }
  // Whether that is the sequence's last step in this sweep.
  FASTRNN_INLINE bool ends(int i, int length) const {
    return ascending ? time(i) == length - 1 : time(i) == 0;
  }
};

FASTRNN_INLINE int64_t length_of(const DeviceRows& rows, int64_t b) {
  return rows.lengths ? rows.lengths[b] : rows.T;
}
// The row of sequence 0 at step t.
FASTRNN_INLINE int64_t first_row(const DeviceRows& rows, int64_t t) {
  return rows.offsets ? rows.offsets[t] : t * rows.stride_t;
}
FASTRNN_INLINE int64_t row_of(const DeviceRows& rows, int64_t t, int64_t b) {
  return first_row(rows, t) + b * rows.stride_b;
}
// Rows in all.
FASTRNN_INLINE int64_t total_rows(const DeviceRows& rows) {
  return rows.offsets ? rows.offsets[rows.T] : rows.T * rows.B;
}

// A unit u of a sequence b in iteration i, and the sequence's rows in i and i + 1. All but rows fit 32 bits, or the
// plan is another (csrc/cuda/plan.cpp): products of longer numbers take more instructions and registers.
struct Place {
  int i, u, b, length;
  int64_t row, next_row;
};

// Where numbers of direction d stand.
template <class T>
class Addresses {
 public:
  FASTRNN_DEVICE Addresses(const Recurrence<T>& p, int d)
      : H(static_cast<int>(p.H)),
        B(static_cast<int>(p.rows.B)),
        D(p.D),
        d(d),
        first_saved(d == 0 ? 0 : total_rows(p.rows)) {}

  FASTRNN_DEVICE int64_t state(int b, int u) const { return int64_t{d * B + b} * H + u; }        // [D, B, H]
  FASTRNN_DEVICE int64_t output(int64_t row, int u) const { return row * (D * H) + d * H + u; }  // [R, D*H]
  FASTRNN_DEVICE int64_t gate(int64_t row, int G, int u) const {  // [R, D*G*H]: of the first gate
    return row * (D * G * H) + d * G * H + u;
  }
  FASTRNN_DEVICE int64_t saved(int64_t row, int S, int u) const {  // [D, R, S*H]
    return (first_saved + row) * (S * H) + u;
  }

 private:
  const int H, B, D, d;
  const int64_t first_saved;
};

// What a sweep does at a place: the forward.
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
  const int d, H, last;
  const Order order;
  const Addresses<T> at;

  FASTRNN_DEVICE ForwardRole(const Params& p, int d)
      : p(p),
        d(d),
        H(static_cast<int>(p.H)),
        last(static_cast<int>(p.rows.T) - 1),
        order{static_cast<int>(p.rows.T), d == 0},
        at(p, d) {}

  FASTRNN_DEVICE bool active(int i, int length) const { return order.time(i) < length; }

  // The weight of unit u's gate for the exchanged h[k].
  FASTRNN_DEVICE T weight(int gate, int u, int /*part*/, int k) const {
    return p.weights[d].W_hh[int64_t{gate * H + u} * H + k];
  }

  // Where h of a sequence stands after the step of this row [H].
  FASTRNN_DEVICE const T* written(int64_t row) const { return p.y + at.output(row, 0); }
  // And before its first step; null for zeros.
  FASTRNN_DEVICE const T* given(int b) const { return p.h0 ? p.h0 + at.state(b, 0) : nullptr; }

  FASTRNN_DEVICE void start(int u, int b, float* state, int stride) const {
    if (Cell::has_c) state[0] = p.c0 ? to_real(p.c0[at.state(b, u)]) : 0;
    if (Cell::reads_h) state[Cell::has_c * stride] = p.h0 ? to_real(p.h0[at.state(b, u)]) : 0;
  }

  // Of a unit.
  struct Biases {
    float ih[G], hh[G];
  };
  FASTRNN_DEVICE Biases load_biases(int u) const {
    const Weights<T>& w = p.weights[d];
    Biases biases;
    FASTRNN_UNROLL
    for (int gate = 0; gate < G; ++gate) {
      biases.ih[gate] = w.b_ih ? to_real(w.b_ih[gate * H + u]) : 0;
      biases.hh[gate] = w.b_hh ? to_real(w.b_hh[gate * H + u]) : 0;
    }
    return biases;
  }

  // As they stand in memory: to convert a number here would be to wait for it.
  struct Inputs {
    float gx[G];
  };
  FASTRNN_DEVICE Inputs load(const Place& place) const {
    Inputs in;
    const float* gx = p.gx + at.gate(place.row, G, place.u);
    FASTRNN_UNROLL
    for (int gate = 0; gate < G; ++gate) in.gx[gate] = gx[gate * H];
    return in;
  }

  // sums: W_hh h of the unit's gates.
  FASTRNN_DEVICE void step(const Place& place, const Biases& biases, const Inputs& in, const float (&sums)[G],
                           float* state, int stride, T (&out)[parts]) const {
    float gx[G], gh[G], s[Cell::saved > 0 ? Cell::saved : 1], c = 0, h_prev = 0, h;
    FASTRNN_UNROLL
    for (int gate = 0; gate < G; ++gate) {
      gx[gate] = in.gx[gate] + biases.ih[gate];
      gh[gate] = sums[gate] + biases.hh[gate];
    }
    if (Cell::has_c) c = state[0];
    if (Cell::reads_h) h_prev = state[Cell::has_c * stride];
    cells::forward<Cell, Activations>(gx, gh, h_prev, s, c, h);
    if (Cell::has_c) state[0] = c;
    if (Cell::reads_h) state[Cell::has_c * stride] = h;

    out[0] = from_real<T>(h);
    p.y[at.output(place.row, place.u)] = out[0];
    if (Cell::saved > 0 && p.s) {
      float* saved = p.s + at.saved(place.row, Cell::saved, place.u);
      FASTRNN_UNROLL
      for (int k = 0; k < Cell::saved; ++k) saved[k * H] = s[k];
    }
    if (Cell::has_c && p.c) p.c[at.saved(place.row, 1, place.u)] = c;
    if (order.ends(place.i, place.length)) {
      const int64_t end = at.state(place.b, place.u);
      if (p.hn) p.hn[end] = out[0];
      if (Cell::has_c && p.cn) p.cn[end] = from_real<T>(c);
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
  const int d, H, last;
  const Order order;
  const Addresses<T> at;

  FASTRNN_DEVICE BackwardRole(const Params& p, int d)
      : p(p),
        d(d),
        H(static_cast<int>(p.H)),
        last(static_cast<int>(p.rows.T)),
        order{last, d == 1},
        at(p, d) {}

  FASTRNN_DEVICE bool active(int i, int length) const {
    return i == last ? length > 0 : order.time(i) < length;
  }

  FASTRNN_DEVICE T weight(int /*row*/, int u, int gate, int k) const {
    return p.weights[d].W_hh[int64_t{gate * H + k} * H + u];
  }

  FASTRNN_DEVICE const T* written(int64_t row) const { return p.dgh + at.gate(row, G, 0); }  // [G*H]
  FASTRNN_DEVICE const T* given(int /*b*/) const { return nullptr; }

  FASTRNN_DEVICE void start(int u, int b, float* state, int stride) const {
    state[0] = p.dhn ? to_real(p.dhn[at.state(b, u)]) : 0;
    if (Cell::has_c) state[stride] = p.dcn ? to_real(p.dcn[at.state(b, u)]) : 0;
  }

  struct Biases {};
  FASTRNN_DEVICE Biases load_biases(int /*u*/) const { return {}; }

  // Whether the forward began a sequence with this step; if not, it came from the step of iteration i + 1.
  FASTRNN_DEVICE bool is_first(const Place& place) const { return order.ends(place.i, place.length); }

  struct Inputs {
    uint32_t dy, h, h_prev;  // bits of a T
    uint32_t c_prev;         // of a float, or, before the first step, of a T
    float c, s[Cell::saved > 0 ? Cell::saved : 1];
  };
  FASTRNN_DEVICE Inputs load(const Place& place) const {
    Inputs in{};
    if (place.i == last) return in;
    const int u = place.u;
    const bool first = is_first(place);
    if (p.dy) in.dy = bits_of(p.dy[at.output(place.row, u)]);
    if (Cell::saved == 0) in.h = bits_of(p.y[at.output(place.row, u)]);
    if (Cell::reads_h) {
      const T* h_prev = !first ? p.y + at.output(place.next_row, u)
                        : p.h0 ? p.h0 + at.state(place.b, u)
                               : nullptr;
      if (h_prev) in.h_prev = bits_of(*h_prev);
    }
    if (Cell::has_c) {
      in.c = p.c[at.saved(place.row, 1, u)];
      if (!first) {
        in.c_prev = bits_of(p.c[at.saved(place.next_row, 1, u)]);
      } else if (p.c0) {
        in.c_prev = bits_of(p.c0[at.state(place.b, u)]);
      }
    }
    if (Cell::saved > 0) {
      const float* saved = p.s + at.saved(place.row, Cell::saved, u);
      FASTRNN_UNROLL
      for (int k = 0; k < Cell::saved; ++k) in.s[k] = saved[k * H];
    }
    return in;
  }

  FASTRNN_DEVICE static float real_of(uint32_t bits) { return to_real(from_bits<T>(bits)); }

  // sums: W_hh^T of the gradients of the hidden state's shares, one step later.
  FASTRNN_DEVICE void step(const Place& place, const Biases&, const Inputs& in, const float (&sums)[1],
                           float* state, int stride, T (&out)[parts]) const {
    const float dh = sums[0] + state[0] + real_of(in.dy);
    float dc = Cell::has_c ? state[stride] : 0;
    if (place.i == last) {
      const int64_t start = at.state(place.b, place.u);
      if (p.dh0) p.dh0[start] = from_real<T>(dh);
      if (Cell::has_c && p.dc0) p.dc0[start] = from_real<T>(dc);
      return;
    }
    const int64_t gates = at.gate(place.row, G, place.u);
    const float c_prev = is_first(place) ? real_of(in.c_prev) : bit_cast<float>(in.c_prev);
    float dgx[G], dgh[G], dh_prev = 0;
    Cell::template backward<Activations>(in.s, real_of(in.h_prev), real_of(in.h), c_prev, in.c, dh, dc, dgx,
                                         dgh, dh_prev);
    state[0] = dh_prev;
    if (Cell::has_c) state[stride] = dc;
    FASTRNN_UNROLL
    for (int gate = 0; gate < G; ++gate) {
      p.dgx[gates + gate * H] = from_real<T>(dgx[gate]);
      out[gate] = from_real<T>(cells::has_split_gate<Cell> ? dgh[gate] : dgx[gate]);
      if (cells::has_split_gate<Cell>) p.dgh[gates + gate * H] = out[gate];
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
        H(static_cast<int>(p.H)),
        B(static_cast<int>(p.rows.B)),
        shape(exchange_shape(Role::G, Role::backward, p.H)),
        group(ctx.block() / t.blocks),
        row_warp(ctx.warp() / t.k_warps),
        k_warp(ctx.warp() % t.k_warps),
        unit0((ctx.block() % t.blocks * t.row_warps + row_warp) * kRows.units()) {
    const int begin = k_warp * kRows.k_tiles(math);
    const int left = static_cast<int>(t.k_tiles) - begin;
    used = left < 0 ? 0 : left < kRows.k_tiles(math) ? left : kRows.k_tiles(math);
    k0 = begin * tile_shape(math).k;
  }

  FASTRNN_DEVICE Exchange make_exchange([[maybe_unused]] uint32_t* counters) {
    if constexpr (kPushes) {
      return Exchange(ctx, t, shape, kBatch, role.last);
    } else {
      return Exchange(ctx, t, shape, role.last, counters);
    }
  }

  FASTRNN_DEVICE void sweep(uint32_t* counters) {
    Exchange exchange = make_exchange(counters);
    Product<Ctx, math, kRows.row_tiles, kBatchTiles> product;
    product.load_weights(ctx, [&](int row, int64_t k) { return weight(row, k0 + k); });
    clear_buffers();
    load_lengths();
    ctx.block_sync();
    start_states();
    for (int i = 0; i < 2; ++i) keep_first_row(i, load_first_row(i));
    if (kPushes) {
      for (int tile = 0; tile < t.tiles; ++tile) fetch(exchange, tile, 0);
    }
    exchange.start();

    // The last block may have warps without units. They take part where whole blocks meet, and only there.
    const bool idle = unit0 >= H;
    const bool computes = k_warp == 0 && !idle;
    var<typename Role::Biases> biases[kUnitGroups];
    if (computes) load_biases(biases);
    for (int i = 0; i <= role.last; ++i) {
      int64_t row_ahead = 0;
      for (int tile = 0; tile < t.tiles; ++tile) {
        var<typename Role::Inputs> inputs[kUnitGroups][kBatchTiles][2];
        if (computes) load_inputs(i, tile, inputs);
        if (!kPushes || !idle) exchange.wait(tile, i);
        // Two iterations ahead and after the wait, so that before a wait no address is loaded.
        row_ahead = load_first_row(i + 2);
        if (!kPushes) {
          fetch(exchange, tile, i);
          ctx.block_sync();
        }
        Sums sums;
        // Before the first step of a backward no gate gradients exist; 0 * W would be NaN for infinite W.
        product.multiply(ctx, exchange.buffer(tile, i) + k0, t.row_elements,
                         idle || (Role::backward && i == 0) ? 0 : used, sums);
        if (t.k_warps > 1) add_slices((i * t.tiles + tile) % 2, sums);
        if (computes) compute(exchange, i, tile, biases, sums, inputs);
        exchange.finish(tile, i);
      }
      keep_first_row(i + 2, row_ahead);
    }
    exchange.end();
  }

  // The first row of iteration i, if it has a step. In a packed batch they are loaded, and each warp keeps those of
  // a few iterations in shared memory: no register is free for them.
  FASTRNN_DEVICE int64_t load_first_row(int i) const {
    return i < role.order.T ? first_row(role.p.rows, role.order.time(i)) : 0;
  }
  FASTRNN_DEVICE int64_t& first_row_of(int i) const {
    return ctx.template shared<int64_t>(t.rows)[ctx.warp() * kRowsKept + i % kRowsKept];
  }
  FASTRNN_DEVICE void keep_first_row(int i, int64_t row) {
    ctx.lanes([&](int lane) {
      if (lane == 0) first_row_of(i) = row;
    });
    ctx.warp_sync();
  }

  FASTRNN_DEVICE E weight(int row, int64_t k) const {
    const int slot = row / 8, u = unit0 + 8 * (slot / kRowsPerUnit) + row % 8;
    const int part = static_cast<int>(k / shape.part), j = static_cast<int>(k % shape.part);
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
  FASTRNN_DEVICE void fetch(const Exchange& exchange, int tile, int i) {
    for (int n = ctx.warp(); n < kBatch; n += warps()) {
      const int b = sequence(tile, n);
      if (b >= B) continue;
      const int before = role.order.before(i, length(tile, n));
      const bool fresh = before >= 0;  // written by this sweep
      const T* from = fresh ? role.written(row_of(role.p.rows, before, b)) : role.given(b);
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

  FASTRNN_DEVICE int sequence(int tile, int n) const { return (group * t.tiles + tile) * kBatch + n; }

  // Steps of a tile's sequences, 0 where there is no sequence. In shared memory, where reading them does not
  // wait for loads that are under way.
  FASTRNN_DEVICE int* lengths() const { return ctx.template shared<int>(t.lengths); }
  FASTRNN_DEVICE int length(int tile, int n) const { return lengths()[tile * kBatch + n]; }
  FASTRNN_DEVICE void load_lengths() {
    if (ctx.warp() != 0) return;
    const int count = t.tiles * kBatch;
    for (int first = 0; first < count; first += 32) {
      ctx.lanes([&](int lane) {
        const int b = sequence(0, first + lane);
        const int64_t length = b < B ? length_of(role.p.rows, b) : 0;
        if (first + lane < count) lengths()[first + lane] = static_cast<int>(length);
      });
    }
  }
  // Numbers that a lane keeps of a unit and sequence stand this far apart.
  FASTRNN_DEVICE int state_stride() const { return t.row_warps * kRows.units() * kBatch; }
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
      for_each_own(tile, [&](int, int, int, int, int unit, int n, int b) {
        if (unit0 + unit < H && b < B) role.start(unit0 + unit, b, state(tile, unit, n), state_stride());
      });
    }
  }

  FASTRNN_DEVICE bool takes_part(const Place& place) const {
    return place.u < H && role.active(place.i, place.length);
  }
  FASTRNN_DEVICE Place place_of(int i, int tile, int unit, int n, int b) const {
    const int64_t in_step = int64_t{b} * static_cast<int>(role.p.rows.stride_b);
    return {i, unit0 + unit, b, length(tile, n), first_row_of(i) + in_step, first_row_of(i + 1) + in_step};
  }

  FASTRNN_DEVICE void load_biases(var<typename Role::Biases> (&biases)[kUnitGroups]) {
    FASTRNN_UNROLL
    for (int ug = 0; ug < kUnitGroups; ++ug) {
      ctx.lanes([&](int lane) {
        const int u = unit0 + 8 * ug + lane / 4;
        if (u < H) biases[ug][lane] = role.load_biases(u);
      });
    }
  }

  // Ahead of the wait, so that it hides their latency.
  FASTRNN_DEVICE void load_inputs(int i, int tile,
                                  var<typename Role::Inputs> (&inputs)[kUnitGroups][kBatchTiles][2]) {
    for_each_own(tile, [&](int lane, int ug, int bt, int which, int unit, int n, int b) {
      const Place place = place_of(i, tile, unit, n, b);
      if (takes_part(place)) inputs[ug][bt][which][lane] = role.load(place);
    });
  }

  // The k warps' sums of the same rows, added up by the first of them, in their order. Two buffers: a warp may
  // be at its next tile before this one's sums have been read, but not two ahead.
  FASTRNN_DEVICE void add_slices(int parity, Sums& sums) {
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

  FASTRNN_DEVICE void compute(Exchange& exchange, int i, int tile,
                              const var<typename Role::Biases> (&biases)[kUnitGroups], Sums& sums,
                              const var<typename Role::Inputs> (&inputs)[kUnitGroups][kBatchTiles][2]) {
    var<E> elements[kUnitGroups][kBatchTiles][Role::parts][2];
    for_each_own(tile, [&](int lane, int ug, int bt, int which, int unit, int n, int b) {
      float own[kRowsPerUnit];
      FASTRNN_UNROLL
      for (int row = 0; row < kRowsPerUnit; ++row) {
        const int slot = ug * kRowsPerUnit + row;
        own[row] = sums[bt][slot / 2][slot % 2 * 2 + which][lane];
      }
      T out[Role::parts] = {};
      const Place place = place_of(i, tile, unit, n, b);
      const bool takes = takes_part(place);
      if (takes) {
        role.step(place, biases[ug][lane], inputs[ug][bt][which][lane], own, state(tile, unit, n),
                  state_stride(), out);
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
      // All lanes have read the buffer before any pushes, also those without a unit, which push nothing.
      ctx.warp_sync();
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
  const int H, B;
  const ExchangeShape shape;
  const int group, row_warp, k_warp, unit0;
  int k0;    // where this warp's slice begins
  int used;  // its tiles that hold more than padding
};

}  // namespace fastrnn::cuda
