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

// Whoever read stdout went away: the program ends without a word, as a Unix filter does.
struct ClosedPipe : std::exception {};
inline constexpr int kClosedPipeExitCode = 141;  // what a shell shows for SIGPIPE

// Writes data to stdout, at once. Throws Error `cli.stdout` when it cannot be written (a full
// disk), ClosedPipe when nobody reads it.
void write_stdout(std::string_view data);

// Writes what a person reads to stdout: as write_stdout(), with what would steer a terminal spelled out.
void write_report(std::string_view text);

// Writes text to stderr. A stderr that is closed or full is nobody's fault: no error.
void write_stderr(const std::string& text);

// Prints one JSON object and a newline on stdout; adds `schema`.
void print_json(const nlohmann::ordered_json& object);

// Prints one line on stderr unless --quiet.
void print_note(const CommonOptions& common, std::string_view line);

// Reports an error (JSON on stdout under --json, text on stderr otherwise); returns the exit code.
int report_error(const std::exception& error, bool json);

// `12.3 MiB`, `1.1 GiB`.
std::string format_bytes(uint64_t size_bytes);

// `45.3 K`, `134.5 M`, `1.24 B`.
std::string format_count(int64_t count);

// `840 ms`, `12.3 s`.
std::string format_seconds(double seconds);

// Peak resident memory of this process so far.
uint64_t peak_rss_bytes();

}  // namespace graft::cli
