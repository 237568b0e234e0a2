// The canary's verdicts: run once, remembered, doubted when damaged; what the settings mean; what
// happens where a system cannot isolate.

#include "graft/kernel/canary.h"

#include <map>
#include <thread>

#include <gmock/gmock.h>

#include "graft/canary/test_package.h"
#include "graft/core/error.h"
#include "graft/kernel/canary_report.h"
#include "graft/kernel/digest.h"
#include "graft/kernel/open_kernel.h"
#include "graft/tensor/device.h"

namespace graft::canary {
namespace {

namespace fs = std::filesystem;
using kernel::CanaryLimits;
using kernel::CanaryRecords;
using kernel::CanaryStatus;
using kernel::CanaryVerdict;
using testing::HasSubstr;
using testing::IsEmpty;

class Canary : public CanaryFixture {
 protected:
  static void expect_none_wrong(const std::string& name, const CanaryVerdict& verdict) {
    for (const auto& wrong : verdict.wrong) {
      ADD_FAILURE() << name << " " << wrong.layer << " " << wrong.variant << " " << wrong.dtype
                    << ": " << wrong.reason;
    }
  }

  std::vector<fs::path> records() {
    std::vector<fs::path> files;
    std::error_code status;
    for (const auto& entry : fs::directory_iterator(root_ / "xdg/graft/canary", status)) {
      if (entry.path().extension() == ".json") {
        files.push_back(entry.path());
      }
    }
    return files;
  }
};

TEST_F(Canary, OfARightPackageIsIsolatedAndOk) {
  const auto verdict = run(hostile_package(0));
  EXPECT_EQ(verdict.status, CanaryStatus::kOk) << verdict.detail;
  EXPECT_THAT(verdict.gaps, IsEmpty());
  EXPECT_THAT(verdict.wrong, IsEmpty());
  EXPECT_EQ(verdict.num_checks, 1);
  RecordProperty("seconds", std::to_string(verdict.seconds));
  EXPECT_LT(verdict.seconds, 15.0);  // 1.5 on a machine that does nothing else
}

TEST_F(Canary, LetsAPackageUseItsScratchFolder) {
  const auto verdict = run(hostile_package(28));
  EXPECT_EQ(verdict.status, CanaryStatus::kOk) << verdict.detail;
  EXPECT_THAT(verdict.wrong, IsEmpty());
}

TEST_F(Canary, RunsEveryLayerVariantAndDtypeOfOurOwnPackages) {
  const fs::path hub = fs::path(GRAFT_BINARY_DIR) / "share/graft/hub/graft-kernels";
  for (const char* name : {"rms-norm", "activation", "linear"}) {
    const auto verdict = run(hub / name);
    EXPECT_EQ(verdict.status, CanaryStatus::kOk) << name << ": " << verdict.detail;
    for (const auto& wrong : verdict.wrong) {
      // ATen's own gelu makes NaN of infinity on processors with AVX-512, and the guard sees it.
      const bool is_gelu = wrong.layer == "GeLU" || wrong.layer == "GeluAndMul";
      EXPECT_TRUE(is_gelu) << name << " " << wrong.layer << " " << wrong.dtype << ": "
                           << wrong.reason;
    }
    EXPECT_GE(verdict.num_checks, 3) << name;
  }
}

TEST_F(Canary, RunsPackedWeightsInEveryFormat) {
  const auto verdict = run(fs::path(GRAFT_BINARY_DIR) / "share/graft/hub/graft-kernels/linear");
  EXPECT_EQ(verdict.status, CanaryStatus::kOk) << verdict.detail;
  EXPECT_THAT(verdict.wrong, IsEmpty());
  // Of no layer, and of no published family: named.
  EXPECT_THAT(verdict.unchecked, testing::IsSupersetOf({"linear", "packed_linear"}));
  EXPECT_THAT(verdict.unchecked, testing::Not(testing::Contains("linear_out")));
  EXPECT_GE(verdict.num_checks, 8 + 3);  // formats in one dtype at least, and Linear
}

TEST_F(Canary, RunsRotationsWithNormsAndWithoutOfOurOwnPackage) {
  const auto verdict = run(fs::path(GRAFT_BINARY_DIR) / "share/graft/hub/graft-kernels/rotary");
  EXPECT_EQ(verdict.status, CanaryStatus::kOk) << verdict.detail;
  expect_none_wrong("rotary", verdict);
  EXPECT_GE(verdict.num_checks, 3 * (1 + 4));  // dtypes; the rotation, and each variant of the norm
}

TEST_F(Canary, RunsTheLossAndTheMlpOfOurOwnPackages) {
  const fs::path hub = fs::path(GRAFT_BINARY_DIR) / "share/graft/hub/graft-kernels";
  for (const auto& [name, num_checks] :
       std::map<std::string, int64_t>{{"loss", 3}, {"mlp", 5 * 3 * 4}}) {
    const auto verdict = run(hub / name);
    EXPECT_EQ(verdict.status, CanaryStatus::kOk) << name << ": " << verdict.detail;
    expect_none_wrong(name, verdict);
    EXPECT_GE(verdict.num_checks, num_checks) << name;
    // Forms that no layer names are not run; those that one names, and the MLP's, are.
    for (const char* op : {"linear_cross_entropy_out", "linear_cross_entropy_train_out",
                           "linear_cross_entropy_backward_out", "mlp", "mlp_out", "mlp_backward",
                           "mlp_train", "mlp_train_backward"}) {
      EXPECT_THAT(verdict.unchecked, testing::Not(testing::Contains(op))) << name;
    }
  }
}

TEST_F(Canary, RunsOurOwnPackagesOnCuda) {
  if (!tensor::cuda_available()) {
    GTEST_SKIP() << "no CUDA device";
  }
  const fs::path hub = fs::path(GRAFT_BINARY_DIR) / "share/graft/hub/graft-kernels";
  for (const auto& entry : fs::directory_iterator(hub)) {
    const auto verdict = run(entry.path(), /*require_isolation=*/true, {at::kCUDA, 0});
    EXPECT_EQ(verdict.status, CanaryStatus::kOk) << entry.path() << ": " << verdict.detail;
    expect_none_wrong(entry.path().filename(), verdict);
    EXPECT_GE(verdict.num_checks, 3) << entry.path();
  }
}

struct Published {
  const char* package;
  int64_t num_checks;
};

TEST_F(Canary, RunsPublishedKernelsThatHaveNoLayers) {
  const fs::path hub = fs::path(GRAFT_BINARY_DIR) / "tests/hub/graft-tests";
  for (const auto& [name, num_checks] :
       {Published{"flash-attn2", 14}, Published{"flash-attn2-stable", 14},
        Published{"flash-attn3", 14}, Published{"vllm-flash-attn3", 14},
        Published{"causal-conv1d", 12}, Published{"mamba-ssm", 20}, Published{"deformable-detr", 2},
        Published{"megablocks", 22}, Published{"megablocks-cpu", 10},
        Published{"paged-attention", 52}, Published{"moe", 29}}) {
    const auto verdict = run(hub / name);
    EXPECT_EQ(verdict.status, CanaryStatus::kOk) << name << ": " << verdict.detail;
    expect_none_wrong(name, verdict);
    EXPECT_GE(verdict.num_checks, num_checks) << name;
    if (name == std::string("moe")) {
      EXPECT_THAT(verdict.unchecked, testing::ElementsAre("marlin_gemm_moe"));
    } else {
      EXPECT_THAT(verdict.unchecked, IsEmpty()) << name;
    }
  }
}

// As megablocks is on a processor without AVX-512: what it says itself that it cannot do is no wrong answer.
TEST_F(Canary, NamesTheFormsThatABuildLeavesOut) {
  const auto verdict = run(fs::path(GRAFT_BINARY_DIR) / "tests/hub/graft-tests/megablocks-plain");
  EXPECT_EQ(verdict.status, CanaryStatus::kOk) << verdict.detail;
  expect_none_wrong("megablocks-plain", verdict);
  EXPECT_THAT(verdict.unchecked, testing::IsSupersetOf({"fused_experts, 8 bits in bfloat16",
                                                        "fused_experts, 4 bits in bfloat16",
                                                        "shared_expert, 8 bits in bfloat16"}));
}

TEST_F(Canary, NamesWhatIsOpenedAndNotRun) {
  const auto verdict =
      run(fs::path(GRAFT_BINARY_DIR) / "tests/hub/graft-tests/flash-attn3-other");  // its schemas
  EXPECT_EQ(verdict.status, CanaryStatus::kOk) << verdict.detail;
  EXPECT_EQ(verdict.num_checks, 0);
  EXPECT_THAT(verdict.unchecked, testing::Contains("fwd"));
}

TEST_F(Canary, NamesTheLayersThatComputeSomethingElse) {
  const auto verdict = run(fs::path(GRAFT_BINARY_DIR) / "tests/hub/graft-tests/norms");
  EXPECT_EQ(verdict.status, CanaryStatus::kOk) << verdict.detail;
  std::set<std::string> wrong;
  for (const auto& answer : verdict.wrong) {
    EXPECT_FALSE(answer.reason.empty());
    wrong.insert(answer.layer);
  }
  EXPECT_THAT(wrong, testing::IsSupersetOf({"Wrong", "WithoutEps", "Throws", "WrongBackward"}));
  EXPECT_FALSE(wrong.contains("Norm"));
  EXPECT_FALSE(wrong.contains("WithBackward"));
}

TEST_F(Canary, KeepsAWrongLayerOutOfTheModel) {
  bool swapped = true;
  const auto step = kernelize(hostile_package(0, "norm_wrong"), swapped);
  EXPECT_EQ(step.outcome, "kernel.canary.wrong-answer");
  EXPECT_THAT(step.reason, HasSubstr("expected an error of at most twice the reference's"));
  EXPECT_FALSE(swapped);
}

TEST_F(Canary, RunsAPackageOnceForEachContent) {
  const fs::path package = hostile_package(0);
  EXPECT_THAT(pass(package), IsEmpty());
  ASSERT_EQ(records().size(), 1U);
  const auto written = fs::last_write_time(records()[0]);
  EXPECT_THAT(pass(package), IsEmpty());
  EXPECT_EQ(fs::last_write_time(records()[0]), written);
  EXPECT_THAT(pass(hostile_package(28)), IsEmpty());  // another layers.json
  EXPECT_EQ(records().size(), 2U);
}

TEST_F(Canary, RemembersARefusalToo) {
  const fs::path package = hostile_package(15);
  for (int i = 0; i < 2; ++i) {
    try {
      pass(package);
      FAIL();
    } catch (const LoadError& error) {
      EXPECT_EQ(error.code(), "kernel.canary.exit");
      EXPECT_THAT(error.what(), HasSubstr("hint: GRAFT_CANARY=always runs it again"));
    }
  }
  EXPECT_EQ(records().size(), 1U);
}

TEST_F(Canary, RunsOnceWhenManyAskAtTheSameTime) {
  const fs::path package = hostile_package(0);
  const auto resolution = resolve_path(package);
  std::vector<std::thread> threads;
  for (int i = 0; i < 3; ++i) {
    threads.emplace_back([&] {
      EXPECT_THAT(kernel::pass_canary("org/demo", resolution, library_of(resolution)), IsEmpty());
    });
  }
  for (auto& thread : threads) {
    thread.join();
  }
  EXPECT_EQ(records().size(), 1U);
}

class Records : public CanaryFixture {
 protected:
  void SetUp() override {
    CanaryFixture::SetUp();
    CanaryVerdict verdict;
    verdict.status = CanaryStatus::kCrash;
    verdict.detail = "signal 11";
    verdict.wrong = {{"Norm", "default", "float32", "an error"}};
    verdict.num_checks = 3;
    verdict.unchecked = {"Loss"};
    records_.keep(kKey, verdict);
    ASSERT_TRUE(records_.find(kKey));
  }

  std::string content() {
    std::ifstream in(records_.file_of(kKey));
    return {std::istreambuf_iterator<char>(in), {}};
  }
  void write(const std::string& text) { std::ofstream(records_.file_of(kKey)) << text; }

  static constexpr char kKey[] = "0123456789abcdef";
  const CanaryRecords records_{fs::path(testing::TempDir()) /
                               ("graft-canary-" + std::to_string(getpid())) / "records"};
};

TEST_F(Records, GiveBackWhatWasKept) {
  const auto verdict = records_.find(kKey);
  ASSERT_TRUE(verdict);
  EXPECT_EQ(verdict->status, CanaryStatus::kCrash);
  EXPECT_EQ(verdict->detail, "signal 11");
  ASSERT_EQ(verdict->wrong.size(), 1U);
  EXPECT_EQ(verdict->wrong[0].reason, "an error");
  EXPECT_EQ(verdict->num_checks, 3);
  EXPECT_THAT(verdict->unchecked, testing::ElementsAre("Loss"));
  EXPECT_FALSE(records_.find("another"));
}

TEST_F(Records, ThatAreDamagedAreNotUsed) {
  const std::string right = content();
  for (size_t i = 0; i < right.size(); i += 3) {
    std::string changed = right;
    changed[i] = static_cast<char>(changed[i] ^ 1);
    write(changed);
    const auto verdict = records_.find(kKey);
    EXPECT_TRUE(!verdict || verdict->status == CanaryStatus::kCrash) << i;
  }
  for (size_t size = 0; size + 1 < right.size(); size += 17) {
    write(right.substr(0, size));
    EXPECT_FALSE(records_.find(kKey)) << size;
  }
  std::string better = right;
  better.replace(better.find("\"crash\""), 7, "\"ok\"");
  write(better);
  EXPECT_FALSE(records_.find(kKey));
}

TEST_F(Records, OfAnotherPackageAreNotUsed) {
  fs::copy_file(records_.file_of(kKey), records_.file_of("fedcba"));
  EXPECT_FALSE(records_.find("fedcba"));
}

TEST_F(Records, ThatOthersCouldHaveWrittenAreNotUsed) {
  const fs::path file = records_.file_of(kKey);
  fs::permissions(file, fs::perms::others_write, fs::perm_options::add);
  EXPECT_FALSE(records_.find(kKey));
  fs::permissions(file, fs::perms::others_write, fs::perm_options::remove);
  EXPECT_TRUE(records_.find(kKey));
  fs::permissions(file.parent_path(), fs::perms::group_write, fs::perm_options::add);
  EXPECT_FALSE(records_.find(kKey));
  fs::permissions(file.parent_path(), fs::perms::group_write, fs::perm_options::remove);
  fs::rename(file, root_ / "moved");
  fs::create_symlink(root_ / "moved", file);
  EXPECT_FALSE(records_.find(kKey));
}

TEST_F(Canary, IsDecidedByTheSettingAndWhereThePackageComesFrom) {
  kernel::Resolution ours, cached;
  ours.source = "embedded hub";
  cached.source = "cache";
  EXPECT_FALSE(kernel::decide_canary(ours).run);
  EXPECT_TRUE(kernel::decide_canary(cached).run);
  EXPECT_FALSE(kernel::decide_canary(cached).require_isolation);
  set("GRAFT_CANARY", "strict");
  EXPECT_TRUE(kernel::decide_canary(cached).require_isolation);
  set("GRAFT_CANARY", "always");
  EXPECT_TRUE(kernel::decide_canary(ours).run);
  EXPECT_FALSE(kernel::decide_canary(ours).ask_records);
  set("GRAFT_CANARY", "off");
  EXPECT_FALSE(kernel::decide_canary(cached).run);
  set("GRAFT_CANARY", "maybe");
  EXPECT_THROW(kernel::decide_canary(cached), InvalidArgument);
}

TEST_F(Canary, RunsAgainWhenItIsAlwaysWanted) {
  const fs::path package = hostile_package(0);
  EXPECT_THAT(pass(package), IsEmpty());
  const auto written = fs::last_write_time(records().at(0));
  set("GRAFT_CANARY", "always");
  EXPECT_THAT(pass(package), IsEmpty());
  EXPECT_GT(fs::last_write_time(records().at(0)), written);
}

TEST_F(Canary, ReportsAreJudgedByTheirLastWord) {
  const auto judge = [](const std::string& report, int status) {
    return kernel::judge_report(report, status, "");
  };
  const std::string open = std::string(kernel::kReportOpening) + "\n";
  const std::string done = R"({"done":true,"num_checks":2,"wrong":[]})"
                           "\n";
  EXPECT_EQ(judge(open + done, 0).status, CanaryStatus::kOk);
  EXPECT_EQ(judge(open + done, 11).status, CanaryStatus::kCrash);  // said so, then died
  EXPECT_EQ(judge(open + done, 1 << 8).status, CanaryStatus::kExit);
  EXPECT_EQ(judge(open + "noise\n[1]\n\"x\"\n" + done, 0).status, CanaryStatus::kOk);
  EXPECT_EQ(judge(open + "{\"forbidden\":\"socket\"}\n" + done, 0).status,
            CanaryStatus::kForbidden);
  EXPECT_EQ(judge(open + R"({"done":true})"
                         "\n",
                  0)
                .status,
            CanaryStatus::kExit);
  EXPECT_EQ(judge(open + R"({"forbidden":7})"
                         "\n",
                  0)
                .status,
            CanaryStatus::kExit);
  EXPECT_EQ(judge(open, 31).status, CanaryStatus::kForbidden);
  EXPECT_EQ(judge("", 11).status, CanaryStatus::kNotIsolated);  // before the package
  EXPECT_EQ(judge("{\"gap\":\"files\"}\n" + open + done, 0).gaps.size(), 1U);
  const auto shown = kernel::judge_report(open, 11, "a\x1b[31mline\n");
  EXPECT_THAT(shown.detail, testing::Not(HasSubstr("\x1b")));
}

}  // namespace
}  // namespace graft::canary
