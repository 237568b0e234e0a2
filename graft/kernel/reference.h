// How a person names a kernel layer: `org/repo[@ref]:Layer`, `/absolute/path:Layer`, or nothing for
// the model's own forward.
#pragma once

#include <string>
#include <string_view>

namespace graft::kernel {

struct LayerReference {
  std::string repository;  // `org/repo` or an absolute path; empty: the reference forward
  std::string ref;         // branch, tag, commit or version specifier; empty: none given
  std::string layer;

  bool is_reference_forward() const { return repository.empty(); }
  bool is_path() const { return repository.starts_with('/'); }
  std::string text() const;
  bool operator==(const LayerReference&) const = default;
};

// Throws   InvalidArgument `kernel.reference.grammar` showing what was expected and what was got.
LayerReference parse_layer_reference(std::string_view text);

// `org/repo[@ref]` or `/absolute/path`: the same without a layer. Throws as above.
LayerReference parse_kernel_reference(std::string_view text);

}  // namespace graft::kernel
