// What a tokenizer is made of, for the files that build one.
#pragma once

#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "graft/text/added_tokens.h"
#include "graft/text/decoder.h"
#include "graft/text/model.h"
#include "graft/text/normalizer.h"
#include "graft/text/post_processor.h"
#include "graft/text/pre_tokenizer.h"
#include "graft/text/tokenizer.h"

namespace graft::text {

// What one call of encode needs; kept for the next call.
struct EncodeState {
  ModelScratch model;
  PreTokenized words;
  NormalText normal;
  std::vector<AddedSplit> plain;
  std::vector<AddedSplit> normalized;
};

struct TokenizerParts {
  std::unique_ptr<Normalizer> normalizer;
  std::unique_ptr<PreTokenizer> pre_tokenizer;
  std::unique_ptr<Model> model;
  std::unique_ptr<PostProcessor> post_processor;
  std::unique_ptr<Decoder> decoder;
  AddedTokens added;
  std::optional<int32_t> bos_id;
  std::optional<int32_t> eos_id;
  std::optional<int32_t> pad_id;
  std::optional<int32_t> unk_id;
  std::string chat_template;
  std::vector<uint8_t> missing_bytes;

  std::mutex mutex;  // guards states
  std::vector<std::unique_ptr<EncodeState>> states;

  void encode(std::string_view text, EncodeState& state, std::vector<int32_t>& ids) const;
  // The token of an id as decoding sees it; nothing when there is none.
  std::optional<std::string_view> token_text(int32_t id) const;

 private:
  void encode_segment(std::string_view text, size_t origin, EncodeState& state,
                      std::vector<int32_t>& ids) const;
  void encode_words(std::string_view text, size_t origin, EncodeState& state,
                    std::vector<int32_t>& ids) const;
};

// Makes a Tokenizer of its parts.
struct TokenizerBuilder {
  // Throws   FormatError `text.tokenizer.byte-tokens` when a byte-level vocabulary lacks bytes that
  //          ordinary text needs and names no token for unknown text.
  static Tokenizer build(std::unique_ptr<TokenizerParts> parts);

  static TokenizerParts& parts(Tokenizer& tokenizer) { return *tokenizer.parts_; }
};

// The parts that a tokenizer.json describes (tokenizer_json.cpp).
Tokenizer read_tokenizer_json(std::string_view json, const std::string& name);

// Takes control tokens and the chat template from the files beside tokenizer.json
// (tokenizer_config.cpp).
void read_tokenizer_config(const std::filesystem::path& folder, TokenizerParts& parts);

}  // namespace graft::text
