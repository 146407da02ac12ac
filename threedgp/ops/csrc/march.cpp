// Volume rendering along rays: second-pass sampling, merging of both passes, compositing and its derivative.
#include "kernels.h"

namespace threedgp {

namespace {

constexpr float INFINITE_STEP = 1e10f, LAST_STEP = 1e-3f, LINEAR_FROM = 30.0f;

// Density and its derivative from raw values.
inline void densities(const float* raw, float* density, float* slope, int64_t count, bool relu, float bias) {
  if (relu) {
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) {
      density[i] = raw[i] > 0.0f ? raw[i] : (raw[i] == raw[i] ? 0.0f : raw[i]);
      slope[i] = raw[i] > 0.0f ? 1.0f : 0.0f;
    }
    return;
  }
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) {
    // softplus(x) = max(x, 0) + log1p(e^-|x|)
    const float x = raw[i] + bias;
    const float size = x < 0.0f ? -x : x;
    const float e = exponential(-size);
    // log1p(e) through log(1 + e) loses what 1 + e rounds away; e * log(u) / (u - 1) restores it.
    const float u = 1.0f + e;
    const float log1p = u == 1.0f ? e : logarithm(u) * (e / (u - 1.0f));
    const float soft = (x > 0.0f ? x : 0.0f) + log1p;
    const float sigmoid = x >= 0.0f ? 1.0f / u : e / u;
    density[i] = x > LINEAR_FROM ? x : (x == x ? soft : x);
    slope[i] = x > LINEAR_FROM ? 1.0f : sigmoid;
  }
}

// Working memory of one ray with n samples merged from both passes, and m <= n intervals.
struct Ray {
  int64_t n, m;
  float *t, *sigma, *rgb;                                                    // samples in order
  float *step, *raw, *middle_t, *middle_rgb;                                 // intervals
  float *density, *slope, *decay, *alpha, *pass, *weight;                    // march
  float *light;                                                              // [m + 1] transmittance
  float *grad_weight, *grad_raw, *grad_rgb;                                  // backwards

  Ray(float* scratch, int64_t samples, int64_t channels) {
    auto take = [&scratch](int64_t count) {
      float* start = scratch;
      scratch += count;
      return start;
    };
    n = m = samples;
    t = take(n), sigma = take(n), rgb = take(n * channels);
    step = take(n), raw = take(n), middle_t = take(n), middle_rgb = take(n * channels);
    density = take(n), slope = take(n), decay = take(n), alpha = take(n), pass = take(n), weight = take(n);
    light = take(n + 1);
    grad_weight = take(n), grad_raw = take(n), grad_rgb = take(n * channels);
  }
};

// Intervals from ordered samples.
void split(Ray& ray, int64_t channels, const March& op) {
  const int64_t n = ray.n;
  for (int64_t i = 0; i + 1 < n; ++i) ray.step[i] = ray.t[i + 1] - ray.t[i];
  ray.step[n - 1] = op.infinite || op.mip ? INFINITE_STEP : LAST_STEP;
  if (!op.mip) {
    std::memcpy(ray.raw, ray.sigma, n * sizeof(float));
    std::memcpy(ray.middle_t, ray.t, n * sizeof(float));
    std::memcpy(ray.middle_rgb, ray.rgb, n * channels * sizeof(float));
    ray.m = n;
    return;
  }
  for (int64_t i = 0; i + 1 < n; ++i) {
    ray.raw[i] = (ray.sigma[i] + ray.sigma[i + 1]) * 0.5f;
    ray.middle_t[i] = (ray.t[i] + ray.t[i + 1]) * 0.5f;
    for (int64_t c = 0; c < channels; ++c)
      ray.middle_rgb[i * channels + c] = (ray.rgb[i * channels + c] + ray.rgb[(i + 1) * channels + c]) * 0.5f;
  }
  ray.raw[n - 1] = ray.sigma[n - 1];
  ray.middle_t[n - 1] = ray.t[n - 1];
  for (int64_t c = 0; c < channels; ++c) ray.middle_rgb[(n - 1) * channels + c] = ray.rgb[(n - 1) * channels + c];
  ray.m = op.infinite ? n : n - 1;
}

// Weights of the intervals; returns their sum.
float weigh(Ray& ray, const March& op) {
  const int64_t m = ray.m;
  densities(ray.raw, ray.density, ray.slope, m, op.relu, op.mip ? op.density_bias : 0.0f);
#pragma omp simd
  for (int64_t i = 0; i < m; ++i) {
    const float depth = ray.density[i] * ray.step[i];
    const float decay = exponential(-depth);
    // 1 - e^-x by its series where the subtraction would lose digits.
    const float series = depth * (1.0f - depth * (0.5f - depth * (1.0f / 6.0f - depth * (1.0f / 24.0f))));
    ray.decay[i] = decay;
    ray.alpha[i] = depth < 0.05f ? series : 1.0f - decay;
    ray.pass[i] = decay + 1e-10f;
  }
  float light = 1.0f, sum = 0.0f;
  for (int64_t i = 0; i < m; ++i) {
    ray.light[i] = light;
    ray.weight[i] = ray.alpha[i] * light;
    sum += ray.weight[i];
    light *= ray.pass[i];
  }
  ray.light[m] = light;
  return sum;
}

// Order of all samples by distance: the fine ones sorted, then merged with the ascending coarse ones.
void merge(const float* coarse, int64_t n_coarse, const float* fine, int64_t n_fine, int16_t* order) {
  int16_t* sorted = order + n_coarse;  // the merge below reads ahead of what it writes
  for (int64_t i = 0; i < n_fine; ++i) {
    const float value = fine[i];
    int64_t j = i;
    for (; j > 0 && fine[sorted[j - 1]] > value; --j) sorted[j] = sorted[j - 1];
    sorted[j] = static_cast<int16_t>(i);
  }
  int64_t a = 0, b = 0, out = 0;
  while (a < n_coarse && b < n_fine) {
    const int16_t candidate = sorted[b];
    if (coarse[a] <= fine[candidate])
      order[out++] = static_cast<int16_t>(a++);
    else
      order[out++] = static_cast<int16_t>(n_coarse + candidate), ++b;
  }
  while (a < n_coarse) order[out++] = static_cast<int16_t>(a++);
  for (; b < n_fine; ++b) order[out++] = static_cast<int16_t>(n_coarse + sorted[b]);
}

void collect(Ray& ray, const Samples& coarse, const Samples& fine, int64_t channels, int64_t index,
             const int16_t* order) {
  for (int64_t i = 0; i < ray.n; ++i) {
    const bool second = order[i] >= coarse.count;
    const Samples& from = second ? fine : coarse;
    const int64_t at = index * from.count + (second ? order[i] - coarse.count : order[i]);
    ray.t[i] = from.t[at];
    ray.sigma[i] = from.sigma[at * from.sigma_stride];
    for (int64_t c = 0; c < channels; ++c) ray.rgb[i * channels + c] = from.rgb[at * from.rgb_stride + c];
  }
}

}  // namespace

int64_t march_scratch(int64_t samples, int64_t channels) { return samples * (15 + 3 * channels) + 1; }

void march_forward(const Samples& coarse, const Samples& fine, int64_t channels, const March& op, int64_t begin,
                   int64_t end, const RayOutputs& out, float* scratch) {
  Ray ray(scratch, coarse.count + fine.count, channels);
  for (int64_t r = begin; r < end; ++r) {
    int16_t* order = out.order + r * ray.n;
    merge(coarse.t + r * coarse.count, coarse.count, fine.t + r * fine.count, fine.count, order);
    collect(ray, coarse, fine, channels, r, order);
    split(ray, channels, op);
    const float sum = weigh(ray, op);
    out.passed[r] = ray.light[ray.m];
    if (op.last_back) ray.weight[ray.m - 1] += 1.0f - sum;
    float depth = 0.0f, filled = 0.0f;
    float* color = out.color + r * channels;
    for (int64_t c = 0; c < channels; ++c) color[c] = 0.0f;
    for (int64_t i = 0; i < ray.m; ++i) {
      depth += ray.weight[i] * ray.middle_t[i];
      filled += ray.weight[i];
      for (int64_t c = 0; c < channels; ++c) color[c] += ray.weight[i] * ray.middle_rgb[i * channels + c];
    }
    for (int64_t c = 0; c < op.white_channels; ++c) color[c] += 1.0f - sum;
    if (op.mip)
      for (int64_t c = 0; c < channels; ++c) color[c] = 2.0f * color[c] - 1.0f;
    out.depth[r] = depth;
    out.weight_sum[r] = filled;
  }
}

void march_backward(const Samples& coarse, const Samples& fine, int64_t channels, const March& op, int64_t begin,
                    int64_t end, const RayGradients& grads, float* scratch) {
  Ray ray(scratch, coarse.count + fine.count, channels);
  for (int64_t r = begin; r < end; ++r) {
    const int16_t* order = grads.order + r * ray.n;
    collect(ray, coarse, fine, channels, r, order);
    split(ray, channels, op);
    const float sum = weigh(ray, op);
    const int64_t m = ray.m;
    const float scale = op.mip ? 2.0f : 1.0f;
    const float* grad_color = grads.color + r * channels;
    const float grad_depth = grads.depth[r], grad_sum = grads.weight_sum[r];
    float white = 0.0f;
    for (int64_t c = 0; c < op.white_channels; ++c) white += scale * grad_color[c];
    for (int64_t i = 0; i < m; ++i) {
      float g = grad_depth * ray.middle_t[i] + grad_sum;
      const float weight = ray.weight[i] + (op.last_back && i == m - 1 ? 1.0f - sum : 0.0f);
      for (int64_t c = 0; c < channels; ++c) {
        g += scale * grad_color[c] * ray.middle_rgb[i * channels + c];
        ray.middle_rgb[i * channels + c] = scale * grad_color[c] * weight;  // from here on its gradient
      }
      ray.grad_weight[i] = g;
    }
    // What the missing weight, 1 - sum, is given to.
    const float missing = white + (op.last_back ? ray.grad_weight[m - 1] : 0.0f);
    float grad_light = grads.passed[r];
    for (int64_t i = m - 1; i >= 0; --i) {
      const float g = ray.grad_weight[i] - missing;
      // d alpha = decay d(depth), d pass = -decay d(depth)
      const float grad_optical = ray.decay[i] * (g - grad_light) * ray.light[i];
      ray.grad_raw[i] = grad_optical * ray.step[i] * ray.slope[i];
      grad_light = g * ray.alpha[i] + grad_light * ray.pass[i];
    }
    float *grad_sigma = ray.grad_raw, *grad_rgb = ray.middle_rgb;
    if (op.mip) {
      grad_sigma = ray.density, grad_rgb = ray.grad_rgb;  // the densities are no longer needed
      std::memset(grad_sigma, 0, ray.n * sizeof(float));
      std::memset(grad_rgb, 0, ray.n * channels * sizeof(float));
      for (int64_t i = 0; i < m; ++i) {
        const int64_t next = i + 1 < ray.n ? i + 1 : i;
        grad_sigma[i] += 0.5f * ray.grad_raw[i];
        grad_sigma[next] += 0.5f * ray.grad_raw[i];
        for (int64_t c = 0; c < channels; ++c) {
          grad_rgb[i * channels + c] += 0.5f * ray.middle_rgb[i * channels + c];
          grad_rgb[next * channels + c] += 0.5f * ray.middle_rgb[i * channels + c];
        }
      }
    }
    for (int64_t i = 0; i < ray.n; ++i) {
      const bool second = order[i] >= coarse.count;
      const int64_t at = second ? r * fine.count + order[i] - coarse.count : r * coarse.count + order[i];
      (second ? grads.sigma_fine : grads.sigma_coarse)[at] = grad_sigma[i];
      float* target = (second ? grads.rgb_fine : grads.rgb_coarse) + at * channels;
      for (int64_t c = 0; c < channels; ++c) target[c] = grad_rgb[i * channels + c];
    }
  }
}

void importance_rows(const float* sigma, int64_t sigma_stride, const float* s, const float* u, int64_t coarse,
                     int64_t fine, const March& op, int64_t begin, int64_t end, float* s_fine, float* scratch) {
  Ray ray(scratch, coarse, 0);
  float* cdf = scratch + march_scratch(coarse, 0);
  for (int64_t r = begin; r < end; ++r) {
    const float* edge_of = s + r * coarse;
    for (int64_t i = 0; i < coarse; ++i) {
      ray.t[i] = edge_of[i];
      ray.sigma[i] = sigma[(r * coarse + i) * sigma_stride];
    }
    split(ray, 0, op);
    const float sum = weigh(ray, op);
    const int64_t m = ray.m;
    float* weight = ray.weight;
    if (op.mip) {
      float* wide = ray.grad_weight;
      for (int64_t i = 0; i < m; ++i) {
        const float before = i > 0 && weight[i - 1] > weight[i] ? weight[i - 1] : weight[i];
        const float after = i + 1 < m && weight[i + 1] > weight[i] ? weight[i + 1] : weight[i];
        wide[i] = (before + after) * 0.5f + 0.01f;
      }
      weight = wide;
    } else {
      if (op.last_back) weight[m - 1] += 1.0f - sum;
      for (int64_t i = 0; i < m; ++i) weight[i] += 1e-5f;
    }
    // The intervals between middles of neighbours: all but the first and last weight.
    const int64_t bins = m - 2;
    weight += 1;
    float total = 0.0f;
    for (int64_t i = 0; i < bins; ++i) total += weight[i] += 1e-5f;
    double running = 0.0;
    cdf[0] = 0.0f;
    for (int64_t i = 0; i < bins; ++i) cdf[i + 1] = static_cast<float>(running += weight[i] / total);
    for (int64_t k = 0; k < fine; ++k) {
      const float level = u[r * fine + k];
      int64_t above = 0;
      for (int64_t i = 0; i <= bins; ++i) above += cdf[i] <= level;
      const int64_t low = above > 0 ? above - 1 : 0, high = above < bins ? above : bins;
      const float left = (edge_of[low] + edge_of[low + 1]) / 2, right = (edge_of[high] + edge_of[high + 1]) / 2;
      float mass = cdf[high] - cdf[low];
      mass = mass < 1e-5f ? 1.0f : mass;
      s_fine[r * fine + k] = left + (level - cdf[low]) / mass * (right - left);
    }
  }
}

}  // namespace threedgp
