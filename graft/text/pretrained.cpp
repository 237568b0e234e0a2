#include "graft/text/pretrained.h"

#include "graft/core/file_status.h"
#include "graft/io/gguf.h"

namespace graft::text {

Tokenizer load_pretrained(const std::filesystem::path& model) {
  if (is_folder(model)) {
    return Tokenizer::from_folder(model);
  }
  return model.extension() == ".gguf" ? Tokenizer::from_gguf(io::GgufFile::open(model))
                                      : Tokenizer::from_file(model);
}

}  // namespace graft::text
