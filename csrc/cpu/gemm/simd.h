#pragma once

// Vectors of the instruction set this file is compiled for, through the compiler's vector extension.

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "cells/inline.h"
#include "core/params.h"

// The namespace keeps the code of one instruction set apart from the same code of another (see docs/design.md).
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

// Whether there is code for T that differs from that of the instruction set before this one.
template <class T>
#if defined(__AVX512BF16__)
constexpr bool kHasOwnCode = std::is_same_v<T, bf16>;
#elif defined(__AVX512VNNI__) || defined(__AVXVNNI__)
constexpr bool kHasOwnCode = std::is_same_v<T, int8_weight>;
#else
constexpr bool kHasOwnCode = true;
#endif

template <class T>
struct VectorOf;
template <>
struct VectorOf<float> {
  typedef float type __attribute__((vector_size(kVectorBytes)));
  typedef float unaligned __attribute__((vector_size(kVectorBytes), aligned(2), may_alias));
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
#if defined(__AVX2__)
#if defined(__AVX512F__)
#define FASTRNN_MM(name) _mm512_##name
#else
#define FASTRNN_MM(name) _mm256_##name
#endif
FASTRNN_INLINE Vector<float> at_least(float bound, Vector<float> v) {
  return FASTRNN_MM(max_ps)(splat(bound), v);
}
FASTRNN_INLINE Vector<float> at_most(float bound, Vector<float> v) {
  return FASTRNN_MM(min_ps)(splat(bound), v);
}
FASTRNN_INLINE Vector<double> at_least(double bound, Vector<double> v) {
  return FASTRNN_MM(max_pd)(splat(bound), v);
}
FASTRNN_INLINE Vector<double> at_most(double bound, Vector<double> v) {
  return FASTRNN_MM(min_pd)(splat(bound), v);
}
// a * b + c, rounded once. (Of the operators the compiler makes one multiply-add or two operations as it sees fit.)
FASTRNN_INLINE Vector<float> fused(Vector<float> a, Vector<float> b, Vector<float> c) {
  return FASTRNN_MM(fmadd_ps)(a, b, c);
}
#undef FASTRNN_MM
#else
template <class T>
FASTRNN_INLINE Vector<T> at_least(T bound, Vector<T> v) {
  return v < bound ? splat(bound) : v;
}
template <class T>
FASTRNN_INLINE Vector<T> at_most(T bound, Vector<T> v) {
  return v > bound ? splat(bound) : v;
}
// There is no such instruction.
FASTRNN_INLINE Vector<float> fused(Vector<float> a, Vector<float> b, Vector<float> c) { return a * b + c; }
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

// bfloat16 in memory is float in a vector: reading widens, writing rounds to the nearest, ties to even.
namespace narrow {
typedef uint16_t Halves __attribute__((vector_size(kVectorBytes / 2), aligned(2), may_alias));
typedef uint32_t Bits __attribute__((vector_size(kVectorBytes)));

FASTRNN_INLINE Vector<float> widen(Halves halves) {
  return reinterpret_cast<Vector<float>>(__builtin_convertvector(halves, Bits) << 16);
}
// Of k-packs of two the first number, and the second.
FASTRNN_INLINE Vector<float> first_of_two(Vector<float> k_packs) {
  return reinterpret_cast<Vector<float>>(reinterpret_cast<Bits>(k_packs) << 16);
}
FASTRNN_INLINE Vector<float> second_of_two(Vector<float> k_packs) {
  return reinterpret_cast<Vector<float>>(reinterpret_cast<Bits>(k_packs) & 0xffff0000);
}
FASTRNN_INLINE Halves round(Vector<float> v) {
#if defined(__AVX512BF16__)
  return reinterpret_cast<Halves>(_mm512_cvtneps_pbh(v));
#else
  const Bits bits = reinterpret_cast<Bits>(v);
  const Bits rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const Bits is_nan = reinterpret_cast<Bits>(v != v);
  return __builtin_convertvector((is_nan & 0x7fc0) | (~is_nan & rounded), Halves);
#endif
}
}  // namespace narrow

FASTRNN_INLINE Vector<float> load(const bf16* p) {
  return narrow::widen(*reinterpret_cast<const narrow::Halves*>(p));
}
FASTRNN_INLINE void store(bf16* p, Vector<float> v) {
  *reinterpret_cast<narrow::Halves*>(p) = narrow::round(v);
}
FASTRNN_INLINE Vector<float> load_first(const bf16* p, int64_t n) {
  narrow::Halves halves{};
  std::memcpy(&halves, p, n * sizeof(bf16));
  return narrow::widen(halves);
}
FASTRNN_INLINE void store_first(bf16* p, Vector<float> v, int64_t n) {
  const narrow::Halves halves = narrow::round(v);
  std::memcpy(p, &halves, n * sizeof(bf16));
}

// As load and store when n covers all lanes, which is the common case and the quick one.
template <class T>
FASTRNN_INLINE Vector<Real<T>> load_upto(const T* p, int64_t n) {
  return n >= kLanes<Real<T>> ? load(p) : load_first(p, n);
}
template <class T>
FASTRNN_INLINE void store_upto(T* p, Vector<Real<T>> v, int64_t n) {
  if (n >= kLanes<Real<T>>) {
    store(p, v);
  } else {
    store_first(p, v, n);
  }
}

// Copies n numbers, from one type to another where the types say so.
template <class To, class From>
FASTRNN_INLINE void copy(To* to, const From* from, int64_t n) {
  for (int64_t i = 0; i < n; i += kLanes<Real<To>>) store_upto(to + i, load_upto(from + i, n - i), n - i);
}

// A multiply-add takes a k-pack, some neighbours along k, at once: one number, or two bfloat16 or four int8, whose
// bits stand in a float.
template <class T>
constexpr int kKPack = sizeof(Real<T>) / sizeof(T);
template <class T>
constexpr int64_t k_packs(int64_t K) {
  return (K + kKPack<T> - 1) / kKPack<T>;
}

template <class T>
FASTRNN_INLINE Vector<Real<T>> load_k_packs(const T* p) {
  return load(reinterpret_cast<const Real<T>*>(p));
}
// Of the first n numbers, n < kKPack<T> * kLanes; the others are read as zero.
template <class T>
FASTRNN_INLINE Vector<Real<T>> load_k_packs_first(const T* p, int64_t n) {
  if constexpr (kKPack<T> == 1) {
    return load_first(p, n);
  } else {
    Vector<Real<T>> v{};
    std::memcpy(&v, p, n * sizeof(T));
    return v;
  }
}
// One k-pack, n <= kKPack<T> numbers of it, in every lane.
template <class T, int n = kKPack<T>>
FASTRNN_INLINE Vector<Real<T>> splat_k_pack(const T* p) {
  if constexpr (kKPack<T> == 1) {
    return splat(*p);
  } else {
    uint32_t k_pack = 0;
    std::memcpy(&k_pack, p, n * sizeof(T));
    return reinterpret_cast<Vector<float>>(narrow::Bits{} + k_pack);
  }
}
// Lane j: row_0[j], and for a k-pack of two row_1[j] beside it (zero if row_1 is null).
template <class T>
FASTRNN_INLINE Vector<Real<T>> k_pack_of_rows(const T* row_0, const T* row_1, int64_t n) {
  if constexpr (kKPack<T> == 1) {
    return load_upto(row_0, n);
  } else {
    const auto low = reinterpret_cast<narrow::Bits>(load_upto(row_0, n)) >> 16;
    if (row_1 == nullptr) return reinterpret_cast<Vector<float>>(low);
    return reinterpret_cast<Vector<float>>(low | reinterpret_cast<narrow::Bits>(load_upto(row_1, n)));
  }
}

// sum + the products of a's and b's k-packs.
template <class T>
FASTRNN_INLINE Vector<Real<T>> multiply_add(Vector<Real<T>> sum, Vector<Real<T>> a, Vector<Real<T>> b) {
  if constexpr (kKPack<T> == 1) {
    return sum + a * b;
  } else {
#if defined(__AVX512BF16__)
    return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
#else
    sum += narrow::first_of_two(a) * narrow::first_of_two(b);
    return sum + narrow::second_of_two(a) * narrow::second_of_two(b);
#endif
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
// cleared (low half) or set (high half). Both together are one stage of a transpose.
enum class Half { low, high };
template <int d, int lanes, Half half>
struct StageIndex {
  static constexpr int at(int j) {
    const int lane = half == Half::high ? (j | d) : (j & ~d);
    return (j & d) ? lanes + lane : lane;
  }
};
template <class T, int d>
FASTRNN_INLINE Vector<T> merge_low(Vector<T> a, Vector<T> b) {
  return shuffle<T>(a, b, StageIndex<d, kLanes<T>, Half::low>{}, std::make_index_sequence<kLanes<T>>{});
}
template <class T, int d>
FASTRNN_INLINE Vector<T> merge_high(Vector<T> a, Vector<T> b) {
  return shuffle<T>(a, b, StageIndex<d, kLanes<T>, Half::high>{}, std::make_index_sequence<kLanes<T>>{});
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
