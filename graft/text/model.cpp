#include "graft/text/model.h"

#include <limits>

#include <fmt/format.h>

#include "graft/text/json_fields.h"
#include "graft/text/model_bpe.h"
#include "graft/text/model_unigram.h"
#include "graft/text/model_wordpiece.h"

namespace graft::text {

namespace {

constexpr int64_t kMaxWordChars = int64_t{1} << 20;

std::string optional_text(const JsonView& json, std::string_view field) {
  const auto found = json.find(field);
  return found && !found->is_null() ? std::string(found->text(field)) : std::string();
}

// `["a", "b"]`, or `"a b"` of older files.
bool read_merge(const JsonView& json, uint32_t rank, std::vector<BpeMerge>& merges) {
  if (json.is_array() && json.size() == 2) {
    std::string_view parts[2];
    size_t i = 0;
    json.each([&](const JsonView& part) { parts[i++] = part.text("merges"); });
    merges.push_back({parts[0], parts[1], rank});
    return true;
  }
  if (!json.is_text()) {
    return false;
  }
  const std::string_view text = json.text("merges");
  if (text.starts_with("#version")) {
    return true;
  }
  const size_t space = text.find(' ');
  if (space == std::string_view::npos || text.find(' ', space + 1) != std::string_view::npos) {
    return false;
  }
  merges.push_back({text.substr(0, space), text.substr(space + 1), rank});
  return true;
}

std::unique_ptr<Model> make_bpe(const JsonView& json) {
  if (const auto dropout = json.find("dropout"); dropout && !dropout->is_null()) {
    if (dropout->real("dropout") != 0.0) {
      refuse_tokenizer("field-range",
                       "BPE: `dropout`: expected none: encoding is to give the same ids each time");
    }
  }
  BpeOptions options;
  options.continuing_subword_prefix = optional_text(json, "continuing_subword_prefix");
  options.end_of_word_suffix = optional_text(json, "end_of_word_suffix");
  options.fuse_unk = bool_field(json, "fuse_unk", false);
  options.byte_fallback = bool_field(json, "byte_fallback", false);
  options.ignore_merges = bool_field(json, "ignore_merges", false);
  Vocabulary vocabulary = read_vocabulary(json, "BPE");
  if (const auto unk = json.find("unk_token"); unk && !unk->is_null()) {
    options.unk_id = find_unk(vocabulary, unk->text("unk_token"), "BPE");
  }
  const JsonView list = required_field(json, "BPE", "merges");
  if (!list.is_array()) {
    refuse_tokenizer("merges", "BPE: `merges`: expected a list, got another kind of value");
  }
  std::vector<BpeMerge> merges;
  merges.reserve(list.size());
  uint32_t rank = 0;
  list.each([&](const JsonView& merge) {
    if (!read_merge(merge, rank, merges)) {
      refuse_tokenizer("merges",
                       fmt::format("BPE: merge {}: expected two tokens, got something else", rank));
    }
    ++rank;
  });
  return std::make_unique<BpeModel>(std::move(vocabulary), merges, std::move(options));
}

std::unique_ptr<Model> make_unigram(const JsonView& json) {
  const JsonView list = required_field(json, "Unigram", "vocab");
  if (!list.is_array() || list.size() == 0) {
    refuse_tokenizer("scores", "Unigram: `vocab`: expected a list of tokens, got none");
  }
  std::vector<std::pair<std::string_view, int64_t>> tokens;
  std::vector<double> scores;
  list.each([&](const JsonView& entry) {
    if (!entry.is_array() || entry.size() != 2) {
      refuse_tokenizer("field-type", fmt::format("Unigram: `vocab`: entry {}: expected a token and "
                                                 "its score",
                                                 tokens.size()));
    }
    size_t i = 0;
    entry.each([&](const JsonView& part) {
      if (i++ == 0) {
        tokens.emplace_back(part.text("vocab"), static_cast<int64_t>(tokens.size()));
      } else {
        scores.push_back(part.real("vocab"));
      }
    });
  });
  int64_t unk = -1;
  if (const auto field = json.find("unk_id"); field && !field->is_null()) {
    unk = integer_field(json, "Unigram", "unk_id", 0, static_cast<int64_t>(tokens.size()) - 1);
  }
  return std::make_unique<UnigramModel>(Vocabulary(tokens), std::move(scores),
                                        static_cast<int32_t>(unk),
                                        bool_field(json, "byte_fallback", false));
}

std::unique_ptr<Model> make_wordpiece(const JsonView& json) {
  Vocabulary vocabulary = read_vocabulary(json, "WordPiece");
  const int32_t unk = find_unk(vocabulary, text_field(json, "WordPiece", "unk_token"), "WordPiece");
  const int64_t max_chars =
      integer_field(json, "WordPiece", "max_input_chars_per_word", 0, kMaxWordChars);
  return std::make_unique<WordPieceModel>(
      std::move(vocabulary), unk, text_field(json, "WordPiece", "continuing_subword_prefix"),
      static_cast<size_t>(max_chars));
}

}  // namespace

Vocabulary read_vocabulary(const JsonView& model, std::string_view component) {
  const JsonView vocab = required_field(model, component, "vocab");
  if (!vocab.is_object()) {
    refuse_tokenizer(
        "field-type",
        fmt::format("{}: `vocab`: expected tokens and ids, got another kind", component));
  }
  std::vector<std::pair<std::string_view, int64_t>> tokens;
  tokens.reserve(vocab.size());
  vocab.each_member([&](std::string_view token, const JsonView& id) {
    tokens.emplace_back(token, id.integer("vocab"));
  });
  return Vocabulary(tokens);
}

int32_t find_unk(const Vocabulary& vocabulary, std::string_view token, std::string_view component) {
  const int32_t id = vocabulary.find(token);
  if (id < 0) {
    refuse_tokenizer("unknown-token",
                     fmt::format("{}: `unk_token`: expected a token of the vocabulary, got `{}`",
                                 component, token));
  }
  return id;
}

std::vector<int32_t> find_byte_tokens(const Vocabulary& vocabulary) {
  std::vector<int32_t> ids;
  for (int byte = 0; byte < 256; ++byte) {
    ids.push_back(vocabulary.find(fmt::format("<0x{:02X}>", byte)));
  }
  return ids;
}

std::unique_ptr<Model> make_model(const JsonView& json) {
  const std::string_view type = component_type(json, "model");
  if (type == "BPE") {
    return make_bpe(json);
  }
  if (type == "Unigram") {
    return make_unigram(json);
  }
  if (type == "WordPiece") {
    return make_wordpiece(json);
  }
  if (type == "WordLevel") {
    Vocabulary vocabulary = read_vocabulary(json, "WordLevel");
    const int32_t unk =
        find_unk(vocabulary, text_field(json, "WordLevel", "unk_token"), "WordLevel");
    return std::make_unique<WordLevelModel>(std::move(vocabulary), unk);
  }
  unknown_component("model", type, "BPE, Unigram, WordLevel, WordPiece");
}

}  // namespace graft::text
