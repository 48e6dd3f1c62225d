#pragma once

#include <cublas_v2.h>
#include <cuda_runtime_api.h>

#include <stdexcept>
#include <string>

namespace fastrnn::cuda {

// Throws an error of the runtime and clears it there: otherwise the next caller that asks the runtime would throw it
// again. The runtime keeps errors that end the context.
inline void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();
  throw std::runtime_error(std::string("fastrnn: CUDA error in ") + what + ": " + cudaGetErrorString(error));
}
inline void check(cublasStatus_t status, const char* what) {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  cudaGetLastError();
  throw std::runtime_error(std::string("fastrnn: cuBLAS error in ") + what + ": " +
                           cublasGetStatusString(status));
}

}  // namespace fastrnn::cuda
