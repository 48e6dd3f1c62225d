#pragma once

#include <cstdint>

#include "cuda/plan.h"

// How the persistent kernels lay out the weights in registers and everything else in the shared memory of a block.
// This is plain C++, because the plan needs it to know what fits.

namespace fastrnn::cuda {

// The matrix unit multiplies tiles [16, tile_k] [tile_k, 8]. ieee products use ordinary multiply-adds, and each lane
// has the same outputs as with the matrix unit.
constexpr int kTileRows = 16, kTileBatch = 8;

// Sequences of a tile. A grid takes longer to reach the other blocks, so it takes more sequences at once, if there are
// registers for them.
constexpr int tile_batch(Kind kind, Math math) {
  return kind == Kind::grid && math != Math::ieee ? 2 * kTileBatch : kTileBatch;
}

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// For one math: elements of a tile along k, its 32-bit words in a lane, bytes of an element in shared memory.
struct TileShape {
  int k, words, element_bytes;
};
constexpr TileShape tile_shape(Math math) {
  switch (math) {
    case Math::ieee:
      return {16, 8, 4};
    case Math::tf32:
      return {8, 4, 4};
    default:
      return {16, 4, 2};
  }
}

// A warp keeps this many words of weights in the registers of each lane. A lane may have 255 registers; the others are
// for sums, gates and addresses.
constexpr int kWeightWords = 128;
// The loop over k checks after this many tiles whether only padding is left.
constexpr int kTilesPerCheck = 4;
constexpr int kRowsKept = 4;   // steps whose first rows a warp keeps
constexpr int kMostWarps = 8;  // of a block: 8 * 32 * 255 registers are all that an SM has

// The rows that a warp multiplies. Each of its units has `rows_per_unit` of them: its gates in the forward, one row in
// the backward. 8 units are a unit tile. Half a tile of the matrix unit, 8 rows, is a slot: one row of each unit of a
// unit tile.
struct WarpRows {
  int rows_per_unit;
  int row_tiles;
  constexpr int slots() const { return 2 * row_tiles; }
  constexpr int unit_tiles() const { return slots() / rows_per_unit; }
  constexpr int units() const { return 8 * unit_tiles(); }
  constexpr int k_tiles(Math math) const { return kWeightWords / (row_tiles * tile_shape(math).words); }
  constexpr int k_slice(Math math) const { return k_tiles(math) * tile_shape(math).k; }
};
constexpr WarpRows warp_rows(int gates, bool backward) {
  const int rows = backward ? 1 : gates;
  return {rows, rows > 2 ? 2 : 1};
}

// The shape of what each sequence passes from step to step: h in the forward, the gate gradients in the backward. In
// shared memory that is `parts` vectors of H elements, each padded to an even number, `part`.
struct ExchangeShape {
  int64_t parts, part;
  constexpr int64_t K() const { return parts * part; }
};
constexpr ExchangeShape exchange_shape(int gates, bool backward, int64_t H) {
  return {backward ? gates : 1, H + H % 2};
}

// The states that a lane keeps of a unit and sequence between steps. In the forward: c, and h if the cell reads it
// directly. In the backward: the share of dh that does not pass through W_hh, and dc.
constexpr int kept_states(int cell_states, bool reads_h, bool backward) {
  return backward ? 1 + cell_states : cell_states + reads_h;
}

// The layout of the shared memory of a block. Strides and offsets are in bytes.
struct Tiling {
  int row_warps, k_warps, blocks, block_groups, tiles;
  int64_t k_tiles;                          // of all k warps, those that hold more than padding
  int64_t row_elements;                     // of a row of the exchange, with padding against bank conflicts
  int64_t tile_stride;                      // from the exchange buffers of a tile to those of the next
  int64_t buffer_stride;                    // from a buffer of a tile to its other one
  int64_t partial_bytes;                    // of one of the two buffers of partial sums
  int64_t partials, rows, lengths, states;  // offsets
  int64_t exchange;
  int64_t bytes;  // of everything
};

// states: the result of kept_states. A cluster has two buffers for every tile and barriers before them. A grid has one
// buffer for all tiles.
constexpr Tiling make_tiling(const Plan& plan, Math math, const WarpRows& rows, const ExchangeShape& exchange,
                             int states) {
  const TileShape tile = tile_shape(math);
  const bool cluster = plan.kind == Kind::cluster;
  Tiling t{};
  t.row_warps = plan.row_warps;
  t.k_warps = plan.k_warps;
  t.blocks = plan.blocks;
  t.block_groups = plan.block_groups;
  t.tiles = plan.tiles;
  t.k_tiles = ceil_div(exchange.K(), tile.k);
  // 16 bytes more than a multiple of 128: so the 8 rows that a tile reads at once begin in different banks.
  const int64_t row_bytes =
      ceil_div(ceil_div(t.k_tiles, kTilesPerCheck) * kTilesPerCheck * tile.k * tile.element_bytes, 128) * 128;
  t.row_elements = (row_bytes + 16) / tile.element_bytes;
  t.buffer_stride = plan.tile_batch * (row_bytes + 16);
  t.tile_stride = (cluster ? 2 : 1) * t.buffer_stride;
  t.partial_bytes = plan.k_warps == 1 ? 0
                                      : int64_t{plan.row_warps} * plan.k_warps * rows.unit_tiles() *
                                            rows.rows_per_unit * 2 * (plan.tile_batch / kTileBatch) * 32 * 4;
  t.exchange = cluster ? ceil_div(plan.tiles * 2 * 8, 128) * 128 : 0;
  t.partials = t.exchange + (cluster ? plan.tiles : 1) * t.tile_stride;
  t.rows = t.partials + 2 * t.partial_bytes;
  t.lengths = t.rows + int64_t{kMostWarps} * kRowsKept * 4;
  t.states = t.lengths + int64_t{plan.tiles} * plan.tile_batch * 4;
  t.bytes = t.states + int64_t{plan.tiles} * states * plan.row_warps * rows.units() * plan.tile_batch * 4;
  return t;
}

}  // namespace fastrnn::cuda
