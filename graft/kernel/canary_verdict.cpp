#include "graft/kernel/canary_verdict.h"

#include <array>
#include <fstream>
#include <stdexcept>

#include <fmt/format.h>
#include <sys/stat.h>

#include "graft/core/error.h"
#include "graft/core/warn.h"
#include "graft/hub/disk.h"
#include "graft/io/json.h"
#include "graft/kernel/digest.h"
#include "graft/trust/ownership.h"

namespace graft::kernel {

namespace {

namespace fs = std::filesystem;

constexpr std::array<std::string_view, 9> kNames = {
    "ok", "crash", "exit", "hang", "out-of-memory", "output", "forbidden", "load", "not-isolated"};
constexpr int kSchema = 2;
constexpr size_t kMaxBytes = 1 << 20;

// Why what is there is not taken for this user's own record or its folder, or an empty text.
std::string record_refusal(const fs::path& path, fs::file_type type) {
  std::error_code status;
  if (fs::symlink_status(path, status).type() != type) {
    return fmt::format("`{}` is of another kind", path.string());
  }
  const std::string stranger = trust::stranger_at(path, trust::Sharing::kNone);
  return stranger.empty() ? "" : fmt::format("`{}` {}", path.string(), stranger);
}

}  // namespace

std::string_view canary_status_name(CanaryStatus status) {
  return kNames.at(static_cast<size_t>(status));
}

nlohmann::json to_json(const CanaryVerdict& verdict) {
  nlohmann::json wrong = nlohmann::json::array();
  for (const auto& answer : verdict.wrong) {
    wrong.push_back({{"layer", answer.layer},
                     {"variant", answer.variant},
                     {"dtype", answer.dtype},
                     {"reason", answer.reason}});
  }
  return {{"status", canary_status_name(verdict.status)},
          {"detail", verdict.detail},
          {"gaps", verdict.gaps},
          {"wrong", std::move(wrong)},
          {"num_checks", verdict.num_checks},
          {"unchecked", verdict.unchecked},
          {"seconds", verdict.seconds}};
}

CanaryVerdict verdict_from_json(const nlohmann::json& json) {
  CanaryVerdict verdict;
  const auto name = json.at("status").get<std::string>();
  size_t index = 0;
  while (kNames.at(index) != name) {
    ++index;
  }
  verdict.status = static_cast<CanaryStatus>(index);
  verdict.detail = json.at("detail");
  verdict.gaps = json.at("gaps").get<std::vector<std::string>>();
  for (const auto& answer : json.at("wrong")) {
    verdict.wrong.push_back(
        {answer.at("layer"), answer.at("variant"), answer.at("dtype"), answer.at("reason")});
  }
  verdict.num_checks = json.at("num_checks");
  verdict.unchecked = json.at("unchecked").get<std::vector<std::string>>();
  verdict.seconds = json.at("seconds");
  return verdict;
}

CanaryRecords::CanaryRecords(fs::path folder) : folder_(std::move(folder)) {}

fs::path CanaryRecords::file_of(const std::string& key) const { return folder_ / (key + ".json"); }

std::optional<CanaryVerdict> CanaryRecords::find(const std::string& key) const {
  const fs::path file = file_of(key);
  std::error_code status;
  if (!fs::exists(fs::symlink_status(file, status))) {
    return std::nullopt;
  }
  std::string refusal = record_refusal(folder_, fs::file_type::directory);
  refusal = refusal.empty() ? record_refusal(file, fs::file_type::regular) : refusal;
  try {
    if (refusal.empty()) {
      const auto json = io::read_json_file(file, "kernel.canary", {.max_bytes = kMaxBytes});
      const auto& body = json.at("verdict");
      if (json.at("schema") == kSchema && json.at("key") == key &&
          json.at("checksum") == text_hash(key + body.dump())) {
        return verdict_from_json(body);
      }
      refusal = "its content is not what was written";
    }
  } catch (const std::exception& error) {
    refusal = error.what();
  }
  warn(
      fmt::format("[kernel.canary] the remembered verdict `{}` is not used: {}; the package is "
                  "run again",
                  file.string(), refusal));
  return std::nullopt;
}

void CanaryRecords::keep(const std::string& key, const CanaryVerdict& verdict) const {
  const nlohmann::json body = to_json(verdict);
  const nlohmann::json json = {{"schema", kSchema},
                               {"key", key},
                               {"checksum", text_hash(key + body.dump())},
                               {"verdict", body}};
  try {
    hub::make_folders(folder_.parent_path());
    mkdir(folder_.c_str(), 0700);
    hub::write_atomically(file_of(key), json.dump(1) + "\n");
    chmod(file_of(key).c_str(), 0600);
  } catch (const Error& error) {
    warn(fmt::format("[kernel.canary] the verdict cannot be remembered: {}", error.what()));
  }
}

}  // namespace graft::kernel
