#pragma once

// How the steps of a layer are shared among threads. Compiled once, for all instruction sets.

#include <cstdint>

#include "cells/inline.h"

namespace fastrnn::cpu {

enum class Pass { forward, backward };

struct LayerSizes {
  int64_t T, B, I, H, P;
  int D;
  int64_t rows;         // of all steps
  bool packed = false;  // a packed batch
};

// What a plan depends on.
struct Problem {
  LayerSizes sizes;
  int gates;
  int number_bytes;  // of a number in memory
  int registers;     // of the instruction set
  int speed = 1;     // multiply-adds in the time of one of floats
};

// How a step is shared. By units: each thread keeps its panels of W_hh in its own cache, and all threads meet at a
// barrier after every step. By batch: each thread runs its own sequences through all of W_hh, and no barrier is
// needed; the sequences form batch groups, several for each thread, so that a quick thread can take more of them.
enum class Sharing { none, units, batch };
const char* name_of(Sharing sharing);

struct Plan {
  int threads;           // of a direction
  int64_t batch_groups;  // 0: not by batch
  const char* reason;
  bool side_by_side = false;  // both directions at once, each with its threads

  FASTRNN_INLINE bool by_batch() const { return batch_groups > 0; }
  // The threads that share a step's products, and the rows of these.
  FASTRNN_INLINE int step_threads() const { return by_batch() ? 1 : threads; }
  FASTRNN_INLINE int64_t step_rows(int64_t B) const {
    return by_batch() ? (B + batch_groups - 1) / batch_groups : B;
  }
  FASTRNN_INLINE int team_threads() const { return side_by_side ? 2 * threads : threads; }
  FASTRNN_INLINE Sharing sharing() const {
    return by_batch() ? Sharing::batch : threads > 1 ? Sharing::units : Sharing::none;
  }
};

// Is a layer enough work that another thread may be busy with the one above it?
bool pays_for_threads(const Problem& problem);

// most_threads: that the caller may use. FASTRNN_CPU_PLAN=units|batch forces how steps are shared, if threads share
// them and they can be shared so; throws std::runtime_error for another value.
Plan make_plan(const Problem& problem, Pass pass, int most_threads);

// The product of a step with W_hh, as `python -m fastrnn --plan` prints it.
struct StepProduct {
  bool packed;  // else the weights are read where they stand
  int64_t panels, panel_units;
  int tile_rows, tile_vectors, lanes;  // of the tallest tile; lanes of a vector
};

// What an instruction set makes of a problem.
struct LayerPlan {
  Plan plan;
  StepProduct product;
};

}  // namespace fastrnn::cpu
