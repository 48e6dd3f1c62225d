#pragma once

// All numbers of the CPU kernels that were tuned. Each says what it is, its unit, and where it was measured.
//
//   EPYC: 2 cores of a virtual machine, AVX-512, caches of 32 KiB and 1 MiB, 100 to 117 GFLOP/s a core
//   Xeon: 2 cores of a virtual machine, model 207, AVX-512, caches of 48 KiB and 2 MiB, 164 GFLOP/s a core
//
// The notebook (docs/notebook.md) has the measurements. "Not measured" means that no measurement is on record.

#include <cstdint>

#include "cells/inline.h"
#include "cpu/cache_sizes.h"

namespace fastrnn::cpu::tuning {

constexpr int64_t kKiB = 1 << 10, kMiB = 1 << 20;

// A number for instruction sets with 32 registers (AVX-512) and for those with 16.
struct ByRegisters {
  int with_32, with_16;

  FASTRNN_INLINE constexpr int of(int registers) const { return registers == 32 ? with_32 : with_16; }
};

// ---- caches ----

// The caches of the EPYC. The limits below that come from them stay the same on the Xeon, which was measured with
// them too; the plan alone asks the system (cache_sizes).
constexpr CacheSizes kTunedCaches{32 * kKiB, 1 * kMiB};
// Bytes of a cache line. Of all processors that have the instruction sets.
constexpr int64_t kLine = 64;

// ---- micro-kernel and packing ----

// MR: rows of the tallest tile, for tiles of 1, 2, .. 8 vectors: so many that the sums, a row of B and a
// broadcast of A fit the registers. EPYC, both register counts.
constexpr int kMrWith32[] = {12, 12, 8, 6, 1, 1, 1, 1};
constexpr int kMrWith16[] = {8, 6, 4, 3, 1, 1, 1, 1};
// Vectors of the widest tile: of a single row, whose sums must cover the latency of the multiply-add by
// themselves, and of several rows. Not measured.
constexpr int kMaxVectors = 8, kTileVectors = 4;
// Vectors of the widest panel for products of several rows, and of the micropanels that it is cut into. With 16
// registers tiles of 4 rows and 3 vectors read least for each multiply-add. EPYC: 106 to 114 GFLOP/s of 117,
// where tiles of 3 rows and 4 vectors had 98 to 110.
constexpr ByRegisters kPanelVectors{4, 12}, kMicropanelVectors{4, 3};
// KC, terms of a sum that are taken at a time: kKc, but up to kUncutK terms at once. EPYC and Xeon: products with
// weights of 16 MiB had 151 GFLOP/s and not 141 with 128 instead of 256; one sequence with H = 256 was 3 to 6%
// slower with sums of 256 terms cut.
constexpr int64_t kKc = 128, kUncutK = 256;
// Tiles whose rows go through one block of K before the next block begins. Not measured.
constexpr int64_t kTilesInBlock = 8;
// K-packs that a tile fetches ahead of A where each is in another line. Xeon: dW_ih 0.83 to 0.95 of the time,
// dW_hh 0.91 to 1.00.
constexpr int64_t kFarRowsAhead = 16;
// Micropanels of 3 vectors for products of 7 rows; of 8 rows too, if a block of a wider one is larger than this
// many bytes. Xeon: 14 sequences on two threads 1.14 to 1.32 times as fast.
constexpr int64_t kNarrowBlockBytes = kTunedCaches.first_level;
// Bytes of packed weights that stay in a second-level cache of so many bytes; of larger ones a tile fetches a share of the
// next block. EPYC: LSTM (100,16,1024,1024) forward 1.07 with AVX-512, 1.15 to 1.22 with AVX2. For larger caches than the
// EPYC's it is not measured.
constexpr int64_t near_weight_bytes(int64_t second_level) {
  return (second_level < kTunedCaches.second_level ? second_level : kTunedCaches.second_level) * 3 / 4;
}
// What a micropanel costs, in tenths of what a vector of it costs: its tiles begin and end. Not measured by itself.
constexpr ByRegisters kMicropanelTenths{1, 4};
// Rows of a call of several sequences from which frozen weights are packed again where there are 16 registers: numbers of
// what the layer computes with, and bfloat16. EPYC (Zen 4) with AVX2: LSTM (24,32,512,640) 1.3 times as fast, its bfloat16
// 1.4 times; calls of 80 to 100 rows up to 1.2 times as slow, those of bfloat16 1.1 to 1.4 times as fast.
constexpr int64_t kRowsToPackAgain = 128, kBfloat16RowsToPackAgain = 32;
// Rows of the weights that dot products read at a time: each is a stream of its own for the caches, and 16 would
// be too many. Not measured.
constexpr int kStreams = 8;

// ---- prefetching ----

// Least units of a layer whose rows go into a PrefetchList. Xeon and EPYC: rows of 32 units, and single
// sequences, were not faster with it.
constexpr int64_t kPrefetchUnits = 64;
// Lines of a row that a PrefetchList takes at most. The widest panel has four lines a row, five if unaligned, and
// an LSTM reads six arrays of them. A count, not measured.
constexpr int kPrefetchColumns = 40;
// Bytes of what other threads have written that are fetched at once: what a first-level cache has room for beside
// a panel. Xeon: RNN (100,1,512,512) forward 1.08 times as fast, (100,4,256,256) 1.15.
constexpr int64_t kFetchedBytes = 16 * kKiB;

// ---- chunks ----

// Rows of a call up to which weights are multiplied where they stand: packing them costs more than it saves. Not
// measured.
constexpr int64_t kUnpackedRows = 8;
// Rows of a step that are multiplied before their cells are computed, and rows of other tasks that go through
// rows. Not measured.
constexpr int64_t kRowBlock = 48;
// Rows whose cells are computed at a time: all their gates, then all their outputs. An output waits for its
// gates, and a processor looks no further ahead than over two LSTM cells; nor does it read past many stores.
// EPYC: 19 ns a vector of LSTM cells instead of 22, with AVX2 14 instead of 20.
constexpr int kCellRows = 8;
// Bytes of the forward's buffer for a chunk, the gates' shares from the input: about a second-level cache. Not
// measured.
constexpr int64_t kForwardChunkBytes = kTunedCaches.second_level;
// Chunks of a forward by batch, at least, so that a slow thread is not waited for long. Not measured.
constexpr int64_t kLeastChunks = 8;
// Rows of a chunk of the backward, at least: enough that reading and writing dW again costs little. Not measured.
constexpr int64_t kBackwardChunkRows = 512;
// Bytes of a chunk's gate gradients, if that is more rows: a chunk has several barriers, so short rows come in
// longer chunks. EPYC: RNN (100,32,32,32) training 1.06.
constexpr int64_t kBackwardChunkBytes = 512 * kKiB;
// Sequences of a single step that a chunk has at most: scratch memory is for those of one chunk. Not measured.
constexpr int64_t kStepSequences = 2048;

// ---- weight gradients ----

// Rows that are summed at a time: there may be thousands, and one long sum would round more than torch.nn's,
// which go step by step. Xeon: 64, 256 or 512 rows are no faster.
constexpr int64_t kSummedRows = 128;
// The same of a bias, which is only a sum; as many partial sums form a longer one. By its errors: 1.0 to 1.3
// times torch.nn's at most, where 128 rows had 1.2 to 3.1.
constexpr int64_t kSummedBiasRows = 16;
// Vectors of a row that a bias's sum takes at a time: the next row lies far. Xeon: 4 us a step of LSTM
// (100,64,256,256) instead of 12.5, together with one sum for both biases.
constexpr int kBiasVectors = 4;
// Numbers of a bias that one task sums. Not measured.
constexpr int64_t kVectorBlock = 64;
// Columns of a block of gate gradients: enough to pay for reading the other factor. EPYC: AVX2's products had 101
// to 107 GFLOP/s of 117 with packed blocks, not 88 to 98.
constexpr int64_t kLeastGateBlock = 48, kMostGateBlock = 192;
// Blocks of gates for each thread, at least. Not measured.
constexpr int64_t kGateBlocksOfThread = 2;
// A left factor is read where it stands if products read it so many times at most and its rows have so many bytes
// at most. Xeon: dW_ih of LSTM (28,64,28,150), whose rows have 2400 bytes, 44 GFLOP/s in place and 91 packed.
constexpr int64_t kSeldomRead = 4, kNearRowBytes = 1024;

// ---- plan ----

// Multiply-adds of a direction for each thread: they pay for waking it. Not measured.
constexpr int64_t kThreadWork = 192 * 1024;
// Multiply-adds of a step that pay for the barrier after it: for each nanosecond of core latency (8k on the EPYC,
// 13k to 16k on the Xeon), or at any latency. Xeon: GRU (100,1,64,64) 73 us on one thread, 92 on two.
constexpr int64_t kBarrierWorkOfNanosecond = 110, kBarrierWork = 64 * 1024;
// By batch if W_hh has at most this part of the second-level cache, the system's: it stays there beside the rest.
// Xeon: 8 to 32 sequences with W_hh of 0.75 and 1 MiB 1.00 to 1.12 times as fast forward, 1.02 to 1.11 in
// training.
constexpr int64_t kWeightsPartOfCache = 2;  // one half
// By batch also if W_hh has at most so many bytes, which then come from the shared cache, and there are so many
// sequences for each thread. Batch groups of so many sequences: Xeon, LSTM (50,64,512,512) forward 1.06 times as
// fast. The rest is not measured.
constexpr int64_t kSharedWeightBytes = 4 * kMiB, kManySequences = 24;
// Sequences of a thread below which sharing is never by batch. Not measured.
constexpr int64_t kLeastSequences = 4;
// Sequences of a batch group, more where tiles are low and the last one wastes more; batch groups of a thread, at
// most. Not measured.
constexpr ByRegisters kBatchGroupSequences{16, 24};
constexpr int64_t kMostBatchGroups = 4;
// Bytes of W_hh beyond which each batch group fetches it anew, so that batch groups have kManySequences. Xeon, as
// above.
constexpr int64_t kOwnWeightBytes = kTunedCaches.second_level;

// Multiply-adds of int8 in the time of one of floats, as far as a second thread is concerned. EPYC (Zen 5): one
// sequence of LSTM and GRU with H = 128 took 1.8 times as long on two threads when a step counted as with floats.
constexpr ByRegisters kInt8Speed{4, 2};
// Layers that run as a wavefront, at most; steps of a chunk then, at least: each chunk reads W_ih. EPYC (Zen 5): 2 and 4
// layers of H = 128 and T = 100 1.4 to 1.6 times as fast as one after the other, int8 with H = 256 1.9 to 2.1.
constexpr int kMostLayers = 8;
constexpr int64_t kWavefrontSteps = 4;

// ---- threads ----

// Sequences of a step, or rows of a chunk, from which threads take others' tasks at once: tasks of fewer rows are
// not worth moving to another core, where their weights are not in cache. Not measured.
constexpr int64_t kStolenRows = 8;
// Looks at the counter of a barrier before a thread sleeps. They take as long as falling asleep and being woken
// (50 us in a virtual machine), but are so few that no hypervisor takes the core from a guest that only pauses
// (after 3000 or 4096 pauses).
constexpr int kSpins = 2400;
// Looks before a thread takes others' tasks, or begins to count its wait: longer than a barrier takes. Not
// measured.
constexpr int kImpatientSpins = 80;

// Nanoseconds. EPYC and Xeon: two processes with two threads each on two cores take 1.0 to 2.95 times as long as
// one, instead of 2.2 to 8.
constexpr int64_t kPatience = 1'000'000;  // idle beyond work, after which a caller takes half of its threads
constexpr int64_t kFirstRest = 16'000'000;       // before it tries more threads again
constexpr int64_t kLongestRest = 1'000'000'000;  // when tries have failed

// Nanoseconds for which a measured core latency holds. EPYC: the latency changes in turns of seconds.
constexpr int64_t kLatencyPeriod = 250'000'000;
// A measurement: the shortest of some batches of round trips, some 10 us in all. Not measured otherwise.
constexpr int kLatencyBatches = 4, kLatencyRounds = 8;
// Looks for the other thread's answer: some 10 us, and at first some 1000, since that thread may have to wake up.
// Not measured otherwise.
constexpr int kPolls = 20'000, kFirstPolls = 1'000'000;

// ---- memory ----

// Bytes of scratch memory that stand on the stack: allocating what one small step needs would take longer, 0.3
// us, than part of the step. EPYC.
constexpr int64_t kStackBytes = 16 * kKiB;

}  // namespace fastrnn::cpu::tuning
