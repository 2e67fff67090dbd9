// SO-HandNet on CUDA. The functions and their arguments are those of sohandnet_cpu.cpp, with device pointers, and at the
// end the device and the stream instead of the number of threads. Nothing waits for the device. Sums have a fixed order
// (no atomics), and no result depends on the size of a block. Normals and the backward pass of linear_index_max are not
// here: the first belong to the preparation of data on the CPU, the second is a matter of dense products on a GPU.
#include <pybind11/pybind11.h>

#include <algorithm>

#include "shared/kernels_cuda.cuh"
#include "sohandnet_common.h"

namespace py = pybind11;

const char* const handpose::kModule = "sohandnet_cuda";

namespace {

using namespace handpose;  // shared/kernels_*

constexpr int kThreads = 256;

// Where channel c, place i of a sample lies, of C channels and n places.
__device__ int64_t offset(bool last, int64_t c, int64_t i, int64_t C, int64_t n) {
  return last ? i * C + c : c * n + i;
}

// ------------------------------------------------------------------------------------------------ association

// The nearest of `count` nodes in shared memory (x, y, z one after the other, `width` apart).
__device__ int32_t nearest_of(const float* nodes, int count, int width, float x, float y, float z, float* best) {
  int32_t found = 0;
  *best = INFINITY;
  for (int m = 0; m < count; ++m) {
    const float d = soh::square_distance(x, y, z, nodes[m], nodes[width + m], nodes[2 * width + m]);
    if (d < *best) {
      *best = d;
      found = m;
    }
  }
  return found;
}

__global__ void associate_kernel(const float* points, const float* nodes, int64_t batch, int64_t n, int m, int k,
                                 int32_t* index) {
  extern __shared__ float table[];
  for (int64_t b = blockIdx.y; b < batch; b += gridDim.y) {
    __syncthreads();
    for (int i = threadIdx.x; i < 3 * m; i += blockDim.x) table[i] = nodes[b * 3 * m + i];
    __syncthreads();
    const float* cloud = points + b * 3 * n;
    for (int64_t i = first_of_thread(); i < n; i += step_of_threads()) {
      const float x = cloud[i], y = cloud[n + i], z = cloud[2 * n + i];
      // One sweep for each place: the nearest node that comes after the one before, by (distance, node).
      float last = -1.0f;
      int32_t last_node = -1;
      for (int j = 0; j < k; ++j) {
        float best = INFINITY;
        int32_t found = -1;
        for (int32_t node = 0; node < m; ++node) {
          const float d = soh::square_distance(x, y, z, table[node], table[m + node], table[2 * m + node]);
          const bool after = d > last || (d == last && node > last_node);
          if (after && d < best) {
            best = d;
            found = node;
          }
        }
        index[(b * n + i) * k + j] = found >= 0 ? found : j;  // valid even where no distance is a number
        last = best;
        last_node = found;
      }
    }
  }
}

// A thread adds up the points of one node, in their order.
__global__ void means_kernel(const float* points, const int32_t* index, int64_t batch, int64_t n, int64_t m, int64_t k,
                             int32_t* count, float* mean) {
  for (int64_t i = first_of_thread(); i < batch * m; i += step_of_threads()) {
    const int64_t b = i / m, node = i % m;
    const float* cloud = points + b * 3 * n;
    double sum[3] = {};
    int32_t members = 0;
    for (int64_t pair = 0; pair < n * k; ++pair) {
      if (index[b * n * k + pair] != node) continue;
      ++members;
      for (int axis = 0; axis < 3; ++axis) sum[axis] += cloud[axis * n + pair / k];
    }
    count[i] = members;
    for (int axis = 0; axis < 3; ++axis) mean[(b * 3 + axis) * m + node] = soh::node_mean(sum[axis], members);
  }
}

void associate(std::uintptr_t points, std::uintptr_t nodes, int64_t batch, int64_t n, int64_t m, int64_t k,
               std::uintptr_t index, std::uintptr_t count, std::uintptr_t mean, int device, std::uintptr_t stream) {
  const DeviceGuard guard(device);
  if (batch == 0) return;
  if (n > 0) {
    const dim3 blocks(std::min(blocks_for(n, kThreads), 1024u), static_cast<unsigned>(std::min<int64_t>(batch, 65535)));
    associate_kernel<<<blocks, kThreads, 3 * m * sizeof(float), stream_of(stream)>>>(
        pointer<const float>(points), pointer<const float>(nodes), batch, n, static_cast<int>(m), static_cast<int>(k),
        pointer<int32_t>(index));
    check(cudaGetLastError(), "associate");
  }
  means_kernel<<<blocks_for(batch * m, 32), 32, 0, stream_of(stream)>>>(
      pointer<const float>(points), pointer<const int32_t>(index), batch, n, m, k, pointer<int32_t>(count),
      pointer<float>(mean));
  check(cudaGetLastError(), "means of the nodes");
}

// ------------------------------------------------------------------------------------------------ masked max

// A block works on one node of one sample; its threads are channels and pass together over the pairs.
template <class T>
__global__ void index_max_kernel(const T* data, const int32_t* index, int64_t batch, int64_t C, int64_t L, int64_t M,
                                 bool last, bool seed, T* value, int32_t* argmax) {
  __shared__ int32_t owners[kThreads];
  for (int64_t work = blockIdx.x; work < batch * M; work += gridDim.x) {
    const int64_t b = work / M, m = work % M;
    const T* sample = data + b * C * L;
    for (int64_t from = 0; from < C; from += blockDim.x) {
      const int64_t c = from + threadIdx.x;
      float best = soh::kSeedFloor;
      int64_t arg = -1;
      bool any = false;
      for (int64_t tile = 0; tile < L; tile += blockDim.x) {
        __syncthreads();
        if (tile + threadIdx.x < L) owners[threadIdx.x] = index[b * L + tile + threadIdx.x];
        __syncthreads();
        const int64_t end = min(static_cast<int64_t>(blockDim.x), L - tile);
        for (int64_t i = 0; i < end; ++i) {
          if (owners[i] != m) continue;
          any = true;
          if (c >= C) continue;
          const float v = load(sample, offset(last, c, tile + i, C, L));
          if (seed ? v > best : arg < 0 || soh::replaces(v, best)) {
            best = v;
            arg = tile + i;
          }
        }
      }
      if (c >= C) continue;
      const int64_t at = b * C * M + offset(last, c, m, C, M);
      // Nothing above the floor: the original takes pair 0, whoever owns it.
      store(value, at, !any ? 0.0f : arg >= 0 ? best : load(sample, offset(last, c, 0, C, L)));
      argmax[at] = arg >= 0 ? static_cast<int32_t>(arg) : 0;
    }
  }
}

void index_max(std::uintptr_t data, int code, std::uintptr_t index, int64_t batch, int64_t C, int64_t L, int64_t M,
               bool last, bool seed, std::uintptr_t value, std::uintptr_t argmax, int device, std::uintptr_t stream) {
  const DeviceGuard guard(device);
  if (batch * C == 0) return;
  with_type(code, [&](auto type) {
    using T = decltype(type);
    index_max_kernel<<<blocks_for(batch * M), kThreads, 0, stream_of(stream)>>>(
        pointer<const T>(data), pointer<const int32_t>(index), batch, C, L, M, last, seed, pointer<T>(value),
        pointer<int32_t>(argmax));
  });
  check(cudaGetLastError(), "index_max");
}

// A pair has one node, so no two threads write to the same place.
template <class T>
__global__ void index_max_backward_kernel(const T* grad, const int32_t* argmax, const int32_t* index, int64_t batch,
                                          int64_t C, int64_t L, int64_t M, bool last, T* out) {
  for (int64_t i = first_of_thread(); i < batch * C * M; i += step_of_threads()) {
    const int64_t b = i / (C * M), rest = i % (C * M);
    const int64_t c = last ? rest % C : rest / M, m = last ? rest / C : rest % M, l = argmax[i];
    if (l >= 0 && l < L && index[b * L + l] == m) out[b * C * L + offset(last, c, l, C, L)] = grad[i];
  }
}

void index_max_backward(std::uintptr_t grad, int code, std::uintptr_t argmax, std::uintptr_t index, int64_t batch,
                        int64_t C, int64_t L, int64_t M, bool last, std::uintptr_t out, int device,
                        std::uintptr_t stream) {
  const DeviceGuard guard(device);
  if (batch * C * L == 0) return;
  const int64_t bytes = batch * C * L * (code == 1 ? 2 : 4);
  check(cudaMemsetAsync(pointer<void>(out), 0, bytes, stream_of(stream)), "clearing the gradient");
  with_type(code, [&](auto type) {
    using T = decltype(type);
    index_max_backward_kernel<<<blocks_for(batch * C * M, kThreads), kThreads, 0, stream_of(stream)>>>(
        pointer<const T>(grad), pointer<const int32_t>(argmax), pointer<const int32_t>(index), batch, C, L, M, last,
        pointer<T>(out));
  });
  check(cudaGetLastError(), "index_max_backward");
}

// ------------------------------------------------------------------------------------------------ neighbours
// `reads` is R * K, the places of one sample. Indices on the device were not checked by anybody: wrong ones read as 0.

template <class T>
__global__ void knn_gather_kernel(const T* feature, const int32_t* neighbours, int64_t batch, int64_t C, int64_t M,
                                  int64_t reads, bool last, T* out) {
  for (int64_t i = first_of_thread(); i < batch * C * reads; i += step_of_threads()) {
    const int64_t b = i / (C * reads), rest = i % (C * reads);
    const int64_t c = last ? rest % C : rest / reads, place = last ? rest / C : rest % reads;
    const int64_t m = neighbours[b * reads + place];
    out[i] = m >= 0 && m < M ? feature[b * C * M + offset(last, c, m, C, M)] : T{0};
  }
}

void knn_gather(std::uintptr_t feature, int code, std::uintptr_t neighbours, int64_t batch, int64_t C, int64_t M,
                int64_t reads, bool last, std::uintptr_t out, int device, std::uintptr_t stream) {
  const DeviceGuard guard(device);
  if (batch * C * reads == 0) return;
  with_type(code, [&](auto type) {
    using T = decltype(type);
    knn_gather_kernel<<<blocks_for(batch * C * reads, kThreads), kThreads, 0, stream_of(stream)>>>(
        pointer<const T>(feature), pointer<const int32_t>(neighbours), batch, C, M, reads, last, pointer<T>(out));
  });
  check(cudaGetLastError(), "knn_gather");
}

// A block works on one node of one sample; its threads are channels and pass together over the places.
template <class T>
__global__ void knn_gather_backward_kernel(const T* grad, const int32_t* neighbours, int64_t batch, int64_t C, int64_t M,
                                           int64_t reads, bool last, T* out) {
  for (int64_t work = blockIdx.x; work < batch * M; work += gridDim.x) {
    const int64_t b = work / M, m = work % M;
    for (int64_t c = threadIdx.x; c < C; c += blockDim.x) {
      float sum = 0.0f;
      for (int64_t i = 0; i < reads; ++i)
        if (neighbours[b * reads + i] == m) sum += load(grad, b * C * reads + offset(last, c, i, C, reads));
      store(out, b * C * M + offset(last, c, m, C, M), sum);
    }
  }
}

void knn_gather_backward(std::uintptr_t grad, int code, std::uintptr_t neighbours, int64_t batch, int64_t C, int64_t M,
                         int64_t reads, bool last, std::uintptr_t out, int device, std::uintptr_t stream) {
  const DeviceGuard guard(device);
  if (batch * C * M == 0) return;
  with_type(code, [&](auto type) {
    using T = decltype(type);
    knn_gather_backward_kernel<<<blocks_for(batch * M), kThreads, 0, stream_of(stream)>>>(
        pointer<const T>(grad), pointer<const int32_t>(neighbours), batch, C, M, reads, last, pointer<T>(out));
  });
  check(cudaGetLastError(), "knn_gather_backward");
}

template <class T>
__global__ void knn_max_kernel(const T* feature, const int32_t* neighbours, int64_t batch, int64_t C, int64_t M,
                               int64_t R, int64_t K, bool last, T* value, int32_t* argmax) {
  for (int64_t i = first_of_thread(); i < batch * C * R; i += step_of_threads()) {
    const int64_t b = i / (C * R), rest = i % (C * R);
    const int64_t c = last ? rest % C : rest / R, r = last ? rest / C : rest % R;
    float best = 0.0f;
    int32_t arg = -1;
    for (int64_t k = 0; k < K; ++k) {
      const int32_t m = neighbours[(b * R + r) * K + k];
      if (m < 0 || m >= M) continue;
      const float v = load(feature, b * C * M + offset(last, c, m, C, M));
      const bool equal = v == best || (v != v && best != best);
      if (arg < 0 || soh::replaces(v, best) || (equal && m < arg)) {
        best = v;
        arg = m;
      }
    }
    store(value, i, best);
    argmax[i] = max(arg, 0);
  }
}

void knn_max(std::uintptr_t feature, int code, std::uintptr_t neighbours, int64_t batch, int64_t C, int64_t M, int64_t R,
             int64_t K, bool last, std::uintptr_t value, std::uintptr_t argmax, int device, std::uintptr_t stream) {
  const DeviceGuard guard(device);
  if (batch * C * R == 0) return;
  with_type(code, [&](auto type) {
    using T = decltype(type);
    knn_max_kernel<<<blocks_for(batch * C * R, kThreads), kThreads, 0, stream_of(stream)>>>(
        pointer<const T>(feature), pointer<const int32_t>(neighbours), batch, C, M, R, K, last, pointer<T>(value),
        pointer<int32_t>(argmax));
  });
  check(cudaGetLastError(), "knn_max");
}

template <class T>
__global__ void knn_max_backward_kernel(const T* grad, const int32_t* argmax, int64_t batch, int64_t C, int64_t M,
                                        int64_t R, bool last, T* out) {
  for (int64_t i = first_of_thread(); i < batch * C * M; i += step_of_threads()) {
    const int64_t b = i / (C * M), rest = i % (C * M);
    const int64_t c = last ? rest % C : rest / M, m = last ? rest / C : rest % M;
    float sum = 0.0f;
    for (int64_t r = 0; r < R; ++r) {
      const int64_t at = b * C * R + offset(last, c, r, C, R);
      if (argmax[at] == m) sum += load(grad, at);
    }
    store(out, i, sum);
  }
}

void knn_max_backward(std::uintptr_t grad, int code, std::uintptr_t argmax, int64_t batch, int64_t C, int64_t M,
                      int64_t R, bool last, std::uintptr_t out, int device, std::uintptr_t stream) {
  const DeviceGuard guard(device);
  if (batch * C * M == 0) return;
  with_type(code, [&](auto type) {
    using T = decltype(type);
    knn_max_backward_kernel<<<blocks_for(batch * C * M, kThreads), kThreads, 0, stream_of(stream)>>>(
        pointer<const T>(grad), pointer<const int32_t>(argmax), batch, C, M, R, last, pointer<T>(out));
  });
  check(cudaGetLastError(), "knn_max_backward");
}

// ------------------------------------------------------------------------------------------------ map

// A block trains the map of one cloud. In shared memory: nodes (3 M), pull (4 M: means and the indicator of a source),
// rows (4 M: pull after the sum along the columns).
__global__ void som_kernel(const float* clouds, const float* initial, const float* factors, const float* rates,
                           int64_t batch, int64_t n, int side, int64_t steps, int32_t* nearest, float* out) {
  extern __shared__ float table[];
  const int m = side * side;
  float *nodes = table, *pull = table + 3 * m, *rows = table + 7 * m;
  for (int64_t b = blockIdx.x; b < batch; b += gridDim.x) {
    const float* cloud = clouds + b * 3 * n;
    int32_t* owner = nearest + b * n;
    __syncthreads();
    for (int i = threadIdx.x; i < 3 * m; i += blockDim.x) nodes[i] = initial[i];
    for (int64_t step = 0; step < steps; ++step) {
      __syncthreads();
      for (int64_t i = threadIdx.x; i < n; i += blockDim.x) {
        float unused;
        owner[i] = nearest_of(nodes, m, m, cloud[i], cloud[n + i], cloud[2 * n + i], &unused);
      }
      __syncthreads();
      for (int node = threadIdx.x; node < m; node += blockDim.x) {
        double sum[3] = {};
        int32_t members = 0;
        for (int64_t i = 0; i < n; ++i) {
          if (owner[i] != node) continue;
          ++members;
          for (int axis = 0; axis < 3; ++axis) sum[axis] += cloud[axis * n + i];
        }
        for (int axis = 0; axis < 3; ++axis) pull[axis * m + node] = soh::node_mean(sum[axis], members);
        pull[3 * m + node] = members > 0 ? 1.0f : 0.0f;
      }
      __syncthreads();
      const float* factor = factors + step * side;
      for (int i = threadIdx.x; i < 4 * m; i += blockDim.x) {
        const int part = i / m, row = i % m / side, to = i % side;
        float sum = 0.0f;
        for (int from = 0; from < side; ++from) sum += factor[abs(from - to)] * pull[part * m + row * side + from];
        rows[i] = sum;
      }
      __syncthreads();
      for (int node = threadIdx.x; node < m; node += blockDim.x) {
        const int to = node / side, column = node % side;
        float sum[4] = {};
        for (int from = 0; from < side; ++from)
          for (int part = 0; part < 4; ++part)
            sum[part] += factor[abs(from - to)] * rows[part * m + from * side + column];
        for (int axis = 0; axis < 3; ++axis) {
          float* x = nodes + axis * m + node;
          *x += rates[step] * (sum[axis] - *x * sum[3]);
        }
      }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < 3 * m; i += blockDim.x) out[b * 3 * m + i] = nodes[i];
  }
}

void batch_som(std::uintptr_t clouds, std::uintptr_t initial, std::uintptr_t factors, std::uintptr_t rates, int64_t batch,
               int64_t n, int64_t side, int64_t steps, std::uintptr_t nearest, std::uintptr_t out, int device,
               std::uintptr_t stream) {
  const DeviceGuard guard(device);
  if (batch == 0) return;
  som_kernel<<<blocks_for(batch), kThreads, 11 * side * side * sizeof(float), stream_of(stream)>>>(
      pointer<const float>(clouds), pointer<const float>(initial), pointer<const float>(factors),
      pointer<const float>(rates), batch, n, static_cast<int>(side), steps, pointer<int32_t>(nearest),
      pointer<float>(out));
  check(cudaGetLastError(), "batch_som");
}

// ------------------------------------------------------------------------------------------------ Chamfer

// A thread looks for the nearest of one point; the other cloud passes through shared memory tile by tile.
__global__ void nearest_kernel(const float* p, const float* g, int64_t batch, int64_t P, int64_t Q, float* distance,
                               int32_t* index) {
  __shared__ float tile[3 * kThreads];
  for (int64_t b = blockIdx.y; b < batch; b += gridDim.y) {
    const float* cloud = g + b * 3 * Q;
    for (int64_t from = static_cast<int64_t>(blockIdx.x) * kThreads; from < P;
         from += static_cast<int64_t>(gridDim.x) * kThreads) {
      const int64_t i = from + threadIdx.x, at = b * 3 * P + min(i, P - 1);
      const float x = p[at], y = p[at + P], z = p[at + 2 * P];
      float best = INFINITY;
      int64_t found = 0;
      for (int64_t j = 0; j < Q; j += kThreads) {
        const int count = static_cast<int>(min(static_cast<int64_t>(kThreads), Q - j));
        __syncthreads();
        for (int axis = 0; axis < 3; ++axis)
          if (threadIdx.x < count) tile[axis * kThreads + threadIdx.x] = cloud[axis * Q + j + threadIdx.x];
        __syncthreads();
        float low;
        const int32_t place = nearest_of(tile, count, kThreads, x, y, z, &low);
        if (low < best) {
          best = low;
          found = j + place;
        }
      }
      if (i < P) {
        distance[b * P + i] = best;
        index[b * P + i] = static_cast<int32_t>(found);
      }
    }
  }
}

void chamfer_nn(std::uintptr_t p, std::uintptr_t g, int64_t batch, int64_t P, int64_t Q, std::uintptr_t d2_pg,
                std::uintptr_t idx_pg, std::uintptr_t d2_gp, std::uintptr_t idx_gp, int device, std::uintptr_t stream) {
  const DeviceGuard guard(device);
  if (batch == 0) return;
  const auto launch = [&](std::uintptr_t one, std::uintptr_t other, int64_t n, int64_t m, std::uintptr_t distance,
                          std::uintptr_t index) {
    const dim3 blocks(std::min(blocks_for(n, kThreads), 65535u),
                      static_cast<unsigned>(std::min<int64_t>(batch, 65535)));
    nearest_kernel<<<blocks, kThreads, 0, stream_of(stream)>>>(pointer<const float>(one), pointer<const float>(other),
                                                               batch, n, m, pointer<float>(distance),
                                                               pointer<int32_t>(index));
    check(cudaGetLastError(), "chamfer_nn");
  };
  launch(p, g, P, Q, d2_pg, idx_pg);
  launch(g, p, Q, P, d2_gp, idx_gp);
}

// What the distance from a to b adds to the gradient of a.
__device__ void add_pull(const float* a, int64_t i, int64_t n, const float* b, int64_t j, int64_t m, float scale,
                         double sign, double* sum) {
  const float dx = a[i] - b[j], dy = a[n + i] - b[m + j], dz = a[2 * n + i] - b[2 * m + j];
  const float distance = sqrtf((dx * dx + dy * dy + dz * dz) + soh::kChamferEps);
  sum[0] += sign * (dx / distance * scale);
  sum[1] += sign * (dy / distance * scale);
  sum[2] += sign * (dz / distance * scale);
}

// A thread adds up the gradient of one point: its own distance, and those of the points that have it as their nearest.
__global__ void chamfer_backward_kernel(const float* p, const float* g, const int32_t* idx_pg, const int32_t* idx_gp,
                                        const float* scale_pg, const float* scale_gp, int64_t batch, int64_t P,
                                        int64_t Q, float* grad) {
  for (int64_t i = first_of_thread(); i < batch * P; i += step_of_threads()) {
    const int64_t b = i / P, own = i % P;
    const float *points = p + b * 3 * P, *cloud = g + b * 3 * Q;
    double sum[3] = {};
    const int64_t to = min(max(static_cast<int64_t>(idx_pg[i]), int64_t{0}), Q - 1);
    add_pull(points, own, P, cloud, to, Q, scale_pg[b], 1.0, sum);
    for (int64_t j = 0; j < Q; ++j)
      if (idx_gp[b * Q + j] == own) add_pull(cloud, j, Q, points, own, P, scale_gp[b], -1.0, sum);
    for (int axis = 0; axis < 3; ++axis) grad[(b * 3 + axis) * P + own] = static_cast<float>(sum[axis]);
  }
}

void chamfer_backward(std::uintptr_t p, std::uintptr_t g, std::uintptr_t idx_pg, std::uintptr_t idx_gp,
                      std::uintptr_t scale_pg, std::uintptr_t scale_gp, int64_t batch, int64_t P, int64_t Q,
                      std::uintptr_t grad_p, std::uintptr_t grad_g, int device, std::uintptr_t stream) {
  const DeviceGuard guard(device);
  if (batch == 0) return;
  const auto launch = [&](std::uintptr_t one, std::uintptr_t other, std::uintptr_t there, std::uintptr_t back,
                          std::uintptr_t scale_there, std::uintptr_t scale_back, int64_t n, int64_t m,
                          std::uintptr_t grad) {
    chamfer_backward_kernel<<<blocks_for(batch * n, kThreads), kThreads, 0, stream_of(stream)>>>(
        pointer<const float>(one), pointer<const float>(other), pointer<const int32_t>(there),
        pointer<const int32_t>(back), pointer<const float>(scale_there), pointer<const float>(scale_back), batch, n, m,
        pointer<float>(grad));
    check(cudaGetLastError(), "chamfer_backward");
  };
  launch(p, g, idx_pg, idx_gp, scale_pg, scale_gp, P, Q, grad_p);
  launch(g, p, idx_gp, idx_pg, scale_gp, scale_pg, Q, P, grad_g);
}

}  // namespace

PYBIND11_MODULE(sohandnet_cuda, module) {
  module.attr("abi") = soh::kAbi;
  module.def("probe", &probe);
  const py::call_guard<py::gil_scoped_release> unlocked;
  module.def("associate", &associate, unlocked);
  module.def("index_max", &index_max, unlocked);
  module.def("index_max_backward", &index_max_backward, unlocked);
  module.def("knn_gather", &knn_gather, unlocked);
  module.def("knn_gather_backward", &knn_gather_backward, unlocked);
  module.def("knn_max", &knn_max, unlocked);
  module.def("knn_max_backward", &knn_max_backward, unlocked);
  module.def("batch_som", &batch_som, unlocked);
  module.def("chamfer_nn", &chamfer_nn, unlocked);
  module.def("chamfer_backward", &chamfer_backward, unlocked);
}
