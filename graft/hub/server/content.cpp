#include "graft/hub/server/content.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <vector>

#include <fcntl.h>
#include <fmt/format.h>
#include <openssl/evp.h>
#include <sys/stat.h>
#include <unistd.h>

#include "graft/core/error.h"

namespace graft::hub::server {

namespace {

namespace fs = std::filesystem;

class Hasher {
 public:
  explicit Hasher(const EVP_MD* kind) : context_(EVP_MD_CTX_new(), EVP_MD_CTX_free) {
    check(context_ != nullptr && EVP_DigestInit_ex(context_.get(), kind, nullptr) == 1);
  }

  void add(std::string_view piece) {
    check(EVP_DigestUpdate(context_.get(), piece.data(), piece.size()) == 1);
  }

  std::string hex() {
    std::array<unsigned char, EVP_MAX_MD_SIZE> digest{};
    unsigned int size = 0;
    check(EVP_DigestFinal_ex(context_.get(), digest.data(), &size) == 1);
    std::string text;
    for (unsigned int i = 0; i < size; ++i) {
      text += fmt::format("{:02x}", digest[i]);
    }
    return text;
  }

 private:
  static void check(bool done) {
    if (!done) {
      throw InternalError("hub.server", "hash", "OpenSSL: expected a digest, got a failure");
    }
  }

  std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)> context_;
};

std::string hex_of(const EVP_MD* kind, std::string_view text) {
  Hasher hasher(kind);
  hasher.add(text);
  return hasher.hex();
}

FileState to_state(const struct stat& info) {
  constexpr int64_t kNanoseconds = 1'000'000'000;
  return {info.st_dev, info.st_ino, static_cast<uint64_t>(info.st_size),
          info.st_mtim.tv_sec * kNanoseconds + info.st_mtim.tv_nsec};
}

bool is_below(const fs::path& root, const fs::path& path) {
  const auto [end, unused] = std::mismatch(root.begin(), root.end(), path.begin(), path.end());
  return end == root.end();
}

}  // namespace

std::optional<FileState> state_of(const fs::path& path) {
  struct stat info {};
  return ::lstat(path.c_str(), &info) == 0 && S_ISREG(info.st_mode) ? std::optional(to_state(info))
                                                                    : std::nullopt;
}

std::shared_ptr<OpenFile> OpenFile::open_below(const fs::path& root, const fs::path& path) {
  // O_NONBLOCK: a named pipe must not hold the server.
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (descriptor < 0) {
    return nullptr;
  }
  std::shared_ptr<OpenFile> file(new OpenFile(descriptor));
  std::error_code error;
  const auto place = fs::read_symlink(fmt::format("/proc/self/fd/{}", descriptor), error);
  struct stat info {};
  if (error || !is_below(root, place) || ::fstat(descriptor, &info) != 0 ||
      !S_ISREG(info.st_mode)) {
    return nullptr;
  }
  file->state_ = to_state(info);
  return file;
}

OpenFile::~OpenFile() { ::close(descriptor_); }

size_t OpenFile::read(uint64_t offset, char* out, size_t count) const {
  size_t done = 0;
  while (done < count) {
    const auto got =
        ::pread(descriptor_, out + done, count - done, static_cast<off_t>(offset + done));
    if (got < 0 && errno == EINTR) {
      continue;
    }
    if (got <= 0) {
      break;
    }
    done += static_cast<size_t>(got);
  }
  return done;
}

std::optional<ContentIds> OpenFile::hash() const {
  Hasher git(EVP_sha1());
  Hasher sha256(EVP_sha256());
  git.add(fmt::format("blob {}", state_.size_bytes));
  git.add(std::string_view("\0", 1));
  std::vector<char> buffer(1 << 20);
  uint64_t done = 0;
  while (const size_t got = read(done, buffer.data(), buffer.size())) {
    git.add({buffer.data(), got});
    sha256.add({buffer.data(), got});
    done += got;
  }
  if (done != state_.size_bytes) {
    return std::nullopt;
  }
  return ContentIds{git.hex(), sha256.hex()};
}

std::string sha1_hex(std::string_view text) { return hex_of(EVP_sha1(), text); }
std::string sha256_hex(std::string_view text) { return hex_of(EVP_sha256(), text); }

}  // namespace graft::hub::server
