#pragma once

#include <cublas_v2.h>
#include <cuda_runtime_api.h>

#include <stdexcept>
#include <string>

namespace fastrnn::cuda {

inline void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  throw std::runtime_error(std::string("fastrnn: CUDA error in ") + what + ": " + cudaGetErrorString(error));
}
inline void check(cublasStatus_t status, const char* what) {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  throw std::runtime_error(std::string("fastrnn: cuBLAS error in ") + what + ": " +
                           cublasGetStatusString(status));
}

}  // namespace fastrnn::cuda
