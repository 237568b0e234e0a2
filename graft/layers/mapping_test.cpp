#include "graft/layers/mapping.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "graft/core/error.h"
#include "graft/layers/kernel_config.h"

namespace graft::layers {
namespace {

using kernel::parse_layer_reference;
using testing::ElementsAre;
using testing::HasSubstr;
using Outcome = KernelMapping::Outcome;

ModeMap one(Mode mode, const std::string& name) {
  return {{mode, parse_layer_reference("org/repo:" + name)}};
}

std::string found(const KernelMapping& mapping, std::string_view device, int capability,
                  Mode mode) {
  const auto result = mapping.find("L", device, capability, mode);
  return result.outcome == Outcome::kFound ? result.reference.layer : "";
}

TEST(Mode, FallsBackInUpstreamsOrder) {
  EXPECT_THAT(search_order(Mode::kInference),
              ElementsAre(Mode::kInference, Mode::kInferenceCompile, Mode::kTraining,
                          Mode::kTrainingCompile, Mode::kFallback));
  EXPECT_THAT(search_order(Mode::kTraining),
              ElementsAre(Mode::kTraining, Mode::kTrainingCompile, Mode::kFallback));
  EXPECT_THAT(search_order(Mode::kInferenceCompile),
              ElementsAre(Mode::kInferenceCompile, Mode::kTrainingCompile, Mode::kFallback));
  EXPECT_THAT(search_order(Mode::kTrainingCompile),
              ElementsAre(Mode::kTrainingCompile, Mode::kFallback));
  EXPECT_THROW(search_order(Mode::kFallback), InvalidArgument);
  EXPECT_THROW(search_order(Mode::kTorchCompile), InvalidArgument);
}

TEST(Mode, IsReadInBothSpellings) {
  EXPECT_EQ(parse_mode("inference"), Mode::kInference);
  EXPECT_EQ(parse_mode("TRAINING|TORCH_COMPILE"), Mode::kTrainingCompile);
  EXPECT_EQ(parse_mode("inference+compile"), Mode::kInferenceCompile);
  for (const char* text : {"", "compile", "inference+training", "fallback+compile", "eval"}) {
    EXPECT_THROW(parse_mode(text), InvalidArgument) << text;
  }
}

TEST(Mapping, TakesTheFirstModeOfTheOrderThatIsRegistered) {
  const std::vector<Mode> order = {Mode::kInference, Mode::kInferenceCompile, Mode::kTraining,
                                   Mode::kTrainingCompile, Mode::kFallback};
  for (size_t first = 0; first < order.size(); ++first) {
    ModeMap modes;
    for (size_t i = first; i < order.size(); ++i) {
      modes[order[i]] = parse_layer_reference("org/repo:L" + std::to_string(i));
    }
    KernelMapping mapping;
    mapping.set("L", {"cpu"}, modes);
    const auto result = mapping.find("L", "cpu", 0, Mode::kInference);
    EXPECT_EQ(result.reference.layer, "L" + std::to_string(first));
    EXPECT_EQ(result.registered, order[first]);
  }
}

TEST(Mapping, SaysWhatIsMissing) {
  KernelMapping mapping;
  mapping.set("L", parse_device_key("cuda:90"), one(Mode::kInference, "A"));
  EXPECT_EQ(mapping.find("Other", "cuda", 90, Mode::kInference).outcome, Outcome::kNoLayer);
  EXPECT_EQ(mapping.find("L", "cpu", 0, Mode::kInference).outcome, Outcome::kNoDevice);
  EXPECT_EQ(mapping.find("L", "cuda", 80, Mode::kInference).outcome,
            Outcome::kNoCompatibleProperties);
  EXPECT_EQ(mapping.find("L", "cuda", 90, Mode::kTraining).outcome, Outcome::kNoCompatibleMode);
  EXPECT_EQ(mapping.find("L", "cuda", 90, Mode::kInference).outcome, Outcome::kFound);
}

TEST(Mapping, TheNarrowestIntervalWinsAndOfEquallyNarrowOnesTheFirst) {
  KernelMapping mapping;
  mapping.set("L", {"cuda"}, one(Mode::kInference, "Any"));
  mapping.set("L", parse_device_key("cuda:80-90"), one(Mode::kInference, "Wide"));
  mapping.set("L", parse_device_key("cuda:86-90"), one(Mode::kInference, "First"));
  mapping.set("L", parse_device_key("cuda:88-92"), one(Mode::kInference, "Second"));
  EXPECT_EQ(found(mapping, "cuda", 70, Mode::kInference), "Any");
  EXPECT_EQ(found(mapping, "cuda", 80, Mode::kInference), "Wide");
  EXPECT_EQ(found(mapping, "cuda", 89, Mode::kInference), "First");
  EXPECT_EQ(found(mapping, "cuda", 92, Mode::kInference), "Second");
}

TEST(Mapping, AnIdenticalDeviceReplacesAllModes) {
  KernelMapping mapping;
  mapping.set("L", parse_device_key("cuda:80-90"), one(Mode::kTraining, "Old"));
  mapping.set("L", parse_device_key("cuda:80-90"), one(Mode::kInferenceCompile, "New"));
  EXPECT_EQ(found(mapping, "cuda", 85, Mode::kInference), "New");
  EXPECT_EQ(found(mapping, "cuda", 85, Mode::kTraining), "");
}

TEST(Mapping, RefusesDevicesThatAreNone) {
  for (const char* text :
       {"", "gpu", "cuda:", "cuda:9.0", "cuda:90-80", "cpu:80", "cuda:80-", "cuda:5"}) {
    EXPECT_THROW(parse_device_key(text), InvalidArgument) << text;
  }
}

TEST(Mapping, TheDefaultServesOurLayersOnTheCpuAndOnCuda) {
  for (const char* layer :
       {"RMSNorm", "SiLU", "NewGELU", "SiluAndMul", "GeluTanhAndMul", "rotary_pos_emb"}) {
    for (const char* device : {"cpu", "cuda"}) {
      EXPECT_EQ(default_mapping().find(layer, device, 90, Mode::kInference).outcome,
                Outcome::kFound);
      EXPECT_EQ(default_mapping().find(layer, device, 90, Mode::kInferenceCompile).outcome,
                Outcome::kFound);
      EXPECT_EQ(default_mapping().find(layer, device, 90, Mode::kTraining).outcome,
                Outcome::kFound);
    }
  }
  // No backward.
  EXPECT_EQ(default_mapping().find("Linear", "cpu", 0, Mode::kInference).outcome, Outcome::kFound);
  EXPECT_EQ(default_mapping().find("PackedLinear", "cpu", 0, Mode::kInference).outcome,
            Outcome::kFound);
  EXPECT_EQ(default_mapping().find("Linear", "cpu", 0, Mode::kTraining).outcome,
            Outcome::kNoCompatibleMode);
}

TEST(Mapping, TheDefaultServesAWholeMlpWhereThatIsFasterThanItsParts) {
  for (const char* layer : {"SwiGLUMLP", "GeGLUMLP", "MLP"}) {
    const auto outcome = [&](const char* device, int capability, Mode mode) {
      return default_mapping().find(layer, device, capability, mode).outcome;
    };
    EXPECT_EQ(outcome("cpu", 0, Mode::kInference), Outcome::kFound);
    EXPECT_EQ(outcome("cuda", 90, Mode::kInference), Outcome::kFound);
    EXPECT_EQ(outcome("cuda", 120, Mode::kInferenceCompile), Outcome::kFound);
    EXPECT_NE(outcome("cuda", 89, Mode::kInference), Outcome::kFound);
    EXPECT_NE(outcome("cuda", 90, Mode::kTraining), Outcome::kFound);
    EXPECT_NE(outcome("cpu", 0, Mode::kTraining), Outcome::kFound);
  }
}

TEST(KernelConfig, ReadsKernelsByLayerDeviceAndMode) {
  const auto config = KernelConfig::from_json(R"({
    "L": {"cuda:80-89": "org/old@v1:A", "cuda": {"inference": "org/new:B", "training+compile": ""}},
    "M": "/abs/path:C", "N": "", "O": null})");
  EXPECT_TRUE(config.inherit_mapping);
  const auto& mapping = config.kernel_mapping;
  EXPECT_EQ(mapping.find("L", "cuda", 86, Mode::kTraining).reference.text(), "org/old@v1:A");
  EXPECT_EQ(mapping.find("L", "cuda", 90, Mode::kInference).reference.text(), "org/new:B");
  EXPECT_TRUE(mapping.find("L", "cuda", 90, Mode::kTraining).reference.is_reference_forward());
  EXPECT_EQ(mapping.find("M", "cpu", 0, Mode::kInferenceCompile).reference.repository, "/abs/path");
  EXPECT_EQ(mapping.find("M", "cuda", 90, Mode::kTraining).registered, Mode::kFallback);
  EXPECT_TRUE(mapping.find("N", "cpu", 0, Mode::kInference).reference.is_reference_forward());
  EXPECT_TRUE(mapping.find("O", "cpu", 0, Mode::kInference).reference.is_reference_forward());
}

TEST(KernelConfig, ReadsTheWrappedFormWithInheritMapping) {
  const auto config = KernelConfig::from_json(
      R"({"kernel_mapping": {"L": "org/repo:A"}, "inherit_mapping": false})");
  EXPECT_FALSE(config.inherit_mapping);
  EXPECT_THAT(config.kernel_mapping.layers(), ElementsAre("L"));
}

TEST(KernelConfig, NamesTheKeyThatBreaksTheGrammar) {
  for (const auto& [text, key] : std::initializer_list<std::pair<const char*, const char*>>{
           {R"({"L": 7})", "L"},
           {R"({"L": {}})", "L"},
           {R"({"L": {"cpu": []}})", "L.cpu"},
           {R"({"L": {"cpu": {"inference": 7}}})", "L.cpu.inference"},
           {R"({"L": {"cpu": {"sometimes": "org/repo:A"}}})", "sometimes"},
           {R"({"L": {"gpu": "org/repo:A"}})", "gpu"},
           {R"({"L": "repo:A"})", "repo:A"},
           {R"({"kernel_mapping": {}, "mode": 1})", "mode"},
           {R"({"kernel_mapping": {}, "inherit_mapping": "yes"})", "inherit_mapping"},
           {R"(["L"])", "object"}}) {
    try {
      KernelConfig::from_json(text);
      ADD_FAILURE() << text;
    } catch (const InvalidArgument& error) {
      EXPECT_THAT(error.what(), HasSubstr(key));
    }
  }
  EXPECT_THROW(KernelConfig::from_json(R"({"L": "org/repo:A", "L": "org/repo:B"})"), FormatError);
}

}  // namespace
}  // namespace graft::layers
