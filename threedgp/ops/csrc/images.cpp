// Binds the kernels of images to PyTorch, with their derivatives: checks shapes, allocates results, shares the work out
// among threads.
#include <ATen/record_function.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "tensors.h"

namespace {

constexpr int64_t CHUNK = 1024;  // pixels whose sums are formed together

const float* pointer(const optional<Tensor>& value) { return value ? value->const_data_ptr<float>() : nullptr; }

Tensor channels_last(const Tensor& x) { return x.contiguous(at::MemoryFormat::ChannelsLast); }

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

// Shows an operation in PyTorch's profiler, where calls from C++ would be invisible.
#define NAMED(name) RECORD_FUNCTION(name, c10::ArrayRef<const c10::IValue>{})

// x [B, C, H, W] or [..., C]; scale [B, C], bias [C], noise [B or 1, H * W].
Tensor pointwise(const Tensor& x_in, const optional<Tensor>& scale_in, const optional<Tensor>& bias_in,
                 const optional<Tensor>& noise_in, double alpha, double gain, double clamp) {
  NAMED("threedgp::pointwise");
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
  NAMED("threedgp::pointwise_backward");
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
  NAMED("threedgp::fir");
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

k::Winograd winograd_of(const Tensor& x, int64_t out) { return {x.size(2), x.size(3), x.size(1), out}; }

bool winograd_fits(const Tensor& x, const Tensor& weight) {
  const auto whole = [](int64_t channels) { return channels > 0 && channels % k::WINOGRAD_CHANNELS == 0; };
  return k::winograd_exists() && x.scalar_type() == at::kFloat && weight.scalar_type() == at::kFloat && x.dim() == 4 &&
         weight.size(2) == 3 && weight.size(3) == 3 && whole(x.size(1)) && whole(weight.size(0)) &&
         x.size(2) % 2 == 0 && x.size(3) % 2 == 0 && x.size(1) * weight.size(0) <= k::WINOGRAD_MOST &&
         x.size(0) * x.size(2) * x.size(3) >= 4 * k::WINOGRAD_LEAST;
}

// x [B, I, H, W], taps [3, 3, I, O] -> [B, O, H, W]
Tensor winograd(const Tensor& x_in, const Tensor& taps_in) {
  NAMED("threedgp::winograd");
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
  NAMED("threedgp::winograd_weights");
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

// ---------------------------------------------------------------------------------------------------------- derivatives

using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

struct Settings {
  double alpha, gain, clamp;
  void keep(AutogradContext* ctx) const { ctx->saved_data["settings"] = std::vector<double>{alpha, gain, clamp}; }
  explicit Settings(AutogradContext* ctx) {
    const auto values = ctx->saved_data["settings"].toDoubleVector();
    alpha = values[0], gain = values[1], clamp = values[2];
  }
  Settings(double alpha, double gain, double clamp) : alpha(alpha), gain(gain), clamp(clamp) {}
};

bool twice() { return at::GradMode::is_enabled(); }  // inside a backward pass: its result will be differentiated

// slope * grad, and its sum per channel, with the slope that y tells: the activation is linear wherever it can be
// differentiated. Linear in grad, hence its own transpose up to the sum.
struct Slope : Function<Slope> {
  static variable_list forward(AutogradContext* ctx, const Tensor& grad, const Tensor& y, double alpha, double gain,
                               double clamp) {
    ctx->save_for_backward({y});
    ctx->set_materialize_grads(false);
    Settings(alpha, gain, clamp).keep(ctx);
    const auto found = pointwise_backward(grad, y, {}, {}, false, alpha, gain, clamp);
    return {std::get<0>(found), std::get<2>(found)};
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const Tensor y = ctx->get_saved_variables()[0];
    const Settings op(ctx);
    Tensor grad = grads[0];
    if (grads[1].defined()) {
      const Tensor by_channel = y.dim() == 4 ? grads[1].view({1, -1, 1, 1}) : grads[1];
      const Tensor spread = by_channel.to(y.scalar_type()).expand_as(y);
      grad = grad.defined() ? grad.add(spread) : spread;
    }
    if (grad.defined()) grad = Slope::apply(grad, y, op.alpha, op.gain, op.clamp)[0];
    return {grad, Tensor(), Tensor(), Tensor(), Tensor()};
  }
};

struct BiasAct : Function<BiasAct> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const optional<Tensor>& bias, double alpha, double gain,
                        double clamp) {
    const Tensor y = pointwise(x, {}, bias, {}, alpha, gain, clamp);
    ctx->save_for_backward({y});
    Settings(alpha, gain, clamp).keep(ctx);
    if (bias) ctx->saved_data["bias"] = static_cast<int64_t>(bias->scalar_type());
    return y;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const Settings op(ctx);
    const auto found = Slope::apply(grads[0], ctx->get_saved_variables()[0], op.alpha, op.gain, op.clamp);
    const auto type = ctx->saved_data.find("bias");
    const bool biased = type != ctx->saved_data.end();
    return {found[0], biased ? found[1].to(static_cast<at::ScalarType>(type->second.toInt())) : Tensor(), Tensor(),
            Tensor(), Tensor()};
  }
};

Tensor bias_act(const Tensor& x, const optional<Tensor>& bias, double alpha, double gain, double clamp) {
  return BiasAct::apply(x, bias, alpha, gain, clamp);
}

struct ScaledAct : Function<ScaledAct> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& scale, const optional<Tensor>& bias,
                        const optional<Tensor>& noise, double alpha, double gain, double clamp) {
    optional<Tensor> flat;
    if (noise) flat = noise->reshape({-1, x.size(2) * x.size(3)});
    const Tensor y = pointwise(x, scale, bias, flat, alpha, gain, clamp);
    ctx->save_for_backward({x, scale, bias.value_or(Tensor()), noise.value_or(Tensor()), y});
    Settings(alpha, gain, clamp).keep(ctx);
    return y;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &x = saved[0], &scale = saved[1], &bias = saved[2], &noise = saved[3], &y = saved[4];
    const Settings op(ctx);
    // Edges are counted among the tensors that were there.
    size_t edge = 2;
    const bool want_x = ctx->needs_input_grad(0), want_scale = ctx->needs_input_grad(1);
    const bool want_bias = bias.defined() && ctx->needs_input_grad(edge++);
    const bool want_noise = noise.defined() && ctx->needs_input_grad(edge);
    Tensor grad_x, grad_scale, grad_bias, grad_noise;
    if (twice()) {
      const auto found = Slope::apply(grads[0], y, op.alpha, op.gain, op.clamp);
      grad_x = found[0].mul(scale.to(x.scalar_type()).unsqueeze(-1).unsqueeze(-1));
      if (want_scale) grad_scale = found[0].mul(x).sum(at::IntArrayRef({2, 3}));
      grad_bias = found[1];
      if (want_noise) grad_noise = found[0].sum(at::IntArrayRef({1}), true);
    } else {
      const auto found = pointwise_backward(grads[0], y, want_scale ? optional<Tensor>(x) : optional<Tensor>(), scale,
                                            want_noise, op.alpha, op.gain, op.clamp);
      std::tie(grad_x, grad_scale, grad_bias, grad_noise) = found;
      if (want_noise) grad_noise = grad_noise.view({x.size(0), 1, x.size(2), x.size(3)});
    }
    return {want_x ? grad_x : Tensor(),
            want_scale ? grad_scale.to(scale.scalar_type()) : Tensor(),
            want_bias ? grad_bias.to(bias.scalar_type()) : Tensor(),
            want_noise ? at::sum_to(grad_noise, noise.sizes()).to(noise.scalar_type()) : Tensor(),
            Tensor(),
            Tensor(),
            Tensor()};
  }
};

Tensor scaled_act(const Tensor& x, const Tensor& scale, const optional<Tensor>& bias, const optional<Tensor>& noise,
                  double alpha, double gain, double clamp) {
  return ScaledAct::apply(x, scale, bias, noise, alpha, gain, clamp);
}

// The transpose of resampling is resampling with up and down, front and back swapped.
struct Resample : Function<Resample> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& taps_x, const Tensor& taps_y,
                        std::vector<int64_t> up, std::vector<int64_t> down, std::vector<int64_t> pad,
                        std::vector<int64_t> size) {
    ctx->save_for_backward({taps_x, taps_y});
    ctx->saved_data["up"] = up;
    ctx->saved_data["down"] = down;
    ctx->saved_data["pad"] = std::vector<int64_t>{taps_x.numel() - 1 - pad[0], taps_y.numel() - 1 - pad[1]};
    ctx->saved_data["size"] = std::vector<int64_t>{x.size(3), x.size(2)};
    return fir(x, taps_x, taps_y, up, down, pad, size);
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto taps = ctx->get_saved_variables();
    const auto kept = [&](const char* name) { return ctx->saved_data[name].toIntVector(); };
    const Tensor grad = Resample::apply(grads[0], taps[0].flip(0), taps[1].flip(0), kept("down"), kept("up"),
                                        kept("pad"), kept("size"));
    return {grad, Tensor(), Tensor(), Tensor(), Tensor(), Tensor(), Tensor()};
  }
};

Tensor resample(const Tensor& x, const Tensor& taps_x, const Tensor& taps_y, at::IntArrayRef up, at::IntArrayRef down,
                at::IntArrayRef pad, at::IntArrayRef size) {
  return Resample::apply(x, taps_x, taps_y, up.vec(), down.vec(), pad.vec(), size.vec());
}

// (sum_i sum_taps (weight[o, i] * styles[b, i])^2 + 1e-8)^(-1/2): [B, O]
struct Demodulation : Function<Demodulation> {
  static Tensor forward(AutogradContext* ctx, const Tensor& weight, const Tensor& styles) {
    const Tensor energies = weight.square().sum(at::IntArrayRef({2, 3}));  // [O, I]
    const Tensor scale = styles.square().mm(energies.t()).add_(1e-8).rsqrt_();
    ctx->save_for_backward({weight, styles, energies, scale});
    return scale;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &weight = saved[0], &styles = saved[1], &scale = saved[3];
    // Whoever differentiates again needs the way from the weights to their energies.
    const Tensor energies = twice() ? weight.square().sum(at::IntArrayRef({2, 3})) : saved[2];
    const Tensor grad = grads[0].mul(scale.pow(3));  // by the energy of a sample's channel, times -2
    Tensor grad_weight, grad_styles;
    if (ctx->needs_input_grad(0))
      grad_weight = weight.mul(grad.t().mm(styles.square()).neg().unsqueeze(-1).unsqueeze(-1));
    if (ctx->needs_input_grad(1)) grad_styles = styles.mul(grad.mm(energies).neg());
    return {grad_weight, grad_styles};
  }
};

Tensor demodulation(const Tensor& weight, const Tensor& styles) { return Demodulation::apply(weight, styles); }

struct Convolution : Function<Convolution> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& weight) {
    ctx->save_for_backward({x, weight});
    return winograd(x, weight.permute({2, 3, 1, 0}));
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &x = saved[0], &weight = saved[1], &grad = grads[0];
    const bool want_x = ctx->needs_input_grad(0), want_weight = ctx->needs_input_grad(1);
    if (twice()) {
      const auto found = at::convolution_backward(grad, x, weight, at::OptionalIntArrayRef(), {1, 1}, {1, 1}, {1, 1}, false,
                                                  {0, 0}, 1, {want_x, want_weight, false});
      return {std::get<0>(found), std::get<1>(found)};
    }
    return {want_x ? winograd(grad, weight.flip({2, 3}).permute({2, 3, 0, 1})) : Tensor(),
            want_weight ? winograd_weights(x, grad).permute({3, 2, 0, 1}) : Tensor()};
  }
};

Tensor conv3x3(const Tensor& x, const Tensor& weight) { return Convolution::apply(x, weight); }

}  // namespace

TORCH_LIBRARY_FRAGMENT(threedgp, library) {
  library.def("bias_act(Tensor x, Tensor? bias, float alpha, float gain, float clamp) -> Tensor", &bias_act);
  library.def(
      "scaled_act(Tensor x, Tensor scale, Tensor? bias, Tensor? noise, float alpha, float gain, float clamp) -> Tensor",
      &scaled_act);
  library.def(
      "resample(Tensor x, Tensor taps_x, Tensor taps_y, int[2] up, int[2] down, int[2] pad, int[2] size) -> Tensor",
      &resample);
  library.def("demodulation(Tensor weight, Tensor styles) -> Tensor", &demodulation);
  library.def("conv3x3(Tensor x, Tensor weight) -> Tensor", &conv3x3);
  library.def("conv3x3_fits(Tensor x, Tensor weight) -> bool", &winograd_fits);
}
