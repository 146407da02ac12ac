// Kernels of the native CPU operations, free of any framework: plain pointers, channel-last layout, one range of work a
// call. The caller allocates, splits the work among threads and adds up partial sums in a fixed order, so results do
// not depend on the number of threads.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace threedgp {

// bfloat16 storage; all arithmetic is float.
struct BFloat16 {
  uint16_t bits;
};

inline float load(float value) { return value; }

inline float load(BFloat16 value) {
  uint32_t wide = static_cast<uint32_t>(value.bits) << 16;
  float result;
  std::memcpy(&result, &wide, sizeof(result));
  return result;
}

inline void store(float* target, float value) { *target = value; }

inline void store(BFloat16* target, float value) {
  uint32_t wide;
  std::memcpy(&wide, &value, sizeof(wide));
  // Round to nearest even; NaN stays NaN.
  uint32_t rounded = (wide + 0x7fffu + ((wide >> 16) & 1u)) >> 16;
  target->bits = static_cast<uint16_t>((wide & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded);
}

// e^x to about one unit in the last place, 0 below -87 and infinite above 88.7; written so that loops over it vectorise.
inline float exponential(float x) {
  float clipped = x < -87.0f ? -87.0f : (x > 89.0f ? 89.0f : x);
  float n = std::nearbyintf(clipped * 1.44269504088896341f);
  float r = clipped - n * 0.693359375f + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  float value = p * r * r + r + 1.0f;
  int32_t half = static_cast<int32_t>(n) / 2, rest = static_cast<int32_t>(n) - half;
  int32_t first_bits = (half + 127) << 23, second_bits = (rest + 127) << 23;
  float first, second;
  std::memcpy(&first, &first_bits, sizeof(first));
  std::memcpy(&second, &second_bits, sizeof(second));
  value = value * first * second;
  value = x < -87.0f ? 0.0f : value;
  return x == x ? value : x;
}

// ln(x) for positive normal x, to about two units in the last place.
inline float logarithm(float x) {
  int32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  int32_t exponent = ((bits - 0x3f3504f3) >> 23);
  int32_t mantissa_bits = bits - (exponent << 23);
  float m;
  std::memcpy(&m, &mantissa_bits, sizeof(m));  // in [sqrt(1/2), sqrt(2))
  float f = m - 1.0f, s = f / (2.0f + f), z = s * s;
  float p = 0.14798198f;
  p = p * z + 0.15313837f;
  p = p * z + 0.18183573f;
  p = p * z + 0.22222198f;
  p = p * z + 0.28571429f;
  p = p * z + 0.4f;
  p = p * z + 0.66666667f;
  float value = 2.0f * s + s * z * p;
  value = value + static_cast<float>(exponent) * 0.693147180559945f;
  return x == x ? value : x;
}

// ---------------------------------------------------------------------------------------------------- pointwise.cpp

// y = clamp(gain * leaky_relu(x * scale + noise + bias)). Null pointers leave a step out; clamp < 0 does not clamp.
struct Pointwise {
  const float* scale;  // [channels]
  const float* bias;   // [channels]
  float alpha, gain, clamp;
};

template <typename T>
void pointwise_forward(const T* x, const float* noise, T* y, int64_t pixels, int64_t channels, const Pointwise& op);

// grad_x, and sums over the pixels: grad_scale and grad_bias [channels]; grad_noise [pixels]. x is only read for
// grad_scale, y only for the slope of the activation and the clamp.
template <typename T>
void pointwise_backward(const T* grad, const T* y, const T* x, T* grad_x, float* grad_scale, float* grad_bias,
                        float* grad_noise, int64_t pixels, int64_t channels, const Pointwise& op);

// ----------------------------------------------------------------------------------------------------- winograd.cpp

constexpr int64_t WINOGRAD_CHANNELS = 16;  // channels of inputs and outputs come in multiples of it
constexpr int64_t WINOGRAD_BLOCK = 24;     // tiles of 2x2 outputs that are worked on together
constexpr int64_t WINOGRAD_MOST = 1 << 14; // product of channels up to which the filters stay in the cache
constexpr int64_t WINOGRAD_LEAST = 64;     // tiles below which the transform of the filters costs too much

// Images [images, height, width, channels] with even sides; 3x3 taps, one pixel of padding.
struct Winograd {
  int64_t height, width, in, out;
};

bool winograd_exists();  // compiled for a processor that gains by it

// taps [3, 3, size] -> filters [16, size], and the transpose of that.
void winograd_filters(const float* taps, int64_t size, float* filters);
void winograd_filters_backward(const float* grad, int64_t size, float* taps);

int64_t winograd_scratch(const Winograd& op);

// Tiles [begin, end) of all images of y, from filters [16, in, out].
void winograd_forward(const float* x, const float* filters, const Winograd& op, int64_t begin, int64_t end, float* y,
                      float* scratch);

// Adds the share of tiles [begin, end) to the gradient of the filters, [16, in, out].
void winograd_weights(const float* x, const float* grad, const Winograd& op, int64_t begin, int64_t end, float* filters,
                      float* scratch);

// ---------------------------------------------------------------------------------------------------------- fir.cpp

struct Fir {
  const float *taps_x, *taps_y;  // correlated
  int64_t size_x, size_y, up_x, up_y, down_x, down_y, pad_x, pad_y;
  int64_t height, width, channels, out_height, out_width;
};

// Rows [begin, end) of y[o] = sum_k taps[k] * up(x)[o * down + k - pad], separable, of one [height, width, channels]
// image. scratch: (width + out_width) * channels floats.
template <typename T>
void fir_rows(const T* x, T* y, const Fir& op, int64_t begin, int64_t end, float* scratch);

// -------------------------------------------------------------------------------------------------------- field.cpp

// Planes of one sample, [height, width, 3, features]. Offsets are in floats.
struct Planes {
  const float* data;
  int64_t height, width, features;
};

// features_out [points, features]
void triplane_forward(const Planes& planes, const float* points, int64_t count, float* features_out);

// Adds to grad_planes the part of the planes in [first_plane, last_plane); writes grad_points [count, 3] if not null.
void triplane_backward(const Planes& planes, const float* points, const float* grad, int64_t count, float* grad_planes,
                       int64_t first_plane, int64_t last_plane, float* grad_points);

// Two-layer network: leaky_relu(x w1^T + b1) * gain w2^T + b2. Transposed copies are made by the caller.
struct Network {
  const float *w1, *w1_transposed, *b1;  // [hidden, features], [features, hidden], [hidden]
  const float *w2, *b2;                  // [outputs, hidden], [outputs]
  int64_t hidden, outputs;
  float alpha, gain;
};

constexpr int64_t FIELD_TILE = 32;

// Floats of scratch memory that the field functions need.
int64_t field_scratch(int64_t features, int64_t hidden);

void field_forward(const Planes& planes, const Network& net, const float* points, int64_t count, float* values,
                   float* scratch);

struct FieldGradients {
  float* planes;                // like the planes, added to; null: not wanted
  float* points;                // [count, 3]; null: not wanted
  float *w1, *b1, *w2, *b2;     // like the network's (w1 transposed: [features, hidden]), added to
};

void field_backward(const Planes& planes, const Network& net, const float* points, const float* grad, int64_t count,
                    const FieldGradients& out, float* scratch);

// -------------------------------------------------------------------------------------------------------- march.cpp

struct March {
  bool mip, relu, infinite, last_back;
  int64_t white_channels;
  float density_bias;
};

// Samples of rays; `stride` floats from one sample to the next.
struct Samples {
  const float *rgb, *sigma, *t;
  int64_t rgb_stride, sigma_stride, count;
};

// Composite rays [begin, end) of coarse and fine samples merged by distance. order [rays, coarse + fine] is written by
// the forward pass and read by the backward pass.
struct RayOutputs {
  float *color, *depth, *weight_sum, *passed;  // [rays, channels], [rays], [rays], [rays]
  int16_t* order;
};
struct RayGradients {
  const float *color, *depth, *weight_sum, *passed;
  const int16_t* order;
  float *rgb_coarse, *sigma_coarse, *rgb_fine, *sigma_fine;  // dense [rays, n, channels], [rays, n]
};
int64_t march_scratch(int64_t samples, int64_t channels);
void march_forward(const Samples& coarse, const Samples& fine, int64_t channels, const March& op, int64_t begin,
                   int64_t end, const RayOutputs& out, float* scratch);
void march_backward(const Samples& coarse, const Samples& fine, int64_t channels, const March& op, int64_t begin,
                    int64_t end, const RayGradients& grads, float* scratch);

// Second-pass positions of rays [begin, end) from coarse densities: s_fine [rays, fine].
void importance_rows(const float* sigma, int64_t sigma_stride, const float* s, const float* u, int64_t coarse,
                     int64_t fine, const March& op, int64_t begin, int64_t end, float* s_fine, float* scratch);

}  // namespace threedgp
