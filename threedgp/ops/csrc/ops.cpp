// Binds the kernels to PyTorch: checks shapes, allocates results, and shares the work out among threads.
#include <ATen/Functions.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <tuple>
#include <vector>

#include "kernels.h"

namespace {

using at::Tensor;
using std::optional;
namespace k = threedgp;

constexpr int64_t WORK_PER_THREAD = 1 << 14;  // elements below which a second thread costs more than it saves
constexpr int64_t CHUNK = 1024;               // pixels whose sums are formed together
constexpr int64_t RAYS = 64;

const float* pointer(const optional<Tensor>& value) { return value ? value->const_data_ptr<float>() : nullptr; }

Tensor channels_last(const Tensor& x) { return x.contiguous(at::MemoryFormat::ChannelsLast); }

Tensor floats(const Tensor& x) { return x.to(at::kFloat).contiguous(); }

optional<Tensor> floats(const optional<Tensor>& x) { return x ? optional<Tensor>(floats(*x)) : optional<Tensor>(); }

template <typename Function>
void for_type(const Tensor& x, Function function) {
  if (x.scalar_type() == at::kFloat)
    function(float{});
  else if (x.scalar_type() == at::kBFloat16)
    function(k::BFloat16{});
  else
    TORCH_CHECK(false, "float32 or bfloat16 expected, not ", x.scalar_type());
}

template <typename T>
const T* data(const Tensor& x) {
  return static_cast<const T*>(x.const_data_ptr());
}
template <typename T>
T* mutable_data(Tensor& x) {
  return static_cast<T*>(x.mutable_data_ptr());
}

// Images are [B, C, H, W] stored channel-last, everything else [N, C] with N "pixels" of one "image".
struct Layout {
  int64_t images, pixels, channels;
  explicit Layout(const Tensor& x) {
    channels = x.size(x.dim() == 4 ? 1 : x.dim() - 1);
    images = x.dim() == 4 ? x.size(0) : 1;
    const int64_t area = images * channels;
    pixels = area ? x.numel() / area : 0;
  }
};

Tensor arrange(const Tensor& x) { return x.dim() == 4 ? channels_last(x) : x.contiguous(); }

struct Chunks {
  int64_t per_image, total;
  explicit Chunks(const Layout& layout) {
    per_image = std::max<int64_t>((layout.pixels + CHUNK - 1) / CHUNK, 1);
    total = layout.images * per_image;
  }
};

int64_t grain(const Layout& layout) {
  return std::max<int64_t>(WORK_PER_THREAD / std::max<int64_t>(std::min(CHUNK, layout.pixels) * layout.channels, 1), 1);
}

// x [B, C, H, W] or [..., C]; scale [B, C], bias [C], noise [B or 1, H * W].
Tensor pointwise(const Tensor& x_in, const optional<Tensor>& scale_in, const optional<Tensor>& bias_in,
                 const optional<Tensor>& noise_in, double alpha, double gain, double clamp) {
  const Tensor x = arrange(x_in);
  const auto scale = floats(scale_in), bias = floats(bias_in), noise = floats(noise_in);
  Tensor y = at::empty_like(x);
  const Layout layout(x);
  const Chunks chunks(layout);
  const int64_t noise_step = noise && noise->size(0) > 1 ? layout.pixels : 0;
  for_type(x, [&](auto type) {
    using T = decltype(type);
    const T* from = data<T>(x);
    T* to = mutable_data<T>(y);
    at::parallel_for(0, chunks.total, grain(layout), [&](int64_t begin, int64_t end) {
      for (int64_t chunk = begin; chunk < end; ++chunk) {
        const int64_t b = chunk / chunks.per_image, first = chunk % chunks.per_image * CHUNK;
        const int64_t count = std::min(CHUNK, layout.pixels - first);
        const k::Pointwise op{scale ? pointer(scale) + b * layout.channels : nullptr, pointer(bias),
                              static_cast<float>(alpha), static_cast<float>(gain), static_cast<float>(clamp)};
        const int64_t at = (b * layout.pixels + first) * layout.channels;
        k::pointwise_forward<T>(from + at, noise ? pointer(noise) + b * noise_step + first : nullptr, to + at, count,
                                layout.channels, op);
      }
    });
  });
  return y;
}

// Gradients of x, scale [B, C], bias [C] and noise [B, H * W]; empty tensors for those not wanted.
std::tuple<Tensor, Tensor, Tensor, Tensor> pointwise_backward(const Tensor& grad_in, const Tensor& y_in,
                                                              const optional<Tensor>& x_in,
                                                              const optional<Tensor>& scale_in, bool want_noise,
                                                              double alpha, double gain, double clamp) {
  const Tensor grad = arrange(grad_in), y = arrange(y_in);
  const auto x = x_in ? optional<Tensor>(arrange(*x_in)) : optional<Tensor>();
  const auto scale = floats(scale_in);
  TORCH_CHECK(y.sizes() == grad.sizes() && y.scalar_type() == grad.scalar_type(), "the gradient must be like y");
  const Layout layout(grad);
  const Chunks chunks(layout);
  const auto options = grad.options().dtype(at::kFloat).memory_format(at::MemoryFormat::Contiguous);
  Tensor grad_x = at::empty_like(grad);
  Tensor grad_bias = at::empty({layout.images, chunks.per_image, layout.channels}, options);
  Tensor grad_scale = x ? at::empty_like(grad_bias) : Tensor();
  Tensor grad_noise = want_noise ? at::empty({layout.images, layout.pixels}, options) : Tensor();
  for_type(grad, [&](auto type) {
    using T = decltype(type);
    const T *g = data<T>(grad), *out = data<T>(y), *in = x ? data<T>(*x) : nullptr;
    T* to = mutable_data<T>(grad_x);
    float* sums = grad_bias.mutable_data_ptr<float>();
    float* scale_sums = x ? grad_scale.mutable_data_ptr<float>() : nullptr;
    float* noise_to = want_noise ? grad_noise.mutable_data_ptr<float>() : nullptr;
    at::parallel_for(0, chunks.total, grain(layout), [&](int64_t begin, int64_t end) {
      for (int64_t chunk = begin; chunk < end; ++chunk) {
        const int64_t b = chunk / chunks.per_image, first = chunk % chunks.per_image * CHUNK;
        const int64_t count = std::min(CHUNK, layout.pixels - first);
        const k::Pointwise op{scale ? pointer(scale) + b * layout.channels : nullptr, nullptr,
                              static_cast<float>(alpha), static_cast<float>(gain), static_cast<float>(clamp)};
        const int64_t at = (b * layout.pixels + first) * layout.channels;
        k::pointwise_backward<T>(g + at, out + at, in ? in + at : nullptr, to + at,
                                 x ? scale_sums + chunk * layout.channels : nullptr, sums + chunk * layout.channels,
                                 want_noise ? noise_to + b * layout.pixels + first : nullptr, count, layout.channels,
                                 op);
      }
    });
  });
  return {grad_x, x ? grad_scale.sum(1) : Tensor(), grad_bias.sum(at::IntArrayRef({0, 1})), grad_noise};
}

// x [B, C, H, W] -> [B, C, out_height, out_width] with taps [n] along each axis, correlated.
Tensor fir(const Tensor& x_in, const Tensor& taps_x_in, const Tensor& taps_y_in, at::IntArrayRef up,
           at::IntArrayRef down, at::IntArrayRef pad, at::IntArrayRef size) {
  const Tensor x = channels_last(x_in), taps_x = floats(taps_x_in), taps_y = floats(taps_y_in);
  const int64_t batch = x.size(0), channels = x.size(1);
  Tensor y = at::empty({batch, channels, size[1], size[0]}, x.options().memory_format(at::MemoryFormat::ChannelsLast));
  const k::Fir op{taps_x.const_data_ptr<float>(), taps_y.const_data_ptr<float>(), taps_x.numel(), taps_y.numel(), up[0],
                  up[1], down[0], down[1], pad[0], pad[1], x.size(2), x.size(3), channels, size[1], size[0]};
  const int64_t image = x.size(2) * x.size(3) * channels, out_image = size[0] * size[1] * channels;
  constexpr int64_t ROWS = 8;
  const int64_t bands = (op.out_height + ROWS - 1) / ROWS;
  for_type(x, [&](auto type) {
    using T = decltype(type);
    const T* from = data<T>(x);
    T* to = mutable_data<T>(y);
    const int64_t band_work = std::max<int64_t>(ROWS * op.out_width * channels * 4, 1);
    at::parallel_for(0, batch * bands, std::max<int64_t>(WORK_PER_THREAD / band_work, 1), [&](int64_t begin, int64_t end) {
      std::vector<float> scratch((op.width + op.out_width) * channels);
      for (int64_t i = begin; i < end; ++i) {
        const int64_t b = i / bands, row = i % bands * ROWS;
        k::fir_rows<T>(from + b * image, to + b * out_image, op, row, std::min(row + ROWS, op.out_height),
                       scratch.data());
      }
    });
  });
  return y;
}

// planes [B, H, W, 3, F] contiguous.
k::Planes planes_of(const Tensor& planes, int64_t b) {
  const int64_t height = planes.size(1), width = planes.size(2), features = planes.size(4);
  return {planes.const_data_ptr<float>() + b * height * width * 3 * features, height, width, features};
}

constexpr int64_t POINTS = 512;  // of one piece of work

// planes [B, H, W, 3, F], points [B, M, 3] -> [B, M, F]
Tensor triplane(const Tensor& planes_in, const Tensor& points_in) {
  const Tensor planes = planes_in.contiguous(), points = points_in.contiguous();
  const int64_t batch = planes.size(0), count = points.size(1), features = planes.size(4);
  Tensor out = at::empty({batch, count, features}, planes.options());
  float* to = out.mutable_data_ptr<float>();
  const float* at_points = points.const_data_ptr<float>();
  const int64_t pieces = (count + POINTS - 1) / POINTS;
  at::parallel_for(0, batch * pieces, 2, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t b = i / pieces, first = i % pieces * POINTS;
      k::triplane_forward(planes_of(planes, b), at_points + (b * count + first) * 3, std::min(POINTS, count - first),
                          to + (b * count + first) * features);
    }
  });
  return out;
}

void spread_on_planes(const Tensor& planes, const Tensor& points, const Tensor& grad, Tensor& grad_planes) {
  // One thread owns a plane of a sample: no two ever write to the same place.
  const int64_t batch = planes.size(0), count = points.size(1), features = planes.size(4);
  const int64_t one = planes.numel() / std::max<int64_t>(batch, 1);
  at::parallel_for(0, batch * 3, count * features * 4 < WORK_PER_THREAD ? 3 : 1, [&](int64_t begin, int64_t end) {
    while (begin < end) {
      const int64_t b = begin / 3, first = begin % 3, last = std::min<int64_t>(3, first + end - begin);
      k::triplane_backward(planes_of(planes, b), points.const_data_ptr<float>() + b * count * 3,
                           grad.const_data_ptr<float>() + b * count * features, count,
                           grad_planes.mutable_data_ptr<float>() + b * one, first, last, nullptr);
      begin += last - first;
    }
  });
}

std::tuple<Tensor, Tensor> triplane_backward(const Tensor& grad_in, const Tensor& planes_in, const Tensor& points_in,
                                             bool want_planes, bool want_points) {
  const Tensor planes = planes_in.contiguous(), points = points_in.contiguous(), grad = floats(grad_in);
  const int64_t batch = planes.size(0), count = points.size(1), features = planes.size(4);
  Tensor grad_planes = want_planes ? at::zeros_like(planes) : Tensor();
  Tensor grad_points = want_points ? at::empty_like(points) : Tensor();
  if (want_planes) spread_on_planes(planes, points, grad, grad_planes);
  if (want_points) {
    float* to = grad_points.mutable_data_ptr<float>();
    const int64_t pieces = (count + POINTS - 1) / POINTS;
    at::parallel_for(0, batch * pieces, 2, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t b = i / pieces, first = i % pieces * POINTS, offset = b * count + first;
        k::triplane_backward(planes_of(planes, b), points.const_data_ptr<float>() + offset * 3,
                             grad.const_data_ptr<float>() + offset * features, std::min(POINTS, count - first), nullptr,
                             0, 3, to + offset * 3);
      }
    });
  }
  return {grad_planes, grad_points};
}

struct NetworkTensors {
  Tensor w1, w1_transposed, b1, w2, b2;
  k::Network net;
  NetworkTensors(const Tensor& w1_in, const Tensor& b1_in, const Tensor& w2_in, const Tensor& b2_in, double alpha,
                 double gain)
      : w1(floats(w1_in)), w1_transposed(w1.t().contiguous()), b1(floats(b1_in)), w2(floats(w2_in)), b2(floats(b2_in)) {
    net = {w1.const_data_ptr<float>(), w1_transposed.const_data_ptr<float>(), b1.const_data_ptr<float>(),
           w2.const_data_ptr<float>(), b2.const_data_ptr<float>(), w1.size(0), w2.size(0), static_cast<float>(alpha),
           static_cast<float>(gain)};
  }
};

// planes [B, H, W, 3, F], points [B, M, 3], w1 [hidden, F], w2 [outputs, hidden] -> [B, M, outputs]
Tensor field(const Tensor& planes_in, const Tensor& points_in, const Tensor& w1, const Tensor& b1, const Tensor& w2,
             const Tensor& b2, double alpha, double gain) {
  const Tensor planes = planes_in.contiguous(), points = points_in.contiguous();
  const NetworkTensors weights(w1, b1, w2, b2, alpha, gain);
  const int64_t batch = planes.size(0), count = points.size(1), outputs = weights.net.outputs;
  Tensor out = at::empty({batch, count, outputs}, planes.options());
  float* to = out.mutable_data_ptr<float>();
  const int64_t pieces = (count + POINTS - 1) / POINTS;
  at::parallel_for(0, batch * pieces, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> scratch(k::field_scratch(planes.size(4), weights.net.hidden));
    for (int64_t i = begin; i < end; ++i) {
      const int64_t b = i / pieces, first = i % pieces * POINTS, offset = b * count + first;
      k::field_forward(planes_of(planes, b), weights.net, points.const_data_ptr<float>() + offset * 3,
                       std::min(POINTS, count - first), to + offset * outputs, scratch.data());
    }
  });
  return out;
}

// Gradients of planes, points, w1, b1, w2, b2.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> field_backward(
    const Tensor& grad_in, const Tensor& planes_in, const Tensor& points_in, const Tensor& w1, const Tensor& b1,
    const Tensor& w2, const Tensor& b2, double alpha, double gain, bool want_planes, bool want_points) {
  const Tensor planes = planes_in.contiguous(), points = points_in.contiguous(), grad = floats(grad_in);
  const NetworkTensors weights(w1, b1, w2, b2, alpha, gain);
  const int64_t batch = planes.size(0), count = points.size(1), features = planes.size(4);
  const int64_t hidden = weights.net.hidden, outputs = weights.net.outputs;
  Tensor grad_planes = want_planes ? at::zeros_like(planes) : Tensor();
  Tensor grad_points = want_points ? at::empty_like(points) : Tensor();
  const int64_t sizes[4] = {features * hidden, hidden, outputs * hidden, outputs};
  Tensor sums = at::zeros({batch, sizes[0] + sizes[1] + sizes[2] + sizes[3]}, planes.options());
  const int64_t one = planes.numel() / std::max<int64_t>(batch, 1);
  // One thread owns a sample.
  at::parallel_for(0, batch, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> scratch(k::field_scratch(features, hidden));
    for (int64_t b = begin; b < end; ++b) {
      float* part = sums.mutable_data_ptr<float>() + b * sums.size(1);
      const k::FieldGradients out{want_planes ? grad_planes.mutable_data_ptr<float>() + b * one : nullptr,
                                  want_points ? grad_points.mutable_data_ptr<float>() + b * count * 3 : nullptr,
                                  part,
                                  part + sizes[0],
                                  part + sizes[0] + sizes[1],
                                  part + sizes[0] + sizes[1] + sizes[2]};
      k::field_backward(planes_of(planes, b), weights.net, points.const_data_ptr<float>() + b * count * 3,
                        grad.const_data_ptr<float>() + b * count * outputs, count, out, scratch.data());
    }
  });
  const auto parts = sums.sum(0).split_with_sizes({sizes[0], sizes[1], sizes[2], sizes[3]});
  return {grad_planes, grad_points, parts[0].view({features, hidden}).t(), parts[1], parts[2].view({outputs, hidden}),
          parts[3]};
}

k::March march_options(bool mip, bool relu, bool infinite, bool last_back, int64_t white, double bias) {
  return {mip, relu, infinite, last_back, white, static_cast<float>(bias)};
}

// The samples of a pass as one strided array; copies only where the strides do not allow it.
struct Pass {
  Tensor rgb, sigma, t;
  k::Samples samples;
  Pass(const Tensor& rgb_in, const Tensor& sigma_in, const Tensor& t_in) : t(t_in.contiguous()) {
    const int64_t n = t.size(-1), rays = n ? t.numel() / n : 0;
    auto plain = [&](const Tensor& x, int64_t inner) {
      // x [rays, n, inner] or [rays, n]: one stride from sample to sample across rays, neighbours inside a sample.
      const bool dense_inside = inner < 0 || x.stride(2) == 1 || x.size(2) == 1;
      const bool regular = n == 0 || rays <= 1 || x.stride(0) == n * x.stride(1);
      return dense_inside && regular ? x : x.contiguous();
    };
    rgb = plain(rgb_in.reshape({rays, n, rgb_in.size(-1)}), 1);
    sigma = plain(sigma_in.reshape({rays, n}), -1);
    samples = {rgb.const_data_ptr<float>(), sigma.const_data_ptr<float>(), t.const_data_ptr<float>(), rgb.stride(1),
               sigma.stride(1), n};
  }
};

// rgb [..., n, C], sigma [..., n], t [..., n] of two passes -> color [rays, C], depth, weight_sum, passed [rays], order.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> march(const Tensor& rgb_c, const Tensor& sigma_c, const Tensor& t_c,
                                                         const Tensor& rgb_f, const Tensor& sigma_f, const Tensor& t_f,
                                                         bool mip, bool relu, bool infinite, bool last_back,
                                                         int64_t white, double bias) {
  const Pass coarse(rgb_c, sigma_c, t_c), fine(rgb_f, sigma_f, t_f);
  const int64_t channels = rgb_c.size(-1), n = coarse.samples.count + fine.samples.count;
  const int64_t rays = coarse.t.numel() / std::max<int64_t>(coarse.samples.count, 1);
  const auto options = coarse.t.options();
  Tensor color = at::empty({rays, channels}, options), depth = at::empty({rays}, options);
  Tensor weight_sum = at::empty({rays}, options), passed = at::empty({rays}, options);
  Tensor order = at::empty({rays, n}, options.dtype(at::kShort));
  const k::RayOutputs out{color.mutable_data_ptr<float>(), depth.mutable_data_ptr<float>(),
                          weight_sum.mutable_data_ptr<float>(), passed.mutable_data_ptr<float>(),
                          order.mutable_data_ptr<int16_t>()};
  const auto op = march_options(mip, relu, infinite, last_back, white, bias);
  at::parallel_for(0, rays, RAYS, [&](int64_t begin, int64_t end) {
    std::vector<float> scratch(k::march_scratch(n, channels));
    k::march_forward(coarse.samples, fine.samples, channels, op, begin, end, out, scratch.data());
  });
  return {color, depth, weight_sum, passed, order};
}

// Gradients of rgb_c, sigma_c, rgb_f, sigma_f.
std::tuple<Tensor, Tensor, Tensor, Tensor> march_backward(
    const Tensor& grad_color, const Tensor& grad_depth, const Tensor& grad_sum, const Tensor& grad_passed,
    const Tensor& order, const Tensor& rgb_c, const Tensor& sigma_c, const Tensor& t_c, const Tensor& rgb_f,
    const Tensor& sigma_f, const Tensor& t_f, bool mip, bool relu, bool infinite, bool last_back, int64_t white,
    double bias) {
  const Pass coarse(rgb_c, sigma_c, t_c), fine(rgb_f, sigma_f, t_f);
  const int64_t channels = rgb_c.size(-1), n = coarse.samples.count + fine.samples.count;
  const int64_t rays = coarse.t.numel() / std::max<int64_t>(coarse.samples.count, 1);
  const auto options = coarse.t.options();
  Tensor to_rgb_c = at::empty(rgb_c.sizes(), options), to_sigma_c = at::empty(sigma_c.sizes(), options);
  Tensor to_rgb_f = at::empty(rgb_f.sizes(), options), to_sigma_f = at::empty(sigma_f.sizes(), options);
  const Tensor color = floats(grad_color), depth = floats(grad_depth), sum = floats(grad_sum),
               passed = floats(grad_passed);
  const k::RayGradients grads{color.const_data_ptr<float>(),        depth.const_data_ptr<float>(),
                              sum.const_data_ptr<float>(),          passed.const_data_ptr<float>(),
                              order.const_data_ptr<int16_t>(),      to_rgb_c.mutable_data_ptr<float>(),
                              to_sigma_c.mutable_data_ptr<float>(), to_rgb_f.mutable_data_ptr<float>(),
                              to_sigma_f.mutable_data_ptr<float>()};
  const auto op = march_options(mip, relu, infinite, last_back, white, bias);
  at::parallel_for(0, rays, RAYS, [&](int64_t begin, int64_t end) {
    std::vector<float> scratch(k::march_scratch(n, channels));
    k::march_backward(coarse.samples, fine.samples, channels, op, begin, end, grads, scratch.data());
  });
  return {to_rgb_c, to_sigma_c, to_rgb_f, to_sigma_f};
}

// sigma [..., n], s [..., n], u [..., m] -> s_fine [..., m]
Tensor importance(const Tensor& sigma_in, const Tensor& s_in, const Tensor& u_in, bool mip, bool relu, bool infinite,
                  bool last_back, double bias) {
  const Tensor s = s_in.contiguous(), u = u_in.contiguous();
  const int64_t n = s.size(-1), m = u.size(-1), rays = s.numel() / std::max<int64_t>(n, 1);
  Tensor sigma = sigma_in.reshape({rays, n});
  if (rays > 1 && sigma.stride(0) != n * sigma.stride(1)) sigma = sigma.contiguous();
  Tensor out = at::empty(u.sizes(), u.options());
  const auto op = march_options(mip, relu, infinite, last_back, 0, bias);
  float* to = out.mutable_data_ptr<float>();
  at::parallel_for(0, rays, RAYS, [&](int64_t begin, int64_t end) {
    std::vector<float> scratch(k::march_scratch(n, 0) + n);
    k::importance_rows(sigma.const_data_ptr<float>(), sigma.stride(1), s.const_data_ptr<float>(),
                       u.const_data_ptr<float>(), n, m, op, begin, end, to, scratch.data());
  });
  return out;
}

k::Winograd winograd_of(const Tensor& x, int64_t out) { return {x.size(2), x.size(3), x.size(1), out}; }

bool winograd_fits(const Tensor& x, const Tensor& weight) {
  const auto whole = [](int64_t channels) { return channels > 0 && channels % k::WINOGRAD_LANES == 0; };
  return k::winograd_exists() && x.scalar_type() == at::kFloat && weight.scalar_type() == at::kFloat && x.dim() == 4 &&
         weight.size(2) == 3 && weight.size(3) == 3 && whole(x.size(1)) && whole(weight.size(0)) &&
         x.size(2) % 2 == 0 && x.size(3) % 2 == 0 && x.size(1) * weight.size(0) <= k::WINOGRAD_MOST &&
         x.size(0) * x.size(2) * x.size(3) >= 4 * k::WINOGRAD_LEAST;
}

// x [B, I, H, W], taps [3, 3, I, O] -> [B, O, H, W]
Tensor winograd(const Tensor& x_in, const Tensor& taps_in) {
  const Tensor x = channels_last(x_in), taps = taps_in.contiguous();
  const k::Winograd op = winograd_of(x, taps.size(3));
  Tensor y = at::empty({x.size(0), op.out, op.height, op.width}, x.options().memory_format(at::MemoryFormat::ChannelsLast));
  Tensor filters = at::empty({16, op.in, op.out}, x.options().memory_format(at::MemoryFormat::Contiguous));
  k::winograd_filters(taps.const_data_ptr<float>(), op.in * op.out, filters.mutable_data_ptr<float>());
  const int64_t tiles = x.size(0) * (op.height / 2) * (op.width / 2);
  const int64_t blocks = (tiles + k::WINOGRAD_BLOCK - 1) / k::WINOGRAD_BLOCK;
  float* to = y.mutable_data_ptr<float>();
  at::parallel_for(0, blocks, 4, [&](int64_t begin, int64_t end) {
    std::vector<float> scratch(k::winograd_scratch(op));
    k::winograd_forward(x.const_data_ptr<float>(), filters.const_data_ptr<float>(), op, begin * k::WINOGRAD_BLOCK,
                        std::min(end * k::WINOGRAD_BLOCK, tiles), to, scratch.data());
  });
  return y;
}

// Gradient of the taps, [3, 3, I, O].
Tensor winograd_weights(const Tensor& x_in, const Tensor& grad_in) {
  const Tensor x = channels_last(x_in), grad = channels_last(grad_in);
  const k::Winograd op = winograd_of(x, grad.size(1));
  const int64_t tiles = x.size(0) * (op.height / 2) * (op.width / 2);
  const int64_t blocks = (tiles + k::WINOGRAD_BLOCK - 1) / k::WINOGRAD_BLOCK;
  // Always the same parts, so that the sum does not depend on the number of threads.
  const int64_t parts = std::min<int64_t>(blocks, 8), per_part = (blocks + parts - 1) / parts;
  const auto options = x.options().memory_format(at::MemoryFormat::Contiguous);
  Tensor filters = at::zeros({parts, 16, op.in, op.out}, options), taps = at::empty({3, 3, op.in, op.out}, options);
  float* to = filters.mutable_data_ptr<float>();
  at::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> scratch(k::winograd_scratch(op));
    for (int64_t part = begin; part < end; ++part)
      k::winograd_weights(x.const_data_ptr<float>(), grad.const_data_ptr<float>(), op,
                          std::min(part * per_part * k::WINOGRAD_BLOCK, tiles),
                          std::min((part + 1) * per_part * k::WINOGRAD_BLOCK, tiles), to + part * 16 * op.in * op.out,
                          scratch.data());
  });
  const Tensor total = filters.sum(0);
  k::winograd_filters_backward(total.const_data_ptr<float>(), op.in * op.out, taps.mutable_data_ptr<float>());
  return taps;
}

}  // namespace

TORCH_LIBRARY(threedgp, library) {
  library.def(
      "pointwise(Tensor x, Tensor? scale, Tensor? bias, Tensor? noise, float alpha, float gain, float clamp) -> Tensor",
      &pointwise);
  library.def(
      "pointwise_backward(Tensor grad, Tensor y, Tensor? x, Tensor? scale, bool want_noise, float alpha, float gain, "
      "float clamp) -> (Tensor, Tensor, Tensor, Tensor)",
      &pointwise_backward);
  library.def("winograd_fits(Tensor x, Tensor weight) -> bool", &winograd_fits);
  library.def("winograd(Tensor x, Tensor taps) -> Tensor", &winograd);
  library.def("winograd_weights(Tensor x, Tensor grad) -> Tensor", &winograd_weights);
  library.def("fir(Tensor x, Tensor taps_x, Tensor taps_y, int[2] up, int[2] down, int[2] pad, int[2] size) -> Tensor",
              &fir);
  library.def("triplane(Tensor planes, Tensor points) -> Tensor", &triplane);
  library.def(
      "triplane_backward(Tensor grad, Tensor planes, Tensor points, bool want_planes, bool want_points) "
      "-> (Tensor, Tensor)",
      &triplane_backward);
  library.def(
      "field(Tensor planes, Tensor points, Tensor w1, Tensor b1, Tensor w2, Tensor b2, float alpha, float gain) "
      "-> Tensor",
      &field);
  library.def(
      "field_backward(Tensor grad, Tensor planes, Tensor points, Tensor w1, Tensor b1, Tensor w2, Tensor b2, "
      "float alpha, float gain, bool want_planes, bool want_points) "
      "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
      &field_backward);
  library.def(
      "march(Tensor rgb_c, Tensor sigma_c, Tensor t_c, Tensor rgb_f, Tensor sigma_f, Tensor t_f, bool mip, bool relu, "
      "bool infinite, bool last_back, int white, float bias) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
      &march);
  library.def(
      "march_backward(Tensor grad_color, Tensor grad_depth, Tensor grad_sum, Tensor grad_passed, Tensor order, "
      "Tensor rgb_c, Tensor sigma_c, Tensor t_c, Tensor rgb_f, Tensor sigma_f, Tensor t_f, bool mip, bool relu, "
      "bool infinite, bool last_back, int white, float bias) -> (Tensor, Tensor, Tensor, Tensor)",
      &march_backward);
  library.def(
      "importance(Tensor sigma, Tensor s, Tensor u, bool mip, bool relu, bool infinite, bool last_back, float bias) "
      "-> Tensor",
      &importance);
}
