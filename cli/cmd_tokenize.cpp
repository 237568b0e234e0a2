#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "graft/core/error.h"
#include "graft/text/pretrained.h"

#include "cli/command.h"
#include "cli/model_path.h"
#include "cli/output.h"

namespace graft::cli {

namespace {

std::string read_text(const TokenizeOptions& options) {
  if (options.text) {
    return *options.text;
  }
  if (options.file.empty() || options.file == "-") {
    return read_stdin("TEXT");
  }
  std::ifstream in(options.file, std::ios::binary);
  if (!in) {
    throw NotFound("cli.tokenize", "file",
                   fmt::format("--file: expected a readable file, got `{}`", options.file));
  }
  return {std::istreambuf_iterator<char>(in), {}};
}

int run(const TokenizeOptions& options) {
  const auto tokenizer = text::load_pretrained(locate_model(options.model));
  const auto ids = tokenizer.encode(read_text(options), !options.no_special_tokens);
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
