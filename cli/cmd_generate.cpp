#include <memory>

#include "cli/command.h"
#include "cli/torch_commands.h"

namespace graft::cli {

namespace {

void add_prompt_options(CLI::App& command, GenerateOptions& options) {
  auto* prompt = command.add_option_group("prompt", "What to continue (exactly one)");
  prompt->add_option("--prompt", options.prompt, "Text to continue");
  prompt->add_option("--prompt-file", options.prompt_file,
                     "File with the text to continue; - is stdin");
  prompt->add_option("--prompt-ids", options.prompt_ids, "Token ids to continue: 1,2,3");
  auto* chat = prompt->add_option("--chat", options.chat,
                                  "A user's message, through the model's chat template");
  prompt->require_option(1);
  command.add_option("--system", options.system, "System message for --chat")->needs(chat);
}

void add_sampling_options(CLI::App& command, GenerateOptions& options) {
  command.add_option("--max-new-tokens", options.max_new_tokens, "End after so many tokens")
      ->capture_default_str();
  command.add_option("--temperature", options.temperature,
                     "Sample from the softened distribution; 0 is greedy");
  command.add_option("--top-k", options.top_k, "Sample from the k best tokens; 0: all");
  command.add_option("--top-p", options.top_p, "Sample from the best tokens of this total");
  command.add_option("--min-p", options.min_p,
                     "Sample from tokens of at least this share of the best one");
  command.add_option("--repetition-penalty", options.repetition_penalty,
                     "Above 1: tokens seen before become less likely");
  command.add_option("--num-beams", options.num_beams, "Beam search of this width");
  command.add_option("--stop", options.stop, "Stop string; may be given several times");
  command.add_option("--seed", options.seed, "The same seed draws the same tokens")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command.add_flag("--ignore-eos", options.ignore_eos,
                   "Go on to max-new-tokens whatever the model says");
  command.add_option("--cache", options.cache, "KV cache: dynamic or static")
      ->check(CLI::IsMember({"dynamic", "static"}))
      ->capture_default_str();
  command
      .add_option_function<std::string>(
          "--cuda-graph",
          [&options](const std::string& value) { options.cuda_graph = value == "on"; },
          "Replay decode steps of a static cache on CUDA from one graph: on or off")
      ->check(CLI::IsMember({"on", "off"}))
      ->default_str("on");
  command.add_flag("--stream", options.stream, "Print text as it comes");
}

}  // namespace

void add_generate(CLI::App& app, Chosen& chosen) {
  auto options = std::make_shared<GenerateOptions>();
  auto* command = app.add_subcommand(
      "generate", "Write text with a model: greedy, unless a sampling option is given");
  add_model_options(*command, options->model);
  add_prompt_options(*command, *options);
  add_sampling_options(*command, *options);
  add_common_options(*command, options->common);
  command->callback([options, &chosen] {
    chosen = {[options] { return torch_commands().generate(*options); }, &options->common};
  });
}

}  // namespace graft::cli
