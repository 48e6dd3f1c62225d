#pragma once

#include <type_traits>

#include "cuda/check.h"
#include "cuda/gemm.h"
#include "cuda/layer.h"
#include "cuda/persistent/persistent.h"

namespace fastrnn::cuda {

template <class Body>
__global__ void __launch_bounds__(128)
    for_each_index(const __grid_constant__ Body body, int64_t depth, int64_t rows, int64_t columns) {
  const int64_t first_row = static_cast<int64_t>(blockIdx.y) * blockDim.y + threadIdx.y;
  const int64_t first_column = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const int64_t row_stride = static_cast<int64_t>(gridDim.y) * blockDim.y;
  const int64_t column_stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = blockIdx.z; i < depth; i += gridDim.z) {
    for (int64_t row = first_row; row < rows; row += row_stride) {
      for (int64_t column = first_column; column < columns; column += column_stride) body(i, row, column);
    }
  }
}

template <class T>
constexpr cudaDataType_t kBlasType = std::is_same_v<T, double>  ? CUDA_R_64F
                                     : std::is_same_v<T, float> ? CUDA_R_32F
                                     : std::is_same_v<T, fp16>  ? CUDA_R_16F
                                                                : CUDA_R_16BF;

// The device refused a launch although it said before that the launch fits. This happens when the context has only a
// part of the device now, or when a partition has a limit.
struct LaunchRefused {
  cudaError_t error;
};
inline bool is_refusal(cudaError_t error) {
  return error == cudaErrorCooperativeLaunchTooLarge || error == cudaErrorLaunchOutOfResources ||
         error == cudaErrorInvalidClusterSize || error == cudaErrorInvalidConfiguration ||
         error == cudaErrorNotSupported;
}

// The stream of a context. Its cuBLAS handle is set up for one layer.
class Queue {
 public:
  // A workspace of its own is safe in a captured graph, and the bits do not depend on other streams. cuBLAS
  // advises 32 MiB.
  static constexpr int64_t kBlasBytes = 32 << 20;

  Queue(const Context& context, void* blas_workspace) : context_(context) {
    check(cublasGetMathMode(context.blas, &math_mode_), "cublasGetMathMode");
    // The compute type of a product says whether it may use tf32. All sums are in float.
    check(cublasSetMathMode(context.blas,
                            static_cast<cublasMath_t>(CUBLAS_DEFAULT_MATH |
                                                      CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION)),
          "cublasSetMathMode");
    check(cublasSetWorkspace(context.blas, blas_workspace, kBlasBytes), "cublasSetWorkspace");
  }
  ~Queue() {
    cublasSetMathMode(context_.blas, math_mode_);
    cublasSetStream(context_.blas, context_.stream);  // also restores the workspace of the handle
  }
  Queue(const Queue&) = delete;
  Queue& operator=(const Queue&) = delete;

  template <class Body>
  void launch(int64_t depth, int64_t rows, int64_t columns, const Body& body) {
    const dim3 block = rows < 4 ? dim3(128, 1) : dim3(32, 4);
    const dim3 grid(blocks(columns, block.x), blocks(rows, block.y), blocks(depth, 1));
    for_each_index<<<grid, block, 0, context_.stream>>>(body, depth, rows, columns);
    check(cudaGetLastError(), "a kernel launch");
  }

  template <class T, class TC>
  void multiply(const Gemm<T, TC>& gemm) {
    const BlasGemm<T, TC> g(gemm);
    const auto op = [](bool transposed) { return transposed ? CUBLAS_OP_T : CUBLAS_OP_N; };
    const Real<T> alpha = 1, beta = gemm.add ? 1 : 0;
    if (gemm.batch == 1) {
      check(cublasGemmEx_64(context_.blas, op(g.transpose_a), op(g.transpose_b), g.m, g.n, g.k, &alpha, g.a,
                            kBlasType<T>, g.lda, g.b, kBlasType<T>, g.ldb, &beta, g.c, kBlasType<TC>, g.ldc,
                            compute_type(), CUBLAS_GEMM_DEFAULT),
            "cublasGemmEx");
    } else {
      check(cublasGemmStridedBatchedEx_64(context_.blas, op(g.transpose_a), op(g.transpose_b), g.m, g.n, g.k,
                                          &alpha, g.a, kBlasType<T>, g.lda, g.stride_a, g.b, kBlasType<T>,
                                          g.ldb, g.stride_b, &beta, g.c, kBlasType<TC>, g.ldc, g.stride_c,
                                          gemm.batch, compute_type(), CUBLAS_GEMM_DEFAULT),
            "cublasGemmStridedBatchedEx");
    }
  }

  template <class T>
  void copy(T* to, const T* from, int64_t count) {
    check(cudaMemcpyAsync(to, from, count * sizeof(T), cudaMemcpyDeviceToDevice, context_.stream),
          "cudaMemcpyAsync");
  }

  static int64_t recurrence_bytes(const Plan& plan) { return persistent::workspace_bytes(plan); }
  template <class Cell, class T>
  void run_recurrence(const Plan& plan, const Recurrence<T>& recurrence, void* scratch) {
    check_launch(persistent::forward<Cell>(plan, context_.math, recurrence, scratch, context_.stream),
                 "the forward recurrence");
  }
  template <class Cell, class T>
  void run_recurrence(const Plan& plan, const BackwardRecurrence<T>& recurrence, void* scratch) {
    check_launch(persistent::backward<Cell>(plan, context_.math, recurrence, scratch, context_.stream),
                 "the backward recurrence");
  }

 private:
  static void check_launch(cudaError_t error, const char* what) {
    if (!is_refusal(error)) return check(error, what);
    cudaGetLastError();  // the caller tries another plan
    throw LaunchRefused{error};
  }

  static unsigned blocks(int64_t count, int64_t each) {
    constexpr int64_t kMost = 65535;  // of a grid's y and z; the threads loop over the rest
    const int64_t wanted = (count + each - 1) / each;
    return static_cast<unsigned>(wanted < kMost ? wanted : kMost);
  }

  cublasComputeType_t compute_type() const {
    switch (context_.math) {
      case Math::fp64:
        return CUBLAS_COMPUTE_64F;
      case Math::tf32:
        return CUBLAS_COMPUTE_32F_FAST_TF32;
      default:
        return CUBLAS_COMPUTE_32F;
    }
  }

  const Context& context_;
  cublasMath_t math_mode_;
};

}  // namespace fastrnn::cuda
