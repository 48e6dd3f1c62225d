#pragma once

#include <cublas_v2.h>
#include <cuda_runtime_api.h>

#include <stdexcept>
#include <string>

namespace fastrnn::cuda {

// What is thrown is taken from the runtime, or whoever asks it next would throw it again. Errors that end the
// context stay.
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
