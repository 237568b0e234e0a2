#include "graft/text/pretrained.h"

#include "graft/io/gguf.h"

namespace graft::text {

Tokenizer load_pretrained(const std::filesystem::path& model) {
  if (std::filesystem::is_directory(model)) {
    return Tokenizer::from_folder(model);
  }
  return model.extension() == ".gguf" ? Tokenizer::from_gguf(io::GgufFile::open(model))
                                      : Tokenizer::from_file(model);
}

}  // namespace graft::text
