#include "graft/kernel/digest.h"

#include <memory>
#include <set>

#include <fmt/format.h>
#include <openssl/evp.h>

#include "graft/io/mapped_file.h"

namespace graft::kernel {

namespace {

namespace fs = std::filesystem;

constexpr size_t kMaxFiles = 4096;

bool is_hashed(const std::string& relative) {
  const bool bytecode =
      relative.ends_with(".pyc") || relative.find("__pycache__/") != std::string::npos;
  return !bytecode && relative != "metadata.json" && relative != "metadata.json.sigstore";
}

// A link may point anywhere inside the repository (the Hub's cache is made of links to blobs beside
// it).
bool stays_inside(const fs::path& file, const fs::path& folder) {
  const auto repository = fs::weakly_canonical(folder / "../../../..");
  const auto inside = fs::canonical(file).lexically_relative(repository);
  return !inside.empty() && *inside.begin() != "..";
}

}  // namespace

std::string file_hash(const fs::path& file, const std::string& algorithm) {
  const auto mapped = io::MappedFile::open(file);
  const std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)> context(EVP_MD_CTX_new(),
                                                                        EVP_MD_CTX_free);
  EVP_DigestInit_ex(context.get(), algorithm == "sha512" ? EVP_sha512() : EVP_sha256(), nullptr);
  EVP_DigestUpdate(context.get(), mapped->bytes().data(), mapped->bytes().size());
  unsigned char hash[EVP_MAX_MD_SIZE];
  unsigned int size = 0;
  EVP_DigestFinal_ex(context.get(), hash, &size);
  std::string text(4 * ((size + 2) / 3) + 1, '\0');
  EVP_EncodeBlock(reinterpret_cast<unsigned char*>(text.data()), hash, static_cast<int>(size));
  text.pop_back();
  return text;
}

std::vector<std::string> digest_violations(const fs::path& folder, const Digest& digest) {
  std::vector<std::string> violations;
  std::set<std::string> seen;
  for (const auto& entry : fs::recursive_directory_iterator(folder)) {
    const std::string relative = entry.path().lexically_relative(folder).string();
    if (entry.is_directory() || !is_hashed(relative)) {
      continue;
    }
    if (seen.size() >= kMaxFiles) {
      violations.push_back(fmt::format("more than {} files", kMaxFiles));
      break;
    }
    seen.insert(relative);
    if (!entry.is_regular_file()) {
      violations.push_back(fmt::format("`{}` is no regular file", relative));
    } else if (entry.is_symlink() && !stays_inside(entry.path(), folder)) {
      violations.push_back(fmt::format("`{}` links to outside the repository", relative));
    } else if (const auto expected = digest.files.find(relative); expected == digest.files.end()) {
      violations.push_back(fmt::format("`{}` is not listed", relative));
    } else if (const auto hash = file_hash(entry.path(), digest.algorithm);
               hash != expected->second) {
      violations.push_back(fmt::format("`{}`: expected {}:{}, got {}", relative, digest.algorithm,
                                       expected->second, hash));
    }
  }
  for (const auto& [path, hash] : digest.files) {
    if (!seen.contains(path)) {
      violations.push_back(fmt::format("`{}` is missing", path));
    }
  }
  return violations;
}

}  // namespace graft::kernel
