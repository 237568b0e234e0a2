// Writing of safetensors: the header first, then each tensor, into a temporary file beside the
// target that is renamed when it is on disk.
#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>

#include <fcntl.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <unistd.h>

#include "graft/core/error.h"
#include "graft/core/file_status.h"
#include "graft/io/excerpt.h"
#include "graft/io/safetensors.h"

namespace graft::io {

namespace {

namespace fs = std::filesystem;

// A file that removes itself unless it gets its final name.
class TemporaryFile {
 public:
  explicit TemporaryFile(const fs::path& target) : target_(target) {
    static std::atomic<uint64_t> counter{0};
    path_ = target;
    path_ += fmt::format(".{}-{}.tmp", getpid(), counter++);
    descriptor_ = ::open(path_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (descriptor_ < 0) {
      fail("create", errno);
    }
  }
  TemporaryFile(const TemporaryFile&) = delete;
  TemporaryFile& operator=(const TemporaryFile&) = delete;
  ~TemporaryFile() {
    if (descriptor_ >= 0) {
      ::close(descriptor_);
    }
    if (!path_.empty()) {
      ::unlink(path_.c_str());
    }
  }

  void write(std::span<const std::byte> bytes) {
    while (!bytes.empty()) {
      const ssize_t count = ::write(descriptor_, bytes.data(), bytes.size());
      if (count < 0 && errno == EINTR) {
        continue;
      }
      if (count < 0) {
        fail("write", errno);
      }
      bytes = bytes.subspan(static_cast<size_t>(count));
    }
  }

  // Puts the file in the target's place.
  void commit() {
    if (fsync(descriptor_) != 0) {
      fail("flush", errno);
    }
    if (::rename(path_.c_str(), target_.c_str()) != 0) {
      fail("rename", errno);
    }
    path_.clear();
  }

 private:
  [[noreturn]] void fail(std::string_view step, int reason) const {
    throw Error("io.safetensors", "write",
                fmt::format("`{}`: expected to {} `{}`, got: {}", target_.string(), step,
                            path_.string(), std::strerror(reason)));
  }

  fs::path target_;
  fs::path path_;
  int descriptor_ = -1;
};

void check_tensors(const fs::path& path, const std::vector<TensorView>& tensors,
                   const std::map<std::string, std::string>& metadata) {
  const auto refuse = [&](const std::string& text) {
    throw InvalidArgument("io.safetensors", "tensor", fmt::format("`{}`: {}", path.string(), text));
  };
  std::vector<std::string_view> names;
  for (const auto& tensor : tensors) {
    if (!is_tensor_name(tensor.name)) {
      refuse(
          fmt::format("tensor `{}`: expected a name of 1 to 1024 bytes of UTF-8 without control "
                      "characters and `..`, got another",
                      excerpt(tensor.name)));
    }
    const auto expected = packed_size_bytes(tensor.dtype, tensor.shape);
    if (!expected || *expected != tensor.bytes.size()) {
      refuse(fmt::format("tensor `{}`: expected the bytes of {} elements of shape [{}], got {}",
                         excerpt(tensor.name), name(tensor.dtype), fmt::join(tensor.shape, ", "),
                         tensor.bytes.size()));
    }
    names.push_back(tensor.name);
  }
  std::sort(names.begin(), names.end());
  if (const auto twice = std::adjacent_find(names.begin(), names.end()); twice != names.end()) {
    refuse(fmt::format("tensor `{}`: expected unique names, got it twice", excerpt(*twice)));
  }
  for (const auto& [key, value] : metadata) {
    if (!is_utf8(key) || !is_utf8(value)) {
      refuse(fmt::format("metadata `{}`: expected UTF-8, got other bytes", excerpt(key)));
    }
  }
}

std::string header_of(const std::vector<TensorView>& tensors,
                      const std::map<std::string, std::string>& metadata) {
  nlohmann::ordered_json header = nlohmann::ordered_json::object();
  auto& members = header.get_ref<nlohmann::ordered_json::object_t&>();
  if (!metadata.empty()) {
    members.emplace_back("__metadata__", metadata);
  }
  uint64_t offset = 0;
  for (const auto& tensor : tensors) {
    const uint64_t end = offset + tensor.bytes.size();
    members.emplace_back(tensor.name, nlohmann::ordered_json{{"dtype", name(tensor.dtype)},
                                                             {"shape", tensor.shape},
                                                             {"data_offsets", {offset, end}}});
    offset = end;
  }
  std::string text = header.dump();
  text.append((8 - text.size() % 8) % 8, ' ');
  return text;
}

}  // namespace

void write_safetensors(const fs::path& path, std::vector<TensorView> tensors,
                       const std::map<std::string, std::string>& metadata) {
  check_tensors(path, tensors, metadata);
  // The file is made beside and renamed: over a device (/dev/null) that would remove the device.
  if (is_there(path) && !is_file(path)) {
    throw InvalidArgument("io.safetensors", "not-a-file",
                          fmt::format("`{}`: expected a file or a new name", path.string()));
  }
  std::sort(tensors.begin(), tensors.end(), [](const TensorView& a, const TensorView& b) {
    return a.dtype != b.dtype ? a.dtype > b.dtype : a.name < b.name;
  });
  const std::string header = header_of(tensors, metadata);
  const uint64_t header_bytes = header.size();
  TemporaryFile file(path);
  file.write(std::as_bytes(std::span(&header_bytes, 1)));
  file.write(std::as_bytes(std::span(header)));
  for (const auto& tensor : tensors) {
    file.write(tensor.bytes);
  }
  file.commit();
}

}  // namespace graft::io
