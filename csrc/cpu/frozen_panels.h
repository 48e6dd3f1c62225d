#pragma once

// What products with frozen weights take: their panels, and left factors that are quantized.

#include "cpu/frozen.h"
#include "cpu/gemm/packing.h"

namespace fastrnn::cpu::FASTRNN_ISA {

template <class T, class W>
Panels<W> frozen_panels(int64_t units, int gates) {
  constexpr int vectors = FrozenMatrix<W>::kLine / kVectorBytes;
  const auto U = static_cast<int>(FrozenLayout<T, W>::blocks_of(gates)) * vectors;
  return {units, gates, U, U * gates, vectors};
}

// A quantized row ends with zeros: it has whole k-packs, and is as long as whole vectors of what it is made of.
template <class W>
int64_t whole_packs(int64_t K) {
  return k_packs<W>(K) * kKPack<W>;
}
inline int64_t quantized_stride(int64_t K) { return ceil_div(K, kLanes<float>) * kLanes<float>; }

}  // namespace fastrnn::cpu::FASTRNN_ISA
