#include "graft/text/decoder.h"

#include <charconv>
#include <utility>

#include <fmt/format.h>

#include "graft/text/byte_level.h"
#include "graft/text/json_fields.h"
#include "graft/text/split_pattern.h"
#include "graft/text/unicode.h"

namespace graft::text {

namespace {

constexpr std::string_view kKnown =
    "BPEDecoder, ByteFallback, ByteLevel, CTC, Fuse, Metaspace, Replace, Sequence, Strip, "
    "WordPiece";
constexpr std::string_view kReplacement = "\xEF\xBF\xBD";

using Tokens = std::vector<std::string>;

std::string join(const Tokens& tokens) {
  std::string text;
  for (const auto& token : tokens) {
    text += token;
  }
  return text;
}

void replace_all(std::string& text, std::string_view from, std::string_view to) {
  if (text.find(from) == std::string::npos) {
    return;
  }
  std::string out;
  size_t pos = 0;
  for (size_t at; (at = text.find(from, pos)) != std::string::npos; pos = at + from.size()) {
    out.append(text, pos, at - pos);
    out += to;
    if (from.empty()) {
      return;
    }
  }
  text = out.append(text, pos);
}

class ByteLevel : public Decoder {
 public:
  void decode(Tokens& tokens) const override {
    std::string bytes;
    for (const auto& token : tokens) {
      if (!append_char_bytes(bytes, token)) {
        bytes += token;
      }
    }
    tokens = {replace_broken_utf8(bytes)};
  }
  bool is_byte_level() const override { return true; }
};

class ByteFallback : public Decoder {
 public:
  void decode(Tokens& tokens) const override {
    Tokens out;
    std::string bytes;
    const auto flush = [&] {
      if (!bytes.empty() && valid_utf8_prefix(bytes) == bytes.size()) {
        out.push_back(bytes);
      } else {
        out.insert(out.end(), bytes.size(), std::string(kReplacement));
      }
      bytes.clear();
    };
    for (auto& token : tokens) {
      const int byte = byte_of(token);
      if (byte >= 0) {
        bytes += static_cast<char>(byte);
        continue;
      }
      flush();
      out.push_back(std::move(token));
    }
    flush();
    tokens.swap(out);
  }

 private:
  static int byte_of(std::string_view token) {
    if (token.size() != 6 || !token.starts_with("<0x") || token.back() != '>') {
      return -1;
    }
    const std::string_view digits = token.substr(token[3] == '+' ? 4 : 3, token[3] == '+' ? 1 : 2);
    int value = -1;
    const auto read = std::from_chars(digits.data(), digits.data() + digits.size(), value, 16);
    return read.ptr == digits.data() + digits.size() && token[3] != '-' ? value : -1;
  }
};

class Fuse : public Decoder {
 public:
  void decode(Tokens& tokens) const override { tokens = {join(tokens)}; }
};

class Replace : public Decoder {
 public:
  Replace(SplitPattern pattern, std::string content)
      : pattern_(std::move(pattern)), content_(std::move(content)) {}
  void decode(Tokens& tokens) const override {
    for (auto& token : tokens) {
      std::string out;
      pattern_.each(token, [&](size_t begin, size_t end, bool matched) {
        if (matched) {
          out += content_;
        } else {
          out.append(token, begin, end - begin);
        }
      });
      token = std::move(out);
    }
  }

 private:
  SplitPattern pattern_;
  std::string content_;
};

class Strip : public Decoder {
 public:
  Strip(char32_t content, size_t start, size_t stop)
      : content_(to_utf8(content)), start_(start), stop_(stop) {}
  void decode(Tokens& tokens) const override {
    for (auto& token : tokens) {
      std::string_view left = token;
      for (size_t i = 0; i < start_ && left.starts_with(content_); ++i) {
        left.remove_prefix(content_.size());
      }
      for (size_t i = 0; i < stop_ && left.ends_with(content_); ++i) {
        left.remove_suffix(content_.size());
      }
      token = std::string(left);
    }
  }

 private:
  std::string content_;
  size_t start_;
  size_t stop_;
};

class Metaspace : public Decoder {
 public:
  Metaspace(char32_t replacement, bool prepended)
      : replacement_(to_utf8(replacement)), prepended_(prepended) {}
  void decode(Tokens& tokens) const override {
    for (size_t i = 0; i < tokens.size(); ++i) {
      replace_all(tokens[i], replacement_, i == 0 && prepended_ ? "" : " ");
    }
  }

 private:
  std::string replacement_;
  bool prepended_;
};

void clean_up(std::string& text) {
  constexpr std::pair<std::string_view, std::string_view> kSteps[] = {
      {" .", "."},   {" ?", "?"},     {" !", "!"},    {" ,", ","},
      {" ' ", "'"},  {" n't", "n't"}, {" 'm", "'m"},  {" do not", " don't"},
      {" 's", "'s"}, {" 've", "'ve"}, {" 're", "'re"}};
  for (const auto& [from, to] : kSteps) {
    replace_all(text, from, to);
  }
}

class WordPiece : public Decoder {
 public:
  WordPiece(std::string prefix, bool cleanup) : prefix_(std::move(prefix)), cleanup_(cleanup) {}
  void decode(Tokens& tokens) const override {
    for (size_t i = 0; i < tokens.size(); ++i) {
      if (i > 0) {
        tokens[i] =
            tokens[i].starts_with(prefix_) ? tokens[i].substr(prefix_.size()) : " " + tokens[i];
      }
      if (cleanup_) {
        clean_up(tokens[i]);
      }
    }
  }

 private:
  std::string prefix_;
  bool cleanup_;
};

class BpeDecoder : public Decoder {
 public:
  explicit BpeDecoder(std::string suffix) : suffix_(std::move(suffix)) {}
  void decode(Tokens& tokens) const override {
    for (size_t i = 0; i < tokens.size(); ++i) {
      replace_all(tokens[i], suffix_, i + 1 == tokens.size() ? "" : " ");
    }
  }

 private:
  std::string suffix_;
};

class Ctc : public Decoder {
 public:
  Ctc(std::string pad, std::string delimiter, bool cleanup)
      : pad_(std::move(pad)), delimiter_(std::move(delimiter)), cleanup_(cleanup) {}
  void decode(Tokens& tokens) const override {
    Tokens out;
    for (size_t i = 0; i < tokens.size(); ++i) {
      if (i > 0 && tokens[i] == tokens[i - 1]) {
        continue;
      }
      std::string text = tokens[i];
      replace_all(text, pad_, "");
      if (cleanup_) {
        clean_up(text);
        replace_all(text, delimiter_, " ");
      }
      if (!text.empty()) {
        out.push_back(std::move(text));
      }
    }
    tokens.swap(out);
  }

 private:
  std::string pad_;
  std::string delimiter_;
  bool cleanup_;
};

class Sequence : public Decoder {
 public:
  explicit Sequence(std::vector<std::unique_ptr<Decoder>> parts) : parts_(std::move(parts)) {}
  void decode(Tokens& tokens) const override {
    for (const auto& part : parts_) {
      part->decode(tokens);
    }
  }
  bool is_byte_level() const override { return parts_.size() == 1 && parts_[0]->is_byte_level(); }

 private:
  std::vector<std::unique_ptr<Decoder>> parts_;
};

std::string text_not_empty(const JsonView& json, std::string_view component,
                           std::string_view field) {
  std::string text = text_field(json, component, field);
  if (text.empty()) {
    refuse_tokenizer("field-range",
                     fmt::format("{}: `{}`: expected a text, got an empty one", component, field));
  }
  return text;
}

std::unique_ptr<Decoder> make_sequence(const JsonView& json) {
  std::vector<std::unique_ptr<Decoder>> parts;
  required_field(json, "Sequence", "decoders").each([&](const JsonView& part) {
    parts.push_back(make_decoder(part));
  });
  return std::make_unique<Sequence>(std::move(parts));
}

std::unique_ptr<Decoder> make_strip(const JsonView& json) {
  constexpr int64_t kMost = 1 << 20;
  return std::make_unique<Strip>(
      char_field(json, "Strip", "content"),
      static_cast<size_t>(integer_field(json, "Strip", "start", 0, kMost)),
      static_cast<size_t>(integer_field(json, "Strip", "stop", 0, kMost)));
}

std::unique_ptr<Decoder> make_metaspace(const JsonView& json) {
  bool prepended = bool_field(json, "add_prefix_space", true);
  if (const auto scheme = json.find("prepend_scheme"); scheme && !scheme->is_null()) {
    prepended = prepended && scheme->text("prepend_scheme") != "never";
  }
  return std::make_unique<Metaspace>(char_field(json, "Metaspace", "replacement"), prepended);
}

}  // namespace

std::unique_ptr<Decoder> make_decoder(const JsonView& json) {
  const std::string_view type = component_type(json, "decoder");
  if (type == "ByteLevel") {
    return std::make_unique<ByteLevel>();
  }
  if (type == "Sequence") {
    return make_sequence(json);
  }
  if (type == "ByteFallback") {
    return std::make_unique<ByteFallback>();
  }
  if (type == "Fuse") {
    return std::make_unique<Fuse>();
  }
  if (type == "Strip") {
    return make_strip(json);
  }
  if (type == "Replace") {
    return std::make_unique<Replace>(
        split_pattern_field(required_field(json, type, "pattern"), type),
        text_field(json, type, "content"));
  }
  if (type == "Metaspace") {
    return make_metaspace(json);
  }
  if (type == "WordPiece") {
    return std::make_unique<WordPiece>(text_field(json, type, "prefix"),
                                       bool_field(json, "cleanup", true));
  }
  if (type == "BPEDecoder") {
    return std::make_unique<BpeDecoder>(text_not_empty(json, type, "suffix"));
  }
  if (type == "CTC") {
    return std::make_unique<Ctc>(text_not_empty(json, type, "pad_token"),
                                 text_not_empty(json, type, "word_delimiter_token"),
                                 bool_field(json, "cleanup", true));
  }
  unknown_component("decoder", type, kKnown);
}

std::unique_ptr<Decoder> make_byte_level_decoder() { return std::make_unique<ByteLevel>(); }

std::unique_ptr<Decoder> make_sentencepiece_decoder(bool strip_first_space) {
  std::vector<std::unique_ptr<Decoder>> parts;
  parts.push_back(std::make_unique<Replace>(SplitPattern::literal("\xE2\x96\x81"), " "));
  parts.push_back(std::make_unique<ByteFallback>());
  parts.push_back(std::make_unique<Fuse>());
  if (strip_first_space) {
    parts.push_back(std::make_unique<Strip>(U' ', 1, 0));
  }
  return std::make_unique<Sequence>(std::move(parts));
}

}  // namespace graft::text
