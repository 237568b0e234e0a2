#include "graft/kernel/metadata.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cstdint>
#include <type_traits>
#include <utility>

#include <fmt/format.h>

#include "graft/core/error.h"
#include "graft/hub/cache.h"
#include "graft/io/json.h"
#include "graft/trust/encoding.h"

namespace graft::kernel {

namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr size_t kMaxMetadataBytes = 1 << 20;
constexpr size_t kMaxFiles = 4096;
constexpr size_t kMaxDependencies = 64;

// Typed access to one JSON object, with errors that name file and key.
class Fields {
 public:
  Fields(const json& object, std::string_view where, std::string file)
      : object_(object), where_(where), file_(std::move(file)) {
    if (!object.is_object()) {
      fail("type", "expected an object");
    }
  }

  [[noreturn]] void fail(std::string_view reason, const std::string& text) const {
    throw FormatError(where_, reason, fmt::format("`{}`: {}", file_, text));
  }

  const json* find(const char* key) const {
    const auto found = object_.find(key);
    return found == object_.end() || found->is_null() ? nullptr : &*found;
  }

  const json& need(const char* key) const {
    const auto* found = find(key);
    if (found == nullptr) {
      fail("missing-key", fmt::format("expected key `{}`, got none", key));
    }
    return *found;
  }

  std::string text(const char* key) const {
    const auto& value = need(key);
    if (!value.is_string()) {
      fail("type", fmt::format("`{}`: expected a text", key));
    }
    return value.get<std::string>();
  }

  bool boolean(const char* key) const {
    const auto* value = find(key);
    if (value != nullptr && !value->is_boolean()) {
      fail("type", fmt::format("`{}`: expected a boolean", key));
    }
    return value != nullptr && value->get<bool>();
  }

  // Numbers above zero.
  template <typename T>
  std::vector<T> numbers(const char* key) const {
    const auto* value = find(key);
    if (value == nullptr) {
      return {};
    }
    const auto is_right = [](const json& item) {
      return (std::is_integral_v<T> ? item.is_number_integer() : item.is_number()) && item > 0;
    };
    if (!value->is_array() || !std::all_of(value->begin(), value->end(), is_right)) {
      fail("type", fmt::format("`{}`: expected an array of numbers above zero", key));
    }
    return value->get<std::vector<T>>();
  }

  std::vector<std::string> texts(const char* key) const {
    std::vector<std::string> result;
    const auto* value = find(key);
    if (value == nullptr) {
      return result;
    }
    const auto is_text = [](const json& item) { return item.is_string(); };
    if (!value->is_array() || !std::all_of(value->begin(), value->end(), is_text)) {
      fail("type", fmt::format("`{}`: expected an array of texts", key));
    }
    return value->get<std::vector<std::string>>();
  }

  Fields object(const json& value, const std::string& key) const {
    return Fields(value, where_, fmt::format("{}: {}", file_, key));
  }
  const json& raw() const { return object_; }

 private:
  const json& object_;
  std::string where_;
  std::string file_;
};

bool is_name(std::string_view name) {
  const auto is_lower = [](char c) { return c >= 'a' && c <= 'z'; };
  const auto is_digit = [](char c) { return c >= '0' && c <= '9'; };
  return name.size() >= 2 && name.size() <= 128 && is_lower(name.front()) && name.back() != '-' &&
         std::all_of(name.begin(), name.end(),
                     [&](char c) { return is_lower(c) || is_digit(c) || c == '-'; });
}

bool is_identifier(std::string_view text) {
  return !text.empty() && text.size() <= 255 && !(text[0] >= '0' && text[0] <= '9') &&
         std::all_of(text.begin(), text.end(),
                     [](unsigned char c) { return std::isalnum(c) != 0 || c == '_'; });
}

Digest parse_digest(const Fields& fields) {
  Digest digest;
  digest.algorithm = fields.text("algorithm");
  if (digest.algorithm != "sha256" && digest.algorithm != "sha512") {
    fields.fail("digest",
                fmt::format("`algorithm`: expected sha256 or sha512, got `{}`", digest.algorithm));
  }
  const auto& files = fields.need("files");
  if (!files.is_object()) {
    fields.fail("type", "`files`: expected an object");
  }
  if (files.size() > kMaxFiles) {
    fields.fail("digest",
                fmt::format("`files`: expected at most {}, got {}", kMaxFiles, files.size()));
  }
  for (const auto& [path, hash] : files.items()) {
    const size_t hash_bytes = digest.algorithm == "sha256" ? 32 : 64;
    const auto decoded =
        hash.is_string() ? trust::decode_base64(hash.get_ref<const std::string&>()) : std::nullopt;
    const bool safe = !path.empty() && path[0] != '/' && path.find('\\') == std::string::npos &&
                      path.find('\0') == std::string::npos &&
                      fs::path(path).lexically_normal() == fs::path(path) &&
                      !path.starts_with("..") && path.back() != '/';
    if (!safe || !decoded || decoded->size() != hash_bytes) {
      fields.fail("digest",
                  fmt::format("`files`: expected relative paths inside the variant with a base64 "
                              "hash each, got `{}`: {}",
                              path.substr(0, 200), hash.dump().substr(0, 100)));
    }
    digest.files.emplace(path, hash.get<std::string>());
  }
  return digest;
}

struct Arch {
  int capability = 0;
  char suffix = 0;  // `a`, `f` or none
  bool ptx = false;
};

// Of a compute capability: far beyond every device, far below what an int holds.
constexpr int kLargestMajor = 999;

std::optional<Arch> parse_arch(std::string_view text) {
  Arch arch;
  if (text.ends_with("+PTX")) {
    arch.ptx = true;
    text.remove_suffix(4);
  }
  if (text.ends_with('a') || text.ends_with('f')) {
    arch.suffix = text.back();
    text.remove_suffix(1);
  }
  if (text.find_first_not_of("0123456789.") != std::string_view::npos) {
    return std::nullopt;  // from_chars would read a sign
  }
  int major = 0, minor = 0;
  const char* end = text.data() + text.size();
  const auto dot = std::from_chars(text.data(), end, major);
  if (dot.ec != std::errc() || dot.ptr == end || *dot.ptr != '.') {
    return std::nullopt;
  }
  const auto last = std::from_chars(dot.ptr + 1, end, minor);
  if (last.ec != std::errc() || last.ptr != end || major > kLargestMajor || minor > 9) {
    return std::nullopt;
  }
  arch.capability = major * 10 + minor;
  return arch;
}

PackageLayer parse_layer(const Fields& fields) {
  PackageLayer layer;
  layer.contract = fields.text("contract");
  layer.has_backward = fields.boolean("has_backward");
  layer.can_torch_compile = fields.boolean("can_torch_compile");
  layer.devices = fields.texts("devices");
  layer.dtypes = fields.texts("dtypes");
  layer.rows = fields.numbers<int64_t>("rows");
  layer.eps = fields.numbers<double>("eps");
  if (const auto* variants = fields.find("variants")) {
    for (const auto& [name, number] : fields.object(*variants, "variants").raw().items()) {
      if (!number.is_number_integer()) {
        fields.fail("type", fmt::format("`variants`: `{}`: expected a whole number", name));
      }
      layer.variants.emplace(name, number.get<int64_t>());
    }
  }
  for (const auto& [name, value] : fields.object(fields.need("ops"), "ops").raw().items()) {
    const Fields op = fields.object(value, "ops." + name);
    LayerOp entry;
    entry.op = op.text("op");
    for (const auto& [argument, source] :
         op.object(op.need("arguments"), "arguments").raw().items()) {
      if (!source.is_string()) {
        op.fail("type", fmt::format("`arguments`: `{}`: expected a text", argument));
      }
      entry.arguments.emplace(argument, source.get<std::string>());
    }
    layer.ops.emplace(name, std::move(entry));
  }
  return layer;
}

// `0.17.0`: three numbers.
bool is_release(std::string_view text) {
  int numbers = 0;
  for (size_t start = 0; start <= text.size(); ++numbers) {
    const size_t end = std::min(text.find('.', start), text.size());
    const auto number = text.substr(start, end - start);
    if (number.empty() || number.size() > 9 ||
        number.find_first_not_of("0123456789") != std::string_view::npos) {
      return false;
    }
    start = end + 1;
  }
  return numbers == 3;
}

KernelDependency parse_dependency(const Fields& fields) {
  KernelDependency dependency;
  dependency.repo_id = fields.text("repo-id");
  const auto* version = fields.find("version");
  const bool is_version =
      version != nullptr && version->is_number_unsigned() && version->get<uint64_t>() <= INT64_MAX;
  if (is_version) {
    dependency.version = version->get<int64_t>();
  }
  if (fields.find("revision") != nullptr) {
    dependency.revision = fields.text("revision");
  }
  const bool has_repository =
      hub::is_repo_id(dependency.repo_id) && dependency.repo_id.find('/') != std::string::npos;
  if (!has_repository || (version != nullptr && !is_version) ||
      is_version == !dependency.revision.empty() || fields.raw().size() != 2) {
    fields.fail(
        "kernel-depends",
        fmt::format("expected `repo-id` and exactly one of `version` and `revision`, got {}",
                    fields.raw().dump().substr(0, 200)));
  }
  return dependency;
}

bool is_commit(std::string_view text) {
  return (text.size() == 40 || text.size() == 64) &&
         text.find_first_not_of("0123456789abcdefABCDEF") == std::string_view::npos;
}

void parse_optional(const Fields& fields, Metadata& metadata) {
  for (const auto& [key, text] : {std::pair{"kernels-minver", &metadata.min_version},
                                  {"upstream", &metadata.upstream},
                                  {"source", &metadata.source}}) {
    if (fields.find(key) != nullptr) {
      *text = fields.text(key);
    }
  }
  if (!metadata.min_version.empty() && !is_release(metadata.min_version)) {
    fields.fail("kernels-minver", fmt::format("`kernels-minver`: expected three numbers, got `{}`",
                                              metadata.min_version.substr(0, 100)));
  }
  if (const auto* depends = fields.find("kernel-depends")) {
    if (!depends->is_array() || depends->size() > kMaxDependencies) {
      fields.fail("kernel-depends", fmt::format("`kernel-depends`: expected an array of at most {}",
                                                kMaxDependencies));
    }
    for (const auto& entry : *depends) {
      metadata.kernel_depends.push_back(parse_dependency(fields.object(entry, "kernel-depends")));
    }
  }
  const auto* provenance = fields.find("provenance");
  for (const char* part : {"kernel-builder", "kernel"}) {
    if (provenance == nullptr || !provenance->is_object() || !provenance->contains(part)) {
      continue;
    }
    const Fields built = fields.object((*provenance)[part], part);
    metadata.is_dirty |= built.boolean("dirty");
    for (const char* key : {"commit", "sha"}) {
      if (built.find(key) != nullptr && !is_commit(built.text(key))) {
        fields.fail("provenance",
                    fmt::format("`{}.{}`: expected 40 or 64 hexadecimal digits", part, key));
      }
    }
  }
}

}  // namespace

std::string KernelDependency::ref() const {
  return version ? fmt::format("v{}", *version) : revision;
}

Metadata read_metadata(const fs::path& file) {
  const json parsed = io::read_json_file(file, "kernel.metadata",
                                         {.max_bytes = kMaxMetadataBytes, .max_depth = 16});
  const Fields fields(parsed, "kernel.metadata", file.string());
  Metadata metadata;
  metadata.name = fields.text("name");
  metadata.id = fields.text("id");
  metadata.license = fields.text("license");
  if (!is_name(metadata.name)) {
    fields.fail("name",
                fmt::format("`name`: expected lower-case letters, digits and dashes, got `{}`",
                            metadata.name.substr(0, 200)));
  }
  if (!is_identifier(metadata.id)) {
    fields.fail("id",
                fmt::format("`id`: expected an identifier, got `{}`", metadata.id.substr(0, 200)));
  }
  const auto& version = fields.need("version");
  if (!version.is_number_unsigned() || version.get<uint64_t>() > INT64_MAX) {
    fields.fail("version", "`version`: expected a whole number from 0");
  }
  metadata.version = version.get<int64_t>();
  fields.need("python-depends");
  metadata.python_depends = fields.texts("python-depends");
  const Fields backend = fields.object(fields.need("backend"), "backend");
  metadata.backend = backend.text("type");
  constexpr std::array<std::string_view, 8> kBackends = {"cann",   "cpu",  "cuda", "metal",
                                                         "neuron", "rocm", "tpu",  "xpu"};
  if (std::find(kBackends.begin(), kBackends.end(), metadata.backend) == kBackends.end()) {
    backend.fail("backend", fmt::format("`type`: expected a known backend, got `{}`",
                                        metadata.backend.substr(0, 200)));
  }
  metadata.archs = backend.texts("archs");
  if (const auto* digest = fields.find("digest")) {
    metadata.digest = parse_digest(fields.object(*digest, "digest"));
  }
  parse_optional(fields, metadata);
  return metadata;
}

bool arch_fits(const std::vector<std::string>& archs, int capability) {
  return archs.empty() || std::any_of(archs.begin(), archs.end(), [&](const std::string& text) {
           const auto arch = parse_arch(text);
           if (!arch) {
             return false;
           }
           if (arch->suffix == 'a') {
             return capability == arch->capability;
           }
           const bool same_major = capability / 10 == arch->capability / 10;
           return capability >= arch->capability && (same_major || arch->ptx);
         });
}

std::map<std::string, PackageLayer> read_layers(const fs::path& folder) {
  std::map<std::string, PackageLayer> layers;
  const fs::path file = folder / "layers.json";
  if (!fs::exists(file)) {
    return layers;
  }
  const json parsed =
      io::read_json_file(file, "kernel.layers", {.max_bytes = kMaxMetadataBytes, .max_depth = 16});
  const Fields fields(parsed, "kernel.layers", file.string());
  if (fields.need("schema") != 1) {
    fields.fail("schema", "`schema`: expected 1");
  }
  for (const auto& [name, value] : fields.object(fields.need("layers"), "layers").raw().items()) {
    layers.emplace(name, parse_layer(fields.object(value, "layers." + name)));
  }
  return layers;
}

}  // namespace graft::kernel
