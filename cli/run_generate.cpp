#include <atomic>
#include <chrono>
#include <csignal>
#include <filesystem>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "graft/core/error.h"
#include "graft/core/file_status.h"
#include "graft/generation/generate.h"
#include "graft/layers/kernelize.h"
#include "graft/nn/block.h"
#include "graft/tensor/device.h"
#include "graft/text/chat_template.h"
#include "graft/text/pretrained.h"

#include "cli/input.h"
#include "cli/load_model.h"
#include "cli/model_path.h"
#include "cli/output.h"
#include "cli/run.h"

namespace graft::cli {

namespace {

namespace fs = std::filesystem;

std::atomic<bool> interrupted{false};

// Once: the reply ends after the token under way. Twice: the process ends.
void on_interrupt(int) {
  if (interrupted.exchange(true)) {
    std::signal(SIGINT, SIG_DFL);
    std::raise(SIGINT);
  }
}

fs::path model_place(const ModelOptions& model) {
  const fs::path place = locate_model(model.model, model.gguf_file, model.revision);
  if (is_gguf_file(place) || is_there(place / "config.json")) {
    return place;
  }
  throw NotFound(
      "cli.generate", "model",
      fmt::format("`{}`: expected a folder with config.json, or a .gguf file, got neither",
                  place.string()),
      "a .gguf file inside a folder is named by its own path, or with --gguf-file");
}

// A model without a tokenizer can still be driven with ids.
std::optional<text::Tokenizer> find_tokenizer(const GenerateOptions& options) {
  const fs::path place = model_place(options.model);
  if (is_folder(place) && !is_there(place / "tokenizer.json")) {
    if (options.prompt_ids) {
      return std::nullopt;
    }
    throw NotFound(
        "cli.generate", "tokenizer",
        fmt::format("`{}`: expected a tokenizer.json to read text with, got none", place.string()),
        "drive the model with token ids: --prompt-ids 1,2,3");
  }
  return text::load_pretrained(place);
}

std::string render_chat(const GenerateOptions& options, const text::Tokenizer& tokenizer) {
  nlohmann::ordered_json messages = nlohmann::ordered_json::array();
  if (options.system) {
    messages.push_back({{"role", "system"}, {"content", *options.system}});
  }
  messages.push_back({{"role", "user"}, {"content", *options.chat}});
  if (tokenizer.chat_template().empty()) {
    throw NotFound("cli.generate", "chat-template",
                   "--chat: expected a chat template with the model's tokenizer, got none",
                   "use --prompt with the text that the model expects");
  }
  const auto spelled = [&](std::optional<int32_t> id) {
    return id ? std::string(tokenizer.id_to_token(*id)) : std::string();
  };
  text::ChatTemplateOptions rendering;
  rendering.add_generation_prompt = true;
  rendering.bos_token = spelled(tokenizer.bos_id());
  rendering.eos_token = spelled(tokenizer.eos_id());
  return text::ChatTemplate::parse(tokenizer.chat_template()).render(messages, rendering);
}

std::vector<int64_t> prompt_ids(const GenerateOptions& options,
                                const std::optional<text::Tokenizer>& tokenizer) {
  if (options.prompt_ids) {
    return parse_ids(*options.prompt_ids);
  }
  std::vector<int32_t> ids;
  if (options.chat) {
    // The template writes its own special tokens.
    ids = tokenizer->encode(render_chat(options, *tokenizer), /*add_special_tokens=*/false);
  } else {
    ids = tokenizer->encode(options.prompt ? *options.prompt
                                           : read_text(*options.prompt_file, "--prompt-file"));
  }
  return {ids.begin(), ids.end()};
}

// Sampling is asked for by any of its options; --temperature 0 says greedy whatever else is given.
bool wants_sampling(const GenerateOptions& options) {
  if (!options.temperature) {
    return options.top_k || options.top_p || options.min_p;
  }
  if (!(*options.temperature >= 0.0)) {
    throw InvalidArgument(
        "cli.generate", "temperature",
        fmt::format("--temperature: expected 0 (greedy) or more, got {}", *options.temperature));
  }
  return *options.temperature > 0.0;
}

generation::GenerationConfig generation_config(const GenerateOptions& options) {
  const fs::path place = model_place(options.model);
  auto config = is_folder(place) ? generation::GenerationConfig::from_folder(place)
                                 : generation::GenerationConfig{};
  // A command without sampling options is greedy, whatever the checkpoint's author liked.
  config.do_sample = wants_sampling(options);
  config.temperature = config.do_sample ? options.temperature.value_or(config.temperature) : 1.0;
  config.max_new_tokens = options.max_new_tokens;
  config.top_k = options.top_k.value_or(config.top_k);
  config.top_p = options.top_p.value_or(config.do_sample ? config.top_p : 1.0);
  config.min_p = options.min_p;
  config.repetition_penalty = options.repetition_penalty.value_or(1.0);
  config.num_beams = options.num_beams.value_or(1);
  config.num_return_sequences = 1;
  config.stop_strings = options.stop;
  config.seed = options.seed;
  config.ignore_eos = options.ignore_eos;
  config.use_static_cache = options.cache == "static";
  config.disable_compile = !options.cuda_graph;
  return config;
}

generation::GenerateHooks make_hooks(const GenerateOptions& options,
                                     const std::optional<text::Tokenizer>& tokenizer) {
  generation::GenerateHooks hooks =
      tokenizer ? generation::text_hooks(*tokenizer) : generation::GenerateHooks{};
  hooks.cancel = &interrupted;
  if (options.stream) {
    hooks.on_token = [&options,
                      has_text = tokenizer.has_value()](const generation::TokenEvent& event) {
      if (options.common.json) {
        print_json({{"token", event.token_id}, {"text", event.text}, {"logprob", event.logprob}});
      } else {
        write_stdout(has_text ? event.text : fmt::format("{} ", event.token_id));
      }
    };
  }
  return hooks;
}

double per_second(int64_t count, double seconds) {
  return seconds > 0.0 ? static_cast<double>(count) / seconds : 0.0;
}

nlohmann::ordered_json swapped_rows(models::CausalLM& model) {
  nlohmann::ordered_json rows = nlohmann::ordered_json::array();
  if (const auto report = layers::kernelize_report(model)) {
    for (const auto& row : report->swapped()) {
      rows.push_back({{"layer", row.layer},
                      {"package", row.package},
                      {"variant", row.variant},
                      {"count", row.count}});
    }
  }
  return rows;
}

void print_loaded(const GenerateOptions& options, const models::CausalLM& model,
                  std::chrono::steady_clock::time_point start) {
  const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
  const size_t packed = nn::packed_bytes(model);
  print_note(options.common,
             fmt::format("loaded {}: {} parameters, {}{}, {}, in {}", model.info().model_type,
                         format_count(model.info().num_parameters),
                         packed > 0 ? fmt::format("{} of them packed, ", format_bytes(packed)) : "",
                         tensor::dtype_name(model.dtype()), model.device().str(),
                         format_seconds(elapsed.count())));
}

void print_summary(const GenerateOptions& options, models::CausalLM& model,
                   const generation::GenerateOutput& output) {
  std::string swapped;
  for (const auto& row : swapped_rows(model)) {
    swapped += fmt::format("{}{} {}", swapped.empty() ? "" : ", ", row["count"].get<int64_t>(),
                           row["layer"].get<std::string>());
  }
  print_note(
      options.common,
      fmt::format("prefill {} tokens, {:.1f} tokens/s; decode {} tokens, {:.1f} tokens/s; {}{}; "
                  "ended by {}",
                  output.prefill_tokens, per_second(output.prefill_tokens, output.prefill_seconds),
                  output.decode_tokens, per_second(output.decode_tokens, output.decode_seconds),
                  swapped.empty() ? "no kernels" : "kernels: " + swapped,
                  output.used_graph ? "; CUDA graph"
                  : options.cache == "static" && !model.device().is_cpu()
                      ? "; no CUDA graph: " + output.graph_refusal
                      : "",
                  generation::name(output.finish_reasons[0])));
}

// Kernels that were asked for and are not there are said, never passed over.
void warn_without_kernels(const GenerateOptions& options, models::CausalLM& model) {
  const auto report = layers::kernelize_report(model);
  if (report && report->disabled_by.empty() && report->swapped().empty()) {
    print_note(options.common,
               "graft: warning: no kernel could be swapped in: `graft explain` says why, "
               "`--kernels off` asks for none");
  }
}

}  // namespace

int run_generate(const GenerateOptions& options) {
  const auto tokenizer = find_tokenizer(options);
  const auto prompt = prompt_ids(options, tokenizer);
  const auto config = generation_config(options);
  config.validate();  // before the weights are loaded
  const auto start = std::chrono::steady_clock::now();
  const auto model = load_model(options.model, options.common);
  if (!options.common.json) {
    print_loaded(options, *model, start);
  }
  warn_without_kernels(options, *model);
  std::signal(SIGINT, on_interrupt);
  const auto output =
      generation::generate(*model, {prompt}, config, make_hooks(options, tokenizer));
  std::signal(SIGINT, SIG_DFL);
  const auto& generated = output.sequences[0];
  const std::string text =
      tokenizer ? tokenizer->decode(std::vector<int32_t>(generated.begin(), generated.end()))
                : fmt::format("{}", fmt::join(generated, " "));
  if (options.common.json) {
    print_json(
        {{"prompt_ids", prompt},
         {"generated_ids", generated},
         {"text", tokenizer ? text : ""},
         {"finish_reason", generation::name(output.finish_reasons[0])},
         {"prefill_tokens_per_second", per_second(output.prefill_tokens, output.prefill_seconds)},
         {"decode_tokens_per_second", per_second(output.decode_tokens, output.decode_seconds)},
         {"prefill_seconds", output.prefill_seconds},
         {"decode_seconds", output.decode_seconds},
         {"cuda_graph", {{"used", output.used_graph}, {"reason", output.graph_refusal}}},
         {"peak_rss_bytes", peak_rss_bytes()},
         {"packed_bytes", nn::packed_bytes(*model)},
         {"swapped", swapped_rows(*model)}});
  } else {
    write_stdout(options.stream ? "\n" : text + "\n");
    print_summary(options, *model, output);
  }
  return output.finish_reasons[0] == generation::FinishReason::kCancelled ? 130 : 0;
}

}  // namespace graft::cli
