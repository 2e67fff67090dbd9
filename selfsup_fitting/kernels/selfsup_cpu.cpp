// Training by fitting on the CPU. ops.py checks the arguments and explains them; here pointers are valid and contiguous.
// Work is shared among threads by image, and every sum has a fixed order: the number of threads changes nothing.
#include <pybind11/pybind11.h>

#include <algorithm>
#include <limits>
#include <vector>

#include "selfsup_common.h"
#include "shared/kernels_cpu.h"

namespace py = pybind11;

namespace {

using namespace handpose;  // shared/kernels_*

constexpr int kLanes = 16;

// What an image counts for in parallel(): a thread pays for every four meshes or projections, every sixteen renderings.
constexpr int64_t kHeavy = kWorkPerThread / 4, kLight = kWorkPerThread / 16;

// ------------------------------------------------------------------------------------------------ mesh

// The samples of one axis: all pixels, or the two out of `factor` that a reduction reads (reference.sample_positions).
struct Axis {
  int size, count;
  std::vector<int> before_, position_;

  Axis(int size_, int factor) : size(size_), before_(size_ + 1) {
    for (int i = 0; i < size; ++i) {
      before_[i] = static_cast<int>(position_.size());
      const int offset = i % factor;
      if (factor == 1 || offset == factor / 2 - 1 || offset == factor / 2) position_.push_back(i);
    }
    before_[size] = count = static_cast<int>(position_.size());
  }
  int before(int pixel) const { return before_[pixel]; }
  int position(int sample) const { return position_[sample]; }
};

template <bool harmonic, bool wanted>
void scan_mesh(const float* verts, const int64_t* faces, int64_t face_count, bool all_sound, bool cull,
               const Axis& columns, const Axis& rows, float* depth, int32_t* winner) {
  for (int64_t f = 0; f < face_count; ++f) {
    const float *a = verts + faces[f * 3] * 3, *b = verts + faces[f * 3 + 1] * 3, *c = verts + faces[f * 3 + 2] * 3;
    if (!all_sound && !(selfsup::sound(a) && selfsup::sound(b) && selfsup::sound(c))) continue;
    selfsup::scan_face<harmonic>(a, b, c, cull, columns, rows, [&](int row, int column, float z) {
      const int64_t at = static_cast<int64_t>(row) * columns.count + column;
      if (z < depth[at]) {  // false for a NaN; a later face has to be nearer
        depth[at] = z;
        if (wanted) winner[at] = static_cast<int32_t>(f);
      }
    });
  }
}

// Clamps to `far` and averages two by two.
void mean_2x2(const float* samples, int width, int height, float far, float* out) {
  for (int row = 0; row < height; ++row)
    for (int column = 0; column < width; ++column) {
      const float *top = samples + (int64_t{4} * row * width + 2 * column), *bottom = top + 2 * width;
      const float upper = std::min(top[0], far) + std::min(top[1], far);
      *out++ = (upper + std::min(bottom[0], far) + std::min(bottom[1], far)) * 0.25f;
    }
}

void rasterize(std::uintptr_t verts, int64_t batch, int64_t vert_count, std::uintptr_t faces, int64_t face_count,
               int width, int height, int factor, bool harmonic, bool cull, float background, float far,
               std::uintptr_t out, std::uintptr_t winner, std::uintptr_t /* scratch */, int threads) {
  const Axis columns(width, factor), rows(height, factor);
  const int64_t samples = static_cast<int64_t>(columns.count) * rows.count;
  const int64_t pixels = static_cast<int64_t>(width / factor) * (height / factor);
  parallel(batch, batch * kHeavy, threads, [&](int64_t b) {
    const float* mesh = pointer<const float>(verts) + b * vert_count * 3;
    bool all_sound = true;
    for (int64_t v = 0; v < vert_count; ++v) all_sound &= selfsup::sound(mesh + v * 3);
    float* image = pointer<float>(out) + b * pixels;
    std::vector<float> own(factor == 1 ? 0 : samples);
    float* depth = factor == 1 ? image : own.data();
    std::fill(depth, depth + samples, background);
    int32_t* face = nullptr;
    if (winner != 0) {
      face = pointer<int32_t>(winner) + b * samples;
      std::fill(face, face + samples, -1);
    }
    const auto scan = face == nullptr ? (harmonic ? scan_mesh<true, false> : scan_mesh<false, false>)
                                      : (harmonic ? scan_mesh<true, true> : scan_mesh<false, true>);
    scan(mesh, pointer<const int64_t>(faces), face_count, all_sound, cull, columns, rows, depth, face);
    if (factor > 1) mean_2x2(depth, width / factor, height / factor, far, image);
  });
}

// ------------------------------------------------------------------------------------------------ spheres

// One row of one sphere: its surface where it is nearer than what is there.
HANDPOSE_CLONES void sphere_row(const float* gx, int count, float x, float z, float square, float dy, int32_t sphere,
                                float* depth, int32_t* winner) {
  for (int i = 0; i < count; ++i) {
    const float dx = gx[i] - x, q = square - dx * dx - dy * dy;
    const bool covered = q > selfsup::kMinQ;
    const float surface = z - std::sqrt(covered ? q : 1.0f);
    const bool nearer = covered & (surface < depth[i]);
    depth[i] = nearer ? surface : depth[i];
    winner[i] = nearer ? sphere : winner[i];
  }
}

struct Scene {
  int size;
  selfsup::Grid grid;
  std::vector<float> g;
  const float* radii;
  int64_t spheres;

  Scene(int size_, double cube_mm, const float* radii_, int64_t spheres_)
      : size(size_), grid(size_, cube_mm), g(size_), radii(radii_), spheres(spheres_) {
    for (int i = 0; i < size; ++i) g[i] = grid.at(i);
  }

  // The samples that a sphere can reach along one axis, [first, last), one more on each side than needed.
  void reach(float centre, float r, int* first, int* last) const {
    const float a = (centre - r) / grid.step + grid.half - 1.0f, b = (centre + r) / grid.step + grid.half + 1.0f;
    *first = selfsup::first_inside(a, size);
    *last = selfsup::last_inside(b, size) + 1;
    if (!(a <= b)) *last = *first;  // NaN
  }

  void render(const float* centers, float* depth, int32_t* winner) const {
    const int64_t pixels = static_cast<int64_t>(size) * size;
    std::fill(depth, depth + pixels, selfsup::kBackground);
    std::fill(winner, winner + pixels, -1);
    for (int64_t j = 0; j < spheres; ++j) {
      const float x = centers[j * 3], y = centers[j * 3 + 1], z = centers[j * 3 + 2], r = radii[j];
      int left, right, top, bottom;
      reach(x, r, &left, &right);
      reach(y, r, &top, &bottom);
      if (left >= right) continue;
      for (int row = top; row < bottom; ++row) {
        const int64_t at = static_cast<int64_t>(row) * size + left;
        sphere_row(g.data() + left, right - left, x, z, r * r, g[row] - y, static_cast<int32_t>(j), depth + at,
                   winner + at);
      }
    }
  }

  // Adds pull[pixel] * slope to the winning sphere's sums (J, 3).
  void add_slopes(const float* centers, const int32_t* winner, const float* pull, double* sums) const {
    for (int row = 0; row < size; ++row)
      for (int column = 0; column < size; ++column) {
        const int64_t at = static_cast<int64_t>(row) * size + column, j = winner[at];
        if (j < 0) continue;
        float slope[3];
        selfsup::surface_slope(g[column] - centers[j * 3], g[row] - centers[j * 3 + 1], radii[j], slope);
        for (int k = 0; k < 3; ++k) sums[j * 3 + k] += slope[k] * pull[at];
      }
  }
};

void render_spheres(std::uintptr_t centers, std::uintptr_t radii, int64_t count, int64_t spheres, int size,
                    double cube_mm, std::uintptr_t depth, std::uintptr_t winner, int threads) {
  const Scene scene(size, cube_mm, pointer<const float>(radii), spheres);
  const int64_t pixels = static_cast<int64_t>(size) * size;
  parallel(count, count * kLight, threads, [&](int64_t n) {
    scene.render(pointer<const float>(centers) + n * spheres * 3, pointer<float>(depth) + n * pixels,
                 pointer<int32_t>(winner) + n * pixels);
  });
}

void render_spheres_backward(std::uintptr_t grad, std::uintptr_t centers, std::uintptr_t radii, std::uintptr_t winner,
                             int64_t count, int64_t spheres, int size, double cube_mm, std::uintptr_t out,
                             int threads) {
  const Scene scene(size, cube_mm, pointer<const float>(radii), spheres);
  const int64_t pixels = static_cast<int64_t>(size) * size;
  parallel(count, count * kLight, threads, [&](int64_t n) {
    std::vector<double> sums(spheres * 3, 0.0);
    scene.add_slopes(pointer<const float>(centers) + n * spheres * 3, pointer<const int32_t>(winner) + n * pixels,
                     pointer<const float>(grad) + n * pixels, sums.data());
    std::copy(sums.begin(), sums.end(), pointer<float>(out) + n * spheres * 3);
  });
}

// ------------------------------------------------------------------------------------------------ projection loss

// For kLanes captured pixels the distance to the nearest surface, and whose it is; of equal ones the first.
HANDPOSE_CLONES void nearest_surfaces(const float* px, const float* py, const float* pz, const float* centers,
                                      const float* radii, int64_t spheres, float* best, int32_t* nearest) {
  float least[kLanes];
  int32_t which[kLanes];
  for (int l = 0; l < kLanes; ++l) {
    least[l] = std::numeric_limits<float>::infinity();
    which[l] = 0;
  }
  for (int64_t j = 0; j < spheres; ++j) {
    const float x = centers[j * 3], y = centers[j * 3 + 1], z = centers[j * 3 + 2], r = radii[j];
    for (int l = 0; l < kLanes; ++l) {
      const float e = selfsup::surface_distance(px[l] - x, py[l] - y, pz[l] - z, r);
      const bool nearer = e < least[l];
      least[l] = nearer ? e : least[l];
      which[l] = nearer ? static_cast<int32_t>(j) : which[l];
    }
  }
  std::copy(least, least + kLanes, best);
  std::copy(which, which + kLanes, nearest);
}

// Twice the differences, and the sum of their squares in a fixed order.
HANDPOSE_CLONES double squared_error(const float* rendered, const float* captured, int64_t count, float* twice) {
  double sums[kLanes] = {}, total = 0.0;
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes)
    for (int l = 0; l < kLanes; ++l) {
      const float d = rendered[i + l] - captured[i + l];
      twice[i + l] = 2.0f * d;
      sums[l] += static_cast<double>(d) * static_cast<double>(d);
    }
  for (; i < count; ++i) {
    const float d = rendered[i] - captured[i];
    twice[i] = 2.0f * d;
    total += static_cast<double>(d) * static_cast<double>(d);
  }
  for (int l = 0; l < kLanes; ++l) total += sums[l];
  return total;
}

bool all_finite(const float* values, int64_t count) {
  bool sound = true;
  for (int64_t i = 0; i < count; ++i) sound &= selfsup::finite(values[i]);
  return sound;
}

// The sum over the pixels of one image, and its derivative added to sums (J, 3).
double data_term(const Scene& scene, const float* centers, const float* captured, double* sums) {
  float px[kLanes], py[kLanes], pz[kLanes], best[kLanes];
  int32_t nearest[kLanes];
  int count = 0;
  double total = 0.0;
  const auto flush = [&] {
    for (int l = count; l < kLanes; ++l) px[l] = py[l] = pz[l] = 0.0f;
    nearest_surfaces(px, py, pz, centers, scene.radii, scene.spheres, best, nearest);
    for (int l = 0; l < count; ++l) {
      total += std::min(best[l], selfsup::kMaxDistance);
      if (!(best[l] <= selfsup::kMaxDistance)) continue;
      const int64_t j = nearest[l];
      float slope[3];
      selfsup::distance_slope(px[l] - centers[j * 3], py[l] - centers[j * 3 + 1], pz[l] - centers[j * 3 + 2],
                              scene.radii[j], slope);
      for (int k = 0; k < 3; ++k) sums[j * 3 + k] += slope[k];
    }
    count = 0;
  };
  for (int row = 0; row < scene.size; ++row)
    for (int column = 0; column < scene.size; ++column) {
      const float z = *captured++;
      if (!(z <= selfsup::kFarData)) continue;
      px[count] = scene.g[column];
      py[count] = scene.g[row];
      pz[count] = z;
      if (++count == kLanes) flush();
    }
  if (count > 0) flush();
  return total;
}

void projection_terms(std::uintptr_t centers, std::uintptr_t radii, std::uintptr_t depth, std::uintptr_t image,
                      int64_t count, int64_t spheres, int size, double cube_mm, std::uintptr_t model,
                      std::uintptr_t data, std::uintptr_t model_slope, std::uintptr_t data_slope,
                      std::uintptr_t /* scratch */, int threads) {
  const Scene scene(size, cube_mm, pointer<const float>(radii), spheres);
  const int64_t pixels = static_cast<int64_t>(size) * size;
  parallel(count, count * kHeavy, threads, [&](int64_t n) {
    const float* balls = pointer<const float>(centers) + n * spheres * 3;
    const float* captured = pointer<const float>(depth) + pointer<const int64_t>(image)[n] * pixels;
    std::vector<float> rendered(pixels), twice(pixels);
    std::vector<int32_t> winner(pixels);
    std::vector<double> model_sums(spheres * 3, 0.0), data_sums(spheres * 3, 0.0);
    const bool sound = all_finite(balls, spheres * 3) && all_finite(captured, pixels);
    const double share = sound ? 1.0 / static_cast<double>(pixels) : std::numeric_limits<double>::quiet_NaN();

    scene.render(balls, rendered.data(), winner.data());
    const double error = squared_error(rendered.data(), captured, pixels, twice.data());
    scene.add_slopes(balls, winner.data(), twice.data(), model_sums.data());
    const double distance = data_term(scene, balls, captured, data_sums.data());
    pointer<float>(model)[n] = static_cast<float>(error * share);
    pointer<float>(data)[n] = static_cast<float>(distance * share);
    for (int64_t k = 0; k < spheres * 3; ++k) {
      pointer<float>(model_slope)[n * spheres * 3 + k] = static_cast<float>(model_sums[k] * share);
      pointer<float>(data_slope)[n * spheres * 3 + k] = static_cast<float>(data_sums[k] * share);
    }
  });
}

}  // namespace

PYBIND11_MODULE(selfsup_cpu, module) {
  module.attr("abi") = selfsup::kAbi;
  const py::call_guard<py::gil_scoped_release> unlocked;
  module.def("rasterize", &rasterize, unlocked);
  module.def("render_spheres", &render_spheres, unlocked);
  module.def("render_spheres_backward", &render_spheres_backward, unlocked);
  module.def("projection_terms", &projection_terms, unlocked);
}
