// A folder of this process's own that ends with the object.
#pragma once

#include <cstdlib>
#include <filesystem>
#include <string>

namespace graft {

class TemporaryFolder {
 public:
  // `<temporary folder>/<prefix>-XXXXXX`. Where it cannot be made, `fail` is called with the pattern, errno
  // set, and has to throw.
  template <typename Fail>
  TemporaryFolder(const std::string& prefix, const Fail& fail) {
    std::string name = (std::filesystem::temp_directory_path() / (prefix + "-XXXXXX")).string();
    if (mkdtemp(name.data()) == nullptr) {
      fail(name);
    }
    path_ = name;
  }
  ~TemporaryFolder() {
    std::error_code status;
    std::filesystem::remove_all(path_, status);
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;

  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

}  // namespace graft
