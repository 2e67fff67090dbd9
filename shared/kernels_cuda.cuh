// What the CUDA kernels of all methods share: errors, device and stream, the split of work into blocks, sums.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <stdexcept>
#include <string>

#include "shared/kernels_common.h"

namespace handpose {

extern const char* const kModule;  // every module defines it: its name, for messages

inline void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  throw std::runtime_error(std::string(kModule) + ": " + what + ": " + cudaGetErrorString(status));
}

// Makes `device` current for a call. A module's CUDA runtime is its own and does not know what torch has chosen.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    check(cudaGetDevice(&before_), "cudaGetDevice");
    check(cudaSetDevice(device), "cudaSetDevice");
  }
  ~DeviceGuard() { cudaSetDevice(before_); }

 private:
  int before_ = 0;
};

inline cudaStream_t stream_of(std::uintptr_t stream) { return reinterpret_cast<cudaStream_t>(stream); }

// One block for every `threads` pieces of work; the loops inside reach what is beyond the largest number of blocks.
inline unsigned blocks_for(int64_t work, int threads = 1) {
  return static_cast<unsigned>(std::min<int64_t>((work + threads - 1) / threads, 1 << 30));
}

__device__ inline int64_t first_of_thread() { return static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; }
__device__ inline int64_t step_of_threads() { return static_cast<int64_t>(gridDim.x) * blockDim.x; }

// Sum over the block, the same in all threads; `shared` holds one number per thread.
__device__ inline double block_sum(double value, double* shared) {
  __syncthreads();
  shared[threadIdx.x] = value;
  for (unsigned half = blockDim.x / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half) shared[threadIdx.x] += shared[threadIdx.x + half];
  }
  __syncthreads();
  return shared[0];
}

// Why nothing can run here, or an empty text: the driver may be older than the runtime this module was built with.
inline std::string probe() {
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status != cudaSuccess) return cudaGetErrorString(status);
  return count > 0 ? "" : "no device";
}

}  // namespace handpose
