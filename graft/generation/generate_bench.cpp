// Prefill and decode of one model on one device: kernels off and on, each cache, with and without the
// graph. One JSON line a row on stdout; the ids of every row are held against those of the first.
//
// A .gguf file keeps its matrices in packed blocks, beside bfloat16: without kernels they are unpacked.
//
//   graft_bench_generate MODEL [DEVICE] [CONTEXTS] [NEW-TOKENS] [RUNS] [KERNEL-CONFIG]
//   graft_bench_generate llama-1b cuda 32,512,2048 128 3
//   graft_bench_generate llama-1b cuda 512 64 3 '{"kernel_mapping": {"SwiGLUMLP": {"cuda": "graft-kernels/mlp:SwiGLUMLP"}}}'
#include <algorithm>
#include <cstdio>
#include <random>
#include <string>
#include <vector>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "graft/generation/generate.h"
#include "graft/layers/kernelize.h"
#include "graft/models/auto_model.h"
#include "graft/tensor/device.h"

namespace {

using Ids = std::vector<int64_t>;

struct Variant {
  std::string name;
  bool kernels = false;
  bool static_cache = false;
  bool graph = false;
};

const std::vector<Variant>& variants() {
  static const std::vector<Variant> all = {
      {"kernels off, dynamic cache"},
      {"kernels off, static cache, graph", false, true, true},
      {"kernels on, dynamic cache", true},
      {"kernels on, static cache", true, true},
      {"kernels on, static cache, graph", true, true, true},
  };
  return all;
}

Ids random_prompt(int64_t length, int64_t vocab_size) {
  std::mt19937_64 engine(static_cast<uint64_t>(length));
  Ids ids;
  for (int64_t i = 0; i < length; ++i) {
    ids.push_back(3 + static_cast<int64_t>(engine() % static_cast<uint64_t>(vocab_size - 3)));
  }
  return ids;
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

size_t common_length(const Ids& a, const Ids& b) {
  return static_cast<size_t>(std::mismatch(a.begin(), a.end(), b.begin(), b.end()).first -
                             a.begin());
}

struct Measure {
  graft::models::CausalLM& model;
  int64_t new_tokens;
  int runs;

  nlohmann::ordered_json operator()(const Variant& variant, int64_t context, Ids& expected) const {
    graft::generation::GenerationConfig config;
    config.max_new_tokens = new_tokens + 1;
    config.ignore_eos = true;
    config.use_static_cache = variant.static_cache;
    config.disable_compile = !variant.graph;
    const Ids prompt = random_prompt(context, model.info().vocab_size);
    std::vector<double> prefill_ms, decode_rates;
    graft::generation::GenerateOutput output;
    for (int run = 0; run <= runs; ++run) {  // the first warms up
      output = graft::generation::generate(model, {prompt}, config);
      if (run > 0) {
        prefill_ms.push_back(output.prefill_seconds * 1e3);
        decode_rates.push_back(static_cast<double>(output.decode_tokens) / output.decode_seconds);
      }
    }
    if (expected.empty()) {
      expected = output.sequences[0];
    }
    return {{"variant", variant.name},
            {"context", context},
            {"prefill_ms", median(prefill_ms)},
            {"decode_tokens_per_second", median(decode_rates)},
            {"decode_min", *std::min_element(decode_rates.begin(), decode_rates.end())},
            {"decode_max", *std::max_element(decode_rates.begin(), decode_rates.end())},
            {"new_tokens", new_tokens},
            {"runs", runs},
            {"graph", output.used_graph},
            {"graph_refusal", output.graph_refusal},
            {"equal_ids", common_length(output.sequences[0], expected)},
            {"ids", output.sequences[0].size()}};
  }
};

std::vector<int64_t> parse_list(const std::string& text) {
  std::vector<int64_t> values;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find(',', begin), text.size());
    values.push_back(std::stoll(text.substr(begin, end - begin)));
    begin = end + 1;
  }
  return values;
}

}  // namespace

int main(int argc, char** argv) {
  const std::vector<std::string> arguments(argv + 1, argv + argc);
  if (arguments.empty()) {
    std::fputs(
        "usage: graft_bench_generate MODEL [DEVICE] [CONTEXTS] [NEW-TOKENS] [RUNS] "
        "[KERNEL-CONFIG]\n",
        stderr);
    return 2;
  }
  const auto argument = [&](size_t index, const char* fallback) {
    return index < arguments.size() ? arguments[index] : std::string(fallback);
  };
  const at::Device device = graft::tensor::parse_device(argument(1, "cuda"));
  graft::tensor::ensure_device(device);
  graft::models::LoadOptions load;
  load.device_map = device;
  if (arguments[0].ends_with(".gguf")) {
    load.weights = graft::models::WeightFormat::kPacked;
    load.dtype = at::kBFloat16;
  }
  const auto model = graft::models::AutoModelForCausalLM::from_pretrained(arguments[0], load);
  graft::layers::KernelizeOptions options;
  if (arguments.size() > 5) {
    options.config = graft::layers::KernelConfig::from_json(arguments[5]);
  }
  const Measure measure{*model, std::stoll(argument(3, "128")), std::stoi(argument(4, "3"))};
  const auto contexts = parse_list(argument(2, "32,512,2048"));
  std::vector<Ids> expected(contexts.size());
  bool kernels = false;
  for (const Variant& variant : variants()) {
    if (variant.kernels && !kernels) {
      kernels = true;
      std::fputs(graft::layers::kernelize(*model, options).to_text().c_str(), stderr);
    }
    for (size_t i = 0; i < contexts.size(); ++i) {
      std::printf("%s\n", measure(variant, contexts[i], expected[i]).dump().c_str());
      std::fflush(stdout);
    }
  }
  return 0;
}
