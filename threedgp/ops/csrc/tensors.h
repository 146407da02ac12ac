// What the bindings of all operations share.
#pragma once

#include <ATen/Functions.h>
#include <ATen/Parallel.h>

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

inline Tensor floats(const Tensor& x) { return x.to(at::kFloat).contiguous(); }

}  // namespace
