// Tri-plane lookup, alone and fused with the small network behind it. The backward pass computes features and hidden
// units again, tile by tile in the cache, instead of reading them back from memory.
#include "kernels.h"

namespace threedgp {

namespace {

constexpr int64_t MAX_FEATURES = 256;
const float NOTHING[MAX_FEATURES] = {0};  // what planes hold outside

// The coordinates that index a plane's columns and rows: (x, y), (x, z), (y, z).
constexpr int COLUMN[3] = {0, 0, 1}, ROW[3] = {1, 2, 2};

// Four neighbours of a point in one plane. Neighbours outside are zeros, with offset -1.
struct Corners {
  int64_t offset[4];  // (row, column): (0, 0), (0, 1), (1, 0), (1, 1)
  float column, row;  // fractions

  const float* at(const Planes& planes, int i) const { return offset[i] < 0 ? NOTHING : planes.data + offset[i]; }
  float weight(int i) const { return ((i & 1) ? column : 1.0f - column) * ((i & 2) ? row : 1.0f - row); }
};

inline int64_t whole(float floored, int64_t size) {
  return floored >= -1.0f && floored <= static_cast<float>(size) ? static_cast<int64_t>(floored) : -2;
}

inline Corners find(const Planes& planes, const float* point, int plane) {
  const float x = (point[COLUMN[plane]] + 1.0f) * 0.5f * static_cast<float>(planes.width - 1);
  const float y = (point[ROW[plane]] + 1.0f) * 0.5f * static_cast<float>(planes.height - 1);
  const float left = std::floor(x), top = std::floor(y);
  const int64_t c = whole(left, planes.width), r = whole(top, planes.height);
  const int64_t step = 3 * planes.features, line = planes.width * step;
  const int64_t base = r * line + c * step + plane * planes.features;
  const bool c0 = c >= 0 && c < planes.width, c1 = c >= -1 && c + 1 < planes.width;
  const bool r0 = r >= 0 && r < planes.height, r1 = r >= -1 && r + 1 < planes.height;
  Corners found;
  found.offset[0] = r0 && c0 ? base : -1;
  found.offset[1] = r0 && c1 ? base + step : -1;
  found.offset[2] = r1 && c0 ? base + line : -1;
  found.offset[3] = r1 && c1 ? base + line + step : -1;
  found.column = x - left;
  found.row = y - top;
  return found;
}

template <int64_t F>
inline int64_t features_of(const Planes& planes) {
  return F ? F : planes.features;
}

// Mean over the planes of the interpolated features.
template <int64_t F>
inline void sample(const Planes& planes, const float* point, float* out) {
  const int64_t features = features_of<F>(planes);
  const float* corner[12];
  float weight[12];
  for (int plane = 0; plane < 3; ++plane) {
    const Corners found = find(planes, point, plane);
    for (int i = 0; i < 4; ++i) {
      corner[plane * 4 + i] = found.at(planes, i);
      weight[plane * 4 + i] = found.weight(i) * (1.0f / 3.0f);
    }
  }
#pragma omp simd
  for (int64_t f = 0; f < features; ++f) {
    float sum = weight[0] * corner[0][f];
    for (int i = 1; i < 12; ++i) sum += weight[i] * corner[i][f];
    out[f] = sum;
  }
}

// Spread a gradient of the features over the planes' corners, and project it on the point's coordinates.
template <int64_t F>
inline void spread(const Planes& planes, const float* point, const float* grad, float* grad_planes, int first, int last,
                   float* grad_point) {
  const int64_t features = features_of<F>(planes);
  float moved[3] = {0.0f, 0.0f, 0.0f};
  for (int plane = first; plane < last; ++plane) {
    const Corners found = find(planes, point, plane);
    if (grad_planes) {
      for (int i = 0; i < 4; ++i) {
        if (found.offset[i] < 0) continue;
        const float weight = found.weight(i) * (1.0f / 3.0f);
        float* target = grad_planes + found.offset[i];
#pragma omp simd
        for (int64_t f = 0; f < features; ++f) target[f] += weight * grad[f];
      }
    }
    if (grad_point) {
      const float *a = found.at(planes, 0), *b = found.at(planes, 1), *c = found.at(planes, 2),
                  *d = found.at(planes, 3);
      float along_columns = 0.0f, along_rows = 0.0f;
      const float row = found.row, column = found.column;
#pragma omp simd reduction(+ : along_columns, along_rows)
      for (int64_t f = 0; f < features; ++f) {
        const float upper = b[f] - a[f], lower = d[f] - c[f];
        const float leftmost = c[f] - a[f], rightmost = d[f] - b[f];
        along_columns += grad[f] * (upper + row * (lower - upper));
        along_rows += grad[f] * (leftmost + column * (rightmost - leftmost));
      }
      moved[COLUMN[plane]] += along_columns * static_cast<float>(planes.width - 1) * (0.5f / 3.0f);
      moved[ROW[plane]] += along_rows * static_cast<float>(planes.height - 1) * (0.5f / 3.0f);
    }
  }
  if (grad_point)
    for (int k = 0; k < 3; ++k) grad_point[k] = moved[k];
}

template <int64_t F>
void forward_all(const Planes& planes, const float* points, int64_t count, float* out) {
  for (int64_t p = 0; p < count; ++p) sample<F>(planes, points + 3 * p, out + p * planes.features);
}

template <int64_t F>
void backward_all(const Planes& planes, const float* points, const float* grad, int64_t count, float* grad_planes,
                  int64_t first, int64_t last, float* grad_points) {
  for (int64_t p = 0; p < count; ++p)
    spread<F>(planes, points + 3 * p, grad + p * planes.features, grad_planes, static_cast<int>(first),
              static_cast<int>(last), grad_points ? grad_points + 3 * p : nullptr);
}

// Lanes floats in registers; the compiler maps them to whatever the processor has.
template <int64_t LANES>
struct Vector {
  typedef float type __attribute__((vector_size(LANES * sizeof(float))));

  static type load(const float* from) {
    type value;
    std::memcpy(&value, from, sizeof(value));
    return value;
  }
  static void store(float* to, type value) { std::memcpy(to, &value, sizeof(value)); }
};

constexpr int64_t lanes_for(int64_t n) { return n % 16 == 0 ? 16 : 8; }

constexpr int64_t ROWS = 4;  // points (or inputs) handled together: their sums stay in registers

// out[p, n] = start[n] + sum_k a[p, k] * b[k, n] for a tile of points. start may be null.
template <int64_t N>
void tile_product(const float* a, const float* b, const float* start, float* out, int64_t points, int64_t inner,
                  int64_t n) {
  int64_t p = 0;
  if constexpr (N > 0) {
    using V = Vector<lanes_for(N)>;
    constexpr int64_t LANES = lanes_for(N), PARTS = N / LANES;
    for (; p + ROWS <= points; p += ROWS) {
      typename V::type sum[ROWS][PARTS];
      for (int64_t i = 0; i < PARTS; ++i)
        for (int64_t r = 0; r < ROWS; ++r)
          sum[r][i] = start ? V::load(start + i * LANES) : typename V::type{};
      for (int64_t k = 0; k < inner; ++k)
        for (int64_t i = 0; i < PARTS; ++i) {
          const typename V::type row = V::load(b + k * N + i * LANES);
          for (int64_t r = 0; r < ROWS; ++r) sum[r][i] += a[(p + r) * inner + k] * row;
        }
      for (int64_t r = 0; r < ROWS; ++r)
        for (int64_t i = 0; i < PARTS; ++i) V::store(out + (p + r) * N + i * LANES, sum[r][i]);
    }
  }
  for (; p < points; ++p) {
    float* target = out + p * n;
    for (int64_t i = 0; i < n; ++i) target[i] = start ? start[i] : 0.0f;
    for (int64_t k = 0; k < inner; ++k) {
      const float value = a[p * inner + k];
#pragma omp simd
      for (int64_t i = 0; i < n; ++i) target[i] += value * b[k * n + i];
    }
  }
}

// out[k, n] += sum_p a[p, k] * b[p, n]
template <int64_t N>
void tile_outer(const float* a, const float* b, float* out, int64_t points, int64_t rows, int64_t n) {
  int64_t k = 0;
  if constexpr (N > 0) {
    using V = Vector<lanes_for(N)>;
    constexpr int64_t LANES = lanes_for(N), PARTS = N / LANES;
    for (; k + ROWS <= rows; k += ROWS) {
      typename V::type sum[ROWS][PARTS] = {};
      for (int64_t p = 0; p < points; ++p)
        for (int64_t i = 0; i < PARTS; ++i) {
          const typename V::type row = V::load(b + p * N + i * LANES);
          for (int64_t r = 0; r < ROWS; ++r) sum[r][i] += a[p * rows + k + r] * row;
        }
      for (int64_t r = 0; r < ROWS; ++r)
        for (int64_t i = 0; i < PARTS; ++i) {
          float* target = out + (k + r) * N + i * LANES;
          V::store(target, V::load(target) + sum[r][i]);
        }
    }
  }
  for (; k < rows; ++k)
    for (int64_t p = 0; p < points; ++p) {
      const float value = a[p * rows + k];
#pragma omp simd
      for (int64_t i = 0; i < n; ++i) out[k * n + i] += value * b[p * n + i];
    }
}

using Product = void (*)(const float*, const float*, const float*, float*, int64_t, int64_t, int64_t);
using Outer = void (*)(const float*, const float*, float*, int64_t, int64_t, int64_t);

Product product_for(int64_t n) {
  switch (n) {
    case 8: return tile_product<8>;
    case 16: return tile_product<16>;
    case 32: return tile_product<32>;
    case 64: return tile_product<64>;
    default: return tile_product<0>;
  }
}

Outer outer_for(int64_t n) {
  switch (n) {
    case 8: return tile_outer<8>;
    case 16: return tile_outer<16>;
    case 32: return tile_outer<32>;
    case 64: return tile_outer<64>;
    default: return tile_outer<0>;
  }
}

struct Tile {
  float *features, *hidden, *grad_hidden, *grad_features;
  Tile(float* scratch, int64_t f, int64_t h) {
    features = scratch;
    grad_features = features + FIELD_TILE * f;
    hidden = grad_features + FIELD_TILE * f;
    grad_hidden = hidden + FIELD_TILE * h;
  }
};

// Features and activated hidden units of a tile.
inline void evaluate(const Planes& planes, const Network& net, const float* points, int64_t count, const Tile& tile) {
  triplane_forward(planes, points, count, tile.features);
  product_for(net.hidden)(tile.features, net.w1_transposed, net.b1, tile.hidden, count, planes.features, net.hidden);
  const float positive = net.gain, negative = net.gain * net.alpha;
  float* hidden = tile.hidden;
  const int64_t total = count * net.hidden;
#pragma omp simd
  for (int64_t i = 0; i < total; ++i) hidden[i] *= hidden[i] > 0.0f ? positive : negative;
}

}  // namespace

void triplane_forward(const Planes& planes, const float* points, int64_t count, float* out) {
  switch (planes.features) {
    case 8: return forward_all<8>(planes, points, count, out);
    case 16: return forward_all<16>(planes, points, count, out);
    case 32: return forward_all<32>(planes, points, count, out);
    default: return forward_all<0>(planes, points, count, out);
  }
}

void triplane_backward(const Planes& planes, const float* points, const float* grad, int64_t count, float* grad_planes,
                       int64_t first, int64_t last, float* grad_points) {
  switch (planes.features) {
    case 8: return backward_all<8>(planes, points, grad, count, grad_planes, first, last, grad_points);
    case 16: return backward_all<16>(planes, points, grad, count, grad_planes, first, last, grad_points);
    case 32: return backward_all<32>(planes, points, grad, count, grad_planes, first, last, grad_points);
    default: return backward_all<0>(planes, points, grad, count, grad_planes, first, last, grad_points);
  }
}

int64_t field_scratch(int64_t features, int64_t hidden) { return 2 * FIELD_TILE * (features + hidden); }

void field_forward(const Planes& planes, const Network& net, const float* points, int64_t count, float* values,
                   float* scratch) {
  const Tile tile(scratch, planes.features, net.hidden);
  for (int64_t from = 0; from < count; from += FIELD_TILE) {
    const int64_t size = count - from < FIELD_TILE ? count - from : FIELD_TILE;
    evaluate(planes, net, points + 3 * from, size, tile);
    for (int64_t p = 0; p < size; ++p) {
      const float* hidden = tile.hidden + p * net.hidden;
      for (int64_t o = 0; o < net.outputs; ++o) {
        const float* row = net.w2 + o * net.hidden;
        float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
        for (int64_t j = 0; j < net.hidden; ++j) sum += hidden[j] * row[j];
        values[(from + p) * net.outputs + o] = sum + net.b2[o];
      }
    }
  }
}

void field_backward(const Planes& planes, const Network& net, const float* points, const float* grad, int64_t count,
                    const FieldGradients& out, float* scratch) {
  const Tile tile(scratch, planes.features, net.hidden);
  const Product project = product_for(planes.features);
  const Outer outer = outer_for(net.hidden);
  const float positive = net.gain, negative = net.gain * net.alpha;
  const int64_t hidden = net.hidden, outputs = net.outputs;
  for (int64_t from = 0; from < count; from += FIELD_TILE) {
    const int64_t size = count - from < FIELD_TILE ? count - from : FIELD_TILE;
    evaluate(planes, net, points + 3 * from, size, tile);
    const float* grads = grad + from * outputs;
    outer(grads, tile.hidden, out.w2, size, outputs, hidden);
    for (int64_t p = 0; p < size; ++p)
      for (int64_t o = 0; o < outputs; ++o) out.b2[o] += grads[p * outputs + o];
    product_for(hidden)(grads, net.w2, nullptr, tile.grad_hidden, size, outputs, hidden);
    float *units = tile.hidden, *slopes = tile.grad_hidden;
#pragma omp simd
    for (int64_t i = 0; i < size * hidden; ++i) slopes[i] *= units[i] > 0.0f ? positive : negative;
    for (int64_t p = 0; p < size; ++p) {
      const float* row = slopes + p * hidden;
#pragma omp simd
      for (int64_t j = 0; j < hidden; ++j) out.b1[j] += row[j];
    }
    outer(tile.features, slopes, out.w1, size, planes.features, hidden);
    if (!out.planes && !out.points) continue;
    project(slopes, net.w1, nullptr, tile.grad_features, size, hidden, planes.features);
    triplane_backward(planes, points + 3 * from, tile.grad_features, size, out.planes, 0, 3,
                      out.points ? out.points + 3 * from : nullptr);
  }
}

}  // namespace threedgp
