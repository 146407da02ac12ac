// Tri-plane lookup, alone and fused with the small network behind it. The backward pass computes features and hidden
// units again, tile by tile in the cache, instead of reading them back from memory.
#include "kernels.h"

#include <type_traits>

namespace threedgp {

namespace {

// The coordinates that index a plane's columns and rows: (x, y), (x, z), (y, z).
constexpr int COLUMN[3] = {0, 0, 1}, ROW[3] = {1, 2, 2};

// Lanes floats in registers; the compiler maps them to whatever the processor has.
typedef float Float4 __attribute__((vector_size(16)));
typedef float Float8 __attribute__((vector_size(32)));
typedef float Float16 __attribute__((vector_size(64)));

inline float sum(float value) { return value; }
inline float sum(Float4 value) { return (value[0] + value[2]) + (value[1] + value[3]); }

inline float sum(Float8 value) {
  Float4 halves[2];
  std::memcpy(halves, &value, sizeof(value));
  return sum(halves[0] + halves[1]);
}

inline float sum(Float16 value) {
  Float8 halves[2];
  std::memcpy(halves, &value, sizeof(value));
  return sum(halves[0] + halves[1]);
}

template <int64_t LANES>
struct Vector {
  using type = std::conditional_t<LANES == 16, Float16, std::conditional_t<LANES == 8, Float8, float>>;

  static type load(const float* from) {
    type value;
    std::memcpy(&value, from, sizeof(value));
    return value;
  }
  static void store(float* to, type value) { std::memcpy(to, &value, sizeof(value)); }
};

constexpr int64_t lanes_for(int64_t n) { return n % 16 == 0 ? 16 : 8; }

// Where the points of a tile lie in the planes: for each of 3 planes the 4 neighbours (row, column) = (0, 0), (0, 1),
// (1, 0), (1, 1). Neighbours outside have weight 0 and the offset of some texel inside.
struct Places {
  int32_t offset[12][FIELD_TILE];
  float weight[12][FIELD_TILE];
  // How the mean feature moves with the plane's column and row coordinate: weights of the neighbours.
  float by_column[12][FIELD_TILE], by_row[12][FIELD_TILE];
};

// One plane of all points of a tile; columns and rows of it are indexed by the coordinates u and v.
template <bool MOVES>
void locate_in_plane(const float* u, const float* v, int32_t width, int32_t height, int32_t step, int32_t start,
                     int first, Places& places) {
  const float columns = static_cast<float>(width - 1), rows = static_cast<float>(height - 1);
  const int32_t line = width * step;
  constexpr float THIRD = 1.0f / 3.0f;
  int32_t *o0 = places.offset[first], *o1 = o0 + FIELD_TILE, *o2 = o1 + FIELD_TILE, *o3 = o2 + FIELD_TILE;
  float *w0 = places.weight[first], *w1 = w0 + FIELD_TILE, *w2 = w1 + FIELD_TILE, *w3 = w2 + FIELD_TILE;
  float *c = places.by_column[first], *r = places.by_row[first];
#pragma omp simd
  for (int64_t p = 0; p < FIELD_TILE; ++p) {
    const float x = (u[p] + 1.0f) * 0.5f * columns, y = (v[p] + 1.0f) * 0.5f * rows;
    const float left = std::floor(x), top = std::floor(y), column = x - left, row = y - top;
    // Whether the neighbours are inside, as 1 or 0.
    const float in_left = (left >= 0.0f ? 1.0f : 0.0f) * (left <= columns ? 1.0f : 0.0f);
    const float in_right = (left >= -1.0f ? 1.0f : 0.0f) * (left < columns ? 1.0f : 0.0f);
    const float in_top = (top >= 0.0f ? 1.0f : 0.0f) * (top <= rows ? 1.0f : 0.0f);
    const float in_bottom = (top >= -1.0f ? 1.0f : 0.0f) * (top < rows ? 1.0f : 0.0f);
    const int32_t near = static_cast<int32_t>(in_left > 0.0f ? left : 0.0f) * step;
    const int32_t far = static_cast<int32_t>(in_right > 0.0f ? left + 1.0f : 0.0f) * step;
    const int32_t upper = static_cast<int32_t>(in_top > 0.0f ? top : 0.0f) * line + start;
    const int32_t lower = static_cast<int32_t>(in_bottom > 0.0f ? top + 1.0f : 0.0f) * line + start;
    o0[p] = upper + near;
    o1[p] = upper + far;
    o2[p] = lower + near;
    o3[p] = lower + far;
    const float a = (1.0f - column) * in_left * THIRD, b = column * in_right * THIRD;
    const float t = (1.0f - row) * in_top, w = row * in_bottom;
    const float unknown = x == x && y == y ? 0.0f : NAN;  // a coordinate that is no number must show
    w0[p] = a * t + unknown;
    w1[p] = b * t + unknown;
    w2[p] = a * w + unknown;
    w3[p] = b * w + unknown;
    if constexpr (MOVES) {
      const float minus = in_left * (-0.5f * THIRD) * columns, plus = in_right * (0.5f * THIRD) * columns;
      c[p] = minus * t;
      c[FIELD_TILE + p] = plus * t;
      c[2 * FIELD_TILE + p] = minus * w;
      c[3 * FIELD_TILE + p] = plus * w;
      const float up = in_top * -0.5f * rows, down = in_bottom * 0.5f * rows;
      r[p] = a * up;
      r[FIELD_TILE + p] = b * up;
      r[2 * FIELD_TILE + p] = a * down;
      r[3 * FIELD_TILE + p] = b * down;
    }
  }
}

template <bool MOVES>
void locate(const Planes& planes, const float* points, int64_t count, Places& places) {
  float coordinates[3][FIELD_TILE] = {};
  for (int64_t p = 0; p < count; ++p)
    for (int axis = 0; axis < 3; ++axis) coordinates[axis][p] = points[3 * p + axis];
  const int32_t features = static_cast<int32_t>(planes.features);
  for (int plane = 0; plane < 3; ++plane)
    locate_in_plane<MOVES>(coordinates[COLUMN[plane]], coordinates[ROW[plane]], static_cast<int32_t>(planes.width),
                           static_cast<int32_t>(planes.height), 3 * features, plane * features, 4 * plane, places);
}

// The lookups take whole vectors of features, then single ones where the number is odd (F = 0).
template <int64_t F, typename Function>
inline void each_part(int64_t features, Function function) {
  if constexpr (F > 0) {
    constexpr int64_t LANES = lanes_for(F);
#pragma GCC unroll 4
    for (int64_t f = 0; f < F; f += LANES) function(Vector<LANES>(), f);
  } else {
    for (int64_t f = 0; f < features; ++f) function(Vector<1>(), f);
  }
}

// Mean over the planes of the interpolated features: out [count, features].
template <int64_t F>
void gather(const Planes& planes, const Places& places, int64_t count, float* out) {
  // All parts of a neighbour together, so that its weight is fetched once.
  using V = Vector<F == 0 ? 1 : lanes_for(F)>;
  constexpr int64_t LANES = F == 0 ? 1 : lanes_for(F), PARTS = F == 0 ? 1 : F / LANES, WIDTH = LANES * PARTS;
  for (int64_t p = 0; p < count; ++p)
    for (int64_t f = 0; f < planes.features; f += WIDTH) {
      const float* base = planes.data + f;
      typename V::type even[PARTS] = {}, odd[PARTS] = {};
#pragma GCC unroll 6
      for (int i = 0; i < 12; i += 2)
#pragma GCC unroll 4
        for (int64_t part = 0; part < PARTS; ++part) {
          even[part] += places.weight[i][p] * V::load(base + places.offset[i][p] + part * LANES);
          odd[part] += places.weight[i + 1][p] * V::load(base + places.offset[i + 1][p] + part * LANES);
        }
#pragma GCC unroll 4
      for (int64_t part = 0; part < PARTS; ++part)
        V::store(out + p * planes.features + f + part * LANES, even[part] + odd[part]);
    }
}

// The transpose of `gather` for the planes in [first, last).
template <int64_t F>
void scatter(const Planes& planes, const Places& places, const float* grad, int64_t count, float* grad_planes,
             int64_t first, int64_t last) {
  for (int64_t p = 0; p < count; ++p) {
    const float* from = grad + p * planes.features;
    each_part<F>(planes.features, [&](auto vector, int64_t f) {
      using V = decltype(vector);
      const auto value = V::load(from + f);
      for (int64_t i = 4 * first; i < 4 * last; ++i) {
        float* target = grad_planes + places.offset[i][p] + f;
        V::store(target, V::load(target) + places.weight[i][p] * value);
      }
    });
  }
}

// Gradient of the points' coordinates, [count, 3].
template <int64_t F>
void move(const Planes& planes, const Places& places, const float* grad, int64_t count, float* grad_points) {
  for (int64_t p = 0; p < count; ++p) {
    const float* from = grad + p * planes.features;
    float* target = grad_points + 3 * p;
    target[0] = target[1] = target[2] = 0.0f;
    each_part<F>(planes.features, [&](auto vector, int64_t f) {
      using V = decltype(vector);
      typename V::type column[3], row[3];
#pragma GCC unroll 3
      for (int plane = 0; plane < 3; ++plane) {
        const float* base = planes.data + f;
        const int i = 4 * plane;
        const auto a = V::load(base + places.offset[i][p]), b = V::load(base + places.offset[i + 1][p]);
        const auto c = V::load(base + places.offset[i + 2][p]), d = V::load(base + places.offset[i + 3][p]);
        const auto &u = places.by_column, &v = places.by_row;
        column[plane] = (u[i][p] * a + u[i + 1][p] * b) + (u[i + 2][p] * c + u[i + 3][p] * d);
        row[plane] = (v[i][p] * a + v[i + 1][p] * b) + (v[i + 2][p] * c + v[i + 3][p] * d);
      }
      const auto value = V::load(from + f);
      target[0] += sum(value * (column[0] + column[1]));
      target[1] += sum(value * (row[0] + column[2]));
      target[2] += sum(value * (row[1] + row[2]));
    });
  }
}

template <int64_t F>
void forward_all(const Planes& planes, const float* points, int64_t count, float* out) {
  Places places;
  for (int64_t from = 0; from < count; from += FIELD_TILE) {
    const int64_t size = count - from < FIELD_TILE ? count - from : FIELD_TILE;
    locate<false>(planes, points + 3 * from, size, places);
    gather<F>(planes, places, size, out + from * planes.features);
  }
}

template <int64_t F>
void backward_all(const Planes& planes, const float* points, const float* grad, int64_t count, float* grad_planes,
                  int64_t first, int64_t last, float* grad_points) {
  Places places;
  for (int64_t from = 0; from < count; from += FIELD_TILE) {
    const int64_t size = count - from < FIELD_TILE ? count - from : FIELD_TILE;
    const float* part = grad + from * planes.features;
    if (grad_points) {
      locate<true>(planes, points + 3 * from, size, places);
      move<F>(planes, places, part, size, grad_points + 3 * from);
    } else {
      locate<false>(planes, points + 3 * from, size, places);
    }
    if (grad_planes) scatter<F>(planes, places, part, size, grad_planes, first, last);
  }
}

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

// One of the functions above for the number of features of the planes.
#define BY_FEATURES(function, features, ...)      \
  switch (features) {                             \
    case 8: function<8>(__VA_ARGS__); break;      \
    case 16: function<16>(__VA_ARGS__); break;    \
    case 32: function<32>(__VA_ARGS__); break;    \
    default: function<0>(__VA_ARGS__);            \
  }

// Features and activated hidden units of a tile.
inline void evaluate(const Planes& planes, const Network& net, const Places& places, int64_t count, const Tile& tile) {
  BY_FEATURES(gather, planes.features, planes, places, count, tile.features);
  product_for(net.hidden)(tile.features, net.w1_transposed, net.b1, tile.hidden, count, planes.features, net.hidden);
  const float positive = net.gain, negative = net.gain * net.alpha;
  float* hidden = tile.hidden;
  const int64_t total = count * net.hidden;
#pragma omp simd
  for (int64_t i = 0; i < total; ++i) hidden[i] *= hidden[i] > 0.0f ? positive : negative;
}

// values[p, o] = b2[o] + sum_j hidden[p, j] * w2[o, j]
template <int64_t H>
void project(const Network& net, const float* hidden, int64_t count, float* values) {
  for (int64_t p = 0; p < count; ++p) {
    const float* units = hidden + p * net.hidden;
    for (int64_t o = 0; o < net.outputs; ++o) {
      const float* row = net.w2 + o * net.hidden;
      float total = 0.0f;
      if constexpr (H > 0) {
        using V = Vector<lanes_for(H)>;
        auto part = V::load(units) * V::load(row);
        for (int64_t j = lanes_for(H); j < H; j += lanes_for(H)) part += V::load(units + j) * V::load(row + j);
        total = sum(part);
      } else {
        for (int64_t j = 0; j < net.hidden; ++j) total += units[j] * row[j];
      }
      values[p * net.outputs + o] = net.b2[o] + total;
    }
  }
}

}  // namespace

void triplane_forward(const Planes& planes, const float* points, int64_t count, float* out) {
  BY_FEATURES(forward_all, planes.features, planes, points, count, out);
}

void triplane_backward(const Planes& planes, const float* points, const float* grad, int64_t count, float* grad_planes,
                       int64_t first, int64_t last, float* grad_points) {
  BY_FEATURES(backward_all, planes.features, planes, points, grad, count, grad_planes, first, last, grad_points);
}

int64_t field_scratch(int64_t features, int64_t hidden) { return 2 * FIELD_TILE * (features + hidden); }

void field_forward(const Planes& planes, const Network& net, const float* points, int64_t count, float* values,
                   float* scratch) {
  const Tile tile(scratch, planes.features, net.hidden);
  Places places;
  for (int64_t from = 0; from < count; from += FIELD_TILE) {
    const int64_t size = count - from < FIELD_TILE ? count - from : FIELD_TILE;
    locate<false>(planes, points + 3 * from, size, places);
    evaluate(planes, net, places, size, tile);
    float* target = values + from * net.outputs;
    switch (net.hidden) {
      case 16: project<16>(net, tile.hidden, size, target); break;
      case 32: project<32>(net, tile.hidden, size, target); break;
      case 64: project<64>(net, tile.hidden, size, target); break;
      default: project<0>(net, tile.hidden, size, target);
    }
  }
}

void field_backward(const Planes& planes, const Network& net, const float* points, const float* grad, int64_t count,
                    const FieldGradients& out, float* scratch) {
  const Tile tile(scratch, planes.features, net.hidden);
  const Product to_hidden = product_for(net.hidden), to_features = product_for(planes.features);
  const Outer outer = outer_for(net.hidden);
  const float positive = net.gain, negative = net.gain * net.alpha;
  const int64_t hidden = net.hidden, outputs = net.outputs;
  Places places;
  for (int64_t from = 0; from < count; from += FIELD_TILE) {
    const int64_t size = count - from < FIELD_TILE ? count - from : FIELD_TILE;
    if (out.points)
      locate<true>(planes, points + 3 * from, size, places);
    else
      locate<false>(planes, points + 3 * from, size, places);
    evaluate(planes, net, places, size, tile);
    const float* grads = grad + from * outputs;
    outer(grads, tile.hidden, out.w2, size, outputs, hidden);
    for (int64_t p = 0; p < size; ++p)
      for (int64_t o = 0; o < outputs; ++o) out.b2[o] += grads[p * outputs + o];
    to_hidden(grads, net.w2, nullptr, tile.grad_hidden, size, outputs, hidden);
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
    to_features(slopes, net.w1, nullptr, tile.grad_features, size, hidden, planes.features);
    if (out.planes)
      BY_FEATURES(scatter, planes.features, planes, places, tile.grad_features, size, out.planes, 0, 3);
    if (out.points)
      BY_FEATURES(move, planes.features, planes, places, tile.grad_features, size, out.points + 3 * from);
  }
}

}  // namespace threedgp
