#include "graft/kernel/reference.h"

#include <fmt/format.h>

#include "graft/core/error.h"
#include "graft/hub/cache.h"

namespace graft::kernel {

std::string LayerReference::text() const {
  if (is_reference_forward()) {
    return "";
  }
  return fmt::format("{}{}{}:{}", repository, ref.empty() ? "" : "@", ref, layer);
}

LayerReference parse_layer_reference(std::string_view text) {
  LayerReference out;
  if (text.empty()) {
    return out;
  }
  const auto colon = text.rfind(':');
  const bool named = colon != std::string_view::npos && colon + 1 < text.size() && colon > 0;
  out.layer = named ? std::string(text.substr(colon + 1)) : "";
  out.repository = named ? std::string(text.substr(0, colon)) : "";
  if (named && !out.is_path()) {
    const auto at = out.repository.find('@');
    if (at != std::string::npos) {
      out.ref = out.repository.substr(at + 1);
      out.repository.resize(at);
    }
  }
  const bool right =
      named &&
      (out.is_path() ||
       (hub::is_repo_id(out.repository) && out.repository.find('/') != std::string::npos)) &&
      out.layer.find_first_of("/@ ") == std::string::npos &&
      (text.find('@') == std::string_view::npos || out.is_path() || !out.ref.empty());
  if (!right) {
    throw InvalidArgument("kernel.reference", "grammar",
                          fmt::format("kernel: expected `org/repo[@ref]:Layer`, "
                                      "`/absolute/path:Layer` or an empty text, got `{}`",
                                      text));
  }
  return out;
}

LayerReference parse_kernel_reference(std::string_view text) {
  LayerReference out;
  out.repository = text.substr(0, text.starts_with('/') ? text.size() : text.find('@'));
  const bool has_ref = out.repository.size() < text.size();
  out.ref = has_ref ? text.substr(out.repository.size() + 1) : "";
  const bool right = out.is_path() ||
                     (hub::is_repo_id(out.repository) &&
                      out.repository.find('/') != std::string::npos && has_ref != out.ref.empty());
  if (!right) {
    throw InvalidArgument(
        "kernel.reference", "grammar",
        fmt::format("kernel: expected `org/repo[@ref]` or `/absolute/path`, got `{}`", text));
  }
  return out;
}

}  // namespace graft::kernel
