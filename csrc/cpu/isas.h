#pragma once

// The instruction sets of instruction_sets.cmake, each the name of a namespace, best last.
#if defined(__x86_64__)
#define FASTRNN_FOR_EACH_ISA(X) X(baseline) X(avx2) X(avx2_vnni) X(avx512) X(avx512_vnni) X(avx512_bf16)
#else
#define FASTRNN_FOR_EACH_ISA(X) X(baseline)
#endif

namespace fastrnn::cpu {

#define FASTRNN_ISA_NAME(isa) isa,
enum class Isa { FASTRNN_FOR_EACH_ISA(FASTRNN_ISA_NAME) count };
#undef FASTRNN_ISA_NAME
constexpr int kIsas = static_cast<int>(Isa::count);

}  // namespace fastrnn::cpu
