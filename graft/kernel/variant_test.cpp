#include "graft/kernel/variant.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace graft::kernel {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

const System kCuda132{{2, 11}, "cuda", {13, 2}, "x86_64", "linux"};
const System kCpu{{2, 11}, "cpu", {}, "x86_64", "linux"};

std::string why(const std::string& name, const System& system) {
  const auto variant = parse_variant(name);
  return variant ? rejection(*variant, system) : "no variant";
}

TEST(Variant, ReadsEveryPartOfAName) {
  const auto stable = parse_variant("torch-stable-abi29-cu130-x86_64-linux");
  ASSERT_TRUE(stable);
  EXPECT_EQ(stable->framework, Framework::kTorchStable);
  EXPECT_EQ(stable->framework_version, (Version{2, 9}));
  EXPECT_EQ(stable->backend, "cuda");
  EXPECT_EQ(stable->backend_version, (Version{13, 0}));
  EXPECT_EQ(stable->cpu, "x86_64");
  EXPECT_EQ(stable->os, "linux");

  const auto tagged = parse_variant("torch211-cxx11-rocm71-aarch64-linux");
  ASSERT_TRUE(tagged);
  EXPECT_EQ(tagged->framework, Framework::kTorch);
  EXPECT_EQ(tagged->framework_version, (Version{2, 11}));
  EXPECT_EQ(tagged->cxx_abi, "cxx11");
  EXPECT_EQ(tagged->backend_version, (Version{7, 1}));

  EXPECT_EQ(parse_variant("torch213-metal-aarch64-darwin")->backend, "metal");
  EXPECT_EQ(parse_variant("torch212-xpu20253-x86_64-linux")->backend_version, (Version{2025, 3}));
  EXPECT_EQ(parse_variant("tvm-ffi110-cu130-x86_64-linux")->framework_version, (Version{1, 10}));
  EXPECT_EQ(parse_variant("torch-universal")->backend, "universal");
}

TEST(Variant, TwoDigitMinorsCannotBeWritten) {
  EXPECT_EQ(parse_variant("torch211-cu1210-x86_64-linux")->backend_version, (Version{121, 0}));
}

TEST(Variant, RefusesNamesThatAreNone) {
  for (const char* name :
       {"", "torch", "torch-", "v1", "torch-stable-abi", "torch-stable-abi-cu130-x86_64-linux",
        "torch-stable-abi211-cxx11-cu130-x86_64-linux", "torch211-cu130-x86_64",
        "torch211-cu130-x86_64-linux-extra", "torch2-cu130-x86_64-linux",
        "torch211-cuda-x86_64-linux", "torch211-cu1-x86_64-linux", "torchx-cu130-x86_64-linux",
        "tvm-cu130-x86_64-linux", "torch99999999999-cpu-x86_64-linux", "__pycache__"}) {
    EXPECT_FALSE(parse_variant(name)) << name;
  }
}

TEST(Variant, SaysWhyAVariantDoesNotFit) {
  EXPECT_EQ(why("torch-stable-abi211-cu130-x86_64-linux", kCuda132), "");
  EXPECT_EQ(why("torch211-cxx11-cu132-x86_64-linux", kCuda132), "");
  EXPECT_EQ(why("torch-stable-abi213-cu130-x86_64-linux", kCuda132),
            "needs torch 2.13 or later, this is 2.11");
  EXPECT_EQ(why("torch210-cxx11-cu130-x86_64-linux", kCuda132),
            "built for torch 2.10, this is 2.11");
  EXPECT_EQ(why("torch211-cxx98-cu130-x86_64-linux", kCuda132),
            "built for C++ ABI cxx98, this is cxx11");
  EXPECT_EQ(why("torch211-cxx11-cu134-x86_64-linux", kCuda132),
            "built for CUDA 13.4, libtorch has 13.2");
  EXPECT_EQ(why("torch211-cxx11-cu126-x86_64-linux", kCuda132),
            "built for CUDA 12.6, libtorch has 13.2");
  EXPECT_EQ(why("torch211-cxx11-cu130-aarch64-linux", kCuda132),
            "built for aarch64-linux, this is x86_64-linux");
  EXPECT_EQ(why("torch211-cxx11-cu130-x86_64-linux", kCpu), "built for cuda, the device is cpu");
  EXPECT_EQ(why("tvm-ffi01-cu130-x86_64-linux", kCuda132), "tvm-ffi kernels are not supported");
  EXPECT_THAT(why("torch-cuda", kCuda132), HasSubstr("Python files only"));
  EXPECT_THAT(why("torch-universal", kCpu), HasSubstr("Python files only"));
}

TEST(Variant, PrefersNewStableAbiThenHighCudaMinorThenTagless) {
  const auto choice = choose_variants(
      {"torch211-cxx11-cu130-x86_64-linux", "torch-stable-abi29-cu130-x86_64-linux", "torch-cuda",
       "torch211-cu130-x86_64-linux", "torch-stable-abi211-cu130-x86_64-linux",
       "torch211-cxx11-cu132-x86_64-linux", "torch-stable-abi29-cu132-x86_64-linux", "notes"},
      kCuda132);
  std::vector<std::string> names;
  for (const auto& variant : choice.accepted) {
    names.push_back(variant.name);
  }
  EXPECT_THAT(
      names,
      ElementsAre("torch-stable-abi211-cu130-x86_64-linux", "torch-stable-abi29-cu132-x86_64-linux",
                  "torch-stable-abi29-cu130-x86_64-linux", "torch211-cu130-x86_64-linux",
                  "torch211-cxx11-cu132-x86_64-linux", "torch211-cxx11-cu130-x86_64-linux"));
  ASSERT_EQ(choice.refused.size(), 2U);
  EXPECT_EQ(choice.refused[1],
            (std::pair<std::string, std::string>("notes", "not a variant's name")));
}

TEST(Variant, ThisSystemIsTheOneThatRuns) {
  const System system = this_system("cuda", 130);
  EXPECT_EQ(system.torch.major, 2);
  EXPECT_EQ(system.backend_version, (Version{13, 0}));
  EXPECT_EQ(system.cpu, "x86_64");
}

}  // namespace
}  // namespace graft::kernel
