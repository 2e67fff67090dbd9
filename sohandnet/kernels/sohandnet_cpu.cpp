// SO-HandNet on the CPU. ops.py checks the arguments and explains them; here pointers are valid and contiguous. Work is
// shared among threads by sample or by block of columns, and every sum has a fixed order, none across the lanes of a
// vector: neither the number of threads nor the clone of a loop changes anything.
#include <pybind11/pybind11.h>

#include <algorithm>
#include <limits>
#include <vector>

#include "shared/kernels_cpu.h"
#include "sohandnet_common.h"

namespace py = pybind11;

namespace {

using namespace handpose;  // shared/kernels_*

constexpr int kLanes = 16;  // channels that are turned into rows together
constexpr float kFar = std::numeric_limits<float>::infinity();

// ------------------------------------------------------------------------------------------------ association

constexpr int kBlock = 256;  // points that are compared with all nodes in turn; what they need stays in the first cache

// Compares `count` points with the nodes from `first` on, `Nodes` of them at once, and keeps the K nearest of each, by
// (distance, node): best and who are [K][kBlock]. One long loop over points, which compilers make into vectors.
template <int K, int Nodes>
HANDPOSE_INLINE void compare(const float* x, const float* y, const float* z, int count, const float* nodes, int64_t m,
                             int64_t first, float* best, int32_t* who) {
  float nx[Nodes], ny[Nodes], nz[Nodes];
  for (int a = 0; a < Nodes; ++a) {
    nx[a] = nodes[first + a];
    ny[a] = nodes[m + first + a];
    nz[a] = nodes[2 * m + first + a];
  }
  const int32_t number = static_cast<int32_t>(first);
  for (int i = 0; i < count; ++i) {
    float low[K];
    int32_t own[K];
    for (int j = 0; j < K; ++j) {
      low[j] = best[j * kBlock + i];
      own[j] = who[j * kBlock + i];
    }
    for (int a = 0; a < Nodes; ++a) {
      const float d = soh::square_distance(x[i], y[i], z[i], nx[a], ny[a], nz[a]);
      // Sorted already, so a node that goes before place j - 1 goes before place j too: what was there moves up.
      for (int j = K - 1; j > 0; --j) {
        const bool here = d < low[j], moves = d < low[j - 1];
        const float come = here ? d : low[j];
        const int32_t comer = here ? number + a : own[j];
        low[j] = moves ? low[j - 1] : come;
        own[j] = moves ? own[j - 1] : comer;
      }
      const bool here = d < low[0];
      low[0] = here ? d : low[0];
      own[0] = here ? number + a : own[0];
    }
    for (int j = 0; j < K; ++j) {
      best[j * kBlock + i] = low[j];
      who[j * kBlock + i] = own[j];
    }
  }
}

template <int K>
HANDPOSE_INLINE void compare_all(const float* x, const float* y, const float* z, int count, const float* nodes,
                                 int64_t m, float* best, int32_t* who) {
  constexpr int kAtOnce = K == 1 ? 4 : 1;
  int64_t node = 0;
  for (; node + kAtOnce <= m; node += kAtOnce) compare<K, kAtOnce>(x, y, z, count, nodes, m, node, best, who);
  for (; node < m; ++node) compare<K, 1>(x, y, z, count, nodes, m, node, best, who);
}

HANDPOSE_CLONES void compare_1(const float* x, const float* y, const float* z, int count, const float* nodes, int64_t m,
                               float* best, int32_t* who) {
  compare_all<1>(x, y, z, count, nodes, m, best, who);
}
HANDPOSE_CLONES void compare_3(const float* x, const float* y, const float* z, int count, const float* nodes, int64_t m,
                               float* best, int32_t* who) {
  compare_all<3>(x, y, z, count, nodes, m, best, who);
}

// Any k: one node after the other is inserted.
void compare_any(const float* x, const float* y, const float* z, int count, const float* nodes, int64_t m, int64_t k,
                 float* best, int32_t* who) {
  for (int64_t node = 0; node < m; ++node)
    for (int i = 0; i < count; ++i) {
      const float d = soh::square_distance(x[i], y[i], z[i], nodes[node], nodes[m + node], nodes[2 * m + node]);
      if (!(d < best[(k - 1) * kBlock + i])) continue;
      int64_t j = k - 1;
      for (; j > 0 && d < best[(j - 1) * kBlock + i]; --j) {
        best[j * kBlock + i] = best[(j - 1) * kBlock + i];
        who[j * kBlock + i] = who[(j - 1) * kBlock + i];
      }
      best[j * kBlock + i] = d;
      who[j * kBlock + i] = static_cast<int32_t>(node);
    }
}

// The k nearest of m nodes (3, m) for every point of a cloud (3, n). Calls use(first point, count, best, who) for each
// block; both are [k][kBlock].
template <class Use>
void nearest_nodes(const float* cloud, int64_t n, const float* nodes, int64_t m, int64_t k, const Use& use) {
  std::vector<float> best(k * kBlock);
  std::vector<int32_t> who(k * kBlock);
  for (int64_t from = 0; from < n; from += kBlock) {
    const int count = static_cast<int>(std::min<int64_t>(kBlock, n - from));
    std::fill(best.begin(), best.end(), kFar);
    for (int64_t j = 0; j < k; ++j) std::fill_n(who.begin() + j * kBlock, kBlock, static_cast<int32_t>(j));  // for NaN
    const float *x = cloud + from, *y = x + n, *z = y + n;
    if (k == 1)
      compare_1(x, y, z, count, nodes, m, best.data(), who.data());
    else if (k == 3)
      compare_3(x, y, z, count, nodes, m, best.data(), who.data());
    else
      compare_any(x, y, z, count, nodes, m, k, best.data(), who.data());
    use(from, count, best.data(), who.data());
  }
}

// The means of the points of each node, from sums that start at 0.
struct Means {
  std::vector<double> sums;
  std::vector<int32_t> counts;

  explicit Means(int64_t m) : sums(3 * m), counts(m) {}
  void clear() {
    std::fill(sums.begin(), sums.end(), 0.0);
    std::fill(counts.begin(), counts.end(), 0);
  }
  void add(int32_t node, const float* cloud, int64_t n, int64_t i) {
    const int64_t m = static_cast<int64_t>(counts.size());
    ++counts[node];
    for (int axis = 0; axis < 3; ++axis) sums[axis * m + node] += cloud[axis * n + i];
  }
  void store(float* out) const {
    const int64_t m = static_cast<int64_t>(counts.size());
    for (int64_t i = 0; i < 3 * m; ++i) out[i] = soh::node_mean(sums[i], counts[i % m]);
  }
};

void associate(std::uintptr_t points, std::uintptr_t nodes, int64_t batch, int64_t n, int64_t m, int64_t k,
               std::uintptr_t index, std::uintptr_t count, std::uintptr_t mean, int threads) {
  parallel(batch, batch * n * (m + k) / 4, threads, [&](int64_t b) {
    const float* cloud = pointer<float>(points) + b * 3 * n;
    int32_t* out = pointer<int32_t>(index) + b * n * k;
    Means means(m);
    nearest_nodes(cloud, n, pointer<float>(nodes) + b * 3 * m, m, k,
                  [&](int64_t from, int number, const float*, const int32_t* who) {
                    for (int64_t i = 0; i < number; ++i)
                      for (int64_t j = 0; j < k; ++j) {
                        const int32_t node = who[j * kBlock + i];
                        out[(from + i) * k + j] = node;
                        means.add(node, cloud, n, from + i);
                      }
                  });
    std::copy(means.counts.begin(), means.counts.end(), pointer<int32_t>(count) + b * m);
    means.store(pointer<float>(mean) + b * 3 * m);
  });
}

// ------------------------------------------------------------------------------------------------ masked max

// Scratch memory that begins with a cache line: a vector across two lines would wait for its own last store.
template <class T>
class Lines {
 public:
  explicit Lines(int64_t count) : values_(count + 64 / sizeof(T)) {}
  T* data() {
    const auto address = reinterpret_cast<std::uintptr_t>(values_.data());
    return reinterpret_cast<T*>((address + 63) / 64 * 64);
  }

 private:
  std::vector<T> values_;
};

// How far before its use a row is asked for: the processor does not see ahead what it reads among the maxima.
constexpr int64_t kAheadBytes = 12288;

template <class T>
HANDPOSE_INLINE void fetch(const T* row, int64_t width) {
#if defined(__GNUC__)
  constexpr int64_t kLine = 64 / sizeof(T);
  for (int64_t c = 0; c < width; c += kLine) __builtin_prefetch(row + c, 0, 2);  // into the second cache
#else
  static_cast<void>(row);
  static_cast<void>(width);
#endif
}

template <class T>
HANDPOSE_INLINE void first_row(const T* row, int32_t number, int64_t width, float* best, int32_t* arg) {
  for (int64_t c = 0; c < width; ++c) {
    best[c] = load(row, c);
    arg[c] = number;
  }
}

template <class T>
HANDPOSE_INLINE void next_row(const T* row, int32_t number, int64_t width, bool seed, float* best, int32_t* arg) {
  for (int64_t c = 0; c < width; ++c) {
    const float value = load(row, c);
    const bool up = seed ? value > best[c] : soh::replaces(value, best[c]);
    best[c] = up ? value : best[c];
    arg[c] = up ? number : arg[c];
  }
}

// Pairs first .. first + count - 1, whose rows lie `stride` apart, go to the maxima of their nodes: best and arg are
// (M, width), and arg is -1 where no value was taken yet. In the order of memory, because reading the rows node by node
// waits for memory twice as long; the maxima stay in the second cache. With `seed` (the original's rule) best begins
// with the floor; otherwise the first row of a node is taken as it is.
template <class T>
HANDPOSE_INLINE void scan_rows(const T* rows, int64_t stride, const int32_t* index, int64_t first, int64_t count,
                               int64_t M, int64_t width, bool seed, float* bests, int32_t* args) {
  constexpr int64_t kAhead = kAheadBytes / sizeof(T);
  const int64_t ahead = std::max<int64_t>(1, kAhead / stride);
  for (int64_t i = 0; i < count; ++i) {
    const int32_t node = index[first + i], number = static_cast<int32_t>(first + i);
    const T* row = rows + i * stride;
    if (i + ahead < count) fetch(row + ahead * stride, width);
    if (node < 0 || node >= M) continue;
    float* best = bests + node * width;
    int32_t* arg = args + node * width;
    if (!seed && arg[0] < 0)
      first_row(row, number, width, best, arg);
    else
      next_row(row, number, width, seed, best, arg);
  }
}

HANDPOSE_CLONES void max_scan(const float* rows, int64_t stride, const int32_t* index, int64_t first, int64_t count,
                              int64_t M, int64_t width, float* best, int32_t* arg) {
  scan_rows(rows, stride, index, first, count, M, width, false, best, arg);
}
HANDPOSE_CLONES void max_scan(const uint16_t* rows, int64_t stride, const int32_t* index, int64_t first, int64_t count,
                              int64_t M, int64_t width, float* best, int32_t* arg) {
  scan_rows(rows, stride, index, first, count, M, width, false, best, arg);
}
HANDPOSE_CLONES void seed_scan(const float* rows, int64_t stride, const int32_t* index, int64_t first, int64_t count,
                               int64_t M, int64_t width, float* best, int32_t* arg) {
  scan_rows(rows, stride, index, first, count, M, width, true, best, arg);
}
HANDPOSE_CLONES void seed_scan(const uint16_t* rows, int64_t stride, const int32_t* index, int64_t first, int64_t count,
                               int64_t M, int64_t width, float* best, int32_t* arg) {
  scan_rows(rows, stride, index, first, count, M, width, true, best, arg);
}

// Pairs first .. first + count - 1 of `channels` channels of a contiguous sample, turned into rows of kLanes values.
template <class T>
HANDPOSE_INLINE void turn_channels(const T* data, int64_t length, int64_t channels, int64_t first, int64_t count,
                                   T* rows) {
  for (int64_t c = 0; c < channels; ++c)
    for (int64_t l = 0; l < count; ++l) rows[l * kLanes + c] = data[c * length + first + l];
}
HANDPOSE_CLONES void turn(const float* data, int64_t length, int64_t channels, int64_t first, int64_t count,
                          float* rows) {
  turn_channels(data, length, channels, first, count, rows);
}
HANDPOSE_CLONES void turn(const uint16_t* data, int64_t length, int64_t channels, int64_t first, int64_t count,
                          uint16_t* rows) {
  turn_channels(data, length, channels, first, count, rows);
}

template <class T>
void index_max_of(const T* data, const int32_t* index, int64_t batch, int64_t C, int64_t L, int64_t M, bool last,
                  bool seed, T* value, int32_t* argmax, int threads) {
  constexpr int64_t kMaxima = 32768;  // of a task, 8 bytes each: well within the second cache
  constexpr int64_t kTurned = 64;     // pairs that are turned at a time
  const int64_t most = std::max<int64_t>(1, kMaxima / std::max<int64_t>(1, M) / kLanes) * kLanes;
  // Whole rows are read fastest; they are cut where there are too many maxima, or fewer samples than threads.
  const int64_t shares = std::max<int64_t>(1, threads / std::max<int64_t>(1, batch));
  const int64_t share = (C + shares * kLanes - 1) / (shares * kLanes) * kLanes;
  const int64_t block = last ? std::max<int64_t>(kLanes, std::min(most, share)) : kLanes;
  const int64_t blocks = (C + block - 1) / block;
  parallel(batch * blocks, batch * C * L, threads, [&](int64_t task) {
    const int64_t b = task / blocks, from = task % blocks * block, width = std::min(block, C - from);
    const T* sample = data + b * C * L;
    const int32_t* owner = index + b * L;
    Lines<float> best(M * width);
    Lines<int32_t> arg(M * width);
    std::fill_n(best.data(), M * width, soh::kSeedFloor);
    std::fill_n(arg.data(), M * width, -1);
    const auto scan = [&](const T* rows, int64_t stride, int64_t first, int64_t count) {
      if (seed)
        seed_scan(rows, stride, owner, first, count, M, width, best.data(), arg.data());
      else
        max_scan(rows, stride, owner, first, count, M, width, best.data(), arg.data());
    };
    if (last) {
      scan(sample + from, C, 0, L);
    } else {
      Lines<T> rows(kTurned * kLanes);
      for (int64_t l = 0; l < L; l += kTurned) {
        const int64_t count = std::min(kTurned, L - l);
        turn(sample + from * L, L, width, l, count, rows.data());
        scan(rows.data(), kLanes, l, count);
      }
    }
    std::vector<char> filled(M, 0);
    for (int64_t l = 0; l < L; ++l)
      if (owner[l] >= 0 && owner[l] < M) filled[owner[l]] = 1;
    for (int64_t m = 0; m < M; ++m)
      for (int64_t c = 0; c < width; ++c) {
        const int64_t at = last ? (b * M + m) * C + from + c : (b * C + from + c) * M + m;
        const int32_t place = arg.data()[m * width + c];
        const T* zero = last ? sample + from + c : sample + (from + c) * L;  // pair 0, where nothing is above the floor
        store(value, at, place >= 0 ? best.data()[m * width + c] : filled[m] ? load(zero, 0) : 0.0f);
        argmax[at] = std::max(place, 0);
      }
  });
}

void index_max(std::uintptr_t data, int code, std::uintptr_t index, int64_t batch, int64_t C, int64_t L, int64_t M,
               bool last, bool seed, std::uintptr_t value, std::uintptr_t argmax, int threads) {
  with_type(code, [&](auto type) {
    using T = decltype(type);
    index_max_of(pointer<const T>(data), pointer<const int32_t>(index), batch, C, L, M, last, seed, pointer<T>(value),
                 pointer<int32_t>(argmax), threads);
  });
}

template <class T>
void index_max_backward_of(const T* grad, const int32_t* argmax, const int32_t* index, int64_t batch, int64_t C,
                           int64_t L, int64_t M, bool last, T* out, int threads) {
  parallel(batch, batch * C * L, threads, [&](int64_t b) {
    const int32_t* owner = index + b * L;
    T* sample = out + b * C * L;
    std::fill(sample, sample + C * L, T{0});
    if (L == 0) return;
    for (int64_t i = 0; i < C * M; ++i) {
      const int64_t c = last ? i % C : i / M, m = last ? i / C : i % M, at = b * C * M + i;
      const int64_t l = argmax[at];
      if (l >= 0 && l < L && owner[l] == m) sample[last ? l * C + c : c * L + l] = grad[at];
    }
  });
}

void index_max_backward(std::uintptr_t grad, int code, std::uintptr_t argmax, std::uintptr_t index, int64_t batch,
                        int64_t C, int64_t L, int64_t M, bool last, std::uintptr_t out, int threads) {
  large_pages(out, batch * C * L * (code == 1 ? 2 : 4));
  with_type(code, [&](auto type) {
    using T = decltype(type);
    index_max_backward_of(pointer<const T>(grad), pointer<const int32_t>(argmax), pointer<const int32_t>(index), batch,
                          C, L, M, last, pointer<T>(out), threads);
  });
}

// ------------------------------------------------------------------------------------------------ linear and max

// out += factor * row
HANDPOSE_CLONES void add_scaled(const float* row, float factor, int64_t n, float* out) {
  for (int64_t i = 0; i < n; ++i) out[i] += factor * row[i];
}

// The chosen pairs of one sample: for each of them the channels that chose it, ascending, and their gradients.
struct Chosen {
  std::vector<int32_t> start, channel;
  std::vector<float> grad;

  template <class T>
  Chosen(const T* grads, const int32_t* argmax, const int32_t* owner, int64_t C, int64_t L, int64_t M)
      : start(L + 1, 0), channel(C * M), grad(C * M) {
    const auto own = [&](int64_t m, int64_t i) { return argmax[i] >= 0 && argmax[i] < L && owner[argmax[i]] == m; };
    for (int64_t m = 0; m < M; ++m)
      for (int64_t c = 0; c < C; ++c)
        if (own(m, m * C + c)) ++start[argmax[m * C + c] + 1];
    for (int64_t l = 0; l < L; ++l) start[l + 1] += start[l];
    std::vector<int32_t> next(start.begin(), start.end() - 1);
    for (int64_t m = 0; m < M; ++m)
      for (int64_t c = 0; c < C; ++c)
        if (own(m, m * C + c)) {
          const int32_t place = next[argmax[m * C + c]]++;
          channel[place] = static_cast<int32_t>(c);
          grad[place] = load(grads, m * C + c);
        }
  }
};

// Everything lies channels last: grads and argmax (B, M, C), x and grad_x (B, L, D), weight (C, D).
template <class T>
void linear_max_backward_of(const T* grads, const int32_t* argmax, const T* x, const T* weight, const int32_t* index,
                            int64_t batch, int64_t C, int64_t L, int64_t M, int64_t D, T* grad_x, float* grad_weight,
                            float* grad_bias, int threads) {
  constexpr int64_t kColumns = 64;  // of a task: its part of grad_weight stays in the cache
  std::vector<float> table(C * D);
  widen(weight, C * D, table.data());
  std::vector<std::vector<Chosen>> chosen(batch);
  parallel(batch, batch * M * C * D, threads, [&](int64_t b) {
    chosen[b].emplace_back(grads + b * M * C, argmax + b * M * C, index + b * L, C, L, M);
    const Chosen& of = chosen[b][0];
    std::vector<float> row(D);
    for (int64_t l = 0; l < L; ++l) {
      std::fill(row.begin(), row.end(), 0.0f);
      for (int32_t i = of.start[l]; i < of.start[l + 1]; ++i)
        add_scaled(table.data() + of.channel[i] * D, of.grad[i], D, row.data());
      narrow(row.data(), D, grad_x + (b * L + l) * D);
    }
  });
  std::fill(grad_weight, grad_weight + C * D, 0.0f);
  std::fill(grad_bias, grad_bias + C, 0.0f);
  const int64_t blocks = (D + kColumns - 1) / kColumns;
  parallel(blocks, batch * M * C * D, threads, [&](int64_t task) {
    const int64_t from = task * kColumns, width = std::min(kColumns, D - from);
    std::vector<float> sum(C * kColumns, 0.0f);
    float row[kColumns];
    for (int64_t b = 0; b < batch; ++b) {
      const Chosen& of = chosen[b][0];
      for (int64_t l = 0; l < L; ++l) {
        if (of.start[l] == of.start[l + 1]) continue;
        widen(x + (b * L + l) * D + from, width, row);
        for (int32_t i = of.start[l]; i < of.start[l + 1]; ++i) {
          add_scaled(row, of.grad[i], width, sum.data() + of.channel[i] * kColumns);
          if (task == 0) grad_bias[of.channel[i]] += of.grad[i];
        }
      }
    }
    for (int64_t c = 0; c < C; ++c) std::copy_n(sum.data() + c * kColumns, width, grad_weight + c * D + from);
  });
}

void linear_max_backward(std::uintptr_t grads, int code, std::uintptr_t argmax, std::uintptr_t x, std::uintptr_t weight,
                         std::uintptr_t index, int64_t batch, int64_t C, int64_t L, int64_t M, int64_t D,
                         std::uintptr_t grad_x, std::uintptr_t grad_weight, std::uintptr_t grad_bias, int threads) {
  large_pages(grad_x, batch * L * D * (code == 1 ? 2 : 4));
  with_type(code, [&](auto type) {
    using T = decltype(type);
    linear_max_backward_of(pointer<const T>(grads), pointer<const int32_t>(argmax), pointer<const T>(x),
                           pointer<const T>(weight), pointer<const int32_t>(index), batch, C, L, M, D,
                           pointer<T>(grad_x), pointer<float>(grad_weight), pointer<float>(grad_bias), threads);
  });
}

// ------------------------------------------------------------------------------------------------ neighbours
// `reads` is R * K, the places of one sample.

template <class T>
void knn_gather_of(const T* feature, const int32_t* neighbours, int64_t batch, int64_t C, int64_t M, int64_t reads,
                   bool last, T* out, int threads) {
  parallel(batch, batch * C * reads, threads, [&](int64_t b) {
    const int32_t* from = neighbours + b * reads;
    const T* sample = feature + b * C * M;
    T* target = out + b * C * reads;
    if (last) {
      for (int64_t i = 0; i < reads; ++i) std::copy_n(sample + from[i] * C, C, target + i * C);
    } else {
      for (int64_t c = 0; c < C; ++c)
        for (int64_t i = 0; i < reads; ++i) target[c * reads + i] = sample[c * M + from[i]];
    }
  });
}

void knn_gather(std::uintptr_t feature, int code, std::uintptr_t neighbours, int64_t batch, int64_t C, int64_t M,
                int64_t reads, bool last, std::uintptr_t out, int threads) {
  large_pages(out, batch * C * reads * (code == 1 ? 2 : 4));
  with_type(code, [&](auto type) {
    using T = decltype(type);
    knn_gather_of(pointer<const T>(feature), pointer<const int32_t>(neighbours), batch, C, M, reads, last,
                  pointer<T>(out), threads);
  });
}

HANDPOSE_CLONES void add_row(const float* row, int64_t n, float* out) {
  for (int64_t i = 0; i < n; ++i) out[i] += row[i];
}
HANDPOSE_CLONES void add_row(const uint16_t* row, int64_t n, float* out) {
  for (int64_t i = 0; i < n; ++i) out[i] += from_bfloat16(row[i]);
}

template <class T>
void knn_gather_backward_of(const T* grad, const int32_t* neighbours, int64_t batch, int64_t C, int64_t M, int64_t reads,
                            bool last, T* out, int threads) {
  parallel(batch, batch * C * reads, threads, [&](int64_t b) {
    const int32_t* to = neighbours + b * reads;
    const T* sample = grad + b * C * reads;
    T* target = out + b * C * M;
    std::vector<float> sum(last ? C * M : M, 0.0f);
    if (last) {
      for (int64_t i = 0; i < reads; ++i) add_row(sample + i * C, C, sum.data() + to[i] * C);
      narrow(sum.data(), C * M, target);
      return;
    }
    for (int64_t c = 0; c < C; ++c) {
      std::fill(sum.begin(), sum.end(), 0.0f);
      for (int64_t i = 0; i < reads; ++i) sum[to[i]] += load(sample, c * reads + i);
      narrow(sum.data(), M, target + c * M);
    }
  });
}

void knn_gather_backward(std::uintptr_t grad, int code, std::uintptr_t neighbours, int64_t batch, int64_t C, int64_t M,
                         int64_t reads, bool last, std::uintptr_t out, int threads) {
  with_type(code, [&](auto type) {
    using T = decltype(type);
    knn_gather_backward_of(pointer<const T>(grad), pointer<const int32_t>(neighbours), batch, C, M, reads, last,
                           pointer<T>(out), threads);
  });
}

// Largest value of the rows that `order` names, at least one, in each of `width` columns, and its row.
template <class T>
HANDPOSE_INLINE void max_of_rows(const T* rows, const int32_t* order, int64_t count, int64_t width, float* best,
                                 int32_t* arg) {
  first_row(rows + order[0] * width, order[0], width, best, arg);
  for (int64_t i = 1; i < count; ++i) next_row(rows + order[i] * width, order[i], width, false, best, arg);
}
HANDPOSE_CLONES void max_rows(const float* rows, const int32_t* order, int64_t count, int64_t width, float* best,
                              int32_t* arg) {
  max_of_rows(rows, order, count, width, best, arg);
}
HANDPOSE_CLONES void max_rows(const uint16_t* rows, const int32_t* order, int64_t count, int64_t width, float* best,
                              int32_t* arg) {
  max_of_rows(rows, order, count, width, best, arg);
}

template <class T>
void knn_max_of(const T* feature, const int32_t* neighbours, int64_t batch, int64_t C, int64_t M, int64_t R, int64_t K,
                bool last, T* value, int32_t* argmax, int threads) {
  parallel(batch, batch * C * R * K, threads, [&](int64_t b) {
    const T* rows = feature + b * C * M;
    std::vector<T> turned;
    if (!last) {
      turned.resize(C * M);
      for (int64_t c = 0; c < C; ++c)
        for (int64_t m = 0; m < M; ++m) turned[m * C + c] = rows[c * M + m];
      rows = turned.data();
    }
    Lines<float> best(C);
    Lines<int32_t> arg(C);
    std::vector<int32_t> ascending(K);
    for (int64_t r = 0; r < R; ++r) {
      std::copy_n(neighbours + (b * R + r) * K, K, ascending.begin());
      std::sort(ascending.begin(), ascending.end());  // so that the first of equal values is the lowest node
      max_rows(rows, ascending.data(), K, C, best.data(), arg.data());
      for (int64_t c = 0; c < C; ++c) {
        const int64_t at = last ? (b * R + r) * C + c : (b * C + c) * R + r;
        store(value, at, best.data()[c]);
        argmax[at] = arg.data()[c];
      }
    }
  });
}

void knn_max(std::uintptr_t feature, int code, std::uintptr_t neighbours, int64_t batch, int64_t C, int64_t M, int64_t R,
             int64_t K, bool last, std::uintptr_t value, std::uintptr_t argmax, int threads) {
  with_type(code, [&](auto type) {
    using T = decltype(type);
    knn_max_of(pointer<const T>(feature), pointer<const int32_t>(neighbours), batch, C, M, R, K, last,
               pointer<T>(value), pointer<int32_t>(argmax), threads);
  });
}

template <class T>
void knn_max_backward_of(const T* grad, const int32_t* argmax, int64_t batch, int64_t C, int64_t M, int64_t R, bool last,
                         T* out, int threads) {
  parallel(batch, batch * C * (R + M), threads, [&](int64_t b) {
    std::vector<float> sum(C * M, 0.0f);
    for (int64_t i = 0; i < C * R; ++i) {
      const int64_t at = b * C * R + i, m = argmax[at];
      sum[last ? m * C + i % C : i / R * M + m] += load(grad, at);
    }
    narrow(sum.data(), C * M, out + b * C * M);
  });
}

void knn_max_backward(std::uintptr_t grad, int code, std::uintptr_t argmax, int64_t batch, int64_t C, int64_t M,
                      int64_t R, bool last, std::uintptr_t out, int threads) {
  with_type(code, [&](auto type) {
    using T = decltype(type);
    knn_max_backward_of(pointer<const T>(grad), pointer<const int32_t>(argmax), batch, C, M, R, last, pointer<T>(out),
                        threads);
  });
}

// ------------------------------------------------------------------------------------------------ map

// x_j += rate * sum over sources i of w_ij (mean_i - x_j). The weight is a product over the two axes of the grid, hence
// the sum runs along the columns first and along the rows afterwards. `pull` holds x, y, z of the means (0 for a node
// without points) and the indicator of a source.
void move_nodes(const float* factors, float rate, int side, const float* pull, float* scratch, float* nodes) {
  const int m = side * side;
  for (int part = 0; part < 4; ++part) {
    const float* in = pull + part * m;
    float* rows = scratch + part * m;
    for (int row = 0; row < side; ++row)
      for (int to = 0; to < side; ++to) {
        float sum = 0.0f;
        for (int from = 0; from < side; ++from) sum += factors[std::abs(from - to)] * in[row * side + from];
        rows[row * side + to] = sum;
      }
  }
  for (int to = 0; to < side; ++to)
    for (int column = 0; column < side; ++column) {
      float sum[4] = {};
      for (int from = 0; from < side; ++from)
        for (int part = 0; part < 4; ++part)
          sum[part] += factors[std::abs(from - to)] * scratch[part * m + from * side + column];
      const int node = to * side + column;
      for (int axis = 0; axis < 3; ++axis) {
        float* x = nodes + axis * m + node;
        *x += rate * (sum[axis] - *x * sum[3]);
      }
    }
}

void batch_som(std::uintptr_t clouds, std::uintptr_t initial, std::uintptr_t factors, std::uintptr_t rates, int64_t batch,
               int64_t n, int64_t side, int64_t steps, std::uintptr_t /* nearest */, std::uintptr_t out, int threads) {
  const int64_t m = side * side;
  parallel(batch, batch * steps * n * m / 8, threads, [&](int64_t b) {
    const float* cloud = pointer<float>(clouds) + b * 3 * n;
    float* nodes = pointer<float>(out) + b * 3 * m;
    std::copy_n(pointer<float>(initial), 3 * m, nodes);
    Means means(m);
    std::vector<float> pull(4 * m), scratch(4 * m);
    for (int64_t step = 0; step < steps; ++step) {
      means.clear();
      nearest_nodes(cloud, n, nodes, m, 1, [&](int64_t from, int count, const float*, const int32_t* who) {
        for (int64_t i = 0; i < count; ++i) means.add(who[i], cloud, n, from + i);
      });
      means.store(pull.data());
      for (int64_t i = 0; i < m; ++i) pull[3 * m + i] = means.counts[i] > 0 ? 1.0f : 0.0f;
      move_nodes(pointer<float>(factors) + step * side, pointer<float>(rates)[step], static_cast<int>(side), pull.data(),
                 scratch.data(), nodes);
    }
  });
}

// ------------------------------------------------------------------------------------------------ Chamfer

void chamfer_nn(std::uintptr_t p, std::uintptr_t g, int64_t batch, int64_t P, int64_t Q, std::uintptr_t d2_pg,
                std::uintptr_t idx_pg, std::uintptr_t d2_gp, std::uintptr_t idx_gp, int threads) {
  // Every distance is computed twice: cheaper than keeping the nearest of rows and of columns in one sweep.
  parallel(2 * batch, batch * P * Q / 4, threads, [&](int64_t task) {
    const int64_t b = task / 2, n = task % 2 ? Q : P, m = task % 2 ? P : Q;
    const float* cloud = pointer<float>(task % 2 ? g : p) + b * 3 * n;
    float* distance = pointer<float>(task % 2 ? d2_gp : d2_pg) + b * n;
    int32_t* index = pointer<int32_t>(task % 2 ? idx_gp : idx_pg) + b * n;
    nearest_nodes(cloud, n, pointer<float>(task % 2 ? p : g) + b * 3 * m, m, 1,
                  [&](int64_t from, int count, const float* best, const int32_t* who) {
                    std::copy_n(best, count, distance + from);
                    std::copy_n(who, count, index + from);
                  });
  });
}

// Adds scale (one_i - other_j) / distance, j = index[i], to the gradient of one_i and takes it from that of other_j.
void pull_apart(const float* one, const float* other, const int32_t* index, float scale, int64_t n, int64_t m,
                double* grad_one, double* grad_other) {
  for (int64_t i = 0; i < n; ++i) {
    const int64_t j = std::clamp<int64_t>(index[i], 0, m - 1);
    const float dx = one[i] - other[j], dy = one[n + i] - other[m + j], dz = one[2 * n + i] - other[2 * m + j];
    const float distance = std::sqrt((dx * dx + dy * dy + dz * dz) + soh::kChamferEps);
    const float parts[3] = {dx / distance * scale, dy / distance * scale, dz / distance * scale};
    for (int axis = 0; axis < 3; ++axis) {
      grad_one[axis * n + i] += parts[axis];
      grad_other[axis * m + j] -= parts[axis];
    }
  }
}

void chamfer_backward(std::uintptr_t p, std::uintptr_t g, std::uintptr_t idx_pg, std::uintptr_t idx_gp,
                      std::uintptr_t scale_pg, std::uintptr_t scale_gp, int64_t batch, int64_t P, int64_t Q,
                      std::uintptr_t grad_p, std::uintptr_t grad_g, int threads) {
  parallel(batch, batch * (P + Q) * 16, threads, [&](int64_t b) {
    const float* points = pointer<float>(p) + b * 3 * P;
    const float* cloud = pointer<float>(g) + b * 3 * Q;
    std::vector<double> of_p(3 * P, 0.0), of_g(3 * Q, 0.0);
    pull_apart(points, cloud, pointer<int32_t>(idx_pg) + b * P, pointer<float>(scale_pg)[b], P, Q, of_p.data(),
               of_g.data());
    pull_apart(cloud, points, pointer<int32_t>(idx_gp) + b * Q, pointer<float>(scale_gp)[b], Q, P, of_g.data(),
               of_p.data());
    std::copy(of_p.begin(), of_p.end(), pointer<float>(grad_p) + b * 3 * P);
    std::copy(of_g.begin(), of_g.end(), pointer<float>(grad_g) + b * 3 * Q);
  });
}

// ------------------------------------------------------------------------------------------------ normals

struct Neighbour {
  double distance;
  int64_t index;
  bool operator<(const Neighbour& other) const {
    return distance != other.distance ? distance < other.distance : index < other.index;
  }
};

HANDPOSE_CLONES void square_distances(const double* x, const double* y, const double* z, int64_t n, double px,
                                      double py, double pz, double* out) {
  for (int64_t i = 0; i < n; ++i) {
    const double dx = px - x[i], dy = py - y[i], dz = pz - z[i];
    out[i] = dx * dx + dy * dy + dz * dz;
  }
}

// Direction of the smallest variance of a symmetric matrix (xx, xy, xz, yy, yz, zz) by Jacobi rotations; false if the
// matrix is zero.
bool smallest_direction(const double* covariance, double* direction) {
  double a[3][3] = {{covariance[0], covariance[1], covariance[2]},
                    {covariance[1], covariance[3], covariance[4]},
                    {covariance[2], covariance[4], covariance[5]}};
  double v[3][3] = {{1, 0, 0}, {0, 1, 0}, {0, 0, 1}};
  for (int sweep = 0; sweep < 30; ++sweep) {
    const double off = a[0][1] * a[0][1] + a[0][2] * a[0][2] + a[1][2] * a[1][2];
    const double diagonal = a[0][0] * a[0][0] + a[1][1] * a[1][1] + a[2][2] * a[2][2];
    if (!(off > 1e-34 * diagonal)) break;
    for (int p = 0; p < 2; ++p)
      for (int q = p + 1; q < 3; ++q) {
        if (a[p][q] == 0.0) continue;
        const double theta = (a[q][q] - a[p][p]) / (2.0 * a[p][q]);
        const double t = (theta >= 0.0 ? 1.0 : -1.0) / (std::abs(theta) + std::sqrt(theta * theta + 1.0));
        const double c = 1.0 / std::sqrt(t * t + 1.0), s = t * c;
        for (int i = 0; i < 3; ++i) {
          const double ip = a[i][p], iq = a[i][q];
          a[i][p] = c * ip - s * iq;
          a[i][q] = s * ip + c * iq;
        }
        for (int i = 0; i < 3; ++i) {
          const double pi = a[p][i], qi = a[q][i];
          a[p][i] = c * pi - s * qi;
          a[q][i] = s * pi + c * qi;
        }
        for (int i = 0; i < 3; ++i) {
          const double ip = v[i][p], iq = v[i][q];
          v[i][p] = c * ip - s * iq;
          v[i][q] = s * ip + c * iq;
        }
      }
  }
  int least = 0, most = 0;
  for (int i = 1; i < 3; ++i) {
    if (a[i][i] < a[least][least]) least = i;
    if (a[i][i] > a[most][most]) most = i;
  }
  for (int i = 0; i < 3; ++i) direction[i] = v[i][least];
  return a[most][most] > 0.0;
}

// The points of a frame in cubic cells, so that the neighbours of a point are looked for nearby.
class Cells {
 public:
  Cells(const double* points, int64_t n, int k) : points_(points), n_(n) {
    double low[3], high[3];
    for (int axis = 0; axis < 3; ++axis) low[axis] = high[axis] = points[axis];
    for (int64_t i = 0; i < n; ++i)
      for (int axis = 0; axis < 3; ++axis) {
        low[axis] = std::min(low[axis], points[3 * i + axis]);
        high[axis] = std::max(high[axis], points[3 * i + axis]);
      }
    edge_ = typical_reach(k);
    const double widest = std::max({high[0] - low[0], high[1] - low[1], high[2] - low[2]});
    const double limit = 4.0 * static_cast<double>(n) + 64.0;
    if (!(edge_ > widest * 1e-3)) edge_ = widest * 1e-3;
    if (!(edge_ > 0.0) || !std::isfinite(widest)) edge_ = std::numeric_limits<double>::infinity();
    for (;; edge_ *= 1.5) {  // far outliers: larger cells, not more memory
      double cells = 1.0;
      for (int axis = 0; axis < 3; ++axis) cells *= std::floor((high[axis] - low[axis]) / edge_) + 1.0;
      if (!(cells > limit)) break;
    }
    for (int axis = 0; axis < 3; ++axis) {
      origin_[axis] = low[axis];
      count_[axis] = std::isfinite(edge_) ? static_cast<int64_t>((high[axis] - low[axis]) / edge_) + 1 : 1;
    }
    start_.assign(count_[0] * count_[1] * count_[2] + 1, 0);
    std::vector<int64_t> cell(n);
    for (int64_t i = 0; i < n; ++i) {
      cell[i] = (place(i, 0) * count_[1] + place(i, 1)) * count_[2] + place(i, 2);
      ++start_[cell[i] + 1];
    }
    for (size_t c = 1; c < start_.size(); ++c) start_[c] += start_[c - 1];
    std::vector<int64_t> next(start_.begin(), start_.end() - 1);
    order_.resize(n);
    for (auto& axis : sorted_) axis.resize(n);
    for (int64_t i = 0; i < n; ++i) {
      const int64_t at = next[cell[i]]++;
      order_[at] = i;
      for (int axis = 0; axis < 3; ++axis) sorted_[axis][at] = points[3 * i + axis];
    }
  }

  // The k nearest points of point i, in no order.
  void nearest(int64_t i, int64_t k, std::vector<double>& distances, std::vector<Neighbour>& found) const {
    const double* p = points_ + 3 * i;
    const int64_t home[3] = {place(i, 0), place(i, 1), place(i, 2)};
    for (int64_t ring = 1;; ++ring) {
      int64_t from[3], to[3];
      double reach = std::numeric_limits<double>::infinity();  // everything nearer than this is in the block of cells
      for (int axis = 0; axis < 3; ++axis) {
        from[axis] = std::max<int64_t>(0, home[axis] - ring);
        to[axis] = std::min(count_[axis] - 1, home[axis] + ring);
        const double corner = origin_[axis], lower = corner + static_cast<double>(from[axis]) * edge_;
        const double upper = corner + static_cast<double>(to[axis] + 1) * edge_;
        if (from[axis] > 0) reach = std::min(reach, p[axis] - lower);
        if (to[axis] < count_[axis] - 1) reach = std::min(reach, upper - p[axis]);
      }
      found.clear();
      for (int64_t x = from[0]; x <= to[0]; ++x)
        for (int64_t y = from[1]; y <= to[1]; ++y) {
          const int64_t row = (x * count_[1] + y) * count_[2];
          const int64_t first = start_[row + from[2]], count = start_[row + to[2] + 1] - first;
          if (count == 0) continue;
          square_distances(&sorted_[0][first], &sorted_[1][first], &sorted_[2][first], count, p[0], p[1], p[2],
                           distances.data());
          for (int64_t j = 0; j < count; ++j) found.push_back({distances[j], order_[first + j]});
        }
      const bool all = std::isinf(reach);
      if (static_cast<int64_t>(found.size()) < k && !all) continue;
      std::nth_element(found.begin(), found.begin() + (k - 1), found.end());
      // The edges of the cells are rounded: a neighbour close to the edge of the block is looked at again with more.
      if (!all && !(found[k - 1].distance < reach * reach * (1.0 - 1e-9))) continue;
      found.resize(k);
      return;
    }
  }

 private:
  int64_t place(int64_t i, int axis) const {
    const double cell = (points_[3 * i + axis] - origin_[axis]) / edge_;
    if (!(cell > 0.0)) return 0;
    return std::min(count_[axis] - 1, static_cast<int64_t>(std::min(cell, 1e15)));
  }

  // The median distance, over a few points, to the k-th nearest.
  double typical_reach(int k) const {
    std::vector<double> distances(n_), reach;
    const int64_t step = std::max<int64_t>(1, n_ / 16);
    for (int64_t i = 0; i < n_; i += step) {
      const double* p = points_ + 3 * i;
      for (int64_t j = 0; j < n_; ++j) {
        const double dx = p[0] - points_[3 * j], dy = p[1] - points_[3 * j + 1], dz = p[2] - points_[3 * j + 2];
        distances[j] = dx * dx + dy * dy + dz * dz;
      }
      std::nth_element(distances.begin(), distances.begin() + (k - 1), distances.end());
      reach.push_back(std::sqrt(distances[k - 1]));
    }
    std::nth_element(reach.begin(), reach.begin() + static_cast<int64_t>(reach.size() / 2), reach.end());
    return reach[reach.size() / 2];
  }

  const double* points_;
  int64_t n_;
  double origin_[3], edge_ = 0.0;
  int64_t count_[3];
  std::vector<int64_t> start_, order_;
  std::vector<double> sorted_[3];
};

void normals_of_frame(const double* points, int64_t n, int64_t neighbours, double* out) {
  if (n == 0) return;
  const int64_t k = std::min(neighbours, n);
  const Cells cells(points, n, static_cast<int>(k));
  std::vector<double> distances(n);
  std::vector<Neighbour> found;
  for (int64_t i = 0; i < n; ++i) {
    cells.nearest(i, k, distances, found);
    double mean[3] = {}, covariance[6] = {};
    for (const Neighbour& at : found)
      for (int axis = 0; axis < 3; ++axis) mean[axis] += points[3 * at.index + axis];
    for (double& value : mean) value /= static_cast<double>(k);
    for (const Neighbour& at : found) {
      const double *p = points + 3 * at.index, x = p[0] - mean[0], y = p[1] - mean[1], z = p[2] - mean[2];
      const double products[6] = {x * x, x * y, x * z, y * y, y * z, z * z};
      for (int j = 0; j < 6; ++j) covariance[j] += products[j];
    }
    const double* p = points + 3 * i;
    double* normal = out + 3 * i;
    if (!smallest_direction(covariance, normal)) {
      const double length = std::max(std::sqrt(p[0] * p[0] + p[1] * p[1] + p[2] * p[2]), 1e-300);
      for (int axis = 0; axis < 3; ++axis) normal[axis] = -p[axis] / length;
    }
    if (normal[0] * p[0] + normal[1] * p[1] + normal[2] * p[2] > 0.0)
      for (int axis = 0; axis < 3; ++axis) normal[axis] = -normal[axis];
  }
}

void estimate_normals(std::uintptr_t points, std::uintptr_t counts, int64_t batch, int64_t neighbours,
                      std::uintptr_t out, int threads) {
  std::vector<int64_t> start(batch + 1, 0);
  for (int64_t b = 0; b < batch; ++b) start[b + 1] = start[b] + pointer<int64_t>(counts)[b];
  parallel(batch, start[batch] * 1000, threads, [&](int64_t b) {
    normals_of_frame(pointer<double>(points) + 3 * start[b], start[b + 1] - start[b], neighbours,
                     pointer<double>(out) + 3 * start[b]);
  });
}

}  // namespace

PYBIND11_MODULE(sohandnet_cpu, module) {
  module.attr("abi") = soh::kAbi;
  const py::call_guard<py::gil_scoped_release> unlocked;
  module.def("associate", &associate, unlocked);
  module.def("index_max", &index_max, unlocked);
  module.def("index_max_backward", &index_max_backward, unlocked);
  module.def("linear_max_backward", &linear_max_backward, unlocked);
  module.def("knn_gather", &knn_gather, unlocked);
  module.def("knn_gather_backward", &knn_gather_backward, unlocked);
  module.def("knn_max", &knn_max, unlocked);
  module.def("knn_max_backward", &knn_max_backward, unlocked);
  module.def("batch_som", &batch_som, unlocked);
  module.def("chamfer_nn", &chamfer_nn, unlocked);
  module.def("chamfer_backward", &chamfer_backward, unlocked);
  module.def("estimate_normals", &estimate_normals, unlocked);
}
