// Versions and version specifiers of the older kernel repositories: tags `v0.1.0`, asked for as
// `>=0.1,<0.2`. The grammar and the order are PEP 440's, as `kernels` before 0.13 read them.
#pragma once

#include <compare>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace graft::hub {

// `[N!]N(.N)*[{a|b|rc}N][.postN][.devN]`; local versions (`+…`) are not read.
struct TagVersion {
  uint64_t epoch = 0;
  std::vector<uint64_t> release;
  int pre_kind = 0;  // 0: none, 1: alpha, 2: beta, 3: release candidate
  uint64_t pre = 0;
  std::optional<uint64_t> post;
  std::optional<uint64_t> dev;

  bool is_prerelease() const { return pre_kind != 0 || dev.has_value(); }
};

// Nothing for a text that is no version. A leading `v` is part of a tag, not of a version.
std::optional<TagVersion> parse_tag_version(std::string_view text);

std::strong_ordering compare(const TagVersion& left, const TagVersion& right);

// Comma-joined clauses that all have to hold: `>=0.1,<0.2`, `==1.2.*`, `~=0.3.1`, `!=0.1.4`.
class VersionSpecifier {
 public:
  // Throws   InvalidArgument `hub.revision.specifier` naming the clause that cannot be read.
  static VersionSpecifier parse(std::string_view text);

  bool contains(const TagVersion& version) const;

  // The index of the highest version that fits; pre-releases count only where a clause names one or
  // where nothing else fits. Nothing when none fits.
  std::optional<size_t> best(const std::vector<TagVersion>& versions) const;

 private:
  struct Clause {
    std::string op;
    TagVersion version;
    bool any_suffix = false;  // `.*`
  };
  static bool holds(const Clause& clause, const TagVersion& version);

  std::vector<Clause> clauses_;
};

// True when a ref is a specifier rather than the name of a branch, tag or commit.
bool is_version_specifier(std::string_view ref);

}  // namespace graft::hub
