#include "graft/nn/attention_kernel.h"

#include <algorithm>
#include <array>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "graft/core/error.h"
#include "graft/core/warn.h"
#include "graft/kernel/get_kernel.h"
#include "graft/kernel/resolver.h"
#include "graft/nn/attention_name.h"
#include "graft/tensor/device.h"

namespace graft::nn {

namespace {

// transformers' versions of the kernels that it knows; any other repository is taken in version 1.
constexpr std::array<std::pair<std::string_view, std::string_view>, 6> kVersions = {
    {{"kernels-community/flash-attn2", "v3"},
     {"kernels-community/flash-attn3", "v1"},
     {"kernels-community/vllm-flash-attn3", "v1"},
     {"kernels-community/aiter-flash-attn", "v2"},
     {"kernels-community/flash-attn4", "v0"},
     {"kernels-community/metal-flash-sdpa", "v2"}}};

constexpr char kOwnPackage[] = "graft-kernels/attention";

// What takes the place of the Python packages flash_attn and flash_attn_interface.
kernel::LayerReference reference_of(const AttentionName& name) {
  switch (name.kind) {
    case AttentionKind::kFlash2:
      return {"kernels-community/flash-attn2", "v3", ""};
    case AttentionKind::kFlash3:
      return {"kernels-community/vllm-flash-attn3", "v1", ""};
    case AttentionKind::kGraft:
      return {kOwnPackage, "", ""};
    default:
      break;
  }
  kernel::LayerReference reference{name.repository, name.ref, name.function};
  const auto known = std::find_if(kVersions.begin(), kVersions.end(), [&](const auto& entry) {
    return entry.first == name.repository;
  });
  if (reference.ref.empty() && known != kVersions.end()) {
    reference.ref = std::string(known->second);
  }
  return reference;
}

std::string text_of(const kernel::LayerReference& reference) {
  return reference.ref.empty() ? reference.repository
                               : fmt::format("{}@{}", reference.repository, reference.ref);
}

std::shared_ptr<const kernel::LoadedKernel> load(const kernel::LayerReference& reference,
                                                 at::Device device) {
  const auto request = kernel::device_request(reference, device);
  return kernel::load_tree(kernel::resolve_tree(request), request.trust);
}

bool has_op(const kernel::LoadedKernel& kernel, std::string_view name) {
  const auto names = kernel.op_names();
  return std::find(names.begin(), names.end(), name) != names.end();
}

// Where transformers looks for `flash_attn_varlen_func` in a Python module, the ops say what the
// package is; a function's name is looked at, there as here, only where that says nothing.
std::shared_ptr<const AttentionKernel> bind_kernel(const std::string& asked,
                                                   const kernel::LayerReference& reference,
                                                   const kernel::LoadedKernel& kernel) {
  const std::string name = text_of(reference);
  if (layers::published::is_flash_attention(kernel)) {
    return make_flash_kernel(name, kernel);
  }
  if (has_op(kernel, "attention_varlen") && has_op(kernel, "attention_out")) {
    return make_graft_kernel(name, kernel);
  }
  throw IncompatibleError(
      "models.attn_implementation", "not-attention",
      fmt::format("attn_implementation `{}`: expected the ops of flash-attn2, flash-attn3, "
                  "vllm-flash-attn3 or graft-kernels/attention, got {}",
                  asked, fmt::join(kernel.op_names(), ", ")),
      fmt::format("a package with a layers.json is named in a kernel config instead: "
                  "{{\"Attention\": \"{}:{}\"}}",
                  name, reference.layer.empty() ? "Attention" : reference.layer));
}

}  // namespace

std::shared_ptr<const Unpadding> unpad(const at::Tensor& padding, int64_t num_queries) {
  const int64_t batch = padding.size(0), keys = padding.size(1);
  const auto starts_of = [&](const at::Tensor& lengths) {
    return at::constant_pad_nd(lengths.cumsum(0, at::kInt), {1, 0});
  };
  const at::Tensor query_padding = padding.narrow(1, keys - num_queries, num_queries);
  const at::Tensor key_lengths = padding.sum(1, /*keepdim=*/false, at::kInt);
  const at::Tensor query_lengths = query_padding.sum(1, /*keepdim=*/false, at::kInt);
  auto result = std::make_shared<Unpadding>();
  result->num_queries = num_queries;
  result->query_places = query_padding.reshape({batch * num_queries}).nonzero().squeeze(1);
  result->key_places = padding.reshape({batch * keys}).nonzero().squeeze(1);
  result->sequences = {starts_of(query_lengths), starts_of(key_lengths),
                       query_lengths.max().item<int64_t>(), key_lengths.max().item<int64_t>()};
  // A row of one run of tokens turns on once, its left edge counted.
  const at::Tensor before = at::constant_pad_nd(padding, {1, 0}).narrow(1, 0, keys);
  const at::Tensor runs = padding.logical_and(before.logical_not()).sum(1);
  result->has_gaps = runs.gt(1).any().item<bool>();
  return result;
}

AttentionChoice choose_attention(const std::string& name, at::Device device) {
  const AttentionName parsed = parse_attention_name(name);
  if (parsed.paged) {
    warn(fmt::format("[models.attn_implementation] `{}`: `paged|` is no longer needed and left out",
                     name));
  }
  if (parsed.kind == AttentionKind::kEager) {
    return {name, AttentionBackend::kEager, nullptr};
  }
  if (parsed.kind == AttentionKind::kSdpa) {
    return {name, AttentionBackend::kSdpa, nullptr};
  }
  const kernel::LayerReference reference = reference_of(parsed);
  if (parsed.kind == AttentionKind::kFlash2 || parsed.kind == AttentionKind::kFlash3) {
    inform(
        fmt::format("[models.attn_implementation] `{}`: the kernel {}", name, text_of(reference)));
  }
  return {name, AttentionBackend::kKernel, bind_kernel(name, reference, *load(reference, device))};
}

void check_attention(const AttentionChoice& choice, const AttentionNeeds& needs) {
  const std::string reason = choice.kernel == nullptr ? "" : choice.kernel->refusal(needs);
  if (!reason.empty()) {
    throw IncompatibleError(
        "models.attn_implementation", "refused",
        fmt::format("attn_implementation `{}`: expected a kernel that can do what the model asks, "
                    "got {}: {}",
                    choice.name, choice.kernel->name(), reason),
        "`sdpa` and `eager` serve every model");
  }
}

}  // namespace graft::nn
