// What turns a word into token ids.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "graft/text/json_view.h"
#include "graft/text/vocabulary.h"
#include "graft/text/word_cache.h"

namespace graft::text {

// What one thread needs while it encodes; kept between calls.
struct ModelScratch {
  struct Symbol {
    int32_t id;
    int32_t prev;
    int32_t next;
    uint32_t rank;  // of the merge with the next symbol
  };
  struct Merge {
    uint32_t rank;
    uint32_t pos;
    int32_t id;
  };
  struct PathNode {
    double score;
    int32_t id;
    uint32_t start;
    bool reached;
  };
  WordCache cache;
  std::vector<Symbol> symbols;
  std::vector<Merge> heap;
  std::vector<PathNode> path;
  std::string text;
};

class Model {
 public:
  virtual ~Model() = default;

  // Appends the ids of a word. `word` is not empty; it is valid UTF-8 unless bytes are kept.
  // Throws   FormatError `text.tokenizer.unknown-token` when the word has no token and the model
  //          names none for that case.
  virtual void tokenize(std::string_view word, ModelScratch& scratch,
                        std::vector<int32_t>& ids) const = 0;

  virtual const Vocabulary& vocabulary() const = 0;
  virtual int32_t unk_id() const { return -1; }

  // Prepares the model for words of raw bytes; false when it cannot take them.
  virtual bool take_bytes() { return false; }
};

// Builds what the field `model` of tokenizer.json describes.
// Throws   FormatError `text.tokenizer.component` for a kind that is not known, and others for
//          fields that are missing or wrong.
std::unique_ptr<Model> make_model(const JsonView& json);

// Reads `vocab` of BPE, WordPiece and WordLevel.
Vocabulary read_vocabulary(const JsonView& model, std::string_view component);

// The id of the token that stands for unknown text, which must be in the vocabulary.
int32_t find_unk(const Vocabulary& vocabulary, std::string_view token, std::string_view component);

// `<0x0A>` -> id for all 256 bytes; -1 where the vocabulary lacks one.
std::vector<int32_t> find_byte_tokens(const Vocabulary& vocabulary);

}  // namespace graft::text
