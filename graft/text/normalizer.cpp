#include "graft/text/normalizer.h"

#include <algorithm>
#include <optional>
#include <vector>

#include <fmt/format.h>

#include "graft/text/byte_level.h"
#include "graft/text/json_fields.h"
#include "graft/text/precompiled_charsmap.h"
#include "graft/text/split_pattern.h"
#include "graft/text/unicode.h"

namespace graft::text {

namespace {

constexpr std::string_view kRole = "normalizer";
constexpr std::string_view kKnown =
    "BertNormalizer, ByteLevel, Lowercase, NFC, NFD, NFKC, NFKD, Nmt, Precompiled, Prepend, "
    "Replace, "
    "Sequence, Strip, StripAccents";

// Applies fn(out, character) to each character and keeps track of the origin.
template <typename Fn>
void map_chars(NormalText& text, Fn&& fn) {
  std::string out;
  out.reserve(text.text.size() + text.text.size() / 8);
  size_t origin = 0;
  for (size_t pos = 0; pos < text.text.size();) {
    const bool at_origin = pos < text.origin;
    fn(out, next_char(text.text, pos));
    if (at_origin) {
      origin = out.size();
    }
  }
  text.text = std::move(out);
  text.origin = origin;
}

void apply_form(NormalText& text, NormalForm form) {
  text.text = normalize(text.text, form);
  if (text.origin > 0 && !text.text.empty()) {
    text.origin = static_cast<size_t>(utf8_length(static_cast<unsigned char>(text.text[0])));
  }
}

class Form : public Normalizer {
 public:
  explicit Form(NormalForm form) : form_(form) {}
  void normalize(NormalText& text) const override { apply_form(text, form_); }

 private:
  NormalForm form_;
};

class Lowercase : public Normalizer {
 public:
  void normalize(NormalText& text) const override { map_chars(text, append_lower); }
};

class StripAccents : public Normalizer {
 public:
  void normalize(NormalText& text) const override {
    map_chars(text, [](std::string& out, char32_t c) {
      if (!has_flag(c, kCombining)) {
        append_utf8(out, c);
      }
    });
  }
};

class Nmt : public Normalizer {
 public:
  void normalize(NormalText& text) const override {
    map_chars(text, [](std::string& out, char32_t c) {
      const bool control = (c >= 1 && c <= 8) || c == 0xB || (c >= 0xE && c <= 0x1F) || c == 0x7F ||
                           c == 0x8F || c == 0x9F;
      const bool space = c == 9 || c == 0xA || c == 0xC || c == 0xD || c == 0x1680 ||
                         (c >= 0x200B && c <= 0x200F) || c == 0x2028 || c == 0x2029 ||
                         c == 0x2581 || c == 0xFEFF || c == 0xFFFD;
      if (!control) {
        append_utf8(out, space ? ' ' : c);
      }
    });
  }
};

class Strip : public Normalizer {
 public:
  Strip(bool left, bool right) : left_(left), right_(right) {}
  void normalize(NormalText& text) const override {
    size_t begin = 0;
    size_t end = text.text.size();
    while (left_ && begin < end) {
      size_t after = begin;
      if (!has_flag(next_char(text.text, after), kSpace)) {
        break;
      }
      begin = after;
    }
    while (right_ && end > begin) {
      const size_t last = last_char(std::string_view(text.text).substr(0, end));
      size_t pos = last;
      if (!has_flag(next_char(text.text, pos), kSpace)) {
        break;
      }
      end = last;
    }
    text.text = text.text.substr(begin, end - begin);
    text.origin = text.origin > begin ? std::min(text.origin - begin, text.text.size()) : 0;
  }

 private:
  bool left_;
  bool right_;
};

class Prepend : public Normalizer {
 public:
  explicit Prepend(std::string_view prefix) : prefix_(prefix) {}
  void normalize(NormalText& text) const override {
    if (!text.text.empty()) {
      text.text.insert(0, prefix_);
      text.origin += text.origin > 0 ? prefix_.size() : 0;
    }
  }

 private:
  std::string prefix_;
};

class Replace : public Normalizer {
 public:
  Replace(SplitPattern pattern, std::string_view content)
      : pattern_(std::move(pattern)), content_(content) {}

  void normalize(NormalText& text) const override {
    std::string out;
    out.reserve(text.text.size());
    size_t origin = 0;
    pattern_.each(text.text, [&](size_t begin, size_t end, bool matched) {
      if (!matched) {
        out.append(text.text, begin, end - begin);
        origin += begin < text.origin ? std::min(end, text.origin) - begin : 0;
        return;
      }
      // What replaces a match stands where the match's last character stood.
      out += content_;
      origin += end <= text.origin ? content_.size() : 0;
    });
    text.text = std::move(out);
    text.origin = origin;
  }

 private:
  SplitPattern pattern_;
  std::string content_;
};

class ByteLevelNormalizer : public Normalizer {
 public:
  void normalize(NormalText& text) const override {
    std::string out;
    append_byte_chars(out, text.text);
    text.origin = byte_chars_size(std::string_view(text.text).substr(0, text.origin));
    text.text = std::move(out);
  }
};

class Bert : public Normalizer {
 public:
  Bert(bool clean, bool chinese, bool strip_accents, bool lowercase)
      : clean_(clean), chinese_(chinese), strip_accents_(strip_accents), lowercase_(lowercase) {}

  void normalize(NormalText& text) const override {
    if (clean_ || chinese_) {
      map_chars(text, [this](std::string& out, char32_t c) { clean(out, c); });
    }
    if (strip_accents_) {
      apply_form(text, NormalForm::kNfd);
      map_chars(text, [](std::string& out, char32_t c) {
        if (!has_flag(c, kNonspacing)) {
          append_utf8(out, c);
        }
      });
    }
    if (lowercase_) {
      map_chars(text, append_lower);
    }
  }

 private:
  static bool is_chinese(char32_t c) {
    return (c >= 0x4E00 && c <= 0x9FFF) || (c >= 0x3400 && c <= 0x4DBF) ||
           (c >= 0x20000 && c <= 0x2A6DF) || (c >= 0x2A700 && c <= 0x2B73F) ||
           (c >= 0x2B740 && c <= 0x2B81F) || (c >= 0x2B920 && c <= 0x2CEAF) ||
           (c >= 0xF900 && c <= 0xFAFF) || (c >= 0x2F800 && c <= 0x2FA1F);
  }

  void clean(std::string& out, char32_t c) const {
    if (clean_) {
      if (has_flag(c, kOther)) {
        return;
      }
      c = has_flag(c, kSpace) ? ' ' : c;
    }
    const bool apart = chinese_ && is_chinese(c);
    out += apart ? " " : "";
    append_utf8(out, c);
    out += apart ? " " : "";
  }

  bool clean_;
  bool chinese_;
  bool strip_accents_;
  bool lowercase_;
};

class Precompiled : public Normalizer {
 public:
  explicit Precompiled(std::string_view base64) : map_(base64) {}
  void normalize(NormalText& text) const override {
    text.text = map_.apply(text.text);
    if (text.origin > 0 && !text.text.empty()) {
      text.origin = static_cast<size_t>(utf8_length(static_cast<unsigned char>(text.text[0])));
    }
  }

 private:
  PrecompiledCharsmap map_;
};

class Sequence : public Normalizer {
 public:
  explicit Sequence(std::vector<std::unique_ptr<Normalizer>> parts) : parts_(std::move(parts)) {}
  void normalize(NormalText& text) const override {
    for (const auto& part : parts_) {
      part->normalize(text);
    }
  }

 private:
  std::vector<std::unique_ptr<Normalizer>> parts_;
};

std::unique_ptr<Normalizer> make_replace(const JsonView& json) {
  const JsonView pattern = required_field(json, "Replace", "pattern");
  const std::string content = text_field(json, "Replace", "content");
  return std::make_unique<Replace>(split_pattern_field(pattern, "Replace"), content);
}

std::unique_ptr<Normalizer> make_bert(const JsonView& json) {
  const bool lowercase = bool_field(json, "lowercase", true);
  return std::make_unique<Bert>(bool_field(json, "clean_text", true),
                                bool_field(json, "handle_chinese_chars", true),
                                bool_field(json, "strip_accents", lowercase), lowercase);
}

std::unique_ptr<Normalizer> make_sequence(const JsonView& json) {
  std::vector<std::unique_ptr<Normalizer>> parts;
  const JsonView list = required_field(json, "Sequence", "normalizers");
  if (!list.is_array()) {
    refuse_tokenizer("field-type", "Sequence: `normalizers`: expected a list, got another kind");
  }
  list.each([&](const JsonView& part) { parts.push_back(make_normalizer(part)); });
  return std::make_unique<Sequence>(std::move(parts));
}

}  // namespace

std::unique_ptr<Normalizer> make_normalizer(const JsonView& json) {
  const std::string_view type = component_type(json, kRole);
  const std::pair<std::string_view, NormalForm> forms[] = {{"NFC", NormalForm::kNfc},
                                                           {"NFD", NormalForm::kNfd},
                                                           {"NFKC", NormalForm::kNfkc},
                                                           {"NFKD", NormalForm::kNfkd}};
  for (const auto& [name, form] : forms) {
    if (type == name) {
      return std::make_unique<Form>(form);
    }
  }
  if (type == "Sequence") {
    return make_sequence(json);
  }
  if (type == "Lowercase") {
    return std::make_unique<Lowercase>();
  }
  if (type == "StripAccents") {
    return std::make_unique<StripAccents>();
  }
  if (type == "Nmt") {
    return std::make_unique<Nmt>();
  }
  if (type == "Strip") {
    return std::make_unique<Strip>(bool_field(json, "strip_left", true),
                                   bool_field(json, "strip_right", true));
  }
  if (type == "Prepend") {
    return std::make_unique<Prepend>(text_field(json, type, "prepend"));
  }
  if (type == "Replace") {
    return make_replace(json);
  }
  if (type == "ByteLevel") {
    return std::make_unique<ByteLevelNormalizer>();
  }
  if (type == "BertNormalizer") {
    return make_bert(json);
  }
  if (type == "Precompiled") {
    return std::make_unique<Precompiled>(text_field(json, type, "precompiled_charsmap"));
  }
  unknown_component(kRole, type, kKnown);
}

std::unique_ptr<Normalizer> make_replace_normalizer(std::string_view from, std::string_view to) {
  return std::make_unique<Replace>(SplitPattern::literal(from), to);
}

std::unique_ptr<Normalizer> make_prepend_normalizer(std::string_view prefix) {
  return std::make_unique<Prepend>(prefix);
}

std::unique_ptr<Normalizer> make_nfc_normalizer() {
  return std::make_unique<Form>(NormalForm::kNfc);
}

std::unique_ptr<Normalizer> make_sequence_normalizer(std::unique_ptr<Normalizer> first,
                                                     std::unique_ptr<Normalizer> second) {
  std::vector<std::unique_ptr<Normalizer>> parts;
  parts.push_back(std::move(first));
  parts.push_back(std::move(second));
  return std::make_unique<Sequence>(std::move(parts));
}

}  // namespace graft::text
