// What the native kernels of all methods share, in C++ and in CUDA: addresses, and values that are float32 or bfloat16.
#pragma once

#include <cstdint>
#include <cstring>

#ifdef __CUDACC__
#define HANDPOSE_BOTH __host__ __device__ inline
#else
#define HANDPOSE_BOTH inline
#endif

namespace handpose {

template <class T>
T* pointer(std::uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

// Calls f with `code` made a type: 0 is float32, 1 bfloat16 (FLOAT_CODE in kernels_ops.py).
template <class F>
void with_type(int code, const F& f) {
  if (code == 1)
    f(uint16_t{});
  else
    f(float{});
}

HANDPOSE_BOTH float from_bfloat16(uint16_t bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value;
  memcpy(&value, &wide, sizeof value);
  return value;
}

// To nearest, ties to even; a NaN stays one.
HANDPOSE_BOTH uint16_t to_bfloat16(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x40u);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

HANDPOSE_BOTH float load(const float* values, int64_t i) { return values[i]; }
HANDPOSE_BOTH float load(const uint16_t* values, int64_t i) { return from_bfloat16(values[i]); }
HANDPOSE_BOTH void store(float* values, int64_t i, float value) { values[i] = value; }
HANDPOSE_BOTH void store(uint16_t* values, int64_t i, float value) { values[i] = to_bfloat16(value); }

}  // namespace handpose
