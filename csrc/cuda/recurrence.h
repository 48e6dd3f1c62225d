#pragma once

#include "cells/registry.h"
#include "core/params.h"

// The recurrence of one layer on a device. Before it, one product over all rows computes the inputs' share of the
// gates; after it, products of the gate gradients give the gradients of the weights and of x
// (csrc/cuda/layer_passes.h). Each kind of plan computes the recurrence in its own way.

namespace fastrnn::cuda {

// As fastrnn::Rows, with arrays on the device.
//   lengths [B]:     steps of each sequence, or null (all T)
//   offsets [T + 1]: first row of each step of a packed batch, or null
struct DeviceRows {
  int64_t T, B;
  int64_t stride_t, stride_b;
  const int64_t* lengths;
  const int64_t* offsets;
};

// Do the gradients of the gates' shares from the hidden state differ from those of the shares from the input, and does
// a layer need both?
template <class Cell>
constexpr bool has_own_dgh = Cell::has_W_hh && (cells::has_split_gate<Cell> || Cell::normalised);

// Pointers are to device memory. GH = gates * H, S = saved activations of a unit, C = states beside h, U = unit
// vectors, R = number of rows, N = states that zoneout saves. Only stepwise plans read what is marked so.
template <class T>
struct Recurrence {
  DeviceRows rows;
  int64_t H;
  int D;
  const Real<T>* gx;             // [R, D*GH]: W_ih x, without biases; without W_ih x itself
  Weights<T> weights[2];         // W_hh [GH, H], b_ih, b_hh, unit [H]; the others are not read
  const T* h0;                   // [D, B, H] or null (zeros)
  const T* c0[kMostCellStates];  // [D, B, H] or null (zeros)
  T* y;                          // [R, D*H]
  T* hn;                         // [D, B, H] or null
  T* cn[kMostCellStates];        // [D, B, H] or null
  Real<T>* s;                    // [D, R, S*H] or null
  Real<T>* c;                    // [D, R, C*H] or null
  // Stepwise:
  Noise<T> noise;
  Real<T>* computed;  // [D, R, N*H] or null
};

template <class T>
struct BackwardRecurrence {
  DeviceRows rows;
  int64_t H;
  int D;
  Weights<T> weights[2];         // W_hh [GH, H], unit [H]
  const T* h0;                   // [D, B, H] or null (zeros)
  const T* c0[kMostCellStates];  // [D, B, H] or null (zeros)
  // The forward wrote these.
  const T* y;                     // [R, D*H]
  const Real<T>* s;               // [D, R, S*H]
  const Real<T>* c;               // [D, R, C*H]
  const T* dy;                    // [R, D*H] or null (zeros)
  const T* dhn;                   // [D, B, H] or null (zeros)
  const T* dcn[kMostCellStates];  // [D, B, H] or null (zeros)
  T* dgx;                         // [R, D*GH]: gradients of the inputs' shares of the gates
  T* dgh;                   // [R, D*GH]: of the hidden state's shares; dgx itself unless has_own_dgh<Cell>
  T* du;                    // [R, D*U*H]: each step's share of the gradients of the unit vectors
  T* dh0;                   // [D, B, H] or null (not wanted)
  T* dc0[kMostCellStates];  // [D, B, H] or null (not wanted)
  // Stepwise:
  Noise<T> noise;
  const Real<T>* computed;  // [D, R, N*H] or null
  T* dh_rows;               // [R, D*P]: of h, with a projection
  T* m;                     // [R, D*H], with a projection: its operand again
  T* v;                     // [R, D*H], with late gates: what these multiply, or null (not wanted)
};

}  // namespace fastrnn::cuda
