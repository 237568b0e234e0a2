#include "graft/text/tokenizer.h"

#include <algorithm>

#include <fmt/format.h>

#include "graft/core/error.h"
#include "graft/io/mapped_file.h"
#include "graft/text/byte_level.h"
#include "graft/text/json_fields.h"
#include "graft/text/tokenizer_parts.h"
#include "graft/text/unicode.h"

namespace graft::text {

namespace {

// Bytes without which ordinary text is lost: printable ASCII, line ends and tabs, and what UTF-8
// writes the Basic Multilingual Plane and emoji with.
bool is_needed(unsigned byte) {
  return byte == '\t' || byte == '\n' || byte == '\r' || (byte >= 0x20 && byte <= 0x7E) ||
         (byte >= 0x80 && byte <= 0xBF) || (byte >= 0xC2 && byte <= 0xEF) || byte == 0xF0;
}

}  // namespace

Tokenizer::Tokenizer(std::unique_ptr<TokenizerParts> parts) : parts_(std::move(parts)) {}
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;
Tokenizer& Tokenizer::operator=(Tokenizer&&) noexcept = default;
Tokenizer::~Tokenizer() = default;

Tokenizer TokenizerBuilder::build(std::unique_ptr<TokenizerParts> parts) {
  parts->added.finish(parts->normalizer.get());
  if (parts->pre_tokenizer != nullptr && parts->pre_tokenizer->writes_bytes()) {
    std::string first_missing;
    for (unsigned byte = 0; byte < 256; ++byte) {
      const std::string token = to_utf8(byte_char(static_cast<unsigned char>(byte)));
      if (parts->model->vocabulary().find(token) >= 0) {
        continue;
      }
      parts->missing_bytes.push_back(static_cast<uint8_t>(byte));
      if (is_needed(byte) && first_missing.empty()) {
        first_missing = fmt::format("0x{:02X} (`{}`)", byte, token);
      }
    }
    if (!first_missing.empty() && parts->model->unk_id() < 0) {
      refuse_tokenizer(
          "byte-tokens",
          fmt::format("vocabulary: expected a token for each byte of ordinary text, or "
                      "one for unknown text, got none for {}",
                      first_missing));
    }
    if (parts->model->take_bytes()) {
      parts->pre_tokenizer->keep_bytes();
    }
  }
  return Tokenizer(std::move(parts));
}

Tokenizer Tokenizer::from_file(const std::filesystem::path& tokenizer_json) {
  const auto file = io::MappedFile::open(tokenizer_json);
  const auto bytes = file->bytes();
  return from_json({reinterpret_cast<const char*>(bytes.data()), bytes.size()},
                   tokenizer_json.string());
}

Tokenizer Tokenizer::from_json(std::string_view json, const std::string& name) {
  return read_tokenizer_json(json, name);
}

Tokenizer Tokenizer::from_folder(const std::filesystem::path& folder) {
  Tokenizer tokenizer = from_file(folder / "tokenizer.json");
  read_tokenizer_config(folder, *tokenizer.parts_);
  return tokenizer;
}

std::vector<int32_t> Tokenizer::encode(std::string_view text, bool add_special_tokens) const {
  std::unique_ptr<EncodeState> state;
  {
    const std::lock_guard lock(parts_->mutex);
    if (!parts_->states.empty()) {
      state = std::move(parts_->states.back());
      parts_->states.pop_back();
    }
  }
  if (state == nullptr) {
    state = std::make_unique<EncodeState>();
  }
  std::vector<int32_t> ids;
  ids.reserve(text.size() / 3 + 4);
  if (valid_utf8_prefix(text) == text.size()) {
    parts_->encode(text, *state, ids);
  } else {
    parts_->encode(replace_broken_utf8(text), *state, ids);
  }
  if (add_special_tokens && parts_->post_processor != nullptr) {
    parts_->post_processor->process(ids);
  }
  const std::lock_guard lock(parts_->mutex);
  parts_->states.push_back(std::move(state));
  return ids;
}

void TokenizerParts::encode(std::string_view text, EncodeState& state,
                            std::vector<int32_t>& ids) const {
  state.plain.clear();
  added.split(text, false, state.plain);
  for (const AddedSplit& split : state.plain) {
    if (split.id >= 0) {
      ids.push_back(split.id);
      continue;
    }
    const size_t origin =
        split.begin == 0 ? static_cast<size_t>(utf8_length(static_cast<unsigned char>(text[0])))
                         : 0;
    encode_segment(text.substr(split.begin, split.end - split.begin), origin, state, ids);
  }
}

void TokenizerParts::encode_segment(std::string_view text, size_t origin, EncodeState& state,
                                    std::vector<int32_t>& ids) const {
  if (normalizer != nullptr) {
    state.normal.text.assign(text);
    state.normal.origin = origin;
    normalizer->normalize(state.normal);
    text = state.normal.text;
    origin = state.normal.origin;
  }
  if (!added.has_any(true)) {
    encode_words(text, origin, state, ids);
    return;
  }
  state.normalized.clear();
  added.split(text, true, state.normalized);
  for (const AddedSplit& split : state.normalized) {
    if (split.id >= 0) {
      ids.push_back(split.id);
    } else {
      encode_words(text.substr(split.begin, split.end - split.begin),
                   origin > split.begin ? origin - split.begin : 0, state, ids);
    }
  }
}

void TokenizerParts::encode_words(std::string_view text, size_t origin, EncodeState& state,
                                  std::vector<int32_t>& ids) const {
  if (text.empty()) {
    return;
  }
  PreTokenized& words = state.words;
  words.text = text;
  words.origin = origin;
  words.pieces.assign(1, {0, text.size()});
  if (pre_tokenizer != nullptr) {
    pre_tokenizer->apply(words);
  }
  for (const Piece& piece : words.pieces) {
    if (piece.begin != piece.end) {
      model->tokenize(words.view(piece), state.model, ids);
    }
  }
}

std::optional<std::string_view> TokenizerParts::token_text(int32_t id) const {
  if (added.find(id) != nullptr) {
    return added.text_of(id);
  }
  if (model->vocabulary().has(id)) {
    return model->vocabulary().token(id);
  }
  return std::nullopt;
}

std::string Tokenizer::decode(std::span<const int32_t> ids, bool skip_special_tokens) const {
  std::vector<std::string> tokens;
  tokens.reserve(ids.size());
  for (const int32_t id : ids) {
    const auto token = parts_->token_text(id);
    if (token && !(skip_special_tokens && parts_->added.is_special(*token))) {
      tokens.emplace_back(*token);
    }
  }
  const bool spaced = parts_->decoder == nullptr;
  if (!spaced) {
    parts_->decoder->decode(tokens);
  }
  std::string text;
  for (size_t i = 0; i < tokens.size(); ++i) {
    text += spaced && i > 0 ? " " : "";
    text += tokens[i];
  }
  return text;
}

std::optional<int32_t> Tokenizer::token_to_id(std::string_view token) const {
  if (const AddedToken* added = parts_->added.find(token)) {
    return added->id;
  }
  const int32_t id = parts_->model->vocabulary().find(token);
  return id >= 0 ? std::optional(id) : std::nullopt;
}

std::string_view Tokenizer::id_to_token(int32_t id) const {
  const AddedToken* added = parts_->added.find(id);
  return added != nullptr ? std::string_view(added->content)
                          : parts_->model->vocabulary().token(id);
}

int64_t Tokenizer::vocab_size() const {
  const auto& added = parts_->added.all();
  const auto more = std::count_if(added.begin(), added.end(), [&](const AddedToken& token) {
    return parts_->model->vocabulary().find(token.content) < 0;
  });
  return static_cast<int64_t>(parts_->model->vocabulary().count()) + more;
}

std::optional<int32_t> Tokenizer::bos_id() const { return parts_->bos_id; }
std::optional<int32_t> Tokenizer::eos_id() const { return parts_->eos_id; }
std::optional<int32_t> Tokenizer::pad_id() const { return parts_->pad_id; }
std::optional<int32_t> Tokenizer::unk_id() const { return parts_->unk_id; }

bool Tokenizer::is_special(int32_t id) const {
  const AddedToken* added = parts_->added.find(id);
  return added != nullptr && added->special;
}

const std::string& Tokenizer::chat_template() const { return parts_->chat_template; }
const std::vector<uint8_t>& Tokenizer::missing_bytes() const { return parts_->missing_bytes; }

}  // namespace graft::text
