// What the C++ kernels of all methods share: clones of inner loops, threads, large pages, rows of bfloat16.
#pragma once

#include <algorithm>
#include <atomic>
#include <system_error>
#include <thread>
#include <vector>

#ifdef __linux__
#include <sys/mman.h>
#endif

#include "shared/kernels_common.h"

// Inner loops are compiled for three generations of x86 and chosen when the module is loaded (GCC 12 and glibc know
// these names). What a template holds is inlined into such a function, because only plain functions can be cloned.
#if defined(__x86_64__) && defined(__GLIBC__) && !defined(__clang__) && __GNUC__ >= 12
#define HANDPOSE_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#define HANDPOSE_INLINE inline __attribute__((always_inline))
#else
#define HANDPOSE_CLONES
#define HANDPOSE_INLINE inline
#endif

namespace handpose {

constexpr int64_t kWorkPerThread = 200000;  // elements; starting a thread costs about as much as 100,000 of them

// Calls work(0 .. count-1) from up to `threads` threads. `size` elements in all decide whether that pays.
template <class Work>
void parallel(int64_t count, int64_t size, int threads, const Work& work) {
  const int64_t useful = std::min<int64_t>({count, threads, 1 + size / kWorkPerThread});
  std::atomic<int64_t> next{0};
  const auto loop = [&] {
    for (int64_t i = next++; i < count; i = next++) work(i);
  };
  std::vector<std::thread> others;
  for (int64_t t = 1; t < useful; ++t) {
    try {
      others.emplace_back(loop);
    } catch (const std::system_error&) {
      break;  // no more threads to be had: this one does the rest
    }
  }
  loop();
  for (auto& other : others) other.join();
}

// Asks Linux for pages of 2 MB for a large result that nobody has touched yet. Where a page fault is expensive (virtual
// machines), a batch of heat maps otherwise takes longer to come into being than to be computed.
inline void large_pages(std::uintptr_t address, int64_t bytes) {
#ifdef __linux__
  constexpr std::uintptr_t kPage = 4096;
  const std::uintptr_t begin = (address + kPage - 1) / kPage * kPage, end = (address + bytes) / kPage * kPage;
  if (bytes >= (int64_t{4} << 20)) madvise(pointer<void>(begin), end - begin, MADV_HUGEPAGE);  // a refusal is harmless
#endif
  static_cast<void>(address);
  static_cast<void>(bytes);
}

// Rows of a map as float32, and back. Static, because what chooses among clones would be visible outside the module.
HANDPOSE_CLONES static inline void widen(const uint16_t* in, int64_t n, float* out) {
  for (int64_t i = 0; i < n; ++i) out[i] = from_bfloat16(in[i]);
}
inline void widen(const float* in, int64_t n, float* out) { std::copy_n(in, n, out); }

HANDPOSE_CLONES static inline void narrow(const float* in, int64_t n, uint16_t* out) {
  for (int64_t i = 0; i < n; ++i) out[i] = to_bfloat16(in[i]);
}
inline void narrow(const float* in, int64_t n, float* out) { std::copy_n(in, n, out); }

}  // namespace handpose
