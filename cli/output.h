// How the program speaks: data on stdout, everything else on stderr, one exit code per error class.
#pragma once

#include <exception>
#include <string>
#include <string_view>

#include <nlohmann/json.hpp>

#include "cli/options.h"

namespace graft::cli {

// Every JSON object that the program prints carries this under `schema`.
inline constexpr int kJsonSchema = 1;

// Prints one JSON object and a newline on stdout; adds `schema`.
void print_json(nlohmann::ordered_json object);

// Prints one line on stderr unless --quiet.
void print_note(const CommonOptions& common, std::string_view line);

// Reports an error (JSON on stdout under --json, text on stderr otherwise); returns the exit code.
int report_error(const std::exception& error, bool json);

// `12.3 MiB`, `1.1 GiB`.
std::string format_bytes(uint64_t size_bytes);

// `840 ms`, `12.3 s`.
std::string format_seconds(double seconds);

// Peak resident memory of this process so far.
uint64_t peak_rss_bytes();

}  // namespace graft::cli
