// A model's weights in a folder: one model.safetensors, or shards with
// model.safetensors.index.json.
#pragma once

#include <filesystem>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "graft/io/safetensors.h"

namespace graft::io {

class Checkpoint {
 public:
  // Maps and checks every shard.
  // Throws   NotFound `io.checkpoint.no-weights`; FormatError `io.checkpoint.index` for an index
  //          whose shards lie outside the folder, are missing, or do not hold exactly what it
  //          lists and sums up; what SafetensorsFile::open and parse_json throw.
  static Checkpoint open(const std::filesystem::path& folder);

  const std::filesystem::path& folder() const { return folder_; }
  const std::vector<SafetensorsFile>& shards() const { return shards_; }
  // Every tensor's name, in the order of the shards.
  std::vector<std::string> names() const;
  // Null when there is no tensor of that name.
  const TensorView* find(std::string_view name) const;
  // The shard that holds the tensor; it must exist.
  const SafetensorsFile& shard_of(std::string_view name) const;
  uint64_t total_bytes() const;

 private:
  std::filesystem::path folder_;
  std::vector<SafetensorsFile> shards_;
  std::unordered_map<std::string_view, size_t> shard_index_;
};

}  // namespace graft::io
