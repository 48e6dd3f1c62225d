#pragma once

#include <type_traits>

#include "cuda/persistent/elements.h"
#include "cuda/persistent/tiling.h"

// The product of a warp: weights that stay in its registers, times the exchanged vectors in shared memory. Ctx is an
// execution context (csrc/cuda/persistent/recurrence_loop.h).

namespace fastrnn::cuda {

// A warp has [16 row_tiles, k_slice] weights. The matrix unit defines the coordinates of a lane in a tile: `tile_row` =
// lane / 4 is a row of the weights or a sequence; `row_lane` = lane % 4 is an index along k, or a pair of sequences of
// the result.
template <class Ctx, Math math, int row_tiles, int batch_tiles>
class WarpProduct {
  static constexpr TileShape kTile = tile_shape(math);
  static constexpr int kTiles = kWeightWords / (row_tiles * kTile.words);
  template <class V>
  using var = typename Ctx::template var<V>;

 public:
  // element(row, k): the weight of a row of the warp, at k of its slice. All warps of a block must call this.
  template <class F>
  FASTRNN_DEVICE void load_weights(Ctx& ctx, const F& element) {
    FASTRNN_UNROLL
    for (int kt = 0; kt < kTiles; ++kt) {
      // A barrier keeps the compiler from starting more loads than it has registers for.
      if (kt % kTilesPerCheck == 0) ctx.block_sync();
      FASTRNN_UNROLL
      for (int m = 0; m < row_tiles; ++m) {
        FASTRNN_UNROLL
        for (int word = 0; word < kTile.words; ++word) {
          ctx.lanes([&](int lane) {
            const int tile_row = lane / 4, row_lane = lane % 4;
            if constexpr (math == Math::ieee) {
              const int row = 16 * m + tile_row + 8 * (word / 4), k = kt * kTile.k + 4 * row_lane + word % 4;
              weights_[m][kt][word][lane] = bit_cast<uint32_t>(element(row, k));
            } else if constexpr (math == Math::tf32) {
              const int row = 16 * m + tile_row + 8 * (word % 2),
                        k = kt * kTile.k + row_lane + 4 * (word / 2);
              weights_[m][kt][word][lane] = bit_cast<uint32_t>(element(row, k));
            } else {
              const int row = 16 * m + tile_row + 8 * (word % 2),
                        k = kt * kTile.k + 2 * row_lane + 8 * (word / 2);
              weights_[m][kt][word][lane] = element(row, k) | static_cast<uint32_t>(element(row, k + 1))
                                                                  << 16;
            }
          });
        }
      }
    }
  }

  // sums [16 row_tiles, 8 batch_tiles] = weights [., k] * vectors [8 batch_tiles, k]^T, over `used` tiles of the
  // slice. A lane has four numbers of a tile's result: rows `tile_row` (0, 1) and `tile_row` + 8 (2, 3), for sequences
  // 2 `row_lane` and 2 `row_lane` + 1.
  FASTRNN_DEVICE void multiply(Ctx& ctx, const Element<math>* vectors, int64_t row_elements, int used,
                               var<float> (&sums)[batch_tiles][row_tiles][4]) const {
    if constexpr (math == Math::ieee) {
      multiply_ieee(ctx, vectors, row_elements, used, sums);
    } else {
      multiply_tiles(ctx, vectors, row_elements, used, sums);
    }
  }

 private:
  // Independent chains of sums: their multiply-adds do not wait for each other.
  static constexpr int kChains = row_tiles * batch_tiles >= 4 ? 1 : 4 / (row_tiles * batch_tiles);

  FASTRNN_DEVICE void multiply_tiles(Ctx& ctx, const Element<math>* vectors, int64_t row_elements, int used,
                                     var<float> (&sums)[batch_tiles][row_tiles][4]) const {
    var<float> chains[kChains][batch_tiles][row_tiles][4];
    clear(ctx, chains);
    const int64_t row_bytes = row_elements * sizeof(Element<math>);
    typename Ctx::Matrices matrices[batch_tiles];
    FASTRNN_UNROLL
    for (int n = 0; n < batch_tiles; ++n) {
      matrices[n] = ctx.matrices(vectors + 8 * n * row_elements, row_bytes);
    }
    FASTRNN_UNROLL
    for (int first = 0; first < kTiles; first += kTilesPerCheck) {
      if (first < used) {
        FASTRNN_UNROLL
        for (int kt = first; kt < first + kTilesPerCheck; kt += 2) {
          FASTRNN_UNROLL
          for (int n = 0; n < batch_tiles; ++n) {
            // Two tiles along k, which are two matrices of 16 bytes a row each.
            var<uint32_t> words[4];
            ctx.load_matrices(words, matrices[n], kt * kTile.k * sizeof(Element<math>));
            FASTRNN_UNROLL
            for (int of_two = 0; of_two < 2; ++of_two) {
              const var<uint32_t> tile[2] = {words[2 * of_two], words[2 * of_two + 1]};
              FASTRNN_UNROLL
              for (int m = 0; m < row_tiles; ++m) {
                ctx.template mma<math>(chains[(kt + of_two) % kChains][n][m], weights_[m][kt + of_two], tile);
              }
            }
          }
        }
      }
    }
    FASTRNN_UNROLL
    for (int n = 0; n < batch_tiles; ++n) {
      FASTRNN_UNROLL
      for (int m = 0; m < row_tiles; ++m) {
        FASTRNN_UNROLL
        for (int j = 0; j < 4; ++j) {
          ctx.lanes([&](int lane) {
            float sum = chains[0][n][m][j][lane];
            FASTRNN_UNROLL
            for (int chain = 1; chain < kChains; ++chain) sum += chains[chain][n][m][j][lane];
            sums[n][m][j][lane] = sum;
          });
        }
      }
    }
  }

  // A lane sums over k = 4 row_lane .. 4 row_lane + 3 of every tile, for all 8 sequences. Then the four lanes of a tile
  // row add up their sums, and each keeps two sequences.
  FASTRNN_DEVICE void multiply_ieee(Ctx& ctx, const float* vectors, int64_t row_elements, int used,
                                    var<float> (&sums)[batch_tiles][row_tiles][4]) const {
    constexpr int kRows = 2 * row_tiles;
    var<float> partial[batch_tiles][kRows][8];
    clear(ctx, partial);
    FASTRNN_UNROLL
    for (int first = 0; first < kTiles; first += kTilesPerCheck) {
      if (first < used) {
        FASTRNN_UNROLL
        for (int kt = first; kt < first + kTilesPerCheck; ++kt) {
          FASTRNN_UNROLL
          for (int n = 0; n < 8 * batch_tiles; ++n) {
            ctx.lanes([&](int lane) {
              const Quad h = read_as<Quad>(vectors + n * row_elements + kt * kTile.k + 4 * (lane % 4));
              FASTRNN_UNROLL
              for (int row = 0; row < kRows; ++row) {
                FASTRNN_UNROLL
                for (int j = 0; j < 4; ++j) {
                  partial[n / 8][row][n % 8][lane] +=
                      bit_cast<float>(weights_[row / 2][kt][4 * (row % 2) + j][lane]) *
                      bit_cast<float>(h.of[j]);
                }
              }
            });
          }
        }
      }
    }
    FASTRNN_UNROLL
    for (int n = 0; n < batch_tiles; ++n) {
      FASTRNN_UNROLL
      for (int row = 0; row < kRows; ++row) {
        var<float>(&all)[8] = partial[n][row];
        halve<4>(ctx, all);
        halve<2>(ctx, all);
        FASTRNN_UNROLL
        for (int j = 0; j < 2; ++j) {
          ctx.lanes([&](int lane) { sums[n][row / 2][2 * (row % 2) + j][lane] = all[j][lane]; });
        }
      }
    }
  }

  // Keeps the lower or the upper half of 2 * count numbers, and adds the numbers that the partner lane has for it.
  template <int count>
  FASTRNN_DEVICE static void halve(Ctx& ctx, var<float> (&all)[8]) {
    constexpr int kPartner = count / 2;
    FASTRNN_UNROLL
    for (int j = 0; j < count; ++j) {
      var<float> sent;
      ctx.lanes([&](int lane) {
        const bool upper = (lane & kPartner) != 0;
        sent[lane] = upper ? all[j][lane] : all[count + j][lane];
        all[j][lane] = upper ? all[count + j][lane] : all[j][lane];
      });
      const var<float> received = ctx.shuffle_xor(sent, kPartner);
      ctx.lanes([&](int lane) { all[j][lane] += received[lane]; });
    }
  }

  // Sets any array of registers to zero.
  template <class A>
  FASTRNN_DEVICE static void clear(Ctx& ctx, A& values) {
    if constexpr (std::is_array_v<A>) {
      FASTRNN_UNROLL
      for (auto& value : values) clear(ctx, value);
    } else {
      ctx.lanes([&](int lane) { values[lane] = 0; });
    }
  }

  var<uint32_t> weights_[row_tiles][kTiles][kTile.words];
};

}  // namespace fastrnn::cuda
