#pragma once

// Cell functions are compiled once per instruction set (and, later, for the device). Forcing them inline
// keeps the linker from merging the copies of two instruction sets into one.
#if defined(__CUDACC__)
#define FASTRNN_INLINE __host__ __device__ __forceinline__
#else
#define FASTRNN_INLINE inline __attribute__((always_inline))
#endif
