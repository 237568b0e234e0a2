#include "graft/hub/version_spec.h"

#include <algorithm>
#include <array>
#include <charconv>

#include <fmt/format.h>

#include "graft/core/error.h"

namespace graft::hub {

namespace {

constexpr size_t kMaxTextBytes = 128;
constexpr std::array<std::string_view, 7> kOperators = {"==", "!=", ">=", "<=", "~=", ">", "<"};

// Takes a number from the front of `text`.
std::optional<uint64_t> take_number(std::string_view& text) {
  uint64_t value = 0;
  const auto [end, status] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (status != std::errc() || end == text.data()) {
    return std::nullopt;
  }
  text.remove_prefix(static_cast<size_t>(end - text.data()));
  return value;
}

bool take(std::string_view& text, std::string_view word) {
  if (!text.starts_with(word)) {
    return false;
  }
  text.remove_prefix(word.size());
  return true;
}

bool take_release(std::string_view& text, TagVersion& version) {
  auto number = take_number(text);
  if (number && take(text, "!")) {
    version.epoch = *number;
    number = take_number(text);
  }
  while (number) {
    version.release.push_back(*number);
    if (text.size() < 2 || text[0] != '.' || text[1] < '0' || text[1] > '9') {
      return true;
    }
    text.remove_prefix(1);
    number = take_number(text);
  }
  return false;
}

void take_pre(std::string_view& text, TagVersion& version) {
  constexpr std::array<std::pair<std::string_view, int>, 6> kKinds = {
      {{"alpha", 1}, {"beta", 2}, {"rc", 3}, {"a", 1}, {"b", 2}, {"c", 3}}};
  for (const std::string_view separator : {"", ".", "-", "_"}) {
    for (const auto& [word, kind] : kKinds) {
      if (take(text, std::string(separator) + std::string(word))) {
        version.pre_kind = kind;
        version.pre = take_number(text).value_or(0);
        return;
      }
    }
  }
}

std::optional<uint64_t> take_suffix(std::string_view& text, std::string_view word) {
  for (const std::string_view separator : {".", "-", "_", ""}) {
    if (take(text, std::string(separator) + std::string(word))) {
      return take_number(text).value_or(0);
    }
  }
  return std::nullopt;
}

uint64_t release_part(const TagVersion& version, size_t index) {
  return index < version.release.size() ? version.release[index] : 0;
}

std::strong_ordering compare_release(const TagVersion& left, const TagVersion& right) {
  if (const auto order = left.epoch <=> right.epoch; order != 0) {
    return order;
  }
  const size_t parts = std::max(left.release.size(), right.release.size());
  for (size_t i = 0; i < parts; ++i) {
    if (const auto order = release_part(left, i) <=> release_part(right, i); order != 0) {
      return order;
    }
  }
  return std::strong_ordering::equal;
}

// A bare development release stands before alphas, a version without pre-release after them.
int pre_rank(const TagVersion& version) {
  if (version.pre_kind != 0) {
    return version.pre_kind;
  }
  return version.dev && !version.post ? 0 : 4;
}

// The first `parts` numbers of the release are equal.
bool same_prefix(const TagVersion& left, const TagVersion& right, size_t parts) {
  if (left.epoch != right.epoch) {
    return false;
  }
  for (size_t i = 0; i < parts; ++i) {
    if (release_part(left, i) != release_part(right, i)) {
      return false;
    }
  }
  return true;
}

std::string_view trimmed(std::string_view text) {
  const auto first = text.find_first_not_of(" \t");
  return first == std::string_view::npos
             ? std::string_view()
             : text.substr(first, text.find_last_not_of(" \t") - first + 1);
}

}  // namespace

std::optional<TagVersion> parse_tag_version(std::string_view text) {
  TagVersion version;
  if (text.size() > kMaxTextBytes || !take_release(text, version)) {
    return std::nullopt;
  }
  take_pre(text, version);
  version.post = take_suffix(text, "post");
  version.dev = take_suffix(text, "dev");
  return text.empty() ? std::optional(version) : std::nullopt;
}

std::strong_ordering compare(const TagVersion& left, const TagVersion& right) {
  if (const auto order = compare_release(left, right); order != 0) {
    return order;
  }
  if (const auto order = pre_rank(left) <=> pre_rank(right); order != 0) {
    return order;
  }
  if (const auto order = left.pre <=> right.pre; order != 0) {
    return order;
  }
  if (const auto order = left.post <=> right.post; order != 0) {  // none before any
    return order;
  }
  if (left.dev && right.dev) {
    return *left.dev <=> *right.dev;
  }
  return right.dev.has_value() <=> left.dev.has_value();  // none after any
}

VersionSpecifier VersionSpecifier::parse(std::string_view text) {
  VersionSpecifier specifier;
  const auto fail = [&](std::string_view clause) -> void {
    throw InvalidArgument(
        "hub.revision", "specifier",
        fmt::format("version specifier: expected clauses such as `>=0.1,<0.2`, got `{}` in `{}`",
                    clause, text.substr(0, kMaxTextBytes)));
  };
  for (size_t start = 0; start <= text.size();) {
    const size_t end = std::min(text.find(',', start), text.size());
    const auto whole = trimmed(text.substr(start, end - start));
    const auto* op = std::find_if(kOperators.begin(), kOperators.end(),
                                  [&](std::string_view sign) { return whole.starts_with(sign); });
    if (op == kOperators.end()) {
      fail(whole);
    }
    Clause clause{std::string(*op), {}, false};
    auto rest = trimmed(whole.substr(op->size()));
    take(rest, "v");
    if ((clause.op == "==" || clause.op == "!=") && rest.ends_with(".*")) {
      clause.any_suffix = true;
      rest.remove_suffix(2);
    }
    const auto version = parse_tag_version(rest);
    if (!version || (clause.op == "~=" && version->release.size() < 2)) {
      fail(whole);
    }
    clause.version = *version;
    specifier.clauses_.push_back(std::move(clause));
    start = end + 1;
  }
  return specifier;
}

bool VersionSpecifier::holds(const Clause& clause, const TagVersion& version) {
  const auto order = compare(version, clause.version);
  const bool same_release = compare_release(version, clause.version) == 0;
  if (clause.op == "==" || clause.op == "!=") {
    const bool equal = clause.any_suffix
                           ? same_prefix(version, clause.version, clause.version.release.size())
                           : order == 0;
    return equal == (clause.op == "==");
  }
  if (clause.op == ">=") {
    return order >= 0;
  }
  if (clause.op == "<=") {
    return order <= 0;
  }
  if (clause.op == "~=") {
    return order >= 0 && same_prefix(version, clause.version, clause.version.release.size() - 1);
  }
  if (clause.op == "<") {  // a pre-release of the bound is not below it
    return order < 0 &&
           !(same_release && version.is_prerelease() && !clause.version.is_prerelease());
  }
  return order > 0 && !(same_release && version.post && !clause.version.post);
}

bool VersionSpecifier::contains(const TagVersion& version) const {
  return std::all_of(clauses_.begin(), clauses_.end(),
                     [&](const Clause& clause) { return holds(clause, version); });
}

std::optional<size_t> VersionSpecifier::best(const std::vector<TagVersion>& versions) const {
  const bool names_prerelease = std::any_of(
      clauses_.begin(), clauses_.end(),
      [](const Clause& clause) { return clause.version.is_prerelease() && clause.op != "!="; });
  for (const bool with_prereleases : {names_prerelease, true}) {
    std::optional<size_t> found;
    for (size_t i = 0; i < versions.size(); ++i) {
      const bool counts = with_prereleases || !versions[i].is_prerelease();
      if (counts && contains(versions[i]) &&
          (!found || compare(versions[i], versions[*found]) > 0)) {
        found = i;
      }
    }
    if (found) {
      return found;
    }
  }
  return std::nullopt;
}

bool is_version_specifier(std::string_view ref) {
  return ref.find_first_of("<>=!~,") != std::string_view::npos;
}

}  // namespace graft::hub
