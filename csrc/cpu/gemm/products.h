#pragma once

// How a sum takes the products of two k-packs, for each type of the right factor: what the left factor is in memory,
// and the registers of a sum.

#include <cstring>
#include <type_traits>

#include "core/params.h"
#include "cpu/frozen.h"
#include "cpu/gemm/simd.h"
#include "cpu/tuning.h"

namespace fastrnn::cpu::FASTRNN_ISA {

#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)
constexpr bool kHasVnni = true;
#else
constexpr bool kHasVnni = false;
#endif

// A number of the left factor where the right one has T. Beside int8_weight those are from -127 to 127; VNNI's
// instruction takes them plus kQuantizedZero.
using Quantized = std::conditional_t<kHasVnni, uint8_t, int16_t>;
template <class T>
constexpr bool kIsWidened = std::is_same_v<T, bf16_weight> || std::is_same_v<T, int8_wide_weight>;
template <class T>
using Left = std::conditional_t<std::is_same_v<T, int8_weight>, Quantized,
                                std::conditional_t<kIsWidened<T>, float, T>>;

// A vector of sums, one for each of some neighbouring columns. `splat` makes of a k-pack of the left factor what
// `add` multiplies with a vector of k-packs of the right one; splat_first of its first n numbers and zeros.
template <class T>
struct Sum {
  using V = Vector<Real<T>>;
  using Splat = V;
  V v{};

  static FASTRNN_INLINE Splat splat(const T* p) { return splat_k_pack(p); }
  static FASTRNN_INLINE Splat splat_first(const T* p, int64_t) { return splat_k_pack<T, 1>(p); }
  FASTRNN_INLINE void add(Splat a, V b) { v = multiply_add<T>(v, a, b); }
};

// bfloat16 widened in registers.
template <>
struct Sum<bf16_weight> {
  using V = Vector<float>;
  struct Splat {
    V low, high;
  };
  V v{};

  static FASTRNN_INLINE Splat splat(const float* p) {
    return {cpu::FASTRNN_ISA::splat(p[0]), cpu::FASTRNN_ISA::splat(p[1])};
  }
  static FASTRNN_INLINE Splat splat_first(const float* p, int64_t) {
    return {cpu::FASTRNN_ISA::splat(p[0]), V{}};
  }
  FASTRNN_INLINE void add(const Splat& a, V b) {
    v += a.low * narrow::first_of_two(b);
    v += a.high * narrow::second_of_two(b);
  }
};

typedef int32_t Ints __attribute__((vector_size(kVectorBytes)));

// int8 times int8, exact in int32.
template <>
struct Sum<int8_weight> {
  using V = Vector<float>;
  static constexpr int kPack = kKPack<int8_weight>;

#if defined(__AVX2__)
#if defined(__AVX512F__)
  using Register = __m512i;
#else
  using Register = __m256i;
#endif
  // A k-pack in every lane.
  typedef std::conditional_t<kHasVnni, int32_t, int64_t> Pack;
  typedef Pack Splat __attribute__((vector_size(kVectorBytes)));
  static FASTRNN_INLINE Splat splat(const Quantized* p) {
    Pack pack;
    std::memcpy(&pack, p, sizeof pack);
    return Splat{} + pack;
  }
#endif

#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)
  Ints sums{};

  FASTRNN_INLINE void add(Splat a, V b) {
    const auto sum = reinterpret_cast<Register>(sums), left = reinterpret_cast<Register>(a);
#if defined(__AVX512VNNI__)
    sums = reinterpret_cast<Ints>(_mm512_dpbusd_epi32(sum, left, reinterpret_cast<Register>(b)));
#else
    sums = reinterpret_cast<Ints>(_mm256_dpbusd_avx_epi32(sum, left, reinterpret_cast<Register>(b)));
#endif
  }
  FASTRNN_INLINE Ints ints() const { return sums; }
#elif defined(__AVX2__)
  // Of each column two sums, over the numbers of its k-packs' first and second half; of the first half of the columns
  // and the second.
  Ints low{}, high{};

  FASTRNN_INLINE void add(Splat a, V b) {
    const auto left = reinterpret_cast<Register>(a), bytes = reinterpret_cast<Register>(b);
#if defined(__AVX512BW__)
    low +=
        reinterpret_cast<Ints>(_mm512_madd_epi16(left, _mm512_cvtepi8_epi16(_mm512_castsi512_si256(bytes))));
    high += reinterpret_cast<Ints>(
        _mm512_madd_epi16(left, _mm512_cvtepi8_epi16(_mm512_extracti64x4_epi64(bytes, 1))));
#else
    low +=
        reinterpret_cast<Ints>(_mm256_madd_epi16(left, _mm256_cvtepi8_epi16(_mm256_castsi256_si128(bytes))));
    high += reinterpret_cast<Ints>(
        _mm256_madd_epi16(left, _mm256_cvtepi8_epi16(_mm256_extracti128_si256(bytes, 1))));
#endif
  }
  FASTRNN_INLINE Ints ints() const {
    const auto first = reinterpret_cast<Register>(low), second = reinterpret_cast<Register>(high);
#if defined(__AVX512BW__)
    const auto even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const auto odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
    return reinterpret_cast<Ints>(_mm512_permutex2var_epi32(first, even, second)) +
           reinterpret_cast<Ints>(_mm512_permutex2var_epi32(first, odd, second));
#else
    return reinterpret_cast<Ints>(_mm256_permute4x64_epi64(_mm256_hadd_epi32(first, second), 0b11011000));
#endif
  }
#else
  struct Splat {
    int16_t a[kPack];
  };
  Ints sums{};

  static FASTRNN_INLINE Splat splat(const int16_t* p) {
    Splat splat;
    std::memcpy(splat.a, p, sizeof splat.a);
    return splat;
  }
  FASTRNN_INLINE void add(const Splat& a, V b) {
    int8_t bytes[kVectorBytes];
    std::memcpy(bytes, &b, sizeof bytes);
    for (int lane = 0; lane < kLanes<float>; ++lane) {
      for (int j = 0; j < kPack; ++j) sums[lane] += a.a[j] * bytes[lane * kPack + j];
    }
  }
  FASTRNN_INLINE Ints ints() const { return sums; }
#endif

  // The sum in multiples of scale(). after: the rows behind the k-packs, kQuantizedZero times the sum of each column
  // and the columns' scales.
  FASTRNN_INLINE V multiples(const float* after) const {
    Ints of_zero{};
    if (kHasVnni) of_zero = reinterpret_cast<Ints>(load(after));
    return __builtin_convertvector(ints() - of_zero, V);
  }
  static FASTRNN_INLINE V scale(const float* after, int64_t ldb, float of_row) {
    return load(after + ldb) * cpu::FASTRNN_ISA::splat(of_row);
  }
};

// int8 widened in registers.
template <>
struct Sum<int8_wide_weight> {
  using V = Vector<float>;
  struct Splat {
    V a[4];
  };
  V v{};

  static FASTRNN_INLINE Splat splat(const float* p) { return splat_first(p, 4); }
  static FASTRNN_INLINE Splat splat_first(const float* p, int64_t n) {
    Splat splat{};
    for (int j = 0; j < n; ++j) splat.a[j] = cpu::FASTRNN_ISA::splat(p[j]);
    return splat;
  }
  FASTRNN_INLINE void add(const Splat& a, V b) {
    const auto bytes = reinterpret_cast<Ints>(b);
    v += a.a[0] * __builtin_convertvector(bytes << 24 >> 24, V);
    v += a.a[1] * __builtin_convertvector(bytes << 16 >> 24, V);
    v += a.a[2] * __builtin_convertvector(bytes << 8 >> 24, V);
    v += a.a[3] * __builtin_convertvector(bytes >> 24, V);
  }
  FASTRNN_INLINE V multiples(const float*) const { return v; }
  static FASTRNN_INLINE V scale(const float* after, int64_t ldb, float) { return load(after + ldb); }
};

template <class T>
constexpr int64_t kRowsAfter = FrozenMatrix<T>::kRowsAfter;
// Registers of a sum.
template <class T>
constexpr int kSumRegisters = std::is_same_v<T, int8_weight> && !kHasVnni ? 2 : 1;

// Rounds `n` numbers to multiples of the result, of which the largest is 127; up to the next whole k-pack zeros follow.
// NaN if one of them is not finite: so are its products then.
FASTRNN_INLINE float quantize(const float* from, int64_t n, Quantized* to) {
  using V = Vector<float>;
  using narrow::Bits;
  constexpr int L = kLanes<float>;
  V largest{}, zeros{};
  for (int64_t i = 0; i < n; i += L) {
    const V v = load_upto(from + i, n - i);
    const V size = reinterpret_cast<V>(reinterpret_cast<Bits>(v) & 0x7fffffff);
    largest = size > largest ? size : largest;
    zeros += v * 0;
  }
  float most = 1e-30f, zero = 0;
  for (int lane = 0; lane < L; ++lane) {
    most = largest[lane] > most ? largest[lane] : most;
    zero += zeros[lane];
  }
  // The bits of 1.5 * 2^23 + k end in those of k.
  const V inverse = splat(127 / most), shift = splat(12582912.0f);
  typedef Quantized Lefts __attribute__((vector_size(sizeof(Quantized) * L)));
  for (int64_t i = 0; i < n; i += L) {
    const V v = load_upto(from + i, n - i) * inverse + shift;
    Lefts lefts = __builtin_convertvector(reinterpret_cast<Bits>(v), Lefts);
    if constexpr (kHasVnni) lefts += static_cast<uint8_t>(kQuantizedZero);
    std::memcpy(to + i, &lefts, sizeof lefts);
  }
  return most / 127 + zero;
}

}  // namespace fastrnn::cpu::FASTRNN_ISA
