#include "graft/models/auto_tokenizer.h"

#include "graft/core/file_status.h"
#include "graft/hub/cache.h"
#include "graft/hub/environment.h"
#include "graft/text/pretrained.h"

namespace graft::models {

text::Tokenizer AutoTokenizer::from_pretrained(const std::string& name_or_path,
                                               const std::string& revision) {
  if (!is_there(name_or_path) && hub::is_repo_id(name_or_path)) {
    if (const auto snapshot = hub::find_snapshot(hub::cache_folder(), hub::RepoType::kModel,
                                                 name_or_path, revision)) {
      return text::load_pretrained(snapshot->folder);
    }
  }
  return text::load_pretrained(name_or_path);
}

}  // namespace graft::models
