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

constexpr int64_t LANES = 16;  // rays that are marched side by side: value i of ray l is at [i * LANES + l]

// Working memory of LANES rays with n samples each, merged from both passes, and m <= n intervals.
struct Rays {
  int64_t n, m, channels;
  float *t, *sigma, *rgb;                      // samples in order; rgb [n, channels, LANES]
  float *step, *raw, *middle_t, *middle_rgb;   // intervals
  float *density, *slope, *decay, *alpha, *pass, *weight, *light;
  float *grad_weight, *grad_raw, *grad_rgb;    // backwards

  Rays(float* scratch, int64_t samples, int64_t c) : n(samples), m(samples), channels(c) {
    auto take = [&scratch](int64_t count) {
      float* start = scratch;
      scratch += count * LANES;
      return start;
    };
    t = take(n), sigma = take(n), rgb = take(n * c);
    step = take(n), raw = take(n), middle_t = take(n), middle_rgb = take(n * c);
    density = take(n), slope = take(n), decay = take(n), alpha = take(n), pass = take(n), weight = take(n);
    light = take(n + 1);
    grad_weight = take(n), grad_raw = take(n), grad_rgb = take(n * c);
  }
};

// Means of neighbouring samples; `width` values belong to one sample.
void neighbours(const float* values, float* means, int64_t n, int64_t width) {
  const int64_t inner = (n - 1) * width;
#pragma omp simd
  for (int64_t i = 0; i < inner; ++i) means[i] = (values[i] + values[i + width]) * 0.5f;
  std::memcpy(means + inner, values + inner, width * sizeof(float));
}

// Intervals from ordered samples.
void split(Rays& rays, const March& op) {
  const int64_t n = rays.n, inner = (n - 1) * LANES;
#pragma omp simd
  for (int64_t i = 0; i < inner; ++i) rays.step[i] = rays.t[i + LANES] - rays.t[i];
  for (int64_t i = inner; i < n * LANES; ++i) rays.step[i] = op.infinite ? INFINITE_STEP : LAST_STEP;
  if (op.mip) {
    neighbours(rays.sigma, rays.raw, n, LANES);
    neighbours(rays.t, rays.middle_t, n, LANES);
    neighbours(rays.rgb, rays.middle_rgb, n, rays.channels * LANES);
    rays.m = op.infinite ? n : n - 1;
  } else {
    std::memcpy(rays.raw, rays.sigma, n * LANES * sizeof(float));
    std::memcpy(rays.middle_t, rays.t, n * LANES * sizeof(float));
    std::memcpy(rays.middle_rgb, rays.rgb, n * rays.channels * LANES * sizeof(float));
    rays.m = n;
  }
}

// Weights of the intervals and, in sum [LANES], their sums.
void weigh(Rays& rays, const March& op, float* sum) {
  const int64_t total = rays.m * LANES;
  densities(rays.raw, rays.density, rays.slope, total, op.relu, op.mip ? op.density_bias : 0.0f);
#pragma omp simd
  for (int64_t i = 0; i < total; ++i) {
    const float depth = rays.density[i] * rays.step[i];
    const float decay = exponential(-depth);
    // 1 - e^-x by its series where the subtraction would lose digits.
    const float series = depth * (1.0f - depth * (0.5f - depth * (1.0f / 6.0f - depth * (1.0f / 24.0f))));
    rays.decay[i] = decay;
    rays.alpha[i] = depth < 0.05f ? series : 1.0f - decay;
    rays.pass[i] = decay + 1e-10f;
  }
  for (int64_t l = 0; l < LANES; ++l) rays.light[l] = 1.0f, sum[l] = 0.0f;
  for (int64_t i = 0; i < rays.m; ++i) {
    const float *alpha = rays.alpha + i * LANES, *pass = rays.pass + i * LANES, *light = rays.light + i * LANES;
    float *weight = rays.weight + i * LANES, *next = rays.light + (i + 1) * LANES;
#pragma omp simd
    for (int64_t l = 0; l < LANES; ++l) {
      weight[l] = alpha[l] * light[l];
      sum[l] += weight[l];
      next[l] = light[l] * pass[l];
    }
  }
}

// The transpose of `neighbours` for the first m means.
void spread_halves(const float* grad, float* values, int64_t n, int64_t m, int64_t width) {
  std::memset(values, 0, n * width * sizeof(float));
  for (int64_t i = 0; i < m; ++i) {
    const int64_t next = i + 1 < n ? i + 1 : i;
    for (int64_t k = 0; k < width; ++k) {
      values[i * width + k] += 0.5f * grad[i * width + k];
      values[next * width + k] += 0.5f * grad[i * width + k];
    }
  }
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

void collect(Rays& rays, const Samples& coarse, const Samples& fine, int64_t index, const int16_t* order,
             int64_t lane) {
  const int64_t channels = rays.channels;
  for (int64_t i = 0; i < rays.n; ++i) {
    const bool second = order[i] >= coarse.count;
    const Samples& from = second ? fine : coarse;
    const int64_t at = index * from.count + (second ? order[i] - coarse.count : order[i]);
    rays.t[i * LANES + lane] = from.t[at];
    rays.sigma[i * LANES + lane] = from.sigma[at * from.sigma_stride];
    for (int64_t c = 0; c < channels; ++c)
      rays.rgb[(i * channels + c) * LANES + lane] = from.rgb[at * from.rgb_stride + c];
  }
}

}  // namespace

int64_t march_scratch(int64_t samples, int64_t channels) { return LANES * (samples * (15 + 3 * channels) + 1); }

void march_forward(const Samples& coarse, const Samples& fine, int64_t channels, const March& op, int64_t begin,
                   int64_t end, const RayOutputs& out, float* scratch) {
  const int64_t n = coarse.count + fine.count;
  Rays rays(scratch, n, channels);
  for (int64_t first = begin; first < end; first += LANES) {
    const int64_t used = end - first < LANES ? end - first : LANES;
    for (int64_t l = 0; l < LANES; ++l) {
      const int64_t r = first + (l < used ? l : used - 1);
      int16_t* order = out.order + r * n;
      if (l < used)
        merge(coarse.t + r * coarse.count, coarse.count, fine.t + r * fine.count, fine.count, order);
      collect(rays, coarse, fine, r, order, l);
    }
    split(rays, op);
    float sum[LANES];
    weigh(rays, op, sum);
    const int64_t m = rays.m;
    float depth[LANES] = {0}, filled[LANES] = {0};
    if (op.last_back)
      for (int64_t l = 0; l < LANES; ++l) rays.weight[(m - 1) * LANES + l] += 1.0f - sum[l];
    for (int64_t i = 0; i < m; ++i) {
      const float *weight = rays.weight + i * LANES, *t = rays.middle_t + i * LANES;
#pragma omp simd
      for (int64_t l = 0; l < LANES; ++l) {
        depth[l] += weight[l] * t[l];
        filled[l] += weight[l];
      }
    }
    for (int64_t c = 0; c < channels; ++c) {
      float color[LANES];
      for (int64_t l = 0; l < LANES; ++l) color[l] = c < op.white_channels ? 1.0f - sum[l] : 0.0f;
      for (int64_t i = 0; i < m; ++i) {
        const float *weight = rays.weight + i * LANES, *rgb = rays.middle_rgb + (i * channels + c) * LANES;
#pragma omp simd
        for (int64_t l = 0; l < LANES; ++l) color[l] += weight[l] * rgb[l];
      }
      for (int64_t l = 0; l < used; ++l) out.color[(first + l) * channels + c] = op.mip ? 2 * color[l] - 1 : color[l];
    }
    for (int64_t l = 0; l < used; ++l) {
      out.depth[first + l] = depth[l];
      out.weight_sum[first + l] = filled[l];
      out.passed[first + l] = rays.light[m * LANES + l];
    }
  }
}

void march_backward(const Samples& coarse, const Samples& fine, int64_t channels, const March& op, int64_t begin,
                    int64_t end, const RayGradients& grads, float* scratch) {
  const int64_t n = coarse.count + fine.count;
  const float scale = op.mip ? 2.0f : 1.0f;
  Rays rays(scratch, n, channels);
  for (int64_t first = begin; first < end; first += LANES) {
    const int64_t used = end - first < LANES ? end - first : LANES;
    float grad_depth[LANES], grad_sum[LANES], grad_light[LANES];
    for (int64_t l = 0; l < LANES; ++l) {
      const int64_t r = first + (l < used ? l : used - 1);
      collect(rays, coarse, fine, r, grads.order + r * n, l);
      grad_depth[l] = grads.depth[r], grad_sum[l] = grads.weight_sum[r], grad_light[l] = grads.passed[r];
    }
    split(rays, op);
    float sum[LANES], missing[LANES] = {0};
    weigh(rays, op, sum);
    const int64_t m = rays.m;
    if (op.last_back)
      for (int64_t l = 0; l < LANES; ++l) rays.weight[(m - 1) * LANES + l] += 1.0f - sum[l];
    for (int64_t i = 0; i < m; ++i) {
      const float* t = rays.middle_t + i * LANES;
      float* grad_weight = rays.grad_weight + i * LANES;
#pragma omp simd
      for (int64_t l = 0; l < LANES; ++l) grad_weight[l] = grad_depth[l] * t[l] + grad_sum[l];
    }
    for (int64_t c = 0; c < channels; ++c) {
      float grad_color[LANES];
      for (int64_t l = 0; l < LANES; ++l)
        grad_color[l] = scale * grads.color[(first + (l < used ? l : used - 1)) * channels + c];
      if (c < op.white_channels)
        for (int64_t l = 0; l < LANES; ++l) missing[l] += grad_color[l];
      for (int64_t i = 0; i < m; ++i) {
        const float* weight = rays.weight + i * LANES;
        float *rgb = rays.middle_rgb + (i * channels + c) * LANES, *grad_weight = rays.grad_weight + i * LANES;
#pragma omp simd
        for (int64_t l = 0; l < LANES; ++l) {
          grad_weight[l] += grad_color[l] * rgb[l];
          rgb[l] = grad_color[l] * weight[l];  // from here on its gradient
        }
      }
    }
    // What the missing weight, 1 - sum, is given to.
    if (op.last_back)
      for (int64_t l = 0; l < LANES; ++l) missing[l] += rays.grad_weight[(m - 1) * LANES + l];
    for (int64_t i = m - 1; i >= 0; --i) {
      const int64_t at = i * LANES;
#pragma omp simd
      for (int64_t l = 0; l < LANES; ++l) {
        const float g = rays.grad_weight[at + l] - missing[l];
        // d alpha = decay d(depth), d pass = -decay d(depth)
        const float optical = rays.decay[at + l] * (g - grad_light[l]) * rays.light[at + l];
        rays.grad_raw[at + l] = optical * rays.step[at + l] * rays.slope[at + l];
        grad_light[l] = g * rays.alpha[at + l] + grad_light[l] * rays.pass[at + l];
      }
    }
    float *grad_sigma = rays.grad_raw, *grad_rgb = rays.middle_rgb;
    if (op.mip) {
      grad_sigma = rays.density, grad_rgb = rays.grad_rgb;  // the densities are no longer needed
      spread_halves(rays.grad_raw, grad_sigma, n, m, LANES);
      spread_halves(rays.middle_rgb, grad_rgb, n, m, channels * LANES);
    }
    for (int64_t l = 0; l < used; ++l) {
      const int64_t r = first + l;
      const int16_t* order = grads.order + r * n;
      for (int64_t i = 0; i < n; ++i) {
        const bool second = order[i] >= coarse.count;
        const int64_t at = second ? r * fine.count + order[i] - coarse.count : r * coarse.count + order[i];
        (second ? grads.sigma_fine : grads.sigma_coarse)[at] = grad_sigma[i * LANES + l];
        float* target = (second ? grads.rgb_fine : grads.rgb_coarse) + at * channels;
        for (int64_t c = 0; c < channels; ++c) target[c] = grad_rgb[(i * channels + c) * LANES + l];
      }
    }
  }
}

void importance_rows(const float* sigma, int64_t sigma_stride, const float* s, const float* u, int64_t coarse,
                     int64_t fine, const March& op, int64_t begin, int64_t end, float* s_fine, float* scratch) {
  Rays rays(scratch, coarse, 0);
  float* cdf = scratch + march_scratch(coarse, 0);
  for (int64_t first = begin; first < end; first += LANES) {
    const int64_t used = end - first < LANES ? end - first : LANES;
    for (int64_t l = 0; l < LANES; ++l) {
      const int64_t r = first + (l < used ? l : used - 1);
      for (int64_t i = 0; i < coarse; ++i) {
        rays.t[i * LANES + l] = s[r * coarse + i];
        rays.sigma[i * LANES + l] = sigma[(r * coarse + i) * sigma_stride];
      }
    }
    split(rays, op);
    float sum[LANES];
    weigh(rays, op, sum);
    const int64_t m = rays.m, bins = m - 2;
    // The intervals between middles of neighbours: all but the first and last weight.
    float total[LANES] = {0};
    for (int64_t i = 1; i <= bins; ++i) {
      const float *weight = rays.weight + i * LANES, *before = weight - LANES, *after = weight + LANES;
      float* mass = rays.grad_weight + i * LANES;
#pragma omp simd
      for (int64_t l = 0; l < LANES; ++l) {
        const float left = before[l] > weight[l] ? before[l] : weight[l];
        const float right = after[l] > weight[l] ? after[l] : weight[l];
        mass[l] = (op.mip ? (left + right) * 0.5f + 0.01f : weight[l] + 1e-5f) + 1e-5f;
        total[l] += mass[l];
      }
    }
    for (int64_t l = 0; l < used; ++l) {
      const int64_t r = first + l;
      const float* edge_of = s + r * coarse;
      const double share = 1.0 / total[l];
      double running = 0.0;
      cdf[0] = 0.0f;
      for (int64_t i = 0; i < bins; ++i)
        cdf[i + 1] = static_cast<float>(running += share * rays.grad_weight[(i + 1) * LANES + l]);
      for (int64_t k = 0; k < fine; ++k) {
        const float level = u[r * fine + k];
        int64_t above = 0;
        while (above <= bins && cdf[above] <= level) ++above;
        const int64_t low = above > 0 ? above - 1 : 0, high = above < bins ? above : bins;
        const float left = (edge_of[low] + edge_of[low + 1]) / 2, right = (edge_of[high] + edge_of[high + 1]) / 2;
        float mass = cdf[high] - cdf[low];
        mass = mass < 1e-5f ? 1.0f : mass;
        s_fine[r * fine + k] = left + (level - cdf[low]) / mass * (right - left);
      }
    }
  }
}

}  // namespace threedgp
