// `metadata.json` of a build variant, parsed strictly, and the layers that a package offers to
// graft.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

namespace graft::kernel {

struct Digest {
  std::string algorithm;                     // `sha256` or `sha512`
  std::map<std::string, std::string> files;  // relative path -> standard base64 with padding
};

// Another kernel that has to be loaded first.
struct KernelDependency {
  std::string repo_id;
  std::optional<int64_t> version;  // exactly one of version and revision
  std::string revision;

  // As LayerReference::ref: `v2`, or the revision.
  std::string ref() const;
};

struct Metadata {
  std::string name;
  std::string id;  // namespace of the ops in PyTorch's dispatcher
  int64_t version = 0;
  std::string license;
  std::string backend;             // `cpu`, `cuda`, …
  std::vector<std::string> archs;  // `8.0`, `9.0a`, `10.0f`, `9.0+PTX`; empty: not declared
  std::optional<Digest> digest;
  std::vector<std::string> python_depends;
  std::vector<KernelDependency> kernel_depends;
  std::string min_version;  // of Python's `kernels`, three numbers; empty: none named
  std::string upstream;     // where the code comes from; empty: not said
  std::string source;       // where the package's source is; empty: not said
  bool is_dirty = false;    // provenance: built from changed sources
};

// Throws   NotFound, FormatError `kernel.metadata.<reason>` naming file and key.
// Source   the strict parse of kernels 0.17.2: unknown keys at the top are ignored, a missing or
// mistyped
//          required key is an error.
Metadata read_metadata(const std::filesystem::path& file);

// Whether code for `archs` runs on a device of this compute capability (major * 10 + minor).
//   X.Y and X.Yf  same major, minor from Y     X.Ya  exactly X.Y     X.Y+PTX  from X.Y on
// An empty list passes. An entry that cannot be read never fits: there is no guessing.
bool arch_fits(const std::vector<std::string>& archs, int capability);

// `layers.json`, by which a package tells hosts without Python what its ops are for.
struct LayerOp {
  std::string op;                                // name inside the package's namespace
  std::map<std::string, std::string> arguments;  // op argument -> value of the contract
};

struct PackageLayer {
  std::string contract;
  std::string published;  // of published_layers(): whose adapter binds it; empty: layers.json does
  bool has_backward = false;
  bool can_torch_compile = false;
  std::vector<std::string> devices;
  std::vector<std::string> dtypes;
  std::map<std::string, int64_t> variants;  // numeric variant -> its number; empty: `default` alone
  std::map<std::string, LayerOp> ops;       // `forward`, `add_forward`
  std::vector<int64_t> rows;                // of a norm: lengths of rows that it serves; empty: any
  std::vector<double> eps;                  // of a norm: values that it is made for; empty: any
};

// Layer name -> what the package says of it; empty when there is no layers.json.
// Throws   FormatError `kernel.layers.<reason>`.
std::map<std::string, PackageLayer> read_layers(const std::filesystem::path& folder);

}  // namespace graft::kernel
