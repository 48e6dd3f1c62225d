#pragma once

#include <cstdint>
#include <cstring>

#include "cells/inline.h"
#include "core/params.h"

#if defined(__CUDACC__)
#include <cuda_fp16.h>
#elif !defined(__FLT16_MAX__)
#error "the CUDA kernels on the host need a compiler that has _Float16, such as GCC 12"
#endif

// How numbers are stored and how they are computed, on the device and on the host.

namespace fastrnn::cuda {

template <class To, class From>
FASTRNN_INLINE To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof(To));
  return to;
}

FASTRNN_INLINE float to_real(float value) { return value; }
FASTRNN_INLINE double to_real(double value) { return value; }
FASTRNN_INLINE float to_real(bf16 value) { return bit_cast<float>(static_cast<uint32_t>(value.bits) << 16); }
FASTRNN_INLINE float to_real(fp16 value) {
#if defined(__CUDACC__)
  return __half2float(__ushort_as_half(value.bits));
#else
  return static_cast<float>(bit_cast<_Float16>(value.bits));
#endif
}

// From a stored number to its bits, and back.
FASTRNN_INLINE uint32_t bits_of(float value) { return bit_cast<uint32_t>(value); }
FASTRNN_INLINE uint32_t bits_of(bf16 value) { return value.bits; }
FASTRNN_INLINE uint32_t bits_of(fp16 value) { return value.bits; }
template <class T>
FASTRNN_INLINE T from_bits(uint32_t bits) {
  return {static_cast<uint16_t>(bits)};
}
template <>
FASTRNN_INLINE float from_bits<float>(uint32_t bits) {
  return bit_cast<float>(bits);
}

// Rounds to the nearest number, ties to even. NaN stays NaN.
template <class T>
FASTRNN_INLINE T from_real(Real<T> value) {
  return value;
}
template <>
FASTRNN_INLINE bf16 from_real<bf16>(float value) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  bf16 rounded;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(rounded.bits) : "f"(value));
  return rounded;
#else
  const uint32_t bits = bit_cast<uint32_t>(value);
  if (value != value) return {0x7fff};
  return {static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
#endif
}
template <>
FASTRNN_INLINE fp16 from_real<fp16>(float value) {
#if defined(__CUDACC__)
  return {__half_as_ushort(__float2half_rn(value))};
#else
  return {bit_cast<uint16_t>(static_cast<_Float16>(value))};
#endif
}

// Rounds a float to the 10 mantissa bits that the matrix unit reads, to the nearest, ties away from zero. A NaN gets
// one of these bits; without it the matrix unit would read infinity.
FASTRNN_INLINE float to_tf32(float value) {
  const uint32_t bits = bit_cast<uint32_t>(value);
  if ((bits & 0x7f800000) == 0x7f800000) return value != value ? bit_cast<float>(bits | 0x00400000) : value;
  return bit_cast<float>((bits + 0x1000) & 0xffffe000);
}

}  // namespace fastrnn::cuda
