// V2V-PoseNet on CUDA. The functions and their arguments are those of v2v_cpu.cpp, with device pointers, and at the end
// the device and the stream instead of the number of threads. Nothing waits for the device. Sums have a fixed order (no
// atomics).
#include <pybind11/pybind11.h>

#include <algorithm>

#include "shared/kernels_cuda.cuh"
#include "v2v_common.h"

namespace py = pybind11;

const char* const handpose::kModule = "v2v_cuda";

namespace {

using namespace handpose;  // shared/kernels_*
using v2v::Chain;
using v2v::Frame;

constexpr int kThreads = 256;

// ------------------------------------------------------------------------------------------------ voxels

template <class T>
__global__ void voxelize_kernel(const float* depth, int64_t depth_count, const int64_t* starts, const int64_t* frames,
                                const double* cameras, const double* chains, int64_t batch, int pixel_origin,
                                bool floor, bool author, int grid, int margin, T* out, T one) {
  __shared__ Chain chain;
  __shared__ Frame frame;
  __shared__ bool plane;
  const int64_t cells = static_cast<int64_t>(grid) * grid * grid;
  for (int64_t b = blockIdx.y; b < batch; b += gridDim.y) {
    __syncthreads();
    if (threadIdx.x == 0) {
      chain = Chain(chains + b * v2v::kChainColumns, grid, margin, author, floor);
      frame = Frame(frames + b * v2v::kFrameColumns, cameras + b * v2v::kCameraColumns, pixel_origin);
      plane = chain.index(chain.z(frame.far)) >= 0;
    }
    __syncthreads();
    const int64_t crop_width = frame.right - frame.left, crop_height = frame.bottom - frame.top;
    const int64_t area = crop_width * crop_height, start = starts[b];
    // Boxes on the device were not checked by anybody: one that does not fit leaves its grid empty.
    const bool sound = crop_width >= 0 && crop_height >= 0 && start >= 0 && start + area <= depth_count &&
                       frame.left >= 0 && frame.top >= 0 && frame.right <= frame.width && frame.bottom <= frame.height;
    if (!sound) continue;
    const float* crop = depth + start;
    T* volume = out + b * cells;
    const int64_t first = first_of_thread(), step = step_of_threads();
    for (int64_t i = first; i < area; i += step) {
      const double z = crop[i];
      if (z == 0.0) continue;
      const int64_t column = frame.left + i % crop_width, row = frame.top + i / crop_width;
      const int64_t voxel = frame.voxel(chain, column + pixel_origin, row + pixel_origin, z);
      if (voxel >= 0) volume[voxel] = one;  // several threads may write the same value
    }
    if (!plane) continue;
    for (int64_t i = first; i < frame.width * frame.height; i += step) {
      const int64_t column = i % frame.width, row = i / frame.width;
      const bool in_crop = row >= frame.top && row < frame.bottom && column >= frame.left && column < frame.right;
      if (in_crop && crop[(row - frame.top) * crop_width + column - frame.left] != 0.0f) continue;
      const int64_t voxel = frame.voxel(chain, column + pixel_origin, row + pixel_origin, frame.far);
      if (voxel >= 0) volume[voxel] = one;
    }
  }
}

void voxelize(std::uintptr_t depth, int64_t depth_count, std::uintptr_t starts, std::uintptr_t frames,
              std::uintptr_t cameras, std::uintptr_t chains, int64_t batch, int pixel_origin, bool floor, bool author,
              int grid, int margin, std::uintptr_t out, int size, uint64_t one, int device, std::uintptr_t stream) {
  const DeviceGuard guard(device);
  if (batch == 0) return;
  const int64_t cells = static_cast<int64_t>(grid) * grid * grid;
  check(cudaMemsetAsync(pointer<void>(out), 0, batch * cells * size, stream_of(stream)), "clearing the grids");
  const dim3 blocks(32, static_cast<unsigned>(std::min<int64_t>(batch, 65535)));
  const auto launch = [&](auto* volumes, auto value) {
    voxelize_kernel<<<blocks, kThreads, 0, stream_of(stream)>>>(
        pointer<const float>(depth), depth_count, pointer<const int64_t>(starts), pointer<const int64_t>(frames),
        pointer<const double>(cameras), pointer<const double>(chains), batch, pixel_origin, floor, author, grid, margin,
        volumes, value);
  };
  switch (size) {
    case 1: launch(pointer<uint8_t>(out), static_cast<uint8_t>(one)); break;
    case 2: launch(pointer<uint16_t>(out), static_cast<uint16_t>(one)); break;
    case 4: launch(pointer<uint32_t>(out), static_cast<uint32_t>(one)); break;
    default: launch(pointer<uint64_t>(out), one);
  }
  check(cudaGetLastError(), "voxelize");
}

__global__ void joint_kernel(const double* joints_mm, const double* chains, int64_t batch, int64_t joints, bool author,
                             int grid, int margin, double* out) {
  for (int64_t i = first_of_thread(); i < batch * joints; i += step_of_threads()) {
    const Chain chain(chains + i / joints * v2v::kChainColumns, grid, margin, author, false);
    const double* p = joints_mm + i * 3;
    chain.xy(p[0], p[1], &out[i * 3], &out[i * 3 + 1]);
    out[i * 3 + 2] = chain.z(p[2]);
  }
}

void joint_coordinates(std::uintptr_t joints_mm, std::uintptr_t chains, int64_t batch, int64_t joints, bool author,
                       int grid, int margin, std::uintptr_t out, int device, std::uintptr_t stream) {
  const DeviceGuard guard(device);
  if (batch * joints == 0) return;
  joint_kernel<<<blocks_for(batch * joints, kThreads), kThreads, 0, stream_of(stream)>>>(
      pointer<const double>(joints_mm), pointer<const double>(chains), batch, joints, author, grid, margin,
      pointer<double>(out));
  check(cudaGetLastError(), "joint_coordinates");
}

// ------------------------------------------------------------------------------------------------ Gaussian
// A block works on planes (one joint, one x) of Y * Z values; the factors of y and z lie in shared memory.

__device__ float plane_factors(const double* cell, int64_t x, int64_t Y, int64_t Z, double sigma, double offset,
                               float* factors) {
  __syncthreads();
  for (int64_t i = threadIdx.x; i < Y + Z; i += blockDim.x)
    factors[i] = static_cast<float>(i < Y ? v2v::gaussian_factor(i, cell[1], sigma, offset)
                                          : v2v::gaussian_factor(i - Y, cell[2], sigma, offset));
  __syncthreads();
  return static_cast<float>(v2v::gaussian_factor(x, cell[0], sigma, offset));
}

template <class T>
__global__ void heatmap_kernel(const double* cells, int64_t planes, int64_t size, double sigma, double offset, T* out) {
  extern __shared__ float factors[];
  const unsigned n = static_cast<unsigned>(size * size), Z = static_cast<unsigned>(size);
  for (int64_t plane = blockIdx.x; plane < planes; plane += gridDim.x) {
    const float fx = plane_factors(cells + plane / size * 3, plane % size, size, size, sigma, offset, factors);
    for (unsigned i = threadIdx.x; i < n; i += blockDim.x)
      store(out, plane * n + i, fx * (factors[i / Z] * factors[size + i % Z]));
  }
}

template <class T>
__global__ void mse_kernel(const T* pred, const double* cells, int64_t planes, int64_t X, int64_t Y, int64_t Z,
                           double sigma, double offset, double* sums) {
  extern __shared__ float factors[];
  __shared__ double shared[kThreads];
  const unsigned n = static_cast<unsigned>(Y * Z), width = static_cast<unsigned>(Z);
  for (int64_t plane = blockIdx.x; plane < planes; plane += gridDim.x) {
    const float fx = plane_factors(cells + plane / X * 3, plane % X, Y, Z, sigma, offset, factors);
    float sum = 0.0f;
    for (unsigned i = threadIdx.x; i < n; i += blockDim.x) {
      const float d = load(pred, plane * n + i) - fx * (factors[i / width] * factors[Y + i % width]);
      sum += d * d;
    }
    const double total = block_sum(sum, shared);
    if (threadIdx.x == 0) sums[plane] = total;
  }
}

template <class T>
__global__ void mse_backward_kernel(const float* grad, const T* pred, const double* cells, int64_t planes, int64_t X,
                                    int64_t Y, int64_t Z, double sigma, double offset, T* out) {
  extern __shared__ float factors[];
  const unsigned n = static_cast<unsigned>(Y * Z), width = static_cast<unsigned>(Z);
  const auto scale = static_cast<float>(2.0 * static_cast<double>(*grad) / (static_cast<double>(planes) * n));
  for (int64_t plane = blockIdx.x; plane < planes; plane += gridDim.x) {
    const float fx = plane_factors(cells + plane / X * 3, plane % X, Y, Z, sigma, offset, factors);
    for (unsigned i = threadIdx.x; i < n; i += blockDim.x) {
      const float target = fx * (factors[i / width] * factors[Y + i % width]);
      store(out, plane * n + i, scale * (load(pred, plane * n + i) - target));
    }
  }
}

void gaussian_heatmaps(std::uintptr_t cells, int64_t count, int64_t size, double sigma, double offset,
                       std::uintptr_t out, int code, int device, std::uintptr_t stream) {
  const DeviceGuard guard(device);
  if (count == 0) return;
  with_type(code, [&](auto type) {
    using T = decltype(type);
    heatmap_kernel<<<blocks_for(count * size), kThreads, 2 * size * sizeof(float), stream_of(stream)>>>(
        pointer<const double>(cells), count * size, size, sigma, offset, pointer<T>(out));
  });
  check(cudaGetLastError(), "gaussian_heatmaps");
}

void gaussian_mse(std::uintptr_t pred, int code, std::uintptr_t cells, int64_t count, int64_t X, int64_t Y, int64_t Z,
                  double sigma, double offset, std::uintptr_t sums, int device, std::uintptr_t stream) {
  const DeviceGuard guard(device);
  if (count == 0) return;
  with_type(code, [&](auto type) {
    using T = decltype(type);
    mse_kernel<<<blocks_for(count * X), kThreads, (Y + Z) * sizeof(float), stream_of(stream)>>>(
        pointer<const T>(pred), pointer<const double>(cells), count * X, X, Y, Z, sigma, offset, pointer<double>(sums));
  });
  check(cudaGetLastError(), "gaussian_mse");
}

void gaussian_mse_backward(std::uintptr_t grad, std::uintptr_t pred, int code, std::uintptr_t cells, int64_t count,
                           int64_t X, int64_t Y, int64_t Z, double sigma, double offset, std::uintptr_t out, int device,
                           std::uintptr_t stream) {
  const DeviceGuard guard(device);
  if (count == 0) return;
  with_type(code, [&](auto type) {
    using T = decltype(type);
    mse_backward_kernel<<<blocks_for(count * X), kThreads, (Y + Z) * sizeof(float), stream_of(stream)>>>(
        pointer<const float>(grad), pointer<const T>(pred), pointer<const double>(cells), count * X, X, Y, Z, sigma,
        offset, pointer<T>(out));
  });
  check(cudaGetLastError(), "gaussian_mse_backward");
}

// ------------------------------------------------------------------------------------------------ maxima and integral
// A block works on whole volumes of n = X * Y * Z values.

// A NaN goes before every number, equal values in the order of their indices.
__device__ bool goes_before(float value, int64_t index, float other, int64_t other_index) {
  const bool nan = value != value, other_nan = other != other;
  if (nan != other_nan) return nan;
  return (!nan && value != other) ? value > other : index < other_index;
}

// The first maximum of a volume, the same in all threads afterwards.
template <class T>
__device__ void block_argmax(const T* maps, int64_t n, float* values, int64_t* indices, float* best,
                             int64_t* best_index) {
  *best = -INFINITY;
  *best_index = n;
  for (int64_t i = threadIdx.x; i < n; i += blockDim.x) {
    const float v = load(maps, i);
    if (goes_before(v, i, *best, *best_index)) {
      *best = v;
      *best_index = i;
    }
  }
  __syncthreads();
  values[threadIdx.x] = *best;
  indices[threadIdx.x] = *best_index;
  for (unsigned half = blockDim.x / 2; half > 0; half /= 2) {
    __syncthreads();
    const unsigned a = threadIdx.x, b = a + half;
    if (a < half && goes_before(values[b], indices[b], values[a], indices[a])) {
      values[a] = values[b];
      indices[a] = indices[b];
    }
  }
  __syncthreads();
  *best = values[0];
  *best_index = indices[0];
}

template <class T>
__global__ void argmax_kernel(const T* heatmaps, int64_t count, int64_t X, int64_t Y, int64_t Z, int64_t* index,
                              T* values) {
  __shared__ float tops[kThreads];
  __shared__ int64_t indices[kThreads];
  const int64_t n = X * Y * Z;
  for (int64_t joint = blockIdx.x; joint < count; joint += gridDim.x) {
    float best;
    int64_t i;
    block_argmax(heatmaps + joint * n, n, tops, indices, &best, &i);
    if (threadIdx.x == 0) {
      index[joint * 3] = i / (Y * Z);
      index[joint * 3 + 1] = i / Z % Y;
      index[joint * 3 + 2] = i % Z;
      values[joint] = heatmaps[joint * n + i];
    }
  }
}

void argmax3d(std::uintptr_t heatmaps, int code, int64_t count, int64_t X, int64_t Y, int64_t Z, std::uintptr_t index,
              std::uintptr_t values, int device, std::uintptr_t stream) {
  const DeviceGuard guard(device);
  if (count == 0) return;
  with_type(code, [&](auto type) {
    using T = decltype(type);
    argmax_kernel<<<blocks_for(count), kThreads, 0, stream_of(stream)>>>(
        pointer<const T>(heatmaps), count, X, Y, Z, pointer<int64_t>(index), pointer<T>(values));
  });
  check(cudaGetLastError(), "argmax3d");
}

template <class T>
__global__ void soft_argmax_kernel(const T* logits, int64_t count, int64_t X, int64_t Y, int64_t Z, float* coords,
                                   float* lse) {
  __shared__ float tops[kThreads];
  __shared__ int64_t indices[kThreads];
  __shared__ double shared[kThreads];
  const int64_t n = X * Y * Z;
  for (int64_t joint = blockIdx.x; joint < count; joint += gridDim.x) {
    const T* maps = logits + joint * n;
    float top;
    int64_t unused;
    block_argmax(maps, n, tops, indices, &top, &unused);
    double sum = 0.0, moment[3] = {0.0, 0.0, 0.0};
    for (int64_t i = threadIdx.x; i < n; i += blockDim.x) {
      const double e = expf(load(maps, i) - top);
      sum += e;
      moment[0] += e * static_cast<double>(i / (Y * Z));
      moment[1] += e * static_cast<double>(i / Z % Y);
      moment[2] += e * static_cast<double>(i % Z);
    }
    const double total = block_sum(sum, shared);
    for (int axis = 0; axis < 3; ++axis) {
      const double all = block_sum(moment[axis], shared);
      if (threadIdx.x == 0) coords[joint * 3 + axis] = static_cast<float>(all / total);
    }
    if (threadIdx.x == 0) lse[joint] = static_cast<float>(static_cast<double>(top) + log(total));
  }
}

void soft_argmax(std::uintptr_t logits, int code, int64_t count, int64_t X, int64_t Y, int64_t Z, std::uintptr_t coords,
                 std::uintptr_t lse, int device, std::uintptr_t stream) {
  const DeviceGuard guard(device);
  if (count == 0) return;
  with_type(code, [&](auto type) {
    using T = decltype(type);
    soft_argmax_kernel<<<blocks_for(count), kThreads, 0, stream_of(stream)>>>(
        pointer<const T>(logits), count, X, Y, Z, pointer<float>(coords), pointer<float>(lse));
  });
  check(cudaGetLastError(), "soft_argmax");
}

template <class T>
__global__ void soft_argmax_backward_kernel(const T* logits, const float* coords, const float* lse,
                                            const float* g_coords, const float* g_lse, int64_t planes, int64_t X,
                                            int64_t Y, int64_t Z, T* out) {
  const unsigned n = static_cast<unsigned>(Y * Z), width = static_cast<unsigned>(Z);
  for (int64_t plane = blockIdx.x; plane < planes; plane += gridDim.x) {
    const int64_t joint = plane / X;
    const float *at = coords + joint * 3, *g = g_coords + joint * 3;
    const float rest = g_lse[joint] + g[0] * (static_cast<float>(plane % X) - at[0]);
    for (unsigned i = threadIdx.x; i < n; i += blockDim.x) {
      const float p = expf(load(logits, plane * n + i) - lse[joint]);
      const float y = static_cast<float>(i / width), z = static_cast<float>(i % width);
      store(out, plane * n + i, p * (rest + g[1] * (y - at[1]) + g[2] * (z - at[2])));
    }
  }
}

void soft_argmax_backward(std::uintptr_t logits, int code, std::uintptr_t coords, std::uintptr_t lse,
                          std::uintptr_t g_coords, std::uintptr_t g_lse, int64_t count, int64_t X, int64_t Y, int64_t Z,
                          std::uintptr_t out, int device, std::uintptr_t stream) {
  const DeviceGuard guard(device);
  if (count == 0) return;
  with_type(code, [&](auto type) {
    using T = decltype(type);
    soft_argmax_backward_kernel<<<blocks_for(count * X), kThreads, 0, stream_of(stream)>>>(
        pointer<const T>(logits), pointer<const float>(coords), pointer<const float>(lse),
        pointer<const float>(g_coords), pointer<const float>(g_lse), count * X, X, Y, Z, pointer<T>(out));
  });
  check(cudaGetLastError(), "soft_argmax_backward");
}

}  // namespace

PYBIND11_MODULE(v2v_cuda, module) {
  module.attr("abi") = v2v::kAbi;
  module.def("probe", &probe);
  const py::call_guard<py::gil_scoped_release> unlocked;
  module.def("voxelize", &voxelize, unlocked);
  module.def("joint_coordinates", &joint_coordinates, unlocked);
  module.def("gaussian_heatmaps", &gaussian_heatmaps, unlocked);
  module.def("gaussian_mse", &gaussian_mse, unlocked);
  module.def("gaussian_mse_backward", &gaussian_mse_backward, unlocked);
  module.def("argmax3d", &argmax3d, unlocked);
  module.def("soft_argmax", &soft_argmax, unlocked);
  module.def("soft_argmax_backward", &soft_argmax_backward, unlocked);
}
