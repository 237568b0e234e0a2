#include "graft/text/post_processor.h"

#include <charconv>
#include <string>
#include <unordered_map>
#include <utility>

#include <fmt/format.h>

#include "graft/text/json_fields.h"

namespace graft::text {

namespace {

constexpr std::string_view kKnown =
    "BertProcessing, ByteLevel, RobertaProcessing, Sequence, TemplateProcessing";

using HasToken = std::function<bool(int64_t)>;

int32_t checked_id(const JsonView& json, const HasToken& has_token, std::string_view component) {
  const int64_t id = json.integer("id");
  if (id < 0 || id > INT32_MAX || !has_token(id)) {
    refuse_tokenizer("post-processor",
                     fmt::format("{}: expected the id of a token, got {}", component, id));
  }
  return static_cast<int32_t>(id);
}

// Parts of a template: ids, or the text in their place.
class Frame : public PostProcessor {
 public:
  struct Part {
    bool text;
    std::vector<int32_t> ids;
  };
  explicit Frame(std::vector<Part> parts) : parts_(std::move(parts)) {}

  void process(std::vector<int32_t>& ids) const override {
    std::vector<int32_t> out;
    out.reserve(ids.size() + parts_.size());
    for (const Part& part : parts_) {
      const auto& more = part.text ? ids : part.ids;
      out.insert(out.end(), more.begin(), more.end());
    }
    ids.swap(out);
  }

 private:
  std::vector<Part> parts_;
};

class Sequence : public PostProcessor {
 public:
  explicit Sequence(std::vector<std::unique_ptr<PostProcessor>> parts) : parts_(std::move(parts)) {}
  void process(std::vector<int32_t>& ids) const override {
    for (const auto& part : parts_) {
      part->process(ids);
    }
  }

 private:
  std::vector<std::unique_ptr<PostProcessor>> parts_;
};

// `$A`, `$B`, `$0`, `[CLS]:1` of the short spelling, or the object of the long one.
struct TemplatePiece {
  bool sequence;
  bool second;  // sequence B
  std::string id;
};

TemplatePiece read_short_piece(std::string_view text) {
  const size_t colon = text.find(':');
  std::string_view id = text.substr(0, colon);
  const auto number = [&](std::string_view digits) {
    uint32_t value = 0;
    const auto read = std::from_chars(digits.data(), digits.data() + digits.size(), value);
    if (digits.empty() || read.ec != std::errc() || read.ptr != digits.data() + digits.size()) {
      refuse_tokenizer(
          "post-processor",
          fmt::format("TemplateProcessing: expected a piece like `$A:0`, got `{}`", text));
    }
  };
  if (colon != std::string_view::npos) {
    number(text.substr(colon + 1));
  }
  if (!id.starts_with('$')) {
    return {false, false, std::string(id)};
  }
  id.remove_prefix(1);
  const bool second = id == "B" || id == "b";
  if (!second && !id.empty() && id != "A" && id != "a") {
    number(id);
  }
  return {true, second, {}};
}

TemplatePiece read_piece(const JsonView& json) {
  if (json.is_text()) {
    return read_short_piece(json.text("single"));
  }
  if (const auto sequence = json.find("Sequence"); sequence && json.size() == 1) {
    const std::string id = text_field(*sequence, "TemplateProcessing", "id");
    if (id != "A" && id != "B") {
      refuse_tokenizer(
          "post-processor",
          fmt::format("TemplateProcessing: expected the sequence A or B, got `{}`", id));
    }
    return {true, id == "B", {}};
  }
  if (const auto special = json.find("SpecialToken"); special && json.size() == 1) {
    return {false, false, text_field(*special, "TemplateProcessing", "id")};
  }
  refuse_tokenizer("post-processor",
                   "TemplateProcessing: expected pieces that are a sequence or a special token");
}

using SpecialTokens = std::unordered_map<std::string, std::vector<int32_t>>;

SpecialTokens read_special_tokens(const JsonView& json, const HasToken& has_token) {
  SpecialTokens tokens;
  required_field(json, "TemplateProcessing", "special_tokens")
      .each_member([&](std::string_view name, const JsonView& token) {
        auto& ids = tokens[std::string(name)];
        const JsonView list = required_field(token, "TemplateProcessing", "ids");
        list.each([&](const JsonView& id) {
          ids.push_back(checked_id(id, has_token, "TemplateProcessing"));
        });
        const JsonView texts = required_field(token, "TemplateProcessing", "tokens");
        if (texts.size() != list.size()) {
          refuse_tokenizer("post-processor",
                           fmt::format("TemplateProcessing: `{}`: expected as many tokens as ids, "
                                       "got {} and {}",
                                       name, texts.size(), list.size()));
        }
      });
  return tokens;
}

std::vector<Frame::Part> read_template(const JsonView& pieces, bool pair,
                                       const SpecialTokens& tokens) {
  if (!pieces.is_array()) {
    refuse_tokenizer("post-processor", "TemplateProcessing: expected a list of pieces");
  }
  std::vector<Frame::Part> parts;
  pieces.each([&](const JsonView& json) {
    TemplatePiece piece = read_piece(json);
    if (piece.sequence) {
      if (piece.second && !pair) {
        refuse_tokenizer("post-processor",
                         "TemplateProcessing: `single`: expected the sequence A alone, got B");
      }
      parts.push_back({true, {}});
      return;
    }
    const auto found = tokens.find(piece.id);
    if (found == tokens.end()) {
      refuse_tokenizer(
          "post-processor",
          fmt::format("TemplateProcessing: expected a token of `special_tokens`, got `{}`",
                      piece.id));
    }
    parts.push_back({false, found->second});
  });
  return parts;
}

std::unique_ptr<PostProcessor> make_template(const JsonView& json, const HasToken& has_token) {
  const SpecialTokens tokens = read_special_tokens(json, has_token);
  auto single = read_template(required_field(json, "TemplateProcessing", "single"), false, tokens);
  read_template(required_field(json, "TemplateProcessing", "pair"), true, tokens);
  return std::make_unique<Frame>(std::move(single));
}

// `["[CLS]", 101]`
int32_t read_named_id(const JsonView& json, std::string_view component, std::string_view field,
                      const HasToken& has_token) {
  const JsonView pair = required_field(json, component, field);
  int32_t id = 0;
  size_t i = 0;
  if (!pair.is_array() || pair.size() != 2) {
    refuse_tokenizer("post-processor",
                     fmt::format("{}: `{}`: expected a token and its id", component, field));
  }
  pair.each([&](const JsonView& part) {
    if (i++ == 0) {
      part.text(field);
    } else {
      id = checked_id(part, has_token, component);
    }
  });
  return id;
}

}  // namespace

std::unique_ptr<PostProcessor> make_frame_processor(std::vector<int32_t> before,
                                                    std::vector<int32_t> after) {
  std::vector<Frame::Part> parts;
  parts.push_back({false, std::move(before)});
  parts.push_back({true, {}});
  parts.push_back({false, std::move(after)});
  return std::make_unique<Frame>(std::move(parts));
}

std::unique_ptr<PostProcessor> make_post_processor(const JsonView& json,
                                                   const HasToken& has_token) {
  const std::string_view type = component_type(json, "post_processor");
  if (type == "TemplateProcessing") {
    return make_template(json, has_token);
  }
  if (type == "BertProcessing" || type == "RobertaProcessing") {
    return make_frame_processor({read_named_id(json, type, "cls", has_token)},
                                {read_named_id(json, type, "sep", has_token)});
  }
  std::vector<std::unique_ptr<PostProcessor>> parts;
  if (type == "ByteLevel") {
    return std::make_unique<Sequence>(std::move(parts));  // offsets only: the ids stay
  }
  if (type == "Sequence") {
    required_field(json, type, "processors").each([&](const JsonView& part) {
      parts.push_back(make_post_processor(part, has_token));
    });
    return std::make_unique<Sequence>(std::move(parts));
  }
  unknown_component("post_processor", type, kKnown);
}

}  // namespace graft::text
