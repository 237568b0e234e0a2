// Reads tokenizer.json: builds its components and checks that they agree with each other.
#include <algorithm>

#include <fmt/format.h>

#include "graft/text/json_fields.h"
#include "graft/text/tokenizer_parts.h"

namespace graft::text {

namespace {

constexpr size_t kMaxAddedBytes = 4096;  // of one added token
constexpr int64_t kMaxLength = int64_t{1} << 40;

AddedToken read_added_token(const JsonView& json) {
  AddedToken token;
  const int64_t id = required_field(json, "added_tokens", "id").integer("id");
  token.content = text_field(json, "added_tokens", "content");
  if (token.content.empty() || token.content.size() > kMaxAddedBytes) {
    refuse_tokenizer("added-token",
                     fmt::format("added_tokens: id {}: expected a text of 1 to {} bytes, got {}",
                                 id, kMaxAddedBytes, token.content.size()));
  }
  if (id < 0 || id > INT32_MAX) {
    refuse_tokenizer("ids", fmt::format("added_tokens: `{}`: expected an id from 0 to {}, got {}",
                                        token.content, INT32_MAX, id));
  }
  token.id = static_cast<int32_t>(id);
  token.special = bool_field(json, "special", false);
  token.single_word = bool_field(json, "single_word", false);
  token.lstrip = bool_field(json, "lstrip", false);
  token.rstrip = bool_field(json, "rstrip", false);
  token.normalized = bool_field(json, "normalized", !token.special);
  return token;
}

// Tokens of the vocabulary keep their id there; others follow the vocabulary in the order of the
// list. A file that states anything else would be read differently by different programs.
void read_added_tokens(const JsonView& list, TokenizerParts& parts) {
  if (!list.is_array()) {
    refuse_tokenizer("added-token", "added_tokens: expected a list, got another kind of value");
  }
  const Vocabulary& vocabulary = parts.model->vocabulary();
  auto next_id = static_cast<int64_t>(vocabulary.count());
  list.each([&](const JsonView& json) {
    AddedToken token = read_added_token(json);
    const int32_t known = vocabulary.find(token.content);
    if (parts.added.find(token.content) != nullptr || parts.added.find(token.id) != nullptr) {
      refuse_tokenizer("added-token",
                       fmt::format("added_tokens: expected each token and id once, got `{}` and {} "
                                   "twice",
                                   token.content, token.id));
    }
    const int64_t expected = known >= 0 ? known : next_id++;
    if (token.id != expected || (known < 0 && vocabulary.has(token.id))) {
      refuse_tokenizer("ids", fmt::format("added_tokens: `{}`: expected the id {}, got {}",
                                          token.content, expected, token.id));
    }
    parts.added.add(std::move(token));
  });
}

void check_truncation(const JsonView& json, int64_t num_added) {
  const int64_t length = integer_field(json, "truncation", "max_length", 0, kMaxLength);
  const int64_t stride =
      json.find("stride") ? integer_field(json, "truncation", "stride", 0, kMaxLength) : 0;
  if (length < num_added || (stride > 0 && stride >= length - num_added)) {
    refuse_tokenizer(
        "truncation",
        fmt::format("truncation: expected a stride below max_length less the {} control "
                    "tokens, got stride {} and max_length {}",
                    num_added, stride, length));
  }
}

void check_padding(const JsonView& json, const TokenizerParts& parts) {
  const int64_t id = integer_field(json, "padding", "pad_id", 0, INT32_MAX);
  if (!parts.token_text(static_cast<int32_t>(id))) {
    refuse_tokenizer("padding", fmt::format("padding: expected the id of a token, got {}", id));
  }
  if (const auto multiple = json.find("pad_to_multiple_of"); multiple && !multiple->is_null()) {
    integer_field(json, "padding", "pad_to_multiple_of", 1, kMaxLength);
  }
}

void read_post_processor(const JsonView& root, TokenizerParts& parts) {
  const auto json = root.find("post_processor");
  if (json && !json->is_null()) {
    parts.post_processor = make_post_processor(*json, [&](int64_t id) {
      return id <= INT32_MAX && parts.token_text(static_cast<int32_t>(id)).has_value();
    });
  }
  std::vector<int32_t> frame;
  if (parts.post_processor != nullptr) {
    parts.post_processor->process(frame);
  }
  if (const auto field = root.find("truncation"); field && !field->is_null()) {
    check_truncation(*field, static_cast<int64_t>(frame.size()));
  }
  if (const auto field = root.find("padding"); field && !field->is_null()) {
    check_padding(*field, parts);
  }
}

}  // namespace

Tokenizer read_tokenizer_json(std::string_view json, const std::string& name) {
  const JsonDocument document(json, name);
  const JsonView root = document.root();
  if (!root.is_object()) {
    refuse_tokenizer("field-type", fmt::format("`{}`: expected an object, got another kind", name));
  }
  if (const auto version = root.find("version"); version && version->text("version") != "1.0") {
    refuse_tokenizer("version", fmt::format("`{}`: expected version 1.0, got `{}`", name,
                                            version->text("version")));
  }
  auto parts = std::make_unique<TokenizerParts>();
  const auto present = [&](std::string_view field) {
    const auto found = root.find(field);
    return found && !found->is_null() ? found : std::nullopt;
  };
  parts->model = make_model(required_field(root, name, "model"));
  if (const auto field = present("normalizer")) {
    parts->normalizer = make_normalizer(*field);
  }
  if (const auto field = present("pre_tokenizer")) {
    parts->pre_tokenizer = make_pre_tokenizer(*field);
  }
  if (const auto field = present("decoder")) {
    parts->decoder = make_decoder(*field);
  }
  if (const auto field = present("added_tokens")) {
    read_added_tokens(*field, *parts);
  }
  read_post_processor(root, *parts);
  if (parts->model->unk_id() >= 0) {
    parts->unk_id = parts->model->unk_id();
  }
  return TokenizerBuilder::build(std::move(parts));
}

}  // namespace graft::text
