#include "graft/hub/server/faults.h"

#include <fstream>
#include <utility>

#include <fmt/format.h>
#include <fnmatch.h>

#include "graft/core/error.h"

namespace graft::hub::server {

namespace {

namespace fs = std::filesystem;

FormatError wrong(const std::string& got) {
  return FormatError("hub.server", "faults",
                     fmt::format("rules: expected a JSON array of objects, got: {}", got));
}

// Sets one member; false for a key that no rule has.
bool set(Fault& fault, const std::string& key, const nlohmann::json& value) {
  const auto number = [&] { return value.get<uint64_t>(); };
  if (key == "path") {
    fault.path = value.get<std::string>();
  } else if (key == "method") {
    fault.method = value.get<std::string>();
  } else if (key == "skip") {
    fault.skip = number();
  } else if (key == "times") {
    fault.times = number();
  } else if (key == "status") {
    fault.status = value.get<int>();
  } else if (key == "retry_after") {
    fault.retry_after = number();
  } else if (key == "headers") {
    fault.headers = value.get<std::map<std::string, std::string>>();
  } else if (key == "delay_ms") {
    fault.delay = std::chrono::milliseconds(number());
  } else if (key == "cut_after") {
    fault.cut_after = number();
  } else if (key == "flip_byte") {
    fault.flip_byte = number();
  } else if (key == "declare_length") {
    fault.declare_length = number();
  } else if (key == "redirect_loop") {
    fault.redirect_loop = value.get<bool>();
  } else {
    return false;
  }
  return true;
}

}  // namespace

std::vector<Fault> parse_faults(const nlohmann::json& rules) {
  if (!rules.is_array()) {
    throw wrong(rules.type_name());
  }
  std::vector<Fault> faults;
  for (const auto& rule : rules) {
    if (!rule.is_object()) {
      throw wrong(rule.dump());
    }
    auto& fault = faults.emplace_back();
    for (const auto& [key, value] : rule.items()) {
      bool known = false;
      try {
        known = set(fault, key, value);
      } catch (const nlohmann::json::exception& error) {
        throw wrong(fmt::format("`{}`: {}", key, error.what()));
      }
      if (!known) {
        throw wrong(fmt::format("a rule with the unknown key `{}`", key));
      }
    }
  }
  return faults;
}

Faults::Faults(fs::path file) : file_(std::move(file)) { read_if_changed(); }

void Faults::read_if_changed() {
  if (file_.empty()) {
    return;
  }
  std::error_code error;
  const auto modified = fs::last_write_time(file_, error);
  if (error) {
    throw NotFound("hub.server", "faults-file",
                   fmt::format("`{}`: expected a file of fault rules", file_.string()));
  }
  if (modified_ == modified) {
    return;
  }
  std::ifstream stream(file_);
  auto json = nlohmann::json::parse(stream, nullptr, /*allow_exceptions=*/false);
  rules_ = parse_faults(json);
  matches_.assign(rules_.size(), 0);
  modified_ = modified;
}

std::optional<Fault> Faults::next(const std::string& method, const std::string& path) {
  const std::lock_guard lock(mutex_);
  read_if_changed();
  for (size_t i = 0; i < rules_.size(); ++i) {
    const auto& rule = rules_[i];
    if ((!rule.method.empty() && rule.method != method) ||
        ::fnmatch(rule.path.c_str(), path.c_str(), 0) != 0) {
      continue;
    }
    const uint64_t match = matches_[i]++;
    if (match >= rule.skip && (!rule.times || match - rule.skip < *rule.times)) {
      return rule;
    }
  }
  return std::nullopt;
}

}  // namespace graft::hub::server
