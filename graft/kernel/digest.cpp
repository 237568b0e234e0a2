#include "graft/kernel/digest.h"

#include <memory>
#include <set>

#include <fmt/format.h>
#include <openssl/evp.h>

#include "graft/io/mapped_file.h"

namespace graft::kernel {

namespace {

namespace fs = std::filesystem;

constexpr size_t kMaxEntries = 4096;

// What Python leaves beside its sources is no part of a package. Bytecode elsewhere is: Python would
// run it without a source.
bool is_hashed(const std::string& relative) {
  const bool left_by_python =
      relative.starts_with("__pycache__/") || relative.find("/__pycache__/") != std::string::npos;
  return !left_by_python && relative != "metadata.json" && relative != "metadata.json.sigstore";
}

// A link may point inside the variant, or, in the Hub's cache, to the blobs of its own repository
// (<repository>/snapshots/<commit>/build/<variant>).
bool stays_inside(const fs::path& file, const fs::path& folder) {
  const auto holds = [target = fs::canonical(file)](const fs::path& root) {
    const auto relative = target.lexically_relative(fs::weakly_canonical(root));
    return !relative.empty() && *relative.begin() != "..";
  };
  const fs::path snapshots = fs::absolute(folder).lexically_normal() / "../../..";
  const bool cached = snapshots.lexically_normal().parent_path().filename() == "snapshots";
  return holds(folder) || (cached && holds(snapshots / "../blobs"));
}

std::string violation_of(const fs::directory_entry& entry, const std::string& relative,
                         const fs::path& folder, const Digest& digest,
                         const std::map<std::string, fs::path>& sealed) {
  if (!entry.is_regular_file()) {
    return fmt::format("`{}` is no regular file", relative);
  }
  if (entry.is_symlink() && !stays_inside(entry.path(), folder)) {
    return fmt::format("`{}` links to outside the repository", relative);
  }
  const auto expected = digest.files.find(relative);
  if (expected == digest.files.end()) {
    return fmt::format("`{}` is not listed", relative);
  }
  const auto copy = sealed.find(relative);
  const auto hash = file_hash(copy == sealed.end() ? entry.path() : copy->second, digest.algorithm);
  return hash == expected->second ? ""
                                  : fmt::format("`{}`: expected {}:{}, got {}", relative,
                                                digest.algorithm, expected->second, hash);
}

}  // namespace

std::string text_hash(std::string_view text) {
  unsigned char hash[EVP_MAX_MD_SIZE];
  unsigned int size = 0;
  EVP_Digest(text.data(), text.size(), hash, &size, EVP_sha256(), nullptr);
  std::string hex;
  for (unsigned int i = 0; i < size; ++i) {
    hex += fmt::format("{:02x}", hash[i]);
  }
  return hex;
}

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

std::vector<std::string> digest_violations(const fs::path& folder, const Digest& digest,
                                           const std::map<std::string, fs::path>& sealed) {
  std::vector<std::string> violations;
  std::set<std::string> seen;
  size_t num_entries = 0;
  for (const auto& entry : fs::recursive_directory_iterator(folder)) {
    if (++num_entries > kMaxEntries) {
      return {fmt::format("more than {} files and folders", kMaxEntries)};
    }
    const std::string relative = entry.path().lexically_relative(folder).string();
    if (!is_hashed(relative) || (entry.is_directory() && !entry.is_symlink())) {
      continue;
    }
    seen.insert(relative);
    if (auto violation = violation_of(entry, relative, folder, digest, sealed);
        !violation.empty()) {
      violations.push_back(std::move(violation));
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
