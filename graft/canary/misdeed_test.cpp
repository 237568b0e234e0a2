// An op of a package that computes something else, crashes or never ends, in every family of ops that the canary
// runs: each ends in a refusal that names the op.

#include <fstream>
#include <iterator>
#include <set>

#include <gmock/gmock.h>
#include <nlohmann/json.hpp>

#include "graft/canary/test_package.h"
#include "graft/core/env.h"
#include "graft/core/error.h"
#include "graft/kernel/loader.h"
#include "graft/layers/published/moe.h"

namespace graft::canary {
namespace {

namespace fs = std::filesystem;
using kernel::CanaryStatus;
using testing::HasSubstr;
using Names = std::vector<std::string>;

// A package of tests/kernels, and its ops that the canary runs.
struct Family {
  const char* package;
  Names ops;
  const char* layer = nullptr;  // under whose name wrong answers are reported; null: the op's
};

void PrintTo(const Family& family, std::ostream* out) { *out << family.package; }

class Misdeeds : public CanaryFixture, public testing::WithParamInterface<Family> {
 protected:
  // A copy of the package whose ops do this (tests/kernels/published/misdeed.h).
  fs::path package_that(const std::string& deed, const Names& ops) {
    static int count = 0;
    const fs::path copy = root_ / (deed + std::to_string(count++));
    fs::copy(fs::path(GRAFT_BINARY_DIR) / "tests/hub/graft-tests" / GetParam().package, copy,
             fs::copy_options::recursive);
    std::vector<fs::path> files;
    for (const auto& entry : fs::recursive_directory_iterator(copy)) {
      files.push_back(entry.path());
    }
    for (const auto& file : files) {
      if (file.extension() == ".so") {
        write(file, instructed(read(file), deed, ops));
      } else if (file.filename() == "metadata.json") {
        auto metadata = nlohmann::json::parse(read(file));
        metadata.erase("digest");
        write(file, metadata.dump());
      }
    }
    return copy;
  }

  // What the refusal of the package says, and its code.
  std::pair<std::string, std::string> refusal(const fs::path& package) {
    try {
      pass(package);
    } catch (const Error& error) {
      return {error.code(), error.what()};
    }
    return {};
  }

  // The names under which wrong answers were reported.
  std::set<std::string> wrong_of(const fs::path& package) {
    const auto verdict = run(package);
    EXPECT_EQ(verdict.status, CanaryStatus::kOk) << verdict.detail;
    std::set<std::string> names;
    for (const auto& wrong : verdict.wrong) {
      EXPECT_THAT(wrong.reason, HasSubstr("expected"));
      names.insert(wrong.layer);
    }
    return names;
  }

  // Every op on its own, instead of one of each family.
  static bool is_long() { return env::get("GRAFT_LONG_TESTS") == "1"; }

 private:
  static std::string read(const fs::path& file) {
    std::ifstream in(file, std::ios::binary);
    return {std::istreambuf_iterator<char>(in), {}};
  }
  static void write(const fs::path& file, const std::string& bytes) {
    std::ofstream(file, std::ios::binary) << bytes;
  }
  static std::string instructed(std::string library, const std::string& deed, const Names& ops) {
    std::string text = "graft-misdeed:" + deed + ":";
    for (const auto& op : ops) {
      text += (op == ops.front() ? "" : ",") + op;
    }
    const size_t place = library.find("graft-misdeed:none:");
    EXPECT_NE(place, std::string::npos);
    return library.replace(place, text.size() + 1, text.c_str(), text.size() + 1);
  }
};

TEST_P(Misdeeds, AWrongAnswerOfEachOpIsNamed) {
  const auto& [package, ops, layer] = GetParam();
  const auto wrong = wrong_of(package_that("wrong", ops));
  for (const std::string& op : ops) {
    EXPECT_TRUE(wrong.contains(layer != nullptr ? layer : op)) << op;
  }
}

TEST_P(Misdeeds, AWrongAnswerOfOneOpIsNamed) {
  const auto& [package, ops, layer] = GetParam();
  for (const std::string& op : is_long() ? ops : Names{ops.back()}) {
    EXPECT_TRUE(wrong_of(package_that("wrong", {op})).contains(layer != nullptr ? layer : op))
        << op;
  }
}

TEST_P(Misdeeds, ACrashInsideAnOpIsRefused) {
  const auto& [package, ops, layer] = GetParam();
  for (const std::string& op : is_long() ? ops : Names{ops.back()}) {
    const auto [code, text] = refusal(package_that("crash", {op}));
    EXPECT_EQ(code, "kernel.canary.crash") << op;
    EXPECT_THAT(
        text, testing::AllOf(HasSubstr("signal 11"),
                             HasSubstr(std::string("running ") + (layer != nullptr ? layer : op))));
  }
}

TEST_P(Misdeeds, AnOpThatNeverEndsIsRefused) {
  const auto& [package, ops, layer] = GetParam();
  set("GRAFT_CANARY_SECONDS", "4");  // the first op is run at once
  for (const std::string& op : is_long() ? ops : Names{ops.front()}) {
    const auto [code, text] = refusal(package_that("hang", {op}));
    EXPECT_EQ(code, "kernel.canary.hang") << op;
    EXPECT_THAT(
        text, testing::AllOf(HasSubstr("not done after 4 s"),
                             HasSubstr(std::string("running ") + (layer != nullptr ? layer : op))));
  }
}

const Family kFamilies[] = {
    {"flash-attn2", {"fwd", "bwd", "varlen_fwd", "varlen_bwd", "fwd_kvcache"}},
    {"causal-conv1d", {"causal_conv1d_fwd", "causal_conv1d_bwd", "causal_conv1d_update"}},
    {"mamba-ssm", {"selective_scan_fwd", "selective_scan_bwd"}},
    {"deformable-detr", {"ms_deform_attn_forward", "ms_deform_attn_backward"}},
    {"megablocks",
     {"sort", "histogram", "inclusive_cumsum", "exclusive_cumsum", "indices", "replicate_forward",
      "replicate_backward", "gmm", "fused_experts", "convert_weight_packed", "convert_scale_packed",
      "shared_expert"}},
    {"moe",
     {"topk_softmax", "moe_sum", "silu_and_mul", "moe_align_block_size", "static_scaled_fp8_quant",
      "dynamic_scaled_fp8_quant", "dynamic_per_token_scaled_fp8_quant", "sgl_moe_align_block_size",
      "moe_wna16_gemm"}},
    {"paged-attention",
     {"paged_attention_v1", "paged_attention_v2", "reshape_and_cache", "reshape_and_cache_flash",
      "copy_blocks", "swap_blocks", "convert_fp8"}},
    {"mlp", {"mlp", "mlp_out", "mlp_backward", "mlp_train", "mlp_train_backward"}},
    {"loss",
     {"linear_cross_entropy_out", "linear_cross_entropy_train_out",
      "linear_cross_entropy_backward_out"},
     "ForCausalLMLoss"}};

INSTANTIATE_TEST_SUITE_P(Ops, Misdeeds, testing::ValuesIn(kFamilies), [](const auto& info) {
  std::string name = info.param.package;
  name.erase(std::remove(name.begin(), name.end(), '-'), name.end());
  return name;
});

// An op that is right but where weights or caches are in 8 bits or fewer.
class QuantizedMisdeeds : public Misdeeds {};

TEST_P(QuantizedMisdeeds, AWrongAnswerIsNamedWithItsForm) {
  const auto& [package, ops, layer] = GetParam();
  const auto verdict = run(package_that("wrong-8", ops));
  EXPECT_EQ(verdict.status, CanaryStatus::kOk) << verdict.detail;
  std::set<std::string> wrong;
  for (const auto& answer : verdict.wrong) {
    EXPECT_THAT(answer.variant, HasSubstr("bits")) << answer.layer;
    wrong.insert(answer.layer);
  }
  EXPECT_THAT(wrong, testing::IsSupersetOf(ops));
}

TEST_P(QuantizedMisdeeds, ACrashIsRefused) {
  const auto& [package, ops, layer] = GetParam();
  for (const std::string& op : is_long() ? ops : Names{ops.front()}) {
    const auto [code, text] = refusal(package_that("crash-8", {op}));
    EXPECT_EQ(code, "kernel.canary.crash") << op;
    EXPECT_THAT(text, testing::AllOf(HasSubstr("running " + op), HasSubstr("bits")));
  }
}

TEST_P(QuantizedMisdeeds, OneThatNeverEndsIsRefused) {
  const auto& [package, ops, layer] = GetParam();
  set("GRAFT_CANARY_SECONDS", "6");
  for (const std::string& op : is_long() ? ops : Names{ops.back()}) {
    const auto [code, text] = refusal(package_that("hang-8", {op}));
    EXPECT_EQ(code, "kernel.canary.hang") << op;
    EXPECT_THAT(text, testing::AllOf(HasSubstr("running " + op), HasSubstr("bits")));
  }
}

const Family kQuantized[] = {{"megablocks", {"fused_experts", "shared_expert"}},
                             {"moe", {"moe_wna16_gemm"}},
                             {"paged-attention",
                              {"paged_attention_v1", "paged_attention_v2", "reshape_and_cache",
                               "reshape_and_cache_flash", "convert_fp8"}}};

INSTANTIATE_TEST_SUITE_P(Ops, QuantizedMisdeeds, testing::ValuesIn(kQuantized),
                         [](const auto& info) {
                           std::string name = info.param.package;
                           name.erase(std::remove(name.begin(), name.end(), '-'), name.end());
                           return name;
                         });

// What the canary saw of an op is held against whoever calls it: here an adapter of an application.
class WrongOp : public Misdeeds {};

TEST_P(WrongOp, IsNotBoundInTheApplication) {
  const auto loaded = kernel::load("org/moe", resolve_path(package_that("wrong", {"moe_sum"})));
  try {
    const layers::published::MoeOps ops(*loaded);
    FAIL() << "bound";
  } catch (const IncompatibleError& error) {
    EXPECT_EQ(error.code(), "kernel.canary.wrong-answer");
    EXPECT_THAT(error.what(), testing::AllOf(HasSubstr("`moe_sum`"), HasSubstr("expected")));
  }
}

INSTANTIATE_TEST_SUITE_P(Ops, WrongOp, testing::Values(Family{"moe", {}}),
                         [](const auto&) { return "moe"; });

}  // namespace
}  // namespace graft::canary
