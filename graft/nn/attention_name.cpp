#include "graft/nn/attention_name.h"

#include <array>
#include <optional>
#include <utility>

#include <fmt/format.h>

#include "graft/core/error.h"
#include "graft/hub/cache.h"

namespace graft::nn {

namespace {

constexpr std::string_view kPagedPrefix = "paged|";

constexpr std::array<std::pair<std::string_view, AttentionKind>, 5> kBuiltIn = {
    {{"eager", AttentionKind::kEager},
     {"sdpa", AttentionKind::kSdpa},
     {"flash_attention_2", AttentionKind::kFlash2},
     {"flash_attention_3", AttentionKind::kFlash3},
     {"graft", AttentionKind::kGraft}}};

// `org/repo[@ref][:function]`, or nothing.
std::optional<AttentionName> parse_kernel(std::string_view text) {
  AttentionName name;
  name.kind = AttentionKind::kKernel;
  const auto colon = text.find(':');
  if (colon != std::string_view::npos) {
    name.function = std::string(text.substr(colon + 1));
    if (name.function.empty() || name.function.find_first_of("/:") != std::string::npos) {
      return std::nullopt;
    }
    text = text.substr(0, colon);
  }
  const auto slash = text.find('/');
  if (slash == std::string_view::npos || text.find('/', slash + 1) != std::string_view::npos) {
    return std::nullopt;
  }
  const auto at = text.find('@', slash);
  if (at != std::string_view::npos) {
    name.ref = std::string(text.substr(at + 1));
    text = text.substr(0, at);
  }
  name.repository = std::string(text);
  return hub::is_repo_id(name.repository) ? std::optional<AttentionName>(name) : std::nullopt;
}

}  // namespace

AttentionName parse_attention_name(std::string_view text) {
  const bool paged = text.starts_with(kPagedPrefix);
  const std::string_view rest = paged ? text.substr(kPagedPrefix.size()) : text;
  for (const auto& [known, kind] : kBuiltIn) {
    if (rest == known) {
      AttentionName name;
      name.kind = kind;
      name.paged = paged;
      return name;
    }
  }
  if (auto kernel = parse_kernel(rest)) {
    kernel->paged = paged;
    return *kernel;
  }
  throw InvalidArgument(
      "models.attn_implementation", "unknown",
      fmt::format("attn_implementation: expected `eager`, `sdpa`, `flash_attention_2`, "
                  "`flash_attention_3`, `graft` or `org/repo[@ref][:function]`, got `{}`",
                  text));
}

}  // namespace graft::nn
