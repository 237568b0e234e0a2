// Where the Hub is and where its cache lies, by the variables that huggingface_hub documents.
// Read anew at each call: nothing is frozen at start-up.
#pragma once

#include <chrono>
#include <filesystem>
#include <optional>
#include <string>

namespace graft::hub {

// HF_HOME, else ${XDG_CACHE_HOME:-~/.cache}/huggingface.
std::filesystem::path home();

// The cache of models: HF_HUB_CACHE, else HUGGINGFACE_HUB_CACHE, else home()/hub.
std::filesystem::path cache_folder();

// The cache of kernels: KERNELS_CACHE, else cache_folder().
std::filesystem::path kernels_cache_folder();

// What graft alone remembers of the Hub, for this user only: ${XDG_CACHE_HOME:-~/.cache}/graft.
std::filesystem::path private_folder();

// HF_HUB_OFFLINE (else TRANSFORMERS_OFFLINE) is 1, ON, YES or TRUE, any case.
bool offline();

// HF_HUB_DISABLE_SYMLINKS is 1, ON, YES or TRUE: snapshots hold copies instead of links.
bool symlinks_disabled();

// How long one question to the Hub may take with all its tries, and a file without any progress:
// GRAFT_HUB_DEADLINE in seconds, default 60.
// Throws   InvalidArgument `hub.environment.seconds` for what is no number from 1 to 86400.
std::chrono::seconds request_deadline();

// How long a transfer may stand still before it is tried again: HF_HUB_DOWNLOAD_TIMEOUT in seconds,
// default 20. Throws as request_deadline.
std::chrono::seconds stall_timeout();

// HF_ENDPOINT without a trailing slash, else the public Hub.
std::string endpoint();

// HF_HUB_DISABLE_IMPLICIT_TOKEN is 1, ON, YES or TRUE: no token is sent that nobody handed over.
bool implicit_token_disabled();

// The access token: HF_TOKEN, HUGGING_FACE_HUB_TOKEN, else the file HF_TOKEN_PATH (default
// home()/token); white space trimmed. Nothing when there is none or HF_HUB_DISABLE_IMPLICIT_TOKEN
// is true.
std::optional<std::string> token();

}  // namespace graft::hub
