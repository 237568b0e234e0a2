// Tokenizers from the metadata of GGUF files.
#pragma once

#include "graft/io/gguf.h"
#include "graft/text/tokenizer.h"

namespace graft::text {

// See Tokenizer::from_gguf.
Tokenizer read_gguf_vocabulary(const io::GgufFile& file);

}  // namespace graft::text
