#pragma once

#include <cstdint>

namespace fastrnn::cuda {

// An operand of a product of row-major matrices, as it is stored: rows of `ld` numbers. If `transposed` is set, the
// operand is the transpose of the stored matrix. In a batch, the operand of the next product is `stride` numbers
// further.
template <class T>
struct GemmOperand {
  const T* data;
  int64_t ld;
  bool transposed = false;
  int64_t stride = 0;
};
template <class T>
struct GemmResult {
  T* data;
  int64_t ld;
  int64_t stride = 0;
};

// C (+)= A B for row-major A [M, K], B [K, N], C [M, N]; `batch` of them.
template <class T, class TC>
struct Gemm {
  int64_t M = 0, N = 0, K = 0;
  GemmOperand<T> A, B;
  GemmResult<TC> C;
  bool add = false;
  int batch = 1;
};

// The same product for BLAS, whose matrices are column-major. BLAS sees a row-major matrix as its transpose. So
// C = A B becomes C' = B' A': the operands change places, M and N change places, and the flags stay the same.
template <class T, class TC>
struct BlasGemm {
  bool transpose_a, transpose_b;
  int64_t m, n, k;
  const T* a;
  int64_t lda, stride_a;
  const T* b;
  int64_t ldb, stride_b;
  TC* c;
  int64_t ldc, stride_c;

  explicit BlasGemm(const Gemm<T, TC>& g)
      : transpose_a(g.B.transposed),
        transpose_b(g.A.transposed),
        m(g.N),
        n(g.M),
        k(g.K),
        a(g.B.data),
        lda(g.B.ld),
        stride_a(g.B.stride),
        b(g.A.data),
        ldb(g.A.ld),
        stride_b(g.A.stride),
        c(g.C.data),
        ldc(g.C.ld),
        stride_c(g.C.stride) {}
};

}  // namespace fastrnn::cuda
