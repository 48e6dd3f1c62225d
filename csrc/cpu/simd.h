#pragma once

// Vectors of the instruction set this file is compiled for, through the compiler's vector extension.

#include <cstdint>
#include <cstring>
#include <utility>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "cells/inline.h"

// The namespace keeps the code of one instruction set apart from the same code of another (see DESIGN.md).
namespace fastrnn::cpu::FASTRNN_ISA {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
constexpr int kRegisters = 32;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
constexpr int kRegisters = 16;
#else
constexpr int kVectorBytes = 16;
constexpr int kRegisters = 16;
#endif

template <class T>
struct VectorOf;
template <>
struct VectorOf<float> {
  typedef float type __attribute__((vector_size(kVectorBytes)));
  typedef float unaligned __attribute__((vector_size(kVectorBytes), aligned(4), may_alias));
  typedef int32_t bits __attribute__((vector_size(kVectorBytes)));
};
template <>
struct VectorOf<double> {
  typedef double type __attribute__((vector_size(kVectorBytes)));
  typedef double unaligned __attribute__((vector_size(kVectorBytes), aligned(8), may_alias));
  typedef int64_t bits __attribute__((vector_size(kVectorBytes)));
};
template <class T>
using Vector = typename VectorOf<T>::type;

template <class T>
constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(T));

template <class T>
FASTRNN_INLINE Vector<T> splat(T value) {
  return value - Vector<T>{};
}
template <class T>
FASTRNN_INLINE Vector<T> load(const T* p) {
  return *reinterpret_cast<const typename VectorOf<T>::unaligned*>(p);
}
template <class T>
FASTRNN_INLINE void store(T* p, Vector<T> v) {
  *reinterpret_cast<typename VectorOf<T>::unaligned*>(p) = v;
}

// The larger (smaller) of bound and v, and v where it is NaN. The instruction gives its second operand then.
#if defined(__AVX512F__)
FASTRNN_INLINE Vector<float> at_least(float bound, Vector<float> v) { return _mm512_max_ps(splat(bound), v); }
FASTRNN_INLINE Vector<float> at_most(float bound, Vector<float> v) { return _mm512_min_ps(splat(bound), v); }
FASTRNN_INLINE Vector<double> at_least(double bound, Vector<double> v) {
  return _mm512_max_pd(splat(bound), v);
}
FASTRNN_INLINE Vector<double> at_most(double bound, Vector<double> v) {
  return _mm512_min_pd(splat(bound), v);
}
#else
template <class T>
FASTRNN_INLINE Vector<T> at_least(T bound, Vector<T> v) {
  return v < bound ? splat(bound) : v;
}
template <class T>
FASTRNN_INLINE Vector<T> at_most(T bound, Vector<T> v) {
  return v > bound ? splat(bound) : v;
}
#endif

// The first n lanes; the others are read as zero and not written.
#if defined(__AVX512F__)
FASTRNN_INLINE Vector<float> load_first(const float* p, int64_t n) {
  return _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1), p);
}
FASTRNN_INLINE void store_first(float* p, Vector<float> v, int64_t n) {
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << n) - 1), v);
}
FASTRNN_INLINE Vector<double> load_first(const double* p, int64_t n) {
  return _mm512_maskz_loadu_pd(static_cast<__mmask8>((1u << n) - 1), p);
}
FASTRNN_INLINE void store_first(double* p, Vector<double> v, int64_t n) {
  _mm512_mask_storeu_pd(p, static_cast<__mmask8>((1u << n) - 1), v);
}
#else
template <class T>
FASTRNN_INLINE Vector<T> load_first(const T* p, int64_t n) {
  Vector<T> v{};
  std::memcpy(&v, p, n * sizeof(T));
  return v;
}
template <class T>
FASTRNN_INLINE void store_first(T* p, Vector<T> v, int64_t n) {
  std::memcpy(p, &v, n * sizeof(T));
}
#endif

// As load and store when n covers all lanes, which is the common case and the quick one.
template <class T>
FASTRNN_INLINE Vector<T> load_upto(const T* p, int64_t n) {
  return n >= kLanes<T> ? load(p) : load_first(p, n);
}
template <class T>
FASTRNN_INLINE void store_upto(T* p, Vector<T> v, int64_t n) {
  if (n >= kLanes<T>) {
    store(p, v);
  } else {
    store_first(p, v, n);
  }
}

template <class T, class Index, size_t... J>
FASTRNN_INLINE Vector<T> shuffle(Vector<T> a, Vector<T> b, Index index, std::index_sequence<J...>) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, Index::at(J)...);
#else
  (void)index;
  return __builtin_shuffle(a, b, typename VectorOf<T>::bits{Index::at(J)...});
#endif
}

// Lane j of the result comes from a where bit d of j is 0, from b where it is 1; the lane read has that bit
// cleared (Low) or set (High). Both together are one stage of a transpose.
template <int d, int lanes, bool high>
struct StageIndex {
  static constexpr int at(int j) {
    const int lane = high ? (j | d) : (j & ~d);
    return (j & d) ? lanes + lane : lane;
  }
};
template <class T, int d>
FASTRNN_INLINE Vector<T> merge_low(Vector<T> a, Vector<T> b) {
  return shuffle<T>(a, b, StageIndex<d, kLanes<T>, false>{}, std::make_index_sequence<kLanes<T>>{});
}
template <class T, int d>
FASTRNN_INLINE Vector<T> merge_high(Vector<T> a, Vector<T> b) {
  return shuffle<T>(a, b, StageIndex<d, kLanes<T>, true>{}, std::make_index_sequence<kLanes<T>>{});
}

// v[i] lane j <-> v[j] lane i
template <class T, int d = 1>
FASTRNN_INLINE void transpose(Vector<T>* v) {
  if constexpr (d < kLanes<T>) {
#pragma GCC unroll 16
    for (int i = 0; i < kLanes<T>; ++i) {
      if (!(i & d)) {
        const Vector<T> a = v[i], b = v[i | d];
        v[i] = merge_low<T, d>(a, b);
        v[i | d] = merge_high<T, d>(a, b);
      }
    }
    transpose<T, 2 * d>(v);
  }
}

// Lane j of the result is the sum over the lanes of v[j]. Overwrites v.
template <class T, int d = 1>
FASTRNN_INLINE Vector<T> sum_each(Vector<T>* v) {
  if constexpr (d < kLanes<T>) {
#pragma GCC unroll 16
    for (int i = 0; i < kLanes<T>; i += 2 * d) {
      v[i] = merge_low<T, d>(v[i], v[i + d]) + merge_high<T, d>(v[i], v[i + d]);
    }
    return sum_each<T, 2 * d>(v);
  } else {
    return v[0];
  }
}

}  // namespace fastrnn::cpu::FASTRNN_ISA
