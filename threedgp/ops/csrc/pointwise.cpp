// Bias, noise, modulation, activation, gain and clamp in one pass over the memory, forwards and backwards.
#include "kernels.h"

namespace threedgp {

namespace {

constexpr int64_t GROUP = 256;  // channels of several pixels handled as one vector when there is no noise

// Per-channel values repeated so that one loop covers `repeat` pixels.
struct Repeated {
  float scale[GROUP], bias[GROUP];
  int64_t length, repeat;

  Repeated(const Pointwise& op, int64_t channels) {
    repeat = channels < 64 ? 64 / channels : 1;
    length = repeat * channels;
    for (int64_t r = 0; r < repeat; ++r)
      for (int64_t c = 0; c < channels; ++c) {
        scale[r * channels + c] = op.scale ? op.scale[c] : 1.0f;
        bias[r * channels + c] = op.bias ? op.bias[c] : 0.0f;
      }
  }
};

inline float limit(float value, float clamp) {
  // Comparisons keep NaN, unlike fmin and fmax.
  return value > clamp ? clamp : (value < -clamp ? -clamp : value);
}

template <typename T>
void forward_span(const T* x, T* y, const float* scale, const float* bias, float offset, int64_t length,
                  const Pointwise& op) {
  const float alpha = op.alpha, gain = op.gain, clamp = op.clamp < 0 ? INFINITY : op.clamp;
#pragma omp simd
  for (int64_t i = 0; i < length; ++i) {
    float value = load(x[i]) * scale[i] + (bias[i] + offset);
    value = value > 0.0f ? value : value * alpha;
    store(&y[i], limit(value * gain, clamp));
  }
}

template <bool WITH_X, bool WITH_NOISE, typename T>
float backward_span(const T* grad, const T* y, const T* x, T* grad_x, const float* scale, float* sum_scale,
                    float* sum_bias, int64_t length, const Pointwise& op) {
  const float positive = op.gain, negative = op.gain * op.alpha, clamp = op.clamp < 0 ? INFINITY : op.clamp;
  float total = 0.0f;
#pragma omp simd reduction(+ : total)
  for (int64_t i = 0; i < length; ++i) {
    float out = load(y[i]);
    float slope = out > 0.0f ? positive : negative;
    slope = (out >= clamp || out <= -clamp) ? 0.0f : slope;
    float value = load(grad[i]) * slope;
    sum_bias[i] += value;
    if (WITH_X) sum_scale[i] += value * load(x[i]);
    if (WITH_NOISE) total += value;
    store(&grad_x[i], value * scale[i]);
  }
  return total;
}

}  // namespace

template <typename T>
void pointwise_forward(const T* x, const float* noise, T* y, int64_t pixels, int64_t channels, const Pointwise& op) {
  if (noise || channels > GROUP) {
    for (int64_t p = 0; p < pixels; ++p) {
      const T* from = x + p * channels;
      T* to = y + p * channels;
      float offset = noise ? noise[p] : 0.0f;
      for (int64_t c = 0; c < channels; c += GROUP) {
        int64_t length = channels - c < GROUP ? channels - c : GROUP;
        float ones[GROUP], zeros[GROUP];
        const float *scale = op.scale ? op.scale + c : ones, *bias = op.bias ? op.bias + c : zeros;
        if (!op.scale)
          for (int64_t i = 0; i < length; ++i) ones[i] = 1.0f;
        if (!op.bias)
          for (int64_t i = 0; i < length; ++i) zeros[i] = 0.0f;
        forward_span(from + c, to + c, scale, bias, offset, length, op);
      }
    }
    return;
  }
  const Repeated values(op, channels);
  int64_t total = pixels * channels, i = 0;
  for (; i + values.length <= total; i += values.length)
    forward_span(x + i, y + i, values.scale, values.bias, 0.0f, values.length, op);
  if (i < total) forward_span(x + i, y + i, values.scale, values.bias, 0.0f, total - i, op);
}

template <typename T>
void pointwise_backward(const T* grad, const T* y, const T* x, T* grad_x, float* grad_scale, float* grad_bias,
                        float* grad_noise, int64_t pixels, int64_t channels, const Pointwise& op) {
  for (int64_t c = 0; c < channels; ++c) grad_bias[c] = 0.0f;
  if (grad_scale)
    for (int64_t c = 0; c < channels; ++c) grad_scale[c] = 0.0f;
  if (channels > GROUP) {
    for (int64_t p = 0; p < pixels; ++p) {
      float total = 0.0f;
      for (int64_t c = 0; c < channels; c += GROUP) {
        int64_t length = channels - c < GROUP ? channels - c : GROUP, at = p * channels + c;
        float ones[GROUP];
        const float* scale = op.scale ? op.scale + c : ones;
        if (!op.scale)
          for (int64_t i = 0; i < length; ++i) ones[i] = 1.0f;
        if (grad_scale)
          total += backward_span<true, true>(grad + at, y + at, x + at, grad_x + at, scale, grad_scale + c,
                                             grad_bias + c, length, op);
        else
          total += backward_span<false, true>(grad + at, y + at, static_cast<const T*>(nullptr), grad_x + at, scale,
                                              static_cast<float*>(nullptr), grad_bias + c, length, op);
      }
      if (grad_noise) grad_noise[p] = total;
    }
    return;
  }
  const Repeated values(op, channels);
  float sum_scale[GROUP] = {0}, sum_bias[GROUP] = {0};
  const int64_t step = grad_noise ? channels : values.length, total = pixels * channels;
  for (int64_t i = 0; i < total; i += step) {
    int64_t length = total - i < step ? total - i : step;
    if (grad_noise)
      grad_noise[i / channels] =
          grad_scale ? backward_span<true, true>(grad + i, y + i, x + i, grad_x + i, values.scale, sum_scale, sum_bias,
                                                 length, op)
                     : backward_span<false, true>(grad + i, y + i, x, grad_x + i, values.scale, sum_scale, sum_bias,
                                                  length, op);
    else if (grad_scale)
      backward_span<true, false>(grad + i, y + i, x + i, grad_x + i, values.scale, sum_scale, sum_bias, length, op);
    else
      backward_span<false, false>(grad + i, y + i, x, grad_x + i, values.scale, sum_scale, sum_bias, length, op);
  }
  for (int64_t i = 0; i < values.length; ++i) {
    grad_bias[i % channels] += sum_bias[i];
    if (grad_scale) grad_scale[i % channels] += sum_scale[i];
  }
}

#define INSTANTIATE(T)                                                                                               \
  template void pointwise_forward<T>(const T*, const float*, T*, int64_t, int64_t, const Pointwise&);                \
  template void pointwise_backward<T>(const T*, const T*, const T*, T*, float*, float*, float*, int64_t, int64_t,    \
                                      const Pointwise&);
INSTANTIATE(float)
INSTANTIATE(BFloat16)

}  // namespace threedgp
