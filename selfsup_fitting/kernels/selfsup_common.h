// What the C++ and the CUDA kernels of training by fitting share: scan conversion of a face, a sphere's surface and the
// distance to it, for one sample.
//
// The arithmetic is that of reference.py in single precision and in the same order, and must not be contracted into
// fused multiply-adds (-ffp-contract=off, -fmad=false): only then do all implementations cover the same samples.
#pragma once

#include <cmath>

#include "shared/kernels_common.h"

namespace selfsup {

constexpr int kAbi = 1;  // counted up with every change of a signature; ops.py holds the same number

// As in reference.py, where they are explained.
constexpr float kMaxPixel = 1e6f, kBackground = 100.0f, kMinQ = 0.01f, kFarData = 99.0f, kMaxDistance = 50.0f;

HANDPOSE_BOTH bool finite(float x) { return ::fabsf(x) <= 3.402823466e38f; }

// ------------------------------------------------------------------------------------------------ mesh

HANDPOSE_BOTH bool sound(const float* corner) {
  return ::fabsf(corner[0]) <= kMaxPixel && ::fabsf(corner[1]) <= kMaxPixel && finite(corner[2]);
}

HANDPOSE_BOTH float weight(float w) { return w > 0.0f ? (w < 1.0f ? w : 1.0f) : 0.0f; }  // in [0, 1]; 0 for a NaN

// First integer at or after `start`, at most `size`.
HANDPOSE_BOTH int first_inside(float start, int size) {
  const float up = ::ceilf(start);
  return up > 0.0f ? (up < static_cast<float>(size) ? static_cast<int>(up) : size) : 0;
}

// Last integer up to `stop`, less than `size`; a stop in (-1, 0) gives 0, as in the original.
HANDPOSE_BOTH int last_inside(float stop, int size) {
  const float top = static_cast<float>(size - 1);
  return stop > -1.0f ? static_cast<int>(stop < top ? stop : top) : -1;
}

// Calls visit(row, column, depth) for the samples of one face, whose corners are sound. Rows and columns count samples;
// an axis says which pixel a sample is, and how many samples lie before a pixel.
template <bool harmonic, class Axis, class Visit>
HANDPOSE_BOTH void scan_face(const float* a, const float* b, const float* c, bool cull, const Axis& columns,
                             const Axis& rows, const Visit& visit) {
  const float u0 = a[0], v0 = a[1], u1 = b[0], v1 = b[1], u2 = c[0], v2 = c[1];
  if (cull && (v2 - v0) * (u1 - u0) < (v1 - v0) * (u2 - u0)) return;
  const float denominator = (v1 - v2) * (u0 - u2) + (u2 - u1) * (v0 - v2);
  if (denominator == 0.0f) return;
  const float inverse = 1.0f / denominator;

  // The corners from left to right; which of two equal ones comes first is the original's choice.
  float ul, vl, um, vm, ur, vr;
  if (u0 < u1) {
    const bool left2 = u2 < u0, right2 = u1 < u2;
    ul = left2 ? u2 : u0, vl = left2 ? v2 : v0;
    ur = right2 ? u2 : u1, vr = right2 ? v2 : v1;
    um = left2 ? u0 : right2 ? u1 : u2, vm = left2 ? v0 : right2 ? v1 : v2;
  } else {
    const bool left2 = u2 < u1, right2 = u0 < u2;
    ul = left2 ? u2 : u1, vl = left2 ? v2 : v1;
    ur = right2 ? u2 : u0, vr = right2 ? v2 : v0;
    um = left2 ? u1 : right2 ? u0 : u2, vm = left2 ? v1 : right2 ? v0 : v2;
  }
  const int begin = columns.before(first_inside(ul, columns.size));
  const int end = columns.before(last_inside(ur, columns.size) + 1);
  for (int column = begin; column < end; ++column) {
    const float x = static_cast<float>(columns.position(column));
    float y1;
    if (x <= um)
      y1 = um == ul ? vm : vl + (vm - vl) * ((x - ul) / (um - ul));
    else
      y1 = ur == um ? vm : vm + (vr - vm) * ((x - um) / (ur - um));
    const float y2 = vl + (vr - vl) * ((x - ul) / (ur - ul));
    if (y1 != y1 || y2 != y2) continue;
    const int from = rows.before(first_inside(y1 < y2 ? y1 : y2, rows.size));
    const int to = rows.before(last_inside(y1 < y2 ? y2 : y1, rows.size) + 1);
    const float dx = x - u2, part0 = (v1 - v2) * dx, part1 = (v2 - v0) * dx;
    for (int row = from; row < to; ++row) {
      const float dy = static_cast<float>(rows.position(row)) - v2;
      const float w0 = (part0 + (u2 - u1) * dy) * inverse, w1 = (part1 + (u0 - u2) * dy) * inverse;
      const float k0 = weight(w0), k1 = weight(w1), k2 = weight(1.0f - w0 - w1);
      float z;
      if (harmonic)
        z = static_cast<float>(static_cast<double>(k0 + k1 + k2) / static_cast<double>(k0 / a[2] + k1 / b[2] + k2 / c[2]));
      else
        z = (k0 * a[2] + k1 * b[2] + k2 * c[2]) / (k0 + k1 + k2);
      visit(row, column, z);
    }
  }
}

// ------------------------------------------------------------------------------------------------ spheres

// Where the samples of an orthographic crop lie, mm.
struct Grid {
  float half, step;

  HANDPOSE_BOTH Grid(int size, double cube_mm)
      : half(static_cast<float>(size / 2.0)), step(static_cast<float>(cube_mm / size)) {}

  HANDPOSE_BOTH float at(int i) const { return (static_cast<float>(i) - half) * step; }
};

// Derivative of a rendered surface for the sphere's centre; dx = pixel - centre.
HANDPOSE_BOTH void surface_slope(float dx, float dy, float r, float* out) {
  const float q = r * r - dx * dx - dy * dy, root = ::sqrtf(q < kMinQ ? kMinQ : q);
  out[0] = -dx / root;
  out[1] = -dy / root;
  out[2] = 1.0f;
}

// Distance of a point at (dx, dy, dz) from a sphere's centre to its surface.
HANDPOSE_BOTH float surface_distance(float dx, float dy, float dz, float r) {
  return ::fabsf(::sqrtf(dx * dx + dy * dy + dz * dz) - r);
}

// The derivative of that for the centre.
HANDPOSE_BOTH void distance_slope(float dx, float dy, float dz, float r, float* out) {
  const float length = ::sqrtf(dx * dx + dy * dy + dz * dz), divisor = length < 1e-12f ? 1e-12f : length;
  const float sign = length > r ? 1.0f : length < r ? -1.0f : 0.0f;
  out[0] = -(dx / divisor) * sign;
  out[1] = -(dy / divisor) * sign;
  out[2] = -(dz / divisor) * sign;
}

}  // namespace selfsup
