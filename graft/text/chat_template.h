// Turns a conversation into a model's prompt with the chat template of its tokenizer: Jinja as
// transformers' `apply_chat_template` configures it, interpreted under budgets. Nothing here
// tokenizes, and no template can reach anything but the values it was given.
#pragma once

#include <cstdint>
#include <ctime>
#include <memory>
#include <optional>
#include <string>

#include <nlohmann/json.hpp>

namespace graft::text {

struct ChatTemplateOptions {
  bool add_generation_prompt = false;
  nlohmann::ordered_json tools = {};      // list of JSON schemas; null: the template sees none
  nlohmann::ordered_json documents = {};  // list of objects for retrieval; null: none
  std::optional<std::string> bos_token = std::nullopt;
  std::optional<std::string> eos_token = std::nullopt;
  // Further variables by name, as keyword arguments of apply_chat_template (`enable_thinking`,
  // `unk_token`, …). They win over the ones above.
  nlohmann::ordered_json variables = {};
  std::optional<std::tm> now = std::nullopt;  // local time for `strftime_now`; absent: the clock

  uint64_t max_steps = 10'000'000;       // evaluated nodes
  uint64_t max_output_bytes = 16 << 20;  // of the prompt
  uint64_t max_work_bytes = 256 << 20;   // of all values made on the way
};

class ChatTemplate {
 public:
  // Parses a template.
  //
  // source   Jinja, at most 1 MiB of UTF-8
  // name     shown in errors, e.g. the file's name
  // Throws   FormatError `text.chat_template.syntax`, `.unsupported` (a tag, filter or test that
  //          no chat template may use, by name) or `.budget`, with line and column.
  static ChatTemplate parse(std::string source, std::string name = "chat_template");

  // Renders a conversation. The result is what transformers renders, byte for byte.
  //
  // messages  list of objects with `role` and `content`
  // Throws   InvalidArgument `text.chat_template.raised` when the template refuses the
  //          conversation (`raise_exception`), `.arguments` when a value cannot be given to it.
  // Throws   FormatError `text.chat_template.undefined`, `.type`, `.security`, `.unsupported`,
  //          `.overflow` or `.budget`, with line and column.
  // Thread safety  safe: rendering changes nothing in the template.
  std::string render(const nlohmann::ordered_json& messages,
                     const ChatTemplateOptions& options = {}) const;

  const std::string& source() const;
  const std::string& name() const;

 private:
  struct Parsed;
  explicit ChatTemplate(std::shared_ptr<const Parsed> parsed) : parsed_(std::move(parsed)) {}

  std::shared_ptr<const Parsed> parsed_;
};

}  // namespace graft::text
