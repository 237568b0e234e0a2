// Which function does a call's tokens on this processor.
#pragma once

#include "kernels/common/isa.h"
#include "kernels/rotary/rotary.h"

namespace graft_kernels::rotary {

inline TokensFunction tokens_function(const Problem& problem) {
  return problem.is_normed
             ? choose_isa<TokensFunction>(plain::norm_rotary_tokens, avx2::norm_rotary_tokens,
                                          avx512::norm_rotary_tokens)
             : choose_isa<TokensFunction>(plain::rotary_tokens, avx2::rotary_tokens,
                                          avx512::rotary_tokens);
}

}  // namespace graft_kernels::rotary
