#pragma once

#include <type_traits>

#include "cuda/persistent/addresses.h"
#include "cuda/persistent/exchange.h"
#include "cuda/persistent/warp_product.h"

// The body of the persistent kernels: a block group computes all steps of a recurrence, and holds the weights in its
// registers. The code is written for a warp, over an execution context Ctx. The context is a warp of the device
// (csrc/cuda/persistent/device_warp.cuh) or a thread of the host (tests/csrc/cuda/host_warp.h). It has
//
//   Ctx::var<V>              a register in each lane; [lane] is the register of one lane
//   lanes(f)                 calls f(lane) for every lane
//   warp(), block(), direction()
//   shared<V>(offset)        the block's shared memory
//   block_sync(), cluster_sync(), warp_sync()
//   shuffle_xor(var, mask)   the value of lane ^ mask
//   mma<math>(c, a, b)       c += a b, for one tile of the matrix unit
//   load_fresh<V>(address)   what another block wrote; does not read the first-level cache
//   signal(counter)          adds 1
//   wait_counter(counter, value, limited)    waits until the counter reaches the value; with `limited`, no longer than
//                            the longest wait
//   barrier_init(at), barrier_expect(at, bytes), barrier_wait(at, parity), push(lane, rank, to, word, at)
//                            barriers in shared memory that count pushed bytes
// All lanes of a warp make the calls that are outside lanes().

namespace fastrnn::cuda {

// The work of one warp in a recurrence. Role: what it computes at a place (csrc/cuda/persistent/roles.h).
template <class Ctx, class Role, Kind kind>
class RecurrenceLoop {
  static constexpr Math math = Role::math;
  using T = typename Role::T;
  using E = Element<math>;
  template <class V>
  using var = typename Ctx::template var<V>;

  static constexpr WarpRows kRows = warp_rows(Role::G, Role::backward);
  static constexpr int kRowsPerUnit = kRows.rows_per_unit;
  static constexpr int kUnitTiles = kRows.unit_tiles();
  static constexpr int kBatch = tile_batch(kind, math), kBatchTiles = kBatch / kTileBatch;
  static constexpr bool kPushes = kind == Kind::cluster;
  using Exchange = std::conditional_t<kPushes, ClusterExchange<Ctx, math>, GridExchange<Ctx, math>>;
  using Sums = var<float>[kBatchTiles][kRows.row_tiles][4];

 public:
  // counters: of the block group of this direction, one a tile. A cluster does not use them.
  FASTRNN_DEVICE static void run(Ctx& ctx, const typename Role::Params& p, const Tiling& t, int d,
                                 uint32_t* counters) {
    RecurrenceLoop(ctx, p, t, d).run_steps(counters);
  }

 private:
  FASTRNN_DEVICE RecurrenceLoop(Ctx& ctx, const typename Role::Params& p, const Tiling& t, int d)
      : ctx_(ctx),
        t_(t),
        role_(p, d),
        H_(static_cast<int>(p.H)),
        B_(static_cast<int>(p.rows.B)),
        shape_(exchange_shape(Role::G, Role::backward, p.H)),
        block_group_(ctx.block() / t.blocks),
        row_warp_(ctx.warp() / t.k_warps),
        k_warp_(ctx.warp() % t.k_warps),
        unit0_((ctx.block() % t.blocks * t.row_warps + row_warp_) * kRows.units()) {
    const int begin = k_warp_ * kRows.k_tiles(math);
    const int left = static_cast<int>(t.k_tiles) - begin;
    used_ = left < 0 ? 0 : left < kRows.k_tiles(math) ? left : kRows.k_tiles(math);
    k0_ = begin * tile_shape(math).k;
  }

  FASTRNN_DEVICE Exchange make_exchange([[maybe_unused]] uint32_t* counters) {
    if constexpr (kPushes) {
      return Exchange(ctx_, t_, shape_, kBatch, role_.last);
    } else {
      return Exchange(ctx_, t_, shape_, role_.last, counters);
    }
  }

  FASTRNN_DEVICE void run_steps(uint32_t* counters) {
    Exchange exchange = make_exchange(counters);
    WarpProduct<Ctx, math, kRows.row_tiles, kBatchTiles> product;
    product.load_weights(ctx_, [&](int row, int64_t k) { return weight(row, k0_ + k); });
    clear_buffers();
    load_lengths();
    ctx_.block_sync();
    start_states();
    for (int i = 0; i < 2; ++i) keep_first_row(i, load_first_row(i));
    if (kPushes) {
      for (int tile = 0; tile < t_.tiles; ++tile) fetch(exchange, tile, 0);
    }
    exchange.start();

    // The last block may have warps without units. They only take part in the synchronisations of whole blocks.
    const bool idle = unit0_ >= H_;
    const bool computes = k_warp_ == 0 && !idle;
    var<typename Role::Biases> biases[kUnitTiles];
    if (computes) load_biases(biases);
    for (int i = 0; i <= role_.last; ++i) {
      int64_t row_ahead = 0;
      for (int tile = 0; tile < t_.tiles; ++tile) {
        var<typename Role::Inputs> inputs[kUnitTiles][kBatchTiles][2];
        if (computes) load_inputs(i, tile, inputs);
        if (!kPushes || !idle) exchange.wait(tile, i);
        // For two iterations ahead, and after the wait: so no address has to be loaded before a wait.
        row_ahead = load_first_row(i + 2);
        if (!kPushes) {
          fetch(exchange, tile, i);
          ctx_.block_sync();
        }
        Sums sums;
        // Before the first step of a backward there are no gate gradients, and 0 * W would be NaN for infinite W.
        product.multiply(ctx_, exchange.buffer(tile, i) + k0_, t_.row_elements,
                         idle || (Role::backward && i == 0) ? 0 : used_, sums);
        if (t_.k_warps > 1) add_slices((i * t_.tiles + tile) % 2, sums);
        if (computes) compute(exchange, i, tile, biases, sums, inputs);
        exchange.finish(tile, i);
      }
      keep_first_row(i + 2, row_ahead);
    }
    exchange.end();
  }

  // The first row of iteration i, if it has a step. In a packed batch the first rows are loaded. Each warp keeps those
  // of a few iterations in shared memory, because no register is free for them.
  FASTRNN_DEVICE int64_t load_first_row(int i) const {
    return i < role_.order.T ? first_row(role_.p.rows, role_.order.time(i)) : 0;
  }
  FASTRNN_DEVICE int64_t& first_row_of(int i) const {
    return ctx_.template shared<int64_t>(t_.rows)[ctx_.warp() * kRowsKept + i % kRowsKept];
  }
  FASTRNN_DEVICE void keep_first_row(int i, int64_t row) {
    ctx_.lanes([&](int lane) {
      if (lane == 0) first_row_of(i) = row;
    });
    ctx_.warp_sync();
  }

  FASTRNN_DEVICE E weight(int row, int64_t k) const {
    const int slot = row / 8, u = unit0_ + 8 * (slot / kRowsPerUnit) + row % 8;
    const int part = static_cast<int>(k / shape_.part), j = static_cast<int>(k % shape_.part);
    const bool inside = slot < kUnitTiles * kRowsPerUnit && u < H_ && part < shape_.parts && j < H_;
    return inside ? to_element<math>(role_.weight(slot % kRowsPerUnit, u, part, j)) : E(0);
  }

  FASTRNN_DEVICE int warps() const { return t_.row_warps * t_.k_warps; }

  // Products read the padding too, so it must be zero.
  FASTRNN_DEVICE void clear_buffers() {
    uint32_t* words = ctx_.template shared<uint32_t>(t_.exchange);
    const int64_t count = (t_.partials - t_.exchange) / 4;
    for (int64_t first = 32 * ctx_.warp(); first < count; first += 32 * warps()) {
      ctx_.lanes([&](int lane) {
        if (first + lane < count) words[first + lane] = 0;
      });
    }
  }

  // Copies the vectors that iteration i reads into the buffer of the tile.
  FASTRNN_DEVICE void fetch(const Exchange& exchange, int tile, int i) {
    for (int n = ctx_.warp(); n < kBatch; n += warps()) {
      const int b = sequence(tile, n);
      if (b >= B_) continue;
      const int before = role_.order.before(i, length(tile, n));
      const bool fresh = before >= 0;  // this recurrence has written it
      const T* from = fresh ? role_.written(row_of(role_.p.rows, before, b)) : role_.given(b);
      E* to = exchange.buffer(tile, i) + n * t_.row_elements;
      if (fresh && H_ * sizeof(T) % sizeof(Quad) == 0) {
        constexpr int kPerQuad = sizeof(Quad) / sizeof(T);
        for (int64_t k = 0; k < shape_.K(); k += 32 * kPerQuad) {
          ctx_.lanes([&](int lane) {
            const int64_t at = k + lane * kPerQuad;
            if (at >= shape_.K()) return;
            Quad quad = ctx_.template load_fresh<Quad>(from + at);
            if constexpr (math == Math::tf32) {
              for (uint32_t& word : quad.of) word = bit_cast<uint32_t>(to_tf32(bit_cast<float>(word)));
            }
            *reinterpret_cast<Quad*>(to + at) = quad;
          });
        }
      } else {
        for (int64_t part = 0; part < shape_.parts; ++part) {
          for (int64_t k = 0; k < H_; k += 32) {
            ctx_.lanes([&](int lane) {
              if (k + lane < H_) {
                to[part * shape_.part + k + lane] =
                    from ? to_element<math>(ctx_.template load_fresh<T>(from + part * H_ + k + lane)) : E(0);
              }
            });
          }
        }
      }
    }
  }

  FASTRNN_DEVICE int sequence(int tile, int n) const { return (block_group_ * t_.tiles + tile) * kBatch + n; }

  // The number of steps of a tile's sequences, 0 where there is no sequence. They are in shared memory: to read them
  // there does not wait for loads from global memory.
  FASTRNN_DEVICE int* lengths() const { return ctx_.template shared<int>(t_.lengths); }
  FASTRNN_DEVICE int length(int tile, int n) const { return lengths()[tile * kBatch + n]; }
  FASTRNN_DEVICE void load_lengths() {
    if (ctx_.warp() != 0) return;
    const int count = t_.tiles * kBatch;
    for (int first = 0; first < count; first += 32) {
      ctx_.lanes([&](int lane) {
        const int b = sequence(0, first + lane);
        const int64_t length = b < B_ ? length_of(role_.p.rows, b) : 0;
        if (first + lane < count) lengths()[first + lane] = static_cast<int>(length);
      });
    }
  }
  // The distance between the states that a lane keeps of one unit and sequence.
  FASTRNN_DEVICE int state_stride() const { return t_.row_warps * kRows.units() * kBatch; }
  FASTRNN_DEVICE float* state(int tile, int unit, int n) const {
    return ctx_.template shared<float>(t_.states) + tile * Role::states * state_stride() +
           (row_warp_ * kRows.units() + unit) * kBatch + n;
  }

  // Calls f(lane, unit tile, batch tile, which, unit, n in the tile, sequence) for everything that a lane computes.
  template <class F>
  FASTRNN_DEVICE void for_each_own(int tile, const F& f) {
    FASTRNN_UNROLL
    for (int unit_tile = 0; unit_tile < kUnitTiles; ++unit_tile) {
      FASTRNN_UNROLL
      for (int batch_tile = 0; batch_tile < kBatchTiles; ++batch_tile) {
        FASTRNN_UNROLL
        for (int which = 0; which < 2; ++which) {
          ctx_.lanes([&](int lane) {
            const int unit = 8 * unit_tile + lane / 4, n = 8 * batch_tile + 2 * (lane % 4) + which;
            f(lane, unit_tile, batch_tile, which, unit, n, sequence(tile, n));
          });
        }
      }
    }
  }

  FASTRNN_DEVICE void start_states() {
    if (k_warp_ != 0) return;
    for (int tile = 0; tile < t_.tiles; ++tile) {
      for_each_own(tile, [&](int, int, int, int, int unit, int n, int b) {
        if (unit0_ + unit < H_ && b < B_) role_.start(unit0_ + unit, b, state(tile, unit, n), state_stride());
      });
    }
  }

  FASTRNN_DEVICE bool takes_part(const Place& place) const {
    return place.u < H_ && role_.active(place.i, place.length);
  }
  FASTRNN_DEVICE Place place_of(int i, int tile, int unit, int n, int b) const {
    const int64_t in_step = int64_t{b} * static_cast<int>(role_.p.rows.stride_b);
    return {i, unit0_ + unit, b, length(tile, n), first_row_of(i) + in_step, first_row_of(i + 1) + in_step};
  }

  FASTRNN_DEVICE void load_biases(var<typename Role::Biases> (&biases)[kUnitTiles]) {
    FASTRNN_UNROLL
    for (int ut = 0; ut < kUnitTiles; ++ut) {
      ctx_.lanes([&](int lane) {
        const int u = unit0_ + 8 * ut + lane / 4;
        if (u < H_) biases[ut][lane] = role_.load_biases(u);
      });
    }
  }

  // Called before the wait, which hides the latency of these loads.
  FASTRNN_DEVICE void load_inputs(int i, int tile,
                                  var<typename Role::Inputs> (&inputs)[kUnitTiles][kBatchTiles][2]) {
    for_each_own(tile, [&](int lane, int ut, int bt, int which, int unit, int n, int b) {
      const Place place = place_of(i, tile, unit, n, b);
      if (takes_part(place)) inputs[ut][bt][which][lane] = role_.load(place);
    });
  }

  // The first of the k warps adds up the sums that the k warps have of the same rows, in order. There are two buffers:
  // a warp can start its next tile before the sums of this tile have been read, but it cannot be two tiles ahead.
  FASTRNN_DEVICE void add_slices(int parity, Sums& sums) {
    float* const base = ctx_.template shared<float>(t_.partials + parity * t_.partial_bytes);
    const auto place = [&](int slice, int bt, int m, int j, int lane) {
      return base +
             (((((row_warp_ * (t_.k_warps - 1) + slice - 1) * kBatchTiles + bt) * kRows.row_tiles + m) * 4 +
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
            ctx_.lanes([&](int lane) { f(bt, m, j, lane); });
          }
        }
      }
    };
    if (k_warp_ > 0) {
      for_each_sum(
          [&](int bt, int m, int j, int lane) { *place(k_warp_, bt, m, j, lane) = sums[bt][m][j][lane]; });
    }
    ctx_.block_sync();
    if (k_warp_ == 0) {
      for (int slice = 1; slice < t_.k_warps; ++slice) {
        for_each_sum(
            [&](int bt, int m, int j, int lane) { sums[bt][m][j][lane] += *place(slice, bt, m, j, lane); });
      }
    }
  }

  FASTRNN_DEVICE void compute(Exchange& exchange, int i, int tile,
                              const var<typename Role::Biases> (&biases)[kUnitTiles], Sums& sums,
                              const var<typename Role::Inputs> (&inputs)[kUnitTiles][kBatchTiles][2]) {
    var<E> elements[kUnitTiles][kBatchTiles][Role::parts][2];
    for_each_own(tile, [&](int lane, int ut, int bt, int which, int unit, int n, int b) {
      float own[kRowsPerUnit];
      FASTRNN_UNROLL
      for (int row = 0; row < kRowsPerUnit; ++row) {
        const int slot = ut * kRowsPerUnit + row;
        own[row] = sums[bt][slot / 2][slot % 2 * 2 + which][lane];
      }
      T out[Role::parts] = {};
      const Place place = place_of(i, tile, unit, n, b);
      const bool takes = takes_part(place);
      if (takes) {
        role_.step(place, biases[ut][lane], inputs[ut][bt][which][lane], own, state(tile, unit, n),
                   state_stride(), out);
      }
      if constexpr (kPushes) {
        FASTRNN_UNROLL
        for (int part = 0; part < Role::parts; ++part) {
          // A unit that takes no part in this step pushes its old element again.
          elements[ut][bt][part][which][lane] =
              takes ? to_element<math>(out[part])
              : unit0_ + unit < H_
                  ? exchange.buffer(tile, i)[n * t_.row_elements + part * shape_.part + unit0_ + unit]
                  : E(0);
        }
      }
    });
    if constexpr (kPushes) {
      // All lanes must have read the buffer before any lane pushes. Lanes without a unit read too, but push nothing.
      ctx_.warp_sync();
      FASTRNN_UNROLL
      for (int ut = 0; ut < kUnitTiles; ++ut) {
        FASTRNN_UNROLL
        for (int bt = 0; bt < kBatchTiles; ++bt) {
          FASTRNN_UNROLL
          for (int part = 0; part < Role::parts; ++part) {
            exchange.publish(tile, i, bt, part, unit0_ + 8 * ut, elements[ut][bt][part]);
          }
        }
      }
    }
  }

  Ctx& ctx_;
  const Tiling& t_;
  const Role role_;
  const int H_, B_;
  const ExchangeShape shape_;
  const int block_group_, row_warp_, k_warp_, unit0_;
  int k0_;    // where this warp's slice begins
  int used_;  // the tiles of the slice that hold more than padding
};

}  // namespace fastrnn::cuda
