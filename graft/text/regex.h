// Regular expressions of tokenizer files, run by PCRE2 with a bound on their work. The files are
// written for Oniguruma; what both engines spell differently is translated, what has no translation
// is refused.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>

namespace graft::text {

class Regex {
 public:
  // Throws   FormatError `text.tokenizer.regex` when the pattern does not parse, is too long, or
  //          uses what has no translation; the message names the offset.
  explicit Regex(std::string_view pattern);
  ~Regex();
  Regex(Regex&&) noexcept;
  Regex& operator=(Regex&&) noexcept;

  // Finds the first match that begins at or after `from` in valid UTF-8. Thread safe.
  // Throws   FormatError `text.tokenizer.regex-limit` when the pattern needs more than its bound of
  //          work on this text.
  bool find(std::string_view text, size_t from, size_t* begin, size_t* end) const;

 private:
  struct Compiled;
  std::unique_ptr<Compiled> compiled_;
};

// The PCRE2 spelling of an Oniguruma pattern. Throws as Regex does.
std::string translate_oniguruma(std::string_view pattern);

}  // namespace graft::text
