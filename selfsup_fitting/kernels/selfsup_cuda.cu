// Training by fitting on CUDA. The functions and their arguments are those of selfsup_cpu.cpp, with device pointers, and
// at the end the device and the stream instead of the number of threads. Nothing waits for the device. Results do not
// depend on the order of the threads: the only atomic is a minimum, and sums have a fixed order.
#include <pybind11/pybind11.h>

#include "selfsup_common.h"
#include "shared/kernels_cuda.cuh"

namespace py = pybind11;

const char* const handpose::kModule = "selfsup_cuda";

namespace {

using namespace handpose;  // shared/kernels_*
using selfsup::Grid;

constexpr int kThreads = 128;

// ------------------------------------------------------------------------------------------------ mesh

// The samples of one axis, without a table: all pixels, or the two out of `factor` that a reduction reads.
struct Axis {
  int size, factor, count;

  __host__ __device__ Axis(int size_, int factor_)
      : size(size_), factor(factor_), count(factor_ == 1 ? size_ : size_ / factor_ * 2) {}
  __device__ int before(int pixel) const {
    if (factor == 1) return pixel;
    const int offset = pixel % factor - (factor / 2 - 1);
    return pixel / factor * 2 + (offset < 0 ? 0 : offset > 2 ? 2 : offset);
  }
  __device__ int position(int sample) const {
    return factor == 1 ? sample : sample / 2 * factor + factor / 2 - 1 + sample % 2;
  }
};

// Depth and face as one number whose order is "nearer first, then lower index".
__device__ unsigned long long packed(float z, uint32_t face) {
  const uint32_t bits = __float_as_uint(z + 0.0f);  // -0 becomes 0
  const uint32_t key = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
  return static_cast<unsigned long long>(key) << 32 | face;
}

__device__ float depth_of(unsigned long long value) {
  const auto key = static_cast<uint32_t>(value >> 32);
  return __uint_as_float(key & 0x80000000u ? key ^ 0x80000000u : ~key);
}

constexpr uint32_t kNobody = 0xffffffffu;

__global__ void clear_kernel(unsigned long long* samples, int64_t count, float background) {
  for (int64_t i = first_of_thread(); i < count; i += step_of_threads())
    samples[i] = packed(background, kNobody);
}

template <bool harmonic>
__global__ void scan_kernel(const float* verts, int64_t batch, int64_t vert_count, const int64_t* faces,
                            int64_t face_count, Axis columns, Axis rows, bool cull, float background,
                            unsigned long long* samples) {
  for (int64_t i = first_of_thread(); i < batch * face_count; i += step_of_threads()) {
    const int64_t b = i / face_count, f = i % face_count;
    const float* corners[3];
    bool sound = true;
    for (int k = 0; k < 3; ++k) {
      const int64_t v = faces[f * 3 + k];
      if (v < 0 || v >= vert_count) {  // faces on the device were not checked by anybody
        sound = false;
        break;
      }
      corners[k] = verts + (b * vert_count + v) * 3;
      sound = sound && selfsup::sound(corners[k]);
    }
    if (!sound) continue;
    unsigned long long* image = samples + b * rows.count * columns.count;
    selfsup::scan_face<harmonic>(corners[0], corners[1], corners[2], cull, columns, rows,
                                 [&](int row, int column, float z) {
                                   if (z < background)
                                     atomicMin(image + static_cast<int64_t>(row) * columns.count + column,
                                               packed(z, static_cast<uint32_t>(f)));
                                 });
  }
}

// Depth (factor 1) and winner out of the packed samples.
__global__ void unpack_kernel(const unsigned long long* samples, int64_t count, float* depth, int32_t* winner) {
  for (int64_t i = first_of_thread(); i < count; i += step_of_threads()) {
    const unsigned long long value = samples[i];
    if (depth != nullptr) depth[i] = depth_of(value);
    winner[i] = static_cast<int32_t>(static_cast<uint32_t>(value));  // kNobody is -1
  }
}

__global__ void mean_kernel(const unsigned long long* samples, int64_t count, int width, int height, float far,
                            float* out) {
  for (int64_t i = first_of_thread(); i < count; i += step_of_threads()) {
    const int64_t column = i % width, row = i / width;  // of all images one below the other
    const unsigned long long *top = samples + 4 * row * width + 2 * column, *bottom = top + 2 * width;
    const float a = depth_of(top[0]), b = depth_of(top[1]), c = depth_of(bottom[0]), d = depth_of(bottom[1]);
    const float upper = (a < far ? a : far) + (b < far ? b : far);
    out[i] = (upper + (c < far ? c : far) + (d < far ? d : far)) * 0.25f;
  }
}

void rasterize(std::uintptr_t verts, int64_t batch, int64_t vert_count, std::uintptr_t faces, int64_t face_count,
               int width, int height, int factor, bool harmonic, bool cull, float background, float far,
               std::uintptr_t out, std::uintptr_t winner, std::uintptr_t scratch, int device, std::uintptr_t stream) {
  const DeviceGuard guard(device);
  const Axis columns(width, factor), rows(height, factor);
  const int64_t count = batch * columns.count * rows.count;
  if (count == 0) return;
  auto* samples = pointer<unsigned long long>(scratch);
  clear_kernel<<<blocks_for(count, kThreads), kThreads, 0, stream_of(stream)>>>(samples, count, background);
  check(cudaGetLastError(), "clearing the samples");
  if (face_count > 0) {
    const auto scan = harmonic ? scan_kernel<true> : scan_kernel<false>;
    scan<<<blocks_for(batch * face_count, kThreads), kThreads, 0, stream_of(stream)>>>(
        pointer<const float>(verts), batch, vert_count, pointer<const int64_t>(faces), face_count, columns, rows, cull,
        background, samples);
    check(cudaGetLastError(), "rasterize");
  }
  if (winner != 0)
    unpack_kernel<<<blocks_for(count, kThreads), kThreads, 0, stream_of(stream)>>>(
        samples, count, factor == 1 ? pointer<float>(out) : nullptr, pointer<int32_t>(winner));
  if (factor > 1)
    mean_kernel<<<blocks_for(count / 4, kThreads), kThreads, 0, stream_of(stream)>>>(
        samples, count / 4, width / factor, height / factor, far, pointer<float>(out));
  check(cudaGetLastError(), "reducing the samples");
}

// ------------------------------------------------------------------------------------------------ spheres

// The nearest sphere surface at (gx, gy); of equally near ones the first.
__device__ float nearest_surface(const float* centers, const float* radii, int64_t spheres, float gx, float gy,
                                 int32_t* winner) {
  float depth = selfsup::kBackground;
  *winner = -1;
  for (int64_t j = 0; j < spheres; ++j) {
    const float dx = gx - centers[j * 3], dy = gy - centers[j * 3 + 1], r = radii[j];
    const float q = r * r - dx * dx - dy * dy;
    if (!(q > selfsup::kMinQ)) continue;
    const float surface = centers[j * 3 + 2] - ::sqrtf(q);
    if (surface < depth) {
      depth = surface;
      *winner = static_cast<int32_t>(j);
    }
  }
  return depth;
}

__global__ void render_kernel(const float* centers, const float* radii, int64_t count, int64_t spheres, int size,
                              Grid grid, float* depth, int32_t* winner) {
  const int64_t pixels = static_cast<int64_t>(size) * size;
  for (int64_t i = first_of_thread(); i < count * pixels; i += step_of_threads()) {
    const int64_t n = i / pixels, at = i % pixels;
    depth[i] = nearest_surface(centers + n * spheres * 3, radii, spheres, grid.at(static_cast<int>(at % size)),
                               grid.at(static_cast<int>(at / size)), winner + i);
  }
}

void render_spheres(std::uintptr_t centers, std::uintptr_t radii, int64_t count, int64_t spheres, int size,
                    double cube_mm, std::uintptr_t depth, std::uintptr_t winner, int device, std::uintptr_t stream) {
  const DeviceGuard guard(device);
  if (count == 0) return;
  render_kernel<<<blocks_for(count * size * size, kThreads), kThreads, 0, stream_of(stream)>>>(
      pointer<const float>(centers), pointer<const float>(radii), count, spheres, size, Grid(size, cube_mm),
      pointer<float>(depth), pointer<int32_t>(winner));
  check(cudaGetLastError(), "render_spheres");
}

// One block for each (image, sphere): the sum over the pixels that the sphere won.
__global__ void render_backward_kernel(const float* grad, const float* centers, const float* radii,
                                       const int32_t* winner, int64_t count, int64_t spheres, int size, Grid grid,
                                       float* out) {
  __shared__ double shared[kThreads];
  const int64_t pixels = static_cast<int64_t>(size) * size;
  for (int64_t task = blockIdx.x; task < count * spheres; task += gridDim.x) {
    const int64_t n = task / spheres, j = task % spheres;
    const float *c = centers + task * 3, *pull = grad + n * pixels;
    double sums[3] = {0.0, 0.0, 0.0};
    for (int64_t at = threadIdx.x; at < pixels; at += blockDim.x) {
      if (winner[n * pixels + at] != j) continue;
      float slope[3];
      selfsup::surface_slope(grid.at(static_cast<int>(at % size)) - c[0], grid.at(static_cast<int>(at / size)) - c[1],
                             radii[j], slope);
      for (int k = 0; k < 3; ++k) sums[k] += slope[k] * pull[at];
    }
    for (int k = 0; k < 3; ++k) {
      const double total = block_sum(sums[k], shared);
      if (threadIdx.x == 0) out[task * 3 + k] = static_cast<float>(total);
    }
  }
}

void render_spheres_backward(std::uintptr_t grad, std::uintptr_t centers, std::uintptr_t radii, std::uintptr_t winner,
                             int64_t count, int64_t spheres, int size, double cube_mm, std::uintptr_t out, int device,
                             std::uintptr_t stream) {
  const DeviceGuard guard(device);
  if (count == 0) return;
  render_backward_kernel<<<blocks_for(count * spheres), kThreads, 0, stream_of(stream)>>>(
      pointer<const float>(grad), pointer<const float>(centers), pointer<const float>(radii),
      pointer<const int32_t>(winner), count, spheres, size, Grid(size, cube_mm), pointer<float>(out));
  check(cudaGetLastError(), "render_spheres_backward");
}

// ------------------------------------------------------------------------------------------------ projection loss

// For each pixel of each pair: which sphere is seen there, and which one's surface the captured point is nearest to, -1
// where there is no captured point.
__global__ void match_kernel(const float* centers, const float* radii, const float* depth, const int64_t* image,
                             int64_t count, int64_t spheres, int size, Grid grid, int32_t* winner, int32_t* nearest) {
  const int64_t pixels = static_cast<int64_t>(size) * size;
  for (int64_t i = first_of_thread(); i < count * pixels; i += step_of_threads()) {
    const int64_t n = i / pixels, at = i % pixels;
    const float gx = grid.at(static_cast<int>(at % size)), gy = grid.at(static_cast<int>(at / size));
    const float* balls = centers + n * spheres * 3;
    nearest_surface(balls, radii, spheres, gx, gy, winner + i);
    const float z = depth[image[n] * pixels + at];
    int32_t which = -1;
    if (z <= selfsup::kFarData) {
      float least = INFINITY;
      which = 0;
      for (int64_t j = 0; j < spheres; ++j) {
        const float e = selfsup::surface_distance(gx - balls[j * 3], gy - balls[j * 3 + 1], z - balls[j * 3 + 2],
                                                  radii[j]);
        if (e < least) {
          least = e;
          which = static_cast<int32_t>(j);
        }
      }
    }
    nearest[i] = which;
  }
}

// One block for each (pair, sphere), which adds up the sphere's derivatives, and one more for the pair's two terms.
__global__ void terms_kernel(const float* centers, const float* radii, const float* depth, const int64_t* image,
                             int64_t count, int64_t spheres, int size, Grid grid, const int32_t* winner,
                             const int32_t* nearest, float* model, float* data, float* model_slope,
                             float* data_slope) {
  __shared__ double shared[kThreads];
  const int64_t pixels = static_cast<int64_t>(size) * size;
  for (int64_t task = blockIdx.x; task < count * (spheres + 1); task += gridDim.x) {
    const int64_t n = task / (spheres + 1), mine = task % (spheres + 1);
    const bool totals = mine == spheres;
    const float *balls = centers + n * spheres * 3, *captured = depth + image[n] * pixels;
    double model_sums[3] = {0.0, 0.0, 0.0}, data_sums[3] = {0.0, 0.0, 0.0}, unsound = 0.0;
    for (int64_t k = threadIdx.x; k < spheres * 3; k += blockDim.x)
      if (!selfsup::finite(balls[k])) unsound = 1.0;
    for (int64_t at = threadIdx.x; at < pixels; at += blockDim.x) {
      const float gx = grid.at(static_cast<int>(at % size)), gy = grid.at(static_cast<int>(at / size));
      const float z = captured[at];
      if (!selfsup::finite(z)) unsound = 1.0;
      const int64_t seen = winner[n * pixels + at], near = nearest[n * pixels + at];
      if (seen >= 0 ? totals || seen == mine : totals) {
        float difference = selfsup::kBackground - z, slope[3] = {0.0f, 0.0f, 0.0f};
        if (seen >= 0) {
          const float dx = gx - balls[seen * 3], dy = gy - balls[seen * 3 + 1], r = radii[seen];
          difference = balls[seen * 3 + 2] - ::sqrtf(r * r - dx * dx - dy * dy) - z;
          selfsup::surface_slope(dx, dy, r, slope);
        }
        if (totals)
          model_sums[0] += static_cast<double>(difference) * static_cast<double>(difference);
        else
          for (int k = 0; k < 3; ++k) model_sums[k] += slope[k] * (2.0f * difference);
      }
      if (near >= 0 && (totals || near == mine)) {
        const float dx = gx - balls[near * 3], dy = gy - balls[near * 3 + 1], dz = z - balls[near * 3 + 2];
        const float e = selfsup::surface_distance(dx, dy, dz, radii[near]);
        if (totals) {
          data_sums[0] += e < selfsup::kMaxDistance ? e : selfsup::kMaxDistance;
        } else if (e <= selfsup::kMaxDistance) {
          float slope[3];
          selfsup::distance_slope(dx, dy, dz, radii[near], slope);
          for (int k = 0; k < 3; ++k) data_sums[k] += slope[k];
        }
      }
    }
    const double share = block_sum(unsound, shared) > 0.0 ? nan("") : 1.0 / static_cast<double>(pixels);
    for (int k = 0; k < (totals ? 1 : 3); ++k) {
      const double model_total = block_sum(model_sums[k], shared) * share;
      const double data_total = block_sum(data_sums[k], shared) * share;
      if (threadIdx.x != 0) continue;
      if (totals) {
        model[n] = static_cast<float>(model_total);
        data[n] = static_cast<float>(data_total);
      } else {
        model_slope[(n * spheres + mine) * 3 + k] = static_cast<float>(model_total);
        data_slope[(n * spheres + mine) * 3 + k] = static_cast<float>(data_total);
      }
    }
  }
}

void projection_terms(std::uintptr_t centers, std::uintptr_t radii, std::uintptr_t depth, std::uintptr_t image,
                      int64_t count, int64_t spheres, int size, double cube_mm, std::uintptr_t model,
                      std::uintptr_t data, std::uintptr_t model_slope, std::uintptr_t data_slope,
                      std::uintptr_t scratch, int device, std::uintptr_t stream) {
  const DeviceGuard guard(device);
  if (count == 0) return;
  const int64_t pixels = static_cast<int64_t>(size) * size;
  const Grid grid(size, cube_mm);
  auto* winner = pointer<int32_t>(scratch);
  int32_t* nearest = winner + count * pixels;
  match_kernel<<<blocks_for(count * pixels, kThreads), kThreads, 0, stream_of(stream)>>>(
      pointer<const float>(centers), pointer<const float>(radii), pointer<const float>(depth),
      pointer<const int64_t>(image), count, spheres, size, grid, winner, nearest);
  check(cudaGetLastError(), "matching pixels and spheres");
  terms_kernel<<<blocks_for(count * (spheres + 1)), kThreads, 0, stream_of(stream)>>>(
      pointer<const float>(centers), pointer<const float>(radii), pointer<const float>(depth),
      pointer<const int64_t>(image), count, spheres, size, grid, winner, nearest, pointer<float>(model),
      pointer<float>(data), pointer<float>(model_slope), pointer<float>(data_slope));
  check(cudaGetLastError(), "projection_terms");
}

}  // namespace

PYBIND11_MODULE(selfsup_cuda, module) {
  module.attr("abi") = selfsup::kAbi;
  module.def("probe", &probe);
  const py::call_guard<py::gil_scoped_release> unlocked;
  module.def("rasterize", &rasterize, unlocked);
  module.def("render_spheres", &render_spheres, unlocked);
  module.def("render_spheres_backward", &render_spheres_backward, unlocked);
  module.def("projection_terms", &projection_terms, unlocked);
}
