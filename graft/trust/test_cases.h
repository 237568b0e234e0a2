// Bundles of a Sigstore instance of our own (tests/data/trust/cases.json, which
// tools/make_sigstore_test_data.py writes), for tests.
#pragma once

#include <filesystem>
#include <fstream>
#include <iterator>
#include <ostream>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

namespace graft::trust::test {

struct Case {
  std::string name;
  std::string bundle;
  std::string content;
  std::string trusted_root;
  std::string expected;         // `accepted`, an error code, or `wrong-signer`
  bool python_accepts = false;  // what sigstore-python answered

  friend void PrintTo(const Case& value, std::ostream* out) { *out << value.name; }
};

inline std::vector<Case> read_cases() {
  std::ifstream in(std::string(GRAFT_TEST_DATA) + "/trust/cases.json");
  const auto data = nlohmann::json::parse(in);
  std::vector<Case> cases;
  for (const auto& row : data.at("cases")) {
    const auto patched = [](const nlohmann::json& base, const nlohmann::json& patch) {
      return base.patch(patch).dump();
    };
    cases.push_back(
        {row.at("name"),
         row.contains("text") ? row.at("text").get<std::string>()
                              : patched(data.at("bundle"), row.at("patch")),
         row.value("content", data.at("content").get<std::string>()),
         patched(data.at("trusted_root"), row.value("root_patch", nlohmann::json::array())),
         row.at("expected"), row.at("python") == "accepted"});
  }
  return cases;
}

inline Case case_named(const std::string& name) {
  for (auto& one : read_cases()) {
    if (one.name == name) {
      return one;
    }
  }
  throw std::out_of_range(name);
}

// A variant folder with a signed metadata.json, and the root by which it verifies.
inline void write_package(const Case& from, const std::filesystem::path& folder,
                          const std::filesystem::path& root) {
  std::filesystem::create_directories(folder);
  std::ofstream(folder / "metadata.json", std::ios::binary) << from.content;
  std::ofstream(folder / "metadata.json.sigstore", std::ios::binary) << from.bundle;
  std::ofstream(folder / "__init__.py");
  std::ofstream(root, std::ios::binary) << from.trusted_root;
}

}  // namespace graft::trust::test
