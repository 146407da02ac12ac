// Binds the kernels of rays and the radiance field to PyTorch: checks shapes, allocates results, shares the work out
// among threads.
#include <torch/library.h>

#include "tensors.h"

namespace {

constexpr int64_t RAYS = 64;

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

// Adds what points [B, M, 3] give to grad_planes. One thread owns a plane of a sample: no two ever write to the same
// place. Few samples leave too few planes to share out evenly, so half of their points go into planes of their own.
void spread_on_planes(const Tensor& planes, const Tensor& points, const Tensor& grad, Tensor& grad_planes) {
  const int64_t batch = planes.size(0), count = points.size(1), features = planes.size(4);
  const int64_t one = planes.numel() / std::max<int64_t>(batch, 1);
  const bool halve = batch <= 2 && count > POINTS;  // not by the number of threads, on which no result may depend
  Tensor second = halve ? at::zeros_like(grad_planes) : Tensor();
  float* targets[2] = {grad_planes.mutable_data_ptr<float>(), halve ? second.mutable_data_ptr<float>() : nullptr};
  const int64_t parts = halve ? 2 : 1, part_size = (count + parts - 1) / parts;
  at::parallel_for(0, batch * parts * 3, part_size * features * 4 < WORK_PER_THREAD ? 3 : 1,
                   [&](int64_t begin, int64_t end) {
    while (begin < end) {
      const int64_t b = begin / 3 / parts, part = begin / 3 % parts;
      const int64_t first = begin % 3, last = std::min<int64_t>(3, first + end - begin);
      const int64_t from = b * count + part * part_size, size = std::min(part_size, count - part * part_size);
      k::triplane_backward(planes_of(planes, b), points.const_data_ptr<float>() + from * 3,
                           grad.const_data_ptr<float>() + from * features, size, targets[part] + b * one, first, last,
                           nullptr);
      begin += last - first;
    }
  });
  if (halve) grad_planes.add_(second);
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

}  // namespace

TORCH_LIBRARY(threedgp, library) {
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
