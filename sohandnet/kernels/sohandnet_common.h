// What the C++ and the CUDA kernels of SO-HandNet share: distances, the order of values, and bfloat16.
//
// Words as in ops.py: a node is a unit of the map, a pair a point together with one of its nodes. Squared distances are
// direct differences in float32, summed over x, y, z in this order, and must not be contracted into fused multiply-adds
// (-ffp-contract=off, -fmad=false): only then do all implementations choose the same neighbours.
#pragma once

#include <cmath>

#include "shared/kernels_common.h"

namespace soh {

constexpr int kAbi = 1;                 // counted up with every change of a signature; ops.py holds the same number
constexpr double kCountEps = 1e-5;      // added to the number of points of a node before dividing
constexpr float kChamferEps = 1e-8f;    // added to squared distances before the square root
constexpr float kSeedFloor = -1000.0f;  // where the original's maximum starts

HANDPOSE_BOTH float square_distance(float ax, float ay, float az, float bx, float by, float bz) {
  const float dx = ax - bx, dy = ay - by, dz = az - bz;
  return dx * dx + dy * dy + dz * dz;
}

// Whether a value takes the place of an earlier one: larger, or the first NaN.
HANDPOSE_BOTH bool replaces(float value, float best) { return (value > best) | ((value != value) & (best == best)); }

// What the sum of the points of a node makes of its mean; 0 for a node without points.
HANDPOSE_BOTH float node_mean(double sum, int32_t count) { return static_cast<float>(sum / (count + kCountEps)); }

}  // namespace soh
