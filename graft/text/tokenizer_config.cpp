// Reads tokenizer_config.json and the chat template beside a tokenizer.json.
#include <filesystem>

#include <fmt/format.h>

#include "graft/core/file_status.h"
#include "graft/io/mapped_file.h"
#include "graft/text/json_fields.h"
#include "graft/text/tokenizer_parts.h"

namespace graft::text {

namespace {

std::string read_text(const std::filesystem::path& path) {
  const auto file = io::MappedFile::open(path);
  const auto bytes = file->bytes();
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

// A token is given as its text or as an object with `content`.
std::optional<std::string> token_field(const JsonView& json, std::string_view field) {
  const auto found = json.find(field);
  if (!found || found->is_null()) {
    return std::nullopt;
  }
  return found->is_object() ? text_field(*found, field, "content")
                            : std::string(found->text(field));
}

std::optional<int32_t> token_id(const TokenizerParts& parts, const std::string& token) {
  if (const AddedToken* added = parts.added.find(token)) {
    return added->id;
  }
  const int32_t id = parts.model->vocabulary().find(token);
  return id >= 0 ? std::optional(id) : std::nullopt;
}

// No file of the folder may name another place.
void check_file_name(std::string_view field, std::string_view name) {
  if (name.find('/') != std::string_view::npos || name.find('\\') != std::string_view::npos ||
      name.find('\0') != std::string_view::npos || name == ".." || name == ".") {
    refuse_tokenizer("path", fmt::format("tokenizer_config.json: `{}`: expected the name of a file "
                                         "in the folder, got `{}`",
                                         field, name));
  }
}

void check_paths(const JsonView& config) {
  config.each_member([&](std::string_view field, const JsonView& value) {
    const bool names_file = field.ends_with("_file") || field == "tokenizer_file";
    if (names_file && value.is_text()) {
      check_file_name(field, value.text(field));
    }
  });
}

// A list of named templates; the one called `default` counts.
std::string default_template(const JsonView& list) {
  std::string chosen;
  list.each([&](const JsonView& entry) {
    const std::string name = text_field(entry, "chat_template", "name");
    check_file_name("chat_template", name);
    if (name == "default") {
      chosen = text_field(entry, "chat_template", "template");
    }
  });
  return chosen;
}

void read_config(const JsonView& config, TokenizerParts& parts) {
  check_paths(config);
  const auto take = [&](std::string_view field, std::optional<int32_t>& id) {
    if (const auto token = token_field(config, field)) {
      if (const auto found = token_id(parts, *token)) {
        id = found;
      }
    }
  };
  take("bos_token", parts.bos_id);
  take("eos_token", parts.eos_id);
  take("pad_token", parts.pad_id);
  take("unk_token", parts.unk_id);
  // Naming either field makes the two decide alone, as in transformers.
  if (config.find("add_bos_token") || config.find("add_eos_token")) {
    std::vector<int32_t> before;
    std::vector<int32_t> after;
    if (bool_field(config, "add_bos_token", false) && parts.bos_id) {
      before.push_back(*parts.bos_id);
    }
    if (bool_field(config, "add_eos_token", false) && parts.eos_id) {
      after.push_back(*parts.eos_id);
    }
    parts.post_processor = make_frame_processor(std::move(before), std::move(after));
  }
  if (const auto chat = config.find("chat_template"); chat && !chat->is_null()) {
    parts.chat_template =
        chat->is_array() ? default_template(*chat) : std::string(chat->text("chat_template"));
  }
}

}  // namespace

void read_tokenizer_config(const std::filesystem::path& folder, TokenizerParts& parts) {
  const auto config = folder / "tokenizer_config.json";
  if (is_file(config)) {
    const std::string text = read_text(config);
    const JsonDocument document(text, config.string());
    read_config(document.root(), parts);
  }
  // The file of its own is the newer place and wins.
  const auto chat = folder / "chat_template.jinja";
  if (is_file(chat)) {
    parts.chat_template = read_text(chat);
  }
}

}  // namespace graft::text
