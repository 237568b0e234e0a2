// The token of a job that proves itself by what its CI service vouches for ("trusted publishers"), as huggingface_hub
// has it.
#pragma once

#include <string>

namespace graft::hub {

// HF_OIDC_RESOURCE names what the token is for, and HF_HUB_DISABLE_IMPLICIT_TOKEN is not true.
bool oidc_wanted();

// The token for HF_OIDC_RESOURCE, which is no secret of long life: HF_OIDC_ID_TOKEN, or what GitHub Actions gives for
// the Hub's address, is exchanged for it at `<endpoint>/oauth/token` (RFC 8693). Kept in this process until five minutes
// before it ends.
// Throws   NotFound `hub.oidc.id-token` where nothing proves who asks, `hub.oidc.refused` where Hub or service refuse:
//          whoever sets HF_OIDC_RESOURCE wants no other token in its place; NetworkError; FormatError
//          `hub.client.not-the-hub`.
// Network: one or two requests. Thread-safe.
std::string oidc_token(const std::string& endpoint);

}  // namespace graft::hub
