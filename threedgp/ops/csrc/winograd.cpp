// 3x3 convolution of channel-last float images with 2.25 times fewer multiplications: Winograd's minimal filtering
// F(2x2, 3x3) (Lavin and Gray, arXiv 1509.09308). Tiles of 4x4 inputs give 2x2 outputs; between the transforms of inputs,
// filters and outputs stand 16 matrix products, done on a block of tiles at a time, which stays in the cache.
#include "kernels.h"

#include <type_traits>

namespace threedgp {

// As many vectors of sums as there are registers for: 6 rows of `MOST_PARTS`.
#if defined(__AVX512F__)
#define WINOGRAD_VECTOR 64
#define WINOGRAD_PARTS 4
#elif defined(__AVX2__) && defined(__FMA__)
#define WINOGRAD_VECTOR 32
#define WINOGRAD_PARTS 2
#elif defined(__aarch64__)
#define WINOGRAD_VECTOR 16
#define WINOGRAD_PARTS 4
#endif

#ifdef WINOGRAD_VECTOR

namespace {

typedef float Vector __attribute__((vector_size(WINOGRAD_VECTOR)));
constexpr int64_t LANES = sizeof(Vector) / sizeof(float), PLACES = 16, ROWS = 6, MOST_PARTS = WINOGRAD_PARTS;
static_assert(WINOGRAD_BLOCK % ROWS == 0 && WINOGRAD_CHANNELS % LANES == 0);

inline Vector load_vector(const float* from) {
  Vector value;
  std::memcpy(&value, from, sizeof(value));
  return value;
}
inline void store_vector(float* to, Vector value) { std::memcpy(to, &value, sizeof(value)); }

// Tile `number` of a batch of images: its image, and its row and column of tiles.
struct Place {
  int64_t image, row, column;
  Place(int64_t number, const Winograd& op) {
    const int64_t columns = op.width / 2, tiles = op.height / 2 * columns;
    image = number / tiles;
    row = number % tiles / columns;
    column = number % columns;
  }
};

// B^T d B of the inputs around each tile: [16, WINOGRAD_BLOCK, channels].
void transform_inputs(const float* x, const Winograd& op, int64_t first, int64_t count, float* out) {
  const int64_t channels = op.in, step = WINOGRAD_BLOCK * channels;
  for (int64_t t = 0; t < count; ++t) {
    const Place at(first + t, op);
    const float* from[4][4];
    for (int64_t i = 0; i < 4; ++i)
      for (int64_t j = 0; j < 4; ++j) {
        const int64_t y = 2 * at.row + i - 1, z = 2 * at.column + j - 1;
        const bool inside = y >= 0 && y < op.height && z >= 0 && z < op.width;
        from[i][j] = inside ? x + ((at.image * op.height + y) * op.width + z) * channels : nullptr;
      }
    for (int64_t c = 0; c < channels; c += LANES) {
      Vector d[4][4], half[4][4];
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i)
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) d[i][j] = from[i][j] ? load_vector(from[i][j] + c) : Vector{};
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) {
        half[0][j] = d[0][j] - d[2][j];
        half[1][j] = d[1][j] + d[2][j];
        half[2][j] = d[2][j] - d[1][j];
        half[3][j] = d[1][j] - d[3][j];
      }
      float* to = out + t * channels + c;
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        store_vector(to + (4 * i) * step, half[i][0] - half[i][2]);
        store_vector(to + (4 * i + 1) * step, half[i][1] + half[i][2]);
        store_vector(to + (4 * i + 2) * step, half[i][2] - half[i][1]);
        store_vector(to + (4 * i + 3) * step, half[i][1] - half[i][3]);
      }
    }
  }
}

// A^T m A: the 2x2 outputs of each tile.
void transform_outputs(const float* m, const Winograd& op, int64_t first, int64_t count, float* y) {
  const int64_t channels = op.out, step = WINOGRAD_BLOCK * channels, line = op.width * channels;
  for (int64_t t = 0; t < count; ++t) {
    const Place at(first + t, op);
    float* to = y + ((at.image * op.height + 2 * at.row) * op.width + 2 * at.column) * channels;
    for (int64_t c = 0; c < channels; c += LANES) {
      const float* from = m + t * channels + c;
      Vector top[4], bottom[4];
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) {
        const Vector a = load_vector(from + j * step), b = load_vector(from + (4 + j) * step);
        const Vector d = load_vector(from + (8 + j) * step), e = load_vector(from + (12 + j) * step);
        top[j] = a + b + d;
        bottom[j] = b - d - e;
      }
      store_vector(to + c, top[0] + top[1] + top[2]);
      store_vector(to + channels + c, top[1] - top[2] - top[3]);
      store_vector(to + line + c, bottom[0] + bottom[1] + bottom[2]);
      store_vector(to + line + channels + c, bottom[1] - bottom[2] - bottom[3]);
    }
  }
}

// The transpose of `transform_outputs`: A g A^T.
void spread_outputs(const float* grad, const Winograd& op, int64_t first, int64_t count, float* out) {
  const int64_t channels = op.out, step = WINOGRAD_BLOCK * channels, line = op.width * channels;
  for (int64_t t = 0; t < count; ++t) {
    const Place at(first + t, op);
    const float* from = grad + ((at.image * op.height + 2 * at.row) * op.width + 2 * at.column) * channels;
    for (int64_t c = 0; c < channels; c += LANES) {
      const Vector a = load_vector(from + c), b = load_vector(from + channels + c);
      const Vector d = load_vector(from + line + c), e = load_vector(from + line + channels + c);
      const Vector rows[4][2] = {{a, b}, {a + d, b + e}, {a - d, b - e}, {-d, -e}};
      float* to = out + t * channels + c;
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        store_vector(to + (4 * i) * step, rows[i][0]);
        store_vector(to + (4 * i + 1) * step, rows[i][0] + rows[i][1]);
        store_vector(to + (4 * i + 2) * step, rows[i][0] - rows[i][1]);
        store_vector(to + (4 * i + 3) * step, -rows[i][1]);
      }
    }
  }
}

// out[r, n] = sum_k a[r, k] b[k, n] for N rows and PARTS vectors of columns.
template <int64_t N, int64_t PARTS>
inline void rows_product(const float* a, const float* b, float* out, int64_t inner, int64_t columns) {
  Vector sum[N][PARTS] = {};
  for (int64_t k = 0; k < inner; ++k) {
    Vector row[PARTS];
#pragma GCC unroll 4
    for (int64_t p = 0; p < PARTS; ++p) row[p] = load_vector(b + k * columns + p * LANES);
#pragma GCC unroll 6
    for (int64_t r = 0; r < N; ++r)
#pragma GCC unroll 4
      for (int64_t p = 0; p < PARTS; ++p) sum[r][p] += a[r * inner + k] * row[p];
  }
#pragma GCC unroll 6
  for (int64_t r = 0; r < N; ++r)
#pragma GCC unroll 4
    for (int64_t p = 0; p < PARTS; ++p) store_vector(out + r * columns + p * LANES, sum[r][p]);
}

template <int64_t PARTS>
void product(const float* a, const float* b, float* out, int64_t rows, int64_t inner, int64_t columns) {
  int64_t r = 0;
  for (; r + ROWS <= rows; r += ROWS)
    rows_product<ROWS, PARTS>(a + r * inner, b, out + r * columns, inner, columns);
  for (; r < rows; ++r) rows_product<1, PARTS>(a + r * inner, b, out + r * columns, inner, columns);
}

// out[k, n] += sum_r a[r, k] b[r, n], k in groups of four.
template <int64_t PARTS>
void outer(const float* a, const float* b, float* out, int64_t rows, int64_t inner, int64_t columns) {
  for (int64_t k = 0; k < inner; k += 4) {
    Vector sum[4][PARTS];
#pragma GCC unroll 4
    for (int64_t i = 0; i < 4; ++i)
#pragma GCC unroll 4
      for (int64_t p = 0; p < PARTS; ++p) sum[i][p] = load_vector(out + (k + i) * columns + p * LANES);
    for (int64_t r = 0; r < rows; ++r) {
      Vector row[PARTS];
#pragma GCC unroll 4
      for (int64_t p = 0; p < PARTS; ++p) row[p] = load_vector(b + r * columns + p * LANES);
#pragma GCC unroll 4
      for (int64_t i = 0; i < 4; ++i)
#pragma GCC unroll 4
        for (int64_t p = 0; p < PARTS; ++p) sum[i][p] += a[r * inner + k + i] * row[p];
    }
#pragma GCC unroll 4
    for (int64_t i = 0; i < 4; ++i)
#pragma GCC unroll 4
      for (int64_t p = 0; p < PARTS; ++p) store_vector(out + (k + i) * columns + p * LANES, sum[i][p]);
  }
}

// Runs `function(parts, place, first column)` for all places and columns, as many vectors of columns at a time as there
// are registers for.
template <typename Function>
void each_product(int64_t columns, Function function) {
  for (int64_t place = 0; place < PLACES; ++place) {
    int64_t n = 0;
    for (; n + MOST_PARTS * LANES <= columns; n += MOST_PARTS * LANES)
      function(std::integral_constant<int64_t, MOST_PARTS>(), place, n);
    switch ((columns - n) / LANES) {
      case 1: function(std::integral_constant<int64_t, 1>(), place, n); break;
      case 2: function(std::integral_constant<int64_t, 2>(), place, n); break;
      case 3: function(std::integral_constant<int64_t, 3>(), place, n); break;
      default: break;
    }
  }
}

// Runs `function(first, count, inputs, others)` for blocks of the tiles [begin, end): inputs [16, WINOGRAD_BLOCK, in]
// are transformed, others [16, WINOGRAD_BLOCK, out] are scratch memory.
template <typename Function>
void each_block(const float* x, const Winograd& op, int64_t begin, int64_t end, float* scratch, Function function) {
  float* others = scratch + PLACES * WINOGRAD_BLOCK * op.in;
  for (int64_t first = begin; first < end; first += WINOGRAD_BLOCK) {
    const int64_t count = end - first < WINOGRAD_BLOCK ? end - first : WINOGRAD_BLOCK;
    transform_inputs(x, op, first, count, scratch);
    function(first, count, scratch, others);
  }
}

}  // namespace

bool winograd_exists() { return true; }

void winograd_filters(const float* taps, int64_t size, float* out) {
  for (int64_t i = 0; i < size; i += LANES) {
    Vector g[3][3], half[4][3];
    for (int a = 0; a < 3; ++a)
      for (int b = 0; b < 3; ++b) g[a][b] = load_vector(taps + (3 * a + b) * size + i);
    for (int b = 0; b < 3; ++b) {
      half[0][b] = g[0][b];
      half[1][b] = 0.5f * (g[0][b] + g[1][b] + g[2][b]);
      half[2][b] = 0.5f * (g[0][b] - g[1][b] + g[2][b]);
      half[3][b] = g[2][b];
    }
    for (int a = 0; a < 4; ++a) {
      float* to = out + 4 * a * size + i;
      store_vector(to, half[a][0]);
      store_vector(to + size, 0.5f * (half[a][0] + half[a][1] + half[a][2]));
      store_vector(to + 2 * size, 0.5f * (half[a][0] - half[a][1] + half[a][2]));
      store_vector(to + 3 * size, half[a][2]);
    }
  }
}

void winograd_filters_backward(const float* grad, int64_t size, float* taps) {
  for (int64_t i = 0; i < size; i += LANES) {
    Vector half[3][4];
    for (int b = 0; b < 4; ++b) {
      const Vector u[4] = {load_vector(grad + b * size + i), load_vector(grad + (4 + b) * size + i),
                           load_vector(grad + (8 + b) * size + i), load_vector(grad + (12 + b) * size + i)};
      half[0][b] = u[0] + 0.5f * (u[1] + u[2]);
      half[1][b] = 0.5f * (u[1] - u[2]);
      half[2][b] = 0.5f * (u[1] + u[2]) + u[3];
    }
    for (int a = 0; a < 3; ++a) {
      float* to = taps + 3 * a * size + i;
      store_vector(to, half[a][0] + 0.5f * (half[a][1] + half[a][2]));
      store_vector(to + size, 0.5f * (half[a][1] - half[a][2]));
      store_vector(to + 2 * size, 0.5f * (half[a][1] + half[a][2]) + half[a][3]);
    }
  }
}

int64_t winograd_scratch(const Winograd& op) { return PLACES * WINOGRAD_BLOCK * (op.in + op.out); }

void winograd_forward(const float* x, const float* filters, const Winograd& op, int64_t begin, int64_t end, float* y,
                      float* scratch) {
  each_block(x, op, begin, end, scratch, [&](int64_t first, int64_t count, const float* inputs, float* outputs) {
    each_product(op.out, [&](auto parts, int64_t place, int64_t n) {
      product<parts()>(inputs + place * WINOGRAD_BLOCK * op.in, filters + place * op.in * op.out + n,
                       outputs + place * WINOGRAD_BLOCK * op.out + n, count, op.in, op.out);
    });
    transform_outputs(outputs, op, first, count, y);
  });
}

void winograd_weights(const float* x, const float* grad, const Winograd& op, int64_t begin, int64_t end, float* filters,
                      float* scratch) {
  each_block(x, op, begin, end, scratch, [&](int64_t first, int64_t count, const float* inputs, float* grads) {
    spread_outputs(grad, op, first, count, grads);
    each_product(op.out, [&](auto parts, int64_t place, int64_t n) {
      outer<parts()>(inputs + place * WINOGRAD_BLOCK * op.in, grads + place * WINOGRAD_BLOCK * op.out + n,
                     filters + place * op.in * op.out + n, count, op.in, op.out);
    });
  });
}

#else

bool winograd_exists() { return false; }
void winograd_filters(const float*, int64_t, float*) {}
void winograd_filters_backward(const float*, int64_t, float*) {}
int64_t winograd_scratch(const Winograd&) { return 0; }
void winograd_forward(const float*, const float*, const Winograd&, int64_t, int64_t, float*, float*) {}
void winograd_weights(const float*, const float*, const Winograd&, int64_t, int64_t, float*, float*) {}

#endif

}  // namespace threedgp
