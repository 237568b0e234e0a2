#include "graft/nn/attention.h"

#include <algorithm>
#include <limits>
#include <optional>
#include <tuple>

#include <ATen/core/grad_mode.h>
#include <fmt/format.h>

namespace graft::nn {

namespace {

// The lowest finite value of a floating dtype, which eager attention adds where it masks.
double lowest_value(at::ScalarType dtype) {
  switch (dtype) {
    case at::kHalf:
      return static_cast<double>(std::numeric_limits<at::Half>::lowest());
    case at::kBFloat16:
      return static_cast<double>(std::numeric_limits<at::BFloat16>::lowest());
    case at::kDouble:
      return std::numeric_limits<double>::lowest();
    default:
      return static_cast<double>(std::numeric_limits<float>::lowest());
  }
}

at::Tensor allowed_keys(const MaskRequest& request, int64_t window) {
  const auto options = at::TensorOptions().dtype(at::kLong).device(request.device);
  const int64_t num_keys = request.num_past + request.num_new;
  const at::Tensor query_idx = at::arange(request.num_past, num_keys, options).unsqueeze(1);
  const at::Tensor key_idx = at::arange(num_keys, options).unsqueeze(0);
  at::Tensor allowed = key_idx.le(query_idx);
  if (window > 0) {
    allowed = allowed.logical_and(key_idx.gt(query_idx - window));
  }
  allowed = allowed.unsqueeze(0).unsqueeze(0);
  if (request.padding.defined()) {
    allowed = allowed.logical_and(request.padding.unsqueeze(1).unsqueeze(1));
  }
  return allowed;
}

// Each key and value head, once for every query head that shares it.
at::Tensor repeat_kv(const at::Tensor& x, int64_t num_groups) {
  if (num_groups == 1) {
    return x;
  }
  const int64_t batch = x.size(0), heads = x.size(1), length = x.size(2), dim = x.size(3);
  return x.unsqueeze(2)
      .expand({batch, heads, num_groups, length, dim})
      .reshape({batch, heads * num_groups, length, dim});
}

// Queries up to which a slot's kernel is asked; from there on a matrix product pays.
constexpr int64_t kMaxKernelQueries = 16;

// The last of the candidates.
constexpr char kFormula[] = "plain ATen";

bool fits_flash(at::Device device, at::ScalarType dtype, int64_t head_dim) {
  const bool is_16_bit = dtype == at::kHalf || dtype == at::kBFloat16;
  return device.is_cuda() && is_16_bit && head_dim % 8 == 0 && head_dim <= 256;
}

bool fits_flash(const at::Tensor& query) {
  return fits_flash(query.device(), query.scalar_type(), query.size(-1));
}

// softmax(query key^T * scale + mask) value, each [B, H, S, D], by the fastest kernel that PyTorch
// has. On CUDA the kernel is named here: by itself PyTorch prefers cuDNN on Hopper, which plans
// anew for every length that it has not seen (50 ms each), and a growing cache is a new length at
// every step.
at::Tensor attend_fused(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                        const std::optional<at::Tensor>& mask, bool causal, double scale) {
  if (fits_flash(query) && query.numel() > 0 && key.numel() > 0) {
    if (!mask) {
      return std::get<0>(
          at::_scaled_dot_product_flash_attention(query, key, value, 0.0, causal, false, scale));
    }
    // Its mask begins every row at a multiple of 16 bytes.
    constexpr int64_t kAlignment = 8;
    const int64_t num_keys = mask->size(-1);
    const at::Tensor aligned =
        at::constant_pad_nd(*mask, {0, (kAlignment - num_keys % kAlignment) % kAlignment})
            .narrow(-1, 0, num_keys)
            .expand({query.size(0), query.size(1), query.size(2), num_keys});
    return std::get<0>(at::_scaled_dot_product_efficient_attention(
        query, key, value, aligned, at::GradMode::is_enabled(), 0.0, false, scale));
  }
  return at::scaled_dot_product_attention(query, key, value, mask, 0.0, causal, scale);
}

bool needs_gradient(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value) {
  return at::GradMode::is_enabled() &&
         (query.requires_grad() || key.requires_grad() || value.requires_grad());
}

std::optional<at::Tensor> optional_mask(const AttentionMask& mask) {
  return mask.additive.defined() ? std::optional<at::Tensor>(mask.additive) : std::nullopt;
}

// query [B, Hq, S, D]; both return [B, Hq, S, D].
at::Tensor attend_eager(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                        const AttentionMask& mask, const AttentionOptions& options) {
  const int64_t num_groups = options.num_heads / options.num_kv_heads;
  at::Tensor scores = at::matmul(query, repeat_kv(key, num_groups).transpose(2, 3)) * options.scale;
  if (options.softcap > 0.0) {
    scores = at::tanh(scores / options.softcap) * options.softcap;
  }
  if (mask.additive.defined()) {
    scores = scores + mask.additive;
  }
  const at::Tensor weights = at::softmax(scores, -1, at::kFloat).to(query.scalar_type());
  return at::matmul(weights, repeat_kv(value, num_groups));
}

at::Tensor attend_sdpa(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                       const AttentionMask& mask, const AttentionOptions& options) {
  // Flash attention shares a key among its query heads by itself.
  const bool shares = fits_flash(query) && !mask.additive.defined();
  const int64_t num_groups = shares ? 1 : options.num_heads / options.num_kv_heads;
  return attend_fused(query, repeat_kv(key, num_groups), repeat_kv(value, num_groups),
                      optional_mask(mask), mask.causal, options.scale);
}

// One query a head, [B, 1, Hq, D]: the heads that share a key become the query positions of one
// head, so nothing is repeated and nothing transposed. Returns [B, 1, Hq * D].
at::Tensor attend_one(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                      const AttentionMask& mask, const AttentionOptions& options) {
  const int64_t batch = query.size(0), kv_heads = options.num_kv_heads, dim = options.head_dim;
  const at::Tensor packed = query.view({batch, kv_heads, options.num_heads / kv_heads, dim});
  return attend_fused(packed, key, value, optional_mask(mask), false, options.scale)
      .reshape({batch, 1, options.num_heads * dim});
}

// The last query alone sees other tokens than those that the pass was packed for.
at::Tensor attend_kernel(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                         const AttentionMask& mask, const AttentionOptions& options) {
  std::shared_ptr<const Unpadding> tokens = mask.unpadding;
  if (tokens && tokens->num_queries != query.size(1)) {
    tokens = unpad(mask.padding, query.size(1));
  }
  return mask.kernel
      ->forward({query, key, value, options.scale, options.softcap, mask.window, tokens.get()})
      .reshape({query.size(0), query.size(1), options.num_heads * options.head_dim});
}

}  // namespace

AttentionMask build_mask(const MaskRequest& request, int64_t window) {
  const int64_t num_keys = request.num_past + request.num_new;
  const bool windowed = window > 0 && num_keys > window;
  AttentionMask mask;
  mask.backend = request.backend;
  if (request.backend == AttentionBackend::kKernel) {
    mask.kernel = request.kernel;
    mask.window = window;
    mask.padding = request.padding;
    mask.unpadding = request.padding.defined() ? unpad(request.padding, request.num_new) : nullptr;
    return mask;
  }
  if (!request.padding.defined()) {
    if (request.num_new == 1) {
      mask.first_key = windowed ? num_keys - window : 0;
      return mask;
    }
    if (!windowed && request.num_past == 0 && request.backend == AttentionBackend::kSdpa) {
      mask.causal = true;
      return mask;
    }
  }
  const double masked = request.backend == AttentionBackend::kSdpa
                            ? -std::numeric_limits<double>::infinity()
                            : lowest_value(request.dtype);
  const at::Tensor allowed = allowed_keys(request, windowed ? window : 0);
  mask.additive =
      at::zeros(allowed.sizes(), at::TensorOptions().dtype(request.dtype).device(request.device))
          .masked_fill_(allowed.logical_not(), masked);
  return mask;
}

at::Tensor attend(const AttentionSlot& kernel, const at::Tensor& query, const at::Tensor& key,
                  const at::Tensor& value, const AttentionMask& mask,
                  const AttentionOptions& options) {
  const auto joined = [&](const at::Tensor& out) {
    return out.view({query.size(0), query.size(1), options.num_heads * options.head_dim});
  };
  if (mask.backend == AttentionBackend::kKernel) {
    return attend_kernel(query, key, value, mask, options);
  }
  if (mask.lengths.defined()) {
    return joined(kernel->decode_forward(query, key, value, mask.lengths, mask.additive,
                                         options.scale, options.softcap, mask.window));
  }
  const bool cut = mask.first_key > 0;
  const at::Tensor keys = cut ? key.slice(2, mask.first_key) : key;
  const at::Tensor values = cut ? value.slice(2, mask.first_key) : value;
  const bool eager = mask.backend == AttentionBackend::kEager;
  const bool swapped = !eager && kernel.module().swapped();
  if (swapped && !mask.causal && query.size(1) <= kMaxKernelQueries) {
    return joined(
        kernel->forward(query, keys, values, mask.additive, options.scale, options.softcap));
  }
  if (swapped && mask.causal && kernel->takes_prompt(query) &&
      !needs_gradient(query, keys, values)) {
    return joined(kernel->causal_forward(query, keys, values, options.scale));
  }
  if (!eager && query.size(1) == 1) {
    return attend_one(query, keys, values, mask, options);
  }
  const at::Tensor heads_first = query.transpose(1, 2);
  const at::Tensor out = eager ? attend_eager(heads_first, keys, values, mask, options)
                               : attend_sdpa(heads_first, keys, values, mask, options);
  return out.transpose(1, 2).reshape(
      {query.size(0), query.size(1), options.num_heads * options.head_dim});
}

std::vector<AttentionCandidate> attention_candidates(
    const layers::ContractSlot<layers::Attention>& kernel, const AttentionChoice& choice,
    const AttentionShapes& shapes) {
  const bool named = choice.backend == AttentionBackend::kKernel;
  const bool eager = choice.backend == AttentionBackend::kEager;
  const bool flash = fits_flash(shapes.device, shapes.dtype, shapes.head_dim);
  const bool causal = shapes.num_queries > 1 && !shapes.padded;
  std::vector<AttentionCandidate> candidates;
  const auto add = [&](const std::string& name, std::string reason) {
    if (named) {
      reason = fmt::format("`{}` names a kernel, and no other one steps in for it", choice.name);
    } else if (eager && name != kFormula) {
      reason = "the model attends by the formula";
    }
    candidates.push_back({name, std::move(reason)});
  };
  if (named) {
    candidates.push_back({choice.kernel->name(), ""});
  }
  const auto takes_prompt = [&] {
    const auto options = at::TensorOptions().dtype(shapes.dtype).device(shapes.device);
    return causal && kernel.active().takes_prompt(
                         at::empty({1, shapes.num_queries, 1, shapes.head_dim}, options));
  };
  std::string slot;
  if (!kernel.swapped()) {
    slot = "no kernel is in the slot";
  } else if ((causal || shapes.num_queries > kMaxKernelQueries) && !takes_prompt()) {
    slot = fmt::format("takes up to {} queries that no causal mask divides, not {}",
                       kMaxKernelQueries, shapes.num_queries);
  }
  add("the slot's kernel", slot);
  add("cuDNN", shapes.device.is_cuda()
                   ? "plans anew, for 50 ms, for every length that it has not seen"
                   : "a CUDA library");
  const std::string unfit = "takes 16-bit heads on CUDA, of a multiple of 8 up to 256";
  add("PyTorch's flash attention", !flash ? unfit : shapes.padded ? "takes no mask" : "");
  add("PyTorch's memory-efficient attention", !flash ? unfit : "");
  add("PyTorch's scaled_dot_product_attention", "");
  add(kFormula, eager ? "" : "exact but slow; `eager` asks for it");
  return candidates;
}

}  // namespace graft::nn
