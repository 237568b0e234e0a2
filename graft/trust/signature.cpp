#include "graft/trust/signature.h"

#include <algorithm>
#include <fstream>
#include <optional>
#include <string_view>
#include <vector>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <nlohmann/json.hpp>

#include "graft/core/error.h"
#include "graft/io/mapped_file.h"
#include "graft/trust/encoding.h"

namespace graft::trust {

namespace {

namespace fs = std::filesystem;

constexpr size_t kMaxFileBytes = 1 << 20;
constexpr size_t kMaxFiles = 4096;

// Nothing for a file that is not there. A copy, since what was hashed must be what is verified; and
// not mapped, since a file that somebody cuts short meanwhile would end the process.
std::optional<std::string> read_file(const fs::path& file) {
  std::error_code status;
  if (!fs::is_regular_file(file, status)) {
    return std::nullopt;
  }
  std::ifstream in(file, std::ios::binary);
  std::string content(kMaxFileBytes + 1, '\0');
  in.read(content.data(), static_cast<std::streamsize>(content.size()));
  content.resize(static_cast<size_t>(in.gcount()));
  if (in.bad() || content.size() > kMaxFileBytes) {
    throw FormatError(
        "trust.signature", "size",
        fmt::format("`{}`: expected a file of at most {} bytes", file.string(), kMaxFileBytes));
  }
  return content;
}

// Whether metadata.json names the hashes of the other files; broken text names none.
bool has_digest(const std::string& metadata) {
  const auto parsed = nlohmann::json::parse(metadata, nullptr, /*allow_exceptions=*/false);
  return parsed.is_object() && parsed.contains("digest") && parsed["digest"].is_object();
}

// Over the names and hashes of all files, but Python's bytecode.
std::string digest_of_files(const fs::path& folder) {
  std::vector<std::string> lines;
  std::error_code status;
  for (const auto& entry : fs::recursive_directory_iterator(folder, status)) {
    const std::string name = entry.path().lexically_relative(folder).string();
    if (name.find("__pycache__/") == std::string::npos && entry.is_regular_file(status) &&
        lines.size() < kMaxFiles) {
      const auto mapped = io::MappedFile::open(entry.path());
      const auto bytes = mapped->bytes();
      lines.push_back(fmt::format(
          "{} {}\n",
          to_hex(sha256_bytes({reinterpret_cast<const char*>(bytes.data()), bytes.size()})), name));
    }
  }
  std::sort(lines.begin(), lines.end());
  return to_hex(sha256_bytes(fmt::format("{}", fmt::join(lines, ""))));
}

// The text of an error without its code and hint, for a sentence.
std::string problem_of(const Error& error) {
  return fmt::format("{} ({})", error.what(), error.code());
}

}  // namespace

std::string SignatureCheck::signer() const {
  if (state != SignatureState::kValid) {
    return "";
  }
  return verified.signer.build_signer.empty() ? verified.signer.subject
                                              : verified.signer.build_signer;
}

SignatureCheck check_signature(const fs::path& folder, const fs::path& root_file) {
  const auto metadata = read_file(folder / "metadata.json");
  if (!metadata) {
    throw NotFound("trust.signature", "metadata",
                   fmt::format("`{}`: expected metadata.json, got none", folder.string()));
  }
  SignatureCheck check;
  check.digest = has_digest(*metadata) ? to_hex(sha256_bytes(*metadata)) : digest_of_files(folder);
  const fs::path bundle_file = folder / "metadata.json.sigstore";
  std::error_code status;
  if (fs::symlink_status(bundle_file, status).type() == fs::file_type::not_found) {
    return check;
  }
  if (root_file.empty()) {
    check.state = SignatureState::kUnchecked;
    check.problem = "no trusted root is installed";
    return check;
  }
  const auto root_text = read_file(root_file);
  if (!root_text) {
    throw NotFound("trust.root", "file",
                   fmt::format("`{}`: expected a trusted root, got none", root_file.string()),
                   "GRAFT_TRUSTED_ROOT names the file");
  }
  const auto root = sigstore::parse_trusted_root(*root_text, root_file.string());
  try {
    const auto bundle_text = read_file(bundle_file);
    if (!bundle_text) {
      throw FormatError("trust.bundle", "file",
                        fmt::format("`{}`: expected a regular file", bundle_file.string()));
    }
    const auto bundle = sigstore::parse_bundle(*bundle_text, bundle_file.string());
    check.verified = sigstore::verify_bundle(bundle, *metadata, root);
    check.state = SignatureState::kValid;
  } catch (const Error& error) {
    check.state = SignatureState::kBroken;
    check.problem = problem_of(error);
  }
  return check;
}

}  // namespace graft::trust
