#include "graft/layers/mode.h"

#include <algorithm>
#include <array>
#include <map>

#include <fmt/format.h>

#include "graft/core/error.h"

namespace graft::layers {

namespace {

constexpr std::array<std::pair<Mode, std::string_view>, 5> kNames = {
    {{Mode::kInference, "inference"},
     {Mode::kTraining, "training"},
     {Mode::kInferenceCompile, "inference+compile"},
     {Mode::kTrainingCompile, "training+compile"},
     {Mode::kFallback, "fallback"}}};

}  // namespace

bool has(Mode mode, Mode flag) {
  return (static_cast<unsigned>(mode) & static_cast<unsigned>(flag)) == static_cast<unsigned>(flag);
}

Mode parse_mode(std::string_view text) {
  std::string plain(text);
  std::transform(plain.begin(), plain.end(), plain.begin(), [](unsigned char c) {
    return c == '|' ? '+' : static_cast<char>(std::tolower(c));
  });
  if (const auto at = plain.find("torch_compile"); at != std::string::npos) {
    plain.replace(at, 13, "compile");
  }
  for (const auto& [mode, name] : kNames) {
    if (plain == name) {
      return mode;
    }
  }
  throw InvalidArgument(
      "layers.mode", "name",
      fmt::format("mode: expected inference, training, either with +compile, or fallback, got `{}`",
                  text));
}

std::string mode_name(Mode mode) {
  for (const auto& [known, name] : kNames) {
    if (known == mode) {
      return std::string(name);
    }
  }
  return "unknown";
}

const std::vector<Mode>& search_order(Mode requested) {
  static const std::map<Mode, std::vector<Mode>> kOrders = {
      {Mode::kInference,
       {Mode::kInference, Mode::kInferenceCompile, Mode::kTraining, Mode::kTrainingCompile,
        Mode::kFallback}},
      {Mode::kTraining, {Mode::kTraining, Mode::kTrainingCompile, Mode::kFallback}},
      {Mode::kInferenceCompile, {Mode::kInferenceCompile, Mode::kTrainingCompile, Mode::kFallback}},
      {Mode::kTrainingCompile, {Mode::kTrainingCompile, Mode::kFallback}},
  };
  const auto found = kOrders.find(requested);
  if (found == kOrders.end()) {
    throw InvalidArgument(
        "layers.mode", "request",
        fmt::format("mode: expected one with inference or training, got {}", mode_name(requested)));
  }
  return found->second;
}

}  // namespace graft::layers
