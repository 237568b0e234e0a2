// Strict JSON for files from outside: duplicate keys, broken UTF-8, a byte order mark, NUL bytes,
// trailing data, floating-point numbers out of range and deep nesting are errors with a byte
// offset, never guesses. Whole numbers beyond 64 bits become floating point, since tokenizer
// configs of transformers hold 10^30 for "no limit".
#pragma once

#include <cstddef>
#include <filesystem>
#include <string>
#include <string_view>

#include <nlohmann/json.hpp>

namespace graft::io {

struct JsonLimits {
  size_t max_bytes = 10 << 20;          // of the text
  size_t max_depth = 64;                // nested arrays and objects
  size_t max_memory_bytes = 192 << 20;  // of the parsed tree, estimated from above
};

// Parses one JSON document.
//
// where  room for the error's code and text, e.g. `io.safetensors`
// file   name that the error text shows
// Throws   FormatError `<where>.json`, `.duplicate-key` or `.json-limits`; the text names the byte
//          up to which the document was read.
nlohmann::json parse_json(std::string_view text, std::string_view where, std::string_view file,
                          const JsonLimits& limits = {});

// The same, keeping the order of keys.
nlohmann::ordered_json parse_ordered_json(std::string_view text, std::string_view where,
                                          std::string_view file, const JsonLimits& limits = {});

// Reads and parses a file. Throws also   NotFound `io.file.open`.
nlohmann::json read_json_file(const std::filesystem::path& path, std::string_view where,
                              const JsonLimits& limits = {});

}  // namespace graft::io
