// Text to token ids and back, for vocabularies in tokenizer.json or GGUF. Gives the ids that the
// `tokenizers` library gives for the same file and text.
//
//   const auto tokenizer = graft::text::Tokenizer::from_folder("model");
//   const std::vector<int32_t> ids = tokenizer.encode("The capital of France is");
//   const std::string text = tokenizer.decode(ids);
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace graft::io {
class GgufFile;
}

namespace graft::text {

struct TokenizerParts;

class Tokenizer {
 public:
  // Reads a tokenizer.json. Fields `truncation` and `padding` are checked but not applied: a text
  // is never cut or filled unless the caller does it.
  //
  // Throws   NotFound; FormatError `text.tokenizer.<reason>` for a file that is broken, names a
  //          component that is not known, or whose parts contradict each other.
  static Tokenizer from_file(const std::filesystem::path& tokenizer_json);

  // The same from a text; `name` stands in error messages.
  static Tokenizer from_json(std::string_view json, const std::string& name = "tokenizer.json");

  // Reads tokenizer.json of a model folder, and from tokenizer_config.json, where it is, the
  // control tokens, whether bos and eos are added, and the chat template (else
  // chat_template.jinja).
  static Tokenizer from_folder(const std::filesystem::path& folder);

  // Reads the vocabulary of a GGUF file: `tokenizer.ggml.model` gpt2 (byte-level BPE, cut as
  // `tokenizer.ggml.pre` says) or llama (SentencePiece BPE).
  // Throws   IncompatibleError `text.tokenizer.gguf-model` or `.gguf-pre` naming the known ones.
  static Tokenizer from_gguf(const io::GgufFile& file);

  Tokenizer(Tokenizer&&) noexcept;
  Tokenizer& operator=(Tokenizer&&) noexcept;
  ~Tokenizer();

  // Encodes a text. Control tokens that stand in the text become their ids. Broken UTF-8 counts as
  // U+FFFD, piece by piece, as Python's errors='replace' reads it.
  //
  // add_special_tokens  put the file's control tokens around the text
  // Throws   FormatError `text.tokenizer.regex-limit` when a pattern of the file needs more than
  // its
  //          bound of work on this text; `.unknown-token` when a character has no token.
  // Thread safe.
  std::vector<int32_t> encode(std::string_view text, bool add_special_tokens = true) const;

  // The text of ids; ids without a token count as nothing. Thread safe.
  std::string decode(std::span<const int32_t> ids, bool skip_special_tokens = true) const;

  std::optional<int32_t> token_to_id(std::string_view token) const;
  // Empty for an id without a token. Lives as long as the tokenizer.
  std::string_view id_to_token(int32_t id) const;
  // Number of tokens, added ones included.
  int64_t vocab_size() const;

  std::optional<int32_t> bos_id() const;
  std::optional<int32_t> eos_id() const;
  std::optional<int32_t> pad_id() const;
  std::optional<int32_t> unk_id() const;
  // True for control tokens, which decode() leaves out unless asked.
  bool is_special(int32_t id) const;

  // The chat template that came with the vocabulary; empty when none did.
  const std::string& chat_template() const;
  // Bytes that a byte-level vocabulary has no token for; encode() drops them, as the reference
  // does.
  const std::vector<uint8_t>& missing_bytes() const;

 private:
  friend class DecodeStream;
  friend struct TokenizerBuilder;
  explicit Tokenizer(std::unique_ptr<TokenizerParts> parts);
  std::unique_ptr<TokenizerParts> parts_;
};

// Decodes ids one by one, for output while a model writes. Never gives half a character; all that
// it gave, with finish(), is what decode() gives for all ids. (Where a decoder judges a whole run
// of byte tokens at once, a run that turns out to be broken only after complete characters keeps
// them.)
class DecodeStream {
 public:
  // The tokenizer must outlive the stream.
  explicit DecodeStream(const Tokenizer& tokenizer, bool skip_special_tokens = true);

  // The text that became certain with this id; often empty.
  std::string push(int32_t id);
  // What was held back.
  std::string finish();

 private:
  std::string push_bytes(int32_t id);
  std::string take_complete(bool all);

  const Tokenizer* tokenizer_;
  bool skip_special_tokens_;
  bool bytes_;
  std::string pending_;       // bytes that may yet become a character
  std::vector<int32_t> ids_;  // since the text before last became certain
  std::string certain_;       // what ids_[0, num_certain_) decode to
  size_t num_certain_ = 0;
};

}  // namespace graft::text
