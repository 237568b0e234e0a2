#include "graft/text/gguf_vocabulary.h"

#include <algorithm>
#include <array>
#include <map>

#include <fmt/format.h>

#include "graft/text/json_fields.h"
#include "graft/text/model_bpe.h"
#include "graft/text/tokenizer_parts.h"

namespace graft::text {

namespace {

constexpr std::string_view kSpaceMark = "\xE2\x96\x81";  // ▁

// Kinds of `tokenizer.ggml.token_type`.
constexpr int64_t kControl = 3;
constexpr int64_t kUserDefined = 4;

std::string key(std::string_view name) { return fmt::format("tokenizer.ggml.{}", name); }

// How text is cut for a name of `tokenizer.ggml.pre`: digits one by one, then the pattern.
struct PreRecipe {
  std::string_view name;
  bool single_digits;
  KnownPattern pattern;
  bool ignore_merges;
  bool nfc;
  bool add_bos;
};

constexpr PreRecipe kRecipes[] = {
    {"gpt-2", false, KnownPattern::kGpt2, false, false, false},
    {"mpt", false, KnownPattern::kGpt2, false, false, false},
    {"olmo", false, KnownPattern::kGpt2, false, true, false},
    {"phi-2", false, KnownPattern::kGpt2, false, false, false},
    {"smollm", true, KnownPattern::kGpt2, false, false, false},
    {"starcoder", true, KnownPattern::kGpt2, false, false, false},
    {"refact", true, KnownPattern::kGpt2, false, false, false},
    {"codeshell", true, KnownPattern::kGpt2, false, false, false},
    {"command-r", true, KnownPattern::kGpt2, false, true, false},
    {"llama3", false, KnownPattern::kLlama3, true, false, true},
    {"llama-v3", false, KnownPattern::kLlama3, true, false, true},
    {"llama-bpe", false, KnownPattern::kLlama3, true, false, true},
    {"dbrx", false, KnownPattern::kLlama3, false, false, false},
    {"smaug-bpe", false, KnownPattern::kLlama3, false, false, false},
    {"qwen2", false, KnownPattern::kQwen2, false, true, false},
    {"stablelm2", false, KnownPattern::kQwen2, false, false, false},
};

const PreRecipe& find_recipe(const std::string& name) {
  std::string known;
  for (const PreRecipe& recipe : kRecipes) {
    if (recipe.name == name) {
      return recipe;
    }
    known += known.empty() ? "" : ", ";
    known += recipe.name;
  }
  throw IncompatibleError(
      "text.tokenizer", "gguf-pre",
      fmt::format("`tokenizer.ggml.pre`: expected one of {}, got `{}`", known, name),
      "put the model's tokenizer.json beside the file and name its folder");
}

std::unique_ptr<PreTokenizer> make_recipe(const PreRecipe& recipe) {
  std::vector<std::unique_ptr<PreTokenizer>> parts;
  if (recipe.single_digits) {
    parts.push_back(make_digits_pre_tokenizer());
  }
  if (recipe.pattern != KnownPattern::kGpt2) {
    parts.push_back(make_split_pre_tokenizer(SplitPattern::regex(known_regex(recipe.pattern))));
  }
  parts.push_back(make_byte_level_pre_tokenizer(false, recipe.pattern == KnownPattern::kGpt2));
  return make_pre_tokenizer_sequence(std::move(parts));
}

Vocabulary read_tokens(const io::GgufFile& file) {
  const auto& texts = file.texts(key("tokens"));
  std::vector<std::pair<std::string_view, int64_t>> tokens;
  tokens.reserve(texts.size());
  for (const std::string_view text : texts) {
    if (valid_utf8_prefix(text) != text.size()) {
      refuse_tokenizer("tokens",
                       fmt::format("`tokenizer.ggml.tokens`: token {}: expected UTF-8, got "
                                   "a broken sequence",
                                   tokens.size()));
    }
    tokens.emplace_back(text, static_cast<int64_t>(tokens.size()));
  }
  return Vocabulary(tokens);
}

// Control tokens and those that the model's makers added are looked for in the text itself.
void add_tokens(const io::GgufFile& file, TokenizerParts& parts) {
  if (!file.has(key("token_type"))) {
    return;
  }
  const std::vector<int64_t> types = file.integers(key("token_type"));
  const Vocabulary& vocabulary = parts.model->vocabulary();
  if (types.size() != vocabulary.end_id()) {
    refuse_tokenizer("tokens",
                     fmt::format("`tokenizer.ggml.token_type`: expected {} entries, got {}",
                                 vocabulary.end_id(), types.size()));
  }
  for (size_t id = 0; id < types.size(); ++id) {
    const auto token = vocabulary.token(static_cast<int32_t>(id));
    if ((types[id] == kControl || types[id] == kUserDefined) && !token.empty()) {
      AddedToken added;
      added.id = static_cast<int32_t>(id);
      added.content = token;
      added.special = types[id] == kControl;
      added.normalized = false;
      parts.added.add(std::move(added));
    }
  }
}

std::optional<int32_t> read_id(const io::GgufFile& file, const TokenizerParts& parts,
                               std::string_view name) {
  if (!file.has(key(name))) {
    return std::nullopt;
  }
  const int64_t id = file.integer(key(name));
  if (id < 0 || id > INT32_MAX || !parts.model->vocabulary().has(static_cast<int32_t>(id))) {
    refuse_tokenizer("ids", fmt::format("`{}`: expected the id of a token, got {}", key(name), id));
  }
  return static_cast<int32_t>(id);
}

bool read_flag(const io::GgufFile& file, std::string_view name, bool fallback) {
  return file.has(key(name)) ? file.boolean(key(name)) : fallback;
}

void read_special_tokens(const io::GgufFile& file, TokenizerParts& parts, bool add_bos_by_default) {
  parts.bos_id = read_id(file, parts, "bos_token_id");
  parts.eos_id = read_id(file, parts, "eos_token_id");
  parts.pad_id = read_id(file, parts, "padding_token_id");
  parts.unk_id = read_id(file, parts, "unknown_token_id");
  std::vector<int32_t> before;
  std::vector<int32_t> after;
  if (read_flag(file, "add_bos_token", add_bos_by_default) && parts.bos_id) {
    before.push_back(*parts.bos_id);
  }
  if (read_flag(file, "add_eos_token", false) && parts.eos_id) {
    after.push_back(*parts.eos_id);
  }
  if (!before.empty() || !after.empty()) {
    parts.post_processor = make_frame_processor(std::move(before), std::move(after));
  }
  if (file.has("tokenizer.chat_template")) {
    parts.chat_template = file.text("tokenizer.chat_template");
  }
}

Tokenizer read_byte_level(const io::GgufFile& file) {
  const PreRecipe& recipe = find_recipe(file.text(key("pre")));
  Vocabulary vocabulary = read_tokens(file);
  const auto& texts = file.texts(key("merges"));
  std::vector<BpeMerge> merges;
  merges.reserve(texts.size());
  for (const std::string_view text : texts) {
    // A token may begin with a space only in other alphabets: the first one parts the two.
    const size_t space = text.find(' ');
    if (space == std::string_view::npos || text.find(' ', space + 1) != std::string_view::npos) {
      refuse_tokenizer(
          "merges",
          fmt::format("`tokenizer.ggml.merges`: merge {}: expected two tokens", merges.size()));
    }
    merges.push_back(
        {text.substr(0, space), text.substr(space + 1), static_cast<uint32_t>(merges.size())});
  }
  BpeOptions options;
  options.ignore_merges = recipe.ignore_merges;
  auto parts = std::make_unique<TokenizerParts>();
  parts->model = std::make_unique<BpeModel>(std::move(vocabulary), merges, std::move(options));
  parts->normalizer = recipe.nfc ? make_nfc_normalizer() : nullptr;
  parts->pre_tokenizer = make_recipe(recipe);
  parts->decoder = make_byte_level_decoder();
  add_tokens(file, *parts);
  read_special_tokens(file, *parts, recipe.add_bos);
  return TokenizerBuilder::build(std::move(parts));
}

// SentencePiece joins the neighbours that make the token of the greatest score: merges ranked by
// the score of what they make, equal scores sharing a rank.
std::vector<BpeMerge> merges_by_score(const Vocabulary& vocabulary,
                                      const std::vector<double>& scores) {
  std::vector<int32_t> order;
  for (size_t id = 0; id < vocabulary.end_id(); ++id) {
    order.push_back(static_cast<int32_t>(id));
  }
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
    return scores[static_cast<size_t>(a)] > scores[static_cast<size_t>(b)];
  });
  std::vector<BpeMerge> merges;
  uint32_t rank = 0;
  for (size_t i = 0; i < order.size(); ++i) {
    rank +=
        i > 0 && scores[static_cast<size_t>(order[i])] != scores[static_cast<size_t>(order[i - 1])]
            ? 1
            : 0;
    const std::string_view token = vocabulary.token(order[i]);
    for (size_t cut = 1; cut < token.size(); ++cut) {
      if ((static_cast<unsigned char>(token[cut]) & 0xC0) != 0x80 &&
          vocabulary.find(token.substr(0, cut)) >= 0 && vocabulary.find(token.substr(cut)) >= 0) {
        merges.push_back({token.substr(0, cut), token.substr(cut), rank});
      }
    }
  }
  return merges;
}

Tokenizer read_sentencepiece(const io::GgufFile& file) {
  Vocabulary vocabulary = read_tokens(file);
  const std::vector<double>& scores = file.reals(key("scores"));
  if (scores.size() != vocabulary.end_id()) {
    refuse_tokenizer("scores", fmt::format("`tokenizer.ggml.scores`: expected {} entries, got {}",
                                           vocabulary.end_id(), scores.size()));
  }
  if (std::any_of(scores.begin(), scores.end(), [](double score) { return score != score; })) {
    refuse_tokenizer("scores", "`tokenizer.ggml.scores`: expected numbers, got NaN");
  }
  constexpr size_t kLongestToken = 4096;
  if (vocabulary.longest() > kLongestToken) {
    refuse_tokenizer("tokens", fmt::format("`tokenizer.ggml.tokens`: expected tokens of at most {} "
                                           "bytes, got one of {}",
                                           kLongestToken, vocabulary.longest()));
  }
  const std::vector<BpeMerge> merges = merges_by_score(vocabulary, scores);
  auto parts = std::make_unique<TokenizerParts>();
  BpeOptions options;
  options.fuse_unk = true;
  options.byte_fallback = true;
  if (file.has(key("unknown_token_id"))) {
    const int64_t unk = file.integer(key("unknown_token_id"));
    options.unk_id = unk >= 0 && unk <= INT32_MAX && vocabulary.has(static_cast<int32_t>(unk))
                         ? static_cast<int32_t>(unk)
                         : -1;
  }
  parts->model = std::make_unique<BpeModel>(std::move(vocabulary), merges, std::move(options));
  const bool prefix = read_flag(file, "add_space_prefix", true);
  auto replace = make_replace_normalizer(" ", kSpaceMark);
  parts->normalizer =
      prefix ? make_sequence_normalizer(make_prepend_normalizer(kSpaceMark), std::move(replace))
             : std::move(replace);
  parts->decoder = make_sentencepiece_decoder(prefix);
  add_tokens(file, *parts);
  read_special_tokens(file, *parts, true);
  return TokenizerBuilder::build(std::move(parts));
}

}  // namespace

Tokenizer read_gguf_vocabulary(const io::GgufFile& file) {
  const std::string& model = file.text(key("model"));
  if (model == "gpt2") {
    return read_byte_level(file);
  }
  if (model == "llama") {
    return read_sentencepiece(file);
  }
  throw IncompatibleError(
      "text.tokenizer", "gguf-model",
      fmt::format("`tokenizer.ggml.model`: expected gpt2 or llama, got `{}`", model),
      "put the model's tokenizer.json beside the file and name its folder");
}

Tokenizer Tokenizer::from_gguf(const io::GgufFile& file) { return read_gguf_vocabulary(file); }

}  // namespace graft::text
