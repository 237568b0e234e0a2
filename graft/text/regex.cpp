#include "graft/text/regex.h"

#include <chrono>

#include <fmt/format.h>
#include <pcre2.h>

#include "graft/core/error.h"

namespace graft::text {

namespace {

constexpr size_t kMaxPattern = 64 << 10;
constexpr uint32_t kMatchLimit = 1'000'000;      // of the interpreter's steps in one search
constexpr uint32_t kJitMatchLimit = 10'000'000;  // the JIT counts fewer, cheaper steps
constexpr size_t kJitStackMax = 8 << 20;

std::string message_of(int code) {
  PCRE2_UCHAR buffer[256];
  pcre2_get_error_message(code, buffer, sizeof(buffer));
  return reinterpret_cast<const char*>(buffer);
}

// What a search needs and may not share between threads.
struct MatchState {
  pcre2_match_data* data = pcre2_match_data_create(1, nullptr);
  pcre2_match_context* context = pcre2_match_context_create(nullptr);
  pcre2_jit_stack* stack = pcre2_jit_stack_create(32 << 10, kJitStackMax, nullptr);

  MatchState() {
    pcre2_jit_stack_assign(context, nullptr, stack);
    pcre2_set_heap_limit(context, 64 << 10);
  }
  ~MatchState() {
    pcre2_jit_stack_free(stack);
    pcre2_match_context_free(context);
    pcre2_match_data_free(data);
  }
  MatchState(const MatchState&) = delete;
  MatchState& operator=(const MatchState&) = delete;
};

}  // namespace

struct Regex::Compiled {
  std::string pattern;
  pcre2_code* code = nullptr;
  bool jit = false;
  Compiled() = default;
  Compiled(const Compiled&) = delete;
  Compiled& operator=(const Compiled&) = delete;
  ~Compiled() { pcre2_code_free(code); }
};

Regex::Regex(std::string_view pattern) : compiled_(std::make_unique<Compiled>()) {
  if (pattern.size() > kMaxPattern) {
    throw FormatError(
        "text.tokenizer", "regex",
        fmt::format("expected a pattern of at most {} bytes, got {}", kMaxPattern, pattern.size()));
  }
  const std::string translated = translate_oniguruma(pattern);
  compiled_->pattern = pattern.substr(0, 200);
  int code = 0;
  PCRE2_SIZE offset = 0;
  const auto context = pcre2_compile_context_create(nullptr);
  pcre2_set_newline(context, PCRE2_NEWLINE_LF);
  pcre2_set_parens_nest_limit(context, 200);
  compiled_->code =
      pcre2_compile(reinterpret_cast<PCRE2_SPTR>(translated.data()), translated.size(),
                    PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE, &code, &offset, context);
  pcre2_compile_context_free(context);
  if (compiled_->code == nullptr) {
    throw FormatError("text.tokenizer", "regex",
                      fmt::format("`{}`: at offset {}: expected a regular expression, got: {}",
                                  compiled_->pattern, offset, message_of(code)));
  }
  compiled_->jit = pcre2_jit_compile(compiled_->code, PCRE2_JIT_COMPLETE) == 0;
}

Regex::~Regex() = default;
Regex::Regex(Regex&&) noexcept = default;
Regex& Regex::operator=(Regex&&) noexcept = default;

bool Regex::find(std::string_view text, size_t from, size_t* begin, size_t* end) const {
  thread_local MatchState state;
  pcre2_set_match_limit(state.context, compiled_->jit ? kJitMatchLimit : kMatchLimit);
  const auto subject = reinterpret_cast<PCRE2_SPTR>(text.data());
  // The text is valid UTF-8 already; checking it again at each call would be quadratic.
  const int found = pcre2_match(compiled_->code, subject, text.size(), from, PCRE2_NO_UTF_CHECK,
                                state.data, state.context);
  if (found == PCRE2_ERROR_NOMATCH) {
    return false;
  }
  if (found < 0) {
    throw FormatError(
        "text.tokenizer", "regex-limit",
        fmt::format("`{}`: expected a pattern that matches within its bound of work, got: {}",
                    compiled_->pattern, message_of(found)));
  }
  const auto* pair = pcre2_get_ovector_pointer(state.data);
  *begin = pair[0];
  *end = pair[1];
  return true;
}

}  // namespace graft::text
