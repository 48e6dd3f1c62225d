#pragma once

#include <cstddef>
#include <cstdint>

namespace fastrnn {

// A bfloat16: the upper half of a float.
struct bf16 {
  uint16_t bits;
};

// A half-precision number, IEEE binary16. Only the CUDA kernels have it.
struct fp16 {
  uint16_t bits;
};

// What numbers stored as T are computed and kept between steps as.
template <class T>
struct RealOf {
  using type = T;
};
template <>
struct RealOf<bf16> {
  using type = float;
};
template <>
struct RealOf<fp16> {
  using type = float;
};
template <class T>
using Real = typename RealOf<T>::type;

// Where the rows of a sequence buffer [R, width] lie: row(t, b) belongs to step t and sequence b.
//   time-major  [T, B, .]: first(t) = t B,                stride_b = 1
//   batch-major [B, T, .]: first(t) = t,                  stride_b = T
//   packed      [R, .]:    first(t) = sum of earlier n,   stride_b = 1;  step t has n(t) <= B sequences
struct Rows {
  int64_t T, B;
  int64_t stride_t, stride_b;
  const int64_t* batch_sizes;  // [T], null unless packed
  const int64_t* offsets;      // [T + 1], null unless packed

  bool packed() const { return batch_sizes != nullptr; }
  int64_t n(int64_t t) const { return packed() ? batch_sizes[t] : B; }
  int64_t first(int64_t t) const { return packed() ? offsets[t] : t * stride_t; }
  int64_t row(int64_t t, int64_t b) const { return first(t) + b * stride_b; }
  int64_t total() const { return packed() ? offsets[T] : T * B; }
};

// The parameters of one direction of one layer. GH = gates * H; P = H unless there is a projection.
template <class T>
struct Weights {
  const T* W_ih;  // [GH, I]
  const T* W_hh;  // [GH, P]
  const T* b_ih;  // [GH] or null
  const T* b_hh;  // [GH] or null
  const T* W_hr;  // [P, H] or null: the projection h = W_hr (o tanh(c))
};

// One layer, D = 1 or 2 directions. S = activations saved per unit.
template <class T>
struct ForwardParams {
  Rows rows;
  int64_t I, H, P;
  int D;
  Weights<T> weights[2];
  const T* x;   // [R, I]
  const T* h0;  // [D, B, P] or null (zeros)
  const T* c0;  // [D, B, H] or null (zeros)
  T* y;         // [R, D*P]
  T* y_copy;    // [R, D*P] or null: y again (the CPU's kernels only)
  T* hn;        // [D, B, P] or null (not wanted)
  T* cn;        // [D, B, H], null without a cell state
  Real<T>* s;   // [D, R, S*H], null unless a backward will follow
  Real<T>* c;   // [D, R, H], null unless a backward will follow and there is a cell state
  int threads;
  // Of scratch memory, aligned to 64 bytes; throws where there is none (the CPU's kernels only).
  void* (*allocate)(size_t bytes);
  void (*release)(void* memory);
};

template <class T>
struct WeightGradients {
  T* W_ih;  // each as in Weights, or null (not wanted)
  T* W_hh;
  T* b_ih;
  T* b_hh;
  T* W_hr;
};

// y, s and c are what the forward wrote; hn, cn and the biases are not used. x is null where no dW_ih is wanted,
// W_ih where no dx is, h0 where neither a dW_hh is nor the cell reads h_prev.
template <class T>
struct BackwardParams : ForwardParams<T> {
  const T* dy;   // [R, D*P] or null (zeros)
  const T* dhn;  // [D, B, P] or null (zeros)
  const T* dcn;  // [D, B, H] or null (zeros)
  T* dx;         // [R, I] or null (not wanted)
  T* dh0;        // [D, B, P] or null (not wanted)
  T* dc0;        // [D, B, H] or null (not wanted)
  WeightGradients<T> dweights[2];
};

}  // namespace fastrnn
