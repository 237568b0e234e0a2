// What names a file's content on the Hub, and with it its blob in the cache: SHA-256 (64 digits)
// for files in large storage, git's SHA-1 of `blob <size>\0` and the content (40 digits) otherwise.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>

namespace graft::hub {

// True for 40 or 64 lower-case hexadecimal digits.
bool is_content_id(std::string_view text);

// Reads the whole file and compares; false for a file that cannot be read.
bool has_content(const std::filesystem::path& file, std::string_view content_id);

// The same, remembered: a file that was hashed once is not read again while device, inode, size,
// and both times stay what they were. The memory is private to the user (private_folder()), so
// nobody else who may write the cache can vouch for what lies there.
bool has_content_remembered(const std::filesystem::path& file, std::string_view content_id);

// Notes that this very file was just hashed.
void remember_content(const std::filesystem::path& file, std::string_view content_id);

// The id that a snapshot's link promises: the name of the blob that it points to. Nothing for a
// plain file.
std::optional<std::string> promised_content(const std::filesystem::path& pointer);

// SHA-256 of a text, as 64 digits.
std::string sha256_of(std::string_view text);

}  // namespace graft::hub
