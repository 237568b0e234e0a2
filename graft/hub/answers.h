// Answers of the Hub that stay good for a moment, so that many ranks and many layers of one model
// ask once: lists of refs, the word on a publisher.
#pragma once

#include <chrono>
#include <optional>
#include <string>
#include <string_view>

namespace graft::hub {

// The answer that was remembered under `key` at most `stay` ago. An answer from the future (a clock
// that was set back) is none.
std::optional<std::string> recall_answer(std::string_view key, std::chrono::seconds stay);

// Remembers an answer in private_folder()/answers. Where nothing can be written nothing is
// remembered: the Hub is asked again.
void remember_answer(std::string_view key, std::string_view answer);

}  // namespace graft::hub
