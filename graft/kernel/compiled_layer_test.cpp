// What aot.json may say, without a compiled library: tests/integration/test_aot.py has those.

#include "graft/kernel/compiled_layer.h"

#include <fstream>

#include <gmock/gmock.h>
#include <torch/headeronly/version.h>
#include <unistd.h>

#include "graft/core/error.h"

namespace graft::kernel {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

class CompiledLayerTest : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::path(testing::TempDir()) / ("graft-aot-" + std::to_string(getpid()));
    fs::create_directories(folder_);
    std::ofstream(folder_ / "norm.so") << "no library";
  }
  void TearDown() override { fs::remove_all(folder_); }

  static json norm() {
    return {{"file", "norm.so"}, {"dtype", "bfloat16"}, {"columns", 64}, {"eps", "1e-05"}};
  }
  static json description() {
    return {{"schema", 1},           {"contract", "RMSNorm"},
            {"device", "cpu"},       {"torch", TORCH_VERSION},
            {"processor", "x86-64"}, {"libraries", {norm()}}};
  }
  SealedLibraries seal(const json& description) {
    std::ofstream(folder_ / "aot.json") << description;
    return seal_compiled_layer(folder_);
  }
  std::string code_of(const json& description) {
    try {
      seal(description);
    } catch (const Error& error) {
      return error.code();
    }
    return "";
  }

  fs::path folder_;
};

TEST_F(CompiledLayerTest, IsReadAsItWasSealed) {
  EXPECT_FALSE(is_compiled_layer(folder_));
  const auto sealed = seal(description());
  EXPECT_TRUE(is_compiled_layer(folder_));
  EXPECT_TRUE(is_compiled_layer(sealed));
  ASSERT_EQ(sealed.size(), 2U);
  EXPECT_EQ(sealed[1]->file(), folder_ / "norm.so");
  std::ofstream(folder_ / "aot.json") << "{}";  // what happens to the file changes nothing
  const CompiledLayer layer = read_compiled_layer(*sealed[0]);
  EXPECT_TRUE(layer.is_norm);
  EXPECT_EQ(layer.device, at::kCPU);
  ASSERT_EQ(layer.forms.size(), 1U);
  EXPECT_EQ(layer.forms[0].dtype, at::kBFloat16);
  EXPECT_EQ(layer.forms[0].columns, 64);
  EXPECT_EQ(layer.forms[0].eps, 1e-5);
}

TEST_F(CompiledLayerTest, IsHeldAgainstTheProcessAndItself) {
  const auto with = [](const char* key, const json& value) {
    json changed = description();
    changed[key] = value;
    return changed;
  };
  const auto with_norm = [&](const char* key, const json& value) {
    json changed = norm();
    changed[key] = value;
    return with("libraries", json::array({changed}));
  };
  EXPECT_EQ(code_of(description()), "");
  EXPECT_EQ(code_of(with("torch", "1.0.0")), "kernel.aot.torch");
  EXPECT_EQ(code_of(with("processor", "x86-64-v9")), "kernel.aot.processor");
  EXPECT_EQ(code_of(with("device", "xpu")), "kernel.aot.value");
  EXPECT_EQ(code_of(with("contract", "Linear")), "kernel.aot.contract");
  EXPECT_EQ(code_of(with("schema", 2)), "kernel.aot.schema");
  EXPECT_EQ(code_of(with("more", 2)), "kernel.aot.unknown-key");
  EXPECT_EQ(code_of(with("libraries", json::array())), "kernel.aot.libraries");
  EXPECT_EQ(code_of(with("libraries", json::array({norm(), norm()}))), "kernel.aot.libraries");
  for (const char* file : {"", "../norm.so", "/tmp/norm.so", "norm.pt2", "a/norm.so"}) {
    EXPECT_EQ(code_of(with_norm("file", file)), "kernel.aot.file") << file;
  }
  EXPECT_EQ(code_of(with_norm("file", "other.so")), "kernel.loader.library");
  EXPECT_EQ(code_of(with_norm("dtype", "float64")), "kernel.aot.dtype");
  EXPECT_EQ(code_of(with_norm("columns", -1)), "kernel.aot.type");
  for (const char* eps : {"", "0", "-1e-5", "1e-5x", "nan", "inf"}) {
    EXPECT_EQ(code_of(with_norm("eps", eps)), "kernel.aot.value") << eps;
  }
  json activation = with_norm("eps", "1e-5");
  activation["contract"] = "Activation";
  EXPECT_EQ(code_of(activation), "kernel.aot.value");
}

TEST_F(CompiledLayerTest, IsForTheDeviceThatMetadataNamesAndHoldsLibraries) {
  Metadata metadata;
  metadata.id = "_norm_cpu_0";
  const auto sealed = seal(description());
  for (const auto& [backend, code] :
       {std::pair<const char*, const char*>{"cuda", "kernel.aot.device"},
        {"cpu", "kernel.elf.format"}}) {
    metadata.backend = backend;
    try {
      check_compiled_layer("org/norm", metadata, sealed);
      ADD_FAILURE() << backend;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), code);
    }
  }
}

}  // namespace
}  // namespace graft::kernel
