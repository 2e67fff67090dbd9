// What the C++ and the CUDA kernels of V2V-PoseNet share: the chain from millimetres to voxels, and bfloat16.
//
// Words as in ops.py: a fine voxel is the unit of the occupancy grid, a cell two of them, the unit of the heat maps;
// volumes are indexed [x, y, z], z fastest. The chain is in double precision and must not be contracted into fused
// multiply-adds (-ffp-contract=off, -fmad=false): only then does it fill the same voxels as the reference.
#pragma once

#include <cmath>

#include "shared/kernels_common.h"

namespace v2v {

constexpr int kAbi = 1;            // counted up with every change of a signature; ops.py holds the same number
constexpr int kFrameColumns = 6;   // int64: left, top, right, bottom, width, height
constexpr int kCameraColumns = 6;  // double: fx, fy, u0, v0, max_depth, y_up
constexpr int kChainColumns = 9;   // double: ref x y z, cube, scale, angle, shift x y z

// World mm to fine voxels, for one sample.
struct Chain {
  double ref[3], shift[3], half_cube, voxel, scale, angle, cosine, sine, centre, margin, full, whole, offset;
  int grid;
  bool author, floor;

  HANDPOSE_BOTH Chain() {}
  HANDPOSE_BOTH Chain(const double* row, int grid_, int margin_, bool author_, bool floor_)
      : half_cube(row[3] * 0.5), voxel(2.0 / grid_), scale(row[4]), angle(row[5]), cosine(::cos(row[5])),
        sine(::sin(row[5])), margin(margin_), full(grid_ + 2 * margin_), grid(grid_), author(author_), floor(floor_) {
    for (int axis = 0; axis < 3; ++axis) {
      ref[axis] = row[axis];
      shift[axis] = row[6 + axis];
    }
    const double half = 0.5 * full;
    centre = author ? 0.5 * (full - 1.0) : half;
    whole = ::floor(full * scale);
    offset = scale < 1.0 ? ::floor(half - half * scale) : -::floor(half * scale - half);
  }

  // One axis up to the turn.
  HANDPOSE_BOTH double placed(int axis, double p) const {
    const double g = ((p - ref[axis]) / half_cube + 1.0) / voxel;
    if (!author) return (g + margin) * scale + centre * (1.0 - scale);
    const double f = ::floor(g) + margin;
    return scale == 1.0 ? f : f / full * whole + offset;
  }

  HANDPOSE_BOTH double z(double p) const { return placed(2, p) - shift[2]; }

  HANDPOSE_BOTH void xy(double px, double py, double* gx, double* gy) const {
    double x = placed(0, px), y = placed(1, py);
    if (angle != 0.0) {
      const double dx = x - centre, dy = (author ? (full - 1.0) - y : y) - centre;
      x = centre + dx * cosine - dy * sine;
      y = centre + dx * sine + dy * cosine;
      if (author) y = (full - 1.0) - y;
    }
    *gx = x - shift[0];
    *gy = y - shift[1];
  }

  // The voxel of a coordinate, -1 outside the grid (and for a NaN).
  HANDPOSE_BOTH int index(double g) const {
    if (author) g = ::floor(g + 0.5);
    const bool inside = (author || floor ? g >= 0.0 : g > -1.0) && g < grid;
    return inside ? static_cast<int>(g) : -1;
  }
};

// One depth image: which pixels become points, and where they go.
struct Frame {
  int64_t left, top, right, bottom, width, height;
  double fx, fy, u0, v0, far;
  bool y_up;
  int pixel_origin;

  HANDPOSE_BOTH Frame() {}
  HANDPOSE_BOTH Frame(const int64_t* box, const double* camera, int pixel_origin_)
      : left(box[0]), top(box[1]), right(box[2]), bottom(box[3]), width(box[4]), height(box[5]), fx(camera[0]),
        fy(camera[1]), u0(camera[2]), v0(camera[3]),
        far(static_cast<double>(static_cast<float>(camera[4]))),  // depth images hold float32
        y_up(camera[5] != 0.0), pixel_origin(pixel_origin_) {}

  // Flat voxel of a pixel of the whole image at depth z, or -1. The pixel is counted from pixel_origin.
  HANDPOSE_BOTH int64_t voxel(const Chain& chain, double column, double row, double z) const {
    const int iz = chain.index(chain.z(z));
    if (iz < 0) return -1;
    const double rise = row - v0;
    // The original keeps its points in float32.
    const float x = static_cast<float>((column - u0) * z / fx);
    const float y = static_cast<float>((y_up ? -rise : rise) * z / fy);
    double gx, gy;
    chain.xy(x, y, &gx, &gy);
    const int ix = chain.index(gx), iy = chain.index(gy);
    if (ix < 0 || iy < 0) return -1;
    return (static_cast<int64_t>(ix) * chain.grid + iy) * chain.grid + iz;
  }
};

// Values below this are set to 0 in the Gaussian factors, so that no product is a (slow) denormal number.
constexpr double kSmallFactor = 1e-19;

HANDPOSE_BOTH double gaussian_factor(int64_t index, double position, double sigma, double offset) {
  const double distance = static_cast<double>(index) + offset - position;
  const double value = ::exp(-(distance * distance) / (2.0 * sigma * sigma));
  return value < kSmallFactor ? 0.0 : value;
}

}  // namespace v2v
