// Strict JSON for files from outside: duplicate keys, broken UTF-8, a byte order mark, NUL bytes,
// trailing data, floating-point numbers out of range and deep nesting are errors with a byte
// offset, never guesses. Whole numbers beyond 64 bits become floating point, since tokenizer
// configs of transformers hold 10^30 for "no limit".
#pragma once

#include <cstddef>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json.hpp>

namespace graft::io {

struct JsonLimits {
  size_t max_bytes = 10 << 20;          // of the text
  size_t max_depth = 64;                // nested arrays and objects
  size_t max_memory_bytes = 192 << 20;  // of the parsed tree, estimated from above
  size_t first_byte = 0;                // where the text begins in its file, for error texts
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

// Where a value stands in a document that parse_json accepted: the offset of the last key on `path`,
// as far as the document has it; 0 for none. Reads the text anew: meant for errors alone.
size_t offset_of(std::string_view text, const std::vector<std::string_view>& path);

// Reads and parses a file. Throws also   NotFound `io.file.open`.
nlohmann::json read_json_file(const std::filesystem::path& path, std::string_view where,
                              const JsonLimits& limits = {});

}  // namespace graft::io
