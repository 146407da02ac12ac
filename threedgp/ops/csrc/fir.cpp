// Separable FIR resampling of channel-last images: rows first into a float line, then along the line.
#include "kernels.h"

namespace threedgp {

namespace {

template <typename T>
void combine_rows(const T* const* rows, const float* weights, int64_t count, float* out, int64_t length) {
  if (count == 0) {
    std::memset(out, 0, length * sizeof(float));
    return;
  }
  int64_t k = 0;
  if (count == 1) {
    const T* a = rows[0];
    const float wa = weights[0];
#pragma omp simd
    for (int64_t i = 0; i < length; ++i) out[i] = wa * load(a[i]);
    return;
  }
  for (; k + 2 <= count; k += 2) {
    const T *a = rows[k], *b = rows[k + 1];
    const float wa = weights[k], wb = weights[k + 1];
    if (k == 0) {
#pragma omp simd
      for (int64_t i = 0; i < length; ++i) out[i] = wa * load(a[i]) + wb * load(b[i]);
    } else {
#pragma omp simd
      for (int64_t i = 0; i < length; ++i) out[i] += wa * load(a[i]) + wb * load(b[i]);
    }
  }
  if (k < count) {
    const T* a = rows[k];
    const float wa = weights[k];
#pragma omp simd
    for (int64_t i = 0; i < length; ++i) out[i] += wa * load(a[i]);
  }
}

// Taps that meet a sample: index k with (base + k) a multiple of up inside [0, size * up).
struct Taps {
  int64_t first, last;  // k = first, first + up, ... < last
  Taps(int64_t base, int64_t taps, int64_t up, int64_t size) {
    first = base < 0 ? -base : (up - base % up) % up;  // -base: the sample 0
    last = size * up - base < taps ? size * up - base : taps;
  }
};

}  // namespace

template <typename T>
void fir_rows(const T* x, T* y, const Fir& op, int64_t begin, int64_t end, float* scratch) {
  const int64_t channels = op.channels, in_row = op.width * channels, out_row = op.out_width * channels;
  float *line = scratch, *result = scratch + in_row;
  constexpr int64_t MOST = 64;
  const T* rows[MOST];
  const float* parts[MOST];
  float weights[MOST];
  for (int64_t o = begin; o < end; ++o) {
    const int64_t base = o * op.down_y - op.pad_y;
    const Taps taps(base, op.size_y, op.up_y, op.height);
    int64_t count = 0;
    for (int64_t k = taps.first; k < taps.last; k += op.up_y, ++count) {
      rows[count] = x + (base + k) / op.up_y * in_row;
      weights[count] = op.taps_y[k];
    }
    combine_rows(rows, weights, count, line, in_row);

    if (op.up_x == 1 && op.down_x == 1) {
      // Neighbours are `channels` floats apart, so whole lines can be shifted and added.
      std::memset(result, 0, out_row * sizeof(float));
      for (int64_t k = 0; k < op.size_x; ++k) {
        const int64_t shift = k - op.pad_x;
        const int64_t from = shift < 0 ? -shift : 0;
        const int64_t to = op.width - shift < op.out_width ? op.width - shift : op.out_width;
        const float weight = op.taps_x[k];
        const float* source = line + shift * channels;
#pragma omp simd
        for (int64_t i = from * channels; i < to * channels; ++i) result[i] += weight * source[i];
      }
    } else {
      for (int64_t p = 0; p < op.out_width; ++p) {
        const int64_t base_x = p * op.down_x - op.pad_x;
        const Taps taps_x(base_x, op.size_x, op.up_x, op.width);
        int64_t used = 0;
        for (int64_t k = taps_x.first; k < taps_x.last; k += op.up_x, ++used) {
          parts[used] = line + (base_x + k) / op.up_x * channels;
          weights[used] = op.taps_x[k];
        }
        float* target = result + p * channels;
        if (used == 4) {
          const float *a = parts[0], *b = parts[1], *c = parts[2], *d = parts[3];
          const float wa = weights[0], wb = weights[1], wc = weights[2], wd = weights[3];
#pragma omp simd
          for (int64_t i = 0; i < channels; ++i) target[i] = (wa * a[i] + wb * b[i]) + (wc * c[i] + wd * d[i]);
        } else {
          combine_rows(parts, weights, used, target, channels);
        }
      }
    }
    T* out = y + o * out_row;
#pragma omp simd
    for (int64_t i = 0; i < out_row; ++i) store(&out[i], result[i]);
  }
}

template void fir_rows<float>(const float*, float*, const Fir&, int64_t, int64_t, float*);
template void fir_rows<BFloat16>(const BFloat16*, BFloat16*, const Fir&, int64_t, int64_t, float*);

}  // namespace threedgp
