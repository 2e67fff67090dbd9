// V2V-PoseNet on the CPU. ops.py checks the arguments and explains them; here pointers are valid and contiguous.
// Work is shared among threads by sample or by volume, and every sum has a fixed order: the number of threads changes
// nothing.
#include <pybind11/pybind11.h>

#include <algorithm>
#include <limits>
#include <vector>

#include "shared/kernels_cpu.h"
#include "v2v_common.h"

namespace py = pybind11;

namespace {

using namespace handpose;  // shared/kernels_*
using v2v::Chain;
using v2v::Frame;

constexpr int kLanes = 16;  // of sums, explicit so that all clones of a loop give the same bits

// ------------------------------------------------------------------------------------------------ voxels

constexpr int kPoints = 256;

// Up to kPoints pixels with a measurement, placed together so that the many divisions run in vectors.
struct Points {
  double column[kPoints], row[kPoints], z[kPoints], voxel[kPoints];
  int count = 0;
};

// The arithmetic of Frame::voxel and Chain for the port's conventions, in the same order, without branches.
HANDPOSE_CLONES void place(const Frame& frame, const Chain& chain, int count, const double* column, const double* row,
                           const double* depth, double* voxels) {
  const double fx = frame.fx, fy = frame.fy, u0 = frame.u0, v0 = frame.v0, sign = frame.y_up ? -1.0 : 1.0;
  const double half = chain.half_cube, voxel = chain.voxel, margin = chain.margin, scale = chain.scale;
  const double centre = chain.centre, rest = centre * (1.0 - scale), cosine = chain.cosine, sine = chain.sine;
  const double ref_x = chain.ref[0], ref_y = chain.ref[1], ref_z = chain.ref[2];
  const double shift_x = chain.shift[0], shift_y = chain.shift[1], shift_z = chain.shift[2];
  const double grid = chain.grid, lowest = chain.floor ? 0.0 : std::nextafter(-1.0, 0.0);
  const bool turned = chain.angle != 0.0;
  for (int i = 0; i < count; ++i) {
    const double z = depth[i];
    const double px = static_cast<float>((column[i] - u0) * z / fx);
    const double py = static_cast<float>(sign * (row[i] - v0) * z / fy);
    double gx = (((px - ref_x) / half + 1.0) / voxel + margin) * scale + rest;
    double gy = (((py - ref_y) / half + 1.0) / voxel + margin) * scale + rest;
    const double gz = (((z - ref_z) / half + 1.0) / voxel + margin) * scale + rest - shift_z;
    const double dx = gx - centre, dy = gy - centre;
    gx = (turned ? centre + dx * cosine - dy * sine : gx) - shift_x;
    gy = (turned ? centre + dx * sine + dy * cosine : gy) - shift_y;
    // The index is put together from whole numbers in double, exact and without a branch; a NaN is outside.
    const bool inside = (gx >= lowest) & (gy >= lowest) & (gz >= lowest) & (gx < grid) & (gy < grid) & (gz < grid);
    const double flat = (std::trunc(gx) * grid + std::trunc(gy)) * grid + std::trunc(gz);
    voxels[i] = inside ? flat : -1.0;
  }
}

template <class T>
void fill_sample(const float* crop, const Frame& frame, const Chain& chain, T one, T* out) {
  const int64_t cells = static_cast<int64_t>(chain.grid) * chain.grid * chain.grid;
  std::fill(out, out + cells, T{0});
  Points points;
  const auto flush = [&] {
    if (chain.author)
      for (int i = 0; i < points.count; ++i)
        points.voxel[i] = static_cast<double>(frame.voxel(chain, points.column[i], points.row[i], points.z[i]));
    else
      place(frame, chain, points.count, points.column, points.row, points.z, points.voxel);
    for (int i = 0; i < points.count; ++i)
      if (points.voxel[i] >= 0.0) out[static_cast<int64_t>(points.voxel[i])] = one;
    points.count = 0;
  };
  const auto add = [&](int64_t column, int64_t row, double z) {
    points.column[points.count] = static_cast<double>(column + frame.pixel_origin);
    points.row[points.count] = static_cast<double>(row + frame.pixel_origin);
    points.z[points.count] = z;
    if (++points.count == kPoints) flush();
  };
  const int64_t crop_width = frame.right - frame.left;
  for (int64_t row = frame.top; row < frame.bottom; ++row, crop += crop_width)
    for (int64_t column = 0; column < crop_width; ++column)
      if (crop[column] != 0.0f) add(frame.left + column, row, crop[column]);

  // Pixels without a measurement lie on one plane; turning does not move z, so its index decides for all of them.
  if (chain.index(chain.z(frame.far)) >= 0) {
    crop -= crop_width * (frame.bottom - frame.top);
    for (int64_t row = 0; row < frame.height; ++row)
      for (int64_t column = 0; column < frame.width; ++column) {
        const bool in_crop = row >= frame.top && row < frame.bottom && column >= frame.left && column < frame.right;
        if (!in_crop || crop[(row - frame.top) * crop_width + column - frame.left] == 0.0f) add(column, row, frame.far);
      }
  }
  flush();
}

void voxelize(std::uintptr_t depth, int64_t /* depth_count */, std::uintptr_t starts, std::uintptr_t frames,
              std::uintptr_t cameras, std::uintptr_t chains, int64_t batch, int pixel_origin, bool floor, bool author,
              int grid, int margin, std::uintptr_t out, int size, uint64_t one, int threads) {
  const int64_t cells = static_cast<int64_t>(grid) * grid * grid;
  large_pages(out, batch * cells * size);
  parallel(batch, batch * cells, threads, [&](int64_t b) {
    const Chain chain(pointer<double>(chains) + b * v2v::kChainColumns, grid, margin, author, floor);
    const Frame frame(pointer<int64_t>(frames) + b * v2v::kFrameColumns,
                      pointer<double>(cameras) + b * v2v::kCameraColumns, pixel_origin);
    const float* crop = pointer<float>(depth) + pointer<int64_t>(starts)[b];
    void* volume = pointer<char>(out) + b * cells * size;
    switch (size) {
      case 1: fill_sample(crop, frame, chain, static_cast<uint8_t>(one), static_cast<uint8_t*>(volume)); break;
      case 2: fill_sample(crop, frame, chain, static_cast<uint16_t>(one), static_cast<uint16_t*>(volume)); break;
      case 4: fill_sample(crop, frame, chain, static_cast<uint32_t>(one), static_cast<uint32_t*>(volume)); break;
      default: fill_sample(crop, frame, chain, one, static_cast<uint64_t*>(volume));
    }
  });
}

void joint_coordinates(std::uintptr_t joints_mm, std::uintptr_t chains, int64_t batch, int64_t joints, bool author,
                       int grid, int margin, std::uintptr_t out, int threads) {
  parallel(batch, batch * joints * 3, threads, [&](int64_t b) {
    const Chain chain(pointer<double>(chains) + b * v2v::kChainColumns, grid, margin, author, false);
    const double* p = pointer<double>(joints_mm) + b * joints * 3;
    double* g = pointer<double>(out) + b * joints * 3;
    for (int64_t j = 0; j < joints; ++j, p += 3, g += 3) {
      chain.xy(p[0], p[1], &g[0], &g[1]);
      g[2] = chain.z(p[2]);
    }
  });
}

// ------------------------------------------------------------------------------------------------ planes
// A volume is worked on in planes of one x: n = Y * Z values in a row, always float here.

// exp(x) for x of at most about 0, 0 below -87; relative error 2e-7. A NaN stays one.
inline float exp_below(float x) {
  const float clamped = x < -87.0f ? -87.0f : x;
  const float shifted = clamped * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: the integer ends up in the low bits
  const float whole = shifted - 12582912.0f;
  const float r = (clamped - whole * 0.693359375f) + whole * 2.12194440e-4f;  // ln 2 in two parts
  float series = 1.0f / 5040.0f;  // Taylor is enough: |r| is at most 0.35
  series = series * r + 1.0f / 720.0f;
  series = series * r + 1.0f / 120.0f;
  series = series * r + 1.0f / 24.0f;
  series = series * r + 1.0f / 6.0f;
  series = series * r + 0.5f;
  series = series * r + 1.0f;
  series = series * r + 1.0f;
  int32_t bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  const int32_t power_bits = (bits << 23) + 0x3f800000;
  float power;
  std::memcpy(&power, &power_bits, sizeof power);
  return x < -87.0f ? 0.0f : series * power;
}

// The largest value; NaN if there is one. Compared as integers in the order of the floats, because a maximum of
// integers is a loop that every compiler makes into vectors.
HANDPOSE_CLONES float plane_max(const float* in, int64_t n) {
  int32_t best = std::numeric_limits<int32_t>::min(), largest = 0;
  for (int64_t i = 0; i < n; ++i) {
    int32_t bits;
    std::memcpy(&bits, in + i, sizeof bits);
    const int32_t size = bits & 0x7fffffff;
    const int32_t key = bits ^ ((bits >> 31) & 0x7fffffff);  // -0 comes just below 0
    best = std::max(best, key);
    largest = std::max(largest, size);
  }
  if (largest > 0x7f800000) return std::numeric_limits<float>::quiet_NaN();
  best ^= (best >> 31) & 0x7fffffff;
  float value;
  std::memcpy(&value, &best, sizeof value);
  return value;
}

// Adds exp(v - top) to `over_x` and returns the sum over the plane.
HANDPOSE_CLONES double plane_exp(const float* in, int64_t n, float top, float* over_x) {
  float sum[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
    for (int l = 0; l < kLanes; ++l) {
      const float e = exp_below(in[i + l] - top);
      over_x[i + l] += e;
      sum[l] += e;
    }
  double total = 0.0;
  for (; i < n; ++i) {
    const float e = exp_below(in[i] - top);
    over_x[i] += e;
    total += e;
  }
  for (int l = 0; l < kLanes; ++l) total += sum[l];
  return total;
}

// p (part_x + part_yz), p = exp(v - lse)
HANDPOSE_CLONES void plane_soft_gradient(const float* in, int64_t n, float lse, float part_x, const float* part_yz,
                                         float* out) {
  for (int64_t i = 0; i < n; ++i) out[i] = exp_below(in[i] - lse) * (part_x + part_yz[i]);
}

HANDPOSE_CLONES void plane_scale(const float* in, int64_t n, float factor, float* out) {
  for (int64_t i = 0; i < n; ++i) out[i] = in[i] * factor;
}

HANDPOSE_CLONES double plane_square_error(const float* in, int64_t n, float factor, const float* target) {
  float sum[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
    for (int l = 0; l < kLanes; ++l) {
      const float d = in[i + l] - factor * target[i + l];
      sum[l] += d * d;
    }
  double total = 0.0;
  for (; i < n; ++i) {
    const float d = in[i] - factor * target[i];
    total += d * d;
  }
  for (int l = 0; l < kLanes; ++l) total += sum[l];
  return total;
}

HANDPOSE_CLONES void plane_error(const float* in, int64_t n, float factor, const float* target, float scale,
                                 float* out) {
  for (int64_t i = 0; i < n; ++i) out[i] = scale * (in[i] - factor * target[i]);
}

// Planes of maps that are float32 (code 0) or bfloat16 (code 1), read and written as float.
class Planes {
 public:
  Planes(std::uintptr_t maps, int code, int64_t n) : maps_(maps), half_(code == 1), n_(n), scratch_(half_ ? n : 0) {}

  const float* read(int64_t plane) {
    if (!half_) return pointer<float>(maps_) + plane * n_;
    widen(pointer<uint16_t>(maps_) + plane * n_, n_, scratch_.data());
    return scratch_.data();
  }
  float* to_write(int64_t plane) { return half_ ? scratch_.data() : pointer<float>(maps_) + plane * n_; }
  void written(int64_t plane) {
    if (half_) narrow(scratch_.data(), n_, pointer<uint16_t>(maps_) + plane * n_);
  }

 private:
  std::uintptr_t maps_;
  bool half_;
  int64_t n_;
  std::vector<float> scratch_;
};

// ------------------------------------------------------------------------------------------------ Gaussian

// The x factors of one joint and the product of its y and z factors.
struct Gaussian {
  std::vector<float> x, yz;

  Gaussian(const double* cell, int64_t X, int64_t Y, int64_t Z, double sigma, double offset) : x(X), yz(Y * Z) {
    std::vector<double> z(Z);
    for (int64_t i = 0; i < X; ++i) x[i] = static_cast<float>(v2v::gaussian_factor(i, cell[0], sigma, offset));
    for (int64_t k = 0; k < Z; ++k) z[k] = v2v::gaussian_factor(k, cell[2], sigma, offset);
    for (int64_t j = 0; j < Y; ++j) {
      const double y = v2v::gaussian_factor(j, cell[1], sigma, offset);
      for (int64_t k = 0; k < Z; ++k) {
        const double product = y * z[k];
        yz[j * Z + k] = static_cast<float>(product < v2v::kSmallFactor ? 0.0 : product);
      }
    }
  }
};

void gaussian_heatmaps(std::uintptr_t cells, int64_t count, int64_t size, double sigma, double offset,
                       std::uintptr_t out, int code, int threads) {
  const int64_t n = size * size;
  large_pages(out, count * size * n * (code == 1 ? 2 : 4));
  parallel(count, count * size * n, threads, [&](int64_t joint) {
    const Gaussian target(pointer<double>(cells) + joint * 3, size, size, size, sigma, offset);
    Planes maps(out, code, n);
    for (int64_t x = 0; x < size; ++x) {
      const int64_t plane = joint * size + x;
      plane_scale(target.yz.data(), n, target.x[x], maps.to_write(plane));
      maps.written(plane);
    }
  });
}

void gaussian_mse(std::uintptr_t pred, int code, std::uintptr_t cells, int64_t count, int64_t X, int64_t Y, int64_t Z,
                  double sigma, double offset, std::uintptr_t sums, int threads) {
  const int64_t n = Y * Z;
  parallel(count, count * X * n, threads, [&](int64_t joint) {
    const Gaussian target(pointer<double>(cells) + joint * 3, X, Y, Z, sigma, offset);
    Planes maps(pred, code, n);
    for (int64_t x = 0; x < X; ++x) {
      const int64_t plane = joint * X + x;
      pointer<double>(sums)[plane] = plane_square_error(maps.read(plane), n, target.x[x], target.yz.data());
    }
  });
}

void gaussian_mse_backward(std::uintptr_t grad, std::uintptr_t pred, int code, std::uintptr_t cells, int64_t count,
                           int64_t X, int64_t Y, int64_t Z, double sigma, double offset, std::uintptr_t out,
                           int threads) {
  const int64_t n = Y * Z;
  const double total = static_cast<double>(count) * static_cast<double>(X * n);
  const auto scale = static_cast<float>(2.0 * static_cast<double>(*pointer<float>(grad)) / total);
  large_pages(out, count * X * n * (code == 1 ? 2 : 4));
  parallel(count, count * X * n, threads, [&](int64_t joint) {
    const Gaussian target(pointer<double>(cells) + joint * 3, X, Y, Z, sigma, offset);
    Planes in(pred, code, n), gradient(out, code, n);
    for (int64_t x = 0; x < X; ++x) {
      const int64_t plane = joint * X + x;
      plane_error(in.read(plane), n, target.x[x], target.yz.data(), scale, gradient.to_write(plane));
      gradient.written(plane);
    }
  });
}

void argmax3d(std::uintptr_t heatmaps, int code, int64_t count, int64_t X, int64_t Y, int64_t Z, std::uintptr_t index,
              std::uintptr_t values, int threads) {
  const int64_t n = Y * Z;
  parallel(count, count * X * n, threads, [&](int64_t joint) {
    Planes maps(heatmaps, code, n);
    int64_t best_x = 0;
    float best = -std::numeric_limits<float>::infinity();
    for (int64_t x = 0; x < X; ++x) {
      const float top = plane_max(maps.read(joint * X + x), n);
      if (top > best || top != top) {
        best = top;
        best_x = x;
      }
      if (top != top) break;  // the first NaN is the maximum
    }
    const float* plane = maps.read(joint * X + best_x);
    int64_t i = 0;
    while (best != best ? plane[i] == plane[i] : plane[i] != best) ++i;
    int64_t* at = pointer<int64_t>(index) + joint * 3;
    at[0] = best_x;
    at[1] = i / Z;
    at[2] = i % Z;
    if (code == 1)
      pointer<uint16_t>(values)[joint] = to_bfloat16(plane[i]);
    else
      pointer<float>(values)[joint] = plane[i];
  });
}

// ------------------------------------------------------------------------------------------------ integral

void soft_argmax(std::uintptr_t logits, int code, int64_t count, int64_t X, int64_t Y, int64_t Z, std::uintptr_t coords,
                 std::uintptr_t lse, int threads) {
  const int64_t n = Y * Z;
  parallel(count, count * X * n, threads, [&](int64_t joint) {
    Planes maps(logits, code, n);
    float top = -std::numeric_limits<float>::infinity();
    for (int64_t x = 0; x < X && top == top; ++x) {
      const float v = plane_max(maps.read(joint * X + x), n);
      if (v > top || v != v) top = v;
    }
    std::vector<float> over_x(n, 0.0f);
    double total = 0.0, sum[3] = {};
    for (int64_t x = 0; x < X; ++x) {
      const double part = plane_exp(maps.read(joint * X + x), n, top, over_x.data());
      total += part;
      sum[0] += part * static_cast<double>(x);
    }
    double checked = 0.0;  // the same total, in the order of the other two axes
    for (int64_t y = 0; y < Y; ++y)
      for (int64_t z = 0; z < Z; ++z) {
        const double part = over_x[y * Z + z];
        checked += part;
        sum[1] += part * static_cast<double>(y);
        sum[2] += part * static_cast<double>(z);
      }
    float* at = pointer<float>(coords) + joint * 3;
    at[0] = static_cast<float>(sum[0] / total);
    at[1] = static_cast<float>(sum[1] / checked);
    at[2] = static_cast<float>(sum[2] / checked);
    pointer<float>(lse)[joint] = static_cast<float>(static_cast<double>(top) + std::log(total));
  });
}

void soft_argmax_backward(std::uintptr_t logits, int code, std::uintptr_t coords, std::uintptr_t lse,
                          std::uintptr_t g_coords, std::uintptr_t g_lse, int64_t count, int64_t X, int64_t Y, int64_t Z,
                          std::uintptr_t out, int threads) {
  const int64_t n = Y * Z;
  large_pages(out, count * X * n * (code == 1 ? 2 : 4));
  parallel(count, count * X * n, threads, [&](int64_t joint) {
    const float* at = pointer<float>(coords) + joint * 3;
    const float* g = pointer<float>(g_coords) + joint * 3;
    std::vector<float> part_yz(n);
    for (int64_t y = 0; y < Y; ++y)
      for (int64_t z = 0; z < Z; ++z)
        part_yz[y * Z + z] = g[1] * (static_cast<float>(y) - at[1]) + g[2] * (static_cast<float>(z) - at[2]) +
                             pointer<float>(g_lse)[joint];
    Planes in(logits, code, n), gradient(out, code, n);
    for (int64_t x = 0; x < X; ++x) {
      const int64_t plane = joint * X + x;
      const float part_x = g[0] * (static_cast<float>(x) - at[0]);
      plane_soft_gradient(in.read(plane), n, pointer<float>(lse)[joint], part_x, part_yz.data(),
                          gradient.to_write(plane));
      gradient.written(plane);
    }
  });
}

}  // namespace

PYBIND11_MODULE(v2v_cpu, module) {
  module.attr("abi") = v2v::kAbi;
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
