#pragma once

#include "cuda/numbers.h"
#include "cuda/plan.h"

#if defined(__CUDACC__)
#define FASTRNN_DEVICE __device__ __forceinline__
#define FASTRNN_UNROLL _Pragma("unroll")
#define FASTRNN_ROLLED _Pragma("unroll 1")
#else
#define FASTRNN_DEVICE inline
#define FASTRNN_UNROLL
#define FASTRNN_ROLLED
#endif

namespace fastrnn::cuda {

// The types of a math: of numbers in global memory (Stored), and of operands in shared memory (Element).
template <Math math>
struct MathTypes {
  using Stored = float;
  using Element = float;
};
template <>
struct MathTypes<Math::bf16> {
  using Stored = bf16;
  using Element = uint16_t;
};
template <>
struct MathTypes<Math::fp16> {
  using Stored = fp16;
  using Element = uint16_t;
};
template <Math math>
using Stored = typename MathTypes<math>::Stored;
template <Math math>
using Element = typename MathTypes<math>::Element;

template <Math math>
FASTRNN_DEVICE Element<math> to_element(Stored<math> value) {
  if constexpr (math == Math::tf32) {
    return to_tf32(value);
  } else {
    return bit_cast<Element<math>>(value);
  }
}

struct alignas(16) Quad {
  uint32_t of[4];
};

// Reads a V from an address that is aligned for it.
template <class V>
FASTRNN_DEVICE V read_as(const void* address) {
#if defined(__CUDA_ARCH__)
  return *static_cast<const V*>(address);
#else
  V value;
  memcpy(&value, address, sizeof(V));
  return value;
#endif
}

}  // namespace fastrnn::cuda
