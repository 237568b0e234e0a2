#include "graft/io/checkpoint.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <optional>
#include <set>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "graft/core/error.h"
#include "graft/io/excerpt.h"
#include "graft/io/json.h"

namespace graft::io {

namespace {

namespace fs = std::filesystem;

constexpr size_t kMaxFileNameBytes = 255;  // what file systems allow

[[noreturn]] void fail_index(const fs::path& path, const std::string& text) {
  throw FormatError("io.checkpoint", "index", fmt::format("`{}`: {}", path.string(), text));
}

// Whether something lies there, also where the system cannot say what (a loop of links, a folder
// without access): opening it then tells the reason.
bool is_there(const fs::path& path) {
  std::error_code ignored;
  return fs::status(path, ignored).type() != fs::file_type::not_found;
}

struct Index {
  std::map<std::string, std::string> weight_map;  // tensor name -> shard file name
  std::optional<uint64_t> total_size;             // bytes of all tensors
};

// `metadata.total_size`; some writers store it as a floating-point number.
std::optional<uint64_t> total_size_of(const nlohmann::json& index, const fs::path& path) {
  const auto metadata = index.find("metadata");
  if (metadata == index.end() || !metadata->is_object() || !metadata->contains("total_size")) {
    return std::nullopt;
  }
  const auto& value = (*metadata)["total_size"];
  const bool whole =
      value.is_number_unsigned() ||
      (value.is_number_float() && value.get<double>() >= 0 && value.get<double>() < 0x1p63 &&
       std::floor(value.get<double>()) == value.get<double>());
  if (!whole) {
    fail_index(path, fmt::format("metadata.total_size: expected a number of bytes, got {}",
                                 describe(value)));
  }
  return value.get<uint64_t>();
}

Index read_index(const fs::path& path) {
  const auto index =
      read_json_file(path, "io.checkpoint", {.max_bytes = 100 << 20, .max_depth = 8});
  const auto map = index.find("weight_map");  // the end for what is no object
  if (!index.is_object() || map == index.end() || !map->is_object() || map->empty()) {
    fail_index(path, "weight_map: expected an object of tensor names and file names");
  }
  Index result;
  for (const auto& [name, value] : map->items()) {
    const std::string shard = value.is_string() ? value.get<std::string>() : "";
    const bool plain = is_tensor_name(shard) &&  // the same rules: short, printable, no `..`
                       shard.size() <= kMaxFileNameBytes &&
                       shard.find_first_of("/\\") == std::string::npos && shard != ".";
    if (!plain) {
      fail_index(path, fmt::format("weight_map: `{}`: expected a file name in this folder, got {}",
                                   excerpt(name), describe(value)));
    }
    result.weight_map.emplace(name, shard);
  }
  result.total_size = total_size_of(index, path);
  return result;
}

void check_shards(const fs::path& index_path, const std::map<std::string, std::string>& weight_map,
                  const std::vector<SafetensorsFile>& shards) {
  std::map<std::string, std::string> found;
  std::vector<std::string> problems;
  for (const auto& shard : shards) {
    for (const auto& tensor : shard.tensors()) {
      const auto [entry, is_new] = found.emplace(tensor.name, shard.path().filename().string());
      if (!is_new) {
        problems.push_back(fmt::format("`{}` stands in {} and in {}", excerpt(tensor.name),
                                       entry->second, shard.path().filename().string()));
      }
    }
  }
  for (const auto& [name, shard] : weight_map) {
    const auto entry = found.find(name);
    if (entry == found.end() || entry->second != shard) {
      problems.push_back(fmt::format("`{}` is listed for {} but stands {}", excerpt(name), shard,
                                     entry == found.end() ? "nowhere" : "in " + entry->second));
    }
  }
  for (const auto& [name, shard] : found) {
    if (!weight_map.contains(name)) {
      problems.push_back(fmt::format("`{}` stands in {} but is not listed", excerpt(name), shard));
    }
  }
  if (!problems.empty()) {
    const size_t shown = std::min<size_t>(problems.size(), 20);
    fail_index(
        index_path,
        fmt::format(
            "expected exactly the listed tensors, got {} differences: {}", problems.size(),
            fmt::join(problems.begin(), problems.begin() + static_cast<ptrdiff_t>(shown), "; ")));
  }
}

}  // namespace

Checkpoint Checkpoint::open(const fs::path& folder) {
  Checkpoint result;
  result.folder_ = folder;
  const fs::path single = folder / "model.safetensors";
  const fs::path index_path = folder / "model.safetensors.index.json";
  if (is_there(single)) {
    result.shards_.push_back(SafetensorsFile::open(single));
  } else if (is_there(index_path)) {
    const Index index = read_index(index_path);
    std::set<std::string> names;
    for (const auto& [name, shard] : index.weight_map) {
      names.insert(shard);
    }
    for (const auto& name : names) {
      if (!is_there(folder / name)) {
        fail_index(index_path,
                   fmt::format("weight_map: expected shard `{}` beside the index, got none", name));
      }
      result.shards_.push_back(SafetensorsFile::open(folder / name));
    }
    check_shards(index_path, index.weight_map, result.shards_);
    if (index.total_size && *index.total_size != result.total_bytes()) {
      fail_index(index_path, fmt::format("metadata.total_size: expected {}, the sum over the "
                                         "shards, got {}",
                                         result.total_bytes(), *index.total_size));
    }
  } else {
    throw NotFound(
        "io.checkpoint", "no-weights",
        fmt::format("`{}`: expected model.safetensors or model.safetensors.index.json, got neither",
                    folder.string()));
  }
  for (size_t i = 0; i < result.shards_.size(); ++i) {
    for (const auto& tensor : result.shards_[i].tensors()) {
      result.shard_index_.emplace(tensor.name, i);
    }
  }
  return result;
}

std::vector<std::string> Checkpoint::names() const {
  std::vector<std::string> names;
  for (const auto& shard : shards_) {
    for (const auto& tensor : shard.tensors()) {
      names.push_back(tensor.name);
    }
  }
  return names;
}

const TensorView* Checkpoint::find(std::string_view name) const {
  const auto found = shard_index_.find(name);
  return found == shard_index_.end() ? nullptr : shards_[found->second].find(name);
}

const SafetensorsFile& Checkpoint::shard_of(std::string_view name) const {
  return shards_[shard_index_.at(name)];
}

uint64_t Checkpoint::total_bytes() const {
  uint64_t total = 0;
  for (const auto& shard : shards_) {
    for (const auto& tensor : shard.tensors()) {
      total += tensor.bytes.size();
    }
  }
  return total;
}

}  // namespace graft::io
