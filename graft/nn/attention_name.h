// The grammar of `attn_implementation`, as transformers reads it. No tensors here.
#pragma once

#include <string>
#include <string_view>

namespace graft::nn {

enum class AttentionKind {
  kEager,   // `eager`
  kSdpa,    // `sdpa`
  kFlash2,  // `flash_attention_2`
  kFlash3,  // `flash_attention_3`
  kGraft,   // `graft`: our own package
  kKernel,  // `org/repo[@ref][:function]`
};

struct AttentionName {
  AttentionKind kind = AttentionKind::kSdpa;
  bool paged = false;      // `paged|` stood before it
  std::string repository;  // kKernel: `org/repo`
  std::string ref;         // kKernel: branch, tag or commit; empty: none given
  std::string function;    // kKernel: empty: none given
  bool operator==(const AttentionName&) const = default;
};

// Reads an attn_implementation. Nothing is looked up.
//
//   name := ["paged|"] ("eager" | "sdpa" | "flash_attention_2" | "flash_attention_3" | "graft" | kernel)
//   kernel := org/repo[@ref][:function], no further `/` or `:`
//
// `org/repo@` names no ref, and in `org/repo:fn@v1` the function is `fn@v1`, both as in transformers.
// Throws   InvalidArgument `models.attn_implementation.unknown` listing what is known.
// Source   transformers 5.20.2, integrations/hub_kernels.py; stricter in that org/repo must be a
//          repository id of the Hub (`../x` is none)
AttentionName parse_attention_name(std::string_view text);

}  // namespace graft::nn
