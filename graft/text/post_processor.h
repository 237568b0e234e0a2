// Puts control tokens around the ids of a text.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "graft/text/json_view.h"

namespace graft::text {

class PostProcessor {
 public:
  virtual ~PostProcessor() = default;
  virtual void process(std::vector<int32_t>& ids) const = 0;
};

// Builds what the field `post_processor` of tokenizer.json describes.
//
// has_token  tells whether an id has a token
// Throws   FormatError `text.tokenizer.component` for a kind that is not known,
//          `.post-processor` for a template that names what is not there.
std::unique_ptr<PostProcessor> make_post_processor(const JsonView& json,
                                                   const std::function<bool(int64_t)>& has_token);

// ids before and behind the text.
std::unique_ptr<PostProcessor> make_frame_processor(std::vector<int32_t> before,
                                                    std::vector<int32_t> after);

}  // namespace graft::text
