#pragma once

#include <cstdint>
#include <type_traits>

#include "cells/cell_info.h"
#include "core/rows.h"

namespace fastrnn {

// A bfloat16: the upper half of a float.
struct bf16 {
  uint16_t bits;
};

// A half-precision number, IEEE binary16. Only the CUDA kernels have it.
struct fp16 {
  uint16_t bits;
};

// What the weights of a frozen layer are stored as where that is not what it computes with, which is float: bfloat16;
// int8 that multiply int8, of which each product makes its left factor; int8 that multiply float.
struct bf16_weight {
  uint16_t bits;
};
struct int8_weight {
  int8_t value;
};
struct int8_wide_weight {
  int8_t value;
};

// What numbers stored as T are computed and kept between steps as: float at least.
template <class T>
using Real = std::conditional_t<(sizeof(T) < sizeof(float)), float, T>;

using cells::kMostCellStates, cells::kMostUnitVectors;

// The parameters of one direction of one layer, or their gradients. GH = gates * H; P = H unless there is a
// projection. Null: there is none, or it is not read or not wanted.
template <class Pointer>
struct WeightsOf {
  Pointer W_ih;                    // [GH, I]
  Pointer W_hh;                    // [GH, P]
  Pointer b_ih;                    // [GH]
  Pointer b_hh;                    // [GH]
  Pointer W_hr;                    // [P, H]: the projection of the cell's output to h
  Pointer unit[kMostUnitVectors];  // [H] each

  // A parameter; of vectors of a unit the first, which is the i-th of all.
  Pointer& of(cells::ParameterKind kind, int i = 0) {
    switch (kind) {
      case cells::ParameterKind::input_matrix:
        return W_ih;
      case cells::ParameterKind::state_matrix:
        return W_hh;
      case cells::ParameterKind::input_bias:
        return b_ih;
      case cells::ParameterKind::state_bias:
        return b_hh;
      case cells::ParameterKind::projection:
        return W_hr;
      default:
        return unit[i];
    }
  }
  // A parameter of n vectors of `size` numbers each, the i-th and following of all; n = 0 for one that is no vector.
  void set(cells::ParameterKind kind, Pointer pointer, int i, int n, int64_t size) {
    of(kind, i) = pointer;
    for (int k = 1; pointer && k < n; ++k) unit[i + k] = pointer + k * size;
  }
};
template <class T>
using Weights = WeightsOf<const T*>;
template <class T>
using WeightGradients = WeightsOf<T*>;

// What training changes at random in the recurrence, and zoneout in evaluation.
template <class T>
struct Noise {
  const T* mask = nullptr;  // [D, B, P] or null: factors of the h that W_hh multiplies
  // Zoneout: of each state, h first, the chance of a unit to keep what it has; 0 for none. With a seed units keep it or
  // do not, by random numbers (core/random.h). Without one each gets the expected value.
  double zoneout[1 + kMostCellStates] = {};
  const int64_t* seed = nullptr;

  bool zoned() const {
    for (const double p : zoneout) {
      if (p > 0) return true;
    }
    return false;
  }
  bool is_there() const { return mask != nullptr || zoned(); }
};

// What a layer is given; D = 1 or 2 directions.
template <class T>
struct LayerParams {
  Rows rows;
  int64_t I, H, P;
  int D;
  Weights<T> weights[2];
  const T* x;                    // [R, I]
  const T* h0;                   // [D, B, P] or null (zeros)
  const T* c0[kMostCellStates];  // [D, B, H] each or null (zeros): of each state beside h
  Noise<T> noise;
  const bool* resets;  // [R] or null: where a sequence begins anew, its states before the step are zero
};

// S = activations saved per unit, C = states beside h.
template <class T>
struct ForwardParams : LayerParams<T> {
  T* y;                    // [R, D*P]
  T* y_copy;               // [R, D*P] or null: y again
  T* hn;                   // [D, B, P] or null (not wanted)
  T* cn[kMostCellStates];  // [D, B, H] each or null (not wanted)
  Real<T>* s;              // [D, R, S*H], null unless a backward will follow
  Real<T>* c;              // [D, R, C*H], null unless a backward will follow
  // With zoneout the states as the cell computed them: h if the cell saves nothing, and c. [D, R, N*H], null as s.
  Real<T>* computed;
  // What freezing made of the weights, of which then no other is read (cpu/frozen.h).
  const char* frozen[2];
};

// Of the layer's parameters the biases are not used. x is null where no dW_ih is wanted, W_ih where no dx is, h0
// where neither a dW_hh is nor the cell reads h_prev.
template <class T>
struct BackwardParams : LayerParams<T> {
  // What the forward wrote; y where the states before each step are used, or the result of a cell that saves nothing.
  const T* y;
  const Real<T>* s;
  const Real<T>* c;
  const Real<T>* computed;
  const T* dy;                    // [R, D*P] or null (zeros)
  const T* dhn;                   // [D, B, P] or null (zeros)
  const T* dcn[kMostCellStates];  // [D, B, H] each or null (zeros)
  T* dx;                          // [R, I] or null (not wanted)
  T* dh0;                         // [D, B, P] or null (not wanted)
  T* dc0[kMostCellStates];        // [D, B, H] each or null (not wanted)
  WeightGradients<T> dweights[2];
};

}  // namespace fastrnn
