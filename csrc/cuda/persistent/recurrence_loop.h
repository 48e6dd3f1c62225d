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
//   matrices(rows, row_bytes), load_matrices(words, matrices, offset)    8 rows in shared memory, and words of them: four
//                            matrices side by side, of 16 bytes a row, from `offset` bytes on. Lane l gets word l % 4 of
//                            row l / 4 of each
//   keep(value)              a value that is used in every step stays in a register
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
  // A share of a warp's rows and sequences: a unit tile and a batch tile, of which a lane has one unit and two sequences.
  static constexpr int kShares = kUnitTiles * kBatchTiles;
  static constexpr bool kPushes = kind == Kind::cluster;
  // Whether a warp loads the inputs of the next tile as soon as the other blocks have got what they wait for, and whether it
  // saves its results only then. The other kernels do not have the registers.
  static constexpr bool kLoadsAhead = !kPushes || math != Math::ieee, kSavesLater = kPushes && kLoadsAhead;
  using Exchange = std::conditional_t<kPushes, ClusterExchange<Ctx, math>, GridExchange<Ctx, math>>;
  using Sums = var<float>[kBatchTiles][kRows.row_tiles][4];
  using Inputs = var<typename Role::Inputs>[kShares][2];
  using Results = var<typename Role::Results>[kShares][2];
  using Biases = var<typename Role::Biases>[kUnitTiles];
  using Columns = var<typename Role::Columns>;

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
    const bool computes = k_warp_ < kShares && !idle;
    Biases biases;
    Inputs inputs;
    Columns columns;
    ctx_.lanes([&](int lane) {
      columns[lane] = role_.columns(unit0_ + lane / 4);
      if (kSavesLater) columns[lane].keep_in_registers(ctx_);
    });
    if (computes) {
      load_biases(biases);
      if (kLoadsAhead) load_inputs(0, 0, columns, inputs);
    }
    for (int i = 0; i <= role_.last; ++i) {
      for (int tile = 0; tile < t_.tiles; ++tile) {
        if (!kLoadsAhead && computes) load_inputs(i, tile, columns, inputs);
        if (!kPushes || !idle) exchange.wait(tile, i);
        // For two iterations ahead, and after the wait: so no address has to be loaded before a wait.
        const int row_ahead = load_first_row(i + 2);
        if (!kPushes) {
          fetch(exchange, tile, i);
          ctx_.block_sync();
        }
        Sums sums;
        product.multiply(ctx_, exchange.buffer(tile, i) + k0_, t_.row_elements, idle ? 0 : used_, sums);
        if (t_.k_warps > 1) add_slices(static_cast<unsigned>(i * t_.tiles + tile) % 2, sums);
        Results results;
        if (computes) compute(exchange, i, tile, biases, sums, inputs, columns, results);
        exchange.finish(tile, i);
        // The other blocks wait for what is above. What is below passes while this block waits for them: the inputs of
        // the next tile first, which take long to come.
        keep_first_row(i + 2, row_ahead);
        if (!kLoadsAhead || !computes) continue;
        const bool last_tile = tile + 1 == t_.tiles;
        if (!last_tile || i < role_.last) {
          load_inputs(i + last_tile, last_tile ? 0 : tile + 1, columns, inputs);
        }
        FASTRNN_UNROLL
        for (int share = 0; share < kShares; ++share) {
          if (kSavesLater && owns(share)) save(i, tile, share, columns, results);
        }
      }
    }
    exchange.end();
  }

  // The first row of iteration i, if it has a step. In a packed batch the first rows are loaded. Each warp keeps those
  // of a few iterations in shared memory, because no register is free for them.
  FASTRNN_DEVICE int load_first_row(int i) const {
    return i < role_.order.T ? first_row(role_.p.rows, role_.order.time(i)) : 0;
  }
  FASTRNN_DEVICE int& first_row_of(int i) const {
    return ctx_.template shared<int>(t_.rows)[ctx_.warp() * kRowsKept + static_cast<unsigned>(i) % kRowsKept];
  }
  FASTRNN_DEVICE void keep_first_row(int i, int row) {
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

  // The k warps that have the same rows divide their shares among them, as far as there are enough.
  FASTRNN_DEVICE bool owns(int share) const { return share % t_.k_warps == k_warp_; }
  FASTRNN_DEVICE static int unit_of(int share, int lane) { return 8 * (share / kBatchTiles) + lane / 4; }
  FASTRNN_DEVICE static int n_of(int share, int lane, int which) {
    return 8 * (share % kBatchTiles) + 2 * (lane % 4) + which;
  }
  // The sum of a row of a unit.
  FASTRNN_DEVICE static var<float>& sum_of(Sums& sums, int share, int row, int which) {
    const int slot = share / kBatchTiles * kRowsPerUnit + row;
    return sums[share % kBatchTiles][slot / 2][slot % 2 * 2 + which];
  }

  // Calls f(lane, share, which) for everything that a lane computes.
  template <class F>
  FASTRNN_DEVICE void for_each_own(const F& f) {
    FASTRNN_UNROLL
    for (int share = 0; share < kShares; ++share) {
      if (!owns(share)) continue;
      FASTRNN_UNROLL
      for (int which = 0; which < 2; ++which) {
        ctx_.lanes([&](int lane) { f(lane, share, which); });
      }
    }
  }

  FASTRNN_DEVICE void start_states() {
    if (k_warp_ != 0) return;
    for (int tile = 0; tile < t_.tiles; ++tile) {
      for (int share = 0; share < kShares; ++share) {
        for (int which = 0; which < 2; ++which) {
          ctx_.lanes([&](int lane) {
            const int unit = unit_of(share, lane), n = n_of(share, lane, which), b = sequence(tile, n);
            if (unit0_ + unit < H_ && b < B_) {
              role_.start(unit0_ + unit, b, state(tile, unit, n), state_stride());
            }
          });
        }
      }
    }
  }

  FASTRNN_DEVICE bool takes_part(const Place& place) const {
    return place.u < H_ && role_.active(place.i, place.length);
  }
  FASTRNN_DEVICE Place place_of(int i, int tile, int share, int which, int lane) const {
    const int n = n_of(share, lane, which), b = sequence(tile, n);
    const int in_step = b * static_cast<int>(role_.p.rows.stride_b);
    return {i,
            unit0_ + unit_of(share, lane),
            8 * (share / kBatchTiles),
            b,
            length(tile, n),
            first_row_of(i) + in_step,
            first_row_of(i + 1) + in_step};
  }

  FASTRNN_DEVICE void load_biases(Biases& biases) {
    FASTRNN_UNROLL
    for (int ut = 0; ut < kUnitTiles; ++ut) {
      ctx_.lanes([&](int lane) {
        const int u = unit0_ + 8 * ut + lane / 4;
        if (u < H_) biases[ut][lane] = role_.load_biases(u);
      });
    }
  }

  FASTRNN_DEVICE void load_inputs(int i, int tile, const Columns& columns, Inputs& inputs) {
    for_each_own([&](int lane, int share, int which) {
      const Place place = place_of(i, tile, share, which, lane);
      inputs[share][which][lane] =
          takes_part(place) ? role_.load(columns[lane], place) : typename Role::Inputs{};
    });
  }

  // Each of the k warps adds up the sums of its own shares, in the order of the k warps. There are two buffers: a warp can
  // start its next tile before the sums of this tile have been read, but it cannot be two tiles ahead.
  FASTRNN_DEVICE void add_slices(int parity, Sums& sums) {
    float* const base = ctx_.template shared<float>(t_.partials + parity * t_.partial_bytes);
    const auto place = [&](int slice, int share, int row, int which, int lane) {
      return base +
             (((((row_warp_ * t_.k_warps + slice) * kShares + share) * kRowsPerUnit + row) * 2 + which) * 32 +
              lane);
    };
    const auto for_each_sum = [&](const auto& skips, const auto& f) {
      FASTRNN_UNROLL
      for (int share = 0; share < kShares; ++share) {
        if (skips(share)) continue;
        FASTRNN_UNROLL
        for (int row = 0; row < kRowsPerUnit; ++row) {
          FASTRNN_UNROLL
          for (int which = 0; which < 2; ++which) {
            ctx_.lanes([&](int lane) { f(sum_of(sums, share, row, which)[lane], share, row, which, lane); });
          }
        }
      }
    };
    const auto nothing = [](int) { return false; };
    const auto others = [&](int share) { return !owns(share); };
    for_each_sum(nothing, [&](float& sum, int share, int row, int which, int lane) {
      *place(k_warp_, share, row, which, lane) = sum;
    });
    ctx_.block_sync();
    FASTRNN_ROLLED
    for (int slice = 0; slice < t_.k_warps; ++slice) {
      for_each_sum(others, [&](float& sum, int share, int row, int which, int lane) {
        const float added = *place(slice, share, row, which, lane);
        sum = slice == 0 ? added : sum + added;
      });
    }
  }

  // Everything that other blocks wait for. It has no branches but uniform ones, so that a lane computes its two sequences
  // side by side.
  FASTRNN_DEVICE void compute(Exchange& exchange, int i, int tile, const Biases& biases, Sums& sums,
                              const Inputs& inputs, const Columns& columns, Results& results) {
    FASTRNN_UNROLL
    for (int share = 0; share < kShares; ++share) {
      if (!owns(share)) continue;
      var<E> elements[Role::parts][2];
      FASTRNN_UNROLL
      for (int which = 0; which < 2; ++which) {
        ctx_.lanes([&](int lane) {
          float own[kRowsPerUnit];
          FASTRNN_UNROLL
          for (int row = 0; row < kRowsPerUnit; ++row) own[row] = sum_of(sums, share, row, which)[lane];
          const Place place = place_of(i, tile, share, which, lane);
          const int unit = unit_of(share, lane), n = n_of(share, lane, which);
          const bool takes = takes_part(place);
          auto& result = results[share][which][lane];
          result = role_.step(takes, place, biases[share / kBatchTiles][lane], inputs[share][which][lane],
                              own, state(tile, unit, n), state_stride());
          if constexpr (kPushes) {
            FASTRNN_UNROLL
            for (int part = 0; part < Role::parts; ++part) {
              // A unit that takes no part in this step pushes its old element again.
              elements[part][which][lane] =
                  takes ? to_element<math>(Role::exchanged(result, part))
                  : place.u < H_
                      ? exchange.buffer(tile, i)[n * t_.row_elements + part * shape_.part + place.u]
                      : E(0);
            }
          }
          if (!kPushes && takes) role_.save(columns[lane], place, result);
        });
      }
      if constexpr (kPushes) {
        // All lanes must have read the buffer before any lane pushes. Lanes without a unit read too, but push nothing.
        ctx_.warp_sync();
        FASTRNN_UNROLL
        for (int part = 0; part < Role::parts; ++part) {
          exchange.publish(tile, i, share % kBatchTiles, part, unit0_ + 8 * (share / kBatchTiles),
                           elements[part]);
        }
      }
      if (kPushes && !kSavesLater) save(i, tile, share, columns, results);
    }
  }

  FASTRNN_DEVICE void save(int i, int tile, int share, const Columns& columns, const Results& results) {
    FASTRNN_UNROLL
    for (int which = 0; which < 2; ++which) {
      ctx_.lanes([&](int lane) {
        const Place place = place_of(i, tile, share, which, lane);
        if (takes_part(place)) role_.save(columns[lane], place, results[share][which][lane]);
      });
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
