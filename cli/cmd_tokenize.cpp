#include <memory>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "graft/text/pretrained.h"

#include "cli/command.h"
#include "cli/input.h"
#include "cli/model_path.h"
#include "cli/output.h"

namespace graft::cli {

namespace {

int run(const TokenizeOptions& options) {
  const auto tokenizer = text::load_pretrained(locate_model(options.model));
  const std::string text = options.text ? *options.text
                                        : read_text(options.file.empty() ? "-" : options.file,
                                                    options.file.empty() ? "TEXT" : "--file");
  const auto ids = tokenizer.encode(text, !options.no_special_tokens);
  if (options.common.json) {
    nlohmann::ordered_json tokens = nlohmann::ordered_json::array();
    for (const int32_t id : ids) {
      tokens.push_back(tokenizer.id_to_token(id));
    }
    print_json({{"ids", ids}, {"tokens", tokens}});
  } else {
    write_stdout(fmt::format("{}\n", fmt::join(ids, " ")));
  }
  return 0;
}

}  // namespace

void add_tokenize(CLI::App& app, Chosen& chosen) {
  auto options = std::make_shared<TokenizeOptions>();
  auto* command = app.add_subcommand("tokenize", "Turn text into a model's token ids");
  command->add_option("MODEL", options->model, "Folder, tokenizer.json, .gguf file or Hub id")
      ->required();
  auto* text = command->add_option("TEXT", options->text, "Text to tokenize (default: stdin)");
  command->add_option("--file", options->file, "File with the text; - is stdin")->excludes(text);
  command->add_flag("--no-special-tokens", options->no_special_tokens, "Add no bos or eos tokens");
  add_common_options(*command, options->common);
  command->callback([options, &chosen] {
    chosen = {[options] { return run(*options); }, &options->common};
  });
}

}  // namespace graft::cli
