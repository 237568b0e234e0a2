#include "graft/kernel/metadata.h"

#include <filesystem>
#include <fstream>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include "graft/core/error.h"
#include "graft/kernel/reference.h"

namespace graft::kernel {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using testing::HasSubstr;

constexpr char kHash[] = "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=";  // of nothing

class MetadataFile : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::path(testing::TempDir()) / ("graft-metadata-" + std::to_string(getpid()));
    fs::create_directories(folder_);
    good_ = {{"name", "rms-norm"},
             {"id", "_rms_norm_cuda_1a2b3c4"},
             {"version", 1},
             {"license", "apache-2.0"},
             {"python-depends", json::array()},
             {"backend", {{"type", "cuda"}, {"archs", {"8.0+PTX", "9.0a"}}}},
             {"digest", {{"algorithm", "sha256"}, {"files", {{"layers.py", kHash}}}}}};
  }
  void TearDown() override { fs::remove_all(folder_); }

  Metadata read(const json& content) { return read_text(content.dump()); }
  Metadata read_text(const std::string& text) {
    std::ofstream(folder_ / "metadata.json") << text;
    return read_metadata(folder_ / "metadata.json");
  }
  std::string code_of(const json& content) { return code_of_text(content.dump()); }
  std::string code_of_text(const std::string& text) {
    try {
      read_text(text);
    } catch (const Error& error) {
      EXPECT_THAT(error.what(), HasSubstr("metadata.json"));
      return error.code();
    }
    return "accepted";
  }
  json with(const std::string& key, const json& value) const {
    json changed = good_;
    changed[key] = value;
    return changed;
  }
  json with_file(const std::string& path, const json& hash) const {
    return with("digest", {{"algorithm", "sha256"}, {"files", {{path, hash}}}});
  }

  fs::path folder_;
  json good_;
};

TEST_F(MetadataFile, IsReadWithEveryField) {
  const Metadata metadata = read(with("a-later-key", {1, 2}));
  EXPECT_EQ(metadata.name, "rms-norm");
  EXPECT_EQ(metadata.id, "_rms_norm_cuda_1a2b3c4");
  EXPECT_EQ(metadata.version, 1);
  EXPECT_EQ(metadata.backend, "cuda");
  EXPECT_THAT(metadata.archs, testing::ElementsAre("8.0+PTX", "9.0a"));
  ASSERT_TRUE(metadata.digest);
  EXPECT_EQ(metadata.digest->files.at("layers.py"), kHash);
}

TEST_F(MetadataFile, NeedsEveryRequiredKey) {
  for (const char* key : {"name", "id", "version", "license", "python-depends", "backend"}) {
    json cut = good_;
    cut.erase(key);
    EXPECT_EQ(code_of(cut), "kernel.metadata.missing-key") << key;
  }
}

TEST_F(MetadataFile, RefusesValuesOutsideTheirRules) {
  EXPECT_EQ(code_of(with("name", "Rms")), "kernel.metadata.name");
  EXPECT_EQ(code_of(with("name", "rms-")), "kernel.metadata.name");
  EXPECT_EQ(code_of(with("name", 1)), "kernel.metadata.type");
  EXPECT_EQ(code_of(with("id", "a::b")), "kernel.metadata.id");
  EXPECT_EQ(code_of(with("id", "1abc")), "kernel.metadata.id");
  EXPECT_EQ(code_of(with("version", -1)), "kernel.metadata.version");
  EXPECT_EQ(code_of(with("version", 1.5)), "kernel.metadata.version");
  EXPECT_EQ(code_of(with("version", 9223372036854775808ULL)), "kernel.metadata.version");
  EXPECT_EQ(code_of(with("backend", {{"type", "npu"}})), "kernel.metadata.backend");
  EXPECT_EQ(code_of(with("backend", {{"type", "cuda"}, {"archs", "8.0"}})), "kernel.metadata.type");
}

TEST_F(MetadataFile, RefusesADuplicateKeyAndWhatIsNoJson) {
  std::string twice = good_.dump();
  twice.insert(1, "\"id\": \"_other\", ");
  EXPECT_EQ(code_of_text(twice), "kernel.metadata.duplicate-key");
  EXPECT_EQ(code_of_text("{"), "kernel.metadata.json");
  EXPECT_EQ(code_of_text("[]"), "kernel.metadata.type");
  EXPECT_EQ(code_of_text(std::string(2 << 20, ' ')), "kernel.metadata.json-limits");
}

TEST_F(MetadataFile, RefusesDigestPathsThatLeaveTheFolder) {
  for (const char* path : {"/etc/passwd", "../x", "a/../../x", "a\\b", "", "a/", "./a"}) {
    EXPECT_EQ(code_of(with_file(path, kHash)), "kernel.metadata.digest") << path;
  }
  EXPECT_EQ(code_of(with_file(std::string("a\0b", 3), kHash)), "kernel.metadata.digest");
}

TEST_F(MetadataFile, RefusesHashesOfAnotherAlgorithmOrLength) {
  EXPECT_EQ(code_of(with_file("a", "short")), "kernel.metadata.digest");
  EXPECT_EQ(code_of(with_file("a", std::string(44, '='))), "kernel.metadata.digest");
  EXPECT_EQ(code_of(with_file("a", std::string(44, '-'))), "kernel.metadata.digest");
  std::string other_bits = kHash;  // two bits that no byte takes up: a second spelling
  other_bits[42] = 'V';
  EXPECT_EQ(code_of(with_file("a", other_bits)), "kernel.metadata.digest");
  EXPECT_EQ(code_of(with_file("a", 7)), "kernel.metadata.digest");
  EXPECT_EQ(code_of(with("digest", {{"algorithm", "md5"}, {"files", json::object()}})),
            "kernel.metadata.digest");
  EXPECT_EQ(code_of(with("digest", {{"algorithm", "sha512"}, {"files", {{"a", kHash}}}})),
            "kernel.metadata.digest");
}

TEST_F(MetadataFile, RefusesAProvenanceWithoutARealCommit) {
  for (const char* key : {"commit", "sha"}) {
    EXPECT_EQ(code_of(with("provenance", {{"kernel", {{key, std::string(40, 'a')}}}})), "accepted");
    EXPECT_EQ(code_of(with("provenance", {{"kernel", {{key, std::string(39, 'a')}}}})),
              "kernel.metadata.provenance");
  }
}

TEST_F(MetadataFile, RefusesMoreFilesThanAPackageHas) {
  json files = json::object();
  for (int i = 0; i < 4097; ++i) {
    files["f" + std::to_string(i)] = kHash;
  }
  EXPECT_EQ(code_of(with("digest", {{"algorithm", "sha256"}, {"files", files}})),
            "kernel.metadata.digest");
  files.erase("f0");
  EXPECT_EQ(code_of(with("digest", {{"algorithm", "sha256"}, {"files", files}})), "accepted");
}

TEST(Architectures, FollowTheRulesOfCuda) {
  EXPECT_TRUE(arch_fits({}, 90));
  EXPECT_TRUE(arch_fits({"8.0"}, 86));
  EXPECT_FALSE(arch_fits({"8.6"}, 80));
  EXPECT_FALSE(arch_fits({"8.0"}, 90));
  EXPECT_TRUE(arch_fits({"8.0+PTX"}, 120));
  EXPECT_FALSE(arch_fits({"9.0+PTX"}, 89));
  EXPECT_TRUE(arch_fits({"9.0a"}, 90));
  EXPECT_FALSE(arch_fits({"9.0a"}, 100));
  EXPECT_FALSE(arch_fits({"9.0a+PTX"}, 100));
  EXPECT_TRUE(arch_fits({"10.0f"}, 103));
  EXPECT_FALSE(arch_fits({"10.0f"}, 120));
  EXPECT_TRUE(arch_fits({"8.0", "9.0a"}, 90));
}

TEST(Architectures, NeverGuessAtWhatTheyCannotRead) {
  for (const char* text : {"sm_90", "9", "9.", ".0", "9.0b", "9.0aa", "9.10", "", "gfx942", "-9.0",
                           "9.-0", "1000.0", "844444444.0+PTX"}) {
    EXPECT_FALSE(arch_fits({text}, 90)) << text;
  }
}

TEST_F(MetadataFile, LayersAreReadWithTheirOps) {
  EXPECT_TRUE(read_layers(folder_).empty());
  std::ofstream(folder_ / "layers.json") << R"({"schema": 1, "layers": {"RMSNorm": {
    "contract": "RMSNorm", "can_torch_compile": true, "devices": ["cpu"], "dtypes": ["float32"],
    "variants": {"zero_centered": 3}, "ops": {"forward": {"op": "f", "arguments": {"o": "out"}}}}}})";
  const auto layers = read_layers(folder_);
  const PackageLayer& layer = layers.at("RMSNorm");
  EXPECT_FALSE(layer.has_backward);
  EXPECT_TRUE(layer.can_torch_compile);
  EXPECT_EQ(layer.variants.at("zero_centered"), 3);
  EXPECT_EQ(layer.ops.at("forward").arguments.at("o"), "out");
}

TEST_F(MetadataFile, LayersOfAnotherSchemaOrTypeAreRefused) {
  for (
      const auto& [text, code] : std::initializer_list<std::pair<const char*, const char*>>{
          {R"({"schema": 2, "layers": {}})", "kernel.layers.schema"},
          {R"({"schema": 1})", "kernel.layers.missing-key"},
          {R"({"schema": 1, "layers": {"A": {"ops": {}}}})", "kernel.layers.missing-key"},
          {R"({"schema": 1, "layers": {"A": {"contract": "B", "ops": {"forward": 1}}}})",
           "kernel.layers.type"},
          {R"({"schema": 1, "layers": {"A": {"contract": "B", "has_backward": 1, "ops": {}}}})",
           "kernel.layers.type"},
          {R"({"schema": 1, "layers": {"A": {"contract": "B", "variants": {"x": "y"}, "ops": {}}}})",
           "kernel.layers.type"}}) {
    std::ofstream(folder_ / "layers.json") << text;
    try {
      read_layers(folder_);
      ADD_FAILURE() << text;
    } catch (const FormatError& error) {
      EXPECT_EQ(error.code(), code) << text;
    }
  }
}

TEST(Reference, ReadsRepositoriesPathsAndTheModelsOwnForward) {
  const auto plain = parse_layer_reference("org/repo:RMSNorm");
  EXPECT_EQ(plain.repository, "org/repo");
  EXPECT_EQ(plain.layer, "RMSNorm");
  EXPECT_TRUE(plain.ref.empty());
  EXPECT_EQ(parse_layer_reference("org/repo@v1:L").ref, "v1");
  EXPECT_EQ(parse_layer_reference("org/repo@>=0.1,<0.2:L").ref, ">=0.1,<0.2");
  EXPECT_EQ(parse_layer_reference("org/repo@v1:L").text(), "org/repo@v1:L");
  const auto path = parse_layer_reference("/a/b@c/d:L");
  EXPECT_TRUE(path.is_path());
  EXPECT_EQ(path.repository, "/a/b@c/d");
  EXPECT_TRUE(parse_layer_reference("").is_reference_forward());
}

TEST(Reference, RefusesWhatIsNoneAndShowsIt) {
  for (const char* text :
       {"repo:L", "org/repo", "org/repo:", ":L", "a/b/c:L", "org/repo@:L", "org/../x:L",
        "relative/../path:L", "/path", "org/repo:a/b", "org /repo:L"}) {
    try {
      parse_layer_reference(text);
      ADD_FAILURE() << text;
    } catch (const InvalidArgument& error) {
      EXPECT_EQ(error.code(), "kernel.reference.grammar");
      EXPECT_THAT(error.what(), HasSubstr(std::string("`") + text + "`"));
    }
  }
}

}  // namespace
}  // namespace graft::kernel
