#include "graft/hub/content_hash.h"

#include <fstream>
#include <memory>

#include <fmt/format.h>
#include <openssl/evp.h>
#include <sys/stat.h>

#include "graft/core/error.h"
#include "graft/core/log.h"
#include "graft/hub/disk.h"
#include "graft/hub/environment.h"

namespace graft::hub {

namespace {

namespace fs = std::filesystem;

constexpr size_t kBufferBytes = 1 << 20;

class Hasher {
 public:
  explicit Hasher(const EVP_MD* algorithm) : context_(EVP_MD_CTX_new(), EVP_MD_CTX_free) {
    EVP_DigestInit_ex(context_.get(), algorithm, nullptr);
  }
  void update(std::string_view piece) {
    EVP_DigestUpdate(context_.get(), piece.data(), piece.size());
  }
  std::string hex() {
    unsigned char bytes[EVP_MAX_MD_SIZE];
    unsigned int size = 0;
    EVP_DigestFinal_ex(context_.get(), bytes, &size);
    std::string text;
    for (unsigned int i = 0; i < size; ++i) {
      text += fmt::format("{:02x}", bytes[i]);
    }
    return text;
  }

 private:
  std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)> context_;
};

struct Receipt {
  fs::path file;
  std::string text;
};

// Where the receipt of a file lies and what stands in it; nothing for what is no regular file.
std::optional<Receipt> receipt_of(const fs::path& file, std::string_view content_id) {
  struct stat now {};
  if (stat(file.c_str(), &now) != 0 || !S_ISREG(now.st_mode)) {
    return std::nullopt;
  }
  return Receipt{private_folder() / "receipts" / content_id.substr(0, 2) /
                     fmt::format("{}-{:x}-{}", content_id, now.st_dev, now.st_ino),
                 fmt::format("{} {}.{:09} {}.{:09}", now.st_size, now.st_mtim.tv_sec,
                             now.st_mtim.tv_nsec, now.st_ctim.tv_sec, now.st_ctim.tv_nsec)};
}

}  // namespace

bool is_content_id(std::string_view text) {
  return (text.size() == 40 || text.size() == 64) &&
         text.find_first_not_of("0123456789abcdef") == std::string_view::npos;
}

bool has_content(const fs::path& file, std::string_view content_id) {
  std::error_code status;
  const uint64_t size_bytes = fs::file_size(file, status);
  if (status || !is_content_id(content_id)) {
    return false;  // a pipe has no size, and would be waited for
  }
  std::ifstream in(file, std::ios::binary);
  if (!in) {
    return false;
  }
  Hasher hash(content_id.size() == 64 ? EVP_sha256() : EVP_sha1());
  if (content_id.size() == 40) {
    const auto header = fmt::format("blob {}", size_bytes);
    hash.update({header.c_str(), header.size() + 1});  // with its NUL
  }
  std::string buffer(kBufferBytes, '\0');
  while (in.read(buffer.data(), static_cast<std::streamsize>(buffer.size())) || in.gcount() > 0) {
    hash.update({buffer.data(), static_cast<size_t>(in.gcount())});
  }
  return hash.hex() == content_id;
}

bool has_content_remembered(const fs::path& file, std::string_view content_id) {
  if (!is_content_id(content_id)) {
    return false;
  }
  const auto receipt = receipt_of(file, content_id);
  if (receipt) {
    std::ifstream in(receipt->file);
    std::string text;
    if (std::getline(in, text) && text == receipt->text) {
      return true;
    }
  }
  if (!has_content(file, content_id)) {
    return false;
  }
  // Only what did not change while it was read is remembered.
  if (const auto after = receipt_of(file, content_id);
      receipt && after && after->text == receipt->text) {
    remember_content(file, content_id);
  }
  return true;
}

void remember_content(const fs::path& file, std::string_view content_id) {
  const auto receipt = receipt_of(file, content_id);
  if (!receipt) {
    return;
  }
  try {
    write_atomically(receipt->file, receipt->text);
  } catch (const Error& error) {
    log()->debug("not remembered: {}", error.what());  // the file is hashed again next time
  }
}

std::optional<std::string> promised_content(const fs::path& pointer) {
  std::error_code status;
  const auto target = fs::read_symlink(pointer, status).filename().string();
  return !status && is_content_id(target) ? std::optional(target) : std::nullopt;
}

std::string sha256_of(std::string_view text) {
  Hasher hash(EVP_sha256());
  hash.update(text);
  return hash.hex();
}

}  // namespace graft::hub
