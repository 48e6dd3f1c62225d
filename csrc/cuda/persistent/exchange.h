#pragma once

#include "cuda/persistent/elements.h"
#include "cuda/persistent/tiling.h"

// The exchange brings the vectors of a step, h or the gate gradients, from the warps that compute them to all warps of
// the block group. Iteration i of a recurrence reads what iteration i - 1 wrote. `last` is the last iteration.

namespace fastrnn::cuda {

// In a cluster, each warp pushes its vectors into the shared memory of every block, where a barrier counts the bytes.
// There are two buffers. No push overwrites a buffer that a warp still reads: the pushes of iteration i + 1 overwrite
// what iteration i reads, they need all pushes of iteration i, and a warp pushes only after it has read.
template <class Ctx, Math math>
class ClusterExchange {
 public:
  FASTRNN_DEVICE ClusterExchange(Ctx& ctx, const Tiling& t, const ExchangeShape& shape, int batch, int last)
      : ctx_(ctx), t_(t), shape_(shape), last_(last) {
    // The bytes that all warps push in an iteration: all sequences of the tile, also those that have no step.
    bytes_ = static_cast<uint32_t>(batch * shape.K() * sizeof(Element<math>));
  }

  FASTRNN_DEVICE Element<math>* buffer(int tile, int i) const {
    return ctx_.template shared<Element<math>>(offset(tile, i));
  }

  // Called before the first iteration, when the buffers hold the initial vectors.
  FASTRNN_DEVICE void start() {
    if (ctx_.warp() == 0) {
      for (int tile = 0; tile < t_.tiles; ++tile) {
        for (int parity = 0; parity < kBuffers; ++parity) {
          ctx_.barrier_init(barrier(tile, parity));
          expect(tile, parity == 1 ? 1 : 2);
        }
      }
    }
    ctx_.cluster_sync();
  }

  FASTRNN_DEVICE void wait(int tile, int i) {
    if (i == 0) return;
    ctx_.barrier_wait(barrier(tile, i), static_cast<uint32_t>(i - 1) / kBuffers % 2);
    if (ctx_.warp() == 0) expect(tile, i + kBuffers);
  }

  // Pushes elements of one part, for unit unit0 + tile_row: elements[0] for sequence 8 n + 2 row_lane of the tile,
  // elements[1] for the next sequence.
  FASTRNN_DEVICE void publish(int tile, int i, int n, int part, int unit0,
                              const typename Ctx::template var<Element<math>> (&elements)[2]) {
    if (i == last_) return;
    const int64_t to = offset(tile, i + 1), bar = barrier(tile, i + 1);
    const auto place = [&](int sequence, int unit) {
      return to + ((8 * n + sequence) * t_.row_elements + part * shape_.part + unit) *
                      static_cast<int64_t>(sizeof(Element<math>));
    };
    if constexpr (sizeof(Element<math>) == 2) {
      // Two lanes with neighbouring units swap one sequence each. Then each has a whole word of two units.
      typename Ctx::template var<uint32_t> sent;
      ctx_.lanes([&](int lane) { sent[lane] = lane / 4 % 2 ? elements[0][lane] : elements[1][lane]; });
      const auto received = ctx_.shuffle_xor(sent, 4);
      ctx_.lanes([&](int lane) {
        const int odd = lane / 4 % 2, row_lane = lane % 4;
        const int unit = unit0 + lane / 4 - odd;
        const uint32_t word = odd ? received[lane] | static_cast<uint32_t>(elements[1][lane]) << 16
                                  : elements[0][lane] | received[lane] << 16;
        if (unit < shape_.part) push_to_all(lane, place(2 * row_lane + odd, unit), word, bar);
      });
    } else {
      FASTRNN_UNROLL
      for (int j = 0; j < 2; ++j) {
        ctx_.lanes([&](int lane) {
          const int unit = unit0 + lane / 4;
          if (unit < shape_.part) {
            push_to_all(lane, place(2 * (lane % 4) + j, unit), bit_cast<uint32_t>(elements[j][lane]), bar);
          }
        });
      }
    }
  }

  FASTRNN_DEVICE void finish(int /*tile*/, int /*i*/) {}
  // A block may end only when no other block pushes to it any more.
  FASTRNN_DEVICE void end() { ctx_.cluster_sync(); }

 private:
  static constexpr int kBuffers = 2;

  FASTRNN_DEVICE int64_t offset(int tile, int i) const {
    return t_.exchange + tile * t_.tile_stride + static_cast<unsigned>(i) % kBuffers * t_.buffer_stride;
  }
  FASTRNN_DEVICE int64_t barrier(int tile, int i) const {
    return (tile * kBuffers + static_cast<unsigned>(i) % kBuffers) * 8;
  }
  FASTRNN_DEVICE void expect(int tile, int i) {
    if (i <= last_) ctx_.barrier_expect(barrier(tile, i), bytes_);
  }
  FASTRNN_DEVICE void push_to_all(int lane, int64_t to, uint32_t word, int64_t bar) {
    for (int rank = 0; rank < t_.blocks; ++rank) ctx_.push(lane, rank, to, word, bar);
  }

  Ctx& ctx_;
  const Tiling& t_;
  const ExchangeShape shape_;
  const int last_;
  uint32_t bytes_;
};

// In a grid, the vectors go through the results in global memory. Every step writes to its own place there. A counter
// for each tile says how many blocks have written.
template <class Ctx, Math math>
class GridExchange {
 public:
  FASTRNN_DEVICE GridExchange(Ctx& ctx, const Tiling& t, const ExchangeShape&, int last, uint32_t* counters)
      : ctx_(ctx), t_(t), last_(last), counters_(counters) {}

  FASTRNN_DEVICE Element<math>* buffer(int /*tile*/, int /*i*/) const {
    return ctx_.template shared<Element<math>>(t_.exchange);
  }
  FASTRNN_DEVICE void start() { ctx_.block_sync(); }

  FASTRNN_DEVICE void wait(int tile, int i) {
    if (i == 0) return;
    // The first wait has no limit: the device may be busy with other work, so that not all blocks run yet.
    if (ctx_.warp() == 0) ctx_.wait_counter(counters_ + tile, static_cast<uint32_t>(t_.blocks) * i, i > 1);
    ctx_.block_sync();
  }

  FASTRNN_DEVICE void finish(int tile, int i) {
    ctx_.block_sync();
    if (ctx_.warp() == 0 && i < last_) ctx_.signal(counters_ + tile);
  }
  FASTRNN_DEVICE void end() {}

 private:
  Ctx& ctx_;
  const Tiling& t_;
  const int last_;
  uint32_t* const counters_;
};

}  // namespace fastrnn::cuda
